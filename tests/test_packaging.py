"""The wheel carries the packages, and they work outside the repository."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return next(folder.glob("flowhand-*.whl"))


def test_the_wheel_holds_the_packages_only(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"flowhand", "policies", "envs", "conf"}
    assert not any("plugin" in name or "lerobot_policy" in name for name in names)
    for needed in (
        "policies/py.typed",
        "envs/py.typed",
        "flowhand/py.typed",
        "flowhand/pages/report.css",
        "conf/experiment/demo.yaml",
    ):
        assert needed in names


@pytest.mark.slow
def test_the_wheel_works_alone(wheel, tmp_path):
    program = "import policies, envs, conf.verbs.control; assert 'site' in policies.__file__, policies.__file__"
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel], check=True
    )
    result = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(site)!r}); {program}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


STAND = '''"""A stand that holds a point: its position is read, its velocity commanded."""

import time
from dataclasses import dataclass

import numpy as np

from flowhand.contracts.features import Feature, Spec
from flowhand.robots import ROBOTS
from flowhand.robots.base import RobotConfig


@dataclass
class StandConfig(RobotConfig):
    """The stand."""

    kind: str = "stand"
    rate_hz: float = 20.0  # control steps per second


class Stand:
    def __init__(self, config):
        goal, state = Feature((2,), "float32", "m"), Feature((4,), "float32", "position m, velocity m/s")
        action = Feature((2,), "float32", "m/s", (-0.5, -0.5), (0.5, 0.5))
        self.features = Spec({"goal": goal, "state": state}, action, 1 / config.rate_hz)

    def connect(self):
        self.at, self.command, self.observed_at = np.zeros(2), np.zeros(2), time.monotonic()

    def disconnect(self):
        pass

    def read(self):
        now = time.monotonic()
        self.at, self.observed_at = self.at + self.command * (now - self.observed_at), now
        state = np.concatenate([self.at, self.command]).astype(np.float32)
        return {"goal": np.ones(2, np.float32), "state": state}

    def write(self, action):
        self.command = np.asarray(action, np.float64)


ROBOTS["stand"] = (StandConfig, Stand)
'''
EXPORT = ROOT / "tests/golden/v2/export-onnx"
ON_A_ROBOT = {  # verb and settings, and what the last line says
    f"control checkpoint={EXPORT} robot=stand modules=[stand] seconds=1 journal=j.journal": "ended: time",
    f"verify journal=j.journal checkpoint={EXPORT}": "are equal to the last bit",
    "check robot=stand modules=[stand] page=check.html": "No fault was found in ",
    f"record robot=stand modules=[stand] checkpoint={EXPORT} data.format=native data.path=set episodes=1 seconds=1": (
        "set: 1 episodes, "
    ),
    "replay where=set episode=0 robot=stand modules=[stand]": "state: off by ",
    "inspect where=set": "health     0 errors",
}


@pytest.mark.slow
def test_a_robot_needs_three_packages_and_may_have_python_control_beside(wheel, tmp_path):
    """flowhand, NumPy, ONNX Runtime and Hydra in an empty environment: every verb that a robot needs works there."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    (tmp_path / "stand.py").write_text(STAND)
    (python,) = (tmp_path / "env").glob("bin/python")

    def install(*packages):
        command = [python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", *packages]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            pytest.skip(f"pip cannot install {packages}: {result.stderr[-200:]}")

    def output(*words):
        result = subprocess.run(
            [python.parent / words[0], *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        return result.stdout + result.stderr

    install("--no-deps", wheel)
    install("numpy", "onnxruntime", "hydra-core")
    absent = "; ".join(f"assert not find_spec({name!r})" for name in ("torch", "mujoco", "gymnasium", "safetensors"))
    output("python", "-c", f"from importlib.util import find_spec; {absent}")
    assert "control a robot" in output("flowhand", "--help")
    for command, expected in ON_A_ROBOT.items():
        assert expected in output("flowhand", *command.split()), command
    install("control")
    both = "import control, flowhand.control; assert control.tf([1], [1, 1]).poles() == [-1]; flowhand.Controller"
    output("python", "-c", both)
