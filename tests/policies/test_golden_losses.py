"""Same draws, same loss, from release to release, for every head: what resumed and repeated runs rely on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from policies.conditioning import Conditioning
from policies.heads import HEADS
from policies.nets.base import Modulation, Net

ROWS, STEPS, ACTION, COND = 8, 4, 2, 5
# Options of each head with the loss that they give. A head without an entry fails, and so it says what to enter.
GOLDEN: dict[str, list[tuple[dict[str, Any], float]]] = {
    "consistency": [
        ({}, 0.044170313),
        ({"intervals": 10, "huber": 0.03}, 1.4469087),
        ({"spread": 0.5, "log_mean": -1.1, "log_std": 1.0}, 0.022876436),
    ],
    "diffusion": [
        ({}, 0.89294052),
        ({"prediction": "noise", "clip": 1.0}, 0.90526915),
        ({"prediction": "velocity", "train_steps": 50}, 1.5292865),
        ({"prediction": "preconditioned", "sigma_data": 0.5}, 1.891083),
        ({"time": "log_normal", "log_mean": 0.5, "log_std": 1.0, "uniform_share": 0.3}, 0.818669),
    ],
    "classification": [({}, 1.0939546)],
    "drift": [({}, 0.64494669), ({"samples": 2}, 1.0994494), ({"temperatures": [0.02, 0.05, 0.2]}, 0.5855155)],
    "edm": [
        ({}, 1.7650707),
        ({"sigma_data": 0.5, "log_mean": -1.2, "log_std": 1.0}, 2.1564155),
        ({"uniform_share": 0.4}, 1.071741),
    ],
    "flow": [
        ({}, 0.72806484),
        ({"prediction": "velocity", "time": "logit_normal", "draws": 3}, 1.9353291),
        ({"path": "cosine", "prediction": "velocity", "time": "uniform"}, 2.1129506),
        ({"coupling": "optimal_transport", "draws": 2}, 0.74210608),
        ({"coupling": "optimal_transport", "coupling_condition": 0.0}, 0.62003988),
        ({"condition_dropout": 0.5}, 0.70511705),
        ({"prefix_max": 3}, 0.71545094),
        ({"prediction": "preconditioned", "time": "log_normal"}, 0.981093),
        ({"prediction": "preconditioned", "path": "cosine", "sigma_data": 0.5, "prefix_max": 3}, 1.883905),
        ({"time": "log_normal", "log_mean": 0.0, "log_std": 0.5, "uniform_share": 0.0, "draws": 2}, 0.9017138),
    ],
    "mean_flow": [
        ({}, 1.8106846),
        ({"improved": False, "flow_share": 0.75, "weight_power": 0.0}, 0.99933445),
        ({"time": "beta", "weight_power": 1.0, "to_data": 0.2}, 1.748511),
        ({"prediction": "velocity", "to_data": 0.0}, 7.8133597),
    ],
    "mip": [({}, 9.686142), ({"time": 0.5}, 3.7941887)],
    "regression": [({}, 1.0939546)],
    "shortcut": [
        ({}, 0.68259585),
        ({"prediction": "velocity", "bootstrap_share": 0.5}, 1.0334142),
        ({"time": "beta", "halvings": 3}, 0.79103607),
    ],
    "tokens": [({}, 1.2245392)],
}


def wave(*shape: int) -> Tensor:
    """Numbers in [-1, 1] without a pattern that a loss could hide in, drawn from no generator."""
    return torch.arange(1, torch.Size(shape).numel() + 1).double().sin().float().view(shape)


class Wavy(Net):
    """A fixed smooth function of chunk, time and conditioning."""

    def prepare(self, t: Tensor, cond: Conditioning, per_action: bool = False) -> Modulation:
        total = cond.vector_BE.sum(dim=-1)
        return Modulation((t + (total.unsqueeze(-1) if per_action else total)).unsqueeze(-1))

    def forward(self, x_BTA: Tensor, modulation: Modulation) -> Tensor:
        return torch.sin(x_BTA + modulation.timed.view(len(x_BTA), -1, 1))


def fill(head: nn.Module) -> None:
    """Weights that do not depend on how torch draws them."""
    with torch.no_grad():
        for p in head.parameters():
            p.copy_(wave(*p.shape) / p.shape[-1] ** 0.5)


@pytest.mark.parametrize(
    ("kind", "options", "golden"),
    [(kind, *entry) for kind in HEADS for entry in GOLDEN.get(kind, [({}, None)])],
)
def test_golden_loss(kind, options, golden):
    config, head_class = HEADS[kind]
    head = head_class(config(**options), COND)
    fill(head)
    mask = torch.arange(STEPS) < 1 + torch.arange(ROWS)[:, None] % STEPS
    loss = head.loss(
        Wavy(), wave(ROWS, STEPS, ACTION), Conditioning(wave(ROWS, COND)), mask, torch.Generator().manual_seed(0)
    ).item()
    assert golden is not None, f"the head {kind!r} has no golden loss; enter ({{}}, {loss:.7g}) in GOLDEN"
    assert loss == pytest.approx(golden, rel=1e-5)
