"""Decisions over screens as graphs: words matched exactly, and the same plans as the policy gives, by several heads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from policies import Policy
from policies.encoders.matching import matches
from policies.export import tracing
from policies.export.decision import Decision
from policies.nets.base import Net
from tests.deploy import unchecked as elsewhere
from tests.policies.screens import fitted, make_policy, named_element

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
CASES = {"flow": {"choices": "cross_entropy"}, "tokens": {}, "classification": {}, "mip": {"choices": "cross_entropy"}}


class Codes(Decision):
    """The decision before choices are taken, where rounding shows as rounding and not as another choice."""

    def with_net(self, net: Net) -> Codes:
        """The same with a net in place of the policy's own."""
        return Codes(self.policy, net)

    def forward(self, noise: Tensor, observation: dict[str, Tensor]) -> Tensor:
        """The chunk as the head gives it."""
        return self.policy.head.sample(self.net, noise, self.policy.encode(observation))


class Matching(nn.Module):
    """Where strings hold words."""

    def forward(self, strings: Tensor, words: Tensor) -> Tensor:
        """Of one screen a row."""
        return matches(strings, words)


def ready(head: str) -> Policy:
    observation, plan = named_element(6)
    policy = fitted(make_policy(head, width=16, **CASES[head]), observation, plan)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in policy.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5)
    return policy.eval().requires_grad_(False)


def inputs_of(policy: Policy, rows: int, seed: int = 1) -> dict[str, np.ndarray]:
    observation, _ = named_element(rows, seed)
    noise = torch.randn(rows, *policy.noise_shape, generator=torch.Generator().manual_seed(seed)).numpy()
    return {"noise": noise, **{f"observation.{name}": value.numpy() for name, value in observation.items()}}


def unchecked(head: str, path: str) -> None:
    policy = ready(head)
    with open(path, "wb") as file:
        file.write(tracing.onnx_model(Codes(policy), inputs_of(policy, 2)))


@pytest.mark.slow  # tracing takes half a minute
def test_a_graph_matches_words_exactly():
    """Hashes of 64 bits come out whole: ONNX Runtime's sums of int64 do not, and matches were lost with them."""
    observation, _ = named_element(3)
    seen = observation["element_strings"][:, 0], observation["words"][:, 0]
    with tracing.quiet():
        converted = torch.onnx.export(Matching(), seen, dynamo=True, verbose=False)
    assert converted is not None
    session = onnxruntime.InferenceSession(converted.model_proto.SerializeToString())
    for seed in range(4):
        observation, _ = named_element(3, seed)
        seen = observation["element_strings"][:, 0], observation["words"][:, 0]
        names = (given.name for given in session.get_inputs())
        (found,) = session.run(None, dict(zip(names, (each.numpy() for each in seen), strict=True)))
        expected = matches(*seen).numpy()
        assert expected.sum() >= 3
        np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("head", CASES)
def test_the_graph_plans_as_the_policy_does(head, tmp_path):
    """At sizes other than those that it was traced with, up to rounding."""
    elsewhere.call("tests.deploy.test_export_screen", head=head, path=str(tmp_path / "model.onnx"))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    policy = ready(head)
    for rows in (1, 5):
        inputs = inputs_of(policy, rows, seed=rows)
        (found,) = session.run(None, inputs)
        observation = {n.removeprefix("observation."): torch.from_numpy(v) for n, v in inputs.items() if n != "noise"}
        with torch.no_grad():
            expected = Codes(policy)(torch.from_numpy(inputs["noise"]), observation).numpy()
        plan = policy.plan({n: v.numpy() for n, v in observation.items()}, inputs["noise"])
        live = np.cumsum(plan[..., :1] == 0, axis=1) <= 1  # a graph goes on after a stop
        np.testing.assert_allclose(np.where(live, found, 0), np.where(live, expected, 0), atol=1e-4)
    assert len(np.unique(plan[..., 1])) > 1
