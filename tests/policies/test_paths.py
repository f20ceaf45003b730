import pytest
import torch
from scipy import special, stats

from policies.paths import PREDICTIONS, TIMES, linear, sample_time, to_velocity

PATHS = [linear]
N = 20_000
REFERENCE = torch.zeros(1)
DISTRIBUTIONS = {  # cumulative distribution functions
    "uniform": stats.uniform.cdf,
    "beta": lambda t: stats.beta(1.5, 1).sf((1 - t) / 0.999),  # t = 1 - 0.999 Beta(1.5, 1)
    "logit_normal": lambda t: stats.norm.cdf(special.logit(t)),
}


def times(kind: str, *shape: int, seed: int = 0) -> torch.Tensor:
    return sample_time(kind, shape, REFERENCE, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("path", PATHS)
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


@pytest.mark.parametrize("path", PATHS)
def test_coefficients_have_the_shape_of_t(path):
    c = path(torch.rand(3, 4, 1, 1))
    assert {v.shape for v in (c.alpha, c.sigma, c.d_alpha, c.d_sigma)} == {torch.Size([3, 4, 1, 1])}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("rows", "horizon", "action"), [(5, 3, 2), (4, 4, 4)])
def test_every_prediction_gives_the_velocity_of_the_path(path, rows, horizon, action):
    x0, x1 = torch.randn(2, rows, horizon, action, dtype=torch.float64)
    c = path(torch.linspace(0, 0.99, rows, dtype=torch.float64)[:, None, None])
    x_t = c.alpha * x1 + c.sigma * x0
    velocity = c.d_alpha * x1 + c.d_sigma * x0
    outputs = {"velocity": velocity, "data": x1}
    assert set(outputs) == set(PREDICTIONS)
    for prediction, output in outputs.items():
        torch.testing.assert_close(to_velocity(prediction, output, x_t, c), velocity)


def test_the_velocity_of_a_data_prediction_is_finite_at_the_end():
    x1 = torch.randn(2, 3, 2)
    assert to_velocity("data", x1, x1, linear(torch.ones(()))).isfinite().all()


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
