"""Robots, policies and monitors that answer with anything at all: the robot gets a command in every control step."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from flowhand.contracts.features import Feature, Spec
from flowhand.control.journal import read
from flowhand.control.limits.config import SafetyConfig
from flowhand.control.replay import open_journal, replay
from flowhand.control.runtime import REASONS, Runtime
from flowhand.control.runtime_config import RuntimeConfig
from flowhand.control.safety import Safety
from flowhand.control.sensors import SensorThread
from flowhand.robots.simulated import SimulatedRobot

SPEC = Spec({"count": Feature((1,), "float32", "")}, Feature((2,), "float32", "", (-100.0,) * 2, (100.0,) * 2), 0.01)
DT, STEPS, AT = 0.002, 6, 3  # period, control steps, and the one at which something odd happens
GOOD = np.array([1.0, 2.0], np.float32)
CONFIG: Any = SafetyConfig(max_observation_age_s=0.1)


class Raising:
    """Whatever is asked of it but its name, it raises."""

    def __init__(self, error: BaseException):
        self.error = error

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise self.error

    def __bool__(self) -> bool:
        raise self.error

    def __float__(self) -> float:
        raise self.error

    def __iter__(self) -> Iterator[Any]:
        raise self.error

    def __str__(self) -> str:
        raise self.error


class UnspeakableError(Exception):
    """An error whose own text is an error."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


class Disagreeable(dict):
    """A mapping that contradicts itself."""

    def __contains__(self, key: object) -> bool:
        return True


ERRORS = {
    "plain": RuntimeError("no idea"),
    "without a text": RuntimeError(),
    "unspeakable": UnspeakableError(),
    "surrogate": OSError("\udcff\ud800 \0 end"),
    "many lines": ValueError("one\ntwo\r\nthree" * 1000),
    "no text at all": ValueError(Raising(SystemExit())),
    "exit": SystemExit(3),
    "cancelled": asyncio.CancelledError(),
    "generator exit": GeneratorExit(),
    "memory": MemoryError(),
    "stop": StopIteration(),
    "recursion": RecursionError("deep"),
    "group": BaseExceptionGroup("two", [SystemExit(), ValueError("x")]),
}
ODD = {
    "tensor with gradient": torch.zeros(2, requires_grad=True),
    "huge integer": [10**400, 0],
    "raises": Raising(ValueError("not an array")),
    "exits": Raising(SystemExit()),
    "ragged": [[1.0], [2.0, 3.0]],
    "ragged arrays": [np.zeros(2), np.zeros(3)],
    "objects": np.array([object(), object()]),
    "strings": ["1", "2"],
    "surrogate": "\ud800",
    "complex": np.array([1j, 2.0]),
    "dates": np.array(["2020-01-01", "2021-01-01"], "M8[D]"),
    "long double": np.array([1, 1], np.longdouble) * np.finfo(np.longdouble).max,
    "not a number": [math.nan, 0.0],
    "infinite": [math.inf, 0.0],
    "large": [1e39, 0.0],
    "empty": [],
    "scalar": 1.0,
    "matrix": np.zeros((2, 1)),
    "mapping": {"action": GOOD},
    "set": {1.0, 2.0},
    "bytes": b"\xff\xfe",
    "function": len,
    "type": dict,
    "structured": np.zeros(2, [("a", "f4"), ("b", "f8")]),
    "generator": (x for x in (1.0, 2.0)),
    "none in it": [None, None],
    "exception": ValueError("returned, not raised"),
}


class Robot:
    """Does what it is given to do at one control step."""

    def __init__(self, read: Any = None, write: Any = None):
        self.odd_read, self.odd_write = read, write
        self.reads = self.writes = 0
        self.told: list[list[float]] = []

    def read(self) -> Any:
        self.reads += 1
        if self.reads == AT and self.odd_read is not None:
            if isinstance(self.odd_read, BaseException):
                raise self.odd_read
            return self.odd_read[0]
        return {"count": np.array([self.reads], np.float32)}

    def write(self, action: np.ndarray) -> None:
        self.writes += 1
        if self.writes == AT and self.odd_write is not None:
            raise self.odd_write
        self.told.append(action.tolist())


class Policy:
    """Wants the same at every step, but one."""

    def __init__(self, odd: Any = None):
        self.odd = odd

    def reset(self, *, seed: int) -> None:
        pass

    def step(self, observation: Any) -> Any:
        if observation["count"][0] == AT and self.odd is not None:
            if isinstance(self.odd, BaseException):
                raise self.odd
            return self.odd[0]
        return GOOD


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Waits for every answer however busy this machine is: these are tests of what happens, not of when."""
    monkeypatch.setattr(os, "fsync", lambda file: None)  # to be quick
    ask = SensorThread.ask
    monkeypatch.setattr(SensorThread, "ask", lambda self, request, _, late: ask(self, request, _ + 10**10, late))


def run(tmp_path, robot: Any, policy: Any, monitor: Any = None, **options: Any) -> list[str]:
    """The reasons of all control steps; control went on to the end, and the journal replays."""
    safety = Safety.for_spec(SPEC, CONFIG, DT)
    journal, config = open_journal(tmp_path / "journal", SPEC, {}), RuntimeConfig(on_overrun="catch_up")
    runtime = Runtime(robot, policy, safety, SPEC.observation, DT, config, monitor, journal, **options)
    assert runtime.run(STEPS * DT, seed=0) == "time"
    runtime.close()
    assert runtime.report.unwritten == 0
    recording = read(tmp_path / "journal")
    assert (len(recording.records), recording.lost_bytes) == (STEPS + 1, 0)
    assert all(message.decode() is not None for message in recording.records["message"])
    return [REASONS[record["refused"]] for record in recording.records]


def expected(reason: str, at: int = AT) -> list[str]:
    return ["" if step != at else reason for step in range(1, STEPS + 1)] + ["stopped"]


@pytest.mark.parametrize("odd", ODD.values(), ids=list(ODD))
def test_whatever_a_policy_answers_is_one_safe_action(odd, tmp_path):
    robot = Robot()
    reasons = run(tmp_path, robot, Policy([odd]))
    assert reasons in [expected(reason) for reason in ("shape", "not finite", "inference error")]
    assert robot.told == [GOOD.tolist()] * (STEPS + 1)  # held
    if not isinstance(odd, torch.Tensor | Raising):
        replay(read(tmp_path / "journal"), Policy([odd]), Safety.for_spec(SPEC, CONFIG, DT))


@pytest.mark.parametrize("odd", [*ODD.values(), {}, Disagreeable(), {"count": "\ud800"}, {"\ud800": 1, 2: 3}])
@pytest.mark.parametrize("inside", [False, True])
def test_whatever_is_read_is_one_safe_action(odd, inside, tmp_path):
    robot = Robot(read=[{"count": odd} if inside else odd])
    assert run(tmp_path, robot, Policy()) == expected("observation error")
    assert len(robot.told) == STEPS + 1


@pytest.mark.parametrize("error", ERRORS.values(), ids=list(ERRORS))
@pytest.mark.parametrize("where", ["read", "policy", "write"])
def test_whatever_is_raised_is_one_safe_action(error, where, tmp_path):
    """And the thread that reads and asks lives: the next step is the policy's again."""
    robot = Robot(**({where: error} if where != "policy" else {}))
    reasons = run(tmp_path, robot, Policy(error if where == "policy" else None))
    reason = {"read": "observation error", "policy": "inference error", "write": "write error"}[where]
    assert reasons == expected(reason, AT + (where == "write"))
    assert len(robot.told) == STEPS + 1 - (where == "write")
    message = read(tmp_path / "journal").records["message"][AT - 1].decode()
    assert message.startswith(type(error).__name__)
    assert "\n" not in message


@pytest.mark.parametrize("odd", [*ODD.values(), *ERRORS.values(), "far\udc00away", [Raising(SystemExit())], [["a"], 1]])
def test_whatever_a_monitor_says_control_goes_on(odd, tmp_path):
    def observe(observation, action):
        if observation["count"][0] != AT:
            return []
        if isinstance(odd, BaseException):
            raise odd
        return odd

    robot = Robot()
    monitor = SimpleNamespace(reset=lambda seed, again: None, observe=observe)
    reasons = run(tmp_path, robot, Policy(), monitor)
    assert reasons in [expected(reason) for reason in ("alarm", "monitor error", "")]
    assert len(robot.told) == STEPS + 1


@pytest.mark.parametrize("odd", [*ODD.values(), *ERRORS.values()])
@pytest.mark.parametrize("name", ["workspace", "safe_action"])
def test_whatever_a_function_of_a_user_answers_control_goes_on(odd, name, tmp_path):
    def function(*_):
        if isinstance(odd, BaseException):
            raise odd
        return odd

    functions: Any = {name: function}
    safety, robot = Safety.for_spec(SPEC, CONFIG, DT, **functions), Robot()
    runtime = Runtime(robot, Policy(), safety, SPEC.observation, DT, RuntimeConfig(on_overrun="catch_up"))
    robot.command = GOOD.astype(float)  # pyright: ignore[reportAttributeAccessIssue]
    assert runtime.run(STEPS * DT, seed=0) == "time"
    runtime.close()
    assert robot.told == [GOOD.tolist()] * (STEPS + 1)


@pytest.mark.parametrize("odd", [Raising(ValueError("no")), np.array([True, False]), *ODD.values()])
@pytest.mark.parametrize("name", ["observed_at", "over"])
def test_whatever_a_robot_says_beside_its_readings_control_goes_on(odd, name, tmp_path):
    robot = Robot()
    safety = Safety.for_spec(SPEC, CONFIG, DT)
    runtime = Runtime(robot, Policy(), safety, SPEC.observation, DT, RuntimeConfig(on_overrun="catch_up"))
    setattr(robot, name, odd)
    assert runtime.run(STEPS * DT, seed=0) in ("time", "over")
    runtime.close()


@pytest.mark.parametrize("stamp", [-1e5, 1.8e9, 0.0, math.nan, math.inf, -math.inf])
def test_a_stamp_of_another_clock_is_no_fresh_observation(stamp, tmp_path):
    robot = Robot()
    robot.observed_at = stamp  # pyright: ignore[reportAttributeAccessIssue]
    robot.command = np.array([3.0, 4.0])  # pyright: ignore[reportAttributeAccessIssue]
    reasons = run(tmp_path, robot, Policy())
    assert set(reasons[:-1]) <= {"stale observation", "impossible observation age"}
    assert robot.told == [[3.0, 4.0]] * (STEPS + 1)


@pytest.mark.parametrize("odd", [{}, None, [], "é", 1.0, {"success": Raising(ValueError("no"))}, {"success": GOOD}])
def test_whatever_a_world_says_of_itself_is_no_end_of_control(odd, tmp_path):
    """A step of a simulated world whose `info` is odd is a command that was not taken."""

    class World:
        steps, task, features = 0, "odd", SPEC

        def reset(self, *, seed):
            return {"count": np.array([0.0], np.float32)}, {}

        def step(self, action):
            self.steps += 1
            info = odd if self.steps == AT else {"success": False}
            return {"count": np.array([0.0], np.float32)}, 0.0, False, False, info

    robot = SimulatedRobot(World())  # pyright: ignore[reportArgumentType]
    robot.reset(seed=0)
    assert run(tmp_path, robot, Policy()) == expected("write error", AT + 1)


def test_what_a_policy_does_with_its_own_array_afterwards_is_not_recorded(tmp_path):
    class Reusing(Policy):
        array = np.zeros(2, np.float32)

        def step(self, observation):
            self.array[:] = observation["count"][0]
            return self.array

    run(tmp_path, Robot(), Reusing())
    assert read(tmp_path / "journal").records["action"][:STEPS, 0].tolist() == list(range(1, STEPS + 1))
