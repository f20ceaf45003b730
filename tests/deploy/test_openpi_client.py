"""The real openpi-client from PyPI against this server. It wants numpy below 2, so it has an environment of its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks.toy_server import ToyPolicy
from deploy.session import noise

ROOT = Path(__file__).parents[2]
VENV = ROOT / "outputs" / "openpi" / "venv"
MAKE = "python -m venv outputs/openpi/venv && outputs/openpi/venv/bin/pip install openpi-client typing_extensions"
KEY = "correct-horse-battery-staple"


def expected(seen: list[int], decision: int) -> list[list[float]]:
    """The chunk of a robot whose last two observations are these."""
    joints = np.array(seen, np.float32)[None, :, None].repeat(3, 2)
    camera = np.zeros((1, 2, 8, 8, 3), np.uint8) + np.array(seen, np.uint8)[None, :, None, None, None]
    return ToyPolicy().plan({"joints": joints, "camera": camera}, noise(0, 0, decision, (8, 2))[None])[0].tolist()


@pytest.mark.slow
@pytest.mark.skipif(not VENV.is_dir(), reason=f"there is no openpi-client; {MAKE}")
def test_the_real_openpi_client_works_with_this_server(serving):
    running = serving(key=KEY)
    command = [VENV / "bin" / "python", ROOT / "tests" / "deploy" / "openpi_side.py", str(running.port), KEY]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    greeting, *answers = map(json.loads, done.stdout.splitlines())
    assert greeting["numpy"].startswith("1.")
    assert greeting["metadata"]["chunk_shape"] == [8, 2]
    for n, answer in enumerate(answers[:3]):
        assert answer["actions"] == expected([max(0, n - 1), n], n)
        assert answer["dtype"] == "float32"
        assert answer["policy_timing"] == ["infer_ms"]
        assert answer["server_timing"] == ["infer_ms", *(["prev_total_ms"] if n else [])]
    steps = [answer["step"] for answer in answers[3:7]]  # two chunks of which two actions are executed
    assert steps == [*expected([0, 0], 0)[:2], *expected([0, 2], 1)[:2]]
    assert "Error in inference server:\ninvalid: the observation has 'joints', expected" in answers[7]["error"]
    assert "HTTP 401" in answers[8]["refused"]
