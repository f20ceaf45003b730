"""LeRobot's robots, and what their drivers share: SO-101, ALOHA and the rest, with lerobot's own classes.

Nothing of lerobot is imported before such a robot is made. Written for lerobot 0.6.1.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from flowhand.contracts.features import Feature, Spec
from flowhand.control.background import Logger

from .base import RobotConfig

logger = Logger(__name__)

UNITS = {"degrees": "deg", "range_0_100": "0..100", "range_m100_100": "-100..100"}  # of lerobot's MotorNormMode
ARMS = {"": "bus", "left_": "left_arm", "right_": "right_arm"}  # prefix of keys -> attribute that has the motors
ENDS = ("return", "hold")
TURN_DEG = 360.0
NEAR = 0.1  # of the way back to the pose at connecting: an arm that is nearer has come to rest
STEP_S = 1 / 30  # between two commands on that way


@dataclass
class DeviceConfig:
    """What lerobot's configuration of a device takes; everything is passed on as it is."""

    type: str = "???"  # as lerobot names it, such as so101_follower
    id: str | None = None  # of this very device, by which lerobot finds its calibration
    port: str | None = None  # of the motor bus, such as /dev/ttyACM0
    calibration_dir: str | None = None  # where its calibration lies; null: lerobot's own place
    more: Any = None  # further fields of lerobot's configuration of this type, such as {use_degrees: false}

    @property
    def passed_on(self) -> dict[str, Any]:
        """The fields that are given, in lerobot's form."""
        names = ("type", "id", "port", "calibration_dir")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None} | self._fields("more")

    def _fields(self, name: str) -> dict[str, Any]:
        given = getattr(self, name) or {}
        if not isinstance(given, Mapping):
            raise ValueError(f"{name}={given!r} of {self.type} must be fields and values, such as {{name: value}}")
        return dict(given)


@dataclass
class LeRobotConfig(DeviceConfig, RobotConfig):
    """One of LeRobot's robots."""

    kind: str = "lerobot"
    cameras: Any = None  # by name, as lerobot has them: {front: {type: opencv, index_or_path: 0, ...}}
    unit: str = ""  # of its values, where lerobot's class does not say it, such as rad; empty: as the class says
    rate_hz: float = 30.0  # control steps per second, where no policy says it
    at_end: str = "return"  # leaving: return (go back to the pose at connecting, then no torque) | hold (keep torque)
    return_s: float = 3.0  # time for the way back, in seconds

    def __post_init__(self) -> None:
        if self.at_end not in ENDS:
            raise ValueError(f"robot.at_end={self.at_end!r} is unknown; choices: {', '.join(ENDS)}")
        if not 0 < self.return_s <= 60 or not 0 < self.rate_hz <= 1e6:
            raise ValueError(f"robot.return_s={self.return_s} must lie in (0, 60], robot.rate_hz={self.rate_hz} be > 0")

    @property
    def passed_on(self) -> dict[str, Any]:
        """The fields that are given, in lerobot's form."""
        return super().passed_on | ({"cameras": self._fields("cameras")} if self.cameras else {})


def device(config: DeviceConfig, room: str, base: str, make: str) -> Any:
    """Lerobot's own object for this configuration.

    Args:
        config: which device.
        room: of lerobot, robots or teleoperators.
        base: name of its class of configurations.
        make: name of the function in its `utils` that makes a device of a configuration.

    Raises:
        ImportError: lerobot is not installed.
        ValueError: a type or a field that lerobot does not know, or what it says against a value.
    """
    try:
        draccus: Any = import_module("draccus")

        configs, utils = import_module(f"lerobot.{room}"), import_module(f"lerobot.{room}.utils")
    except ImportError as error:
        raise ImportError(f"{room}=lerobot needs lerobot (Python 3.12): pip install lerobot ({error})") from error
    _register(configs)
    _register(import_module("lerobot.cameras"))
    import_module("lerobot.utils.import_utils").register_third_party_plugins()
    kind = getattr(configs, base)
    given, known = config.passed_on, sorted(kind.get_known_choices())
    if given["type"] not in known:
        raise ValueError(f"lerobot has no {given['type']!r} in {room}; it has {', '.join(known)}")
    try:
        return getattr(utils, make)(draccus.decode(kind, given))
    except Exception as error:  # lerobot and draccus raise classes of their own
        raise ValueError(f"lerobot does not take this {config.type}: {_one_line(error)}") from error


def _register(room: Any) -> None:
    """Imports the parts of a room of lerobot, each of which registers its configuration; some need what is not here."""
    import pkgutil

    for part in pkgutil.iter_modules(room.__path__, f"{room.__name__}."):
        if part.ispkg:
            try:
                import_module(part.name)
            except ImportError as error:
                logger.debug("%s is not available: %s", part.name, error)


class LeRobotRobot:
    """A robot of lerobot, read and commanded by name.

    Attributes:
        features: its joints as the state `state` and as the action, in the order of lerobot's keys, with the unit of
            every value; its cameras by their names.
        observed_at: when the oldest part of the last observation was made.
        command: (A,) where it stood when it was connected.
        took: (A,) what lerobot sent of the last command, which its own limits may have changed.

    Raises:
        ValueError: what `device` raises, values of a form that is not known, or `at_end=hold` for a robot that cannot.
    """

    def __init__(self, config: LeRobotConfig, made: Any = None):
        self.config = config
        self.device = device(config, "robots", "RobotConfig", "make_robot_from_config") if made is None else made
        self._keys = _scalars(self.device.action_features, "action")
        observed = self.device.observation_features
        self._state = [key for key in observed if not isinstance(observed[key], tuple)]
        self._cameras = [key for key in observed if isinstance(observed[key], tuple)]
        self._keeps = hasattr(self.device.config, "disable_torque_on_disconnect")
        if config.at_end == "hold" and not self._keeps:
            raise ValueError(f"robot.at_end=hold: lerobot's {config.type} cannot keep torque; set robot.at_end=return")
        self.features = self._features()
        self.observed_at = 0.0
        self.command: np.ndarray | None = None
        self.took: np.ndarray | None = None
        self._home: np.ndarray | None = None
        self._timed: list[Any] = []  # cameras that say when their frame was taken

    def connect(self) -> None:
        """Connects the robot, and notes where it stands.

        Raises:
            ValueError: it is not calibrated.
        """
        require_file(self.device, self.config, "robot")
        self.device.connect(calibrate=False)
        try:
            if not self.device.is_calibrated:
                raise ValueError(uncalibrated(self.config, "robot"))
            if self._keeps and self.config.at_end == "hold":
                self.device.config.disable_torque_on_disconnect = False
            self.features = self._features()  # with the ranges, which calibration says
            self._watch_cameras()
            observation = self.device.get_observation()
        except BaseException:
            self.device.disconnect()
            raise
        known = all(key in observation for key in self._keys)
        self.command = np.array([observation[key] for key in self._keys], float) if known else None
        self._home = self.command

    def disconnect(self) -> None:
        """Brings the robot back to where it stood when it was connected, or keeps its torque, and disconnects it."""
        if not self.device.is_connected:
            return
        try:
            if self.config.at_end == "return" and not (self._home is not None and self._returned(self._home)):
                where = "its torque is kept: switch it off by hand" if self._keeps else "hold it"
                logger.warning("the robot has not come back to where it stood at connecting; %s", where)
                if self._keeps:
                    self.device.config.disable_torque_on_disconnect = False
        finally:
            self.device.disconnect()

    def read(self) -> dict[str, np.ndarray]:
        """The joints as `state`, float32, and each camera's picture."""
        now = time.perf_counter()
        stamps = [stamp for camera in self._timed if (stamp := camera.latest_timestamp) is not None]
        began = time.monotonic()
        observation = self.device.get_observation()
        # Asked before the frame was taken over: what came meanwhile is younger than this says, never older.
        self.observed_at = began - max([0.0, *(now - stamp for stamp in stamps)])
        state = np.array([float(observation[key]) for key in self._state], np.float32)
        return {"state": state, **{_identifier(key): np.asarray(observation[key]) for key in self._cameras}}

    def write(self, action: np.ndarray) -> None:
        """Takes the command (A,), each value in the unit that `features` says."""
        sent = self.device.send_action({key: float(v) for key, v in zip(self._keys, action, strict=True)})
        self.took = np.array([sent.get(key, np.nan) for key in self._keys]) if isinstance(sent, Mapping) else None

    def _features(self) -> Spec:
        known = dict(motors(self.device))
        cameras = {
            _identifier(key): Feature(
                tuple(self.device.observation_features[key]),
                "uint16" if key.endswith("_depth") else "uint8",
                "mm" if key.endswith("_depth") else "",
                kind="depth" if key.endswith("_depth") else "image",
                camera=key,
            )
            for key in self._cameras
        }
        state = vector_feature(self._state, known, self.config.unit)
        action = vector_feature(self._keys, known, self.config.unit)
        return Spec({"state": state, **cameras}, action, 1 / self.config.rate_hz)

    def _watch_cameras(self) -> None:
        """Finds the cameras that say when a frame was taken; a line names the others."""
        cameras = getattr(self.device, "cameras", {})
        self._timed = [camera for camera in cameras.values() if hasattr(camera, "latest_timestamp")]
        untimed = [name for name, camera in cameras.items() if not hasattr(camera, "latest_timestamp")]
        if untimed:
            logger.warning("the age of frames of %s is not known; lerobot gives what is up to 0.5 s old", untimed)

    def _returned(self, home: np.ndarray) -> bool:
        """Moves to the pose in `return_s`, slowly at both ends; whether the robot has come there."""
        try:
            start = self._standing()
            steps = max(1, math.ceil(self.config.return_s / STEP_S))
            for step in range(1, steps + 1):
                share = (1 - math.cos(math.pi * step / steps)) / 2
                self.write(start + share * (home - start))
                time.sleep(STEP_S)
            left, way = np.abs(self._standing() - home).max(), np.abs(start - home).max()
            return bool(left <= max(NEAR * way, 3.0 if "deg" in self.features.action.unit else 0.05))
        except Exception as error:  # lerobot's, of a robot that no longer answers; it is still to be disconnected
            logger.warning("the way back failed: %s", _one_line(error))
            return False

    def _standing(self) -> np.ndarray:
        observation = self.device.get_observation()
        return np.array([float(observation[key]) for key in self._keys])


def motors(found: Any) -> Iterator[tuple[str, tuple[str, float, float]]]:
    """Key, unit, and smallest and largest value (infinite: not known) of every motor of a device."""
    for prefix, attribute in ARMS.items():
        part = getattr(found, attribute, None)
        bus = part if prefix == "" else getattr(part, "bus", None)
        for name, motor in getattr(bus, "motors", {}).items():
            unit = UNITS.get(str(getattr(motor.norm_mode, "value", motor.norm_mode)), "")
            yield f"{prefix}{name}.pos", (unit, *_ends(bus, name, motor, unit))


def _ends(bus: Any, name: str, motor: Any, unit: str) -> tuple[float, float]:
    """The range of a motor in its unit: lerobot's degrees are counted from the middle of the calibrated range."""
    if unit in ("0..100", "-100..100"):
        return (0.0 if unit == "0..100" else -100.0), 100.0
    calibration = getattr(bus, "calibration", {}).get(name)
    resolution = getattr(bus, "model_resolution_table", {}).get(motor.model)
    if unit != "deg" or calibration is None or not resolution:
        return -math.inf, math.inf
    half = (calibration.range_max - calibration.range_min) / 2 * TURN_DEG / (resolution - 1)
    return -half, half


def vector_feature(keys: list[str], known: Mapping[str, tuple[str, float, float]], unit: str) -> Feature:
    """The values of these keys as one vector."""
    of_each = [known.get(key, (unit, -math.inf, math.inf)) for key in keys]
    names = [each[0] for each in of_each]
    text = names[0] if len(set(names)) == 1 else ",".join(names)
    low, high = tuple(each[1] for each in of_each), tuple(each[2] for each in of_each)
    return Feature((len(keys),), "float32", text, low, high, kind="state", names=tuple(keys))


def require_file(found: Any, config: DeviceConfig, part: str) -> None:
    """Raises `ValueError` before a device is connected whose serial motors need a calibration, and that has none.

    Connected without one, lerobot would already have switched the torque on.
    """
    buses = (found, *(getattr(found, name, None) for name in ARMS.values()))
    serial = any(hasattr(getattr(each, "bus", each), "model_resolution_table") for each in buses if each is not None)
    if serial and not getattr(found, "calibration", None) and not _arms_calibrated(found):
        raise ValueError(uncalibrated(config, part))


def _arms_calibrated(found: Any) -> bool:
    """Whether a device of two arms has a calibration for each."""
    arms = [arm for name in ("left_arm", "right_arm") if (arm := getattr(found, name, None)) is not None]
    return bool(arms) and all(getattr(arm, "calibration", None) for arm in arms)


def uncalibrated(config: DeviceConfig, part: str) -> str:
    """What to do with a device that is not calibrated."""
    given = "".join(f" --{part}.{name}={value}" for name, value in config.passed_on.items() if isinstance(value, str))
    return f"{config.type} is not calibrated; calibrate it with lerobot's own command: lerobot-calibrate{given}"


def _scalars(features: Mapping[str, Any], what: str) -> list[str]:
    """The keys of single values, in lerobot's order."""
    if odd := [key for key, kind in features.items() if kind not in (float, int, bool)]:
        raise ValueError(f"the {what} of this robot has {odd[0]!r} of form {features[odd[0]]!r}; numbers are known")
    return list(features)


def _identifier(key: str) -> str:
    return "".join(letter if letter.isalnum() or letter == "_" else "_" for letter in key)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
