"""Small policies and batches for every test of the brain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import nn

from flowhand.contracts.features import ChunkConfig, Feature, Spec
from policies import Batch, Policy, PolicyConfig, Provenance
from policies.encoders import ENCODERS
from policies.heads import HEADS
from policies.nets import NETS

SIZES = {  # given to every component that has such a field
    **dict.fromkeys(("width", "channels", "token_width"), 16),
    **dict.fromkeys(("features", "patch"), 8),
    "blocks": 2,
    "heads": 2,
    "keypoints": 4,
}


def component(table: Mapping[str, tuple[Any, Any]], kind: str, **options: Any) -> Any:
    cls = table[kind][0]
    names = {f.name for f in fields(cls)}
    if "down_dims" in names:  # a net of several widths
        width = options.pop("width", SIZES["width"])
        options = {"down_dims": [width // 2, width], "groups": 2, **options}
    return cls(**{**{name: size for name, size in SIZES.items() if name in names}, **options})


def shake(module: nn.Module) -> None:
    """Gives every weight a random value: a net that starts at zero would pass tests that it should not."""
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape) / p.shape[-1] ** 0.5)


@pytest.fixture
def tiny() -> Callable[..., Any]:
    """`tiny(table, kind, **fields)`: a small configuration of a component."""
    return component


@pytest.fixture
def randomize() -> Callable[[nn.Module], None]:
    return shake


@pytest.fixture
def spec() -> Spec:
    observation = {"state": Feature((3,), "float32", "m"), "goal": Feature((2,), "float32", "m")}
    return Spec(observation, Feature((2,), "float32", "m/s", (-1.0, -1.0), (1.0, 1.0)), control_dt_s=0.05)


@pytest.fixture
def make_policy(spec: Spec) -> Callable[..., Policy]:
    """`make_policy(encoder=, net=, head=, chunk=, ...)`: a fitted policy with random weights."""

    def make(
        encoder: str = "state",
        net: str = "mlp",
        head: str = "flow",
        chunk: ChunkConfig | None = None,
        random_weights: bool = True,
        width: int = SIZES["width"],
        **head_options: Any,
    ) -> Policy:
        config = PolicyConfig(
            chunk=chunk or ChunkConfig(history=2, prediction_horizon=4, execution_horizon=2),
            encoder=component(ENCODERS, encoder, width=width),
            net=component(NETS, net, width=width),
            head=component(HEADS, head, **head_options),
        )
        policy = Policy(config, spec)
        if random_weights:
            shake(policy)
        scale = torch.tensor([1.0, 10.0, 100.0])
        observation = {"state": torch.randn(200, 3) * scale, "goal": torch.randn(200, 2) + 5}
        policy.fit_normalizers(observation, torch.randn(200, 2) * torch.tensor([0.1, 3.0]) + 1)
        return policy

    return make


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """`make_batch(policy, rows)`: random windows that fit a policy; the second half of the last row is masked."""

    def make(policy: Policy, rows: int = 4) -> Batch:
        chunk = policy.config.chunk
        observation = {n: torch.randn(rows, chunk.history, *f.shape) for n, f in policy.spec.observation.items()}
        mask = torch.ones(rows, chunk.prediction_horizon, dtype=torch.bool)
        mask[-1, chunk.prediction_horizon // 2 :] = False
        return Batch(observation, torch.randn(rows, chunk.prediction_horizon, policy.spec.action.size) + 1, mask)

    return make


@pytest.fixture
def provenance() -> Provenance:
    return Provenance(
        env={"kind": "toy", "max_steps": 10},
        env_version="toy 1",
        task="reach the goal",
        demonstrations="0" * 64,
        demonstration_seeds=[0, 1, 5],
        versions={"torch": "2"},
        git_sha="",
        train_steps=7,
    )
