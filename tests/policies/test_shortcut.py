"""The shortcut head against Gaussians, whose flow is known over any length, and its two half steps by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from policies.conditioning import Conditioning
from policies.heads.shortcut import PREDICTIONS, ShortcutConfig, ShortcutHead
from policies.nets import NETS
from policies.nets.base import Modulation, Net

SHAPE = (3, 2)  # of a chunk
SIZE = SHAPE[0] * SHAPE[1]
VARIANCE = 0.25  # of the demonstrated chunks around their mean


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class LastPlace(nn.Module):
    """Stands in for the embedding of a step's length: leaves it readable, at the end of the conditioning."""

    def forward(self, level: Tensor) -> Tensor:
        return torch.cat([torch.zeros(*level.shape, SIZE), level[..., None]], dim=-1)


class ByHand(Net):
    """Gives `rule(x, t, length)`, and notes the times and lengths that it was asked for."""

    def __init__(self, rule, finest: int):
        super().__init__()
        self.rule, self.finest, self.asked = rule, finest, []

    def prepare(self, t: Tensor, cond: Conditioning, per_action: bool = False) -> Modulation:
        return Modulation(torch.cat([t[..., None], cond.vector_BE.expand(*t.shape, -1)], dim=-1))

    def forward(self, x_BTA: Tensor, modulation: Modulation) -> Tensor:
        t, mean, level = modulation.timed[:, 0], modulation.timed[:, 1:-1], modulation.timed[:, -1]
        length = 0.5 ** (level * self.finest)
        self.asked.append((t, length))
        return self.rule(x_BTA, t[:, None, None], length[:, None, None], mean.view_as(x_BTA))


def make(rule, **options) -> tuple[ShortcutHead, ByHand]:
    head = ShortcutHead(ShortcutConfig(**options), SIZE + 1)
    head.length = LastPlace()  # pyright: ignore[reportAttributeAccessIssue]
    return head, ByHand(rule, head.config.halvings)


def sd(t: Tensor) -> Tensor:
    """Standard deviation of x_t."""
    return (t**2 * VARIANCE + (1 - t) ** 2).sqrt()


def exact(prediction: str, bias: float = 0.0):
    """The optimum: a step along the flow to N(mean, VARIANCE), which keeps every number at its quantile."""

    def rule(x: Tensor, t: Tensor, length: Tensor, mean: Tensor) -> Tensor:
        ahead = (t + length) * mean + sd(t + length) / sd(t) * (x - t * mean)
        velocity = (ahead - x) / length + bias
        return velocity if prediction == "velocity" else x + (1 - t) * velocity

    return rule


def situations(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Conditioning (the means), demonstrated chunks, and a full mask."""
    mean = torch.randn(rows, SIZE)
    x1 = (mean + math.sqrt(VARIANCE) * torch.randn(rows, SIZE)).view(rows, *SHAPE)
    return torch.cat([mean, torch.zeros(rows, 1)], dim=-1), x1, torch.ones(rows, SHAPE[0], dtype=torch.bool)


def test_two_half_steps_are_those_computed_by_hand():
    """Frans 2024, Eq. 4: the mean of the velocities here and where a step of that length leads."""
    head, net = make(lambda x, t, length, mean: 2 * x + t + 3 * length, prediction="velocity", halvings=4)
    x, t, halvings = torch.randn(5, *SHAPE), torch.tensor([0, 1, 2, 3, 0]) / 4, torch.tensor([3, 3, 4, 2, 1])
    bootstrap = head.two_steps(net, x, t, halvings, Conditioning(torch.zeros(5, SIZE + 1)))
    assert not bootstrap.requires_grad
    for row in range(5):
        here, time, length = x[row].numpy().astype(np.float64), t[row].item(), 0.5 ** halvings[row].item()
        first = 2 * here + time + 3 * length
        second = 2 * (here + length * first) + time + length + 3 * length
        np.testing.assert_allclose(bootstrap[row].numpy(), (first + second) / 2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_step_of_the_exact_flow_is_two_of_half_its_length(prediction):
    """Nothing is left to learn there; the two steps of a net that is off by a constant are off by it too."""
    rows = 300
    cond, x, _ = situations(rows)
    halvings = torch.arange(rows) % 7
    t = (torch.rand(rows) * 2**halvings).floor() / 2**halvings
    head, net = make(exact(prediction), prediction=prediction)
    bootstrap = head.two_steps(net, x, t, halvings + 1, Conditioning(cond))
    torch.testing.assert_close(bootstrap, head.shortcut(net, x, t, halvings, Conditioning(cond)), atol=2e-3, rtol=1e-3)
    assert (bootstrap - head.shortcut(net, x, t, halvings + 1, Conditioning(cond))).abs()[halvings == 0].mean() > 0.1


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_any_number_of_steps_of_the_exact_flow_gives_the_gaussian(prediction, steps):
    """mean + sd noise, each sample by itself, in as many evaluations as steps, each with its own time and length."""
    head, net = make(exact(prediction), prediction=prediction, steps=steps)
    cond, noise, _ = situations(50)
    chunks = head.sample(net, noise, Conditioning(cond))
    expected = cond[:, :-1] + math.sqrt(VARIANCE) * noise.flatten(1)
    torch.testing.assert_close(chunks.flatten(1), expected, atol=1e-4, rtol=1e-4)
    assert head.evaluations == len(net.asked) == steps
    for k, (t, length) in enumerate(net.asked):
        assert (t == k / steps).all()
        torch.testing.assert_close(length, torch.full((50,), 1 / steps))


@pytest.mark.parametrize("share", [0.25, 0.6])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_of_the_optimum_is_its_closed_form(prediction, share):
    """Var(x1 - x0 | x_t) = var / sd(t)^2 over the grid of times where it learns the flow, and 0 where it bootstraps.

    A constant error of the velocity adds its square where it learns the flow, and nothing to the difference between
    one step and two.
    """
    rows, halvings = 20_000, 6
    cond, x1, mask = situations(rows)
    times = torch.arange(2**halvings) / 2**halvings
    for bias in (0.0, 0.7):
        rule = exact(prediction, bias)
        head, net = make(rule, prediction=prediction, halvings=halvings, bootstrap_share=share)
        weight = (1 - times) ** 2 if prediction == "data" else torch.ones_like(times)
        flow = (weight * (VARIANCE / sd(times) ** 2 + bias**2)).mean().item()
        # The second of two steps starts `length * bias` beside the first one's end.
        starts = [(torch.arange(2**k) / 2**k, 0.5 ** (k + 1)) for k in range(halvings)]
        beside = [
            ((1 - t) ** (2 if prediction == "data" else 0) * (bias * growth(t + half, half) * half / 2) ** 2).mean()
            for t, half in starts
        ]
        expected = (1 - share) * flow + share * float(np.mean([value.item() for value in beside]))
        assert head.loss(net, x1, Conditioning(cond), mask, seeded(0)).item() == pytest.approx(expected, rel=0.02)


def growth(t: Tensor, length: float) -> Tensor:
    """Derivative in x of the exact velocity of a step from t."""
    return (sd(t + length) / sd(t) - 1) / length


def test_times_and_lengths_of_a_training_batch():
    """A step of length d starts at a multiple of d; what bootstraps is drawn from all lengths but the shortest."""
    rows, halvings = 4000, 3
    head, net = make(exact("data"), halvings=halvings, bootstrap_share=0.3)
    cond, x1, mask = situations(rows)
    head.loss(net, x1, Conditioning(cond), mask, seeded(0))
    (t, length), (first, half), (second, same) = net.asked
    assert torch.equal(t / length, (t / length).round())
    assert t.min() >= 0
    assert (t + length).max() <= 1
    shares = [(length == 0.5**k).float().mean().item() for k in range(halvings + 1)]
    assert shares[-1] == pytest.approx(0.7, abs=1e-6)
    assert shares[:-1] == pytest.approx([0.1] * 3, abs=0.025)
    assert len(first) == len(second) == 0.3 * rows
    assert torch.equal(half, same)
    assert torch.equal(second, first + half)
    assert sorted((2 * half).tolist()) == sorted(length[length > 0.5**halvings].tolist())
    finest = t[length == 0.5**halvings]
    counts = torch.bincount((finest * 2**halvings).long(), minlength=2**halvings) / len(finest)
    torch.testing.assert_close(counts, torch.full((8,), 1 / 8), atol=0.03, rtol=0)


def test_the_length_of_a_step_is_conditioned_on(tiny, randomize):
    head, net = ShortcutHead(ShortcutConfig(), 4), NETS["mlp"][1](tiny(NETS, "mlp"), SHAPE, 4)
    for part in (head, net):
        randomize(part)
    x, t, cond = torch.randn(2, *SHAPE), torch.zeros(2), torch.randn(2, 4)
    outputs = [head.shortcut(net, x, t, torch.full((2,), level), Conditioning(cond)) for level in range(8)]
    for level in range(7):
        assert (outputs[level] - outputs[level + 1]).abs().max() > 1e-2


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_powers_of_two_are_valid_steps(steps):
    config = replace(ShortcutConfig(halvings=3), steps=steps)
    assert ShortcutHead(config, 1).evaluations == steps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction": "noise"}, "head.prediction='noise' is unknown; choices: velocity, data"),
        ({"time": "cosine"}, "head.time='cosine' is unknown; choices: uniform, beta, logit_normal"),
        ({"halvings": 0}, r"head.halvings=0 must lie in 1\.\.10"),
        ({"halvings": 11}, r"head.halvings=11 must lie in 1\.\.10"),
        ({"bootstrap_share": 0.0}, r"head.bootstrap_share=0.0 must lie inside \(0, 1\)"),
        ({"bootstrap_share": 1.0}, r"head.bootstrap_share=1.0 must lie inside \(0, 1\)"),
        ({"bootstrap_share": math.nan}, r"head.bootstrap_share=nan must lie inside \(0, 1\)"),
        ({"steps": 0}, "head.steps=0 must be one of 1, 2, 4, 8, 16, 32, 64, 128 with head.halvings=7"),
        ({"steps": 3}, "head.steps=3 must be one of 1, 2, 4, 8, 16, 32, 64, 128 with head.halvings=7"),
        ({"steps": 8, "halvings": 2}, "head.steps=8 must be one of 1, 2, 4 with head.halvings=2"),
    ],
)
def test_a_wrong_option_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        ShortcutConfig(**options)
