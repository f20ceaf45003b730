"""Conformal bands: the promise, by simulation; the shape; what happens past its end."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta, binom, binomtest

from flowhand.contracts.export.band import Band, fit, rank, required


def episodes(count: int, rng: np.random.Generator, columns: int = 2) -> list[np.ndarray]:
    """Skewed, autocorrelated scores of a changing scale, of episodes of any length: exchangeable and nothing else."""
    drawn = []
    for _ in range(count):
        length = int(rng.integers(1, 12))
        walk = np.cumsum(rng.standard_exponential((length, columns)), axis=0)
        drawn.append(walk * rng.lognormal(size=columns) + np.sin(np.arange(length))[:, None])
    return drawn


@pytest.mark.parametrize(("alpha", "count"), [(0.05, 30), (0.1, 15), (0.3, 7), (0.5, 40)])
def test_on_average_no_more_successes_raise_an_alarm_than_promised(alpha, count):
    """One new episode per calibration: alarms are independent, at most alpha and at least alpha - 1/(n + 1)."""
    rng, trials = np.random.default_rng(1), 500
    alarms = sum(fit(episodes(count, rng), alpha).alarm(episodes(1, rng)[0]) is not None for _ in range(trials))
    n = count - count // 3
    exact = 1 - rank(n, alpha, 0.0) / (n + 1)
    assert alpha - 1 / (n + 1) <= exact <= alpha + 1e-12
    assert binomtest(alarms, trials, exact).pvalue > 1e-3


def test_with_a_confidence_a_single_band_keeps_the_promise():
    """The share of false alarms of uniform scores of one decision is what lies above the limit."""
    rng, alpha, confidence, calibrations = np.random.default_rng(2), 0.1, 0.9, 300
    kept = dict.fromkeys((0.0, confidence), 0)
    for _ in range(calibrations):
        seen = list(rng.random((60, 1, 1)))
        for sure in kept:
            kept[sure] += 1 - fit(seen, alpha, sure).threshold(0)[0] <= alpha
    assert kept[confidence] / calibrations > confidence - 0.05
    assert kept[0.0] / calibrations < 0.75  # which is why there is a confidence


@pytest.mark.parametrize("n", [1, 18, 19, 20, 99, 133])
@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.25])
def test_the_rank_is_that_of_the_theory(n, alpha):
    marginal = rank(n, alpha, 0.0)
    assert marginal == min(k for k in range(1, n + 2) if k / (n + 1) >= 1 - alpha - 1e-12)
    sure = rank(n, alpha, 0.9)
    if sure <= n:  # the share of successes below the k-th of n is Beta(k, n + 1 - k)
        assert beta.sf(1 - alpha, sure, n + 1 - sure) >= 0.9 - 1e-9
        assert sure == marginal or beta.sf(1 - alpha, sure - 1, n + 2 - sure) < 0.9
    else:
        assert binom.pmf(n, n, 1 - alpha) > 0.1 - 1e-9


@pytest.mark.parametrize(("alpha", "confidence", "expected"), [(0.05, 0.0, 28), (0.1, 0.0, 13), (0.05, 0.9, 67)])
def test_too_few_episodes_are_told_how_many_it_takes(alpha, confidence, expected):
    assert required(alpha, confidence) == expected
    rng = np.random.default_rng(0)
    fit(episodes(expected, rng), alpha, confidence)
    with pytest.raises(ValueError, match=f"got {expected - 1} successful episodes.* at least {expected}$"):
        fit(episodes(expected - 1, rng), alpha, confidence)
    with pytest.raises(ValueError, match="got 0 successful"):
        fit([], alpha, confidence)


def test_the_shape_is_mean_and_spread_and_the_limit_an_order_statistic():
    rng = np.random.default_rng(3)
    drawn = [rng.normal(5, [1, 100], (4, 2)) for _ in range(90)]
    band = fit(drawn, 0.1)
    shaping = np.stack(drawn[:30])
    np.testing.assert_allclose(band.center_ND, shaping.mean(0))
    np.testing.assert_allclose(band.spread_ND, shaping.std(0, ddof=1))
    largest = sorted(((s - shaping.mean(0)) / shaping.std(0, ddof=1)).max() for s in drawn[30:])
    assert band.limit == pytest.approx(largest[54])  # ceil(61 * 0.9) = 55
    assert band.calibrated == 60


def test_units_of_a_score_do_not_matter():
    rng = np.random.default_rng(4)
    seen, fresh = episodes(60, rng), episodes(40, rng)
    seen, fresh = ([np.insert(s, 0, 0, axis=0) for s in each] for each in (seen, fresh))  # constant at the first
    scale = np.array([1e3, 1e-12])
    one, other = fit(seen, 0.2), fit([s * scale for s in seen], 0.2)
    alarms = [one.alarm(s) for s in fresh]
    assert alarms == [other.alarm(s * scale) for s in fresh]
    shift = np.array([-7.0, 100.0])
    scale = np.array([1e3, 0.5])
    one, other = fit(seen, 0.2), fit([s * scale + shift for s in seen], 0.2)
    alarms = [one.alarm(s) for s in fresh]
    assert alarms == [other.alarm(s * scale + shift) for s in fresh]
    assert None in alarms
    assert any(alarm is not None for alarm in alarms)


BAND = Band(np.array([[0.0], [10.0]]), np.array([[1.0], [2.0]]), 3.0, 0.05, 0.0, 20)


def test_an_alarm_is_the_first_score_above_its_limit():
    assert BAND.threshold(0).tolist() == [3.0]
    assert BAND.threshold(1).tolist() == [16.0]
    assert BAND.alarm(np.array([[3.0], [16.0]])) is None  # at the limit is not above it
    assert BAND.alarm(np.array([[3.1], [99.0]])) == 0
    assert BAND.alarm(np.array([[0.0], [16.1]])) == 1


def test_past_the_end_of_the_shape_its_last_values_hold():
    assert BAND.threshold(500).tolist() == [16.0]
    assert BAND.alarm(np.array([[0.0], [0.0], [16.0], [16.0], [16.1]])) == 4
    assert BAND.alarm(np.full((1000, 1), 3.0)) is None  # an episode is no alarm for being long


def test_what_is_no_number_is_an_alarm_and_cannot_be_calibrated():
    assert BAND.alarm(np.array([[0.0], [np.nan]])) == 1
    assert BAND.alarm(np.array([[-np.inf]])) == 0
    with pytest.raises(ValueError, match="episode 2 has a score that is NaN"):
        fit([np.full((2, 1), np.nan if i == 2 else i) for i in range(60)], 0.1)
    with pytest.raises(ValueError, match=r"episode 1 has scores of shape \(3, 2\)"):
        fit([np.zeros((3, 1 + i % 2)) for i in range(60)], 0.1)


def test_a_constant_score_has_a_band():
    """As one that compares with the decision before at the first, and one that never changes."""
    band = fit([np.array([[0.0, 4.0], [float(i % 7), 4.0]]) for i in range(60)], 0.1)
    assert (band.spread_ND > 0).all()
    assert band.alarm(np.array([[0.0, 4.0], [3.0, 4.0]])) is None
    assert band.alarm(np.array([[0.0, 4.0], [3.0, 4.1]])) == 1


@pytest.mark.parametrize(("alpha", "confidence"), [(0.0, 0.0), (1.0, 0.0), (0.1, 1.0), (0.1, -0.1)])
def test_promises_that_cannot_be_kept(alpha, confidence):
    with pytest.raises(ValueError, match="must lie in"):
        fit([np.zeros((1, 1))] * 50, alpha, confidence)
