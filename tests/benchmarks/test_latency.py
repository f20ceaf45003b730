"""The latency benchmark: its floor by hand, its turns, and the GPU's code path on a CPU."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import latency, latency_cuda
from benchmarks.latency_floor import Machine, Work, work
from benchmarks.latency_turns import percentiles, random_policy, take_turns
from policies import Policy

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
SMALL = ["net.width=16", "net.blocks=2"]
SMALL_UNET = ["net=unet1d", "net.down_dims=[8,16]", "net.groups=2", "net.time_width=8"]


def matrices(module: torch.nn.Module) -> int:
    return sum(p.numel() for name, p in module.named_parameters() if name.endswith("weight") and p.ndim > 1)


@pytest.mark.slow
@pytest.mark.parametrize("net", [["net=mlp", *SMALL], ["net=transformer", "net.heads=2", *SMALL], SMALL_UNET])
def test_weights_are_read_as_often_as_they_are_used(net):
    policy = random_policy([*net, "head=regression"])
    prepared = [m for name, m in policy.net.named_children() if name in ("time", "cond", "modulation", "films")]
    assert work(policy).reads == matrices(policy.net) + matrices(policy.encoder)
    once = sum(map(matrices, prepared)) + matrices(policy.encoder)
    ten = work(random_policy([*net, "head.steps=10"]))
    assert ten.reads == once + 10 * (matrices(policy.net) + matrices(policy.encoder) - once)
    assert ten.weights >= matrices(policy.net) + matrices(policy.encoder)


def test_operations_are_two_for_each_weight_and_row():
    policy = random_policy(["net=mlp", *SMALL, "head=regression"])
    assert work(policy).operations == 2 * work(policy).reads
    tokens = 16  # of the transformer, a row each in all that is not conditioning
    policy = random_policy(["net=transformer", "net.heads=2", *SMALL, "head=regression"])
    once = sum(matrices(m) for n, m in policy.net.named_children() if n in ("time", "cond", "modulation"))
    once += matrices(policy.encoder)
    every = matrices(policy.net) + matrices(policy.encoder) - once
    attention = 2 * 2 * tokens * tokens * 16  # in two blocks, two products of width 16
    assert work(policy).operations == 2 * (once + tokens * every + attention)


def test_the_floor_is_the_longer_of_the_two_times():
    machine = Machine(CPU)
    machine.bandwidths, machine.rates = {4 * 100: 1e3}, {"float32": 1e6}
    known = Work(weights=100, reads=500, operations=1000)
    assert machine.floor_s(known, 1) == (4 * 500 / 1e3, "memory")
    assert machine.floor_s(known, 3000) == (3000 * 1000 / 1e6, "arithmetic")


@pytest.mark.slow
def test_a_machine_is_measured_once():
    machine = Machine(CPU, seconds=0)
    assert machine.bandwidth(4096) == machine.bandwidth(4096) > 0
    assert machine.rate(torch.bfloat16) == machine.rate(torch.bfloat16) > 0
    assert (list(machine.bandwidths), list(machine.rates)) == ([4096], ["bfloat16"])


def test_programs_take_turns():
    order = []
    speeds = take_turns({name: lambda name=name: order.append(name) for name in "ab"}, CPU, calls=7, seconds=10)
    assert order == [*"ab", *"aaabbb", *"ab" * 7]  # the first call, the warm-up, the turns
    assert speeds["a"]["calls"] == speeds["b"]["calls"] == 7


def test_the_time_that_is_measured_is_the_programs_own():
    speeds = take_turns({"quick": lambda: None, "long": lambda: time.sleep(0.02)}, CPU, calls=1000, seconds=0.1)
    assert speeds["quick"]["p50_ms"] < 5 < 20 <= speeds["long"]["p50_ms"]
    assert 5 <= speeds["long"]["calls"] <= 11  # two programs have 0.2 s together
    assert speeds["long"]["first_s"] >= 0.02


def test_percentiles_are_in_milliseconds():
    assert percentiles([n / 1e3 for n in range(101)]) == pytest.approx({"p50_ms": 50, "p95_ms": 95, "p99_ms": 99})


@pytest.mark.slow
@pytest.mark.parametrize("head", latency.HEADS)
def test_the_names_of_the_heads_tell_their_evaluations(head):
    name, _, count = head.partition("-")
    policy = random_policy(["net=mlp", *SMALL, *latency.HEADS[head]])
    assert policy.head.evaluations == int(count or 1)
    kinds = {"flow": "flow", "regression": "regression", "shortcut": "shortcut", "edm": "edm"}
    assert policy.config.head.kind == kinds.get(name, "diffusion")


@pytest.fixture
def gpu(monkeypatch):
    """What the GPU's code path meets, on a CPU: compiling puts a program in place that is off by half a spread."""

    def compile(self, precision):
        half = 0.5 * self.action_normalizer.scale
        self._compiled = lambda observation, noise: self.generate(self.net, observation, noise) + half

    monkeypatch.setattr(Policy, "compile", compile)
    return Machine(CPU, seconds=0)


@pytest.mark.slow
def test_the_path_of_the_gpu(gpu):
    """Shapes, names, what is divided by what, and what is compared with what."""
    policy = random_policy(["net=transformer", "net.heads=2", *SMALL, "head.steps=10"])
    single, many = latency_cuda.cells(policy, [1, 8], gpu, calls=5, seconds=0.1)
    assert [(c["batch"], c["evaluations"]) for c in (single, many)] == [(1, 10), (8, 10)]
    names = ["eager-fp32", *(f"captured-{p}{end}" for p in ("fp32", "bf16") for end in ("", "-numpy"))]
    assert list(single["programs"]) == list(many["programs"]) == names
    assert "share_of_matmul_rate" not in single["programs"]["captured-bf16"]
    for name, dtype in (("captured-bf16", torch.bfloat16), ("captured-fp32", torch.float32)):
        speed = many["programs"][name]
        assert speed["share_of_matmul_rate"] == many["gflop"] * 1e9 / (speed["p50_ms"] / 1e3) / gpu.rate(dtype)
        assert speed["max_error"] == pytest.approx(0.5, abs=1e-4)
    assert many["programs"]["eager-fp32"]["max_error"] == 0
    assert "captured-bf16-numpy" in latency_cuda.told(many)


def test_memory_that_nobody_holds_is_overwritten_before_programs_are_compared(gpu, monkeypatch):
    """A graph that reads freed memory must be found out: what only a cycle holds is gone, and NaN lies about."""
    policy, order = random_policy(["net=mlp", *SMALL]), []
    made = torch.full_like
    monkeypatch.setattr(latency_cuda.gc, "collect", lambda: order.append("collect"))
    monkeypatch.setattr(torch, "full_like", lambda *a, **k: order.append("overwrite") or made(*a, **k))
    monkeypatch.setattr(Policy, "plan", lambda self, observation, noise: order.append("decide") or np.zeros((1, 16, 4)))
    arrays = {}, np.zeros((1, 16, 4), np.float32)
    assert latency_cuda.max_errors({latency_cuda.EAGER: policy, "captured-bf16": policy}, arrays)
    weights = len(list(policy.parameters()))
    assert order == ["collect", *["overwrite"] * 2 * weights, *["decide"] * 3]


@pytest.mark.parametrize(
    "given",
    [pytest.param([], marks=pytest.mark.slow), ["--heads", "edm-19", "--nets", "unet1d", "--batches", "2", "3"]],
)
def test_on_a_gpu_the_options_say_what_is_measured(given, gpu, monkeypatch, tmp_path):
    gpu.device, gpu.rates = torch.device("cuda"), {"bfloat16": 7e12}
    measured, written = [], {}

    def cells(policy, batches, machine, calls, seconds):
        measured.append((policy.config.net.kind, policy.head.evaluations, batches, calls, seconds))
        yield {"batch": 1, "programs": {}}

    monkeypatch.setattr(latency, "Machine", lambda device: gpu)
    monkeypatch.setattr(latency, "write", lambda *a, **k: written.update(content=a[1], **k))
    monkeypatch.setattr(latency_cuda, "cells", cells)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # to be put back
    monkeypatch.setattr(sys, "argv", ["latency", *given, "--calls", "9", "--seconds", "3"])
    latency.main()
    if given:
        assert measured == [("unet1d", 19, [2, 3], 9, 3.0)]
        assert [(c["net"], c["head"]) for c in written["content"]["cells"]] == [("unet1d", "edm-19")]
    else:
        nets = ("mlp", "unet1d", "transformer")
        assert measured == [(net, steps, [1, 4096], 9, 3.0) for net in nets for steps in (1, 4, 10)]
    assert written["content"]["matmul_gflop_rate"] == {"bfloat16": 7000.0}
    assert (written["device"], written["threads"]) == (torch.device("cuda"), 1)
    assert not torch.backends.cudnn.allow_tf32


def test_the_large_transformer_has_20_million_parameters():
    policy = random_policy(latency.NETS["transformer-20m"])
    assert 19.5e6 < sum(p.numel() for p in policy.parameters()) < 20.5e6


@pytest.mark.slow
def test_the_table(tmp_path):
    command = [sys.executable, "-m", "benchmarks.latency", "--heads", "edm-19", "--nets", "mlp", "--batches", "1", "2"]
    limits = ["--calls", "3", "--seconds", "1", "--out", str(tmp_path / "result.json")]
    done = subprocess.run([*command, *limits], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.count("edm-19") == 2
    assert str(latency.LARGE) in (tmp_path / "result.json").read_text()
