"""Lerobot's own SOFollower and SOLeader, in lerobot's own Python, with servos that the arm in MuJoCo answers.

FLOWHAND_LEROBOT names the Python of an environment with lerobot[feetech] 0.6.1; `make real-packages` makes one.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from envs.so101 import SO101Config, SO101Env
from tests.robots.feetech import MIDDLE, TICKS, Arm, Bus, calibration

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("FLOWHAND_LEROBOT", "")
SIZE = 32
pytestmark = pytest.mark.skipif(not PYTHON, reason="FLOWHAND_LEROBOT names no Python with lerobot[feetech]==0.6.1")


class Side:
    """Servos, a camera, and lerobot's Python beside them."""

    def __init__(self, folder: Path):
        self.folder, self.env = folder, SO101Env(SO101Config(pixels=SIZE))
        self.env.reset(seed=0)
        self.drawn = SO101Env(SO101Config(observes="state"))
        self.arm = Arm(self.env)
        self.bus, self.other = Bus(self.arm), Bus(Arm(SO101Env(SO101Config(observes="state"))), calibrated=False)
        (folder / "test.json").write_text(json.dumps(calibration(self.env)))
        self.picture = np.memmap(folder / "picture", np.uint8, "w+", shape=16 + SIZE * SIZE * 3)
        self.shown: list[float] = []  # when each picture was taken
        self.settings = {
            "port": self.bus.port, "other_port": self.other.port, "calibration": str(folder), "size": SIZE,
            "picture": str(folder / "picture"), "started": str(folder / "started"),
            "spec": self.env.features.to_dict(),
        }  # fmt: skip

    def show(self) -> None:
        """The camera takes a picture, whose first value counts them."""
        with self.arm.lock:  # not while it is drawn, since the servos wait for it
            self.drawn._data.qpos[:] = self.arm.data.qpos
        self.drawn._mujoco.mj_forward(self.drawn._model, self.drawn._data)
        picture = self.drawn.picture(SIZE)
        picture[0, 0] = len(self.shown) // 256, len(self.shown) % 256, 0  # which it is
        self.shown.append(time.perf_counter())
        self.picture[16:] = picture.reshape(-1)
        self.picture[:8].view(np.float64)[0] = self.shown[-1]

    def scene(self, name: str, meanwhile=lambda seconds: None) -> dict:
        """What came of a scene; `meanwhile` is told every picture how long ago the scene's control began."""
        (self.folder / "settings.json").write_text(json.dumps(self.settings))
        words = [PYTHON, str(ROOT / "tests/robots/lerobot_side.py"), name, str(self.folder / "settings.json")]
        home = {"HF_HOME": str(self.folder / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        environment = {**os.environ, **home, "PYTHONPATH": str(ROOT)}
        started = self.folder / "started"
        started.unlink(missing_ok=True)
        began = None
        with subprocess.Popen(words, env=environment, text=True, stdout=-1, stderr=-1, stdin=subprocess.DEVNULL) as run:
            while run.poll() is None:
                self.show()
                time.sleep(1 / 60)
                if began is None and started.exists():
                    began = time.monotonic()
                meanwhile(time.monotonic() - began if began else 0.0)
            out, self.errors = run.communicate()
        assert run.returncode == 0, self.errors
        return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def side(tmp_path_factory):
    made = Side(tmp_path_factory.mktemp("lerobot"))
    yield made
    made.bus.close()
    made.other.close()
    made.drawn.close()


def test_what_does_not_fit_is_refused_before_anything_moves(side):
    before = side.arm.ticks()
    found = side.scene("refused")
    assert "shoulder_pan.pos of 'state' is in deg for the robot and in rad for the policy" in found["units"]
    assert "is in -100..100 for the robot and in rad for the policy" in found["percent"]
    command = f"lerobot-calibrate --robot.type=so101_follower --robot.id=other --robot.port={side.bus.port}"
    assert command in found["uncalibrated file"]
    assert "is not calibrated; calibrate it with lerobot's own command" in found["uncalibrated motors"]
    assert "lerobot has no 'so102_follower' in robots; it has" in found["type"]
    assert "so101_follower" in found["type"]
    assert "prot" in found["field"]
    assert side.bus.goals == 0
    assert np.abs(side.arm.ticks() - before).max() < 200  # it sank a little, without torque


def test_an_arm_is_read_and_driven_in_the_policys_units_and_comes_back_at_the_end(side):
    start = side.env.angles
    found = side.scene("driven")
    np.testing.assert_allclose(found["command"], start, atol=0.5)  # lerobot takes the torque off for a moment
    np.testing.assert_allclose(found["state"], found["target"], atol=0.05)
    assert found["dtype"] == "float32"
    assert found["shape"] == [SIZE, SIZE, 3]
    assert len(set(found["numbers"])) > 3
    for observed, number in zip(found["observed"], found["numbers"], strict=True):
        assert side.shown[number] - 2 < observed < side.shown[number] + 0.002  # never younger than the picture is
    assert abs(found["took"][0] - np.degrees(found["target"][0])) < 1e-3
    assert found["blocked"] == 0
    assert side.bus.collisions == 0
    home = np.array(found["command"])
    assert np.abs(side.env.angles - home)[0] < 0.1  # back, and then without torque
    assert not side.arm.torque.any()
    assert side.bus.goals >= 30 + 15


def test_torque_is_kept_where_the_user_says_so_and_a_camera_without_times_is_named(side):
    side.scene("kept")
    assert side.arm.torque.all()
    assert "the age of frames of ['front'] is not known" in side.errors


def test_silent_servos_are_told_and_counted_and_control_goes_on(side):
    quiet = []

    def meanwhile(seconds):
        if 0.6 < seconds < 0.9:
            side.bus.silent.set()
            quiet.append(seconds)
        else:
            side.bus.silent.clear()

    found = side.scene("silent", meanwhile)
    assert quiet
    assert found["ended"] == "time"
    assert found["blocked"] >= 2
    assert found["counts"]["refusal: late observation"] >= 1
    assert found["counts"]["refusal: write error"] >= 1
    assert side.errors.count("takes no command until it does") >= 1
    assert found["state"][0] == pytest.approx(0.3, abs=0.05)  # it came there all the same
    assert side.bus.collisions == 0


def test_a_leader_is_read_and_driven_smoothly_to_where_the_follower_is(side):
    found = side.scene("led")
    assert "is in deg for the driver and in rad for the robot" in found["units"]
    assert found["arrived"], (found["steps"][-1], found["there"], len(found["steps"]))
    steps = np.array(found["steps"])
    np.testing.assert_allclose(steps[-1][[0, 4, 5]], np.array(found["there"])[[0, 4, 5]], atol=0.2)
    assert np.abs(np.diff(steps[:, 0])).max() < 4 * np.radians(60) / 30  # no jump
    assert len(steps) > 5
    assert not side.arm.torque.any()  # let go


def test_ticks_are_angles(side):
    np.testing.assert_allclose((side.arm.ticks() - MIDDLE) / TICKS, side.env.angles, atol=0.02)
