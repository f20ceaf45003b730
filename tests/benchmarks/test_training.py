"""The training benchmark: what it times, what it compares with, and the options that a GPU needs."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import training
from benchmarks.latency_floor import Machine
from conf.cli import compose
from flowhand.contracts.features import Spec
from policies import Policy

CPU = torch.device("cpu")
SMALL = ["net.width=16", "net.blocks=2", "encoder.width=16", "train.batch_size=32", "train.precision=fp32"]


def test_the_time_ends_when_the_device_has_done_all_calls(monkeypatch):
    """A GPU returns from a call after its launch: here 0.25 s, and leaves 0.5 s of work."""
    clock = SimpleNamespace(now=0.0, left=0.0)

    def work():
        clock.now, clock.left = clock.now + 0.25, clock.left + 0.5

    def wait(device):
        clock.now, clock.left = clock.now + clock.left, 0.0

    monkeypatch.setattr(training, "wait", wait)
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    assert training.seconds_per_call(work, 1.0, CPU) == 0.75
    assert clock.now == 5 * 0.75  # one call to warm up, four timed


@pytest.mark.parametrize("compiles", [False, True])
def test_the_products_are_those_of_an_uncompiled_step(compiles, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda loss: compiled.append(loss) or loss)
    monkeypatch.setattr(training, "seconds_per_call", lambda work, at_least, device: at_least / 10)
    machine = Machine(CPU)
    machine.rates = {"float32": 1e9}
    overrides = [*SMALL, "head=regression", f"train.compile={compiles}".lower()]
    cell = training.measure(overrides, machine, threads=1, rounds=2)
    assert len(compiled) == compiles
    policy = Policy(compose(overrides).policy, Spec.from_dict(training.FEATURES))
    weights = sum(p.numel() for name, p in policy.named_parameters() if name.endswith("weight") and p.ndim > 1)
    # Forward, and backward to the weights and the inputs; nothing goes back to the observation and the start.
    assert 2 * 2 * 32 * weights < 1e9 * cell["matmul_gflops_per_step"] <= 3 * 2 * 32 * weights
    assert (cell["batch_size"], cell["samples_per_s"], cell["step_ms"]) == (32, 320, 100)
    assert cell["fraction_of_matmul_rate"] == 0.5
    assert cell["fraction_of_large_matmul_rate"] == pytest.approx(cell["matmul_gflops_per_step"] / 0.1)


def test_products_lie_on_the_device_in_their_precision(monkeypatch):
    multiplied = []
    monkeypatch.setattr(torch, "mm", lambda a, b: multiplied.append((a.device.type, a.dtype, a.shape, b.shape)))
    training.products([(2, 3, 4)], torch.bfloat16, torch.device("meta"))()
    assert multiplied == [("meta", torch.bfloat16, (2, 3), (3, 4))]


def test_the_options_are_what_is_measured(monkeypatch):
    measured, written = [], {}

    def measure(overrides, machine, threads, rounds):
        measured.append((overrides, threads, rounds))
        numbers = ("samples_per_s", "fraction_of_matmul_rate", "matmul_gflop_rate", "fraction_of_large_matmul_rate")
        return {"overrides": overrides, **dict.fromkeys(numbers, 0.5)}

    monkeypatch.setattr(training, "measure", measure)
    monkeypatch.setattr(training, "select_device", lambda device, threads: torch.device(device))
    monkeypatch.setattr(training, "write", lambda name, content, out, **labels: written.update(labels))
    monkeypatch.setattr(sys, "argv", ["training", "--rounds", "1"])
    training.main()
    assert written == {"device": "cpu", "threads": "1 and 2"}
    assert measured[0] == (["train.precision=fp32"], 1, 1)
    assert measured[-1][1] == 2
    measured.clear()
    monkeypatch.setattr(sys, "argv", ["training", "--device", "cuda", "--compile", "--batch", "4096"])
    training.main()
    assert written == {"device": "cuda", "threads": "1"}
    assert {threads for _, threads, _ in measured} == {1}
    assert all(o[-2:] == ["train.compile=true", "train.batch_size=4096"] for o, _, _ in measured)
    assert [o[0] for o, _, _ in measured] == ["train.precision=fp32", *["train.precision=bf16"] * 3]
