"""Decisions over screens as graphs: the same plans as the policy gives, of all kinds of heads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from policies import Policy
from policies.export import tracing
from policies.export.decision import Decision
from tests.deploy import unchecked as elsewhere
from tests.policies.screens import fitted, make_policy, named_element

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
CASES = {"flow": {"choices": "cross_entropy"}, "tokens": {}, "classification": {}, "mip": {"choices": "cross_entropy"}}


def ready(head: str) -> Policy:
    observation, plan = named_element(6)
    policy = fitted(make_policy(head, width=16, **CASES[head]), observation, plan)
    with torch.no_grad():
        for p in policy.parameters():
            p.copy_(torch.randn(p.shape) / p.shape[-1] ** 0.5)
    return policy.eval().requires_grad_(False)


def inputs_of(policy: Policy, rows: int, seed: int = 1) -> dict[str, np.ndarray]:
    observation, _ = named_element(rows, seed)
    noise = torch.randn(rows, *policy.noise_shape, generator=torch.Generator().manual_seed(seed)).numpy()
    return {"noise": noise, **{f"observation.{name}": value.numpy() for name, value in observation.items()}}


def unchecked(head: str, path: str) -> None:
    policy = ready(head)
    with open(path, "wb") as file:
        file.write(tracing.onnx_model(Decision(policy), inputs_of(policy, 2)))


@pytest.mark.slow  # tracing takes half a minute
@pytest.mark.parametrize("head", CASES)
def test_the_graph_plans_as_the_policy_does(head, tmp_path):
    """At sizes other than those that it was traced with; choices are the same, numbers up to rounding."""
    elsewhere.call("tests.deploy.test_export_screen", head=head, path=str(tmp_path / "model.onnx"))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    policy = ready(head)
    for rows in (1, 5):
        inputs = inputs_of(policy, rows, seed=rows)
        (found,) = session.run(None, inputs)
        observation = {name.removeprefix("observation."): value for name, value in inputs.items() if name != "noise"}
        expected = policy.plan(observation, inputs["noise"])
        live = np.cumsum(expected[..., :1] == 0, axis=1) <= 1  # a graph goes on after a stop
        np.testing.assert_allclose(np.where(live, found, 0), np.where(live, expected, 0), atol=1e-4)
    assert len(np.unique(expected[..., 1])) > 1
