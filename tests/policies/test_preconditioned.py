"""Preconditioning on every path: against diffusers, against closed forms, and one model in three heads."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from scipy import integrate as quadrature
from scipy import stats
from torch import Tensor

from policies.conditioning import Conditioning
from policies.generation.paths import (
    PATHS,
    Coefficients,
    read,
    readings,
    sample_log_ratio,
    scale,
    time_at,
    to_data,
    to_noise,
    to_velocity,
)
from policies.heads.diffusion import DiffusionConfig, DiffusionHead
from policies.heads.edm import EDMConfig, EDMHead, exploding
from policies.heads.flow import FlowConfig, FlowHead
from policies.nets.base import Modulation, Net

COND = 4
PARTS = {"edm": (EDMConfig, EDMHead), "flow": (FlowConfig, FlowHead), "diffusion": (DiffusionConfig, DiffusionHead)}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("edm", {}),
    ("flow", {"path": "linear"}),
    ("flow", {"path": "cosine"}),
    ("diffusion", {"train_steps": 1000}),
]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(kind: str, **options: Any) -> EDMHead | FlowHead | DiffusionHead:
    config, head = PARTS[kind]
    if kind != "edm":
        options = {"prediction": "preconditioned", "time": "log_normal", **options}
    return head(config(**options), COND)


def points(path: str) -> Coefficients:
    """Seven points; edm's are levels from 0.01 to 50."""
    if path == "edm":
        return exploding(torch.logspace(-2, 1.7, 7, dtype=torch.float64))
    return PATHS[path](torch.linspace(0.05, 0.97, 7, dtype=torch.float64))


@pytest.mark.parametrize("path", ["edm", *PATHS])
@pytest.mark.parametrize("spread", [1.0, 0.5])
def test_the_denoiser_is_that_of_diffusers_at_the_same_ratio_of_noise_to_signal(path, spread):
    theirs, c = EDMEulerScheduler(sigma_data=spread), points(path)
    for i, reading in enumerate(readings("preconditioned", c, spread)):
        x_t, output = torch.randn(2, 5, 3, dtype=torch.float64)
        alpha, sigma = c.alpha[i], c.sigma[i]
        shown = theirs.precondition_inputs(x_t / alpha, sigma / alpha)
        torch.testing.assert_close(x_t / reading.scale, shown)
        denoised = theirs.precondition_outputs(x_t / alpha, output, sigma / alpha)
        torch.testing.assert_close(read(reading.data, x_t, output), denoised)
        # Data and noise make up x_t, and the velocity follows from them.
        noise = read(reading.noise, x_t, output)
        torch.testing.assert_close(alpha * denoised + sigma * noise, x_t)
        velocity = c.d_alpha[i] * denoised + c.d_sigma[i] * noise
        torch.testing.assert_close(read(reading.velocity, x_t, output), velocity)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("prediction", ["velocity", "data", "noise"])
def test_other_predictions_are_read_as_they_are_converted(path, prediction):
    c = points(path)
    for i, reading in enumerate(readings(prediction, c, 0.3)):
        here = Coefficients(*(part[i] for part in (c.alpha, c.sigma, c.d_alpha, c.d_sigma)))
        x_t, output = torch.randn(2, 5, 3, dtype=torch.float64)
        assert reading.scale == 1
        for weights, to in ((reading.data, to_data), (reading.noise, to_noise), (reading.velocity, to_velocity)):
            torch.testing.assert_close(read(weights, x_t, output), to(prediction, output, x_t, here))


@pytest.mark.parametrize("path", PATHS)
def test_it_is_finite_at_both_ends(path):
    """Pure noise says nothing of the data, which may then be anything of their spread; the data are what they are."""
    noise, data = readings("preconditioned", PATHS[path](torch.tensor([0.0, 1.0], dtype=torch.float64)), 0.5)
    assert (noise.scale, *noise.data) == pytest.approx((1.0, 0.0, 0.5))
    assert data.scale == pytest.approx(0.5)
    assert data.data == pytest.approx((1.0, 0.0), abs=1e-12)
    assert all(map(math.isfinite, (*noise.velocity, *data.velocity)))


@pytest.mark.parametrize("path", PATHS)
def test_the_time_of_a_ratio_has_that_ratio(path):
    log_ratio = torch.linspace(-8, 8, 33, dtype=torch.float64)
    c = PATHS[path](time_at(path, log_ratio))
    torch.testing.assert_close((c.sigma / c.alpha).log(), log_ratio)


def test_the_noise_of_training_is_log_normal_with_a_share_of_uniform_times():
    mean, std, share = -2.0, 0.7, 0.3
    found = sample_log_ratio((50, 400), mean, std, share, torch.zeros(1), seeded(0))
    assert found.shape == (50, 400)

    def cdf(x, share=share):
        """A uniform time t has ln((1 - t) / t) below x as often as t is above 1 / (1 + e^x)."""
        return (1 - share) * stats.norm.cdf(x, mean, std) + share * stats.logistic.cdf(x)

    assert stats.kstest(found.flatten().numpy(), cdf).pvalue > 0.01
    assert stats.kstest(found.flatten().numpy(), lambda x: cdf(x, 0.25)).pvalue < 1e-6
    plain = sample_log_ratio((20_000,), mean, std, 0.0, torch.zeros(1), seeded(0))
    assert stats.kstest(plain.numpy(), stats.norm(mean, std).cdf).pvalue > 0.01


def test_no_setting_starves_either_end():
    """With the default guard, noise four spreads off to either side is still taught in one row of a hundred."""
    guard = FlowConfig().uniform_share
    assert guard == DiffusionConfig().uniform_share > 0
    for mean in (-6.0, 6.0):
        times = time_at("linear", sample_log_ratio((100_000,), mean, 0.5, guard, torch.zeros(1), seeded(0)))
        for low, high in ((0, 0.1), (0.45, 0.55), (0.9, 1)):
            assert ((times >= low) & (times <= high)).float().mean() > 0.008


class Silent(Net):
    """Answers zero, and notes what it is shown."""

    def prepare(self, t: Tensor, cond: Conditioning, per_action: bool = False) -> Modulation:
        return Modulation(t[..., None])

    def forward(self, x_BTA: Tensor, modulation: Modulation) -> Tensor:
        self.shown = x_BTA
        return torch.zeros_like(x_BTA)


@pytest.mark.parametrize(("kind", "options"), CASES)
@pytest.mark.parametrize("spread", [1.0, 0.4])
def test_what_a_net_sees_and_must_answer_has_unit_variance(kind, options, spread):
    for log_mean in (-3.0, 0.0, 2.0):
        head, net = (
            make(kind, sigma_data=spread, log_mean=log_mean, log_std=0.3, uniform_share=0.0, **options),
            Silent(),
        )
        x1, mask = spread * torch.randn(20_000, 2, 2), torch.ones(20_000, 2, dtype=torch.bool)
        assert head.loss(net, x1, Conditioning(torch.zeros(20_000, COND)), mask, seeded(0)).item() == pytest.approx(
            1, abs=0.02
        )
        assert net.shown.var().item() == pytest.approx(1, abs=0.02)


class Gaussian(Net):
    """The optimum for numbers from N(cond, s^2), shown x_t / scale at a time that tells the ratio."""

    def __init__(self, head: EDMHead | FlowHead | DiffusionHead, s: float, bias: float = 0.0):
        super().__init__()
        self.head, self.s, self.bias = head, s, bias

    def points(self, t: Tensor) -> Coefficients:
        if isinstance(self.head, EDMHead):
            return exploding((4 * t).exp())
        if isinstance(self.head, FlowHead):
            return self.head.path(t)
        alpha, sigma = self.head.table[:, (self.head.config.train_steps * (1 - t) - 1).round().long()]
        return Coefficients(alpha, sigma, sigma, -alpha)

    def prepare(self, t: Tensor, cond: Conditioning, per_action: bool = False) -> Modulation:
        return Modulation(torch.cat([t[..., None], cond.vector_BE.expand(*t.shape, -1)], dim=-1))

    def forward(self, x_BTA: Tensor, modulation: Modulation) -> Tensor:
        c, mean, spread = self.points(modulation.timed[:, :1]), modulation.timed[:, 1:], self.head.config.sigma_data
        size = scale(c, spread)
        away = (x_BTA.flatten(1) * size - c.alpha * mean) / (c.alpha**2 * self.s**2 + c.sigma**2)
        data, noise = mean + c.alpha * self.s**2 * away, c.sigma * away
        return ((c.sigma / spread * data - c.alpha * spread * noise) / size + self.bias).view_as(x_BTA)


@pytest.mark.parametrize(("kind", "options"), CASES)
@pytest.mark.parametrize(("spread", "share"), [(1.0, 0.0), (0.5, 0.3)])
def test_the_loss_of_the_optimum_is_one_closed_form_in_every_head(kind, options, spread, share):
    """The variance of the data given r = sigma / alpha, by 1 / c_out^2 (Karras 2022), averaged over the noise."""
    s, mean, std, rows = 0.7, -0.8, 1.1, 40_000
    head = make(kind, sigma_data=spread, log_mean=mean, log_std=std, uniform_share=share, **options)

    def weighted(log_ratio: float) -> float:
        v = math.exp(2 * log_ratio)
        density = (1 - share) * stats.norm.pdf(log_ratio, mean, std) + share * stats.logistic.pdf(log_ratio)
        return s**2 * v / (s**2 + v) * (v + spread**2) / (v * spread**2) * density

    expected = quadrature.quad(weighted, -14, 14, limit=200)[0]
    centre = torch.randn(rows, COND)
    x1 = (centre + s * torch.randn(rows, COND)).view(rows, 2, 2)
    for bias in (0.0, 0.7):
        loss = head.loss(
            Gaussian(head, s, bias), x1, Conditioning(centre), torch.ones(rows, 2, dtype=torch.bool), seeded(0)
        )
        assert loss.item() == pytest.approx(expected + bias**2, rel=0.02)
