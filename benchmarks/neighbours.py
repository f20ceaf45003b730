"""Training beside busy programs: what the chosen number of threads reaches, beside one thread and all of them.

    python -m benchmarks.training --busy [--minutes M]

A quiet stretch, one with a program that computes on every core, and a quiet one again. Three trainings of the default
recipe take turns of a few seconds: one chooses its threads (policies/training/threads.py) as `train.threads=0` does,
its trials included; one has a single thread; one as many as there are cores. So all three meet the same minute. The
first minute after a change does not count. The share is the chosen one's rate over that of one thread, and over the
best of both.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from conf.cli import compose
from flowhand.commands import train
from flowhand.contracts.features import Spec
from flowhand.contracts.provenance import usable_cores
from policies.device import usable_threads
from policies.training.threads import ThreadChooser, ladder

MINUTE_S, TURN_S = 60.0, 5.0
SPIN = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """So many programs inside the block, each computing all the time on a core of its own."""
    programs = [subprocess.Popen([sys.executable, "-S", "-c", SPIN, str(core)]) for core in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


class Contender:
    """A training that takes its turns with its own number of threads."""

    def __init__(self, trainer: train.Trainer, choices: list[int], clock: Callable[[], float] = time.perf_counter):
        self.trainer, self.clock = trainer, clock
        self.chooser = ThreadChooser(max(choices), choices, trainer.trial, clock)

    def turn(self, seconds: float) -> tuple[int, float]:
        """Trains for so long; returns the samples and the seconds."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.chooser.count)
        start, steps = self.clock(), 0
        while steps == 0 or self.clock() - start < seconds:
            self.trainer.advance()
            self.chooser.after_step(self.trainer.gradient_s)
            steps += 1
        torch.set_num_threads(before)
        return steps * self.trainer.config.batch_size, self.clock() - start


def minute(contenders: dict[str, Contender]) -> dict[str, Any]:
    """Turns for a minute; samples per second of each, the threads that were chosen, and what they reached."""
    samples, seconds = dict.fromkeys(contenders, 0), dict.fromkeys(contenders, 0.0)
    while sum(seconds.values()) < MINUTE_S:
        for name, contender in contenders.items():
            more, took = contender.turn(TURN_S)
            samples[name] += more
            seconds[name] += took
    rates = {name: samples[name] / seconds[name] for name in contenders}
    return {
        "samples_per_s": rates,
        "threads": contenders["chosen"].chooser.count,
        "share_of_one": rates["chosen"] / rates["one"],
        "share_of_best": rates["chosen"] / max(rates["one"], rates["all"]),
    }


def measure(features: dict[str, Any], episodes: list[Any], minutes: int) -> dict[str, Any]:
    """So many counted minutes of each stretch."""
    most, spec = usable_threads(), Spec.from_dict(features)
    choices = {"chosen": ladder(most), "one": [1], "all": [most]}
    config = compose(["train.precision=fp32", "train.device=cpu"])
    cpu = torch.device("cpu")
    contenders = {name: Contender(train.trainer_of(config, spec, episodes, cpu), c) for name, c in choices.items()}
    found: dict[str, Any] = {}
    for stretch, busy in (("quiet", 0), ("busy", usable_cores()), ("quiet again", 0)):
        with neighbours(busy):
            minute(contenders)  # does not count
            found[stretch] = [minute(contenders) for _ in range(minutes)]
        for each in found[stretch]:
            rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in each["samples_per_s"].items())
            print(f"{stretch}: {rates} samples/s, {each['threads']} threads chosen", flush=True)
    chooser = contenders["chosen"].chooser
    return {
        "stretches": found,
        "least_share_of_one_when_busy": min(each["share_of_one"] for each in found["busy"]),
        "least_share_of_best_when_quiet": min(m["share_of_best"] for s in ("quiet", "quiet again") for m in found[s]),
        "share_of_time_in_trials": chooser.spent_s / (chooser.spent_s + chooser.elapsed_s),
    }
