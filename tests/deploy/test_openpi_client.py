"""The openpi packages from PyPI against ours. They want numpy below 2, so they have an environment of their own."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.toy_server import ToyPolicy
from flowhand.contracts.noise import noise
from flowhand.deploy.client import Client, RemoteController

ROOT = Path(__file__).parents[2]
VENV = ROOT / "outputs" / "openpi" / "venv"
MAKE = "python -m venv outputs/openpi/venv && outputs/openpi/venv/bin/pip install openpi-server typing_extensions"
SIDE = [VENV / "bin" / "python", ROOT / "tests" / "deploy" / "openpi_side.py"]
KEY = "correct-horse-battery-staple"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not VENV.is_dir(), reason=f"there is no openpi; {MAKE}"),
]


def expected(seen: list[int], decision: int) -> list[list[float]]:
    """The chunk of a robot whose last two observations are these."""
    joints = np.array(seen, np.float32)[None, :, None].repeat(3, 2)
    camera = np.zeros((1, 2, 8, 8, 3), np.uint8) + np.array(seen, np.uint8)[None, :, None, None, None]
    return ToyPolicy().plan({"joints": joints, "camera": camera}, noise(0, 0, decision, (8, 2))[None])[0].tolist()


def test_the_real_openpi_client_works_with_this_server(serving):
    running = serving(key=KEY)
    done = subprocess.run(
        [*SIDE, "ask", str(running.port), KEY], capture_output=True, text=True, check=False, timeout=120
    )
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


def test_this_client_works_with_the_real_openpi_server():
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    server = subprocess.Popen([*SIDE, "serve", str(port)], stderr=subprocess.DEVNULL)
    client = Client(f"ws://127.0.0.1:{port}")
    try:
        metadata = None
        deadline = time.monotonic() + 60
        while metadata is None and time.monotonic() < deadline:
            try:
                metadata = client.connect()
            except ConnectionError:
                time.sleep(0.1)
        assert metadata == {"name": "openpi"}
        for n in range(3):
            answer = client.infer({"state": np.array([1.0, 10.0]) + n})
            np.testing.assert_array_equal(answer["actions"], np.outer([1, 2, 3, 4], [1.0 + n, 10.0 + n]))
            assert ("prev_total_ms" in answer["server_timing"]) == (n > 0)
        with pytest.raises(RuntimeError, match="the server says: Traceback") as caught:
            client.infer({"other": np.zeros(2)})
        assert "\n" not in str(caught.value)
        time.sleep(0.2)
        assert client.infer({"state": np.ones(2)})["actions"].shape == (4, 2)  # over a new connection
        with pytest.raises(ValueError, match="does not describe a flowhand policy"):
            RemoteController(client)
    finally:
        client.close()
        server.kill()
        server.wait()
