"""The success rate with its interval, and two policies on the same seeds: paired tests, with the margin stated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from .records import EpisodeRecord


@dataclass(frozen=True)
class PairedComparison:
    """Policy A against policy B on the same seeds of one or more tasks."""

    n: int  # pairs of episodes
    a_only: int  # episodes that only A solved
    b_only: int  # episodes that only B solved
    difference: float  # success rate of A minus that of B
    mcnemar_p: float  # two-sided exact McNemar test of no difference
    margin: float  # A is called non-inferior if it is worse by less than this
    lower_bound: float  # one-sided lower confidence bound of the difference
    confidence: float  # of the bound
    non_inferior: bool  # lower_bound > -margin


def compare_paired(
    a: Sequence[Sequence[bool]], b: Sequence[Sequence[bool]], margin: float = 0.02, confidence: float = 0.95
) -> PairedComparison:
    """Compares the outcomes of two policies, task by task, episode by episode.

    The tasks are taken as given and the seeds within each as drawn, so the variance of the difference is that of a
    stratified mean. A stratum without a discordant pair has no variance of its own; half a pair in each direction
    is added there (Agresti and Min 2005), so that a small sample without discordance is not called certain.

    Args:
        a: outcomes of A, one sequence per task.
        b: outcomes of B on the same tasks and seeds, in the same order.
        margin: largest loss in success rate that still counts as not worse.
        confidence: of the one-sided bound.

    Raises:
        ValueError: the outcomes are not paired.
    """
    if len(a) != len(b) or any(len(x) != len(y) for x, y in zip(a, b, strict=False)) or not a or not all(a):
        raise ValueError("the two policies must have outcomes for the same tasks and seeds, at least one")
    a_only = b_only = n = 0
    variance = 0.0
    for x, y in zip(a, b, strict=True):
        wins = int(np.sum(np.asarray(x, bool) & ~np.asarray(y, bool)))
        losses = int(np.sum(~np.asarray(x, bool) & np.asarray(y, bool)))
        a_only, b_only, n = a_only + wins, b_only + losses, n + len(x)
        up, down, total = wins + 0.5, losses + 0.5, len(x) + 1
        variance += len(x) ** 2 * ((up + down) / total - ((up - down) / total) ** 2) / total
    difference = (a_only - b_only) / n
    bound = difference - float(stats.norm.ppf(confidence)) * np.sqrt(variance) / n
    discordant = a_only + b_only
    p = float(stats.binomtest(a_only, discordant, 0.5).pvalue) if discordant else 1.0
    return PairedComparison(n, a_only, b_only, difference, p, margin, float(bound), confidence, bool(bound > -margin))


def holm(p: Sequence[float]) -> list[float]:
    """The p values of several tests, corrected so that all are right together (Holm 1979), in the same order."""
    order = sorted(range(len(p)), key=lambda at: p[at])
    corrected, largest = [0.0] * len(p), 0.0
    for place, at in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - place) * p[at]))
        corrected[at] = largest
    return corrected


def bootstrap_mean(
    values: np.ndarray, confidence: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The percentile interval of a mean, by drawing the rows again with replacement (Efron and Tibshirani 1993, 13).

    Of differences between two methods on the same rows it is the paired interval. Every column sees the same draws.

    Args:
        values: (n, ...), a row for each unit that was drawn independently, such as an episode.
        confidence: of the interval.
        draws: how often.
        seed: of the draws.

    Raises:
        ValueError: there is no row.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        raise ValueError("there are no values to draw from; expected at least one row")
    rows = values.reshape(len(values), -1)
    counts = np.random.default_rng(seed).multinomial(len(rows), np.full(len(rows), 1 / len(rows)), draws)
    means = counts @ rows / len(rows)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return low.reshape(values.shape[1:]), high.reshape(values.shape[1:])


@dataclass(frozen=True)
class Summary:
    """A success rate that can be believed: count, total and the Wilson interval, any-time and final."""

    n: int
    successes: int  # episodes with success at any step
    rate: float  # successes / n
    wilson_low: float
    wilson_high: float
    final_successes: int  # episodes with success at the last step
    final_rate: float
    final_wilson_low: float
    final_wilson_high: float
    confidence: float  # of both intervals
    solved_before: int = 0  # episodes that began solved; they are among n and, as a rule, among the successes
    score_mean: float | None = None  # of the episodes' scores; None where the world gives none
    score_low: float | None = None  # bootstrap interval of the mean
    score_high: float | None = None


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a success rate.

    Raises:
        ValueError: n is zero, or successes is not in [0, n].
    """
    from scipy.stats import binomtest  # takes most of a second, and the workers of a rollout never need it

    interval = binomtest(successes, n).proportion_ci(confidence_level=confidence, method="wilson")
    return float(interval.low), float(interval.high)


def summarize(records: Iterable[EpisodeRecord], confidence: float = 0.95) -> Summary:
    """Count the successes, any-time and final, with their Wilson intervals; the mean score with its bootstrap interval.

    Raises:
        ValueError: there are no records, or some have a score and others none.
    """
    records = list(records)
    if not records:
        raise ValueError("there are no episode records to summarize")
    n, successes = len(records), sum(record.success for record in records)
    final = sum(record.final_success for record in records)
    intervals = wilson(successes, n, confidence), wilson(final, n, confidence)
    before = sum(record.solved_before for record in records)
    rates = n, successes, successes / n, *intervals[0], final, final / n, *intervals[1]
    scores = [record.score for record in records if record.score is not None]
    if not scores:
        return Summary(*rates, confidence, before)
    if len(scores) < n:
        raise ValueError(f"{len(scores)} of {n} episode records have a score; expected all or none")
    low, high = map(float, bootstrap_mean(np.array(scores), confidence))
    return Summary(*rates, confidence, before, float(np.mean(scores)), low, high)
