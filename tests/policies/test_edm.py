"""The EDM head against diffusers' scheduler, and against Gaussians, whose optimum is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from scipy import integrate as quadrature
from scipy import stats
from torch import Tensor

from policies.conditioning import Conditioning
from policies.heads.edm import EDMConfig, EDMHead
from policies.nets.base import Modulation, Net

COND = 3


class Wavy(Net):
    """A fixed smooth function that notes the chunks and times it was asked about."""

    def __init__(self, size: int):
        super().__init__()
        self.mix = torch.randn(size, size, dtype=torch.float64) / size**0.5
        self.asked: list[tuple[Tensor, Tensor]] = []

    def prepare(self, t: Tensor, cond: Conditioning, per_action: bool = False) -> Modulation:
        return Modulation(torch.cat([t[..., None], cond.vector_BE.expand(*t.shape, -1)], dim=-1))

    def forward(self, x_BTA: Tensor, modulation: Modulation) -> Tensor:
        self.asked.append((x_BTA, modulation.timed[:, 0]))
        return torch.sin(x_BTA.flatten(1) @ self.mix + modulation.timed.sum(dim=1, keepdim=True)).view_as(x_BTA)


@pytest.mark.parametrize("shape", [(5, 3, 2), (4, 4, 4)])
@pytest.mark.parametrize(
    ("steps", "options"),
    [(1, {}), (2, {}), (5, {}), (9, {"sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 5.0})],
)
def test_sampling_is_algorithm_1_with_the_levels_and_the_denoiser_of_diffusers(shape, steps, options):
    """In float64: in theirs x - denoised loses digits at small noise."""
    head, net = EDMHead(EDMConfig(steps=steps, **options), COND).double(), Wavy(shape[1] * shape[2])
    c = head.config
    theirs = EDMEulerScheduler(c.sigma_min, c.sigma_max, c.sigma_data, rho=c.rho)
    theirs.set_timesteps(steps)
    levels = torch.tensor(head.levels, dtype=torch.float64)
    torch.testing.assert_close(theirs.sigmas, levels.float(), rtol=1e-6, atol=0)
    theirs.sigmas = levels
    noise, cond = torch.randn(shape, dtype=torch.float64), torch.randn(shape[0], COND, dtype=torch.float64)

    def slope(x: Tensor, i: int) -> Tensor:
        sigma = theirs.sigmas[i]
        prepared = net.prepare(theirs.precondition_noise(sigma).expand(len(x)), Conditioning(cond))
        denoised = theirs.precondition_outputs(x, net(theirs.precondition_inputs(x, sigma), prepared), sigma)
        return (x - denoised) / sigma

    x = noise * theirs.sigmas[0]
    for i in range(steps):  # Karras 2022, Algorithm 1
        d, h = slope(x, i), theirs.sigmas[i + 1] - theirs.sigmas[i]
        following = x + h * d
        if theirs.sigmas[i + 1] != 0:
            following = x + h * (d + slope(following, i + 1)) / 2
        x = following
    expected, net.asked = net.asked, []
    ours = head.sample(net, noise, Conditioning(cond))
    assert len(net.asked) == len(expected) == head.evaluations == 2 * steps - 1
    for mine, other in zip(net.asked, expected, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours, x, atol=1e-5, rtol=1e-5)


class GaussianNet(Net):
    """The optimum for chunks drawn from N(cond, covariance), behind the preconditioning of Karras 2022, Table 1."""

    def __init__(self, sigma_data: float, covariance: Tensor, bias: float = 0.0):
        super().__init__()
        self.sigma_data, self.bias = sigma_data, bias
        self.values, self.vectors = torch.linalg.eigh(covariance.double())

    def prepare(self, t: Tensor, cond: Conditioning, per_action: bool = False) -> Modulation:
        return Modulation(torch.cat([t[..., None], cond.vector_BE.expand(*t.shape, -1)], dim=-1).double())

    def forward(self, x_BTA: Tensor, modulation: Modulation) -> Tensor:
        mean, sigma, data = modulation.timed[:, 1:], (4 * modulation.timed[:, :1]).exp(), self.sigma_data
        x = x_BTA.flatten(1).double() * (sigma**2 + data**2).sqrt()
        denoised = mean + (x - mean) @ self.vectors * self.values / (self.values + sigma**2) @ self.vectors.T
        c_skip = data**2 / (sigma**2 + data**2)
        c_out = sigma * data / (sigma**2 + data**2).sqrt()
        return ((denoised - c_skip * x) / c_out + self.bias).view_as(x_BTA).to(x_BTA.dtype)


@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
def test_the_optimum_for_a_gaussian_gives_that_gaussian(sigma_data):
    """It is affine in the noise, so that zero and the unit vectors give the mean and the covariance exactly.

    The error falls with the second order of Heun's method: against the flow from the largest noise, 20, to the
    smallest, 0.02, and what is denoised there, for the last step is Euler's however many there are.
    """
    root, mean = torch.randn(6, 6) * 0.4, torch.randn(6, dtype=torch.float64)
    covariance = (root @ root.T + 0.2 * torch.eye(6)).double()
    noise = torch.cat([torch.zeros(1, 3, 2), torch.eye(6).view(6, 3, 2)]).double()
    net = GaussianNet(sigma_data, covariance)
    values, vectors = torch.linalg.eigh(covariance)
    shrink = values / ((values + 0.02**2) * (values + 20**2)).sqrt()
    exact = mean + (20 * noise.flatten(1) - mean) @ (vectors * shrink) @ vectors.T
    counts, errors, chunks = [32, 64, 128, 256], [], torch.empty(0)
    for steps in counts:
        head = EDMHead(EDMConfig(steps=steps, sigma_data=sigma_data), COND).double()
        chunks = head.sample(net, noise, Conditioning(mean.expand(7, -1))).flatten(1)
        errors.append((chunks - exact).abs().max().item())
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(2, abs=0.15)
    torch.testing.assert_close(chunks[0], mean, atol=0.1, rtol=0)
    moved = chunks[1:] - chunks[0]
    torch.testing.assert_close(moved.T @ moved, covariance, atol=0.02 * covariance.max().item(), rtol=0)


@pytest.mark.parametrize(("sigma_data", "log_mean", "log_std"), [(1.0, -1.2, 1.2), (0.5, -0.4, 1.0)])
def test_the_loss_of_the_optimum_is_its_closed_form(sigma_data, log_mean, log_std):
    """Var(x1 | x) weighted by 1 / c_out^2, for data N(m, s^2), averaged over the noise levels."""
    s, rows = 0.7, 20_000
    head = EDMHead(EDMConfig(sigma_data=sigma_data, log_mean=log_mean, log_std=log_std), COND)
    mean = torch.randn(rows, 4)
    x1 = (mean + s * torch.randn(rows, 4)).view(rows, 2, 2)
    mask = torch.ones(rows, 2, dtype=torch.bool)

    def weighted(log_sigma: float) -> float:
        v = math.exp(2 * log_sigma)
        error = s**2 * v / (s**2 + v) * (v + sigma_data**2) / (v * sigma_data**2)
        return error * stats.norm.pdf(log_sigma, log_mean, log_std)

    expected = quadrature.quad(weighted, log_mean - 8 * log_std, log_mean + 8 * log_std)[0]
    for bias in (0.0, 0.7):  # a constant error adds its square
        net = GaussianNet(sigma_data, s**2 * torch.eye(4), bias)
        loss = head.loss(net, x1, Conditioning(mean), mask, torch.Generator().manual_seed(0)).item()
        assert loss == pytest.approx(expected + bias**2, rel=0.02)


class Silent(Wavy):
    """Answers zero."""

    def forward(self, x_BTA: Tensor, modulation: Modulation) -> Tensor:
        return 0 * super().forward(x_BTA, modulation)


def test_input_and_target_have_unit_variance_at_every_level():
    """A net that answers zero has loss 1 on data of the stated spread, whatever the levels."""
    for sigma_data, log_mean in ((1.0, -4.0), (1.0, 3.0), (0.5, -1.2)):
        head = EDMHead(EDMConfig(sigma_data=sigma_data, log_mean=log_mean, log_std=0.1), COND)
        net = Silent(4)
        net.mix = net.mix.float()
        x1 = sigma_data * torch.randn(20_000, 2, 2)
        mask = torch.ones(20_000, 2, dtype=torch.bool)
        assert head.loss(net, x1, Conditioning(torch.zeros(20_000, COND)), mask, None).item() == pytest.approx(
            1, abs=0.02
        )
        assert net.asked[0][0].var().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "head.steps=0 must lie in 1..1000"),
        ({"sigma_data": 0.0}, "head.sigma_data=0.0 must lie in 0.001..1000"),
        ({"sigma_min": -1.0}, "head.sigma_min=-1.0 must lie in 1e-06"),
        ({"rho": math.nan}, "head.rho=nan must lie in"),
        ({"log_std": 0.0}, "head.log_std=0.0 must lie in"),
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "head.sigma_max=1.0 must be larger than head.sigma_min=2.0"),
    ],
)
def test_a_wrong_option_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        EDMConfig(**options)
