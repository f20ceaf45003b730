"""The diffusion head against the schedulers of diffusers, and against Gaussians, whose optimum is known."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_ddpm
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from scipy import stats
from torch import Tensor

import policies
from flowhand.contracts.execution import ExecutionConfig
from flowhand.contracts.strict import build
from flowhand.control.controller import Controller
from policies.conditioning import Conditioning
from policies.generation.grids import power, tabulated
from policies.generation.paths import PREDICTIONS
from policies.heads.diffusion import SAMPLERS, SPACINGS, DiffusionConfig, DiffusionHead, visited
from policies.nets.base import Modulation, Net
from tests.cases import some

COND = 3
THEIR_NAMES = {"noise": "epsilon", "data": "sample", "velocity": "v_prediction"}
UNCLIPPED = 1e9
THEIR_SPACINGS = ["trailing", "leading"]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def head(clip: float = UNCLIPPED, **options) -> DiffusionHead:
    config = DiffusionConfig(clip=1.0, **options)
    config.clip = clip  # beyond its bounds: a noise prediction without a clip makes numbers in the thousands
    return DiffusionHead(config, COND)


class Wavy(Net):
    """A fixed smooth function of chunk, time and conditioning that notes the chunks it was asked about."""

    def __init__(self, chunk_shape: tuple[int, int]):
        super().__init__()
        size = chunk_shape[0] * chunk_shape[1]
        self.mix: Tensor
        self.cond: Tensor
        self.register_buffer("mix", torch.randn(size, size) / size**0.5)
        self.register_buffer("cond", torch.randn(COND, size))
        self.asked: list[Tensor] = []

    def prepare(self, t: Tensor, cond: Conditioning, per_action: bool = False) -> Modulation:
        return Modulation(torch.sin(5 * t)[..., None] + cond.vector_BE @ self.cond)

    def forward(self, x_BTA: Tensor, modulation: Modulation) -> Tensor:
        self.asked.append(x_BTA)
        return torch.sin(x_BTA.flatten(1) @ self.mix + modulation.timed).view_as(x_BTA)


def their_walk(scheduler, net: Wavy, noise: Tensor, cond: Tensor, T: int) -> Tensor:
    """Sampling as diffusers does it, with our net: their v-prediction is the velocity towards the noise."""
    x, sign = noise, -1 if scheduler.config.prediction_type == "v_prediction" else 1
    for k in scheduler.timesteps:
        output = net(x, net.prepare((1 - (k + 1) / T).expand(len(x)), Conditioning(cond)))
        x = scheduler.step(sign * output, k, x).prev_sample
    return x


def compare(head: DiffusionHead, scheduler, noise: Tensor, T: int) -> None:
    """Every chunk on the way and the last one are those of diffusers."""
    start = noise[:, 0] if head.config.sampler == "ddpm" else noise
    cond, net = torch.randn(len(noise), COND), Wavy((start.shape[1], start.shape[2]))
    theirs = their_walk(scheduler, net, start, cond, T)
    expected = [*net.asked, theirs]
    net.asked.clear()
    ours = head.sample(net, noise, Conditioning(cond))
    assert len(net.asked) == len(expected) - 1 == head.evaluations
    for mine, other in zip([*net.asked, ours], expected, strict=True):
        # Noise prediction makes numbers in the thousands where alpha = 5e-4.
        torch.testing.assert_close(mine, other, atol=1e-5 * max(1.0, other.abs().max().item()), rtol=0)


def exact(scheduler):
    """The scheduler with its table in float64: in float32 the last 1 - beta, 0.001, has only four digits.

    And of a product of 1,000 ratios only five are left.
    """
    T, rate = scheduler.config.num_train_timesteps, math.pi / 2 / 1.008
    ratios = [(math.cos(rate * ((k + 1) / T + 0.008)) / math.cos(rate * (k / T + 0.008))) ** 2 for k in range(T)]
    table = torch.tensor(ratios, dtype=torch.float64).clamp(min=0.001).cumprod(0)
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), table, rtol=1e-4, atol=0)
    scheduler.alphas_cumprod = table
    return scheduler


def options(prediction: str, clip: float | None = None) -> dict[str, Any]:
    """Their settings; DPM-Solver has no clip."""
    clipping = {} if clip is None else {"clip_sample": clip < UNCLIPPED, "clip_sample_range": clip}
    return {"prediction_type": THEIR_NAMES[prediction], "beta_schedule": "squaredcos_cap_v2", **clipping}


def their_scheduler(sampler: str, noise: Tensor, monkeypatch, **given):
    """The scheduler of diffusers, DDPM's with the variance of Diffusion Policy and our random numbers for its own."""
    if sampler == "ddim":
        return DDIMScheduler(**given)
    if sampler == "multistep":
        return DPMSolverMultistepScheduler(final_sigmas_type="zero", **given)
    # They also draw after the last step, with variance 0.
    draws = iter([*noise.unbind(1)[1:], torch.randn(noise[:, 0].shape)])
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: next(draws))
    return DDPMScheduler(variance_type="fixed_small", **given)


SPACED = [(sampler, spacing) for sampler in ("ddim", "ddpm", "multistep") for spacing in THEIR_SPACINGS]
GRID = [(100, steps) for steps in range(1, 21)] + [(100, 100), (60, 20), (40, 7), (50, 50), (1000, 10), (1000, 16)]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers calls np.array(tensor)
@pytest.mark.parametrize("clip", [1.0, pytest.param(UNCLIPPED, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("sampler", "spacing"), some(SPACED, [way for way in SPACED if way != ("ddpm", "leading")]))
def test_every_setting_is_that_of_diffusers_or_refused(monkeypatch, sampler, spacing, clip):
    """Whatever the number of steps, and with every kind of prediction."""
    compared, refused = 0, []
    for (T, steps), prediction in itertools.product(GRID, PREDICTIONS):
        ours = head(sampler=sampler, prediction=prediction, clip=clip, train_steps=T, steps=steps, spacing=spacing)
        try:
            ours.config.require_reference()
        except ValueError:
            refused.append((T, steps))
            continue
        if sampler == "multistep" and clip == 1:
            continue  # theirs does not clip
        rows, chunk_shape = (5, (3, 2)) if steps % 2 else (4, (4, 4))
        noise = torch.randn(rows, *ours.noise_shape(chunk_shape))
        given = {"num_train_timesteps": T, "timestep_spacing": spacing}
        given |= options(prediction, None if sampler == "multistep" else clip)
        scheduler = their_scheduler(sampler, noise, monkeypatch, **given)
        if T > 100 or (prediction == "noise" and clip == UNCLIPPED):
            exact(scheduler)
        scheduler.set_timesteps(steps)
        compare(ours, scheduler, noise, T)
        compared += 1
    uneven = [(T, steps) for T, steps in GRID if T % steps]
    expected = {("ddim", "trailing"): uneven, ("multistep", "leading"): GRID}.get((sampler, spacing), [])
    assert refused == [setting for setting in expected for _ in PREDICTIONS]
    assert compared == (0 if sampler == "multistep" and clip == 1 else 3 * (len(GRID) - len(expected)))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers calls np.array(tensor)
@pytest.mark.parametrize(("spacing", "steps"), [("power", 5), ("power", 20), ("tabulated", 1), ("tabulated", 8)])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_multistep_on_a_grid_is_that_of_diffusers_at_the_same_levels(prediction, spacing, steps):
    for T in (100, 1000):
        theirs = DPMSolverMultistepScheduler(final_sigmas_type="zero", num_train_timesteps=T, **options(prediction))
        scheduler = exact(theirs)
        scheduler.set_timesteps(timesteps=visited(spacing, T, steps))
        ours = head(sampler="multistep", prediction=prediction, train_steps=T, steps=steps, spacing=spacing)
        compare(ours, scheduler, torch.randn(4, 4, 4), T)


def test_a_stored_policy_divides_by_the_alpha_it_divided_by():
    """Until `least_alpha` was a field it was 0.0001, twice the least of 1,000 levels; none of 100 is as small."""
    given = {"prediction": "noise", "train_steps": 1000, "steps": 1, "clip": 1.0, "spacing": "trailing"}
    new = DiffusionConfig(**given)
    before = build(DiffusionConfig, {n: v for n, v in asdict(new).items() if n != "least_alpha"}, "head")
    least = math.sqrt(0.001) * math.cos(math.pi / 2 / 1.008 * 1.007) / math.cos(math.pi / 2 / 1.008 * 0.008)

    class Almost(Wavy):
        def forward(self, x_BTA: Tensor, modulation: Modulation) -> Tensor:
            return x_BTA * (1 - 3e-5)

    noise = torch.linspace(0.3, 0.9, 16).view(1, 4, 4)
    for config, alpha in ((new, least), (before, 1e-4)):
        found = DiffusionHead(config, COND).sample(Almost((4, 4)), noise, Conditioning(torch.zeros(1, COND)))
        torch.testing.assert_close(found, noise * 3e-5 / alpha, rtol=5e-3, atol=0)


def test_a_setting_that_leaves_the_reference_is_for_stored_policies_only(make_policy, provenance, make_batch, tmp_path):
    new = make_policy(head="diffusion")
    stored = policies.Policy(replace(new.config, head=replace(new.config.head, steps=7)), new.spec)
    stored.load_state_dict(new.state_dict())
    policies.save(tmp_path / "checkpoint", stored, provenance, make_batch(stored).observation, {})
    loaded = policies.load(tmp_path / "checkpoint")
    assert loaded.with_head().head.evaluations == 7
    message = r"head.steps=7 with .* must divide head.train_steps=100: 1, 2, 4, 5, 10, 20, 25, 50, 100; head.sampler="
    with pytest.raises(ValueError, match=message):
        new.with_head(steps=7)
    with pytest.raises(ValueError, match=r"head.sampler='dpmpp_2m' takes head.spacing='trailing', got 'leading'"):
        new.with_head(sampler="dpmpp_2m", spacing="leading")
    with pytest.raises(ValueError, match=message):
        loaded.fit_normalizers({"state": torch.randn(9, 3), "goal": torch.randn(9, 2)}, torch.randn(9, 2))
    assert loaded.with_head(sampler="dpmpp_2m").head.evaluations == 7


@pytest.mark.parametrize("T", [1, 7, 100])
@pytest.mark.parametrize("spacing", THEIR_SPACINGS)
def test_the_levels_are_those_of_diffusers(spacing, T):
    scheduler = DDPMScheduler(num_train_timesteps=T, timestep_spacing=spacing)
    for steps in range(1, T + 1):
        ours = visited(spacing, T, steps)
        assert len(set(ours)) == len(ours) == steps
        assert min(ours) >= 0
        scheduler.set_timesteps(steps)
        # np.arange may give one value too many, and its sums fall to either side of a half.
        wholes = [i for i in range(steps) if 2 * T * (steps - i) % (2 * steps) != steps]
        assert [ours[i] for i in wholes] == [scheduler.timesteps[i] for i in wholes]


class GaussianNet(Net):
    """The optimum for chunks drawn from N(cond, covariance), given a noisy chunk and t."""

    def __init__(self, head: DiffusionHead, covariance: Tensor, bias: float = 0.0):
        super().__init__()
        self.head, self.covariance, self.bias = head, covariance, bias
        T = head.config.train_steps
        self.alpha_bar = DDPMScheduler(num_train_timesteps=T, beta_schedule="squaredcos_cap_v2").alphas_cumprod

    def prepare(self, t: Tensor, cond: Conditioning, per_action: bool = False) -> Modulation:
        return Modulation(torch.cat([t[..., None], cond.vector_BE.expand(*t.shape, -1)], dim=-1))

    def forward(self, x_BTA: Tensor, modulation: Modulation) -> Tensor:
        mean, T = modulation.timed[:, 1:], self.head.config.train_steps
        alpha_bar = self.alpha_bar[(T * (1 - modulation.timed[:, 0]) - 1).round().long()].double()[:, None]
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        values, vectors = torch.linalg.eigh(self.covariance.double())
        centred = (x_BTA.flatten(1) - alpha * mean) @ vectors / (alpha_bar * values + 1 - alpha_bar)
        data = mean + (alpha * values * centred) @ vectors.T
        noise = (sigma * centred) @ vectors.T
        outputs = {"data": data, "noise": noise, "velocity": sigma * data - alpha * noise}
        return (outputs[self.head.config.prediction] + self.bias).view_as(x_BTA).to(x_BTA.dtype)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_optimum_for_a_gaussian_gives_that_gaussian(sampler, prediction):
    """It is affine in the noise, so that zero and the unit vectors give the mean and the covariance exactly."""
    steps, (horizon, action) = 400 if sampler == "ddpm" else 200, (3, 2)
    root = torch.randn(6, 6) * 0.4
    covariance, mean = root @ root.T + 0.2 * torch.eye(6), torch.randn(6)
    ours = head(sampler=sampler, prediction=prediction, train_steps=steps, steps=steps)
    shape = ours.noise_shape((horizon, action))
    noise = torch.cat([torch.zeros(1, *shape), torch.eye(math.prod(shape)).unflatten(1, shape)])
    chunks = ours.sample(GaussianNet(ours, covariance), noise, Conditioning(mean.expand(len(noise), -1))).flatten(1)
    torch.testing.assert_close(chunks[0], mean, atol=0.01, rtol=0)
    moved = chunks[1:] - chunks[0]
    torch.testing.assert_close(moved.T @ moved, covariance, atol=0.02 * covariance.max().item(), rtol=0)


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("multistep", 2)])
def test_the_error_falls_with_the_order_of_the_sampler(sampler, order):
    """On levels uniform in log(alpha / sigma), against the flow of a Gaussian, which keeps every axis's quantile."""
    root = torch.randn(6, 6) * 0.4
    values, vectors = torch.linalg.eigh((root @ root.T + 0.2 * torch.eye(6)).double())
    mean, noise = torch.randn(6, dtype=torch.float64), torch.randn(50, 3, 2, dtype=torch.float64)
    counts, errors = [16, 32, 64, 128], []
    for steps in counts:
        log_ratio = torch.linspace(-3, 3, steps + 1, dtype=torch.float64)
        alpha, sigma = (2 * log_ratio).sigmoid().sqrt(), (-2 * log_ratio).sigmoid().sqrt()
        levels = [*zip(alpha.tolist(), sigma.tolist(), strict=True)]
        ours = head(sampler=sampler, train_steps=steps, steps=steps)
        ours.updates = [SAMPLERS[sampler](levels, i) for i in range(steps)]
        ours.table = torch.stack([alpha, sigma])[:, :-1].flip(1)  # index 0 is next to the data
        net = GaussianNet(ours, (vectors * values) @ vectors.T)
        net.alpha_bar = ours.table[0] ** 2
        size = (alpha**2 * values[:, None] + sigma**2).sqrt()
        moved = (noise.flatten(1) - alpha[0] * mean) @ vectors * (size[:, -1] / size[:, 0])
        chunks = ours.sample(net, noise, Conditioning(mean.expand(50, -1))).flatten(1)
        errors.append((chunks - alpha[-1] * mean - moved @ vectors.T).abs().max().item())
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_of_the_optimum_is_its_closed_form(prediction):
    """Var(target | x_t) for data N(m, s^2), averaged over the noise levels."""
    s, rows = 0.5, 20_000
    ours = head(prediction=prediction)
    mean = torch.randn(rows, 4)
    x1 = (mean + s * torch.randn(rows, 4)).view(rows, 2, 2)
    net = GaussianNet(ours, s**2 * torch.eye(4))
    a = net.alpha_bar.double()
    share = {"data": 1 - a, "noise": a, "velocity": torch.ones_like(a)}[prediction]
    expected = (share * s**2 / (a * s**2 + 1 - a)).mean().item()
    mask = torch.ones(rows, 2, dtype=torch.bool)
    for bias in (0.0, 0.7):  # a constant error adds its square
        net.bias = bias
        assert ours.loss(net, x1, Conditioning(mean), mask, seeded(0)).item() == pytest.approx(
            expected + bias**2, rel=0.02
        )


@pytest.fixture
def ddpm(make_policy) -> policies.Policy:
    return make_policy(head="diffusion", sampler="ddpm", steps=3)


def test_ddpm_takes_all_its_noise_beforehand(ddpm, make_batch):
    """And uses all of it, row by row."""
    assert ddpm.noise_shape == (3, 4, 2)
    observation, noise = make_batch(ddpm, 5).observation, torch.randn(5, 3, 4, 2)
    state = torch.get_rng_state()
    with torch.no_grad():
        chunks = ddpm.sample(observation, noise)
        assert torch.equal(ddpm.sample(observation, noise), chunks)
        for draw in range(3):
            other = noise.clone()
            other[2, draw] += 1
            changed = (ddpm.sample(observation, other) != chunks).any(dim=(1, 2))
            assert changed.tolist() == [False, False, True, False, False]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("shape", [(5, 4, 2), (5, 2, 4, 2), (5, 3, 2, 4)])
def test_noise_of_another_shape_is_an_error(ddpm, make_batch, shape):
    with pytest.raises(ValueError, match=r"noise has shape \(5, .*expected \(rows, \*\(3, 4, 2\)\)"):
        ddpm.sample(make_batch(ddpm, 5).observation, torch.randn(shape))


def test_the_controller_gives_each_decision_its_noise(ddpm):
    observation = {"state": np.ones(3, np.float32), "goal": np.ones(2, np.float32)}
    asked = []
    sample = ddpm.sample
    ddpm.sample = lambda o, noise: asked.append(noise) or sample(o, noise)
    free = ExecutionConfig(clip=False)  # random weights answer beyond the bounds
    alone, beside = (Controller(ddpm, inference_batch=2, execution=free) for _ in range(2))
    asked.clear()  # what proves that rows are computed alike
    alone.reset(0, seed=4)
    beside.reset(7, seed=9)
    beside.reset(0, seed=4)
    for _ in range(4):
        together = beside.act({7: observation, 0: observation})
        assert np.array_equal(alone.act({0: observation})[0], together[0])
        assert not np.array_equal(together[0], together[7])
    assert {tuple(noise.shape) for noise in asked} == {(beside.inference_batch, 3, 4, 2)}


def test_a_checkpoint_keeps_all_the_noise_of_its_golden_action(ddpm, make_batch, provenance, tmp_path):
    policies.save(tmp_path / "checkpoint", ddpm, provenance, make_batch(ddpm).observation, {})
    loaded = policies.load(tmp_path / "checkpoint")
    assert asdict(loaded.config) == asdict(ddpm.config)
    observation, noise = make_batch(ddpm).observation, torch.randn(4, 3, 4, 2)
    with torch.no_grad():
        assert torch.equal(loaded.sample(observation, noise), ddpm.sample(observation, noise))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction": "score"}, "head.prediction='score' is unknown; choices: velocity, data, noise, preconditioned"),
        ({"sampler": "euler"}, "head.sampler='euler' is unknown; choices: ddim, ddpm, multistep, dpmpp_2m"),
        ({"spacing": "linspace"}, "head.spacing='linspace' is unknown; choices: trailing, leading, power, tabulated"),
        ({"spacing": "tabulated", "steps": 17}, "a tabulated grid for 1 to 16 steps, got 17; take the grid 'power'"),
        ({"time": "beta"}, "head.time='beta' is unknown; choices: uniform, log_normal"),
        ({"log_std": 0.0}, "head.log_std=0.0 must lie in 0.001..5"),
        ({"sigma_data": math.nan}, "head.sigma_data=nan must lie in 0.001..1000"),
        ({"uniform_share": 1.1}, "head.uniform_share=1.1 must lie in 0..1"),
        ({"train_steps": 0}, "head.train_steps=0 must lie in 1..1000"),
        ({"train_steps": 1001}, "head.train_steps=1001 must lie in 1..1000"),
        ({"steps": 0}, "head.steps=0 must lie in 1..100"),
        ({"steps": 101}, "head.steps=101 must lie in 1..100"),
        ({"clip": -1.0}, "head.clip=-1.0 must lie in 0..1000"),
        ({"clip": math.nan}, "head.clip=nan must lie in 0..1000"),
        ({"prediction": "noise"}, "head.prediction='noise' needs head.clip"),
    ],
)
def test_a_wrong_option_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        DiffusionConfig(**options)


def test_every_sampler_is_named_in_the_configuration():
    assert set(SAMPLERS) == {"ddim", "ddpm", "multistep", "dpmpp_2m"}
    assert SAMPLERS["dpmpp_2m"] is SAMPLERS["multistep"]  # in checkpoints it may have its older name


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("T", [1, 3, 16, 100, 1000])
def test_no_level_is_visited_twice(spacing, T):
    for steps in range(1, min(T, 16) + 1):
        chosen = visited(spacing, T, steps)
        assert len(chosen) == len(set(chosen)) == steps
        assert chosen == sorted(chosen, reverse=True)
        assert chosen[0] == T - 1 or spacing == "leading"
        assert chosen[-1] >= 0


@pytest.mark.parametrize("spacing", ["power", "tabulated"])
def test_a_grid_visits_the_levels_of_the_nearest_ratio(spacing):
    """By the ratio of the clipped cosine table of diffusers, level by level."""
    bar = DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2").alphas_cumprod.double().numpy()
    log_ratio = np.log(bar / (1 - bar)) / 2
    times = np.array((power if spacing == "power" else tabulated)(8)[1:-1])
    wanted = np.log(times / (1 - times))
    nearest = np.abs(log_ratio - wanted[:, None]).argmin(1)
    assert np.abs(nearest - visited(spacing, 1000, 8)[1:]).max() <= 1  # the table of diffusers is in float32


def test_preconditioned_is_the_velocity_along_the_angle_for_data_of_spread_one():
    """And with a spread of its own it is not."""
    net, cond, mask = Wavy((4, 4)), torch.randn(5, COND), torch.ones(5, 4, dtype=torch.bool)
    noise, x1 = torch.randn(2, 5, 4, 4)
    for sampler in ("ddim", "multistep"):
        pair = [head(prediction=p, sampler=sampler, steps=6) for p in ("velocity", "preconditioned")]
        one, other = (each.sample(net, noise, Conditioning(cond)) for each in pair)
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)
        one, other = (each.loss(net, x1, Conditioning(cond), mask, seeded(0)) for each in pair)
        torch.testing.assert_close(one, other)
        apart = head(prediction="preconditioned", sampler=sampler, steps=6, sigma_data=0.5)
        assert not torch.allclose(
            apart.sample(net, noise, Conditioning(cond)), pair[0].sample(net, noise, Conditioning(cond)), atol=0.01
        )


def test_log_normal_levels_are_those_nearest_to_a_normal_ratio():
    ours = head(time="log_normal", log_mean=-1.0, log_std=0.8, uniform_share=0.0)
    index = ours._levels(torch.zeros(200_000, 1, 1), seeded(0))
    share = torch.bincount(index, minlength=100) / len(index)
    log_ratio = (ours.table[1] / ours.table[0]).log().double().numpy()
    ends = np.concatenate([[-np.inf], (log_ratio[1:] + log_ratio[:-1]) / 2, [np.inf]])
    expected = np.diff(stats.norm.cdf(ends, -1.0, 0.8))
    assert np.abs(share.numpy() - expected).max() < 4 * math.sqrt(expected.max() / 200_000)
    guarded = head(time="log_normal", log_mean=-9.0, log_std=0.1, uniform_share=0.2)
    index = guarded._levels(torch.zeros(20_000, 1, 1), seeded(0))
    assert (index > 0).float().mean().item() == pytest.approx(0.2, abs=0.02)  # the noise is taught all the same
