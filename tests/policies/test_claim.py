"""A folder that one program writes to at a time."""

import os
import signal
import subprocess
import sys

import pytest

from flowhand.contracts.durable import LOCK, claimed

HOLD = """
import sys
from flowhand.contracts.durable import claimed
with claimed(sys.argv[1]):
    print(flush=True)
    sys.stdin.read()
"""


def test_a_second_writer_is_refused_until_the_first_has_ended(tmp_path):
    with claimed(tmp_path / "out"):
        (tmp_path / "out" / "kept").touch()
        told = rf"process \(number {os.getpid()}\) is writing to .*out; wait"
        with pytest.raises(ValueError, match=told), claimed(tmp_path / "out"):
            pass
    with claimed(tmp_path / "out"):
        pass
    assert os.listdir(tmp_path / "out") == ["kept"]


def test_what_was_made_for_the_lock_alone_is_taken_away(tmp_path):
    with pytest.raises(KeyError), claimed(tmp_path / "out"):
        raise KeyError
    assert os.listdir(tmp_path) == []


def test_the_lock_ends_with_the_process_that_held_it(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"\n"
    with pytest.raises(ValueError, match=f"number {process.pid}"), claimed(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert os.listdir(tmp_path) == [LOCK]
    with claimed(tmp_path):
        pass
    process.stdin.close()
    process.stdout.close()
