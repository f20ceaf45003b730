"""Nobody empties the log: the robot gets its commands all the same, and what is lost is counted."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowhand.contracts.features import ChunkConfig, Feature, Spec
from flowhand.contracts.planner import NOTHING
from flowhand.control import background
from flowhand.control.background import LINES, Background, Logger, TimeLimited, in_words, warnings_logged
from flowhand.control.inference_thread import InferenceThread
from flowhand.control.journal import read
from flowhand.control.limits.config import SafetyConfig
from flowhand.control.observers.journaling import WAITING
from flowhand.control.replay import open_journal
from flowhand.control.runtime import Runtime
from flowhand.control.runtime_config import RuntimeConfig
from flowhand.control.safety import Safety

ROOT = Path(__file__).parents[2]
SPEC = Spec({"count": Feature((1,), "float32", "")}, Feature((2,), "float32", "", (-9.0,) * 2, (9.0,) * 2), 0.01)
DT, SECONDS = 0.01, 1.0
BUSY_S = 1.0  # for which a busy machine may hold up a control step

CHILD = """
import json, logging, sys, time, warnings
import numpy as np
from flowhand.control.runtime import Runtime, RuntimeConfig
from flowhand.control.safety import Safety, SafetyConfig
from flowhand.contracts.features import Feature, Spec

class Robot:
    command, reads, times = np.zeros(2), 0, []
    def read(self):
        self.reads += 1
        raise OSError(f"camera lost for the {self.reads}th time " + "x" * 200)
    def write(self, action):
        self.times.append(time.monotonic())
        warnings.warn(f"command {len(self.times)} " + "y" * 200)

class Policy:
    def reset(self, *, seed): pass
    def step(self, observation): return np.zeros(2)

dt, seconds = map(float, sys.argv[2:])
if sys.argv[1] == "program":
    from flowhand.control.background import divert_logging
    divert_logging()
    logging.getLogger("another library").warning("z" * 10_000)
    logging.getLogger("another library").warning("z" * 100_000)
warnings.simplefilter("always")
bounds = Feature((2,), "float32", "", (-9.0,) * 2, (9.0,) * 2)
spec = Spec({"count": Feature((1,), "float32", "")}, bounds, 0.01)
robot = Robot()
runtime = Runtime(robot, Policy(), Safety.for_spec(spec, SafetyConfig(), dt), spec.observation, dt)
ended = runtime.run(seconds, seed=0)
if sys.argv[1] == "library":
    for number in range(3000):
        runtime._warn(f"{number}")
print(json.dumps([ended, robot.times, runtime.report.line()]), flush=True)
"""


@pytest.mark.parametrize("kind", ["library", "program"])
def test_a_full_pipe_stops_no_command(kind):
    """`read` fails with another text at every step, and `write` warns; nobody reads the pipe until all is over."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    command = [sys.executable, "-c", CHILD, kind, str(DT), str(SECONDS)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=writing, text=True) as process:
        os.close(writing)
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        assert process.stdout is not None
        ended, times, _ = json.loads(process.stdout.readline())
        with os.fdopen(reading, errors="replace") as log:
            told = log.read()
    watchdog.cancel()
    assert process.returncode == 0
    assert ended == "time"
    assert max(np.diff(times)) < BUSY_S
    assert len(times) > 0.3 * SECONDS / DT
    assert "camera lost for the 1th time" in told
    if kind == "library":
        assert "log lines were dropped: they were not taken in time" in told


def test_a_disk_that_hangs_stops_no_command(tmp_path, monkeypatch):
    """A hundred records wait; the journal ends before the first that finds no room, and replays up to there."""
    released, appended = threading.Event(), []
    journal: Any = open_journal(tmp_path / "journal", SPEC, {})
    monkeypatch.setattr("flowhand.control.observers.journaling.WAITING", (WAITING[0], 100))
    monkeypatch.setattr("flowhand.control.runtime.WRITTEN_S", 0.01)
    append = journal.append

    def hanging(*arguments):
        released.wait(60)
        appended.append(arguments)
        append(*arguments)

    monkeypatch.setattr(journal, "append", hanging)
    robot = Answering()
    runtime = Runtime(robot, Constant(), Safety.for_spec(SPEC), SPEC.observation, DT, journal=journal)
    assert runtime.run(1.4, seed=0) == "time"
    assert max(np.diff(robot.times)) < BUSY_S
    assert runtime.report.unwritten >= runtime.report.steps - 101  # and answers that came late
    released.set()
    monkeypatch.setattr("flowhand.control.runtime.WRITTEN_S", 10.0)
    runtime.close()
    assert 100 <= len(read(tmp_path / "journal").records) == len(appended) <= 101


class Answering:
    def __init__(self):
        self.times: list[float] = []

    def read(self):
        return {"count": np.zeros(1, np.float32)}

    def write(self, action):
        self.times.append(time.monotonic())


class Constant:
    def reset(self, *, seed):
        pass

    def step(self, observation):
        return np.ones(2)


@pytest.mark.parametrize("name", ["workspace", "safe_action"])
def test_a_function_of_a_user_that_hangs_stops_no_command(name):
    released, calls = threading.Event(), []

    def function(*arguments):
        calls.append(arguments)
        if len(calls) == 5:
            released.wait(60)
        return np.full(2, 2.0) if name == "safe_action" else np.full(2, 3.0)

    functions: Any = {name: function}
    safety, robot = Safety.for_spec(SPEC, SafetyConfig(), 0.05, **functions), Answering()
    policy: Any = Constant()
    if name == "safe_action":
        policy.step = lambda observation: [float("nan"), 0.0]  # refused at every step
    robot.command = np.zeros(2)  # pyright: ignore[reportAttributeAccessIssue]
    runtime = Runtime(robot, policy, safety, SPEC.observation, 0.05, RuntimeConfig(stop_s=0.0))
    runtime.run(1.0, seed=0)
    assert len(calls) == 5  # while it hangs it is not called again
    assert max(np.diff(robot.times)) < BUSY_S
    assert len(robot.times) > 10
    released.set()
    runtime.run(0.5, seed=0)
    runtime.close()
    assert len(calls) > 5


@pytest.mark.parametrize("error", [SystemExit(1), RuntimeError("no"), GeneratorExit()])
def test_inference_beside_the_control_survives_what_a_planner_raises(error):
    """Raised where the decision is asked for; the next one is made again."""

    class Planner:
        spec, chunk, noise_shape, continues, plans = SPEC, ChunkConfig(1, 4, 2), (4, 2), NOTHING, 0

        def plan(self, observation, noise, prefix=None):
            self.plans += 1
            if self.plans == 4:  # after three of warming up
                raise error
            return np.zeros((1, 4, 2), np.float32)

    inference_thread = InferenceThread(Planner())
    inference_thread.reset(seed=0)
    raised, deadline = None, time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if inference_thread.step({"count": np.zeros(1, np.float32)}) is not None:
                break
        except BaseException as found:
            raised = found
        time.sleep(0.001)
    else:
        pytest.fail("no decision any more")
    inference_thread.close()
    assert raised is error


def test_what_does_not_fit_is_dropped_and_counted():
    worker, held, done = Background("test", 3), threading.Event(), []
    worker.do(held.wait, 60)
    while worker._tasks.qsize():
        time.sleep(0.001)  # until the thread has taken it
    assert [worker.do(done.append, number) for number in range(5)] == [True] * 3 + [False] * 2
    assert not worker.drain(0.01)
    held.set()
    worker.do(sys.exit)  # the thread survives it
    assert worker.drain(10)
    worker.do(done.append, 9)
    assert worker.drain(10)
    assert done == [0, 1, 2, 9]
    assert worker.dropped == 3
    worker.close()


def test_what_was_handed_over_before_the_end_is_waited_for_no_longer_than_it_takes():
    worker, done = Background("test", 3), []
    worker.do(time.sleep, 0.05)
    worker.do(done.append, 1)
    worker.close()
    assert not worker.drain(0.001)
    start = time.monotonic()
    assert worker.drain(60)
    assert time.monotonic() - start < 30  # the end of the thread is seen, not the limit waited for
    assert done == [1]
    worker.do(done.append, 2)  # another thread begins
    assert worker.drain(60)
    assert done == [1, 2]
    worker.close()


def test_lines_keep_their_order_and_what_was_dropped_is_told(caplog, monkeypatch):
    monkeypatch.setattr(LINES, "most", 2)
    held = threading.Event()
    assert LINES.drain(10)
    background._reported[0] = LINES.dropped
    LINES.do(held.wait, 60)
    while LINES._tasks.qsize():
        time.sleep(0.001)
    logger = Logger("a test")
    for number in range(5):
        logger.warning("line %d", number)
    held.set()
    assert LINES.drain(10)
    assert [record.getMessage() for record in caplog.records] == [
        "3 log lines were dropped: they were not taken in time",
        "line 0",
        "line 1",
    ]


def test_warnings_become_lines(caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with warnings_logged():
            warnings.warn("look out", stacklevel=1)
    assert LINES.drain(10)
    assert "UserWarning: look out" in caplog.text


def test_a_level_that_nobody_wants_costs_nothing():
    logging.getLogger("a test").setLevel(logging.ERROR)
    before = LINES._tasks.qsize()
    Logger("a test").warning("no")
    assert LINES._tasks.qsize() == before
    logging.getLogger("a test").setLevel(logging.NOTSET)


def test_a_time_limited_call_answers_raises_or_is_late():
    held = threading.Event()
    limited = TimeLimited(lambda x: held.wait(60) if x is None else 1 / x, 0.05)
    assert limited(4) == 0.25
    with pytest.raises(ZeroDivisionError):
        limited(0)
    with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
        limited(None)
    with pytest.raises(TimeoutError, match="an earlier call has still not returned"):
        limited(4)
    held.set()
    deadline = time.monotonic() + 10
    while not limited._last.done() and time.monotonic() < deadline:  # pyright: ignore[reportOptionalMemberAccess]
        time.sleep(0.001)
    limited.limit_s = 10.0
    assert limited(4) == 0.25
    limited.close()


def test_an_error_in_words_is_one_short_line():
    assert in_words(ValueError("one\n two\t\udcff")) == r"ValueError: one two \udcff"
    assert len(in_words(ValueError("x" * 10**6))) == 300
    assert in_words(ValueError()) == "ValueError: "
