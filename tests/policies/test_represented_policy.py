"""Policies that learn differences, angles and rotations: what they give and take is absolute and physical."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

import policies
from flowhand.contracts.data.episode import Episode
from flowhand.contracts.execution import ExecutionConfig
from flowhand.contracts.nearest import difference
from flowhand.contracts.planner import PrefixArrays
from flowhand.control.chunk_player import ChunkPlayer
from flowhand.control.controller import Controller
from policies.config import policy_config
from policies.generation.prefix import Prefix
from policies.monitor.watched_policy import WatchedPolicy
from policies.training.config import TrainingConfig
from policies.training.trainer import Trainer

from .represented import ACTION, SPEC, actions, make, observations, states

REPRESENTATIONS = ("absolute", "delta", "relative")


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(np.abs(difference(a.numpy(), b.numpy(), ACTION)).max())


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("statistics", ["chunk", "step"])
def test_decoding_undoes_coding(representation, statistics):
    if (representation, statistics) == ("absolute", "step"):
        return
    policy, seen = make(representation, statistics=statistics), observations(50)
    action = actions(seen["state"][:, -1], policy.chunk.prediction_horizon)
    code = policy.code(action, seen)
    assert code.shape[1:] == policy.chunk_shape
    assert apart(policy.decode(code, seen), action) < 1e-5


@pytest.mark.parametrize("representation", ["delta", "relative"])
@pytest.mark.parametrize("statistics", ["chunk", "step"])
@pytest.mark.parametrize("padded", [False, True])
def test_the_statistics_are_those_of_the_chunks_of_all_windows(representation, statistics, padded):
    """Against loops over windows and steps; past an episode's end the action repeats, and counts if it is learned."""
    made = make(representation, statistics=statistics)
    policy = policies.Policy(replace(made.config, chunk=replace(made.chunk, loss_on_padding=padded)), SPEC)
    ends, horizon = [6, 9, 20], policy.chunk.prediction_horizon
    last = torch.tensor([end - 1 for end, n in zip(ends, (6, 3, 11), strict=True) for _ in range(n)])
    state = states(20)
    action = actions(state, 1)[:, 0]
    policy.fit_normalizers({"goal": torch.randn(20, 2), "state": state}, action, last)
    columns: list[list[list[float]]] = [[] for _ in range(horizon)]
    for i in range(20):
        for t in range(horizon):
            if i + t > last[i] and not padded:
                continue
            now, before = min(i + t, int(last[i])), min(i + t - 1, int(last[i]))
            base = state[i, 1:3] if representation == "relative" or t == 0 else action[before, :2]
            columns[t].append((action[now, :2] - base).tolist())
    steps = [np.array(step) for step in columns]
    expected = [(s.mean(0), s.std(0)) for s in (steps if statistics == "step" else [np.concatenate(steps)])]
    mean, std = (np.array(side).squeeze() for side in zip(*expected, strict=True))
    np.testing.assert_allclose(policy.action_normalizer.shift[..., :2], mean, atol=1e-6)
    np.testing.assert_allclose(policy.action_normalizer.scale[..., :2], std, atol=1e-6)
    scale = policy.action_normalizer.scale
    assert (scale[..., 3:9] == scale[..., 3:4]).all()  # a rotation has one scale
    assert (scale[..., 9] == 1).all()  # the index of a choice stays as it is
    assert policy.action_spread.shape == (8,)


def test_a_training_tells_where_episodes_end():
    """The statistics of a trainer are those of its windows' own chunks, past no episode's end."""
    config = make("relative").config
    episodes = []
    for length in (3, 7, 2):
        state = states(length)
        arrays = {"goal": torch.randn(length, 2).numpy(), "state": state.numpy()}
        still = np.zeros(length, np.float32), np.zeros(length, bool)
        episodes.append(Episode(arrays, actions(state, 1)[:, 0].numpy(), *still, "reach", 0, 0.05))
    training = TrainingConfig(steps=1, batch_size=8, threads=1)
    windows = policies.Windows(episodes, SPEC, config.chunk.history, config.chunk.prediction_horizon)
    trainer = Trainer(training, config, SPEC, windows, torch.device("cpu"))
    windows = policies.Windows(episodes, SPEC, 2, 4)
    batch = windows.gather(torch.arange(12))
    first = (batch.action[..., 0] - batch.observation["state"][:, -1:, 1])[batch.mask]
    np.testing.assert_allclose(trainer.policy.action_normalizer.shift[0], first.mean(), atol=1e-6)
    np.testing.assert_allclose(trainer.policy.action_normalizer.scale[0], first.std(correction=0), atol=1e-6)
    trainer.advance()
    trainer.require_finite()


def test_differences_need_to_know_where_episodes_end():
    policy, state = make(), states(20)
    with pytest.raises(ValueError, match=r"statistics of differences are those of chunks: tell where .* with last="):
        policy.fit_normalizers({"goal": torch.randn(20, 2), "state": state}, actions(state, 1)[:, 0])


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_a_chunk_continues_under_a_new_anchor(representation, monkeypatch):
    """The head is told what brute force makes of the old chunk where the robot is now; the held actions stay."""
    policy = make(representation, "flow", steps=2, prefix_max=3)
    old, new = observations(6), observations(6)
    previous = policy.sample(old, torch.randn(6, *policy.noise_shape))
    delay = torch.tensor([0, 1, 2, 3, 3, 1])
    told: list[torch.Tensor] = []
    ahead = policy.head.continue_chunk

    def spy(net, noise, cond, prefix):
        told.append(prefix.actions_BTA)
        return ahead(net, noise, cond, prefix)

    monkeypatch.setattr(policy.head, "continue_chunk", spy)
    shifted = previous.roll(-1, 1)
    shifted[:, 3:] = torch.nan  # what lies past the overlap is nobody's
    prefix = Prefix(shifted, delay, torch.full_like(delay, 3), "trained")
    chunk = policy.sample(new, torch.randn(6, *policy.noise_shape), prefix)
    assert torch.isfinite(chunk).all()
    for row in range(6):
        assert delay[row] == 0 or apart(chunk[row, : delay[row]], shifted[row, : delay[row]]) < 2e-5
    normalizer = policy.action_normalizer
    joints = told[0][..., :2] * normalizer.scale[:2] + normalizer.shift[:2]
    anchor = new["state"][:, -1:, 1:3]
    before = {"absolute": 0 * anchor, "relative": anchor, "delta": torch.cat([anchor, shifted[:, :-1, :2]], dim=1)}
    expected = shifted[..., :2] - before[representation]
    torch.testing.assert_close(joints[:, :3], expected[:, :3], rtol=0, atol=1e-5)


def test_plan_takes_absolute_prefixes_of_numpy():
    policy = make("relative", "flow", steps=2, prefix_max=3)
    seen = {name: value.numpy() for name, value in observations(2).items()}
    noise = np.random.default_rng(0).standard_normal((2, *policy.noise_shape)).astype(np.float32)
    previous = policy.plan(seen, noise)
    count = np.array([3, 3])
    again = policy.plan(seen, noise, PrefixArrays(previous, count, count, "trained"))
    assert np.abs(difference(again[:, :3], previous[:, :3], ACTION)).max() < 2e-5


def test_ensembling_averages_absolute_actions_the_short_way_round():
    """Chunks decided at two anchors; the angle is 3.1 in one and -3.1 in the other, the vector a turn off."""
    averaging = ExecutionConfig("temporal_ensembling", ensemble_decay=0.0)
    timeline = ChunkPlayer(averaging, 1, 4, discrete=[6], action=ACTION)
    first = np.array([1, 2, 3.1, 3.1, 0, 0, 1, 0.5], np.float32)
    second = np.array([2, 4, -3.1, 3.1 - 2 * np.pi, 0, 0, 1, 0.1], np.float32)
    for action in (first, second):
        timeline.begin()
        timeline.deliver(np.stack([action] * 4), delay=0)
        if action is first:
            timeline.advance()
    mean = timeline.advance()
    assert mean == pytest.approx([1.5, 3, -np.pi, 3.1 - 2 * np.pi, 0, 0, 1, 0.3], abs=1e-5)


@pytest.mark.parametrize("mode", ["receding_horizon", "temporal_ensembling", "rtc_identity"])
def test_a_controller_follows_a_target_from_wherever_it_is(mode, monkeypatch):
    """The net always answers the code of one absolute chunk; all that the controller gives lies on it, at any state."""
    policy = make("relative", "flow", steps=2)
    target = actions(states(1), 1)[:, 0]
    chunk = target.expand(1, 4, -1)
    monkeypatch.setattr(
        policy.head, "sample", lambda net, noise, cond: policy.code(chunk.expand(len(noise), -1, -1), now)
    )
    monkeypatch.setattr(
        policy.head, "continue_chunk", lambda net, noise, cond, prefix: policy.head.sample(net, noise, cond)
    )
    controller = Controller(policy, execution=ExecutionConfig(mode))
    controller.reset(seed=1)
    for _ in range(5):
        now = {name: value[:1] for name, value in observations(1).items()}
        now = {name: value[:, -1:].expand(-1, 2, *value.shape[2:]) for name, value in now.items()}
        given = controller.step({name: value[0, -1].numpy() for name, value in now.items()})
        found = np.abs(difference(given, target[0].numpy(), ACTION))
        assert found.max() < 1e-4


def test_execution_clips_absolute_actions(monkeypatch):
    policy = make("relative")
    limits = replace(policy.spec.action, low=(-0.5,) * 6 + (0.0, -0.5), high=(0.5,) * 6 + (2.0, 0.5), wraps=None)
    policy.spec = replace(policy.spec, action=limits)
    controller = Controller(policy)
    controller.reset(seed=1)
    seen = observations(1)
    seen["state"][..., 1:3] = 7.0
    given = controller.step({name: value[0, -1].numpy() for name, value in seen.items()})
    assert given[:2].tolist() == [0.5, 0.5]
    assert controller.limits.counts[:2].tolist() == [1, 1]


def test_a_checkpoint_keeps_the_representation(provenance, tmp_path):
    for representation, statistics in (("relative", "step"), ("delta", "chunk"), ("absolute", "chunk")):
        policy, seen = make(representation, statistics=statistics), observations(4)
        policies.save(tmp_path / representation, policy, provenance, seen, {})
        loaded = policies.load(tmp_path / representation)
        assert loaded.config.action == policy.config.action
        assert loaded.spec.action == replace(ACTION, kind="action")
        noise = torch.randn(4, *policy.noise_shape)
        assert torch.equal(loaded.sample(seen, noise), policy.sample(seen, noise))
        other = loaded.with_head() if policy.config.head.sampling else loaded
        assert torch.equal(other.sample(seen, noise), policy.sample(seen, noise))


def test_a_configuration_from_before_means_numbers_as_they_are():
    data = asdict(make("absolute").config)
    del data["action"]
    before = policy_config(data)
    assert before.action.representation == "absolute"
    assert policies.Policy(before, SPEC).representation.choices == (0,) * 3 + (0,) * 6 + (3, 0)  # no sine and cosine
    with pytest.raises(ValueError, match=r"policy\.action has the unknown field 'anchor'"):
        policy_config(data | {"action": {"anchor": "state"}})


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_scores_compare_chunks_in_the_same_units(representation, monkeypatch):
    """One absolute plan, seen from two states, is one plan; stac compares it where it overlaps."""
    policy = make(representation, "flow", steps=2)
    watched = WatchedPolicy(policy, ["stac", "entropy"], samples=4)
    plan = actions(states(1), 6).expand(4, -1, -1) + torch.tensor([0.1] * 3 + [0.0] * 4 + [0.1]) * torch.randn(4, 1, 8)
    plan[..., 6] = 1
    for step, seen in enumerate((observations(1), observations(1))):
        rows = {name: value.expand(4, -1, -1) for name, value in seen.items()}
        code = policy.code(plan[:, 2 * step : 2 * step + 4], rows)
        monkeypatch.setattr(policy.head, "sample", lambda net, noise, cond, code=code: code[: len(noise)])
        watched.plan(
            {name: value.numpy() for name, value in seen.items()}, np.zeros((1, *policy.noise_shape), np.float32)
        )
    (first, _), (second, entropy) = watched.scores_ND
    assert first == 0
    assert second == pytest.approx(0, abs=1e-5)
    assert np.isfinite(entropy)


def test_the_loss_is_that_of_the_differences(monkeypatch):
    policy, seen = make("relative"), observations(5)
    action = actions(seen["state"][:, -1], 4)
    moved = {name: value.clone() for name, value in seen.items()}
    told: list[torch.Tensor] = []
    monkeypatch.setattr(policy.head, "loss", lambda net, x1, *_: told.append(x1) or x1.sum())
    policy.loss(policies.Batch(moved, action, torch.ones(5, 4, dtype=torch.bool)))
    assert torch.equal(told[0], policy.code(action, seen))
    first = told[0][..., 0] * policy.action_normalizer.scale[0] + policy.action_normalizer.shift[0]
    torch.testing.assert_close(first, action[..., 0] - seen["state"][:, -1:, 1], rtol=0, atol=1e-5)
