import math
from functools import partial

import pytest
import torch
from scipy import special, stats

from policies.conditioning import Conditioning
from policies.generation import paths
from policies.generation.paths import PREDICTIONS, TIMES, along_angle, linear, sample_time, squared_cosine, to_velocity
from policies.heads.flow import FlowConfig, FlowHead
from policies.nets.base import Modulation, Net

PATHS = list(paths.PATHS.values())
SMOOTH = [*PATHS, partial(squared_cosine, steps=100), partial(squared_cosine, steps=10)]
N = 20_000
REFERENCE = torch.zeros(1)
DISTRIBUTIONS = {  # cumulative distribution functions
    "uniform": stats.uniform.cdf,
    "beta": lambda t: stats.beta(1.5, 1).sf((0.999 - t) / 0.999),  # p(t) = Beta((s - t) / s; 1.5, 1), s = 0.999
    "logit_normal": lambda t: stats.norm.cdf(special.logit(t)),
}


def times(kind: str, *shape: int, seed: int = 0) -> torch.Tensor:
    return sample_time(kind, shape, REFERENCE, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("path", SMOOTH)
def test_derivatives_are_those_of_finite_differences(path):
    t, h = torch.linspace(0.01, 0.99, 50, dtype=torch.float64), 1e-6
    c, before, after = path(t), path(t - h), path(t + h)
    torch.testing.assert_close(c.d_alpha, (after.alpha - before.alpha) / (2 * h))
    torch.testing.assert_close(c.d_sigma, (after.sigma - before.sigma) / (2 * h))


@pytest.mark.parametrize("path", PATHS)
def test_time_0_is_noise_and_time_1_is_data(path):
    c = path(torch.tensor([0.0, 1.0]))
    assert c.alpha.tolist() == [0.0, 1.0]
    assert c.sigma.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("path", SMOOTH)
def test_coefficients_have_the_shape_of_t(path):
    c = path(torch.rand(3, 4, 1, 1))
    assert {v.shape for v in (c.alpha, c.sigma, c.d_alpha, c.d_sigma)} == {torch.Size([3, 4, 1, 1])}


def angular(t: torch.Tensor) -> paths.Coefficients:
    """The squared cosine with its velocity along the angle."""
    c = squared_cosine(t, 100)
    return along_angle(c.alpha, c.sigma)


@pytest.mark.parametrize("path", [*SMOOTH, angular])
@pytest.mark.parametrize("given", PREDICTIONS)
@pytest.mark.parametrize(("rows", "horizon", "action"), [(5, 3, 2), (4, 4, 4)])
def test_every_prediction_gives_the_others(path, given, rows, horizon, action):
    x0, x1 = torch.randn(2, rows, horizon, action, dtype=torch.float64)
    c = path(torch.linspace(0.02, 0.98, rows, dtype=torch.float64)[:, None, None])
    x_t = c.alpha * x1 + c.sigma * x0
    truth = {"velocity": c.d_alpha * x1 + c.d_sigma * x0, "data": x1, "noise": x0}
    for wanted, expected in truth.items():
        converted = getattr(paths, f"to_{wanted}")(given, truth[given], x_t, c)
        torch.testing.assert_close(converted, expected)


@pytest.mark.parametrize("given", PREDICTIONS)
def test_a_wrong_prediction_is_converted_there_and_back(given):
    output, x_t = torch.randn(2, 5, 3, 2, dtype=torch.float64)
    c = angular(torch.linspace(0.02, 0.98, 5, dtype=torch.float64)[:, None, None])
    for other in PREDICTIONS:
        there = getattr(paths, f"to_{other}")(given, output, x_t, c)
        torch.testing.assert_close(getattr(paths, f"to_{given}")(other, there, x_t, c), output)


@pytest.mark.parametrize("path", [paths.cosine, *SMOOTH[len(PATHS) :]])
def test_a_variance_preserving_path_keeps_the_variance(path):
    t = torch.linspace(0, 1, 50, dtype=torch.float64)
    c = path(t)
    torch.testing.assert_close(c.alpha**2 + c.sigma**2, torch.ones_like(t))
    speed = (c.d_alpha**2 + c.d_sigma**2).sqrt()[1:-1]  # along its angle, which is the direction of (sigma, -alpha)
    by_angle = along_angle(c.alpha, c.sigma)
    torch.testing.assert_close(speed * by_angle.d_alpha[1:-1], c.d_alpha[1:-1])
    torch.testing.assert_close(speed * by_angle.d_sigma[1:-1], c.d_sigma[1:-1])


@pytest.mark.parametrize("steps", [1, 2, 10, 100, 1000])
def test_the_squared_cosine_is_the_table_of_clipped_betas(steps):
    """Nichol 2021, Section 3.2: alpha_bar(s) = f(s)/f(0), beta = 1 - ratio of neighbours, clipped at 0.999."""

    def f(s: float) -> float:
        return math.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2

    product, expected = 1.0, []
    for k in range(steps):
        product *= 1 - min(1 - f((k + 1) / steps) / f(k / steps), 0.999)
        expected.append(product)
    c = squared_cosine(1 - torch.arange(1, steps + 1, dtype=torch.float64) / steps, steps)
    torch.testing.assert_close(c.alpha**2, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)
    assert squared_cosine(torch.ones(()), steps).sigma == 0


def test_the_velocity_of_a_data_prediction_is_finite_at_the_end():
    x1 = torch.randn(2, 3, 2)
    assert to_velocity("data", x1, x1, linear(torch.ones(()))).isfinite().all()


class GaussianNet(Net):
    """The optimum on a path for chunks drawn from N(cond, s^2) in every number."""

    def __init__(self, path, prediction: str, s: float):
        super().__init__()
        self.path, self.prediction, self.s = path, prediction, s

    def prepare(self, t: torch.Tensor, cond: Conditioning, per_action: bool = False) -> Modulation:
        return Modulation(torch.cat([t[..., None], cond.vector_BE.expand(*t.shape, -1)], dim=-1))

    def forward(self, x_BTA: torch.Tensor, modulation: Modulation) -> torch.Tensor:
        c, mean = self.path(modulation.timed[:, :1]), modulation.timed[:, 1:]
        whitened = (x_BTA.flatten(1) - c.alpha * mean) / (c.alpha**2 * self.s**2 + c.sigma**2)
        data, noise = mean + c.alpha * self.s**2 * whitened, c.sigma * whitened
        return (data if self.prediction == "data" else c.d_alpha * data + c.d_sigma * noise).view_as(x_BTA)


@pytest.mark.parametrize("name", paths.PATHS)
@pytest.mark.parametrize("prediction", ["velocity", "data"])
def test_the_flow_head_learns_and_follows_the_path_it_is_told(name, prediction):
    """Its loss at the optimum is Var(target | x_t); the optimal flow of a Gaussian is mean + s x0."""
    path, s, rows = paths.PATHS[name], 0.5, 20_000
    head = FlowHead(FlowConfig(path=name, prediction=prediction, solver="midpoint", steps=100, time="uniform"), 4)
    net, mean = GaussianNet(path, prediction, s), torch.randn(rows, 4)
    x1 = (mean + s * torch.randn(rows, 4)).view(rows, 2, 2)
    mask = torch.ones(rows, 2, dtype=torch.bool)
    c = path((torch.arange(1000, dtype=torch.float64) + 0.5) / 1000)
    gain = c.sigma if prediction == "data" else c.d_alpha * c.sigma - c.d_sigma * c.alpha
    least = ((gain * s) ** 2 / ((c.alpha * s) ** 2 + c.sigma**2)).mean().item()
    loss = head.loss(net, x1, Conditioning(mean), mask, torch.Generator().manual_seed(0)).item()
    assert loss == pytest.approx(least, rel=0.02)
    noise = torch.randn(100, 2, 2)
    expected = mean[:100].view_as(noise) + s * noise
    torch.testing.assert_close(head.sample(net, noise, Conditioning(mean[:100])), expected, atol=0.02, rtol=0)


def test_an_unknown_path_is_an_error():
    with pytest.raises(ValueError, match=r"head\.path='circle' is unknown; choices: linear, cosine"):
        FlowConfig(path="circle")


def test_an_unknown_prediction_is_an_error():
    with pytest.raises(ValueError, match="prediction 'score' is unknown; choices: velocity, data"):
        to_velocity("score", REFERENCE, REFERENCE, linear(REFERENCE))


@pytest.mark.parametrize("shape", [(N,), (100, 200), (2, N // 2), (141, 141)])
@pytest.mark.parametrize("kind", TIMES)
def test_times_have_the_stated_distribution(kind, shape):
    t = times(kind, *shape)
    assert t.shape == shape
    assert t.dtype == torch.float32
    p_values = {name: stats.kstest(t.flatten().numpy(), cdf).pvalue for name, cdf in DISTRIBUTIONS.items()}
    assert p_values.pop(kind) > 0.01
    assert max(p_values.values()) < 1e-6  # the test can tell the distributions apart


def test_beta_is_that_of_pi0_at_both_ends():
    """Black 2024 (pi0): times above s = 0.999 are not drawn. A shift by 1 - s takes many draws to see."""
    t = times("beta", 4_000_000)
    assert 0 <= t.min() < 1e-4
    assert 0.998 < t.max() <= 0.999
    assert stats.kstest(t.numpy(), DISTRIBUTIONS["beta"], method="asymp").pvalue > 0.01


@pytest.mark.parametrize("kind", TIMES)
def test_times_lie_in_the_unit_interval_and_are_not_shared_between_rows(kind):
    t = times(kind, 64, 64)
    assert t.min() >= 0
    assert t.max() <= 1
    assert len(t.unique()) > 0.99 * t.numel()


@pytest.mark.parametrize("kind", TIMES)
def test_times_follow_from_the_generator(kind):
    assert torch.equal(times(kind, 3, 5), times(kind, 3, 5))
    assert not torch.equal(times(kind, 3, 5), times(kind, 3, 5, seed=1))


def test_an_unknown_distribution_is_an_error():
    with pytest.raises(ValueError, match="time distribution 'cosine' is unknown; choices: uniform, beta, logit_normal"):
        times("cosine", 3)
