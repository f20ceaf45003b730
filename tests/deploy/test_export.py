"""Exported policies: the same actions, any number of rows, and nothing believed that a hostile directory says."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowhand.commands import export
from flowhand.contracts.export import artifact
from flowhand.contracts.export.artifact import is_export
from flowhand.contracts.features import ChunkConfig, Feature, Spec
from flowhand.contracts.planner import Planner
from flowhand.control.controller import Controller
from flowhand.deploy import runner
from policies import Policy, PolicyConfig, Provenance, save
from policies.encoders.state import StateEncoderConfig
from policies.export import runner_torch, tracing
from policies.heads import HEADS
from policies.nets import NETS, unet1d
from tests.deploy import unchecked as elsewhere

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
ROOT = Path(__file__).parents[2]
NETS_TO_TRY = {
    "mlp": {"width": 16, "blocks": 1},
    "unet1d": {"down_dims": [8, 16], "groups": 2},
    "transformer": {"width": 16, "blocks": 1, "heads": 2},
    "cross": {"kind": "transformer", "width": 16, "blocks": 1, "heads": 2, "cross_attention": True},
}
WIDE = {"wide": {"kind": "transformer", "width": 128, "blocks": 1, "heads": 2}}  # weights of more than 8,192 numbers
MULTISTEP = {"prediction": "preconditioned", "sigma_data": 0.8, "steps": 4}
HEADS_TO_TRY = {name: {} for name in HEADS} | {
    "ddpm": {"kind": "diffusion", "sampler": "ddpm", "steps": 3},
    "flow-multistep": {"kind": "flow", "solver": "multistep", "grid": "tabulated", **MULTISTEP},
    "diffusion-multistep": {"kind": "diffusion", "sampler": "multistep", "spacing": "tabulated", **MULTISTEP},
}
OBSERVATION = {"state": Feature((3,), "float32", "m"), "goal": Feature((2,), "float32", "m")}


def make(net: str = "mlp", head: str = "regression", choices: tuple[int, ...] | None = None) -> Policy:
    """A small policy with random weights, in size such that actions stay near their spread."""
    torch.manual_seed(0)
    nets, heads = dict((NETS_TO_TRY | WIDE)[net]), dict(HEADS_TO_TRY[head])
    config = PolicyConfig(
        chunk=ChunkConfig(history=2, prediction_horizon=4, execution_horizon=2),
        encoder=StateEncoderConfig(width=16),
        net=NETS[nets.pop("kind", net)][0](**nets),
        head=HEADS[heads.pop("kind", head)][0](**heads),
    )
    policy = Policy(config, Spec(OBSERVATION, Feature((2,), "float32", "m/s", choices=choices), control_dt_s=0.05))
    with torch.no_grad():
        for p in policy.parameters():
            p.copy_(0.5 * torch.randn(p.shape) / p.shape[-1] ** 0.5)
    action = torch.randn(200, 2) * torch.tensor([0.1, 3.0]) + 1
    for dimension, n in enumerate(choices or ()):
        if n:
            action[:, dimension] = torch.randint(n, (200,))
    scale = torch.tensor([1.0, 10.0, 100.0])
    policy.fit_normalizers({"state": torch.randn(200, 3) * scale, "goal": torch.randn(200, 2) + 5}, action)
    return policy.eval().requires_grad_(False)


def golden(policy: Policy, rows: int = 2) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    state = torch.randn(rows, 2, 3, generator=random) * torch.tensor([1.0, 10.0, 100.0])
    return {
        "observation.state": state,
        "observation.goal": torch.randn(rows, 2, 2, generator=random) + 5,
        "noise": torch.randn(rows, *policy.noise_shape, generator=random),
    }


def write(path: Path, policy: Policy, **options) -> artifact.Manifest:
    with pytest.MonkeyPatch.context() as patch:
        elsewhere.here(patch)
        return export.export(path, policy, golden(policy), {"of": "a test"}, export.ExportConfig(**options))


def write_unchecked(path: Path, *of: Any, **options) -> tuple[Policy, artifact.Manifest]:
    """The same where annotations are not checked, of the policy that `make` gives."""
    elsewhere.call("tests.deploy.test_export", path=str(path), of=of, options=options)
    return make(*of), artifact.read(path)[0]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, Policy, artifact.Manifest]:
    path = tmp_path_factory.mktemp("export") / "policy"
    return path, *write_unchecked(path, "mlp", "regression", (0, 3), rows=150)


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    """The export, to be damaged."""
    for file in exported[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def edit(path: Path, change) -> None:
    """Changes the manifest."""
    data = json.loads((path / "manifest.json").read_text())
    change(data)
    (path / "manifest.json").write_text(json.dumps(data))


def swap(path: Path, name: str, content: bytes) -> None:
    """Another file, and its hash in the manifest: what whoever can write the directory can do."""
    (path / name).write_bytes(content)
    edit(path, lambda data: data["files"].update({name: artifact.fingerprint(content)}))


def inputs(policy: Policy, rows: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    values = {name: value.numpy() for name, value in golden(policy, rows).items()}
    return {name: values[f"observation.{name}"] for name in OBSERVATION}, values["noise"]


def differs(policy: Policy, planner: Planner, rows: int) -> float:
    given = inputs(policy, rows)
    error = np.abs(planner.plan(*given) - policy.plan(*given)) / policy.action_normalizer.scale.numpy()
    return float(error.max())


def test_a_checkpoint_is_exported_with_another_sampler(tmp_path):
    policy, source = make(head="diffusion"), Provenance({"kind": "toy"}, "toy", "reach", "", [], {}, "", 0)
    inputs = golden(policy)
    del inputs["noise"]
    save(tmp_path / "c", policy, source, {name.removeprefix("observation."): v for name, v in inputs.items()}, {})
    policy, stored, about = export.of_checkpoint(tmp_path / "c")
    assert about["head"] == {}
    other, same, about = export.of_checkpoint(tmp_path / "c", {"sampler": "dpmpp_2m"})
    assert about["head"] == {"sampler": "dpmpp_2m"}
    assert torch.equal(same["noise"], stored["noise"])
    other, again, about = export.of_checkpoint(tmp_path / "c", {"sampler": "ddpm", "steps": 3})
    assert about["head"] == {"sampler": "ddpm", "steps": 3}
    assert again["noise"].shape == (2, 3, 4, 2)  # which the checkpoint's own sampler did not need
    assert torch.equal(again["observation.state"], stored["observation.state"])
    rows = export.held_out(other, again, export.ExportConfig(rows=5))
    assert other.plan(*export._split(rows, slice(5))).shape == (5, 4, 2)
    with pytest.raises(ValueError, match=r"head\.train_steps belongs to the training of head=diffusion"):
        export.of_checkpoint(tmp_path / "c", {"train_steps": 50})


@pytest.mark.parametrize("rows", [1, 3, 16, 200])
def test_the_same_actions_at_any_number_of_rows(exported, rows):
    path, policy, _ = exported
    assert differs(policy, runner.load(path), rows) <= 1e-5


def test_a_runner_stands_where_a_controller_expects_a_policy(exported):
    path, policy, _ = exported
    planner = runner.load(path, threads=2)
    assert isinstance(planner, Planner)
    assert not planner.continues
    assert (planner.spec, planner.chunk, planner.noise_shape) == (policy.spec, policy.chunk, policy.noise_shape)
    sides = [Controller(p, inference_batch=3) for p in (policy, planner)]
    for side in sides:
        side.reset(seed=5)
    for step in range(6):
        seen = {"state": np.full(3, step, np.float32), "goal": np.full(2, 5 - step, np.float32)}
        one, other = (side.step(seen) for side in sides)
        np.testing.assert_allclose(other, one, atol=1e-5)
    with pytest.raises(ValueError, match=r"mode='rtc_exact' is not possible with this policy, only receding"):
        Controller(planner, execution=replace(sides[0].execution, mode="rtc_exact"))


def test_an_export_killed_between_the_steps_of_its_replacement_is_the_earlier_one(exported, tmp_path):
    path, policy, _ = exported
    shutil.copytree(path, tmp_path / "policy.previous")  # the new one has not got the name yet
    assert is_export(tmp_path / "policy")
    assert differs(policy, runner.load(tmp_path / "policy"), 3) == differs(policy, runner.load(path), 3)


def test_a_full_disk_leaves_the_earlier_export(exported, tmp_path, monkeypatch):
    path, policy, manifest = exported
    shutil.copytree(path, tmp_path / "policy")
    monkeypatch.setattr(export, "_model", lambda *_: (path / "policy.onnx").read_bytes())
    monkeypatch.setattr(export, "measured", lambda told, *_: replace(told, parity=manifest.parity))

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left on device"):
            write(tmp_path / "policy", policy, rows=150)
    assert os.listdir(tmp_path) == ["policy"]
    for file in path.iterdir():
        assert (tmp_path / "policy" / file.name).read_bytes() == file.read_bytes()
    assert write(tmp_path / "policy", policy, rows=150).parity == manifest.parity  # with space again


def test_the_manifest_tells_the_truth(exported):
    path, policy, written = exported
    manifest, model, stored = artifact.read(path)
    assert manifest == written
    assert manifest.parity.rows == 150
    assert manifest.parity.max_error <= 1e-5
    assert max(manifest.parity.max_error_physical) > 0  # two engines, compared
    assert manifest.source == {"of": "a test"}
    rate = json.loads((path / "manifest.json").read_text())["rates"]
    assert rate == {"control_hz": 20.0, "decision_hz": 10.0}
    observation = {name: stored[f"observation.{name}"] for name in OBSERVATION}
    np.testing.assert_array_equal(policy.plan(observation, stored["noise"]), stored["action"])
    assert str(ROOT).encode() not in model


def test_errors_are_shares_of_the_spread_and_choices_count_apart():
    expected, plain = np.zeros((1, 2, 3), np.float32), Feature((3,), "float32", "")
    action = expected + np.array([[0.5, 2.0, 0.0], [0.1, 0.0, 1.0]], np.float32)
    mixed = Feature((3,), "float32", "", choices=(0, 0, 2))
    error, physical, changed = artifact.compare(action, expected, [0.25, 4.0, 1.0], mixed)
    assert (error, physical, changed) == (2.0, [0.5, 2.0, 1.0], 0.5)
    large = np.full((1, 2, 3), 1000, np.float32)  # where float32 steps by 6e-5
    assert artifact.compare(np.nextafter(large, np.float32(2000)), large, [1e-3] * 3, plain)[0] == 0
    assert artifact.compare(large + np.float32(1e-3), large, [1e-3] * 3, plain)[0] > 0.5
    action[0, 0, 0] = np.nan
    assert artifact.compare(action, expected, [1.0] * 3, plain)[0] == np.inf


def test_an_export_that_decides_otherwise_is_not_written(tmp_path, exported, monkeypatch):
    path, policy, _ = exported
    model = (path / "policy.onnx").read_bytes()
    monkeypatch.setattr(export, "_model", lambda *_: model)
    other = make(choices=(0, 3))
    with torch.no_grad():
        other.net.get_parameter("outlet.bias").add_(0.01)  # of a normalized action: of its spread
    message = r"on 20 observations .* differ by 0\.01 of their spread .*allowed: 1e-05 and 0\.10%\); nothing is written"
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "new", other, rows=20)
    assert list(tmp_path.iterdir()) == []
    assert write(tmp_path / "new", other, rows=20, tolerance=0.02).parity.max_error == pytest.approx(0.01, rel=0.01)
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="mine exists and is no export; it is not overwritten"):
        write(tmp_path / "mine", policy, rows=20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "onx"}, "format='onx' is unknown; choices: onnx, pt2, aoti"),
        ({"precision": "bf16"}, "precision='bf16' is unknown; choices: fp32, int8"),
        ({"format": "pt2", "precision": "int8"}, "precision='int8' is possible with format='onnx' only"),
        ({"format": "aoti", "precision": "int8"}, "precision='int8' is possible with format='onnx' only"),
        ({"rows": 0}, r"rows=0 must lie in 1\.\.1000000"),
        ({"tolerance": 2.0}, r"tolerance=2\.0 must lie in \[0, 1\]"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        export.ExportConfig(**options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format_version=3), "format version 3, this flowhand reads 1 and 2"),
        (lambda d: d.update(format_version=True), "format version True"),
        (lambda d: d.pop("source"), "the manifest has the fields"),
        (lambda d: d.update(more=1), "the manifest has the fields .*'more'"),
        (lambda d: d.update(chunk="a\nb"), r"chunk has the fields 'a\\nb', expected"),
        (lambda d: d.update(format="exe"), "format 'exe' is unknown; choices: onnx, pt2, aoti"),
        (lambda d: d.update(precision="int2"), "precision 'int2' is unknown"),
        (lambda d: d["chunk"].update(history=2.5), r"history is 2\.5, expected a finite int"),
        (lambda d: d["chunk"].update(history=True), "history is True, expected a finite int"),
        (lambda d: d["chunk"].update(history=10**12), "observation.state of one decision has shape"),
        (lambda d: d["spec"]["action"].update(shape=[0]), "spec or chunk: 'action': feature shape"),
        (lambda d: d["spec"].update(control_dt_s=0.1), "rates contradict spec and chunk"),
        (lambda d: d.update(noise_shape=[4, 0]), r"noise of one decision has shape \(1, 4, 0\)"),
        (lambda d: d.update(noise_shape=[4, 3]), r"'noise' is float32 \(2, 4, 4\), expected float32 \(2, 4, 3\)"),
        (lambda d: d.update(action_spread=[1.0]), "action_spread and .* must have 2 numbers"),
        (lambda d: d.update(action_spread=[1.0, float("inf")]), "action_spread is inf, expected a finite float"),
        (lambda d: d.update(action_spread=[1.0, 10**400]), "action_spread is 10+, expected a finite float"),
        (lambda d: d.update(observation_spread={"state": [1.0] * 3}), "observation_spread has the fields"),
        (lambda d: d["observation_spread"].update(goal=[1.0]), "observation_spread must have .*'goal': 2"),
        (lambda d: d["observation_spread"].update(goal=[1.0, 0.0]), "observation_spread must have .* positive"),
        (lambda d: d["observation_spread"].update(goal=[1.0, float("nan")]), "goal is nan, expected a finite float"),
        (lambda d: d["parity"].update(max_error=0.5), "parity contradicts itself"),
        (lambda d: d["files"].update({"../x": {}}), r"files are \['../x', 'golden.npz', 'policy.onnx'\], expected"),
        (lambda d: d["files"]["golden.npz"].update(bytes=7), "golden.npz has .* its manifest says"),
    ],
)
def test_a_hostile_manifest(copy, change, message):
    edit(copy, change)
    with pytest.raises(ValueError, match=message):
        runner.load(copy)


def test_damaged_and_missing_files(copy, monkeypatch):
    model = (copy / "policy.onnx").read_bytes()
    (copy / "policy.onnx").write_bytes(model[:-1] + b"x")
    with pytest.raises(ValueError, match=r"policy\.onnx has .*damaged"):
        runner.load(copy)
    monkeypatch.setitem(artifact.MOST_BYTES, "policy.onnx", 1000)
    with pytest.raises(ValueError, match="more than the 1000 allowed"):
        runner.load(copy)
    (copy / "policy.onnx").unlink()
    (copy / "policy.onnx").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match=r"policy\.onnx is no regular file"):
        runner.load(copy)
    (copy / "policy.onnx").unlink()
    (copy / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"manifest\.json: "):
        runner.load(copy)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("action", np.full((2, 4, 2), np.nan, np.float32), "'action' has NaN"),
        ("action", np.zeros((2, 4, 2), np.float32), "the action differs from the stored one by"),
        ("noise", np.zeros((2, 4, 2), np.float32), r"'noise' is float32 \(2, 4, 2\)"),
        ("noise", np.array([{}], object), "allow_pickle=False"),
        ("more", np.zeros(1), "it holds .*'more.npy'"),
    ],
)
def test_hostile_golden_arrays(copy, name, value, message):
    stored = dict(np.load(copy / "golden.npz"))
    np.savez(copy / "new.npz", **{**stored, name: value})  # pyright: ignore[reportArgumentType]
    swap(copy, "golden.npz", (copy / "new.npz").read_bytes())
    with pytest.raises(ValueError, match=message):
        runner.load(copy)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (6, 173, r"golden\.npz: zip file version 17\.3"),
        (8, 1, r"golden\.npz: File .* is encrypted"),
        (10, 99, r"golden\.npz: That compression method is not supported"),
    ],
)
def test_a_hostile_golden_archive(copy, place, value, message):
    content = bytearray((copy / "golden.npz").read_bytes())
    for directory, header in ((b"PK\1\2", place), (b"PK\3\4", place - 2)):  # each entry stands in both
        content[content.index(directory) + header] = value
    swap(copy, "golden.npz", bytes(content))
    with pytest.raises(ValueError, match=message):
        runner.load(copy)


def test_what_two_readers_could_read_differently_is_refused(copy):
    """An array twice in the archive, under one name or two, and a key twice in the manifest."""
    good = (copy / "golden.npz").read_bytes()
    for name in ("action.npy", "action"):
        (copy / "new.npz").write_bytes(good)
        with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(copy / "new.npz", "a") as archive:
            archive.writestr(name, archive.read("action.npy"))
        swap(copy, "golden.npz", (copy / "new.npz").read_bytes())
        with pytest.raises(ValueError, match=r"golden\.npz: it holds .*'action"):
            runner.load(copy)
    swap(copy, "golden.npz", good)
    text = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(text.replace("{", '{"format": "onnx", ', 1))
    with pytest.raises(ValueError, match=r"manifest\.json: it has the key 'format' twice"):
        runner.load(copy)


def hostile(model, what: str):
    """A model that asks for something beyond itself."""
    graph = model.graph
    inner = onnx.helper.make_graph([], "inner", [], [])
    external = onnx.TensorProto(name="w", data_type=1, dims=[1], data_location=1)
    external.external_data.add(key="location", value="../../etc/passwd")
    if what == "weights":
        graph.initializer.append(external)
    elif what == "constant":
        graph.node.append(onnx.helper.make_node("Constant", [], ["c"], value=external))
    elif what == "location":
        graph.initializer[0].data_location = 1
    elif what == "domain":
        graph.node[0].domain = "my.ops"
    elif what == "loop":
        graph.node.append(onnx.helper.make_node("Loop", [], ["c"], body=inner))
    elif what == "function":
        model.functions.add(name="f")
    elif what == "fixed":
        graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    elif what == "index":
        for node in graph.node:
            node.output[:] = ["before" if name == "action" else name for name in node.output]
        graph.initializer.append(onnx.helper.make_tensor("far", 7, [2], [9, 9]))
        graph.node.append(onnx.helper.make_node("Gather", ["before", "far"], ["action"], axis=2))
    elif what == "renamed":
        graph.input[0].name = "other"
    return model


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("weights", "weights in another file"),
        ("constant", "weights in another file"),
        ("location", "weights in another file"),
        ("domain", "an operator of the domain 'my.ops', expected only standard ones"),
        ("loop", "a graph inside the graph"),
        ("function", "functions of its own"),
        ("fixed", "the model takes exactly 2 rows of"),
        ("index", "the model fails: .*out of .*bounds"),
        ("renamed", "the model (has inputs and output|cannot be run)"),
    ],
)
def test_a_hostile_model(copy, what, message):
    model = onnx.load_from_string((copy / "policy.onnx").read_bytes())
    swap(copy, "policy.onnx", hostile(model, what).SerializeToString())
    with pytest.raises(ValueError, match=message):
        runner.load(copy)


def test_wrong_inputs(exported):
    planner = runner.load(exported[0])
    observation, noise = inputs(exported[1], 2)
    for wrong, message in (
        (({"state": observation["state"]}, noise), r"got \['noise', 'observation.state'\], it needs"),
        (({**observation, "goal": observation["goal"][:1]}, noise), r"goal is float32 \(1, 2, 2\), the policy needs"),
        ((observation, noise.astype(np.float64)), "noise is float64"),
    ):
        with pytest.raises(ValueError, match=message):
            planner.plan(*wrong)
    with pytest.raises(ValueError, match="threads=0 must lie in"):
        runner.load(exported[0], threads=0)
    with pytest.raises(ValueError, match=r"is an export with format=onnx: flowhand\.deploy\.runner\.load"):
        runner_torch.load(exported[0])


def test_the_runner_imports_no_torch():
    code = "import sys, flowhand.deploy.runner; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"torch", "onnxruntime"} & set(done.stdout.split()) == set()


def test_more_choices_than_the_tolerance_allows_are_refused(exported):
    _, policy, manifest = exported
    observation, noise = inputs(policy, 200)

    class Other:
        """Decides as the policy does, but for the choices of one row in each batch."""

        def plan(self, observation, noise, prefix=None):
            action = policy.plan(observation, noise)
            action[0, :, 1] = (action[0, :, 1] + 1) % 3
            return action

    rows = {"noise": noise, **{f"observation.{name}": value for name, value in observation.items()}}
    other: Any = Other()
    with pytest.raises(ValueError, match=r"in [1-9]\.\d+% of their choices \(allowed: 1e-05 and 0\.10%\)"):
        export.measured(manifest, other, policy, rows)
    rough = replace(manifest, precision="int8", parity=replace(manifest.parity, tolerance=0.2))
    assert 0.01 < export.measured(rough, other, policy, rows).parity.choices_changed < 0.1


@pytest.mark.slow
def test_a_program_of_torch(tmp_path):
    policy, _ = write_unchecked(tmp_path / "policy", "mlp", "flow", rows=50, format="pt2")
    planner = runner_torch.load(tmp_path / "policy")
    assert max(differs(policy, planner, rows) for rows in (1, 3, 16)) <= 1e-5
    assert str(ROOT).encode() not in (tmp_path / "policy" / "policy.pt2").read_bytes()
    with pytest.raises(ValueError, match="format=pt2, which needs torch"):
        runner.load(tmp_path / "policy")


def test_int8_needs_to_be_told_how_far_off_it_may_be(tmp_path, exported, monkeypatch):
    path, policy, _ = exported
    monkeypatch.setattr(tracing, "NARROW", 2)  # the policy is small
    model = tracing.rounded((path / "policy.onnx").read_bytes())
    monkeypatch.setattr(export, "_model", lambda *_: model)
    with pytest.raises(ValueError, match=r"int8 needs a tolerance: on 50 .* by 0\.\d+ of their spread .*eval\.py"):
        write(tmp_path / "policy", policy, rows=50, precision="int8")
    assert list(tmp_path.iterdir()) == []
    parity = write(tmp_path / "policy", policy, rows=50, precision="int8", tolerance=0.4).parity
    assert 1e-3 < parity.max_error <= parity.tolerance == 0.4
    planner, given = runner.load(tmp_path / "policy"), inputs(policy, 16)
    error, _, changed = planner.manifest.compare(planner.plan(*given), policy.plan(*given))
    assert 1e-3 < error <= 0.4
    assert changed <= 0.4


def test_a_row_of_int8_does_not_depend_on_its_neighbours(tmp_path, exported, monkeypatch):
    path, policy, manifest = exported
    monkeypatch.setattr(tracing, "NARROW", 2)  # the policy is small
    planner = runner.Runner(replace(manifest, precision="int8"), tracing.rounded((path / "policy.onnx").read_bytes()))
    observation, noise = inputs(policy, 5)
    alone = [planner.plan({n: v[i : i + 1] for n, v in observation.items()}, noise[i : i + 1]) for i in range(5)]
    spread = dict(policy.normalizers())
    observation = {n: v.copy() for n, v in observation.items()}
    for name, value in observation.items():
        value[2] += 30 * spread[name].scale.numpy()
    together = planner.plan(observation, noise)
    for row in (0, 1, 3, 4):
        np.testing.assert_array_equal(together[row], alone[row][0])
    assert np.abs(together[2] - alone[2][0]).max() > 0.01


def test_int8_without_anything_to_round_is_an_error(exported):
    with pytest.raises(
        ValueError, match="precision=int8 finds nothing to round in this policy's net; take precision=fp32"
    ):
        tracing.rounded((exported[0] / "policy.onnx").read_bytes())  # its widest weight has 32 entries a side


@pytest.mark.slow
def test_int8_rounds_every_weight_of_a_transformer(tmp_path):
    policy, _ = write_unchecked(tmp_path / "policy", "wide", "regression", rows=4)
    rounded = onnx.load_from_string(tracing.rounded((tmp_path / "policy" / "policy.onnx").read_bytes()))
    held = {weight.name for weight in rounded.graph.initializer}
    products = [node for node in rounded.graph.node if node.op_type == "MatMulInteger" and node.input[1] in held]
    linear = [m for m in policy.net.blocks.modules() if isinstance(m, torch.nn.Linear) and min(m.weight.shape) > 64]
    assert len(products) >= len(linear) > 0
    assert not [node for node in rounded.graph.node if node.op_type == "Transpose" and node.input[0] in held]


@pytest.mark.parametrize(("evaluations", "kept"), [(1, 0), (2, 1), (4, 1), (5, 2), (10, 3)])
def test_int8_leaves_the_last_quarter_of_the_evaluations_as_it_is(evaluations, kept):
    """Of noise W ... W the last products are by W itself, the others by its rounded copy; a single one is rounded."""
    W = np.random.default_rng(0).normal(0, 0.09, (128, 128)).astype(np.float32)
    x = np.random.default_rng(1).normal(size=(3, 128)).astype(np.float32)
    steps = ["noise", *(f"x{i}" for i in range(1, evaluations)), "action"]
    shaped = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["rows", 128]) for name in steps]
    nodes = [onnx.helper.make_node("MatMul", [a, "W"], [b], name=f"product {b}") for a, b in pairwise(steps)]
    weight = onnx.numpy_helper.from_array(W, "W")
    graph = onnx.helper.make_graph(nodes, "evaluations", shaped[:1], shaped[1:], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(tracing.rounded(model.SerializeToString()))
    values = [x, *session.run(None, {"noise": x})]
    errors = [np.abs(after - before @ W).max() for before, after in pairwise(values)]
    assert [error < 1e-5 for error in errors] == [False] * (evaluations - kept) + [True] * kept


@pytest.fixture(scope="module")
def flow(tmp_path_factory) -> tuple[Policy, artifact.Manifest, bytes]:
    path = tmp_path_factory.mktemp("flow") / "policy"
    policy, manifest = write_unchecked(path, "mlp", "flow-multistep", rows=4)  # of width 16, chunks of 8 numbers
    return policy, manifest, (path / "policy.onnx").read_bytes()


@pytest.mark.slow
def test_a_multistep_sampler_is_the_policys_and_nearly_so_in_int8(flow, monkeypatch):
    policy, manifest, model = flow
    given = inputs(policy, 5)
    expected, scale = policy.plan(*given), policy.action_normalizer.scale.numpy()
    monkeypatch.setattr(tracing, "NARROW", 2)  # the policy is small
    for precision, held, low, high in (("fp32", model, 0, 1e-5), ("int8", tracing.rounded(model), 1e-4, 0.4)):
        planner = runner.Runner(replace(manifest, precision=precision), held)
        together = planner.plan(*given)
        assert low <= np.abs((together - expected) / scale).max() < high
        for row in range(5):
            one = {name: value[row : row + 1] for name, value in given[0].items()}
            alone = planner.plan(one, given[1][row : row + 1])[0]
            np.testing.assert_allclose(alone, together[row], *((0, 0) if precision == "int8" else (1e-5, 1e-5)))


@pytest.mark.parametrize("narrow", [2, 8])
def test_int8_leaves_the_encoding_of_the_observation_and_narrow_weights_as_they_are(flow, monkeypatch, narrow):
    """Another noise changes what goes into a rounded product; into one that is left only where its weight is narrow.

    Or where it belongs to the last evaluations, which have weights of their own.
    """
    monkeypatch.setattr(tracing, "NARROW", narrow)
    policy, _, model = flow
    rounded = onnx.load_from_string(tracing.rounded(model))
    weights = {weight.name: min(weight.dims, default=0) for weight in rounded.graph.initializer}
    kinds = ("MatMulInteger", "MatMul", "Gemm")
    products = [node for node in rounded.graph.node if node.op_type in kinds and node.input[1] in weights]
    for node in products:
        rounded.graph.output.append(onnx.helper.make_empty_tensor_value_info(node.input[0]))
    session = onnxruntime.InferenceSession(rounded.SerializeToString())
    observation, noise = inputs(policy, 2)
    named = {f"observation.{name}": value for name, value in observation.items()}
    given = [node.input[0] for node in products]
    one, other = (session.run(given, {**named, "noise": sign * noise}) for sign in (1, -1))
    kept = 0
    for node, a, b in zip(products, one, other, strict=True):
        follows, rounds = (a != b).any(), node.op_type == "MatMulInteger"
        last = "_fp32" in node.input[1]
        assert rounds == (follows and weights[node.input[1]] > narrow and not last)
        kept += follows and not rounds and not last
    assert kept == (2 * policy.head.evaluations if narrow == 8 else 0)  # the action enters and leaves


@pytest.mark.slow
@pytest.mark.parametrize("net", NETS_TO_TRY)
@pytest.mark.parametrize("head", HEADS_TO_TRY)
def test_every_head_and_net(tmp_path, net, head):
    policy, manifest = write_unchecked(tmp_path / "policy", net, head, rows=120)
    assert manifest.parity.max_error <= 1e-5
    planner = runner.load(tmp_path / "policy")
    assert max(differs(policy, planner, rows) for rows in (1, 3, 16)) <= 1e-5


ALONE = """
import sys, json, numpy as np
from flowhand.deploy.runner import load
from flowhand.control.controller import Controller
controller = Controller(load(sys.argv[1]))
controller.reset(seed=5)
steps = range(6)
seen = [{"state": np.full(3, s, np.float32), "goal": np.full(2, 5 - s, np.float32)} for s in steps]
actions = [controller.step(o).tolist() for o in seen]
assert "torch" not in sys.modules
print(json.dumps(actions))
"""


@pytest.mark.parametrize(
    ("size", "stride", "steps"), [(5, 1, 16), (5, 1, 1), (3, 2, 8), (3, 2, 5), (3, 2, 1), (1, 1, 4)]
)
def test_a_product_is_its_convolution(size, stride, steps):
    torch.manual_seed(0)
    convolution = unet1d.Convolution(3, 7, size, stride, padding=size // 2)
    features = torch.randn(4, 3, steps)
    expected = torch.nn.functional.conv1d(features, convolution.weight, convolution.bias, stride, size // 2)
    torch.testing.assert_close(tracing.Product(convolution)(features), expected, rtol=0, atol=1e-6)


def test_mish_is_that_of_torch():
    x = torch.cat([torch.linspace(-100, 100, 2001), torch.linspace(-1e-3, 1e-3, 101)])
    x = torch.cat([x, torch.tensor([-3e38, 3e38, 0.0])])
    found = torch.from_numpy(tracing.mish(x.numpy()).value)
    torch.testing.assert_close(found, torch.nn.functional.mish(x), rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_where_torch_is_not_installed(exported):
    python = ROOT / "outputs" / "ort" / "venv" / "bin" / "python"
    if not python.exists():
        pytest.skip("python -m venv outputs/ort/venv && outputs/ort/venv/bin/pip install numpy onnxruntime")
    assert subprocess.run([python, "-c", "import torch"], capture_output=True, check=False).returncode != 0
    path, policy, _ = exported
    done = subprocess.run(
        [python, "-c", ALONE, path],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    controller = Controller(policy)
    controller.reset(seed=5)
    seen = [{"state": np.full(3, s, np.float32), "goal": np.full(2, 5 - s, np.float32)} for s in range(6)]
    np.testing.assert_allclose(json.loads(done.stdout), [controller.step(o) for o in seen], atol=1e-5)


def unchecked(path: str, of: list, options: dict) -> None:
    made = make(*of)
    export.export(path, made, golden(made), {"of": "a test"}, export.ExportConfig(**options))
