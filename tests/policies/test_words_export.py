"""A policy that is told its task, exported: the vector is an input of the graph, and the texts travel with it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from conf.verbs.export import ExportConfig
from flowhand.commands.export import export
from flowhand.contracts.data.tasks import given
from flowhand.contracts.features import Feature
from flowhand.contracts.provenance import Provenance
from flowhand.control.controller import Controller
from flowhand.deploy import runner
from policies import Policy, PolicyConfig
from policies.encoders import ENCODERS, WORDS
from policies.heads import HEADS
from policies.nets import NETS
from tests.deploy import unchecked

TEXTS = ("left", "right")


def test_an_export_is_told_what_its_checkpoint_is_told(spec, tiny, randomize, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    unchecked.here(monkeypatch)
    task = Feature((2,), "float32", "", kind="task", texts=TEXTS)
    source = Feature((2,), "float32", "", kind="source", names=TEXTS)
    seen = replace(spec, observation={**spec.observation, "task": task, "source": source})
    parts = {"encoder": tiny(ENCODERS, "state"), "net": tiny(NETS, "mlp"), "head": tiny(HEADS, "regression")}
    policy = Policy(PolicyConfig(**parts, words=tiny(WORDS, "index")), seen)
    randomize(policy)
    steps = {name: torch.randn(60, *f.shape) for name, f in spec.observation.items()}
    scaled = torch.cat([torch.randn(30, 2), 5 + 2 * torch.randn(30, 2)])
    policy.fit_normalizers(steps, scaled, None, [slice(0, 30), slice(30, 60)])
    policy.eval().requires_grad_(False)
    known = [given(seen.observation, text) for text in TEXTS]
    golden = {f"observation.{name}": torch.randn(4, 2, *f.shape) for name, f in spec.observation.items()}
    for name in ("task", "source"):
        rows = [np.tile(known[row % 2][name], (2, 1)) for row in range(4)]
        golden[f"observation.{name}"] = torch.from_numpy(np.stack(rows))
    golden["noise"] = torch.randn(4, *policy.noise_shape)
    observation = {name.removeprefix("observation."): value for name, value in golden.items() if name != "noise"}
    golden["action"] = policy.sample(observation, golden["noise"])
    about = Provenance({"kind": "none"}, "", "", "", [], {}, "", 0)
    manifest = export(tmp_path / "onnx", policy, golden, {"provenance": about.__dict__}, ExportConfig())
    assert manifest.spec.observation["task"].texts == TEXTS
    planner = runner.load(tmp_path / "onnx")
    actions = []
    for each in (policy, planner):
        controller = Controller(each)
        for text in TEXTS:
            controller.reset(seed=1, task=text)
            actions.append(controller.step({name: np.zeros(f.shape) for name, f in spec.observation.items()}))
    assert np.abs(actions[0] - actions[1]).max() > 0.5  # other statistics and another embedding
    assert actions[2:] == [pytest.approx(action, abs=1e-4) for action in actions[:2]]
