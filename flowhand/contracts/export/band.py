"""Conformal bands: from scores of successful episodes, limits with a promised rate of false alarms. No torch here.

A band is a shape and one number. The shape, centre and spread of every score at every decision, is the mean and
standard deviation of one part of the episodes. Of every other episode only its largest excess counts, the maximum over
all its decisions and all scores of (score - centre) / spread, and `limit` is one of the largest of these
(Diquigiovanni 2022, functional conformal prediction; Xu 2025, FAIL-Detect, one-sided). So the promise is about whole
episodes: of new successful episodes, exchangeable with those of the calibration, at most `alpha` raise any alarm.
"""

# ruff: noqa: N815  (shape suffixes)

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SHAPE_SHARE = 3  # one in so many episodes gives the shape
LEAST_ALIVE = 10  # episodes behind a mean and a spread; where fewer last so long, the last ones hold
LEAST_SPREAD = 0.1  # of a score at a decision, in its mean spread over the episode


@dataclass(frozen=True)
class Band:
    """Upper limits of D scores at each decision of an episode.

    Beyond the last decision of the shape its last values hold, in calibration as in use, so the promise also covers
    episodes longer than any that was seen, and no alarm is raised because an episode is long.
    """

    center_ND: np.ndarray  # mean of each score at each decision
    spread_ND: np.ndarray  # its standard deviation, bounded from below
    limit: float  # spreads above the centre from which on there is an alarm
    alpha: float  # promised rate of false alarms over whole episodes
    confidence: float  # that this band keeps the promise; 0: bands keep it on average over calibrations
    calibrated: int  # episodes behind the limit

    def threshold(self, decision: int) -> np.ndarray:
        """The limits (D,) at a decision, counted from 0."""
        at = min(decision, len(self.center_ND) - 1)
        return self.center_ND[at] + self.limit * self.spread_ND[at]

    def excess(self, scores_ND: np.ndarray) -> np.ndarray:
        """Spreads above the centre of an episode's scores; infinite for a score that is no number."""
        return _excess(scores_ND, self.center_ND, self.spread_ND)

    def alarm(self, scores_ND: np.ndarray) -> int | None:
        """The first decision at which a score is above its limit; None if there is none."""
        above = (self.excess(scores_ND) > self.limit).any(1)
        return int(above.argmax()) if above.any() else None


def fit(episodes: Sequence[np.ndarray], alpha: float, confidence: float = 0.0) -> Band:
    """The band of successful episodes, in a random order.

    Args:
        episodes: scores (decisions, D) of each; they may differ in length.
        alpha: promised rate of false alarms over whole episodes, in (0, 1).
        confidence: 0 promises alpha on average over calibrations (Vovk 2005): this band may be worse, the more so the
            fewer the episodes. Above 0, in (0, 1), this band has at most alpha with that probability (Vovk 2012,
            Prop. 2a), for which its limit is higher.

    Raises:
        ValueError: too few episodes for this promise (the message says how many it takes), a score that is no number.
    """
    if not 0 < alpha < 1 or not 0 <= confidence < 1:
        raise ValueError(f"alpha={alpha} must lie in (0, 1) and confidence={confidence} in [0, 1)")
    shaping, n = len(episodes) // SHAPE_SHARE, len(episodes) - len(episodes) // SHAPE_SHARE
    if shaping < 2 or rank(n, alpha, confidence) > n:
        raise ValueError(
            f"got {len(episodes)} successful episodes; alpha={alpha} with confidence={confidence} takes at least "
            f"{required(alpha, confidence)}"
        )
    for i, scores_ND in enumerate(episodes):
        if scores_ND.ndim != 2 or not scores_ND.size or scores_ND.shape[1] != episodes[0].shape[1]:
            raise ValueError(f"episode {i} has scores of shape {scores_ND.shape}, expected (decisions, scores)")
        if not np.isfinite(scores_ND).all():
            raise ValueError(f"episode {i} has a score that is NaN or infinite; the policy cannot be calibrated")
    center_ND, spread_ND = _shape(episodes[:shaping])
    largest = np.sort([_excess(scores_ND, center_ND, spread_ND).max() for scores_ND in episodes[shaping:]])
    limit = float(largest[rank(n, alpha, confidence) - 1])
    return Band(center_ND, spread_ND, limit, alpha, confidence, n)


def rank(n: int, alpha: float, confidence: float) -> int:
    """Which of n sorted maxima is the limit, counted from 1; above n where n are too few.

    ceil((n + 1)(1 - alpha)), and with a confidence the smallest k with P(Binomial(n, 1 - alpha) < k) >= confidence.
    """
    k = math.ceil(round((n + 1) * (1 - alpha), 9))  # rounded first: 20 * 0.95 is 19
    if confidence:
        from scipy.stats import binom  # a robot that only uses a band does without

        k = max(k, int(binom.ppf(confidence, n, 1 - alpha)) + 1)
    return k


def required(alpha: float, confidence: float = 0.0) -> int:
    """The smallest number of successful episodes for which `fit` can keep the promise."""
    return next(
        count
        for count in itertools.count(2 * SHAPE_SHARE)
        if rank(n := count - count // SHAPE_SHARE, alpha, confidence) <= n
    )


def _shape(episodes: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread (N, D) of each score at each decision that enough episodes have."""
    enough = min(LEAST_ALIVE, len(episodes))
    length = sorted(map(len, episodes))[-enough]
    center, spread = [], []
    for decision in range(length):
        alive = np.stack([scores[decision] for scores in episodes if len(scores) > decision])
        center.append(alive.mean(0))
        spread.append(alive.std(0, ddof=1))
    center_ND, spread_ND = np.array(center, np.float64), np.array(spread, np.float64)
    # A score may be constant, as one that compares with the decision before is at the first.
    least_D = np.maximum(LEAST_SPREAD * spread_ND.mean(0), 1e-6 * np.abs(center_ND).max(0))
    return center_ND, np.maximum(spread_ND, np.where(least_D > 0, least_D, 1.0))  # 1: zero in every episode


def _excess(scores_ND: np.ndarray, center_ND: np.ndarray, spread_ND: np.ndarray) -> np.ndarray:
    at = np.minimum(np.arange(len(scores_ND)), len(center_ND) - 1)
    excess_ND = (np.asarray(scores_ND, np.float64) - center_ND[at]) / spread_ND[at]
    return np.where(np.isfinite(scores_ND), excess_ND, np.inf)
