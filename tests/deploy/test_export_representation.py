"""An export has the anchor of differences in its graph: absolute, physical actions in every format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import flowhand
from flowhand.commands import export
from flowhand.contracts.export import artifact
from flowhand.contracts.features import Feature
from flowhand.contracts.nearest import difference
from flowhand.deploy.runner import Runner
from policies.export import tracing
from policies.policy import Policy
from tests.deploy import unchecked as elsewhere
from tests.policies import represented


def write(path: Path, policy: Policy, form: str) -> artifact.Manifest:
    torch.manual_seed(1)
    golden = {f"observation.{name}": value for name, value in represented.observations(2).items()}
    golden["noise"] = torch.randn(2, *policy.noise_shape)
    with pytest.MonkeyPatch.context() as patch:
        elsewhere.here(patch)
        return export.export(path, policy, golden, {}, export.ExportConfig(format=form, rows=20))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "pt2", "aoti"])
@pytest.mark.parametrize("representation", ["absolute", "delta", "relative"])
def test_the_actions_are_the_policys(tmp_path, form, representation):
    policy = represented.make(representation)
    manifest = write(tmp_path / "policy", policy, form)
    assert manifest.parity.max_error <= 1e-5
    np.testing.assert_allclose(manifest.action_spread, policy.action_spread, rtol=1e-6)
    planner = flowhand.load(tmp_path / "policy", trust=True) if form != "onnx" else flowhand.load(tmp_path / "policy")
    seen = {name: value.numpy() for name, value in represented.observations(7).items()}
    noise = np.random.default_rng(0).standard_normal((7, *policy.noise_shape)).astype(np.float32)
    expected = policy.plan(seen, noise)
    assert np.abs(difference(planner.plan(seen, noise), expected, represented.ACTION)).max() < 1e-4
    moved = {**seen, "state": seen["state"].copy()}
    moved["state"][:, 0] += 0.0  # only the present state is the anchor
    moved["state"][:, -1, 1] += 2.0
    assert np.abs(planner.plan(moved, noise) - policy.plan(moved, noise))[..., :2].max() < 1e-4


@pytest.mark.slow
def test_int8_rounds_the_net_and_not_the_anchor(tmp_path, monkeypatch):
    policy = represented.make("relative", "flow", steps=5)
    manifest = write(tmp_path / "policy", policy, "onnx")
    monkeypatch.setattr(tracing, "NARROW", 2)  # the policy is small
    planner = Runner(
        replace(manifest, precision="int8"), tracing.rounded((tmp_path / "policy" / "policy.onnx").read_bytes())
    )
    seen = {name: value.numpy() for name, value in represented.observations(5).items()}
    noise = np.random.default_rng(0).standard_normal((5, *policy.noise_shape)).astype(np.float32)
    continuous = [0, 1, 2, 3, 4, 5, 7]
    for offset in (0.0, 1000.0):
        seen["state"][:, -1, 1:3] += offset
        apart = difference(planner.plan(seen, noise), policy.plan(seen, noise), represented.ACTION)[..., continuous]
        assert 0 < np.abs(apart / policy.action_spread.numpy()[continuous]).max() < 0.5


def test_errors_of_angles_and_rotations_are_those_of_the_nearest_of_equal_values():
    feature = Feature((8,), "float32", "", wraps=(0,), rotations=((1, "quaternion_xyzw"), (5, "axis_angle")))
    expected = np.array([[[3.14, 0, 0, 0, 1, np.pi, 0, 0]]], np.float32)
    action = np.array([[[-3.14, 0, 0, 0, -1, 0.02 - np.pi, 0, 0]]], np.float32)
    error, physical, changed = artifact.compare(action, expected, [0.1] * 8, feature)
    assert physical == pytest.approx([2 * np.pi - 6.28, 0, 0, 0, 0, 0.02, 0, 0], abs=1e-6)
    assert error == pytest.approx(0.2, abs=1e-4)
    assert changed == 0
