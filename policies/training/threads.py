"""How many CPU threads a training takes: measured while it runs, since it depends on what else the machine does."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median

import torch

BLOCK_S = 0.05  # shortest stretch of steps that is timed as one in a comparison
WATCH_S = 0.25  # and between comparisons
PAIRS = 9  # blocks of a comparison, each beside one of steps as they are
CLEAR, CLEAR_PAIRS = 1.4, 3  # a difference by this factor, seen so often and never otherwise, needs no further look
GAIN = 0.96  # another number is better when a step takes at most this share of the time
FAR = 3.0  # a number that takes so many times longer is not looked at again
SURE = 0.8  # a smaller gain must be seen in two comparisons one after the other
CHANGE = 1.4  # a step that has become so much longer, or shorter, calls for a comparison
ROUGH = 1.8  # the same for a length that rests on a few blocks
LEVEL_S, LEVEL_BLOCKS = 5.0, 5  # a step's present length is the median over so long, and over so many blocks
SHARE, SHARE_CALLED = 0.004, 0.008  # of the time, for comparisons that nothing has called for, and for all
CREDIT_S = 2.0  # for the comparisons that a change calls for soon after the start


def ladder(most: int) -> list[int]:
    """The numbers of threads to choose among: powers of two below `most`, and `most`."""
    return [2**i for i in range((most - 1).bit_length())] + [most]


class ThreadChooser:
    """Finds the number of CPU threads with which a training's steps are shortest at present.

    Two threads of a step wait for each other: beside another busy program they can be ten times slower than one. So
    blocks of a few steps with other numbers are timed between blocks of the training's own steps, once at the start,
    again when the own steps have become longer or shorter, and now and then. What is timed is a trial: it computes
    what a step does and changes nothing, so the training depends on the number that is chosen and not on the timing.

    Args:
        count: threads at the start.
        choices: of numbers of threads; with no other than `count` nothing is ever timed.
        trial: does the work of a step that is timed.
        clock: seconds.
        use: sets the number of threads.
    """

    def __init__(
        self,
        count: int,
        choices: Sequence[int],
        trial: Callable[[], object],
        clock: Callable[[], float] = time.perf_counter,
        use: Callable[[int], object] = torch.set_num_threads,
    ):
        self.count, self.choices = count, sorted(choices)
        self.elapsed_s = self.spent_s = 0.0  # in steps, and in trials
        self._trial, self._clock, self._use = trial, clock, use
        self._warm = {count}  # numbers that have computed before; the first time takes longer
        self._steps, self._seconds = 0, 0.0  # of the block of own steps that has begun
        self._blocks: deque[float] = deque(maxlen=math.ceil(LEVEL_S / WATCH_S))  # seconds per own step
        self._usual: float | None = None  # the same when the number was last chosen
        self._rough = True  # until it rests on as many blocks as what it is held against
        self._costs: dict[int, float] = {}  # seconds of the last trials with a number
        self._own: list[float] = []  # of the running comparison: seconds per own step
        self._ratios: dict[int, list[float]] = {}  # and with other numbers, of those of the own steps before
        self._left: set[int] = set()  # after a choice, the numbers that were worse
        self._seen = 0  # the number that the last comparison found better, by a gain too small to be sure

    def after_step(self, seconds: float) -> bool:
        """Takes the time of one more step as it is; returns whether another number of threads has been chosen."""
        self.elapsed_s += seconds
        self._steps, self._seconds = self._steps + 1, self._seconds + seconds
        if self._seconds < (BLOCK_S if self._ratios else WATCH_S):
            return False
        steps, own = self._steps, self._seconds / self._steps
        self._steps, self._seconds = 0, 0.0
        self._blocks.append(own)
        if not self._ratios:
            self._ratios = {other: [] for other in self._others()}
            return False
        self._own.append(own)
        for other, ratios in self._ratios.items():
            before = self.spent_s
            ratios.append(self._time(other, steps, 2 * own * steps) / own)
            self._costs[other] = self.spent_s - before
        return self._conclude()

    def _others(self) -> list[int]:
        """The numbers to compare with now: none, or the next lower, the next higher, the lowest and the highest."""
        lower, higher = [n for n in self.choices if n < self.count], [n for n in self.choices if n > self.count]
        lower, higher = {*lower[:1], *lower[-1:]}, {*higher[:1], *higher[-1:]}
        if follow := lower.union(higher) - self._left if self._left else ():
            return sorted(follow)
        self._left = set()
        if self._usual is None or self._seen:
            return sorted(lower | higher)
        change = self._change()
        if 1 / CHANGE < change < CHANGE:
            expected = CLEAR_PAIRS * sum(self._costs.get(n, 0.0) for n in lower | higher)
            return sorted(lower | higher) if self.spent_s + expected <= SHARE * self.elapsed_s else []
        # Whoever takes the cores away makes fewer threads better, and more when they are given back.
        others = lower if change > 1 else higher
        if not others:
            self._usual *= change
        return sorted(others) if self.spent_s <= CREDIT_S + SHARE_CALLED * self.elapsed_s else []

    def _change(self) -> float:
        """The present length of a step, as a multiple of what it was when the number was chosen."""
        count = max(LEVEL_BLOCKS, math.ceil(LEVEL_S / max(WATCH_S, self._blocks[-1])))
        assert self._usual is not None
        if len(self._blocks) < count:
            return 1.0
        level = median(list(self._blocks)[-count:])
        if self._rough and 1 / ROUGH < level / self._usual < ROUGH:
            self._usual = level
        self._rough = False
        return level / self._usual

    def _time(self, count: int, steps: int, at_most_s: float) -> float:
        """Seconds of a step with so many threads, over so many of them, or fewer if they take too long."""
        begun = self._clock()
        self._use(count)
        try:
            if count not in self._warm:
                self._trial()
                self._warm.add(count)
            start, done = self._clock(), 0
            while done < steps and (done == 0 or self._clock() - start < at_most_s):
                self._trial()
                done += 1
            return (self._clock() - start) / done
        finally:
            self._use(self.count)
            self.spent_s += self._clock() - begun

    def _conclude(self) -> bool:
        """Ends the comparison when it is decided; returns whether another number of threads is better."""
        pairs = len(self._own)
        clear = all(min(r) > CLEAR or max(r) < 1 / CLEAR for r in self._ratios.values())
        far = all(min(r) > FAR for r in self._ratios.values())
        if pairs < (1 if far else CLEAR_PAIRS if clear else PAIRS):
            return False
        best = min(self._ratios, key=lambda other: median(self._ratios[other]))
        ratio, own = median(self._ratios[best]), median(self._own)
        better = ratio < GAIN and sum(r < 1 for r in self._ratios[best]) >= 0.8 * pairs
        switch = better and (ratio < SURE or best == self._seen)
        self._seen = best if better and not switch else 0
        self._usual, self._rough = own * ratio if switch else own, True
        compared, self._ratios, self._own = list(self._ratios), {}, []
        self._blocks.clear()
        if switch:
            self._costs[self.count] = own
            self._left |= {self.count, *compared} - {best}
            self.count = best
            self._use(best)
        return switch
