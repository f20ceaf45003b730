"""Exports as native code: the same actions, for this machine alone, and never run without being asked to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import flowhand
from flowhand.contracts.export import artifact
from flowhand.deploy import runner
from policies.export import runner_torch, tracing
from tests.deploy.test_export import differs, inputs, make, write, write_unchecked


@pytest.mark.slow
def test_native_code(tmp_path, monkeypatch):
    policy, manifest = write_unchecked(tmp_path / "policy", "mlp", "flow", rows=50, format="aoti")
    assert 0 < manifest.parity.max_error <= 1e-5
    planner = runner_torch.load(tmp_path / "policy")
    assert max(differs(policy, planner, rows) for rows in (1, 2, 3, 16, 200)) <= 1e-5
    (observation, noise), backwards = inputs(policy, 3), slice(None, None, -1)
    turned = planner.plan({name: value[backwards] for name, value in observation.items()}, noise[backwards])
    np.testing.assert_array_equal(turned, planner.plan(observation, noise)[backwards])
    refused(tmp_path / "policy")
    monkeypatch.setattr(runner_torch, "this_cpu", lambda: "a toaster")
    with pytest.raises(ValueError, match=r"it was compiled for .*this is .*a toaster.*export the checkpoint again"):
        runner_torch.load(tmp_path / "policy")


def refused(path: Path) -> None:
    with pytest.raises(ValueError, match="format=aoti, which needs torch"):
        runner.load(path)
    with pytest.raises(ValueError, match="holds native code: to load it is to run it"):
        flowhand.load(path)


def test_it_takes_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"needs the C\+\+ compiler 'no-such-compiler', which is not there"):
        write(tmp_path / "policy", make(), rows=3, format="aoti")


def test_code_from_elsewhere_is_not_touched(tmp_path, monkeypatch):
    policy, path = make(), tmp_path / "policy"
    monkeypatch.setattr(tracing, "native_code", lambda *_: b"anything")
    with monkeypatch.context() as patch:
        patch.setattr("flowhand.commands.export.runner", lambda *_: policy)
        write(path, policy, rows=20, format="aoti")
    refused(path)
    with pytest.raises(ValueError, match="the program cannot be loaded"):
        flowhand.load(path, trust=True)
    for name in ("torch", "cpu"):
        data = json.loads((path / "manifest.json").read_text())
        data["versions"][name] = "another"
        (path / "manifest.json").write_text(json.dumps(data))
        with pytest.raises(ValueError, match=f"it was compiled for .*'{name}': 'another'"):
            flowhand.load(path, trust=True)
    assert artifact.read(path)[0].versions["torch"] != torch.__version__
