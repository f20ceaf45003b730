"""The number of CPU threads: chosen on a simulated machine with a clock of its own, where every time is known."""

import random
from itertools import pairwise

import pytest

from policies.training.threads import ThreadChooser, ladder

QUIET = {1: 0.045, 2: 0.028}  # seconds of a step, as measured on two quiet cores
BUSY = {1: 0.09, 2: 1.37}  # and with another program on each
MINUTE = 60.0


class Machine:
    """Runs steps whose length depends on the threads and on the time; `spread` is the scatter of a single step."""

    def __init__(self, lengths, spread=0.05, seed=0):
        self.lengths, self.spread, self.random = lengths, spread, random.Random(seed)
        self.now, self.threads, self.trials = 0.0, 0, 0
        self.steps, self.switches = [], []  # (end of an own step, its threads, its length), (time, threads)

    def step(self):
        seconds = self.lengths(self.now)[self.threads] * self.random.lognormvariate(0, self.spread)
        self.now += seconds
        return seconds

    def trial(self):
        self.trials += 1
        self.step()

    def use(self, count):
        self.threads = count

    def run(self, until, count=2, choices=(1, 2)):
        chooser = ThreadChooser(count, choices, self.trial, lambda: self.now, self.use)
        self.use(count)
        while self.now < until:
            seconds = self.step()
            self.steps.append((self.now, self.threads, seconds))
            if chooser.after_step(seconds):
                self.switches.append((self.now, chooser.count))
            assert self.threads == chooser.count  # whatever was tried, own steps go on as chosen
        return chooser

    def done(self, start, end):
        """Own steps of a stretch of time, in which trials took place too."""
        return sum(start < when <= end for when, _, _ in self.steps)


def test_the_numbers_to_choose_among():
    assert [ladder(n) for n in (1, 2, 4, 6, 16)] == [[1], [1, 2], [1, 2, 4], [1, 2, 4, 6], [1, 2, 4, 8, 16]]


@pytest.mark.parametrize("spread", [0.02, 0.3])
def test_a_quiet_machine_keeps_the_best_and_pays_less_than_a_hundredth(spread):
    machine = Machine(lambda now: QUIET, spread)
    machine.run(until=10 * MINUTE)
    assert machine.switches == []
    # Whatever was not an own step was a trial.
    assert 0 < machine.now - sum(seconds for _, _, seconds in machine.steps) < 0.01 * machine.now


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("lengths", "best"), [(QUIET, 2), (BUSY, 1), ({1: 0.002, 2: 0.003}, 1), ({1: 3, 2: 1.7}, 2)])
def test_the_start_finds_the_best(count, lengths, best):
    machine = Machine(lambda now: lengths)
    chooser = machine.run(until=max(5.0, 20 * max(lengths.values())), count=count)
    assert chooser.count == best
    assert len(machine.switches) == (count != best)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("comes", "leaves"), [(61.0, 200.0), (300.0, 500.0), (3.0, 90.0)])
def test_a_neighbour_that_comes_and_goes(seed, comes, leaves):
    """From a minute after it has come at least 0.7 of what one thread does; from one after it has gone, 0.95."""
    machine = Machine(lambda now: BUSY if comes < now < leaves else QUIET, spread=0.15, seed=seed)
    machine.run(until=leaves + 3 * MINUTE)
    mean = 1.011  # of the scatter
    start = comes + MINUTE
    while start + 30 < leaves:
        end = min(start + MINUTE, leaves)
        assert machine.done(start, end) > 0.7 * (end - start) / (BUSY[1] * mean)
        start = end
    quiet = machine.done(leaves + MINUTE, leaves + 3 * MINUTE)
    assert quiet > 0.95 * 2 * MINUTE / (QUIET[2] * mean)
    assert [count for _, count in machine.switches] == [1, 2]


def test_a_machine_whose_load_changes_all_the_time_pays_no_more():
    machine = Machine(lambda now: BUSY if int(now / 45) % 2 else QUIET, spread=0.15)
    chooser = machine.run(until=30 * MINUTE)
    assert chooser.spent_s == pytest.approx(machine.now - sum(seconds for _, _, seconds in machine.steps))
    assert chooser.spent_s < 0.01 * machine.now


@pytest.mark.parametrize("ratio", [0.97, 1.03])
def test_numbers_that_are_equally_good_are_not_changed_to_and_fro(ratio):
    switches = 0
    for seed in range(3):
        machine = Machine(lambda now: {1: 0.4 * ratio, 2: 0.4}, spread=0.05, seed=seed)
        machine.run(until=40 * MINUTE)
        switches += len(machine.switches)
    assert switches <= 1  # in two hours


def test_a_single_long_step_changes_nothing():
    hiccup = {1: 0.045, 2: 20.0}
    machine = Machine(lambda now: hiccup if 60 < now < 60.1 or 90 < now < 90.1 else QUIET)
    machine.run(until=5 * MINUTE)
    assert machine.switches == []


@pytest.mark.parametrize("best", [1, 2, 4, 8, 16])
def test_many_cores(best):
    """Each number is compared with its neighbours, the lowest and the highest, until none of them is better."""
    machine = Machine(lambda now: {n: 0.1 * max(n / best, best / n) ** 0.7 for n in ladder(16)})
    assert machine.run(until=3 * MINUTE, count=16, choices=ladder(16)).count == best
    assert len(machine.switches) <= 4


def test_a_run_that_comes_to_a_machine_with_fewer_cores():
    machine = Machine(lambda now: {**QUIET, 16: 0.5})
    assert machine.run(until=MINUTE, count=16).count == 2


def test_a_number_that_was_given_is_never_doubted():
    machine = Machine(lambda now: BUSY)
    machine.run(until=10 * MINUTE, count=2, choices=(2,))
    assert machine.switches == []
    assert machine.trials == 0


def test_the_first_step_with_a_number_is_not_timed():
    """It may compile for it."""
    machine, first = Machine(lambda now: QUIET, spread=0.0), {1}

    def trial():
        machine.trials += 1
        machine.now += 30 if machine.threads in first else 0
        first.discard(machine.threads)
        machine.step()

    machine.trial = trial
    machine.lengths = lambda now: {1: 0.01, 2: 0.05}
    assert machine.run(until=MINUTE).count == 1


def test_trials_stand_between_own_steps():
    """A block of the one, a block of the other, so that what the machine does meanwhile slows both."""
    order = []
    machine = Machine(lambda now: {1: 0.06, 2: 0.055})
    step = machine.step
    machine.step = lambda: order.append(machine.threads) or step()
    machine.run(until=2.0)
    changes = [b for a, b in pairwise(order) if a != b]
    assert changes[:8] == [1, 2] * 4
