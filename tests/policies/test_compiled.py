"""The fast sampler: what it refuses, here; what it computes, in compiled_cases.py and a process of its own."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch

from policies import compile as module
from policies.compile import Captured, CompiledSampler, twin

ROOT = Path(__file__).parents[2]
CASES = "tests/policies/compiled_cases.py"
SEEING = "tests/policies/compiled_vision_cases.py"


def run_cases(*which: str, of: str = CASES) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:logging", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, *which, of], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_actions_of_the_default_head():
    assert "1 passed" in run_cases("-k", "test_the_same_actions_from_one_graph and mlp-flow-3")


@pytest.mark.slow
def test_actions_that_are_relative():
    assert "1 passed" in run_cases("-k", "anchor and delta")


@pytest.mark.slow
def test_the_cases():
    assert " passed" in run_cases()


@pytest.mark.slow
def test_the_cases_of_policies_that_see():
    assert "6 passed" in run_cases(of=SEEING)


@pytest.fixture
def given(make_policy, make_batch):
    policy = make_policy()
    return policy, make_batch(policy).observation, torch.randn(4, *policy.noise_shape)


def test_an_unknown_precision(given):
    with pytest.raises(ValueError, match="precision='fp16' is unknown; choices: fp32, bf16"):
        given[0].compile("fp16")
    assert given[0].sample(*given[1:]).requires_grad  # and it is not half compiled


@pytest.mark.parametrize(
    ("system", "environment", "message"),
    [
        ("linux", {"PATH": ""}, r"needs the C\+\+ compiler 'g\+\+'.*install it \(apt-get install g\+\+\)"),
        ("darwin", {"PATH": ""}, r"needs the C\+\+ compiler 'clang\+\+'.*install it \(xcode-select --install\)"),
        ("linux", {"CXX": "no-such-compiler"}, r"'no-such-compiler', which is not there.*environment variable CXX"),
    ],
)
def test_no_compiler(given, monkeypatch, system, environment, message):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.delenv("CXX", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        given[0].compile()
    CompiledSampler(given[0], backend="eager")  # which needs none


def test_a_torch_that_is_too_old(given, monkeypatch):
    monkeypatch.delattr(torch.compiler, "nested_compile_region")
    with pytest.raises(ValueError, match=r"needs torch 2\.8, this is "):
        given[0].compile()


def test_inputs_on_another_device(given):
    policy, observation, noise = given
    compiled = CompiledSampler(policy, backend="eager")
    with pytest.raises(ValueError, match="the policy was compiled on cpu, the noise is on meta; compile again"):
        compiled(observation, noise.to("meta"))


@pytest.mark.parametrize("change", ["a weight", "a statistic"])
def test_bf16_refuses_changed_weights(given, change):
    policy, observation, noise = given
    compiled = CompiledSampler(policy, "bf16", "eager")
    with torch.no_grad():
        (policy.net.outlet.weight if change == "a weight" else policy.action_normalizer.shift).add_(1)
    with pytest.raises(ValueError, match=r"the weights have changed since compile\(precision='bf16'\); compile again"):
        compiled(observation, noise)


@torch.no_grad()
def test_a_captured_graph_keeps_the_weights_that_it_reads(given, monkeypatch):
    """A replay asks for no tensor: it reads the addresses that the capture saw, those of rounded weights among them.

    With stand-ins for CUDA, on the capture's own stream and not on one of torch's, which belongs to the first device.
    """
    policy, observation, noise = given
    stand_ins = {name: MagicMock() for name in ("current_stream", "Stream", "stream", "device", "CUDAGraph", "graph")}
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    twins = []
    monkeypatch.setattr(module, "twin", lambda *of: twins.append(twin(*of)) or twins[-1])
    one = {name: value[:1] for name, value in observation.items()}
    captured = Captured(CompiledSampler(policy, "bf16")._compiled(1), one, noise[:1])
    assert stand_ins["graph"].call_args.kwargs["stream"] is stand_ins["Stream"].return_value
    rounded = [weakref.ref(layer.kept) for layer in twins.pop().modules() if hasattr(layer, "kept")]
    gc.collect()
    assert rounded
    assert all(weight() is not None for weight in rounded)
    del captured
    gc.collect()
    assert all(weight() is None for weight in rounded)
