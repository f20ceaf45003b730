"""The drift head: its force against the energy score and against the papers' formula written out, and a Gaussian."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import Tensor, nn

from policies.conditioning import Conditioning
from policies.heads.drift import DriftConfig, DriftHead, drift
from policies.nets import NETS
from policies.nets.base import Modulation, Net

PAPERS = [0.02, 0.05, 0.2]  # temperatures
EITHER = pytest.mark.parametrize("temperatures", [[], PAPERS], ids=["distance", "softmax"])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_mask(rows: int, steps: int) -> Tensor:
    """Chunks with all their steps, one fewer, two fewer ..."""
    return torch.arange(steps) < steps - torch.arange(rows)[:, None] % steps


def distances(own: Tensor, x1: Tensor, mask: Tensor) -> Tensor:
    """Root mean square differences (B, G, G + 1) of samples to samples and to the chunk, row by row."""
    rows = []
    for b in range(len(x1)):
        mine, theirs = own[:, b, mask[b]].flatten(1), x1[None, b, mask[b]].flatten(1)
        rows.append(torch.cdist(mine, torch.cat([mine, theirs])) / math.sqrt(mine.shape[1]))
    return torch.stack(rows)


@pytest.mark.parametrize("shape", [(3, 5, 4, 2), (4, 4, 4, 4)])
def test_by_default_the_drift_is_the_descent_of_the_energy_score(shape):
    """E|x - y| - E|x - x'| / 2 (Gneiting & Raftery 2007), whose minimum is where the samples are distributed as y."""
    own, x1, mask = torch.randn(shape, requires_grad=True), torch.randn(shape[1:]), some_mask(*shape[1:3])
    G, B = shape[:2]
    score = torch.zeros(())
    for b in range(B):
        mine, theirs = own[:, b, mask[b]].flatten(1), x1[None, b, mask[b]].flatten(1)
        pairs = torch.pdist(mine).sum() / (G - 1)
        score = score + ((mine - theirs).norm(dim=1).sum() - pairs) * math.sqrt(mine.shape[1])
    scale = distances(own.detach(), x1, mask).sum() / (B * G * G)
    expected = -scale * torch.autograd.grad(score, own)[0]
    torch.testing.assert_close(drift(own.detach(), x1, mask, []), expected)


@pytest.mark.parametrize("temperatures", [[0.3], PAPERS])
@pytest.mark.parametrize("shape", [(3, 5, 4, 2), (4, 4, 4, 4)])
def test_with_temperatures_the_drift_is_algorithm_2(shape, temperatures):
    """Deng 2026, written with absolute positions and loops over samples, in place of differences."""
    own, x1 = torch.randn(shape, dtype=torch.float64), torch.randn(shape[1:], dtype=torch.float64)
    G, B = shape[:2]
    mask = torch.ones(shape[1:3], dtype=torch.bool)
    distance = distances(own, x1, mask).numpy()
    scale = distance.sum() / (B * G * G)
    points = torch.cat([own, x1[None]]).flatten(2).transpose(0, 1).numpy()  # (B, G + 1, D)
    expected = np.zeros((G, B, points.shape[-1]))
    for temperature in temperatures:
        move = np.zeros_like(expected)
        for b in range(B):
            logits = -distance[b] / scale / temperature - 1e9 * np.eye(G, G + 1)
            weight = np.sqrt(softmax(logits, axis=0) * softmax(logits, axis=1))
            for i in range(G):
                near, there = weight[i, :G], weight[i, G]
                move[i, b] = there * near.sum() * points[b, G] - there * (near @ points[b, :G])
        expected += move * scale / np.sqrt((move**2).mean()) / len(temperatures)
    actual = drift(own, x1, mask, temperatures).flatten(2)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-6, atol=1e-9)


@EITHER
def test_the_drift_does_not_depend_on_the_units_or_the_length_of_a_chunk(temperatures):
    own, x1, mask = torch.randn(3, 5, 4, 2), torch.randn(5, 4, 2), some_mask(5, 4)
    move = drift(own, x1, mask, temperatures)
    torch.testing.assert_close(drift(7 * own, 7 * x1, mask, temperatures), 7 * move, rtol=1e-4, atol=1e-4)
    shifted = drift(own + 3, x1 + 3, mask, temperatures)
    torch.testing.assert_close(shifted, move, rtol=1e-3, atol=1e-4)
    twice = drift(own.repeat(1, 1, 2, 1), x1.repeat(1, 2, 1), mask.repeat(1, 2), temperatures)
    torch.testing.assert_close(twice, move.repeat(1, 1, 2, 1), rtol=1e-4, atol=1e-5)
    assert move.square().mean().sqrt() > 0.1
    assert torch.all(move[:, ~mask] == 0)


@EITHER
def test_a_chunk_without_steps_that_count_changes_nothing(temperatures):
    own, x1, mask = torch.randn(3, 6, 4, 2), torch.randn(6, 4, 2), some_mask(6, 4)
    mask[2] = False
    rest = [0, 1, 3, 4, 5]
    move = drift(own, x1, mask, temperatures)
    torch.testing.assert_close(move[:, rest], drift(own[:, rest], x1[rest], mask[rest], temperatures))
    assert torch.all(move[:, 2] == 0)
    assert torch.all(drift(own, x1, torch.zeros_like(mask), temperatures) == 0)


@EITHER
def test_samples_that_coincide_move_together_to_the_chunk(temperatures):
    """As they do at the start, where a net is zero."""
    x1 = torch.randn(5, 4, 2)
    move = drift(torch.zeros(3, 5, 4, 2), x1, torch.ones(5, 4, dtype=torch.bool), temperatures)
    torch.testing.assert_close(move, move[:1].expand_as(move))
    cosine = torch.cosine_similarity(move[0].flatten(1), x1.flatten(1))
    torch.testing.assert_close(cosine, torch.ones(5))
    arrived = drift(x1.expand(3, -1, -1, -1), x1, torch.ones(5, 4, dtype=torch.bool), temperatures)
    assert torch.all(arrived == 0)


def two_ways(share: float, *rows: int) -> Tensor:
    """Chunks of two steps near +1 with this probability, else near -1."""
    way = 2.0 * (torch.rand(*rows, 1, 1) < share) - 1
    return way + 0.05 * torch.randn(*rows, 2, 1)


def mean_drifts(of_samples: float, of_chunks: float, temperatures: list[float]) -> Tensor:
    """Mean force on the samples of either way, in mean distances, with one chunk for every four samples."""
    own, x1 = two_ways(of_samples, 4, 40_000), two_ways(of_chunks, 40_000)
    mask = torch.ones(x1.shape[:2], dtype=torch.bool)
    move = drift(own, x1, mask, temperatures) / distances(own[:, :1000], x1[:1000], mask).sum() * 16_000
    return torch.stack([move[own < 0].mean(), move[own > 0].mean()])


def test_the_mean_force_of_single_chunks_vanishes_at_the_right_proportions():
    """A sample at one way is drawn to the other with p - q: p of the chunks and q of the samples are there."""
    for of_samples, of_chunks in ((0.3, 0.3), (0.4, 0.3), (0.2, 0.3), (0.8, 0.8)):
        expected = torch.full((2,), of_chunks - of_samples)
        torch.testing.assert_close(mean_drifts(of_samples, of_chunks, []), expected, atol=0.02, rtol=0)
    # The papers' temperatures do not reach from one way to the other: wrong proportions stay.
    assert mean_drifts(0.5, 0.3, PAPERS).abs().max() < 0.03


class Affine(Net):
    """A generator of Gaussians: noise W + b."""

    def __init__(self, size: int):
        super().__init__()
        self.layer = nn.Linear(size, size)
        self.times: list[Tensor] = []

    def prepare(self, t: Tensor, cond: Conditioning, per_action: bool = False) -> Modulation:
        self.times.append(t)
        return Modulation(cond.vector_BE)

    def forward(self, x_BTA: Tensor, modulation: Modulation) -> Tensor:
        return (self.layer(x_BTA.flatten(1)) + modulation.timed).view_as(x_BTA)


def test_a_gaussian_is_learned_with_its_mean_and_covariance():
    head, net, generator = DriftHead(DriftConfig(samples=4), 4), Affine(4), seeded(0)
    root = torch.randn(4, 4) * 0.4 + 0.5 * torch.eye(4)
    mean, mask = torch.randn(4), torch.ones(256, 2, dtype=torch.bool)
    optimizer = torch.optim.Adam(net.parameters(), 0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for _ in range(400):
        cond = torch.randn(256, 4, generator=generator)
        x1 = cond + mean + torch.randn(256, 4, generator=generator) @ root.T
        optimizer.zero_grad()
        head.loss(net, x1.view(256, 2, 2), Conditioning(cond), mask, generator).backward()
        optimizer.step()
        schedule.step()
    weight = net.layer.weight.detach()
    torch.testing.assert_close(net.layer.bias.detach(), mean, atol=0.05, rtol=0)
    covariance = root @ root.T
    torch.testing.assert_close(weight @ weight.T, covariance, atol=0.1 * covariance.max().item(), rtol=0)


@EITHER
def test_the_loss_is_the_mean_square_of_the_drift_and_its_descent_follows_it(temperatures):
    head, net = DriftHead(DriftConfig(samples=3, temperatures=temperatures), 8), Affine(8)
    cond, x1, mask = torch.randn(5, 8), torch.randn(5, 4, 2), some_mask(5, 4)
    loss = head.loss(net, x1, Conditioning(cond), mask, seeded(0))
    noise = torch.randn(3, 5, 4, 2, generator=seeded(0))
    own = torch.stack([net(z, Modulation(cond)) for z in noise])
    move = drift(own.detach(), x1, mask, temperatures)
    count = 3 * 2 * mask.sum()
    torch.testing.assert_close(loss, move.square().sum() / count)
    bias = torch.autograd.grad(loss, net.layer.bias)[0]
    torch.testing.assert_close(bias, -2 * move.flatten(2).sum(dim=(0, 1)) / count)
    assert [t.tolist() for t in net.times] == [[0.0] * 5]
    chunks = head.sample(net, noise[0], Conditioning(cond))
    torch.testing.assert_close(chunks, own[0])
    assert net.times[1].tolist() == [0.0] * 5


def test_less_noise_is_the_same_net_with_less_noise(tiny, randomize):
    net = NETS["mlp"][1](tiny(NETS, "mlp"), (4, 2), 8)
    randomize(net)
    cond, noise = torch.randn(5, 8), torch.randn(5, 4, 2)
    half, none, whole = (DriftHead(DriftConfig(noise=factor), 8) for factor in (0.5, 0.0, 1.0))
    assert torch.equal(half.sample(net, noise, Conditioning(cond)), whole.sample(net, noise / 2, Conditioning(cond)))
    assert torch.equal(none.sample(net, noise, Conditioning(cond)), none.sample(net, -noise, Conditioning(cond)))
    x1, mask = torch.randn(5, 4, 2), some_mask(5, 4)
    assert torch.equal(
        half.loss(net, x1, Conditioning(cond), mask, seeded(0)),
        whole.loss(net, x1, Conditioning(cond), mask, seeded(0)),
    )


@EITHER
def test_half_precision_reaches_the_net_only(tiny, randomize, temperatures):
    """Under autocast the net computes in bf16; distances, which are differences of near numbers, do not."""
    head, net = DriftHead(DriftConfig(temperatures=temperatures), 8), NETS["mlp"][1](tiny(NETS, "mlp"), (4, 2), 8)
    randomize(net)
    cond, x1, mask = torch.randn(64, 8), torch.randn(64, 4, 2), some_mask(64, 4)
    full = head.loss(net, x1, Conditioning(cond), mask, seeded(0))
    with torch.autocast("cpu", torch.bfloat16):
        half = head.loss(net, x1, Conditioning(cond), mask, seeded(0))
        own = torch.randn(3, 64, 4, 2)
        inside = drift(own, x1, mask, temperatures)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(full.item(), rel=0.05)
    assert torch.equal(inside, drift(own, x1, mask, temperatures))
    half.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 1}, r"head.samples=1 must lie in 2\.\.1000: a sample alone has nothing to repel it"),
        ({"samples": 1001}, r"head.samples=1001 must lie in 2\.\.1000"),
        ({"noise": 1.5}, r"head.noise=1.5 must lie in 0\.\.1"),
        ({"noise": -0.1}, r"head.noise=-0.1 must lie in 0\.\.1"),
        ({"temperatures": [0.1, 0.0]}, r"head.temperatures=\[0.1, 0.0\] must all lie in 0.0001..10000"),
        ({"temperatures": [math.nan]}, r"head.temperatures=\[nan\] must all lie in 0.0001..10000"),
        ({"temperatures": [math.inf]}, r"head.temperatures=\[inf\] must all lie in 0.0001..10000"),
    ],
)
def test_a_wrong_option_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        DriftConfig(**options)
