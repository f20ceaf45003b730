"""`flowhand replay`: recorded actions again, open loop, and what differs."""

from __future__ import annotations

import numpy as np
import pytest

from conf.verbs.record import RecordRoot
from conf.verbs.replay import ReplayRoot
from flowhand.commands.record import record
from flowhand.commands.replay import replay
from flowhand.commands.replay.program import described
from flowhand.robots.acting.playback import Reached, errors
from tests.robots.point import PointWorld, RobotArm


@pytest.fixture(params=["lerobot", "native"])
def recorded(tmp_path, request):
    config = RecordRoot(episodes=2, seed=5)
    config.data.path, config.data.format = str(tmp_path / "set"), request.param
    record(config, world=PointWorld(), say=lambda line: None)
    return config.data.path


def test_a_recorded_episode_leads_to_the_same_states(recorded):
    for episode in range(2):
        result = replay(ReplayRoot(where=recorded, episode=episode), world=PointWorld())
        assert (result.first, result.first_error, result.largest) == (None, 0.0, 0.0)
        assert result.success
        assert set(result.errors) == {"state", "goal"}


def test_the_first_step_that_differs_is_told(recorded):
    class Pushed(PointWorld):
        def step(self, action):
            found = super().step(action)
            if self._steps == 4:
                self._point = self._point + np.array([0.0, 0.25])
                return self._observation(), *found[1:]
            return found

    result = replay(ReplayRoot(where=recorded), world=Pushed())
    assert result.first is not None
    step, name, size = result.first
    assert (step, name) == (4, "state")
    assert size == pytest.approx(0.25, abs=1e-6)
    assert any("is step 4: state by 0.25" in line for line in described(ReplayRoot(where=recorded), result))
    assert replay(ReplayRoot(where=recorded, tolerance=0.3), world=Pushed()).first is None


def test_another_start_state_differs_at_once(recorded):
    result = replay(ReplayRoot(where=recorded, seed=77), world=PointWorld())
    assert result.first is not None
    assert result.first[0] == 1


def test_safety_stands_between_the_record_and_the_world(recorded):
    config = ReplayRoot(where=recorded)
    config.safety.high = [0.0]
    result = replay(config, world=PointWorld())
    assert result.changed > 0
    assert result.counts["clamp: bounds"] > 0


@pytest.mark.parametrize(
    ("config", "world", "words"),
    [
        (ReplayRoot(episode=9), PointWorld(), "it has 0 to 1"),
        (ReplayRoot(), None, "Give env="),
        (ReplayRoot(), PointWorld(dt=0.5), "acts every 0.5 s, recorded was every 0.1 s"),
    ],
)
def test_what_cannot_be_replayed_is_told(recorded, config, world, words):
    config.where = recorded
    with pytest.raises(ValueError, match=words):
        replay(config, world=world)


def test_a_world_that_cannot_begin_there_is_told(tmp_path):
    config = RecordRoot(episodes=1, seconds=0.4)
    config.data.path = str(tmp_path / "set")
    from flowhand.robots.teleoperators import ScriptedDriver

    script = [np.array([0.05 * k, 0.0]) for k in range(40)]
    record(config, robot=RobotArm(), driver=ScriptedDriver(script), say=lambda line: None)
    with pytest.raises(ValueError, match="cannot begin at a recorded state"):
        replay(ReplayRoot(where=config.data.path), world=PointWorld(dt=0.02))


def test_a_robot_is_moved_to_the_beginning_first(recorded):
    robot = RobotArm(dt=0.1)
    result = replay(ReplayRoot(where=recorded, approach_s=0.5), robot=robot)
    sent = np.array(robot.sent)
    assert result.ended == "time"
    np.testing.assert_allclose(sent[0], 0, atol=1e-9)  # where it stands
    way = np.diff(sent[:6], axis=0)
    np.testing.assert_allclose(way, np.broadcast_to(way[0], way.shape), atol=1e-6)


def test_differences_are_taken_as_recorded_and_the_short_way_round():
    reached = Reached()
    reached.steps, reached.values = [1], [{"angle": np.array([3.1, 1.0 + 1e-9])}]
    recorded = {"angle": np.array([[0, 0], [-3.1, 1.0]], np.float32)}
    found = errors(reached, recorded, {"angle": (0,)})["angle"]
    np.testing.assert_allclose(found, [[2 * np.pi - 6.2, 0]], atol=1e-6)


def test_push_t_s_human_episodes_begin_where_they_were_recorded():
    envs = pytest.importorskip("envs.pusht")
    pytest.importorskip("gym_pusht")
    world = envs.PushTEnv(envs.PushTConfig())
    start = envs.human_starts()[43]
    told = world._raw.reset(options={"reset_to_state": start})[0]
    world.begin_at({"state": told.astype(np.float32)})
    assert np.abs(world.as_recorded()["state"] - told).max() == 0
    world.step(told[:2])
    pushed_out = world.as_recorded()["state"]
    world.reset(seed=0)
    envs.place(world._raw, told)  # the same state alone does not tell that a wall pushes the block out
    world.step(told[:2])
    assert np.abs(world.as_recorded()["state"] - pushed_out).max() > 0.1
    world.begin_at({"state": np.array([100, 100, 256, 256, 0.5], np.float32)})  # any other state: at rest
    assert world.as_recorded()["state"].tolist() == [100, 100, 256, 256, 0.5]
    assert world._raw.block.velocity.length == 0
