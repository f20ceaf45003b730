"""Small policies that see, for the tests of vision."""

from __future__ import annotations

from typing import Any

import torch

from flowhand.contracts.features import ChunkConfig, Feature, Spec
from policies import Batch, Policy, PolicyConfig
from policies.encoders import ENCODERS, VISION
from policies.heads import HEADS
from policies.nets import NETS
from tests.policies.conftest import component, shake

ACTION = Feature((2,), "float32", "m/s")
CAMERA = Feature((40, 48, 3), "uint8", "", camera="front")
STATE = Feature((3,), "float32", "m")
SEEN = Spec({"state": STATE, "camera": CAMERA}, ACTION, 0.1)
SIGHTS = sorted(set(VISION) - {"none"})


def observe(spec: Spec, rows: int, history: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random observations; images of every grey level, depth of two metres in millimetres."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    for name, feature in spec.observation.items():
        shape = (rows, history, *feature.shape)
        if feature.dtype == "float32":
            found[name] = torch.randn(shape, generator=random)
        else:
            most = 256 if feature.dtype == "uint8" else 2000
            values = torch.randint(most, shape, generator=random, dtype=torch.int32)
            found[name] = values.to(torch.uint8 if feature.dtype == "uint8" else torch.uint16)
    return found


def seeing(
    vision: str = "conv",
    net: str = "mlp",
    head: str = "flow",
    spec: Spec = SEEN,
    chunk: ChunkConfig | None = None,
    random_weights: bool = True,
    options: dict[str, Any] | None = None,
    **vision_options: Any,
) -> Policy:
    """A fitted policy with random weights; `options` are the net's, the others the vision encoder's."""
    config = PolicyConfig(
        chunk=chunk or ChunkConfig(history=2, prediction_horizon=4, execution_horizon=2),
        encoder=component(ENCODERS, "state"),
        vision=component(VISION, vision, **vision_options),
        net=component(NETS, net, **(options or {})),
        head=component(HEADS, head),
    )
    policy = Policy(config, spec)
    if random_weights:
        shake(policy)
    frames = {name: value[:, 0] for name, value in observe(spec, 200, 1).items()}
    policy.fit_normalizers(frames, torch.randn(200, spec.action.size) * 3 + 1)
    return policy


def batch_of(policy: Policy, rows: int = 4, seed: int = 0) -> Batch:
    """Random windows."""
    chunk = policy.chunk
    mask = torch.ones(rows, chunk.prediction_horizon, dtype=torch.bool)
    mask[-1, chunk.prediction_horizon // 2 :] = False
    action = torch.randn(rows, chunk.prediction_horizon, policy.spec.action.size) + 1
    return Batch(observe(policy.spec, rows, chunk.history, seed), action, mask)
