"""Discrete parts of an action: there and back, for every head, through training, checkpoint and controller."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import policies
from flowhand.contracts.features import MOST_CHOICES, Feature
from flowhand.control.controller import Controller
from policies import Batch
from policies.action_codec import ActionCodec, require_choices
from policies.generation.prefix import Prefix
from policies.heads import HEADS

CHOICES = (0, 2, 3, 0)  # a gripper, a tool of three, between two velocities
MIXED = Feature((4,), "float32", "", choices=CHOICES)


@pytest.fixture
def spec(spec):
    """Replaces the fixture of conftest.py, so that its `make_policy` makes policies of mixed actions."""
    return replace(spec, action=MIXED)


def mixed_actions(*shape: int) -> torch.Tensor:
    dimensions = [torch.randint(n, shape).float() if n else 5 * torch.randn(shape) + 2 for n in CHOICES]
    return torch.stack(dimensions, dim=-1)


@pytest.fixture
def make_mixed(make_policy, monkeypatch):
    """`make_mixed(**options)`: a policy fitted on mixed actions."""
    fit = policies.Policy.fit_normalizers
    monkeypatch.setattr(
        policies.Policy,
        "fit_normalizers",
        lambda self, observation, action, last=None: fit(self, observation, mixed_actions(200)),
    )
    return make_policy


def test_the_code_is_what_the_page_says():
    code = ActionCodec(CHOICES).encode(torch.tensor([[0.5, 0.0, 1.0, -3.0], [0.1, 1.0, 2.0, 4.0]]))
    assert code.tolist() == [[0.5, -1, -1, 1, -1, -3], pytest.approx([0.1, 1, -1, -1, 1, 4])]


def test_decoding_undoes_encoding_and_survives_noise():
    codec, action = ActionCodec(CHOICES), mixed_actions(50, 7)
    code = codec.encode(action)
    assert code.shape == (50, 7, codec.size)
    assert torch.equal(codec.decode(code), action)
    discrete = torch.tensor([n > 0 for n in CHOICES])
    noisy = codec.decode(code + 0.99 * (2 * torch.rand_like(code) - 1))
    assert torch.equal(noisy[..., discrete], action[..., discrete])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_choice_comes_out_exactly_whatever_the_net_computes_in(dtype):
    n = MOST_CHOICES
    chosen = torch.randperm(n)[:300]
    code = torch.cat([torch.randn(300, 1), 2.0 * torch.nn.functional.one_hot(chosen, n) - 1], dim=-1)
    codec = ActionCodec((0, n))
    assert codec.decode(code.to(dtype))[:, 1].tolist() == chosen.tolist()


@pytest.mark.parametrize("head", HEADS)
def test_every_head_gives_the_largest_column_in_bf16(make_mixed, spec, monkeypatch, head):
    """More choices than bfloat16 has integers; numpy looks for the largest in the code that the head gives."""
    n = 1000
    choices = Feature((2,), "float32", "", choices=(0, n))
    config = make_mixed(head=head).config
    policy = policies.Policy(config, replace(spec, action=choices))
    for weight in policy.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    observation = {name: torch.randn(40, f.size) for name, f in spec.observation.items()}
    monkeypatch.undo()
    policy.fit_normalizers(observation, torch.stack([torch.randn(40), torch.randint(n, (40,)).float()], dim=-1))
    codes: list[torch.Tensor] = []
    sample = policy.head.sample
    monkeypatch.setattr(policy.head, "sample", lambda *given: codes.append(sample(*given)) or codes[0])
    history = policy.chunk.history
    rows = {name: torch.randn(20, history, f.size) for name, f in spec.observation.items()}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        action = policy.sample(rows, torch.randn(20, *policy.noise_shape))
    expected = codes[0].float().numpy()[..., 1:].argmax(-1)
    assert len(np.unique(expected)) > 5
    np.testing.assert_array_equal(action[..., 1].float().numpy(), expected)


def test_without_choices_nothing_is_touched():
    codec, action = ActionCodec((0, 0, 0)), torch.randn(5, 3)
    assert codec.encode(action) is action
    assert codec.decode(action) is action


@pytest.mark.parametrize("head", [h if h == "flow" else pytest.param(h, marks=pytest.mark.slow) for h in HEADS])
def test_every_head_learns_choices(make_mixed, head):
    """One window with random choices, seen again and again, comes out as it was."""
    torch.manual_seed(0)
    policy = make_mixed(head=head, random_weights=False, width=32)
    chunk = policy.chunk
    observation = {n: torch.zeros(1, chunk.history, *f.shape) for n, f in policy.spec.observation.items()}
    action = mixed_actions(1, chunk.prediction_horizon)
    rows = {name: value.expand(64, *value.shape[1:]) for name, value in observation.items()}
    batch = Batch(rows, action.expand(64, -1, -1), torch.ones(64, chunk.prediction_horizon, dtype=torch.bool))
    optimizer = torch.optim.Adam(policy.parameters(), 1e-2, fused=True)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 200)
        policy.loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        sampled = policy.sample(batch.observation, torch.randn(64, *policy.noise_shape))
    discrete = torch.tensor([n > 0 for n in CHOICES])
    assert sampled.shape == batch.action.shape
    right = (sampled == batch.action)[..., discrete].float().mean()
    assert right > 0.97, f"{right:.3f} of the choices are right"


def test_a_sampled_choice_is_always_a_choice(make_mixed, make_batch):
    policy = make_mixed()
    observation = make_batch(policy, 32).observation
    with torch.no_grad():
        action = policy.sample(observation, torch.randn(32, *policy.noise_shape)).flatten(0, 1)
    require_choices(CHOICES, action)
    assert len(action[:, 2].unique()) == 3


def test_a_prefix_is_given_in_choices(make_mixed, make_batch):
    policy = make_mixed()
    observation, noise = make_batch(policy, 3).observation, torch.randn(3, *policy.noise_shape)
    horizon = policy.chunk.prediction_horizon
    count = torch.full((3,), horizon)
    with torch.no_grad():
        action = policy.sample(observation, noise, Prefix(mixed_actions(3, horizon), count, count, "identity"))
    require_choices(CHOICES, action.flatten(0, 1))


def test_a_checkpoint_keeps_the_choices(make_mixed, make_batch, provenance, tmp_path):
    policy = make_mixed().eval()
    batch = make_batch(policy, 5)
    policies.save(tmp_path / "checkpoint", policy, provenance, batch.observation, {})
    loaded = policies.load(tmp_path / "checkpoint")
    assert loaded.spec.action.choices == CHOICES
    noise = torch.randn(5, *policy.noise_shape)
    assert torch.equal(loaded.sample(batch.observation, noise), policy.sample(batch.observation, noise))
    controller = Controller(loaded)
    controller.reset(seed=1)
    action = controller.step({name: value[0, 0].numpy() for name, value in batch.observation.items()})
    assert action.shape == (4,)
    assert action[1] in (0, 1)
    assert action[2] in (0, 1, 2)


@pytest.mark.parametrize(("dimension", "value", "shown"), [(1, 2.0, "2"), (2, 0.5, "0.5"), (2, -1.0, "-1")])
def test_demonstrations_with_something_else_are_refused(make_mixed, monkeypatch, dimension, value, shown):
    policy = make_mixed()
    monkeypatch.undo()
    action = mixed_actions(20)
    action[7, dimension] = value
    observation = {name: torch.randn(20, f.size) for name, f in policy.spec.observation.items()}
    with pytest.raises(ValueError, match=f"action dimension {dimension} has .* control step 7 has {shown}$"):
        policy.fit_normalizers(observation, action)


@pytest.mark.parametrize(
    "choices", [(1, 0, 0, 0), (2, 2), (-2, 0, 0, 0), (2.0, 0, 0, 0), (10**9, 0, 0, 0), (True, 0, 0, 0)]
)
def test_impossible_choices_are_refused(choices):
    with pytest.raises(ValueError, match=re.escape(f"feature choices {choices} must be 4 integers")):
        replace(MIXED, choices=choices)


def test_an_observation_has_no_choices(spec):
    with pytest.raises(ValueError, match="the observation 'state' has choices"):
        replace(spec, observation={"state": replace(spec.observation["state"], choices=(0, 0, 2))})


def test_the_statistics_leave_choices_alone(make_mixed):
    normalizer = make_mixed().action_normalizer
    assert normalizer.shift[1:3].tolist() == [0, 0]
    assert normalizer.scale[1:3].tolist() == [1, 1]
    np.testing.assert_allclose(normalizer.scale[[0, 3]], 5, rtol=0.2)
