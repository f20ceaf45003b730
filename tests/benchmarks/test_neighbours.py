"""The benchmark of a training beside busy programs: who takes turns, and what counts."""

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import neighbours, training


class Contender:
    """A training whose rate in samples per second depends on its threads and on how busy the machine is."""

    state = SimpleNamespace(busy=0, turns=[])

    def __init__(self, trainer, choices):
        self.choices = choices
        self.chooser = SimpleNamespace(count=max(choices), spent_s=1.0, elapsed_s=199.0)

    def turn(self, seconds):
        rates = {1: 500, 2: 100} if self.state.busy else {1: 1000, 2: 1500}
        rate = rates[self.chooser.count]
        self.state.turns.append((self.state.busy, self.choices))
        self.chooser.count = max(self.choices, key=rates.__getitem__)  # from its next turn on
        return round(rate * seconds), seconds


def test_all_take_turns_and_the_first_minute_does_not_count(monkeypatch):
    class Busy:
        def __init__(self, count):
            self.count = count

        def __enter__(self):
            Contender.state.busy = self.count

        def __exit__(self, *_):
            Contender.state.busy = 0

    monkeypatch.setattr(neighbours, "neighbours", Busy)
    monkeypatch.setattr(neighbours, "Contender", Contender)
    monkeypatch.setattr(neighbours, "usable_threads", lambda: 2)
    monkeypatch.setattr(neighbours, "usable_cores", lambda: 2)
    monkeypatch.setattr(neighbours.train, "trainer_of", lambda *_: None)
    monkeypatch.setattr(Contender.state, "turns", [])
    written = []
    monkeypatch.setattr(training, "write", lambda name, content, out, **labels: written.append((name, content, labels)))
    monkeypatch.setattr(sys, "argv", ["training", "--busy", "--minutes", "2"])
    training.main()
    ((name, found, labels),) = written
    assert (name, labels) == ("neighbours", {"device": "cpu", "threads": "chosen, 1 and all"})
    assert [choices for _, choices in Contender.state.turns[:3]] == [[1, 2], [1], [2]]
    # Three stretches of three minutes, four rounds of three turns in each.
    assert [busy for busy, _ in Contender.state.turns] == [0] * 36 + [2] * 36 + [0] * 36
    assert [len(minutes) for minutes in found["stretches"].values()] == [2, 2, 2]
    assert found["least_share_of_one_when_busy"] == pytest.approx(1.0)  # its first slow turn was in the first minute
    assert found["least_share_of_best_when_quiet"] == pytest.approx(1.0)
    assert [each["threads"] for each in found["stretches"]["busy"]] == [1, 1]
    assert found["share_of_time_in_trials"] == 0.005


def test_a_turn_has_the_threads_of_its_training():
    clock, used = SimpleNamespace(now=0.0), []

    def advance():
        used.append(torch.get_num_threads())
        clock.now += 2.0

    trainer: Any = SimpleNamespace(
        advance=advance, trial=advance, gradient_s=2.0, config=SimpleNamespace(batch_size=10)
    )
    before = torch.get_num_threads()
    contender = neighbours.Contender(trainer, [before + 1], lambda: clock.now)
    assert contender.turn(5.0) == (30, 6.0)
    assert used == [before + 1] * 3
    assert torch.get_num_threads() == before


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux binds a program to a core")
def test_neighbours_compute_until_the_block_ends(monkeypatch):
    started, real = [], neighbours.subprocess.Popen
    monkeypatch.setattr(neighbours.subprocess, "Popen", lambda *a, **k: started.append(p := real(*a, **k)) or p)
    with neighbours.neighbours(1):
        assert [program.poll() for program in started] == [None]
    assert [program.poll() for program in started] == [-9]
