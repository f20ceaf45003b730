"""Events: their order, what they hold, and what an observer that raises costs those who are watched."""

import numpy as np
import pytest

from flowhand.contracts.observers import METHODS, Enough, EpisodeEnds, Observer, Publisher, StepTaken
from flowhand.evaluation.rollout import NoisyExpert, rollout
from tests.envs.test_rollout import Noisy, Walk

SEEDS = [5, 3, 8]
WAYS = [{}, {"n_envs": 3}, {"n_envs": 3, "workers": "process", "processes": 2}]


class Log(Observer):
    """Keeps all that it is told, by seed, and in order."""

    def __init__(self, every=0):
        self.every, self.events, self.order = every, {}, []

    def pictures(self, lane, seed):
        return self.every

    def _keep(self, event):
        self.events.setdefault(event.seed, []).append(event)
        self.order.append(event)

    episode_begins = decision = step = episode_ends = _keep

    def stop(self, event):
        self.order.append(event)


def without_lane(event):
    kept = {name: value for name, value in vars(event).items() if name not in ("lane", "record")}
    return type(event).__name__, {
        name: value.tolist() if isinstance(value, np.ndarray) else str(value) for name, value in kept.items()
    }


@pytest.mark.parametrize("agent", ["noisy", "expert", NoisyExpert(0.1)])
def test_the_events_of_an_episode_do_not_depend_on_what_runs_beside_it(agent):
    told = []
    for way in WAYS if isinstance(agent, NoisyExpert) else WAYS[:2]:  # processes take seconds to start
        log = Log(every=3)
        rollout(Walk, Noisy() if agent == "noisy" else agent, SEEDS, observers=[log], **way)
        told.append({seed: list(map(without_lane, log.events[seed])) for seed in SEEDS})
    assert all(each == told[0] for each in told)


@pytest.mark.parametrize("agent", ["noisy", "expert"])
def test_the_steps_say_what_the_world_did(agent):
    """Walk moves by the action: the observations, the actions and the rewards must tell the same story."""
    log = Log(every=4)
    records = rollout(Walk, Noisy() if agent == "noisy" else agent, SEEDS, observers=[log])
    for record in records:
        begins, *steps, ends = log.events[record.seed]
        assert [type(event).__name__ for event in (begins, ends)] == ["EpisodeBegins", "EpisodeEnds"]
        assert [step.step for step in steps] == list(range(record.steps))
        x = np.array([step.observation["state"][0] for step in steps])
        sent = np.array([step.sent[0] for step in steps])
        assert begins.observation["state"][0] == x[0]
        np.testing.assert_allclose(np.diff(x), sent[:-1], atol=1e-5)
        assert sum(step.reward for step in steps) == pytest.approx(record.return_)
        first = next((step.step + 1 for step in steps if step.success), None)
        assert first == record.first_success_step
        assert (ends.steps, ends.ended, ends.record) == (record.steps, record.failure or "success", record)
        shown = [0] * (begins.picture is not None)
        shown += [step.step + 1 for step in steps if step.picture is not None]
        assert shown == sorted({*range(0, record.steps + 1, 4), record.steps})
    assert type(log.order[-1]).__name__ == "Stopped"
    assert [type(event).__name__ for event in log.order].count("Stopped") == 1


def test_an_expert_that_is_pushed_chooses_one_thing_and_does_another():
    log = Log()
    rollout(Walk, NoisyExpert(0.3), [5], observers=[log])
    steps = [event for event in log.events[5] if isinstance(event, StepTaken)]
    chosen, sent = (np.array([getattr(step, name)[0] for step in steps]) for name in ("chosen", "sent"))
    x = np.array([step.observation["state"][0] for step in steps if step.observation])
    np.testing.assert_allclose(chosen, -0.1 * x, rtol=1e-5)
    np.testing.assert_allclose(np.diff(x), sent[:-1], atol=1e-5)
    assert np.abs(chosen - sent).max() > 0.05


class Failing(Observer):
    def __init__(self, essential=False):
        self.essential, self.steps, self.stopped = essential, 0, []

    def step(self, event):
        self.steps += 1
        raise RuntimeError("no screen")

    def stop(self, event):
        self.stopped.append(event.reason)


def test_an_observer_that_raises_is_reported_and_left_out(caplog):
    failing, log = Failing(), Log()
    plain = [(r.seed, r.steps, r.return_) for r in rollout(Walk, Noisy(), SEEDS)]
    watched = rollout(Walk, Noisy(), SEEDS, observers=[failing, log])
    assert [(r.seed, r.steps, r.return_) for r in watched] == plain
    assert failing.steps == 1
    assert failing.stopped == [""]
    assert caplog.messages == ["Failing failed and watches no more: RuntimeError: no screen"]
    assert len(log.events) == 3


def test_an_essential_observer_ends_the_rollout_with_its_error():
    failing, log = Failing(essential=True), Log()
    with pytest.raises(RuntimeError, match="no screen"):
        rollout(Walk, Noisy(), SEEDS, observers=[failing, log])
    assert failing.stopped == ["RuntimeError: no screen"]
    assert len(log.events[5]) == 2  # the others hear of the event all the same


def test_enough_ends_a_rollout_with_what_has_ended():
    class Two(Observer):
        seen = 0

        def episode_ends(self, event: EpisodeEnds):
            self.seen += 1
            if self.seen == 2:
                raise Enough

    assert [record.seed for record in rollout(Walk, Noisy(), SEEDS, observers=[Two()])] == SEEDS[:2]


def test_only_what_is_overridden_is_listened_to():
    assert [name for name in METHODS if Observer().listens(name)] == []
    assert not Publisher([Observer()]).wants(*METHODS)
    assert Publisher([Log()]).wants("step")
    assert not Publisher([Failing()]).wants("episode_begins", "decision", "pictures")


def test_pictures_serve_everybody():
    assert Publisher([Log(4), Log(6), Observer()]).pictures(0, 1) == 2
    assert Publisher([Log(4), Log(0)]).pictures(0, 1) == 4
    assert Publisher([Log(0)]).pictures(0, 1) == 0
