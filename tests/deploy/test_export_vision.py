"""Policies that see, exported and served: uint8 goes in, and the same actions come out."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from flowhand.commands import export
from flowhand.contracts.export import artifact
from flowhand.contracts.features import ChunkConfig, Feature, Spec
from flowhand.contracts.noise import noise
from flowhand.contracts.resize import resized
from flowhand.deploy import runner
from flowhand.deploy.client import Client
from policies import Policy
from policies.export.runner_torch import load as load_torch
from policies.export.tracing import rounded
from tests.deploy import unchecked as elsewhere
from tests.policies.vision_cases import ACTION, observe, seeing

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
CAMERA = Feature((45, 60, 3), "uint8", "", camera="front")
SPEC = Spec({"left": CAMERA, "right": CAMERA, "state": Feature((3,), "float32", "m")}, ACTION, 0.1)
DEPTH = Spec({"depth": Feature((45, 60), "uint16", "mm", kind="depth"), "left": CAMERA}, ACTION, 0.1)
CASES = {
    "conv": {"vision": "conv", "image_size": [40, 48], "crop": [36, 44], "shared": True},
    "depth": {"vision": "conv", "spec": DEPTH, "image_size": [40, 48], "head": "regression", "options": {"width": 80}},
    "resnet18": {"vision": "resnet18", "chunk": ChunkConfig(1, 4, 2), "image_size": [40, 48]},
    "vit": {
        "vision": "vit",
        "image_size": [40, 48],
        "registers": 2,
        "frames": 1,
        "net": "transformer",
        "options": {"cross_attention": True},
    },
}


def make(case: str) -> Policy:
    """A small policy with random weights."""
    torch.manual_seed(0)
    options = {"spec": SPEC, **CASES[case]}
    policy = seeing(**options)
    with torch.no_grad():
        for p in policy.net.parameters():  # in size such that actions stay near their spread
            p.mul_(0.5)
    return policy.eval().requires_grad_(False)


def golden(policy: Policy, rows: int = 2) -> dict[str, torch.Tensor]:
    seen = observe(policy.spec, rows, policy.chunk.history, seed=1)
    random = torch.Generator().manual_seed(1)
    named = {f"observation.{name}": value for name, value in seen.items()}
    return {**named, "noise": torch.randn(rows, *policy.noise_shape, generator=random)}


def unchecked(path: str, case: str, **options: str) -> None:
    """Exports one; in a process that checks no annotations."""
    policy = make(case)
    export.export(path, policy, golden(policy), {}, export.ExportConfig(rows=30, tolerance=1e-4, **options))  # pyright: ignore[reportArgumentType]


def exported(path: Path, case: str, **options: str) -> tuple[Policy, artifact.Manifest]:
    elsewhere.call("tests.deploy.test_export_vision", path=str(path), case=case, **options)
    return make(case), artifact.read(path)[0]


@pytest.mark.parametrize(
    "case", ["depth", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("conv", "vit", "resnet18"))]
)
def test_the_graph_takes_what_the_cameras_give_and_decides_alike(tmp_path, case):
    policy, manifest = exported(tmp_path / "p", case)
    assert manifest.parity.max_error <= 1e-4
    planner = runner.load(tmp_path / "p")
    given = golden(policy, 5)
    observation = {name: given[f"observation.{name}"].numpy() for name in policy.spec.observation}
    assert {value.dtype for value in observation.values()} >= {np.dtype(np.uint8)}
    mine, theirs = (each.plan(observation, given["noise"].numpy()) for each in (policy, planner))
    spread = policy.action_normalizer.scale.numpy()
    assert np.abs((theirs - mine) / spread).max() <= 1e-4
    small = resized(observation["left"], policy.image_sizes["left"])
    assert small.shape[-3:-1] != observation["left"].shape[-3:-1]
    blank = {**observation, "left": np.zeros_like(observation["left"])}
    assert np.abs((planner.plan(blank, given["noise"].numpy()) - theirs) / spread).max() > 1e-2
    if "depth" in observation:  # nothing here depends on the noise, so int8 finds the encoder's products too
        int8 = onnx.load_from_string(rounded((tmp_path / "p" / "policy.onnx").read_bytes())).graph
        require_eyes_are_spared(onnx.load(tmp_path / "p" / "policy.onnx").graph, int8)


def require_eyes_are_spared(fp32, int8) -> None:
    """Convolutions, and what is before them, are as they were."""
    kinds = [[node.op_type for node in graph.node] for graph in (fp32, int8)]
    assert kinds[0].count("Conv") == kinds[1].count("Conv") > 0
    assert "MatMulInteger" in kinds[1]
    before = set()
    for node in reversed(int8.node):
        if node.op_type == "Conv" or before.intersection(node.output):
            before.update(node.input)
            assert node.op_type not in ("MatMulInteger", "DynamicQuantizeLinear")


@pytest.mark.slow
@pytest.mark.parametrize("format", ["pt2", "aoti"])
def test_torch_runs_it_too(tmp_path, format):
    policy, manifest = exported(tmp_path / "p", "conv", format=format)
    assert manifest.parity.max_error <= 1e-4
    given = golden(policy, 3)
    observation = {name: given[f"observation.{name}"].numpy() for name in policy.spec.observation}
    theirs = load_torch(tmp_path / "p").plan(observation, given["noise"].numpy())
    np.testing.assert_allclose(theirs, policy.plan(observation, given["noise"].numpy()), atol=1e-3)


def test_a_served_policy_sees_what_the_robot_sends(serving):
    policy = make("conv")
    running = serving(policy, inference_batch=1)
    seen = [{n: v[0, 0].numpy() for n, v in observe(policy.spec, 1, 1, seed).items()} for seed in range(2)]
    with closing(Client(running.uri)) as client:
        client.connect()
        for decision, each in enumerate(seen):
            start = {} if decision else {"reset": 3}
            chunk = client.infer({**each, **start})["actions"]
            history = [seen[0], *seen[: decision + 1]][-2:]
            stacked = {name: np.stack([o[name] for o in history])[None] for name in each}
            expected = policy.plan(stacked, noise(0, 3, decision, policy.noise_shape)[None])[0]
            np.testing.assert_array_equal(chunk, expected)
