"""Findings on whole episodes: copies of each other, odd lengths, starts, times and texts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from .finding import Finding

POINTS = 16  # at which an episode is compared with others
MOST_VALUES = 2**26  # that are kept of all episodes for it
NEAR = 0.02  # root mean square distance, in standard deviations, below which two episodes are near-identical
NEIGHBOURS, LINES = 6, 4  # in the order along each line that candidates are looked for in
SHORT, LONG = 0.25, 4.0  # times the median length
FAR = 8.0  # robust standard deviations from the median start
GAP = 1.5  # periods between two rows: something is missing
DRIFT = 0.01  # of the rate
JITTER = 0.25  # of a period, that half of the rows are off
NAMED = 5  # episodes that a line names


class Sketches:
    """Each episode in a few numbers, for all to be compared."""

    def __init__(self, episodes: int, dimensions: int):
        self.points = int(np.clip(MOST_VALUES // max(1, episodes * dimensions), 2, POINTS))
        self.numbers: list[int] = []
        self.lengths: list[int] = []
        self.rows: list[np.ndarray] = []  # each (points, D) float32
        self.digests: list[bytes] = []

    def add(self, rows: np.ndarray, episode: int) -> None:
        """Keeps what is needed of an episode's rows (n, D)."""
        at = np.rint(np.linspace(0, len(rows) - 1, self.points)).astype(int)
        self.numbers.append(episode)
        self.lengths.append(len(rows))
        self.rows.append(rows[at].astype(np.float32))
        self.digests.append(hashlib.sha256(np.ascontiguousarray(rows).tobytes()).digest()[:16])

    @property
    def starts(self) -> np.ndarray:
        """First rows (E, D)."""
        return np.stack([rows[0] for rows in self.rows]) if self.rows else np.zeros((0, 0))

    def copies(self) -> Iterator[Finding]:
        """Episodes that are another one again."""
        seen: dict[bytes, int] = {}
        pairs = [(seen.setdefault(d, n), n) for n, d in zip(self.numbers, self.digests, strict=True)]
        pairs = [(one, other) for one, other in pairs if one != other]
        if pairs:
            text = f"{len(pairs)} episodes are others again, to the last bit: {_pairs(pairs)}"
            yield Finding("warning", "duplicates", text, "Leave the copies out (convert, episodes=).", pairs[0][1])

    def near_copies(self, mean: np.ndarray, std: np.ndarray) -> Iterator[Finding]:
        """Episodes that are nearly the same, though not to the last bit."""
        if len(self.rows) < 2:
            return
        spread = np.where(std > 0, std, 1)
        points = ((np.stack(self.rows) - mean) / spread)[:, :, std > 0].reshape(len(self.rows), -1)
        found: dict[int, int] = {}
        for one, other in _candidates(points):
            near = np.sqrt(((points[one] - points[other]) ** 2).mean()) <= NEAR
            lengths = sorted((self.lengths[one], self.lengths[other]))
            if near and lengths[0] >= 0.95 * lengths[1] and self.digests[one] != self.digests[other]:
                low, high = sorted((self.numbers[one], self.numbers[other]))
                found.setdefault(high, low)
        if found:
            pairs = [(low, high) for high, low in sorted(found.items())]
            text = f"{len(pairs)} episodes are nearly others again, within {NEAR} standard deviations: {_pairs(pairs)}"
            yield Finding(
                "warning", "near-identical", text, "Look at them; they count double in training.", pairs[0][1]
            )


def _candidates(points: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs that may be near: those that follow each other along some random line."""
    if not points.shape[1]:
        return
    lines = np.random.default_rng(0).normal(size=(points.shape[1], LINES)).astype(np.float32)
    for along in (points @ lines).T:
        order = np.argsort(along, kind="stable")
        for shift in range(1, min(NEIGHBOURS, len(order) - 1) + 1):
            yield from zip(order[:-shift].tolist(), order[shift:].tolist(), strict=True)


def _pairs(pairs: Sequence[tuple[int, int]]) -> str:
    more = " ..." if len(pairs) > NAMED else ""
    return ", ".join(f"{other} as {one}" for one, other in pairs[:NAMED]) + more


def named(episodes: Sequence[int]) -> str:
    """Numbers of episodes, the first few of them."""
    return ", ".join(map(str, episodes[:NAMED])) + (" ..." if len(episodes) > NAMED else "")


def of_lengths(lengths: Sequence[int], numbers: Sequence[int]) -> Iterator[Finding]:
    """Episodes that are much shorter or longer than most; `numbers` are theirs."""
    median, pairs = float(np.median(lengths)), list(zip(numbers, lengths, strict=True))
    for what, odd, cause in (
        ("shorter than a quarter of", [e for e, n in pairs if n < SHORT * median], "a stop by mistake?"),
        ("longer than four times", [e for e, n in pairs if n > LONG * median], "recorded on after the end?"),
    ):
        if odd:
            text = f"{len(odd)} episodes are {what} the median of {median:g} steps: {named(odd)}"
            yield Finding("warning", "length", text, f"Look at them: {cause}", odd[0])


def of_starts(
    starts: np.ndarray, numbers: Sequence[int], labels: Sequence[str], low: np.ndarray, high: np.ndarray
) -> Iterator[Finding]:
    """Where episodes begin: all in one state, or one far from all others; starts (E, D) of the states alone."""
    if len(starts) < 3:
        return
    extent = np.where(high > low, high - low, np.inf)
    if ((starts.max(0) - starts.min(0)) / extent < 1e-6).all():
        text = "every episode starts in the same state"
        advice = "A policy learns one start only: vary it when recording."
        yield Finding("warning", "start", text, advice)
        return
    middle = np.median(starts, axis=0)
    away = np.abs(starts - middle)
    usual = 1.4826 * np.median(away, axis=0)
    far = (away > FAR * usual) & (usual > 0) & (away > 0.25 * extent)
    for at in np.flatnonzero(far.any(0)).tolist():
        places = np.flatnonzero(far[:, at]).tolist()
        episodes = [numbers[place] for place in places]
        values = f"the first at {starts[places[0], at]:.4g}, most at {middle[at]:.4g}"
        text = f"{len(places)} episodes start elsewhere ({named(episodes)}), {values}"
        advice = "Look at them: was the robot set up as usual?"
        yield Finding("note", "start", text, advice, episodes[0], 0, labels[at])


def of_texts(texts: Sequence[str], numbers: Sequence[int]) -> Iterator[Finding]:
    """Episodes without a text; `numbers` are theirs."""
    without = [episode for episode, text in zip(numbers, texts, strict=True) if not text.strip()]
    advice = "Give one with convert, tasks=; a policy without language does not need it."
    if without and len(without) < len(texts):
        text = f"{len(without)} of {len(texts)} episodes have no text: {named(without)}"
        yield Finding("warning", "text", text, advice, without[0])
    elif without:
        yield Finding("note", "text", "no episode has a text", advice)


class Times:
    """Time stamps against the rate."""

    def __init__(self, rate_hz: float):
        self.rate_hz = rate_hz
        self.gaps: list[tuple[int, int, int]] = []  # episode, step, rows that are missing before it
        self.missing = 0
        self.drifting: list[tuple[int, float]] = []  # episode, its rate
        self.jittering: list[int] = []

    def add(self, times_s: np.ndarray, episode: int) -> None:
        """Looks at the times (N,) of an episode's rows, seconds."""
        if len(times_s) < 3:
            return
        periods = np.diff(times_s) * self.rate_hz
        wide = np.flatnonzero(periods > GAP)
        lost = np.rint(periods[wide]).astype(int) - 1
        self.missing += int(np.maximum(lost, 1).sum())
        self.gaps += [(episode, int(at) + 1, max(1, int(n))) for at, n in zip(wide, lost, strict=True)]
        if len(wide) == len(periods):
            return
        usual = float(periods[periods <= GAP].mean())  # gaps are told apart
        if abs(usual - 1) > DRIFT:
            self.drifting.append((episode, self.rate_hz / usual))
        if float(np.median(np.abs(periods - usual))) > JITTER:
            self.jittering.append(episode)

    def findings(self) -> Iterator[Finding]:
        """What was found in all episodes."""
        if self.gaps:
            episode, step, lost = self.gaps[0]
            episodes = len({gap[0] for gap in self.gaps})
            text = (
                f"{self.missing} rows are missing in {len(self.gaps)} gaps of {episodes} episodes; the first of {lost}"
            )
            advice = "Motion across a gap looks too fast: cut the episodes there, or leave them out."
            yield Finding("warning", "gaps", text, advice, episode, step)
        if self.drifting:
            episode, rate = self.drifting[0]
            text = f"{len(self.drifting)} episodes have another rate than {self.rate_hz:g} Hz; the first {rate:.3g} Hz"
            advice = "The recording loop was slower or faster than it said: give the true rate."
            yield Finding("warning", "rate", text, advice, episode)
        if self.jittering:
            text = f"in {len(self.jittering)} episodes half of the rows are more than {JITTER:.0%} of a period off"
            advice = "Steps are not alike in time: resample, or record with a steadier loop."
            yield Finding("warning", "jitter", text, advice, self.jittering[0])
