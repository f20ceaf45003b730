"""Run by lerobot's own Python: flowhand's adapters around lerobot's own SOFollower and SOLeader, which find servos.

python lerobot_side.py SCENE SETTINGS.json: does the scene, and prints what came of it as the last line, JSON.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from lerobot.cameras import Camera, CameraConfig
from lerobot.motors.feetech import feetech

from flowhand.contracts.features import Spec
from flowhand.control.background import LINES
from flowhand.control.limits.config import SafetyConfig
from flowhand.control.runtime import Runtime
from flowhand.control.safety import Safety
from flowhand.robots import LeRobotConfig, make, opened, ready
from flowhand.robots.teleoperators import TeleoperatorConfig
from flowhand.robots.teleoperators import make as make_driver

TIMEOUT_MS = 400  # of an answer, where lerobot has 50: the servos of this test share a busy machine
HEADER = 16  # bytes before a picture in the file: its time on the monotonic clock, its number


def _patient(port: Any, length: int) -> None:
    port.packet_start_time, port.packet_timeout = port.getCurrentTime(), TIMEOUT_MS


feetech.patch_setPacketTimeout = _patient


@CameraConfig.register_subclass("memory")
@dataclass
class MemoryCameraConfig(CameraConfig):
    """Pictures that another process writes into a file."""

    path: str = ""
    timed: bool = True


class MemoryCamera(Camera):
    """Lerobot's camera of this form."""

    def __init__(self, config: MemoryCameraConfig):
        super().__init__(config)
        self._map: Any = None
        self._path = config.path
        if config.timed:
            self.latest_timestamp = 0.0

    @property
    def is_connected(self) -> bool:
        """Whether it is open."""
        return self._map is not None

    @staticmethod
    def find_cameras() -> list[dict[str, Any]]:
        """None are looked for."""
        return []

    def connect(self, warmup: bool = True) -> None:
        """Opens the file, and looks at it all the time, as lerobot's cameras do."""
        self._map = np.memmap(self._path, np.uint8, "r")
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while (found := self._map) is not None:
            stamp = float(found[:8].view(np.float64)[0])
            self._latest = np.array(found[HEADER:]).reshape(self.height, self.width, 3)
            if hasattr(self, "latest_timestamp"):
                self.latest_timestamp = stamp
            time.sleep(0.002)

    def read(self) -> Any:
        """The latest picture."""
        return self._latest

    def async_read(self, timeout_ms: float = 200) -> Any:
        """The latest picture."""
        return self._latest

    def read_latest(self, max_age_ms: int = 500) -> Any:
        """The latest picture."""
        return self._latest

    def disconnect(self) -> None:
        """Closes the file."""
        self._map = None


class Wave:
    """Wants to go from where the arm stands to one side and back."""

    def reset(self, *, seed: int) -> None:
        """Nothing is kept."""

    def step(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """0.3 rad to the left of the straight line."""
        action = observation["state"].astype(float)
        action[0] = 0.3
        return action


def follower(settings: dict[str, Any], **more: Any) -> LeRobotConfig:
    """The follower's configuration."""
    camera = {"type": "memory", "path": settings["picture"], "width": settings["size"], "height": settings["size"]}
    cameras = {"front": {**camera, "fps": 30, "timed": more.pop("timed", True)}}
    given = {"id": "test", "port": settings["port"], "calibration_dir": settings["calibration"], "cameras": cameras}
    return LeRobotConfig(type="so101_follower", return_s=0.6, **{**given, **more})


def standing(settings: dict[str, Any], spec: Spec, **more: Any) -> AbstractContextManager[Any]:
    """The follower, ready; what it has beyond a `Robot` is looked at."""
    return ready(follower(settings, convert=True, **more), spec, 1 / 30)


def says(function: Any) -> str:
    """What is raised, in one line."""
    try:
        function()
    except Exception as error:
        if "\n" in str(error):
            return f"several lines: {error}"
        return f"{type(error).__name__}: {error}"
    return ""


def refused(settings: dict[str, Any], spec: Spec) -> dict[str, Any]:
    """What is said before anything moves."""

    def enter(config: LeRobotConfig) -> None:
        with ready(config, spec, 1 / 30):
            raise AssertionError("it was not refused")

    return {
        "units": says(lambda: enter(follower(settings))),
        "percent": says(lambda: enter(follower(settings, more={"use_degrees": False}))),
        "uncalibrated file": says(lambda: enter(follower(settings, convert=True, id="other"))),
        "type": says(lambda: make(follower(settings, more={"type": "so102_follower"}))),
        "field": says(lambda: make(follower(settings, more={"prot": "x"}))),
        "uncalibrated motors": says(lambda: enter(follower(settings, convert=True, port=settings["other_port"]))),
    }


def driven(settings: dict[str, Any], spec: Spec) -> dict[str, Any]:
    """Reads, commands, goes back and switches off."""
    found: dict[str, Any] = {}
    with standing(settings, spec) as robot:
        found["command"] = robot.command.tolist()
        observed, numbers = [], []
        for step in range(30):
            began = time.monotonic()
            observation = robot.read()
            observed.append(robot.observed_at)
            numbers.append(int(observation["front"][0, 0, :2] @ [256, 1]))
            target = np.array(found["command"])
            target[0] += 0.02 * min(step, 20)
            target[5] = 0.8
            robot.write(target)
            found |= {"target": target.tolist(), "shape": list(observation["front"].shape)}
            time.sleep(max(0.0, 1 / 30 - (time.monotonic() - began)))
        time.sleep(0.3)
        found |= {
            "state": robot.read()["state"].tolist(),
            "observed": observed,
            "numbers": numbers,
        }
        found |= {"took": robot.took.tolist(), "dtype": str(robot.read()["state"].dtype), "blocked": robot.blocked}
    return found


def kept(settings: dict[str, Any], spec: Spec) -> dict[str, Any]:
    """Leaves with torque; a camera that does not say when."""
    with standing(settings, spec, at_end="hold", timed=False) as robot:
        robot.read()
    LINES.drain(1)
    return {}


def silent(settings: dict[str, Any], spec: Spec) -> dict[str, Any]:
    """A control during which the servos say nothing for a while."""
    safety = Safety.for_spec(spec, SafetyConfig(velocity=[1.0]), 1 / 30)
    with standing(settings, spec) as robot:
        runtime = Runtime(robot, Wave(), safety, spec.sensed, 1 / 30)
        Path(settings["started"]).touch()
        ended = runtime.run(2.0, 0)
        runtime.close()
        LINES.drain(1)
        report = runtime.report
        return {
            "ended": ended, "blocked": robot.blocked, "counts": dict(report.counts), "misses": report.misses,
            "steps": report.steps, "state": robot.read()["state"].tolist(),
        }  # fmt: skip


def led(settings: dict[str, Any], spec: Spec) -> dict[str, Any]:
    """A leader is read, driven somewhere and let go."""
    given = {"id": "test", "port": settings["port"], "calibration_dir": settings["calibration"], "lead_speed": 60.0}
    config = TeleoperatorConfig(type="so101_leader", **given)
    found: dict[str, Any] = {"units": says(lambda: make_driver(config, spec))}
    config.convert = True
    with opened(cast(Any, make_driver(config, spec))) as driver:
        nothing: dict[str, np.ndarray] = {}
        found["action"] = driver.action(nothing).tolist()
        there = np.add(found["action"], (0.4, 0, 0, 0, 0.3, 0.2))
        steps, arrived = [], False
        for _ in range(90):
            began = time.monotonic()
            arrived = driver.lead(there)
            steps.append(driver.action(nothing).tolist())
            if arrived:
                break
            time.sleep(max(0.0, 1 / 30 - (time.monotonic() - began)))
        found |= {"steps": steps, "arrived": arrived, "there": there.tolist()}
        driver.release()
    return found


SCENES = {each.__name__: each for each in (refused, driven, kept, silent, led)}

if __name__ == "__main__":
    given = json.loads(Path(sys.argv[2]).read_text())
    result = SCENES[sys.argv[1]](given, Spec.from_dict(given["spec"]))
    sys.stdout.write(json.dumps(result) + "\n")
