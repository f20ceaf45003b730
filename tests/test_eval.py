"""Evaluation: records that depend on the seed alone, and errors that a user can mend."""

import hashlib
import json
import shutil
import sys
from typing import ClassVar, get_type_hints

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

import envs
import policies
from conf import cli
from conf.sampling import SamplingConfig
from conf.verbs.eval import EvalRoot, EvaluationConfig
from conf.verbs.export import ExportRoot
from conf.verbs.serve import ServeRoot
from flowhand.commands import eval as evaluation
from flowhand.commands import export, train
from flowhand.commands.collect import collect
from flowhand.demos.config import DataConfig
from flowhand.deploy import runner
from flowhand.evaluation.records import read_records
from policies.compile import CompiledSampler
from policies.heads import HEADS
from policies.nets.mlp import MLPConfig
from tests.deploy import unchecked as elsewhere

ENV = envs.MetaWorldConfig(task="reach-v3", max_steps=60)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A short training run with everything that belongs to it, through the command line."""
    folder = tmp_path_factory.mktemp("run")
    out = call(
        train.main,
        "env.task=reach-v3",
        "env.max_steps=60",
        "data.episodes=8",
        f"data.cache_dir={folder}/demos",
        f"out={folder}/run",
        "train.steps=60",
        "train.threads=1",
        "net.width=64",
        "net.blocks=1",
        "eval.episodes=6",
        "eval.videos=1",
        "eval.workers=inline",
        "wandb.mode=disabled",
    )
    assert out == ""
    return folder / "run" / "checkpoint"


def call(main, *overrides):
    """Runs a Hydra main function in this process with these overrides; the exit message, empty if there is none."""
    GlobalHydra.instance().clear()
    argv, sys.argv = sys.argv, ["program", *overrides]
    try:
        main()
    except SystemExit as stop:
        return str(stop.code)
    finally:
        sys.argv = argv
        torch.set_num_threads(1)
    return ""


def outcomes(records):
    return [(r.seed, r.success, r.final_success, r.first_success_step, r.steps, r.return_) for r in records]


def test_records_do_not_depend_on_what_runs_beside_them(checkpoint):
    policy = policies.load(checkpoint)

    def run(**options):
        config = EvaluationConfig(episodes=6, inference_batch=4, **options)
        return outcomes(evaluation.evaluate(policy, ENV, config))

    alone = run(n_envs=1, workers="inline")
    assert run(n_envs=4, workers="inline") == alone
    assert run(n_envs=16, workers="process") == alone
    other_noise = run(n_envs=4, workers="inline", noise_seed=1)
    assert [r[0] for r in other_noise] == [r[0] for r in alone]
    assert other_noise != alone


def test_a_run_leaves_everything_behind(checkpoint):
    run = checkpoint.parent
    metrics = json.loads((run / "metrics.json").read_text())
    records = read_records(run / "episodes.jsonl")
    needed = {"task", "n", "successes", "wilson_low", "wilson_high", "expert_rate", "train_seconds", "total_seconds"}
    assert needed <= set(metrics)
    assert metrics["n"] == len(records) == 6
    assert metrics["successes"] == sum(r.success for r in records)
    assert [r.seed for r in records] == list(range(1_000_000, 1_000_006))
    page = (run / "report.html").read_text()
    assert all(str(record.seed) in page for record in records)


def test_eval_repeats_what_train_found(checkpoint, tmp_path):
    told = call(
        evaluation.main,
        f"checkpoint={checkpoint.parent}",  # the run's folder stands for its checkpoint
        "eval.episodes=6",
        "eval.n_envs=3",
        "eval.workers=inline",
        "eval.videos=0",
        "wandb.mode=disabled",
        f"out={tmp_path}",
    )
    assert told == ""
    before = read_records(checkpoint.parent / "episodes.jsonl")
    assert outcomes(read_records(tmp_path / "episodes.jsonl")) == outcomes(before)


def test_demonstrated_seeds_are_not_evaluated(checkpoint, tmp_path):
    config = json.loads((checkpoint / "config.json").read_text())
    config["provenance"]["demonstration_seeds"] = [1_000_002]
    copy = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, copy)
    (copy / "config.json").write_text(json.dumps(config))
    told = call(evaluation.main, f"checkpoint={copy}", "wandb.mode=disabled")
    assert "evaluation seeds [1000002] were demonstrated" in told


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.stepz=3"], "unknown configuration key 'train.stepz'; did you mean 'steps'?"),
        (["head.stepz=3"], "unknown configuration key 'head.stepz'; did you mean 'steps'?"),
        (["train.steps=ten"], "Value 'ten' of type 'str' could not be converted to Integer"),
        (["train.steps=0"], "train.steps=0 must be at least 1"),
        (["head=flaw"], "unknown head 'flaw'; did you mean flow"),
        (["head=[1,2]"], "Hydra cannot compose a configuration from this command line (TypeError: "),
        (["+=+headx"], "Hydra cannot compose a configuration from this command line (AssertionError"),
        (["head.solver=eular"], "head.solver='eular' is unknown; choices: euler, midpoint, heun, rk4"),
        (["env.task=pick-plaze-v3"], "did you mean pick-place-v3"),
        (["chunk.execution_horizon=17"], "execute at most what is predicted"),
        (["normalizer.action=none"], "normalizer.action='none' is unknown; choices: mean_std, min_max"),
        (["train.precision=fp16"], "train.precision='fp16' is unknown; choices: auto, fp32, bf16"),
        (["eval.seed=5"], "eval.seed=5 lies among the demonstrations' seeds"),
        (["train.device=tpu"], "device 'tpu'"),
        (["data.noise=-1"], "data.noise is -1"),
        (["resume=/does/not/exist"], "there is no checkpoint directory at /does/not/exist"),
    ],
)
def test_a_mistake_is_told_in_one_line(overrides, expected, tmp_path):
    told = call(train.main, *overrides, f"out={tmp_path}/run", "wandb.mode=disabled", f"data.cache_dir={tmp_path}")
    assert isinstance(told, str)
    assert told.startswith("error: ")
    assert "\n" not in told
    assert expected in told
    assert not (tmp_path / "run").exists()


def test_a_defect_keeps_its_traceback():
    def main():
        with cli.one_line_errors():
            raise TypeError("ours")

    with pytest.raises(TypeError, match="ours"):
        call(main)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "golden.safetensors", "train_state.pt"])
def test_a_damaged_checkpoint_is_named(file, checkpoint, tmp_path):
    copy = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, copy)
    content = (copy / file).read_bytes()
    (copy / file).write_bytes(content[: len(content) // 2])
    told = call(evaluation.main, f"checkpoint={copy}", "wandb.mode=disabled")
    assert told.startswith("error: ")
    assert file in told
    if file != "train_state.pt":  # a robot's checkpoint may leave it out
        (copy / file).unlink()
        told = call(evaluation.main, f"checkpoint={copy}", "wandb.mode=disabled")
        assert f"{file} is missing" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def test_eval_needs_a_checkpoint(tmp_path):
    assert "which checkpoint?" in call(evaluation.main)
    assert "there is no checkpoint directory" in call(evaluation.main, f"checkpoint={tmp_path}/none")


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"kind": "os.system"}, "the checkpoint's environment 'os.system' is unknown"),
        ({"kind": "gymnasium", "id": "os:evil"}, "the checkpoint asks to import 'os:evil'"),
        ({"kind": "metaworld", "task": "../../etc"}, "lacks the field"),
    ],
)
def test_a_checkpoint_cannot_name_code_or_files(env, expected, checkpoint, tmp_path):
    config = json.loads((checkpoint / "config.json").read_text())
    config["provenance"]["env"] = env
    copy = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, copy)
    (copy / "config.json").write_text(json.dumps(config))
    told = call(evaluation.main, f"checkpoint={copy}", "wandb.mode=disabled")
    assert expected in told


def test_nan_in_demonstrations_stops_training(tmp_path):
    config = DataConfig(path=str(tmp_path / "store"), episodes=2)
    collect(ENV, config, progress=False)
    file = tmp_path / "store" / "episodes" / "000001.npz"
    with np.load(file) as arrays:
        content = dict(arrays)
    content["action"][3, 1] = np.nan
    np.savez(file, **content)
    told = call(
        train.main,
        "env.task=reach-v3",
        "env.max_steps=60",
        "data.episodes=2",
        f"data.path={tmp_path}/store",
        f"out={tmp_path}/run",
        "wandb.mode=disabled",
    )
    assert told.startswith("error: ")
    assert "000001.npz" in told
    assert "nan" in told.lower()
    assert not (tmp_path / "run").exists()


def test_config_of_the_report_is_the_config_of_the_run(checkpoint):
    state = policies.load_train_state(checkpoint)
    assert state["config"]["net"]["width"] == MLPConfig(width=64).width
    assert state["history"][-1]["step"] == 60


def exported(checkpoint, *words):
    """Exports to ONNX in another process: the tracer stumbles over types that are checked."""
    pytest.importorskip("onnxscript")
    elsewhere.call("tests.test_eval", words=[f"checkpoint={checkpoint}", "export.rows=20", *words])


def unchecked(words):
    """Exports, in that process."""
    assert call(export.main, *words) == ""


@pytest.fixture(scope="module")
def artifact(checkpoint):
    exported(checkpoint, f"out={checkpoint.parent}/onnx")
    return checkpoint.parent / "onnx"


INLINE = ("eval.workers=inline", "wandb.mode=disabled")


def test_an_export_is_evaluated_as_its_checkpoint(checkpoint, artifact, monkeypatch):
    decisions, plan = [], runner.Runner.plan
    monkeypatch.setattr(runner.Runner, "plan", lambda *inputs: decisions.append(inputs) or plan(*inputs))
    options = ("eval.episodes=6", "eval.videos=0", "eval.perturb.observation_noise_relative=0.05", *INLINE)
    for path in (checkpoint, artifact):
        assert call(evaluation.main, f"checkpoint={path}", f"out={path.parent}/of-{path.name}", *options) == ""
    assert len(decisions) > 6  # the checkpoint lies beside the export, but it is the export that decides
    ours, theirs = (checkpoint.parent / f"of-{name}" for name in ("onnx", "checkpoint"))
    records, expected = (read_records(folder / "episodes.jsonl") for folder in (ours, theirs))
    assert [r[:5] for r in outcomes(records)] == [r[:5] for r in outcomes(expected)]
    np.testing.assert_allclose([r.return_ for r in records], [r.return_ for r in expected], rtol=1e-3)
    metrics, other = (json.loads((folder / "metrics.json").read_text()) for folder in (ours, theirs))
    assert set(metrics) == set(other)
    sha = hashlib.sha256((artifact / "policy.onnx").read_bytes()).hexdigest()
    assert metrics["export"] == {"format": "onnx", "precision": "fp32", "sha256": sha} | {
        "max_error": metrics["export"]["max_error"]
    }
    assert other["export"] is None
    assert metrics["perturbation"] == other["perturbation"] != {}
    page = (ours / "report.html").read_text()
    assert f"exported policy (onnx fp32, sha256 {sha[:12]})" in page


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["execution.mode=rtc_identity", "execution.delay=2"],
            "execution.mode=rtc_identity continues chunks, which an export cannot",
        ),
        (["device=cuda"], "device"),
        (["compile=fp32"], "is an export, which is what it is; compile=fp32 cannot be"),
        (["head.steps=2"], "which has its sampler in it; give head.steps=2 to flowhand export"),
        (["execution.execution_horizon=99"], "execution_horizon=99 must lie in 1..16"),
    ],
)
def test_what_an_export_cannot_do(artifact, overrides, expected):
    assert expected in call(evaluation.main, f"checkpoint={artifact}", *overrides, *INLINE)


@pytest.mark.slow
def test_an_export_with_another_sampler_says_so(checkpoint, capsys):
    exported(checkpoint, "head.steps=2")
    path = checkpoint.parent / "onnx-fp32-steps-2"
    assert json.loads((path / "manifest.json").read_text())["source"]["head"] == {"steps": 2}
    options = ("eval.episodes=2", "eval.expert=false", "eval.videos=0", *INLINE)
    assert call(evaluation.main, f"checkpoint={path}", f"out={path}/eval", *options) == ""
    assert capsys.readouterr().out.startswith("reach-v3 (head.steps=2): ")
    assert call(evaluation.main, f"checkpoint={checkpoint}", f"out={path}/same", "head.steps=2", *options) == ""
    records, expected = (read_records(path / name / "episodes.jsonl") for name in ("eval", "same"))
    np.testing.assert_allclose([r.return_ for r in records], [r.return_ for r in expected], rtol=1e-3)


def test_a_checkpoint_is_compiled_on_request(checkpoint, monkeypatch):
    class Compiled(CompiledSampler):
        used: ClassVar[list[str]] = []

        def __init__(self, policy, precision):
            super().__init__(policy, precision, backend="eager")

        def __call__(self, observation, noise):
            self.used.append(self.precision)
            return self.policy.generate(self.policy.net, observation, noise)

    monkeypatch.setattr("policies.policy.CompiledSampler", Compiled)
    options = (f"checkpoint={checkpoint}", "eval.episodes=2", "eval.videos=0", *INLINE)
    assert call(evaluation.main, *options, "compile=bf16") == ""
    assert len(Compiled.used) > 2
    assert set(Compiled.used) == {"bf16"}
    assert (checkpoint.parent / "eval-1000000-2-bf16" / "metrics.json").exists()
    assert "precision='fp16' is unknown; choices: fp32, bf16" in call(evaluation.main, *options, "compile=fp16")


def test_another_sampler_stands_in_every_result(checkpoint, capsys):
    options = (f"checkpoint={checkpoint}", "eval.episodes=2", "eval.expert=false", "eval.videos=0", *INLINE)
    told = {}
    for words in ((), ("head.steps=10",), ("head.solver=midpoint", "head.steps=2")):
        assert call(evaluation.main, *options, *words) == ""
        told[words] = capsys.readouterr().out
    names = ["eval-1000000-2", "eval-1000000-2-steps-10", "eval-1000000-2-steps-2-solver-midpoint"]
    plain, ten, midpoint = (json.loads((checkpoint.parent / name / "metrics.json").read_text()) for name in names)
    assert [metrics["head"] for metrics in (plain, ten, midpoint)] == [
        {},
        {"steps": 10},
        {"steps": 2, "solver": "midpoint"},
    ]
    assert told[()].startswith("reach-v3: ")
    assert told["head.steps=10",].startswith("reach-v3 (head.steps=10): ")
    assert midpoint["conditions"] == " (head.steps=2, head.solver=midpoint)"
    assert "flow policy (head.steps=10)" in (checkpoint.parent / names[1] / "report.html").read_text()
    returns = [outcomes(read_records(checkpoint.parent / name / "episodes.jsonl"))[0][-1] for name in names]
    assert len(set(returns)) == 3
    assert call(evaluation.main, *options, "head.steps=4") == ""  # what the checkpoint says: nothing is changed
    assert capsys.readouterr().out == told[()]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("head.stepz=3", "unknown configuration key 'head.stepz'; did you mean 'steps'?"),
        ("head.prediction=data", "unknown configuration key 'head.prediction'; choices: "),
        ("head.steps=ten", "Value 'ten' of type 'str' could not be converted to Integer"),
        ("head.steps=0", "head.steps=0 must lie in 1..1000"),
        (
            "head.noise=0",
            "head=flow has no field 'noise'; what can be changed: steps, solver, grid, guidance, max_guidance",
        ),
        ("head.guidance=2", "head.guidance=2.0 needs a policy that was also trained without conditions"),
        ("+head=diffusion", "DiffusionConfig is not a subclass of SamplingConfig"),
    ],
)
def test_a_sampler_that_cannot_be_is_told_in_one_line(override, expected, checkpoint):
    told = call(evaluation.main, f"checkpoint={checkpoint}", override, *INLINE)
    assert told.startswith("error: ")
    assert expected in told
    assert "\n" not in told


def test_the_stored_action_is_checked_with_the_sampler_of_the_checkpoint(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "checkpoint")
    config = json.loads((checkpoint / "config.json").read_text())
    config["policy"]["head"]["steps"] = 10
    (tmp_path / "checkpoint" / "config.json").write_text(json.dumps(config))
    told = call(evaluation.main, f"checkpoint={tmp_path}/checkpoint", "head.steps=4", *INLINE)
    assert "the policy's action differs from the stored one" in told


def test_fields_of_the_head_are_told_with_the_same_name_to_every_program():
    types = get_type_hints(SamplingConfig)
    del types["more"]
    for config, _ in HEADS.values():
        hints = get_type_hints(config)
        assert all(types[name] == hints[name] | None for name in config.sampling)
    assert set(types) == {name for config, _ in HEADS.values() for name in config.sampling}
    assert SamplingConfig(steps=3, more={"mine": 1}).changes == {"steps": 3, "mine": 1}
    for root in (EvalRoot, ServeRoot, ExportRoot):
        assert root().head.changes == {}


def test_an_export_cannot_name_code_and_runs_none_unasked(artifact, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    manifest = json.loads((copy / "manifest.json").read_text())

    def told(**changes):
        (copy / "manifest.json").write_text(json.dumps({**manifest, **changes}))
        return call(evaluation.main, f"checkpoint={copy}", *INLINE)

    provenance = manifest["source"]["provenance"]
    evil = {"provenance": {**provenance, "env": {"kind": "gymnasium", "id": "os:evil"}}}
    assert "the checkpoint asks to import 'os:evil'" in told(source=evil)
    assert "the export does not say what it was trained on" in told(source={})
    assert "source.provenance lacks the field" in told(source={"provenance": {}})
    assert "seeds [1000002] were demonstrated" in told(
        source={"provenance": {**provenance, "demonstration_seeds": [1_000_002]}}
    )
    assert "source.head is 'ddim', expected fields and values" in told(source={**manifest["source"], "head": "ddim"})
    (copy / "policy.onnx").rename(copy / "policy.pt2")
    files = {name.replace("onnx", "pt2"): stated for name, stated in manifest["files"].items()}
    assert "holds a program of torch: to load it is to run it" in told(format="pt2", files=files)
    assert not list(tmp_path.rglob("episodes*"))  # all of it is told before the first episode
