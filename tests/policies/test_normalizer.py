import numpy as np
import pytest
import torch

from policies.normalizer import MODES, Normalizer, NormalizerConfig

RAMP = torch.arange(101.0)[torch.randperm(101, generator=torch.Generator().manual_seed(0))]
# Of the columns 0..100 and 2 * (0..100) - 50, by hand.
EXPECTED = {
    "mean_std": ([50.0, 50.0], [850**0.5, 2 * 850**0.5]),  # variance (n^2 - 1) / 12 with n = 101
    "min_max": ([50.0, 50.0], [50.0, 100.0]),
    "quantile": ([50.0, 50.0], [49.0, 98.0]),  # 1 % and 99 % of 0..100 are 1 and 99
    "identity": ([0.0, 0.0], [1.0, 1.0]),
}


def fitted(data: torch.Tensor, mode: str) -> Normalizer:
    normalizer = Normalizer(data.shape[1])
    normalizer.fit(data, mode, "state")
    return normalizer


def test_every_mode_has_an_expected_value():
    assert set(EXPECTED) == set(MODES)


@pytest.mark.parametrize("mode", MODES)
def test_statistics_are_those_computed_by_hand(mode):
    normalizer = fitted(torch.stack([RAMP, 2 * RAMP - 50], dim=1), mode)
    shift, scale = EXPECTED[mode]
    torch.testing.assert_close(normalizer.shift, torch.tensor(shift))
    torch.testing.assert_close(normalizer.scale, torch.tensor(scale))


@pytest.mark.parametrize("mode", ["min_max", "quantile"])
def test_ranges_go_to_plus_and_minus_one(mode):
    normalizer = fitted(RAMP[:, None], mode)
    edges = {"min_max": [0.0, 100.0], "quantile": [1.0, 99.0]}[mode]
    assert normalizer.normalize(torch.tensor(edges)[:, None]).flatten().tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("mode", MODES)
def test_denormalize_inverts_normalize(mode):
    scale = torch.tensor([1e-3, 1.0, 1e4])
    data = torch.randn(500, 3) * scale + 2 * scale
    normalizer = fitted(data, mode)
    x = torch.randn(4, 5, 3) * scale
    error = (normalizer.denormalize(normalizer.normalize(x)) - x) / scale
    assert error.abs().max() < 2e-6
    error = normalizer.normalize(normalizer.denormalize(x / scale)) - x / scale
    assert error.abs().max() < 2e-6 / (1 if mode != "identity" else scale.min())


def test_a_quantile_ignores_outliers():
    data = torch.cat([torch.linspace(-1, 1, 1000), torch.tensor([15.0, -15.0])])[:, None]
    assert fitted(data, "quantile").scale.item() == pytest.approx(1.0, abs=0.03)


def test_outliers_before_which_all_else_vanishes_are_refused_by_name():
    data = torch.cat([torch.linspace(-1, 1, 1000), torch.tensor([1e6, -1e6])])
    with pytest.raises(ValueError, match=r"'state' dimension 1 has tails too heavy .* in -0.98\d* to 0.98\d*, all of"):
        fitted(torch.stack([torch.linspace(0, 1, 1002), data], dim=1), "quantile")


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("noise", [0.0, 10.0])
def test_no_quantile_lets_a_rare_value_dominate(offset, noise):
    """500 in 0.8 % of the steps: both quantiles are 0, and a scale of 1 would make the mean square 2,000."""
    generator = torch.Generator().manual_seed(0)
    sparse = 500.0 * (torch.arange(10_000) % 125 == 0) + offset
    data = torch.stack([sparse + noise * torch.randn(10_000, generator=generator), RAMP.repeat(100)[:10_000]], dim=1)
    normalizer = fitted(data, "quantile")
    square = normalizer.normalize(data).square().mean(dim=0)
    assert square.max() < 1.01
    assert square.min() > 0.1
    assert normalizer.scale[0].item() == pytest.approx(data[:, 0].double().std(correction=0).item(), rel=1e-5)


SCALED = ["mean_std", "min_max", "quantile"]


@pytest.mark.parametrize("mode", SCALED)
def test_a_constant_dimension_is_centred_and_not_scaled(mode):
    data = torch.stack([torch.full((50,), 7.0), torch.zeros(50), torch.linspace(0, 1, 50)], 1)
    normalizer = fitted(data, mode)
    assert normalizer.scale[:2].tolist() == [1.0, 1.0]
    assert normalizer.scale[2] < 1
    assert normalizer.normalize(data)[:, :2].tolist() == [[0.0, 0.0]] * 50
    assert normalizer.denormalize(torch.zeros(3))[0] == 7.0


@pytest.mark.parametrize("mode", SCALED)
@pytest.mark.parametrize("unit", [1e-30, 1e-9, 1e-5, 1.0, 1e9, 1e30])
def test_no_unit_is_too_small_or_too_large(mode, unit):
    normal = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    plain, scaled = fitted(normal, mode), fitted(unit * normal, mode)
    torch.testing.assert_close(scaled.normalize(unit * normal), plain.normalize(normal), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", SCALED)
@pytest.mark.parametrize(("offset", "spread"), [(1000.0, 1e-3), (1.0, 1e-6), (-3e-7, 1e-12), (1e7, 10.0)])
def test_beside_an_offset_everything_that_float32_resolves_is_scaled(mode, offset, spread):
    data = offset + torch.linspace(-spread, spread, 1000, dtype=torch.float64)[:, None]
    seen = fitted(data.float(), mode).normalize(data.float()).flatten()
    assert np.corrcoef(seen, data.flatten())[0, 1] > 0.99
    assert 0.5 < seen.double().std() < 1.1


@pytest.mark.parametrize("mode", SCALED)
@pytest.mark.parametrize("steps", [1, 8])
def test_what_is_treated_as_constant_and_is_not_is_named(mode, steps):
    last = 1000.0
    for _ in range(steps):
        last = float(np.nextafter(np.float32(last), np.float32(2000)))
    data = torch.stack([torch.linspace(0, 1, 50), torch.tensor([1000.0, last]).repeat(25)], dim=1)
    with pytest.warns(UserWarning, match=r"dimension 1 varies from 1000 to 1000\.00\d+, .* treated as constant"):
        normalizer = fitted(data, mode)
    assert normalizer.scale[1] == 1
    assert normalizer.normalize(data)[:, 1].abs().max() < 1e-3


def test_statistics_are_exact_beside_a_big_offset():
    """float32 sums of 1e6 and its squares would lose the spread of 1."""
    data = (1e6 + np.random.default_rng(0).standard_normal((20_000, 1))).astype(np.float32)
    normalizer = fitted(torch.from_numpy(data), "mean_std")
    assert normalizer.scale.item() == pytest.approx(data.astype(np.float64).std(), rel=1e-6)
    assert normalizer.shift.item() == pytest.approx(data.astype(np.float64).mean(), abs=0.0625)  # an ulp
    x = torch.from_numpy(data)
    assert (normalizer.denormalize(normalizer.normalize(x)) - x).abs().max() <= 2 * 0.0625


def test_a_missing_statistic_is_an_error_and_never_the_identity():
    normalizer = Normalizer(2)
    assert normalizer.normalize(torch.ones(2)).isnan().all()
    assert normalizer.denormalize(torch.ones(2)).isnan().all()
    with pytest.raises(ValueError, match="the statistics of 'state' are missing or not finite; fit the policy"):
        normalizer.require_fitted("state")
    normalizer.fit(torch.randn(5, 2), "mean_std", "state")
    normalizer.require_fitted("state")


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_an_unusable_scale_is_an_error(value):
    normalizer = fitted(torch.randn(5, 2), "mean_std")
    normalizer.scale[1] = value
    with pytest.raises(ValueError, match="the statistics of 'goal'"):
        normalizer.require_fitted("goal")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_data_is_an_error_naming_the_row(value):
    data = torch.randn(9, 2)
    data[6, 1] = value
    with pytest.raises(ValueError, match="statistics of 'state' need finite data, but row 6 has NaN or infinity"):
        fitted(data, "mean_std")


@pytest.mark.parametrize("shape", [(1, 2), (5, 3), (5,), (5, 2, 1)])
def test_data_of_the_wrong_shape_is_an_error(shape):
    with pytest.raises(ValueError, match=r"statistics of 'state' need data of shape \(N >= 2, 2\), got"):
        Normalizer(2).fit(torch.zeros(shape), "mean_std", "state")


def test_an_unknown_mode_is_an_error():
    with pytest.raises(ValueError, match="normalization 'log' is unknown; choices: mean_std, min_max"):
        fitted(torch.randn(5, 2), "log")
    with pytest.raises(ValueError, match=r"normalizer.action='log' is unknown; choices: mean_std"):
        NormalizerConfig(action="log")
