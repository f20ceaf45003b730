"""The consistency head: its boundary, its loss and its times against what is computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from policies.conditioning import Conditioning
from policies.heads.consistency import ConsistencyConfig, ConsistencyHead
from policies.heads.mean_flow import TIME_SCALE
from policies.nets import NETS
from policies.nets.base import Modulation, Net

SHAPE = (3, 2)  # of a chunk
SIZE = SHAPE[0] * SHAPE[1]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class ByHand(Net):
    """Gives `rule(x, t, cond)` plus a bias to learn, and notes the times that it was asked for."""

    def __init__(self, rule):
        super().__init__()
        self.rule, self.bias, self.times = rule, nn.Parameter(torch.zeros(())), []

    def prepare(self, t: Tensor, cond: Conditioning, per_action: bool = False) -> Modulation:
        return Modulation(torch.cat([t[..., None] / TIME_SCALE, cond.vector_BE.expand(*t.shape, -1)], dim=-1))

    def forward(self, x_BTA: Tensor, modulation: Modulation) -> Tensor:
        self.times.append(modulation.timed[:, 0].detach())
        return self.rule(x_BTA, modulation.timed[:, :1, None], modulation.timed[:, 1:].view_as(x_BTA)) + self.bias


def skip(t: np.ndarray | float, spread: float) -> np.ndarray | float:
    """Share of x itself in f: t where the noise is far below the spread, 0 where it is far above."""
    return t / (1 + ((1 - t) / spread) ** 2)


@pytest.mark.parametrize("net", NETS)
def test_the_boundary_holds_bit_for_bit(tiny, randomize, net):
    """f(x, 1) = x whatever the weights; at the other end f is what the net gives, and so is a sample."""
    head, module = ConsistencyHead(ConsistencyConfig(), 5), NETS[net][1](tiny(NETS, net), (4, 3), 5)
    randomize(module)
    x, cond = torch.randn(6, 4, 3), torch.randn(6, 5)
    assert torch.equal(head.end(module, x, torch.ones(6), Conditioning(cond)), x)
    zero = torch.zeros(6)
    plain = module(x, module.prepare(zero, Conditioning(cond)))
    assert (plain - x).abs().max() > 0.1
    assert torch.equal(head.end(module, x, zero, Conditioning(cond)), plain)
    assert torch.equal(head.sample(module, x, Conditioning(cond)), plain)


@pytest.mark.parametrize("spread", [0.1, 0.5])
def test_the_share_of_the_noisy_chunk(spread):
    """What is left of 1 is the net's."""
    head, net = ConsistencyHead(ConsistencyConfig(spread=spread), SIZE), ByHand(lambda x, t, cond: 7.0 + 0 * x)
    x, t = torch.randn(5, *SHAPE), torch.tensor([0.1, 0.5, 0.8, 0.95, 0.999])
    share = np.asarray(skip(t.numpy().astype(np.float64), spread))[:, None, None]
    end = head.end(net, x, t, Conditioning(torch.zeros(5, SIZE))).detach().numpy()
    np.testing.assert_allclose(end, share * x.numpy() + (1 - share) * 7, rtol=1e-4, atol=1e-5)
    assert (np.diff(share[:, 0, 0]) > 0).all()


def test_the_exact_solution_of_a_single_chunk_has_no_loss():
    """One right chunk: every trajectory ends there. Beside that solution there is a loss, which points back."""
    head, rows = ConsistencyHead(ConsistencyConfig(intervals=16), SIZE), 200

    def rule(x: Tensor, t: Tensor, chunk: Tensor) -> Tensor:
        share = t * 0.01 / (0.01 + (1 - t) ** 2)
        return (chunk - share * x) / (1 - share).clamp(min=1e-6)

    net, chunks = ByHand(rule), torch.randn(rows, SIZE)
    mask = torch.ones(rows, SHAPE[0], dtype=torch.bool)
    losses, gradients = [], []
    for value in (-0.3, 0.0, 0.3):
        net.bias.data.fill_(value)
        loss = head.loss(net, chunks.view(rows, *SHAPE), Conditioning(chunks), mask, seeded(0))
        losses.append(loss.item())
        gradients.append(torch.autograd.grad(loss, net.bias)[0].item())
    assert losses[1] < 1e-5
    assert min(losses[0], losses[2]) > 1e-3
    assert gradients[0] < -1e-3 < 1e-3 < gradients[2]
    torch.testing.assert_close(
        head.sample(net, torch.randn(rows, *SHAPE), Conditioning(chunks)).flatten(1), chunks + 0.3
    )


def test_the_exact_solution_of_a_gaussian_gives_that_gaussian():
    """f(x, t) = mean + sd (x - t mean) / sd(t): from the noise mean + sd noise, and the same from any later time."""
    head, rows, spread = ConsistencyHead(ConsistencyConfig(), SIZE), 50, 0.5

    def rule(x: Tensor, t: Tensor, mean: Tensor) -> Tensor:
        end = mean + spread * (x - t * mean) / (t**2 * spread**2 + (1 - t) ** 2).sqrt()
        share = t * 0.01 / (0.01 + (1 - t) ** 2)
        return (end - share * x) / (1 - share)

    net, noise, mean = ByHand(rule), torch.randn(rows, *SHAPE), torch.randn(rows, SIZE)
    expected = mean.view_as(noise) + spread * noise
    torch.testing.assert_close(head.sample(net, noise, Conditioning(mean)), expected)
    t = 0.9 * torch.rand(rows, 1, 1)
    later = t * mean.view_as(noise) + (t**2 * spread**2 + (1 - t) ** 2).sqrt() * noise
    torch.testing.assert_close(head.end(net, later, t[:, 0, 0], Conditioning(mean)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("huber", [0.01, 1.0])
@pytest.mark.parametrize(("intervals", "index"), [(64, 20), (8, 7)])
def test_the_loss_and_its_gradient_are_those_computed_by_hand(huber, intervals, index):
    """At one known time (a spread of 0 in its draw), for a net that gives a constant; the end ahead is not moved."""
    inside = (index + 0.5) / intervals
    options = {"intervals": intervals, "huber": huber, "log_mean": math.log((1 - inside) / inside), "log_std": 1e-6}
    head, net = ConsistencyHead(ConsistencyConfig(**options), SIZE), ByHand(lambda x, t, cond: 0.5 + 0 * x)
    x1, mask = torch.randn(9, *SHAPE), torch.arange(3) < 1 + torch.arange(9)[:, None] % 3
    loss = head.loss(net, x1, Conditioning(torch.zeros(9, SIZE)), mask, seeded(3))
    (gradient,) = torch.autograd.grad(loss, net.bias)
    generator = seeded(3)
    torch.randn(9, generator=generator)
    x0 = torch.randn(x1.shape, generator=generator).numpy().astype(np.float64)
    data, keep = x1.numpy().astype(np.float64), mask.numpy()
    t, r = index / intervals, (index + 1) / intervals

    def end(time: float) -> np.ndarray:
        share = skip(time, 0.1)
        return share * (time * data + (1 - time) * x0) + (1 - share) * 0.5

    difference = end(t) - end(r)
    size = np.sqrt((difference**2).mean(axis=-1) + huber**2)
    assert loss.item() == pytest.approx(intervals * (size - huber)[keep].mean(), rel=1e-4)
    slope = (1 - skip(t, 0.1)) * difference.mean(axis=-1) / size
    assert gradient.item() == pytest.approx(intervals * slope[keep].mean(), rel=1e-3)
    assert [times.unique().tolist() for times in net.times] == [[pytest.approx(t)], [pytest.approx(r)]]


def test_training_times_are_log_normal_noise_levels():
    head, net = ConsistencyHead(ConsistencyConfig(intervals=8), SIZE), ByHand(lambda x, t, cond: 0 * x)
    rows = 20_000
    head.loss(
        net,
        torch.zeros(rows, *SHAPE),
        Conditioning(torch.zeros(rows, SIZE)),
        torch.ones(rows, 3, dtype=torch.bool),
        seeded(0),
    )
    here, ahead = net.times
    torch.testing.assert_close(ahead, here + 1 / 8)
    counts = torch.bincount((8 * here).round().long(), minlength=8)
    edges = np.arange(1, 8) / 8  # log((1-t)/t) ~ N(-0.4, 2^2) falls with t
    below = np.concatenate([[0.0], stats.norm.sf(np.log((1 - edges) / edges), -0.4, 2.0), [1.0]])
    assert stats.chisquare(counts.numpy(), rows * np.diff(below)).pvalue > 1e-3


def test_one_evaluation():
    head, net = ConsistencyHead(ConsistencyConfig(), SIZE), ByHand(lambda x, t, cond: x)
    head.sample(net, torch.randn(4, *SHAPE), Conditioning(torch.zeros(4, SIZE)))
    assert head.evaluations == len(net.times) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"intervals": 1}, r"head.intervals=1 must lie in 2\.\.10000"),
        ({"intervals": 10_001}, r"head.intervals=10001 must lie in 2\.\.10000"),
        ({"huber": 0.0}, "head.huber=0.0 must lie in"),
        ({"spread": -0.1}, "head.spread=-0.1 must lie in"),
        ({"log_std": 0.0}, "head.log_std=0.0 must lie in"),
        ({"log_std": math.nan}, "head.log_std=nan must lie in"),
    ],
)
def test_a_wrong_option_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        ConsistencyConfig(**options)
