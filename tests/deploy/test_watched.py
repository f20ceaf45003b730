"""A monitor that was exported: the same scores and alarms as the checkpoint's own, without torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from envs import DetourConfig
from envs import make as make_world
from flowhand.commands import export
from flowhand.contracts.execution import ExecutionConfig
from flowhand.contracts.export import artifact, exported_policy
from flowhand.contracts.export.band import Band
from flowhand.contracts.export.exported_monitor import ExportedMonitor, WatchedExport
from flowhand.control.alarm import Monitor, WatchedAgent
from flowhand.control.inference_thread import InferenceThread
from flowhand.deploy import runner
from flowhand.evaluation.rollout import rollout
from policies import Policy
from policies.export import runner_torch
from policies.export.decision import ScoredDecision
from policies.monitor.calibrated import CalibratedMonitor, Calibration, MonitorConfig
from policies.monitor.density import Density, DensityConfig
from tests.deploy import unchecked as elsewhere
from tests.deploy.test_export import edit, swap
from tests.deploy.test_monitor import policy_of

pytest.importorskip("onnxruntime")
ROOT = Path(__file__).parents[2]
SCORES = ["logpzo", "acceleration", "logpz"]


def calibrated(policy: Policy, scores: list[str], mode: str = "receding_horizon", limit: float = 3.0):
    """A band around 0, 1 and 2 at the first decisions, with spreads of 0.5."""
    torch.manual_seed(1)
    density = Density(DensityConfig(width=16), policy.encoder.size).eval().requires_grad_(False)
    center = np.repeat(np.arange(3.0)[:, None], len(scores), axis=1)
    about = Calibration(MonitorConfig(list(scores), 0.05, 0.9, 4), mode, 2, {"kind": "toy"}, 3_000_000, 50, 40)
    band = Band(center, np.full_like(center, 0.5), limit, 0.05, 0.9, 27)
    return CalibratedMonitor(about, band, density)


def golden(policy: Policy, rows: int = 3) -> dict[str, torch.Tensor]:
    noise = torch.randn(rows, *policy.noise_shape)
    return {"observation.state": torch.randn(rows, 1, 4), "observation.goal": torch.randn(rows, 1, 2), "noise": noise}


def make(head: str = "flow", **options) -> Policy:
    torch.manual_seed(0)
    return policy_of(head, **options).requires_grad_(False)


def write(path: Path, policy: Policy, monitor: CalibratedMonitor, **options) -> artifact.Manifest:
    with pytest.MonkeyPatch.context() as patch:
        elsewhere.here(patch)
        config = export.ExportConfig(rows=30, **{"tolerance": 1e-4, **options})
        return export.export(path, policy, golden(policy), {}, config, monitor)


def write_unchecked(path: Path, scores: list[str], head: dict, **options) -> tuple[Policy, CalibratedMonitor]:
    """The same where annotations are not checked."""
    elsewhere.call("tests.deploy.test_watched", path=str(path), scores=scores, head=head, options=options)
    policy = make(**head)
    return policy, calibrated(policy, scores)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, Policy, CalibratedMonitor]:
    path = tmp_path_factory.mktemp("watched") / "onnx"
    return path, *write_unchecked(path, SCORES, {"steps": 2})


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    """The export, to be damaged."""
    for file in exported[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def own_scores(policy: Policy, monitor: CalibratedMonitor, rows: dict[str, np.ndarray]) -> np.ndarray:
    """Those of the checkpoint's monitor, one decision at a time."""
    watched = monitor.watch(policy, ExecutionConfig())
    for row in range(len(rows["noise"])):
        one = {name.removeprefix("observation."): value[row : row + 1] for name, value in rows.items()}
        watched.plan(one, one.pop("noise"))
    return np.array(watched.scores_ND)


def require_same(planner: exported_policy.Exported, policy: Policy, monitor: CalibratedMonitor) -> None:
    for count in (1, 3, 5):
        rows = {name: value.numpy() for name, value in golden(policy, count).items()}
        observation = {name: rows[f"observation.{name}"] for name in policy.spec.observation}
        found = planner.outputs(observation, rows["noise"])
        np.testing.assert_allclose(found["scores"], own_scores(policy, monitor, rows), rtol=1e-4)
        np.testing.assert_allclose(found["action"], policy.plan(observation, rows["noise"]), atol=1e-4)
        np.testing.assert_array_equal(planner.plan(observation, rows["noise"]), found["action"])


def test_scores_are_the_checkpoints_own(exported):
    path, policy, monitor = exported
    require_same(runner.load(path), policy, monitor)


SAMPLERS = [
    {"solver": "midpoint", "steps": 3},
    {"prediction": "velocity", "path": "cosine", "solver": "rk4", "steps": 2},
    {"condition_dropout": 0.1, "guidance": 2.5},
    {"prediction": "preconditioned", "sigma_data": 0.7, "solver": "multistep", "grid": "tabulated", "steps": 6},
]


@pytest.mark.parametrize("head", SAMPLERS)
def test_scores_of_several_decisions_at_once(head):
    policy = make(**head)
    monitor = calibrated(policy, SCORES)
    inputs = golden(policy, 5)
    rows = {name: value.numpy() for name, value in inputs.items()}
    observation = {name: inputs[f"observation.{name}"] for name in policy.spec.observation}
    action, scores = ScoredDecision(policy, SCORES, monitor.density)(inputs["noise"], observation)
    np.testing.assert_allclose(scores.numpy(), own_scores(policy, monitor, rows), rtol=1e-4)
    torch.testing.assert_close(action, policy.sample(observation, inputs["noise"]))


@pytest.mark.slow
@pytest.mark.parametrize("head", SAMPLERS)
def test_scores_of_other_samplers(tmp_path, head):
    policy, monitor = write_unchecked(tmp_path / "onnx", SCORES, head)
    require_same(runner.load(tmp_path / "onnx"), policy, monitor)


@pytest.mark.slow
def test_scores_of_a_program_of_torch(tmp_path):
    policy, monitor = write_unchecked(tmp_path / "pt2", SCORES, {}, format="pt2")
    require_same(runner_torch.load(tmp_path / "pt2"), policy, monitor)


@pytest.mark.slow
def test_scores_of_a_head_that_is_no_flow(tmp_path):
    policy = make("regression")
    monitor = calibrated(policy, ["logpzo"])
    written = write(tmp_path / "onnx", policy, monitor).monitor
    assert written is not None
    assert written.max_error < 1e-4
    require_same(runner.load(tmp_path / "onnx"), policy, monitor)


def test_the_same_alarms_in_the_same_episodes(exported):
    path, policy, monitor = exported
    planner, execution, told = runner.load(path), ExecutionConfig(delay=1), []
    assert planner.manifest.monitor is not None
    limits = monitor.band.limit * np.array([0.0, 2.0, 20.0])  # so low that some episodes have alarms and some do not
    for watch in (
        partial(monitor.watch, policy, execution),
        partial(planner.manifest.monitor.watch, planner, execution),
    ):
        agent = WatchedAgent(watch, execution)
        world = partial(make_world, DetourConfig(max_steps=12))
        steps = [record.steps for record in rollout(world, agent, range(8), n_envs=2)]
        traces = [agent.traces[seed] for seed in range(8)]
        alarms = [[trace.alarm_step(replace(monitor.band, limit=limit)) for trace in traces] for limit in limits]
        told.append((steps, [trace.steps for trace in traces], alarms, [trace.scores for trace in traces]))
    (*own, scores), (*others, exported_scores) = told
    assert others == own
    assert len({alarm is None for row in own[2] for alarm in row}) == 2
    for one, other in zip(scores, exported_scores, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3)


def test_a_watched_export_decides_for_one_robot(exported):
    planner = runner.load(exported[0])
    watched = WatchedExport(planner, SCORES)
    rows = {name: value.numpy() for name, value in golden(exported[1], 2).items()}
    observation, noise = {"state": rows["observation.state"], "goal": rows["observation.goal"]}, rows["noise"]
    with pytest.raises(ValueError, match="one robot at a time, got 2 rows"):
        watched.plan(observation, noise)
    first = {name: value[:1] for name, value in observation.items()}
    watched.plan(first, noise[:1])
    assert np.shape(watched.scores_ND) == (1, 3)
    watched.begin()
    assert watched.scores_ND == []


def test_alarms_name_score_and_limit(exported):
    planner = runner.load(exported[0])
    assert planner.manifest.monitor is not None
    tight = replace(planner.manifest.monitor, limit=-1.0)
    monitor = Monitor(tight, planner)
    monitor.reset(0)
    assert isinstance(monitor.policy, WatchedExport)
    monitor.policy.scores_ND.append([-1.0, 0.25, float("nan")])
    assert monitor.observe({}, np.zeros(2)) == [
        "acceleration 0.25 above -0.5 at decision 0",
        "logpz nan above -0.5 at decision 0",
    ]


def test_an_execution_that_was_not_calibrated(exported):
    planner = runner.load(exported[0])
    assert planner.manifest.monitor is not None
    message = r"calibrated for mode='receding_horizon' with a decision every 2 control steps, not for .* every 3"
    with pytest.raises(ValueError, match=message):
        Monitor(planner.manifest.monitor, planner, ExecutionConfig(execution_horizon=3))


@pytest.mark.parametrize(
    ("scores", "mode", "options", "message"),
    [
        (
            ["acceleration", "stac"],
            "receding_horizon",
            {},
            "scores stac sample further chunks .*: acceleration, logpz, ",
        ),
        (["acceleration"], "rtc_identity", {}, "mode='rtc_identity', which continues chunks, and an export does not"),
        (["acceleration"], "receding_horizon", {"precision": "int8"}, "says nothing of precision=int8"),
    ],
)
def test_monitors_that_cannot_be_exported(tmp_path, scores, mode, options, message):
    policy = make()
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "onnx", policy, calibrated(policy, scores, mode), **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_scores_that_are_others_are_not_written(tmp_path, monkeypatch):
    policy = make("regression")
    monitor = calibrated(policy, ["logpzo"])
    own = export.scores
    monkeypatch.setattr(export, "scores", lambda *given: 1.01 * own(*given))
    with pytest.raises(ValueError, match=r"exported scores differ by 0\.0\d+ from the checkpoint's own .*nothing is"):
        write(tmp_path / "onnx", policy, monitor)
    assert list(tmp_path.iterdir()) == []


def test_an_export_of_before_monitors_is_read(copy):
    def older(data):
        data.update(format_version=1)
        del data["monitor"]

    edit(copy, older)
    with pytest.raises(ValueError, match=r"golden\.npz: it holds .*scores"):  # which this one has
        runner.load(copy)
    stored = dict(np.load(copy / "golden.npz"))
    del stored["scores"]
    np.savez(copy / "golden.npz", **stored)  # pyright: ignore[reportArgumentType]
    swap(copy, "golden.npz", (copy / "golden.npz").read_bytes())
    with pytest.raises(ValueError, match=r"the model has inputs and outputs .*'scores'"):
        runner.load(copy)
    assert artifact.read(copy)[0].monitor is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(monitor=5), "monitor has the fields 5, expected"),
        (lambda d: d["monitor"].pop("limit"), "monitor has the fields"),
        (lambda d: d["monitor"].update(limit="3"), "limit is '3', expected a finite float"),
        (lambda d: d["monitor"].update(scores=["a", "a", "b"]), "scores are .*, expected 1 to 100 different names"),
        (lambda d: d["monitor"].update(scores=["a", "b", "c\nd"]), r"scores are .*'c\\nd'\], expected"),
        (lambda d: d["monitor"].update(scores=["a"]), "must have 1 numbers a decision"),
        (lambda d: d["monitor"].update(center=[]), r"as many decisions, 1\.\.100000"),
        (lambda d: d["monitor"]["center"][0].append(1.0), "must have 3 numbers a decision"),
        (lambda d: d["monitor"]["spread"][1].__setitem__(0, 0.0), "spread must be positive"),
        (lambda d: d["monitor"]["spread"][1].__setitem__(0, float("nan")), "spread is nan, expected a finite float"),
        (lambda d: d["monitor"].update(alpha=1.0), r"alpha=1\.0 must lie in \(0, 1\)"),
        (lambda d: d["monitor"].update(interval=0), "interval=0 and calibrated=27 must be 1 or more"),
        (lambda d: d.update(monitor=None), r"golden\.npz: it holds .*scores"),
    ],
)
def test_a_hostile_monitor(copy, change, message):
    edit(copy, change)
    with pytest.raises(ValueError, match=message):
        runner.load(copy)


def test_scores_that_this_machine_computes_otherwise(copy):
    stored = dict(np.load(copy / "golden.npz"))
    np.savez(copy / "golden.npz", **{**stored, "scores": 1.05 * stored["scores"]})  # pyright: ignore[reportArgumentType]
    swap(copy, "golden.npz", (copy / "golden.npz").read_bytes())
    with pytest.raises(
        ValueError, match=r"the monitor's scores differ by 0\.0\d+ from the stored ones \(allowed 0\.01\)"
    ):
        runner.load(copy)


def test_errors_of_scores_are_shares_of_them_or_of_the_spread():
    monitor = ExportedMonitor(["a", "b"], "m", 2, 0.05, 0.9, 3.0, 20, [[0, 0]], [[1, 4]], 0.0, {})
    assert monitor.compare(np.array([[0.5, 2.0]]), np.array([[0.0, 1.0]])) == 0.5  # of a spread of 1; of 4, a quarter
    assert monitor.compare(np.array([[8.0, 0.0]]), np.array([[10.0, 0.0]])) == pytest.approx(0.2)
    assert monitor.compare(np.array([[np.nan, 0.0]]), np.zeros((1, 2))) == np.inf


def test_what_the_page_shows(exported, tmp_path, monkeypatch):
    section = (ROOT / "docs" / "deploy_reference.md").read_text().split("\n## Monitor\n")[1].split("\n## ")[0]
    (code,) = [b for b in re.findall(r"^```py\n(.*?)^```$", section, re.MULTILINE | re.DOTALL) if "load(" in b]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "demo").mkdir(parents=True)
    (tmp_path / "outputs" / "demo" / "onnx-fp32").symlink_to(exported[0])
    namespace = {"Monitor": Monitor, "InferenceThread": InferenceThread, "execution": ExecutionConfig()}
    exec(compile(code, "deploy.md", "exec", dont_inherit=True), namespace)
    inference_thread, monitor = namespace["inference_thread"], namespace["monitor"]
    assert isinstance(inference_thread, InferenceThread)
    assert isinstance(monitor, Monitor)
    monitor.reset(0)
    inference_thread.reset(seed=0)
    until = time.monotonic() + 20
    while not monitor.policy.scores_ND and time.monotonic() < until:
        inference_thread.step({"state": np.zeros(4, np.float32), "goal": np.ones(2, np.float32)})
        time.sleep(0.01)
    inference_thread.close()
    assert np.shape(monitor.policy.scores_ND)[1:] == (3,)


def test_a_robot_without_torch_is_watched(exported):
    path, policy, monitor = exported
    rows = {name: value.numpy().tolist() for name, value in golden(policy, 1).items()}
    program = """
import json, sys
import numpy as np
sys.modules["torch"] = None  # to import it is an error
from flowhand.deploy import runner
from flowhand.control.inference_thread import InferenceThread
from flowhand.control.alarm import Monitor
from flowhand.control.runtime import Runtime

policy = runner.load(sys.argv[1])
monitor = Monitor(policy.manifest.monitor, policy)
InferenceThread(monitor.policy, asynchronous=False).close()  # which asks once or twice before the robot does
monitor.reset(0)
given = {name: np.array(value, np.float32) for name, value in json.loads(sys.argv[2]).items()}
noise = given.pop("noise")
monitor.policy.plan({name.removeprefix("observation."): value for name, value in given.items()}, noise)
print(json.dumps([monitor.policy.scores_ND, monitor.observe({}, np.zeros(2))]))
"""
    command = [sys.executable, "-c", program, str(path), json.dumps(rows)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    scores, alarms = json.loads(done.stdout)
    expected = own_scores(policy, monitor, {name: np.array(value, np.float32) for name, value in rows.items()})
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    limits = monitor.band.threshold(0)
    assert len(alarms) == int((expected[0] > limits).sum())


def unchecked(path: str, scores: list[str], head: dict, options: dict) -> None:
    made = make(**head)
    write(Path(path), made, calibrated(made, scores), **options)
