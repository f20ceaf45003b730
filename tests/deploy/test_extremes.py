"""Every number of every configuration: what is not finite is refused, and what is accepted computes."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any, get_type_hints

import pytest
import torch

from conf.verbs.export import ExportConfig
from flowhand.contracts.execution import ExecutionConfig
from flowhand.contracts.features import ChunkConfig, Feature, Spec
from flowhand.control.limits.config import SafetyConfig
from flowhand.control.limits.workspace import Box
from flowhand.control.runtime_config import RuntimeConfig
from flowhand.control.safety import Safety
from flowhand.deploy.server.config import ServerConfig
from policies import Batch, Policy, PolicyConfig
from policies.encoders import ENCODERS
from policies.heads import HEADS
from policies.monitor.calibrated import MonitorConfig
from policies.monitor.density import DensityConfig
from policies.nets import NETS
from policies.nets.mlp import MLPConfig

OTHERS = (ExecutionConfig, MonitorConfig, DensityConfig, RuntimeConfig, ServerConfig, ExportConfig)
TABLES = [config for table in (HEADS, NETS, ENCODERS) for config, _ in table.values()]
NUMBERS = [
    (config, name, hint)
    for config in (*OTHERS, *TABLES, SafetyConfig, ChunkConfig)
    for name, hint in get_type_hints(config).items()
    if name in {f.name for f in fields(config)} and "float" in str(hint)
]
UNLIMITED = {"low", "high", "velocity", "acceleration", "jerk", "chunk_jump"}  # of safety: infinity is no limit
LARGE = [1e-308, 1e-38, 1e-12, 1e-6, 1e-3, 1e3, 1e6, 1e38, 1e308]
EXTREMES = [0.0, *LARGE, *(-value for value in LARGE)]
SPEC = Spec({"state": Feature((2,), "float32", "")}, Feature((2,), "float32", ""), 0.1)


def with_number(config: Any, name: str, hint: Any, value: float) -> Any:
    return config(**{name: [value] if "list" in str(hint) else value})


@pytest.mark.parametrize(("config", "name", "hint"), NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_is_refused(config, name, hint, value):
    if config is SafetyConfig and name in UNLIMITED and value == (-math.inf if name == "low" else math.inf):
        return
    with pytest.raises(ValueError, match=r".+"):  # noqa: PT012  (safety.low and its like are checked by Safety)
        made = with_number(config, name, hint, value)
        assert config is SafetyConfig
        Safety(1, 0.1, made)


HEAD_NUMBERS = [(config, name, hint) for config, name, hint in NUMBERS if config in [c for c, _ in HEADS.values()]]


@pytest.mark.parametrize(("config", "name", "hint"), HEAD_NUMBERS)
def test_a_head_computes_with_every_number_that_it_accepts(config, name, hint):
    accepted = 0
    for value in EXTREMES:
        try:
            head = with_number(config, name, hint, value)
        except ValueError:
            continue
        accepted += 1
        torch.manual_seed(0)
        policy = Policy(PolicyConfig(ChunkConfig(1, 4, 2), net=MLPConfig(width=8, blocks=1), head=head), SPEC)
        policy.fit_normalizers({"state": torch.randn(20, 2)}, torch.randn(20, 2))
        for parameter in policy.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        observation = {"state": torch.randn(16, 1, 2)}
        batch = Batch(observation, torch.randn(16, 4, 2), torch.ones(16, 4, dtype=torch.bool))
        loss = policy.loss(batch)
        loss.backward()
        assert math.isfinite(loss.item()), value
        gradients = [p.grad for p in policy.parameters() if p.grad is not None]
        assert all(torch.isfinite(gradient).all() for gradient in gradients), value
        assert torch.isfinite(policy.sample(observation, torch.randn(16, *policy.noise_shape))).all(), value
    assert accepted < len(EXTREMES)


@pytest.mark.parametrize("gain", [math.nan, math.inf, 0.0])
def test_a_box_has_gains_that_are_numbers(gain):
    with pytest.raises(ValueError, match="a box needs gains"):
        Box("state", [0], [0], [gain], [-1.0], [1.0])
