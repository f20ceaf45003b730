"""A small policy whose action has all kinds of parts, for the tests of what is made of policies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from flowhand.contracts.features import ChunkConfig, Feature, Spec
from policies.encoders.state import StateEncoderConfig
from policies.heads import HEADS
from policies.nets.mlp import MLPConfig
from policies.policy import Policy, PolicyConfig
from policies.representation.config import ActionConfig

# Two joints, an angle that wraps, a rotation, a tool of three, a gripper. The state has the rotation in another form.
ACTION = Feature((8,), "float32", "", choices=(0,) * 6 + (3, 0), wraps=(2,), rotations=((3, "axis_angle"),))
STATE = Feature((8,), "float32", "", wraps=(3,), rotations=((4, "quaternion_wxyz"),))
SPEC = Spec({"goal": Feature((2,), "float32", "m"), "state": STATE}, ACTION, 0.05)
ANCHORS = ["state.1:8", "none", "none"]
CHUNK = ChunkConfig(history=2, prediction_horizon=4, execution_horizon=2)


def states(*shape: int) -> torch.Tensor:
    """Random states (*shape, 8)."""
    found = torch.randn(*shape, 8)
    found[..., 3] = math.pi * (2 * torch.rand(shape) - 1)
    seed = int(torch.randint(2**31, ()))
    away = 0.5 * np.random.default_rng(seed).standard_normal((math.prod(shape), 3))
    turns = (Rotation.from_rotvec([3.0, 0.5, 0.0]) * Rotation.from_rotvec(away)).as_quat()  # of a hand that points down
    found[..., 4:] = torch.from_numpy(np.roll(turns, 1, -1).reshape(*shape, 4))
    return found


def actions(state: torch.Tensor, horizon: int) -> torch.Tensor:
    """Actions (B, T, 8) near the states (B, 8)."""
    found = torch.empty(len(state), horizon, 8)
    found[..., :3] = state[:, None, 1:4] + 0.2 * torch.randn(len(state), horizon, 3)
    found[..., 2] = (found[..., 2] + math.pi) % (2 * math.pi) - math.pi
    quaternion = np.roll(state[:, None, 4:].expand(-1, horizon, -1).reshape(-1, 4).numpy(), -1, -1)
    moved = 0.3 * torch.randn(len(quaternion), 3).numpy()
    turned = (Rotation.from_quat(quaternion) * Rotation.from_rotvec(moved)).as_rotvec()
    found[..., 3:6] = torch.from_numpy(turned).view(-1, horizon, 3)
    found[..., 6] = torch.randint(3, (len(state), horizon)).float()
    found[..., 7] = torch.rand(len(state), horizon)
    return found


def observations(rows: int) -> dict[str, torch.Tensor]:
    return {"goal": torch.randn(rows, 2, 2), "state": states(rows, 2)}


def make(
    representation: str = "relative", head: str = "regression", statistics: str = "chunk", **options: Any
) -> Policy:
    """A policy with random weights, fitted on episodes of five steps."""
    torch.manual_seed(0)
    learned = ActionConfig(representation, [] if representation == "absolute" else ANCHORS, statistics=statistics)
    config = PolicyConfig(
        CHUNK,
        encoder=StateEncoderConfig(width=16),
        net=MLPConfig(width=16, blocks=1),
        head=HEADS[head][0](**options),
        action=learned,
    )
    policy = Policy(config, SPEC)
    with torch.no_grad():
        for p in policy.parameters():
            p.copy_(0.5 * torch.randn(p.shape) / p.shape[-1] ** 0.5)
    state = states(200)
    last = torch.arange(200) // 5 * 5 + 4
    policy.fit_normalizers({"goal": torch.randn(200, 2), "state": state}, actions(state, 1)[:, 0], last)
    return policy.eval().requires_grad_(False)
