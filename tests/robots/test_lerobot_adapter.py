"""The adapters around objects that have what lerobot's have, without lerobot: ends, ages, and what is refused."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest

from flowhand.contracts.features import Feature, Spec
from flowhand.control.background import LINES
from flowhand.robots import lerobot
from flowhand.robots.lerobot import LeRobotConfig, LeRobotRobot
from flowhand.robots.teleoperators.lerobot import LeRobotDriver, TeleoperatorConfig


class Device:
    """Two joints; it notes what is done with it."""

    def __init__(self, keeps: bool = True, moves: bool = True):
        self.config = SimpleNamespace(**({"disable_torque_on_disconnect": True} if keeps else {}))
        self.action_features = {"a.pos": float, "b.pos": float}
        self.observation_features = {**self.action_features, "top": (4, 4, 3)}
        self.cameras = {"top": SimpleNamespace(latest_timestamp=time.perf_counter() - 0.2)}
        motor = SimpleNamespace(norm_mode="degrees", model="x")
        self.bus = SimpleNamespace(motors={"a": motor, "b": motor}, calibration={})
        self.feedback_features, self.is_calibrated, self.is_connected = {}, True, False
        self.moves, self.at, self.done = moves, np.array([10.0, 20.0]), []

    def connect(self, calibrate=True):
        assert calibrate is False
        self.is_connected = True
        self.done.append("connect")

    def get_observation(self):
        return {"a.pos": self.at[0], "b.pos": self.at[1], "top": np.zeros((4, 4, 3), np.uint8)}

    get_action = get_observation

    def send_action(self, action):
        assert list(action) == ["a.pos", "b.pos"]
        if self.moves:
            self.at = np.array(list(action.values()))
        self.done.append("send")
        return {"a.pos": min(action["a.pos"], 30.0), "b.pos": action["b.pos"]}

    def disconnect(self):
        self.is_connected = False
        self.done.append("disconnect")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lerobot, "STEP_S", 0.002)


def made(device, **options) -> LeRobotRobot:
    return LeRobotRobot(LeRobotConfig(type="two", return_s=0.02, **options), device)


def test_it_reads_and_takes_values_in_lerobots_order_and_tells_the_age_of_the_picture():
    device = Device()
    robot = made(device)
    robot.connect()
    assert robot.command is not None
    assert robot.command.tolist() == [10, 20]
    observation = robot.read()
    assert observation["state"].tolist() == [10, 20]
    assert 0.19 < time.monotonic() - robot.observed_at < 0.5
    robot.write(np.array([40.0, 5.0]))
    assert robot.took is not None
    assert robot.took.tolist() == [30, 5]  # lerobot's own limit
    assert (robot.features.action.unit, robot.features.observation["top"].camera) == ("deg", "top")


def test_the_arm_goes_back_before_its_torque_goes():
    device = Device()
    robot = made(device)
    robot.connect()
    robot.write(np.array([25.0, 50.0]))
    robot.disconnect()
    np.testing.assert_allclose(device.at, [10, 20])
    assert device.done[-1] == "disconnect"
    assert device.done.count("send") == 1 + 10
    assert device.config.disable_torque_on_disconnect is True
    robot.disconnect()  # again: nothing
    assert device.done.count("disconnect") == 1


def test_an_arm_that_cannot_go_back_keeps_its_torque_and_a_line_says_so(caplog):
    device = Device()
    robot = made(device)
    robot.connect()
    robot.write(np.array([25.0, 80.0]))
    device.moves = False
    robot.disconnect()
    LINES.drain(1)
    assert device.config.disable_torque_on_disconnect is False
    assert "its torque is kept: switch it off by hand" in caplog.text
    assert device.done[-1] == "disconnect"


def test_torque_is_kept_only_where_lerobot_can():
    device = Device()
    made(device, at_end="hold").connect()
    assert device.config.disable_torque_on_disconnect is False
    with pytest.raises(ValueError, match=r"cannot keep torque; set robot\.at_end=return"):
        made(Device(keeps=False), at_end="hold")
    with pytest.raises(ValueError, match="at_end='fall' is unknown; choices: return, hold"):
        LeRobotConfig(type="two", at_end="fall")


def test_a_robot_without_calibration_is_refused_before_it_is_connected_and_disconnected_after():
    device = Device()
    device.bus.model_resolution_table = {"x": 4096}
    with pytest.raises(ValueError, match=r"lerobot-calibrate --robot\.type=two --robot\.port=/dev/x"):
        made(device, port="/dev/x").connect()
    assert device.done == []
    device = Device()
    device.is_calibrated = False
    with pytest.raises(ValueError, match="two is not calibrated"):
        made(device).connect()
    assert device.done == ["connect", "disconnect"]


def test_cameras_without_times_are_named(caplog):
    device = Device()
    device.cameras = {"top": SimpleNamespace()}
    made(device).connect()
    LINES.drain(1)
    assert "the age of frames of ['top'] is not known" in caplog.text


def test_what_lerobot_is_given_must_be_fields():
    with pytest.raises(ValueError, match="cameras='front' of two must be fields and values"):
        _ = LeRobotConfig(type="two", cameras="front").passed_on
    assert LeRobotConfig(type="two", more={"x": 1}, id="a").passed_on == {"type": "two", "id": "a", "x": 1}


def test_without_lerobot_its_robots_say_what_to_install():
    pytest.importorskip("numpy")
    if lerobot_is_installed():
        pytest.skip("lerobot is installed here")
    with pytest.raises(ImportError, match="robots=lerobot needs lerobot"):
        LeRobotRobot(LeRobotConfig(type="so101_follower"))


def lerobot_is_installed() -> bool:
    import importlib.util

    return importlib.util.find_spec("lerobot") is not None


def test_a_leader_without_motors_says_whether_it_stands_where_the_robot_is():
    joints = Feature((2,), "float32", "rad", names=("b.pos", "a.pos"))
    spec = Spec({"state": joints}, joints, 0.02)
    with pytest.raises(ValueError, match="is in deg for the driver and in rad for the robot"):
        LeRobotDriver(TeleoperatorConfig(type="two"), spec, Device())
    driver = LeRobotDriver(TeleoperatorConfig(type="two", convert=True), spec, Device())
    np.testing.assert_allclose(driver.action({}), np.radians([20, 10]))
    assert driver.leads is False
    assert driver.lead(np.radians([21.0, 10.0]))
    assert not driver.lead(np.radians([60.0, 10.0]))
    assert driver.device.done == []  # nothing was sent to it
