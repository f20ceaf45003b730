"""`flowhand record`: who drives, what is kept, what a failing robot leaves, and who takes over."""

from __future__ import annotations

import logging
import re
from contextlib import nullcontext

import numpy as np
import pytest

from conf.verbs.record import RecordRoot
from flowhand.commands.record import acting as acting_of_record
from flowhand.commands.record import record
from flowhand.commands.record.program import closing_line, write_page
from flowhand.contracts.features import Feature
from flowhand.demos.formats import open_dataset
from flowhand.demos.lerobot.dataset import LeRobotDataset
from flowhand.demos.native import Store
from flowhand.robots.acting.takeover import TakeOver, TakeOverConfig
from flowhand.robots.teleoperators import ScriptedDriver, WaitingKeys
from tests.robots.point import STEP, PointPlanner, PointWorld, RobotArm, point_spec


def root(path, **more) -> RecordRoot:
    config = RecordRoot(**more)
    config.data.path = str(path)
    return config


def session(path, *, driver=None, keys=None, world=None, robot=None, **more):
    lines: list[str] = []
    result = record(root(path, **more), world=world, robot=robot, driver=driver, keys=keys, say=lines.append)
    return result, lines


@pytest.fixture
def policy(monkeypatch):
    """The planner that stands behind checkpoint= and shadow=."""
    planner = PointPlanner()
    monkeypatch.setattr(acting_of_record, "planner_of", lambda where, *_: planner if where == "good" else FLIPPED)
    monkeypatch.setattr(acting_of_record, "one_thread", lambda planner: nullcontext())
    return planner


FLIPPED = PointPlanner((1.0, -1.0))


def test_an_expert_s_successes_are_recorded(tmp_path):
    world = PointWorld(fails=lambda seed: seed == 1, most=40)
    result, lines = session(tmp_path / "set", world=world, episodes=3)
    data = LeRobotDataset(tmp_path / "set")
    assert (len(data), result.kept, result.dropped) == (3, [0, 1, 2], {"failed": 1})
    assert any("dropped after 40 steps: failed" in line for line in lines)
    for episode in data:
        assert episode.task == "go to the goal"
        assert episode.success.tolist() == [False] * (len(episode) - 1) + [True]
        goal, state = episode.observation["goal"][0], episode.observation["state"]
        assert np.array_equal(episode.action[0], goal)
        moved = state[0] + np.clip(episode.action[0] - state[0], -STEP, STEP)
        np.testing.assert_allclose(state[1], moved, atol=1e-6)


def test_a_set_goes_on_after_its_last_seed_and_records_all_where_asked(tmp_path):
    world = PointWorld(fails=lambda seed: True, most=5)
    session(tmp_path / "set", world=world, episodes=2, keep="all")
    session(tmp_path / "set", world=world, episodes=1, keep="all")
    starts = [episode.observation["state"][0].tolist() for episode in LeRobotDataset(tmp_path / "set")]
    expected = [np.random.default_rng(seed).uniform(-1, 1, (2, 2))[0].astype(np.float32).tolist() for seed in range(3)]
    assert starts == expected


def test_an_expert_that_never_succeeds_ends_in_a_line(tmp_path):
    with pytest.raises(ValueError, match="21 of 21 episodes failed"):
        session(tmp_path / "set", world=PointWorld(fails=lambda seed: True, most=1), episodes=2)


def test_what_safety_lets_through_is_the_action_and_the_wish_is_kept(tmp_path):
    config = root(tmp_path / "set", episodes=1)
    config.safety.velocity = [0.5]
    config.real_time, config.keep, config.seconds = "no", "all", 1.0
    record(config, world=PointWorld(), driver=ScriptedDriver([np.zeros(2), *[np.ones(2)] * 9]), say=lambda line: None)
    import pyarrow.parquet as pq

    rows = pq.read_table(tmp_path / "set/data/chunk-000/file-000.parquet").to_pydict()
    sent, asked = np.array(rows["action"]), np.array(rows["action_asked"])
    assert np.abs(np.diff(sent, axis=0)).max() <= 0.5 * 0.1 + 1e-6
    assert asked.tolist() == [[0, 0]] + [[1, 1]] * 9
    assert not np.array_equal(sent, asked)


def test_a_world_of_events_is_recorded_natively(tmp_path):
    result, lines = session(tmp_path / "set", world=PointWorld(dt=None), episodes=1)
    assert result.kept == [0]
    assert any("wait for events" in line for line in lines)
    assert len(Store.open(tmp_path / "set")) == 1


def pressing(keys: WaitingKeys, script: dict[int, str], action=(0.0, 0.0)):
    """A person who presses keys at control steps, counted over all episodes."""
    count = [0]

    def act(observation):
        count[0] += 1
        if key := script.get(count[0]):
            keys.press(key)
        return np.array(action)

    return ScriptedDriver(act)


def test_a_person_ends_redoes_drops_annotates_and_stops(tmp_path):
    keys = WaitingKeys()
    # end after 3; redo after 2; end after 4, with the second text; drop after 2; escape after 2
    driver = pressing(keys, {2: "right", 5: "left", 6: "2", 10: "right", 12: "backspace", 15: "escape"})
    result, lines = session(
        tmp_path / "set", world=PointWorld(), driver=driver, keys=keys, episodes=9, tasks=["one", "two"], real_time="no"
    )
    data = LeRobotDataset(tmp_path / "set")
    assert result.ended == "escape" or result.ended == "stop"
    assert (result.kept, result.dropped) == ([0, 1], {"redo": 1, "drop": 1, "stop": 1})
    assert list(data.tasks) == ["go to the goal", "two"]
    assert lines[0].startswith("keys:")
    second = np.random.default_rng(1).uniform(-1, 1, (2, 2))[0].astype(np.float32)  # done again from the same start
    assert np.array_equal(data.read(1).observation["state"][0], second)


def arm(tmp_path, fault="", *, at=10, times=10**9, seconds=0.5, camera=False, episodes=1, stale_s=None, actions=None):
    config = root(tmp_path / "set", episodes=episodes, seconds=seconds, health=False)
    config.data.gap_s, config.runtime.stop_s = 0.06, 0.05
    config.safety.max_observation_age_s = stale_s
    robot = RobotArm(fault, at, times, camera=camera)
    lines: list[str] = []
    script = actions or (lambda observation: observation["state"].astype(float))
    result = record(config, robot=robot, driver=ScriptedDriver(script), say=lines.append)
    return result, lines, robot


def test_a_robot_is_recorded_in_real_time(tmp_path):
    result, _, _ = arm(tmp_path, camera=True)
    episode = LeRobotDataset(tmp_path / "set").read(0)
    assert 15 <= len(episode) <= 25
    state = episode.observation["state"]
    fresh = np.diff(state[:, 0]) > 0
    np.testing.assert_allclose(episode.action, state, atol=1e-6)
    assert fresh.sum() + result.filled >= len(state) - 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("hung", "late observation"),
        ("raises", "observation error"),
        ("nan", "is not finite"),
        ("no camera", "observation error"),
        ("stale", "stale observation"),
        ("deaf", "write error|not taken"),
    ],
)
def test_a_robot_that_fails_is_kept_safe_and_nothing_wrong_is_recorded(tmp_path, caplog, fault, words):
    caplog.set_level(logging.ERROR)
    times = 12 if fault != "hung" else 1
    result, lines, robot = arm(tmp_path, fault, times=times, camera=True, episodes=1, stale_s=0.03, seconds=0.4)
    dropped = [line for line in lines if "dropped" in line]
    assert re.search(words, dropped[0])
    assert result.dropped["broken"] == 1
    assert result.kept == [0]
    assert all(np.isfinite(action).all() for action in robot.sent)
    for episode in open_dataset(tmp_path / "set"):
        assert np.isfinite(episode.observation["state"]).all()
        np.testing.assert_allclose(episode.action, episode.observation["state"], atol=1e-6)


def test_a_short_gap_is_filled_and_told(tmp_path):
    result, lines, _ = arm(tmp_path, "raises", times=2)
    episode = LeRobotDataset(tmp_path / "set").read(0)
    assert result.filled >= 2
    assert any("filled" in line for line in lines)
    repeated = np.flatnonzero(np.diff(episode.observation["state"][:, 0]) == 0)
    assert len(repeated) == result.filled


def test_a_robot_that_never_works_ends_the_session(tmp_path):
    with pytest.raises(ValueError, match="3 episodes in a row were dropped"):
        arm(tmp_path, "raises", at=3, episodes=5, seconds=0.3)


def test_a_robot_needs_somebody_who_drives(tmp_path):
    with pytest.raises(ValueError, match="who drives the robot"):
        record(root(tmp_path / "set"), robot=RobotArm())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"episodes": 0}, "episodes=0"),
        ({"keep": "some"}, "choices: success, all"),
        ({"seed": 10**7}, "later seeds are for evaluation"),
        ({"takeover": TakeOverConfig(by="expert")}, "give checkpoint="),
        ({"checkpoint": "good", "shadow": "good"}, "leave out checkpoint"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        RecordRoot(**given)


def test_takeover_needs_a_choice_of_who():
    with pytest.raises(ValueError, match="expert, driver"):
        TakeOverConfig(by="nobody")
    with pytest.raises(ValueError, match=r"need takeover\.by"):
        TakeOverConfig(after_s=1)


def test_an_expert_takes_over_from_a_policy_that_goes_wrong(tmp_path, policy):
    config = root(tmp_path / "set", checkpoint="flipped", takeover=TakeOverConfig("expert", after_s=0.5, blend_s=0.3))
    config.episodes = 2
    result = record(config, world=PointWorld(), say=lambda line: None)
    assert (result.successes, result.interventions > 0) == (2, True)
    for episode in LeRobotDataset(tmp_path / "set"):
        acted = episode.intervention
        assert acted is not None
        assert acted.tolist() == [False] * 5 + [True] * (len(episode) - 5)
        jump = np.abs(episode.action[5] - episode.action[4])
        assert (jump < 1e-6).all()  # blended: the first command is the last one before the change
        np.testing.assert_allclose(episode.action[-1], episode.observation["goal"][-1], atol=1e-6)


class Leader:
    """A leader arm with motors, which starts far from the robot and needs steps to be driven there."""

    def __init__(self, at):
        self.at, self.led, self.released = np.array(at, float), 0, False

    def reset(self, seed):
        self.released = False

    def lead(self, action):
        self.led += 1
        self.at += np.clip(action - self.at, -0.3, 0.3)
        return bool(np.abs(self.at - action).max() < 1e-9)

    def release(self):
        self.released = True

    def action(self, observation):
        assert self.released
        return self.at.copy()


@pytest.mark.parametrize("motors", [True, False])
def test_a_person_who_takes_over_makes_no_jump(motors):
    """Whether the leader is driven to the robot or stands 2 rad away, no command is further than blending allows."""

    class Policy:
        def reset(self, *, seed): ...
        def step(self, observation):
            return np.array([1.0, 1.0])

    leader = Leader((-1.0, -1.0))
    if not motors:
        leader.lead = lambda action: None  # pyright: ignore[reportAttributeAccessIssue]
    from flowhand.robots.acting.actors import DriverActor

    both = TakeOver(Policy(), DriverActor(leader), TakeOverConfig("driver", blend_s=1.0), 0.1, np.zeros(2, bool))
    both.begin()
    both.reset(seed=0)
    sent, paused = [], 0
    for step in range(40):
        if step == 5:
            both.switch()
        action = both.step({})
        paused += both.paused
        if action is None:
            assert both.paused
            assert not both.intervention
        else:
            sent.append((action, both.intervention))
    commands = np.array([action for action, _ in sent])
    assert np.abs(np.diff(commands, axis=0)).max() <= 2.0 / 10 + 1e-9
    assert [who for _, who in sent] == [False] * 5 + [True] * (len(sent) - 5)
    assert (paused > 0) == motors
    assert both.changes == ["step 5: key"]
    np.testing.assert_allclose(commands[-1], [1.0, 1.0] if motors else [-1.0, -1.0])


def test_control_goes_back_after_a_time_and_on_a_condition_or_an_alarm():
    class One:
        def __init__(self, value):
            self.value = value

        def reset(self, *, seed): ...
        def step(self, observation):
            return np.full(1, self.value)

    class Alarm:
        def reset(self, seed, again): ...
        def observe(self, observation, action):
            return ["score 9 above 1"] if observation["n"] == 3 else []

    config = TakeOverConfig("expert", on_alarm=True, for_s=0.3, blend_s=0.0)
    both = TakeOver(One(0.0), One(1.0), config, 0.1, np.zeros(1, bool), Alarm(), lambda seen: seen["n"] == 10)
    both.begin()
    both.reset(seed=0)
    acted = [both.step({"n": np.array(n)}) for n in range(16)]
    assert [None if action is None else float(action[0]) for action in acted] == [
        0,
        0,
        0,
        0,
        1,
        1,
        1,
        0,
        0,
        0,
        1,
        1,
        1,
        0,
        0,
        0,
    ]
    assert [change.split(": ", 1)[1] for change in both.changes] == [
        "alarm: score 9 above 1", "time", "condition", "time",
    ]  # fmt: skip


def test_a_pause_in_which_a_leader_is_driven_is_not_recorded(tmp_path, policy):
    leader, keys = Leader((-1.0, -1.0)), WaitingKeys()
    config = root(tmp_path / "set", checkpoint="good", takeover=TakeOverConfig("driver", after_s=0.3))
    config.episodes, config.keep, config.seconds, config.real_time = 1, "all", 2.0, "no"
    result = record(config, world=PointWorld(), driver=leader, keys=keys, say=lambda line: None)
    episode = LeRobotDataset(tmp_path / "set").read(0)
    assert leader.led > 1
    assert len(episode) == result.steps == 20 - (leader.led - 1)
    assert episode.intervention is not None
    assert not episode.intervention[:3].any()
    assert episode.intervention[3:].all()


def test_a_shadow_names_a_flipped_sign_within_ten_seconds_and_sends_nothing(tmp_path, policy):
    world = PointWorld(most=150)
    script = ScriptedDriver(lambda seen: seen["state"] + np.clip(seen["goal"] - seen["state"], -STEP, STEP))
    for kind, flipped in (("flipped", ["elbow (rad)"]), ("good", [])):
        lines: list[str] = []
        config = root(tmp_path / kind, shadow=kind, episodes=8, real_time="no", keep="all")
        result = record(config, world=world, driver=script, say=lines.append)
        shadow = result.shadow
        assert shadow is not None
        assert shadow.flipped == flipped
        named = [i for i, line in enumerate(line for line in lines if line.startswith("shadow")) if "FLIPPED" in line]
        assert (named[0] < 10) if flipped else not named  # a line each second
        data = LeRobotDataset(tmp_path / kind)
        sent = np.concatenate([episode.action for episode in data])
        np.testing.assert_allclose(sent, np.array(shadow.person), atol=1e-6)  # the person's alone reached the robot
        assert not any(episode.intervention is None or episode.intervention.any() for episode in data)


def test_a_shadow_beside_a_robot_sends_no_command(tmp_path, policy):
    robot = RobotArm()
    config = root(tmp_path / "set", shadow="flipped", episodes=1, seconds=0.4)
    record(config, robot=robot, driver=ScriptedDriver(lambda seen: np.array([0.25, 0.5])), say=lambda line: None)
    assert len(robot.sent) > 3
    assert all(np.array_equal(action, [0.25, 0.5]) for action in robot.sent)


def test_a_policy_that_does_not_see_the_robot_is_refused(tmp_path, policy):
    policy.spec = point_spec(wrist=Feature((8, 8, 3), "uint8", "", camera="wrist"))
    with pytest.raises(ValueError, match="does not observe 'wrist'"):
        record(root(tmp_path / "set", checkpoint="good"), world=PointWorld(), say=lambda line: None)


def test_the_page_of_a_shadow_shows_and_names(tmp_path, policy):
    config = root(tmp_path / "set", shadow="flipped", episodes=8, real_time="no", keep="all")
    config.page = str(tmp_path / "page.html")
    script = ScriptedDriver(lambda seen: seen["state"] + np.clip(seen["goal"] - seen["state"], -STEP, STEP))
    result = record(config, world=PointWorld(most=150), driver=script, say=lambda line: None)
    write_page(config, result)
    text = (tmp_path / "page.html").read_text()
    assert "does the opposite in elbow (rad)" in text
    assert text.count("<svg") == 2 * 8
    assert closing_line(config, result).startswith(f"{config.data.path}: 8 episodes")
