"""`flowhand control` in a world of pages: paced by the page's answers, and an alarm stops and asks."""

from __future__ import annotations

import io
import os
import signal

import numpy as np
import pytest

from conf.verbs.control import ControlRoot
from flowhand.commands import control as verb
from flowhand.contracts.execution import EVENT_DT_S
from flowhand.contracts.screen.fields import FIELDS
from flowhand.control.limits.config import SafetyConfig
from flowhand.control.runtime import Runtime
from flowhand.control.runtime_config import RuntimeConfig
from flowhand.control.safety import Safety
from flowhand.robots.simulated import SimulatedRobot
from tests.envs.web.browsers import act, require_browser, world, write_page

DT = 0.02
COUNT = "<button id=b onclick='if (++log.length == 3) { score = 1; over = true }'>b</button>"


class Clicking:
    """Clicks at row 0 at every step; an action that is no choice at the second, where asked for."""

    def __init__(self, wrong=False):
        self.wrong, self.step_ = wrong, 0

    def reset(self, *, seed):
        self.step_ = 0

    def step(self, observation):
        self.step_ += 1
        return act("click", element=99 if self.wrong and self.step_ == 2 else 0).astype(float)


class Alarming:
    """Alarms at the second action after each reset."""

    def reset(self, seed, again):
        self.seen = 0

    def observe(self, observation, action):
        self.seen += 1
        return ["never seen before"] if self.seen == 2 else []


@pytest.fixture
def env(tmp_path):
    require_browser(miniwob=False)
    made = world(page=write_page(tmp_path, COUNT))
    yield made
    made.close()


def run(env, policy, monitor=None, seconds=8.0, **settings):
    """Runs an episode as the verb does; the robot and the runtime."""
    config = ControlRoot(checkpoint="x", runtime=RuntimeConfig(**settings), seconds=seconds)
    verb._wait_for_events(config, DT)
    safety = Safety.for_spec(env.features, verb.resting(SafetyConfig(), env), DT)
    robot = SimulatedRobot(env)
    runtime = Runtime(robot, policy, safety, env.features.sensed, DT, config.runtime, monitor)
    robot.reset(4)
    return robot, runtime


def test_each_action_is_done_once_however_long_the_page_takes(env):
    robot, runtime = run(env, Clicking())
    assert runtime.run(8.0, 4) == "over"
    runtime.close()
    assert [(o.success, o.steps) for o in robot.outcomes] == [(True, 3)]
    assert runtime.report.skipped == 0


def test_what_is_refused_becomes_a_look_and_not_the_last_click_again(env):
    robot, runtime = run(env, Clicking(wrong=True))
    assert runtime.run(8.0, 4) == "over"
    runtime.close()
    assert runtime.safety.counts["refusal: choice"] == 1
    assert [(o.success, o.steps) for o in robot.outcomes] == [(True, 4)]
    assert env.rest == (0.0,) * len(FIELDS)


@pytest.mark.parametrize(
    ("terminal", "said", "goes_on"), [(True, "y\n", True), (True, "\n", False), (False, "y\n", False)]
)
def test_an_alarm_stops_and_asks(env, monkeypatch, capsys, terminal, said, goes_on):
    _, runtime = run(env, Clicking(), Alarming(), on_alarm="ask")
    stdin = io.StringIO(said)
    monkeypatch.setattr(stdin, "isatty", lambda: terminal)
    monkeypatch.setattr("sys.stdin", stdin)
    assert runtime.run(8.0, 4) == "alarm"
    clicks = env._tab.ask("log.length")
    assert clicks == 1  # nothing was done after the alarm
    assert verb._told_to_go_on(runtime) is goes_on
    assert ("never seen before. Go on? [y/N]" in capsys.readouterr().err) is terminal
    if goes_on:
        runtime.run(8.0, 4)
        assert env._tab.ask("log.length") == 2  # the same episode, watched anew
    runtime.close()


def test_a_browser_that_dies_ends_the_episode_without_an_outcome(env):
    robot, runtime = run(env, Clicking())
    os.kill(env._browser.pid, signal.SIGKILL)
    assert runtime.run(8.0, 4) == "over"
    runtime.close()
    assert robot.outcomes == []


def test_pages_wait_for_events():
    assert 0.1 <= EVENT_DT_S <= 1
    config = ControlRoot(checkpoint="x")
    verb._wait_for_events(config, EVENT_DT_S)
    assert not config.asynchronous
    assert config.runtime.on_overrun == "catch_up"
    assert config.runtime.patience_s > EVENT_DT_S
    assert np.zeros(len(FIELDS)).tolist() == act("stop").tolist()
