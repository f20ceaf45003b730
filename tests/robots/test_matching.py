"""A robot as a policy knows it: names, order, units; and calls on a bus one at a time."""

from __future__ import annotations

import math
import threading
import time
from typing import Any

import numpy as np
import pytest

from flowhand import robots
from flowhand.contracts.features import Feature, Spec
from flowhand.contracts.observers import Observer
from flowhand.control.background import LINES
from flowhand.control.observers.journaling import ControlStep
from flowhand.control.runtime import Runtime
from flowhand.control.safety import Safety
from flowhand.robots.matching import matched
from flowhand.robots.units import conversion

NAMES = ("pan.pos", "lift.pos", "gripper.pos")
PICTURE = Feature((4, 6, 3), "uint8", "", camera="front")


def spec(names=NAMES, unit="deg,deg,0..100", low=None, high=None, images=None) -> Spec:
    joints = Feature((len(names),), "float32", unit, low, high, names=tuple(names))
    return Spec({"state": joints, **(images or {})}, joints, 0.02)


class Arm:
    """Reads 10, 20, 30 and notes commands."""

    command = np.array([1.0, 2.0, 50.0])

    def __init__(self, features):
        self.features: Any = features
        self.written: list[np.ndarray] = []

    def read(self):
        pictures = {name: np.zeros(f.shape, f.dtype) for name, f in self.features.observation.items() if f.camera}
        return {"state": np.array([10, 20, 30], np.float32), **pictures}

    def write(self, action):
        self.written.append(action)


def test_values_go_by_name_and_not_by_place():
    arm = Arm(spec(images={"front": PICTURE}))
    robot = matched(arm, spec(("gripper", "pan", "lift"), "0..100,deg,deg", images={"images_front": PICTURE}))
    observation = robot.read()
    assert observation["state"].tolist() == [30, 10, 20]
    assert observation["state"].dtype == np.float32
    assert observation["images_front"].shape == (4, 6, 3)
    robot.write(np.array([3.0, 1.0, 2.0]))
    assert arm.written[0].tolist() == [1, 2, 3]
    assert robot.command.tolist() == [50, 1, 2]  # type: ignore[attr-defined]


def test_units_that_differ_are_refused_in_a_line_that_names_both_and_converted_where_declared():
    low, high = (-math.pi, -math.pi, 0.0), (math.pi, math.pi, 1.5)
    arm, policy = Arm(spec(low=(-180.0, -90, 0), high=(180.0, 90, 100))), spec(unit="rad", low=low, high=high)
    with pytest.raises(ValueError, match=r"pan\.pos of 'state' is in deg for the robot and in rad for the policy"):
        matched(arm, policy)
    robot = matched(arm, policy, convert=True)
    expected = [math.radians(10), math.radians(20), 0.3 * 1.5]
    np.testing.assert_allclose(robot.read()["state"], expected, rtol=1e-6)
    robot.write(np.array([math.pi / 2, -math.pi / 4, 0.75]))
    np.testing.assert_allclose(arm.written[0], [90, -45, 50], rtol=1e-6)
    np.testing.assert_allclose(robot.command, [math.radians(1), math.radians(2), 0.75])  # type: ignore[attr-defined]


def test_a_state_without_a_range_has_that_of_the_action_of_the_same_name():
    arm, policy = Arm(spec()), spec(unit="rad", low=(-3, -3, 0.0), high=(3, 3, 1.5))
    policy = Spec({"state": Feature((3,), "float32", "rad", names=NAMES)}, policy.action, 0.02)
    assert matched(arm, policy, convert=True).read()["state"][2] == pytest.approx(0.3 * 1.5)


def test_a_share_of_a_range_needs_its_ends_and_an_unknown_unit_is_refused():
    with pytest.raises(ValueError, match=r"gripper\.pos .* 0\.\.100 .* rad .* only where low and high are known"):
        matched(Arm(spec(unit="rad,rad,0..100")), spec(unit="rad"), convert=True)
    with pytest.raises(ValueError, match="no conversion from deg to m is known"):
        matched(Arm(spec(unit="deg")), spec(unit="m"), convert=True)


@pytest.mark.parametrize(
    ("given", "wanted", "value", "expected"),
    [
        ("deg", "rad", 180.0, math.pi),
        ("mm", "m", 250.0, 0.25),
        ("-100..100", "deg", -50.0, -45.0),
        ("deg", "-100..100", 45.0, 50.0),
        ("0..100", "-100..100", 25.0, -50.0),
    ],
)
def test_conversions_against_values_by_hand(given, wanted, value, expected):
    line = conversion(given, wanted, (-90.0, 90.0), (-90.0, 90.0))
    assert line.scale * value + line.offset == pytest.approx(expected)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (spec(("pan", "lift", "wrist")), "no value 'wrist', which the policy expects in 'state'; there is pan.pos"),
        (spec(images={"top": Feature((4, 6, 3), "uint8", "", camera="top")}), "no image 'top'.* it has front"),
        (spec(images={"front": Feature((8, 6, 3), "uint8", "")}), r"has shape \(4, 6, 3\), the policy expects \(8, 6"),
        (
            Spec({"state": spec().observation["state"]}, spec(NAMES[:2]).action, 0.02),
            "no value 'gripper.pos', which the r",
        ),
    ],
)
def test_what_is_missing_is_named(policy, message):
    with pytest.raises(ValueError, match=message):
        matched(Arm(spec(images={"front": PICTURE})), policy)


def test_an_action_with_a_value_that_the_robot_has_not_is_refused():
    wider = Spec(spec().observation, spec((*NAMES, "roll"), "").action, 0.02)
    with pytest.raises(ValueError, match="the policy commands roll, which the robot has not"):
        matched(Arm(spec()), wider)


def test_a_policy_without_units_is_taken_at_its_word_and_a_line_says_so(caplog):
    arm = Arm(spec())
    assert matched(arm, spec(unit="")).read()["state"].tolist() == [10, 20, 30]
    LINES.drain(1)
    assert "the policy says no unit of 'state', so that nothing is compared" in caplog.text


def test_a_robot_that_says_nothing_is_taken_as_it_is():
    arm = Arm(spec())
    arm.features = None
    assert matched(arm, spec()) is arm


class Bus:
    """A half-duplex bus without a lock: it notes when two calls overlap. Reading hangs while it is told to."""

    def __init__(self):
        self.inside = self.overlaps = self.writes = 0
        self.hang = threading.Event()
        self.hang.set()

    def _call(self, seconds):
        self.inside += 1
        self.overlaps += self.inside > 1
        time.sleep(seconds)
        self.inside -= 1

    def read(self):
        self._call(0.004)
        self.hang.wait(5)
        return {"state": np.zeros(3, np.float32)}

    def write(self, action):
        self._call(0.001)
        self.writes += 1


class Ahead:
    def reset(self, *, seed):
        pass

    def step(self, observation):
        return np.ones(3)


class Watch(Observer):
    def __init__(self):
        self.steps = []

    def step(self, event):
        assert isinstance(event, ControlStep)
        self.steps.append((event.step, event.answer is not None, event.problem))


def test_calls_never_overlap_and_a_hung_reading_is_told_within_a_period(caplog):
    bus, dt, watch = Bus(), 0.02, Watch()
    robot = robots.OneAtATime(bus, 0.1 * dt)
    safety = Safety.for_spec(spec(), None, dt)
    runtime = Runtime(robot, Ahead(), safety, spec().sensed, dt, observers=[watch])
    timers = [threading.Timer(0.2, bus.hang.clear), threading.Timer(0.5, bus.hang.set)]
    for timer in timers:
        timer.start()
    assert runtime.run(0.8, 0) == "time"
    runtime.close()
    LINES.drain(1)
    assert bus.overlaps == 0
    assert bus.writes > 5
    told = [step for step, _, problem in watch.steps if "takes no command until it does" in problem]
    assert robot.blocked == len(told) >= 3
    # The step that got no answer is the one that tells it, and not a later one.
    assert told[0] in [step for step, answered, _ in watch.steps if not answered]
    assert runtime.report.counts["refusal: write error"] > 0
    assert "takes no command until it does" in caplog.text


def test_a_robot_that_hangs_is_not_waited_for_without_end_when_it_is_left(monkeypatch):
    monkeypatch.setattr(robots.one_at_a_time, "LEAVE_S", 0.05)
    bus = Bus()
    bus.disconnect = lambda: pytest.fail("in the middle of a reading")  # type: ignore[attr-defined]
    bus.hang.clear()
    robot = robots.OneAtATime(bus, 0.01)
    threading.Thread(target=robot.read, daemon=True).start()
    time.sleep(0.02)
    with pytest.raises(TimeoutError, match="switch them off by hand"):
        robot.disconnect()
    bus.hang.set()


def test_a_robot_is_disconnected_however_its_use_ends():
    calls = []

    class Device:
        def connect(self):
            calls.append("connect")
            raise RuntimeError("half way")

        def disconnect(self):
            calls.append("disconnect")

    with pytest.raises(RuntimeError, match="half way"), robots.opened(Device()):
        pytest.fail("not connected")
    assert calls == ["connect", "disconnect"]


def test_the_table_names_what_is_wrong():
    with pytest.raises(ValueError, match="unknown kind of robot 'lerobt': did you mean lerobot"):
        robots.make(robots.RobotConfig(kind="lerobt"))
    with pytest.raises(ValueError, match="takes a LeRobotConfig, got a RobotConfig"):
        robots.make(robots.RobotConfig(kind="lerobot"))
    with pytest.raises(ValueError, match="robot=simulated has no world"):
        robots.make(robots.SimulatedConfig())
