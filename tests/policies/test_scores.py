"""Scores against closed forms: Gaussians, double loops, polynomials."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from policies.monitor.density import Density, DensityConfig, learn_density
from policies.monitor.scores import (
    SCORES,
    Acceleration,
    Decision,
    Entropy,
    LogpZ,
    LogpZO,
    acceleration,
    gaussian_entropy,
    mmd2,
)


def decision(chunks=None, earlier=None, interval=1, velocity=None, embedding=None) -> Decision:
    return Decision(
        torch.zeros(3) if embedding is None else embedding,
        torch.zeros(0, 4, 2) if velocity is None else velocity,
        torch.zeros(0, 4, 2) if chunks is None else chunks,
        earlier,
        0 if chunks is None else chunks.shape[1] - interval,
    )


class Gaussian(Density):
    """The exact velocity from N(0, std^2) to the standard normal distribution, along the straight path."""

    def __init__(self, mean: float, std: float):
        super().__init__(DensityConfig(), 3)
        self.m, self.s = mean, std

    def velocity(self, x_BE, t_B):
        t = t_B[:, None]
        variance = ((1 - t) * self.s) ** 2 + t**2
        away = (x_BE - (1 - t) * self.m) / variance
        return t * away - (self.m + (1 - t) * self.s**2 * away)


def test_the_integrated_density_of_a_gaussian_is_the_squared_distance_in_its_spreads():
    o = torch.tensor([[2.0, 2.0, 2.0], [2.5, 1.0, 4.0], [9.0, 2.0, -1.0]])
    exact = ((o - 2) / 0.5).square().sum(1)
    torch.testing.assert_close(Gaussian(2.0, 0.5).score(o, 2000), exact, rtol=5e-3, atol=1e-3)


def test_in_one_step_the_exact_velocity_scores_nothing_wherever_the_observation_lies():
    """What logpZO measures is the net's own error."""
    o = torch.tensor([[2.0, 2.0, 2.0], [900.0, -7.0, 0.0]])
    assert Gaussian(2.0, 0.5).score(o, 1).abs().max() < 1e-6


def test_the_density_does_not_depend_on_the_unit_of_the_embeddings():
    o = torch.randn(64, 3) * torch.tensor([5.0, 1.0, 0.0]) + 1
    one, other = (learn_density(unit * o, DensityConfig(width=8, steps=3)) for unit in (1.0, 1e-8))
    torch.testing.assert_close(other.score(1e-8 * o, 1), one.score(o, 1), rtol=1e-4, atol=1e-4)


def test_one_step_is_the_published_formula():
    density = learn_density(torch.randn(64, 3) * 5 + 1, DensityConfig(width=8, steps=3))
    o = torch.randn(7, 3)
    standard = (o - density.mean) / density.scale
    published = (standard + density.velocity(standard, torch.zeros(7))).square().sum(1)
    torch.testing.assert_close(density.score(o, 1), published)
    for cls, steps in ((LogpZO, 1), (LogpZ, 16)):
        assert cls()(decision(embedding=o[2]), density) == pytest.approx(float(density.score(o, steps)[2]), rel=1e-5)


def test_a_learned_density_tells_the_strange_from_the_common():
    """Embeddings on a circle, one feature constant: the centre is as strange as what lies outside."""

    def ring(count, radius):
        angle = torch.rand(count) * 2 * math.pi
        return torch.stack([radius * angle.cos(), 100 + 50 * radius * angle.sin(), torch.full((count,), 7.0)], dim=1)

    density = learn_density(ring(2000, 1.0), DensityConfig(width=64, steps=500))
    common, outside = ring(200, 1.0), ring(200, 4.0)
    for steps in (1, 16):
        assert (density.score(outside, steps).min() > density.score(common, steps).quantile(0.95)).all()


def test_a_density_is_a_function_of_its_data_and_seed():
    o, config = torch.randn(50, 4), DensityConfig(width=8, steps=5)
    before = torch.get_rng_state()
    one, same = learn_density(o, config), learn_density(o, config)
    assert (torch.get_rng_state() == before).all()
    other = learn_density(o, DensityConfig(width=8, steps=5, seed=1))
    probe = torch.randn(3, 4)
    assert torch.equal(one.score(probe, 1), same.score(probe, 1))
    assert not torch.equal(one.score(probe, 1), other.score(probe, 1))
    assert not any(p.requires_grad for p in one.parameters())


@pytest.mark.parametrize(
    ("field", "value"), [("width", 0), ("steps", 0), ("batch_size", 0), ("learning_rate", 0.0), ("learning_rate", 1.0)]
)
def test_density_options_out_of_range(field, value):
    with pytest.raises(ValueError, match=f"density.{field}={value}"):
        DensityConfig(**{field: value})


@pytest.mark.parametrize(("n", "m"), [(8, 8), (5, 3), (2, 2)])
def test_mmd_is_the_double_loop(n, m):
    rng = np.random.default_rng(n)
    a, b = rng.standard_normal((n, 6)), rng.standard_normal((m, 6)) + 0.5
    both = np.concatenate([a, b])
    distances = [np.linalg.norm(both[i] - both[j]) for i in range(n + m) for j in range(i)]
    bandwidth = np.median(distances)

    def mean(x, y):
        return np.mean([[math.exp(-sum((p - q) ** 2) / (2 * bandwidth**2)) for q in y] for p in x])

    expected = mean(a, a) + mean(b, b) - 2 * mean(a, b)
    assert float(mmd2(torch.tensor(a), torch.tensor(b))) == pytest.approx(expected, rel=1e-4)


def test_mmd_of_equal_sets_is_zero_and_grows_with_the_distance():
    a = torch.randn(8, 10)
    assert float(mmd2(a, a[torch.randperm(8)])) == pytest.approx(0, abs=1e-6)
    assert float(mmd2(a[:1].expand(8, -1), a[:1].expand(8, -1))) == 0  # no spread at all
    apart = [float(mmd2(a, a + shift)) for shift in (0.5, 1.0, 3.0)]
    assert apart == sorted(apart)
    for unit in (1e-12, 1e12):
        assert float(mmd2(unit * a, unit * (a + 1))) == pytest.approx(apart[1], rel=1e-4)


def test_stac_compares_the_same_control_steps():
    earlier = torch.randn(8, 6, 2)
    now = torch.randn(8, 6, 2)
    now[:, :4] = earlier[:, 2:]
    stac = SCORES["stac"]()
    assert stac(decision(now, earlier, 2), None) == pytest.approx(0, abs=1e-6)
    assert stac(decision(now, earlier, 1), None) > 0.01
    assert stac(decision(now, earlier, 6), None) == 0  # nothing overlaps
    assert stac(decision(now), None) == 0  # the first decision


def test_entropy_is_that_of_independent_gaussians():
    std = torch.tensor([[0.1, 1.0], [3.0, 0.02], [1.0, 1.0]])
    chunks = torch.randn(20_000, 3, 2) * std + 5
    expected = (0.5 * (2 * math.pi * math.e * std.square()).log()).mean()
    assert float(gaussian_entropy(chunks)) == pytest.approx(float(expected), abs=0.02)
    assert Entropy()(decision(chunks), None) == float(gaussian_entropy(chunks))
    certain = float(gaussian_entropy(torch.ones(8, 3, 2)))
    assert certain == pytest.approx(0.5 * math.log(2 * math.pi * math.e * 1e-6))


def test_acceleration_of_straight_and_of_bent_ways():
    times = (torch.arange(5) / 5).view(5, 1, 1)
    bend = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    assert float(acceleration(torch.full((5, 2, 2), 3.0))) == 0
    expected = float(bend.square().mean().sqrt())
    assert Acceleration()(decision(velocity=times * bend + 7), None) == pytest.approx(expected, rel=1e-5)
