"""The Python that docs/deploy_reference.md shows about exports runs, on an export of a small policy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import envs
from conf.verbs.export import ExportConfig
from flowhand.commands.export import export
from flowhand.contracts.features import ChunkConfig
from policies import Policy, PolicyConfig
from policies.encoders.state import StateEncoderConfig
from policies.export import tracing
from policies.heads.regression import RegressionConfig
from tests.deploy import unchecked

pytest.importorskip("onnxscript")
PAGE = Path(__file__).parents[2] / "docs" / "deploy_reference.md"


@pytest.mark.slow
def test_the_python_of_the_section_runs(tmp_path, monkeypatch):
    section = PAGE.read_text().split("\n## Export\n")[1].split("\n## ")[0]
    code = re.findall(r"^```py\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert ["rollout" in block for block in code] == [False, True]
    monkeypatch.chdir(tmp_path)
    world = envs.MetaWorldConfig(task="reach-v3", max_steps=30)
    env = envs.make(world)
    observation, _ = env.reset(seed=1_000_000)
    spec = env.features
    config = PolicyConfig(ChunkConfig(), encoder=StateEncoderConfig(width=8), head=RegressionConfig())
    policy = Policy(config, spec)
    data = {name: torch.randn(50, feature.size) for name, feature in spec.observation.items()}
    policy.fit_normalizers(data, torch.randn(50, spec.action.size))
    golden = {f"observation.{name}": value[:4].unsqueeze(1).repeat(1, 2, 1) for name, value in data.items()}
    golden["noise"] = torch.randn(4, *policy.noise_shape)
    unchecked.here(monkeypatch)
    monkeypatch.setattr(tracing, "NARROW", 2)  # the policy is small
    for name in ("fp32", "int8"):
        options = ExportConfig(precision=name, rows=8, tolerance=0.5 if name == "int8" else 0.0)
        export(f"outputs/demo/onnx-{name}", policy.requires_grad_(False), golden, {}, options)
    monkeypatch.setattr(envs, "MetaWorldConfig", lambda task: world)  # with fewer steps
    namespace: dict[str, Any] = {"observation": observation}
    for block in code:
        exec(compile(block, str(PAGE), "exec", dont_inherit=True), namespace)
    action, records = np.asarray(namespace["action"]), namespace["records"]
    assert action.shape == (spec.action.size,)
    assert [record.seed for record in records] == list(range(1_000_000, 1_000_010))
