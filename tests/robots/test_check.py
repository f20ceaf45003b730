"""Each planted fault is found and named, a robot without one has none, and the command says so."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import envs
from conf import cli
from conf.verbs.check import CheckRoot
from flowhand.commands.check import measure as command
from flowhand.contracts.features import Feature, Spec
from flowhand.robots import ROBOTS, RobotConfig
from flowhand.robots.check.config import CheckConfig
from flowhand.robots.check.findings import judged
from flowhand.robots.check.probe import Probe, profile, thumb
from tests.robots.planted import FAULTS, JOINTS, NAMES, SPEC, Clock, Lagging, Planted

KINDS = {  # what each fault is called, and where
    "frozen camera": ("frozen", "front"),
    "swapped cameras": ("swapped", "front"),
    "slow camera": ("slow", "front"),
    "dead joint": ("dead", "roll"),
    "flipped sign": ("sign", "lift"),
    "half rate": ("slow", "states"),
    "wrong unit": ("unit", "pan"),
    "limit beyond the Spec": ("limit", "pan"),
    "stuck gripper": ("dead", "gripper"),
    "delayed command": ("delay", "pan"),
}
QUICK = CheckConfig(still_s=0.5, ramp_s=0.6, rest_s=0.3)


def examined(fault: str, seed: int, noise: float = 1.0):
    clock = Clock()
    robot = Planted(Lagging(noise, seed), SPEC, fault, clock, seed, at_step=60)
    trace = Probe(robot, SPEC, QUICK, clock=clock, wait_until=clock.wait).run()
    return judged(trace, SPEC, QUICK, robot.limits())


@pytest.mark.parametrize(
    ("fault", "noise"), [*((fault, 1.0) for fault in FAULTS), ("slow camera", 0.0), ("delayed command", 0.0)]
)
def test_a_planted_fault_is_found_and_named(fault, noise):
    faults = examined(fault, 3, noise).faults
    assert KINDS[fault] in [(each.kind, each.where) for each in faults]
    assert {each.kind for each in faults} == {KINDS[fault][0]}  # and nothing else


@pytest.mark.parametrize("seed", range(6))  # benchmarks/robot_check.py has 200
def test_a_robot_without_a_fault_has_none(seed):
    checked = examined("", seed, noise=seed % 2)
    assert checked.faults == []
    assert checked.notes == []
    assert [each.name for each in checked.dimensions] == list(NAMES)
    assert all(abs(each.out - 1) < 0.1 and 0.01 < each.delay_s < 0.15 for each in checked.dimensions)
    assert checked.rates["loop"] == pytest.approx(30, rel=0.02)


def test_a_camera_that_is_exchanged_from_the_start_is_seen_beside_demonstrations():
    clock, arm = Clock(), Lagging(1.0, 0)
    reference = {name: thumb(arm.read()[name]) for name in ("front", "wrist")}
    trace = Probe(
        Planted(arm, SPEC, "swapped cameras", clock, at_step=0), SPEC, QUICK, clock=clock, wait_until=clock.wait
    ).run()
    assert judged(trace, SPEC, QUICK).faults == []  # nothing to compare with
    assert [each.kind for each in judged(trace, SPEC, QUICK, None, reference).faults] == ["swapped"]


def test_a_loop_that_is_too_slow_says_what_takes_the_time():
    class Slow(Planted):
        def read(self):
            self.clock.now += 0.05
            return super().read()

    clock = Clock()
    trace = Probe(Slow(Lagging(1, 0), SPEC, "", clock), SPEC, QUICK, clock=clock, wait_until=clock.wait).run()
    found = {each.kind: each.text for each in judged(trace, SPEC, QUICK).faults}
    assert "the loop runs at 15 Hz, 30 are wanted: a reading takes 5" in found["loop"]


def test_old_observations_and_failures_and_nan_are_faults():
    class Bad(Planted):
        def read(self):
            observation = super().read()
            self.observed_at -= 0.2
            if self.readings == 20:
                raise OSError("no answer\nfrom servo 3")
            if self.readings == 30:
                observation["state"] = observation["state"] * np.nan
            return observation

    clock = Clock()
    trace = Probe(Bad(Lagging(1, 0), SPEC, "", clock), SPEC, QUICK, clock=clock, wait_until=clock.wait).run()
    kinds = {each.kind: each.text for each in judged(trace, SPEC, QUICK).faults}
    assert "no answer from servo 3 (1 times)" in kinds["error"]
    assert "0.2" in kinds["age"]
    assert "NaN" in kinds["state"]


def test_a_robot_that_never_answers_ends_the_check():
    class Mute(Planted):
        def read(self):
            if self.clock.now > 100.2:
                raise TimeoutError("nothing")
            return super().read()

    clock = Clock()
    trace = Probe(Mute(Lagging(1, 0), SPEC, "", clock), SPEC, QUICK, clock=clock, wait_until=clock.wait).run()
    assert 40 < len(trace.errors) < 60
    assert any(each.kind == "error" for each in judged(trace, SPEC, QUICK).faults)


def test_exchanged_joints_are_named():
    class Crossed(Planted):
        def write(self, action):
            super().write(np.array(action)[[1, 0, 2, 3]])

    clock, arm = Clock(), Lagging(1, 0)
    arm.angles[:] = arm.wanted[:] = [0.1, 0.1, 0, 0.4]
    trace = Probe(Crossed(arm, SPEC, "", clock), SPEC, QUICK, clock=clock, wait_until=clock.wait).run()
    faults = judged(trace, SPEC, QUICK).faults
    assert {(each.kind, each.where) for each in faults} >= {("order", "lift"), ("dead", "pan")}


def test_what_cannot_be_measured_is_said_and_nothing_is_commanded():
    nameless = replace(SPEC, action=replace(JOINTS, names=None))
    clock = Clock()
    robot = Planted(Lagging(1, 0), nameless, "", clock)
    robot.write = lambda action: pytest.fail("a command")  # type: ignore[method-assign]
    trace = Probe(robot, nameless, QUICK, clock=clock, wait_until=clock.wait).run()
    assert "nothing was moved: no state says where" in judged(trace, nameless, QUICK).notes[0]
    trace = Probe(robot, SPEC, replace(QUICK, motion=0.0), clock=clock, wait_until=clock.wait).run()
    assert "was not judged: nothing was moved" in judged(trace, SPEC, QUICK).notes[0]


def test_a_motion_begins_and_ends_at_rest_and_comes_back():
    way = profile(CheckConfig(ramp_s=1.0, rest_s=0.2), 0.02)
    assert way[-1] == 0
    assert way.max() == 1
    assert np.abs(np.diff(np.concatenate([[0], way]))).max() < 1.9 * 0.02  # 1.875 is the peak of minimum jerk
    assert np.abs(np.diff(way, 2)).max() < 6 * 0.02**2


class Rail(RobotConfig):
    """Registered by the test below."""


class RailRobot:
    """One axis, at once where it is told to be; it moves the other way where it is told so."""

    def __init__(self, config):
        axis = Feature((1,), "float32", "mm", (0.0,), (100.0,), names=("x",))
        self.features, self.at = Spec({"state": axis}, axis, 0.02), 30.0

    def read(self):
        return {"state": np.array([self.at], np.float32)}

    def write(self, action):
        self.at = 60.0 - float(action[0])


def test_the_command_writes_a_page_and_ends_with_1_where_something_is_wrong(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(ROBOTS, "rail", (RobotConfig, RailRobot))
    monkeypatch.setattr(command, "Probe", lambda *args: Probe(*args, clock=(clock := Clock()), wait_until=clock.wait))
    quick = ["check.still_s=0.1", "check.ramp_s=0.1", "check.rest_s=0.1"]
    page = tmp_path / "page.html"
    config = CheckRoot(robot=RobotConfig("rail"), page=str(page), check=CheckConfig(0.1, 0.1, 0.1, 0.1))
    checked = command.check(config)
    assert [(each.kind, each.where) for each in checked.faults] == [("sign", "x")]
    text = page.read_text()
    assert "moves the other way" in text
    assert "<svg" in text
    out = capsys.readouterr().out
    assert out.startswith("sign: x: moves the other way")
    assert f"1 faults in 25 readings at 50 Hz; page: {page}" in out.replace("\n", " ")
    assert cli.compose(["robot=lerobot", "robot.type=so101_follower", *quick], "check").robot.type == "so101_follower"


def test_the_command_ends_with_status_1(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "check", lambda config: replace_faults)
    replace_faults = SimpleNamespace(faults=[1])
    with pytest.raises(SystemExit) as ended:
        command.run(cli_config("env=detour"))
    assert ended.value.code == 1
    replace_faults.faults = []
    assert command.run(cli_config("env=detour")) is None


def cli_config(*words):
    import hydra

    from conf import groups

    groups.register("check")
    sys.argv = ["check"]
    with hydra.initialize_config_module("conf", version_base="1.3"):
        return hydra.compose("check", list(words))


def test_a_robot_that_does_not_fit_is_a_fault_and_moves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(ROBOTS, "rail", (RobotConfig, RailRobot))
    axis = Feature((1,), "float32", "m", (0.0,), (0.1,), names=("x",))
    monkeypatch.setattr(command, "_spec", lambda *_: Spec({"state": axis}, axis, 0.02))
    monkeypatch.setattr(RailRobot, "write", lambda *_: pytest.fail("a command"))
    checked = command.check(CheckRoot(robot=RobotConfig("rail"), page=str(tmp_path / "page.html")))
    assert checked.faults[0].kind == "match"
    assert "is in mm for the robot and in m for the policy" in checked.faults[0].text


def test_which_robot_is_asked():
    with pytest.raises(ValueError, match="which robot"):
        command.check(CheckRoot())
    with pytest.raises(ValueError, match=r"check\.motion=0\.9 must lie in"):
        CheckConfig(motion=0.9)


def test_a_world_in_the_robots_place_is_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "Probe", lambda *args: Probe(*args, clock=(clock := Clock()), wait_until=clock.wait))
    config = CheckRoot(env=envs.SO101Config(observes="state"), page=str(tmp_path / "page.html"), check=QUICK)
    checked = command.check(config)
    assert checked.faults == []
    assert len(checked.dimensions) == 6
