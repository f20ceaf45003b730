"""Comparing two policies on the same seeds: an exact paired test, and a non-inferiority test with its margin stated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


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
