"""Evaluation under delay and perturbation: from the command line to records, metrics and report."""

import json
import sys
from dataclasses import fields

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

import envs
import policies
from conf.verbs.eval import EvaluationConfig
from envs import PerturbConfig
from envs.perturb import PerturbedEnv
from flowhand.commands import eval as evaluation
from flowhand.contracts.execution import ExecutionConfig
from flowhand.contracts.features import ChunkConfig
from flowhand.evaluation.records import read_records
from policies.nets.mlp import MLPConfig

ENV = envs.DetourConfig(max_steps=10)


@pytest.fixture(scope="module")
def policy():
    spec = envs.make(ENV).features
    policy = policies.Policy(policies.PolicyConfig(ChunkConfig(2, 8, 4), net=MLPConfig(width=16)), spec)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in policy.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5)
    scale = torch.tensor([1.0, 0.1, 3.0, 0.5])
    shown = {"state": scale * torch.randn(50, 4, generator=generator), "goal": torch.randn(50, 2, generator=generator)}
    policy.fit_normalizers(shown, 0.3 * torch.randn(50, 2, generator=generator))
    return policy.eval()


@pytest.fixture
def checkpoint(policy, tmp_path):
    source = policies.Provenance({"kind": "detour", "max_steps": 10, "image_size": 64}, "", "", "", [], {}, "", 0)
    golden = {name: torch.randn(1, 2, feature.size) for name, feature in policy.spec.observation.items()}
    policies.save(tmp_path / "checkpoint", policy, source, golden, {"step": 0, "history": []})
    return tmp_path / "checkpoint"


def evaluate(policy, **options):
    execution = ExecutionConfig(**{f.name: options.pop(f.name) for f in fields(ExecutionConfig) if f.name in options})
    config = EvaluationConfig(episodes=5, inference_batch=4, workers="inline", **options)
    records = evaluation.evaluate(policy, ENV, config, execution)
    return [(r.seed, r.success, r.steps, r.return_, r.perturbation) for r in records]


@pytest.mark.parametrize(
    "latency", [{"latencies_ms": [20.0, 90.0, 140.0]}, pytest.param({"delay": 2}, marks=pytest.mark.slow)]
)
def test_delayed_and_perturbed_records_do_not_depend_on_what_runs_beside_them(policy, latency):
    perturb = PerturbConfig(observation_noise_relative=0.1, action_delay=1, push=2.0, frame_drop=0.2)
    conditions = {"mode": "rtc_identity", "perturb": perturb, **latency}
    alone = evaluate(policy, n_envs=1, **conditions)
    assert evaluate(policy, n_envs=3, **conditions) == alone
    assert evaluate(policy, n_envs=16, **conditions) == alone
    assert len({r[3] for r in alone}) == 5
    assert {r[4] for r in alone} == {perturb.describe()}
    others = [{}, {"mode": "rtc_identity"}, {"perturb": perturb}, latency, {**conditions, "noise_seed": 1}]
    returns = [[r[3] for r in evaluate(policy, **other)] for other in others]
    assert all(np.abs(np.subtract(a, [r[3] for r in alone])).min() > 1e-6 for a in returns)


def test_noise_is_relative_to_the_spread_that_the_policy_knows(policy):
    config = EvaluationConfig(perturb=PerturbConfig(observation_noise_relative=0.5))
    env = evaluation.world_of(policy, ENV, config)()
    assert isinstance(env, PerturbedEnv)
    noise = []
    for seed in range(200):
        (noisy, _), (clean, _) = env.reset(seed=seed), env._env.reset(seed=seed)
        noise.append(noisy["state"] - clean["state"])
    expected = 0.5 * policy.observation_normalizers["state"].scale.numpy()
    np.testing.assert_allclose(np.std(noise, axis=0), expected, rtol=0.2)


def call(*overrides: str) -> str:
    GlobalHydra.instance().clear()
    argv, sys.argv = sys.argv, ["eval.py", *overrides]
    try:
        evaluation.main()
    except SystemExit as stop:
        return str(stop.code)
    finally:
        sys.argv = argv
        torch.set_num_threads(1)
    return ""


SETTINGS = ["execution.mode=rtc_exact", "execution.execution_horizon=3", "execution.delay=2", "eval.perturb.push=1.5"]


def test_what_was_set_stands_in_every_result(checkpoint, tmp_path, capsys):
    few = ["eval.episodes=2", "eval.workers=inline", "eval.videos=0", "wandb.mode=disabled", "eval.expert=true"]
    assert call(f"checkpoint={checkpoint}", f"out={tmp_path}/out", *few, *SETTINGS) == ""
    assert capsys.readouterr().out.startswith("detour (rtc_exact, delay 2 steps, push=1.5): 0/2 = 0.0%")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["perturbation"] == "push=1.5"
    assert metrics["execution"] == {
        "mode": "rtc_exact",
        "execution_horizon": 3,
        "delay": 2,
        "latencies_ms": [],
        "latencies_file": "",
        "ensemble_decay": 0.01,
        "clip": True,
    }
    assert [r.perturbation for r in read_records(tmp_path / "out" / "episodes.jsonl")] == ["push=1.5"] * 2
    page = (tmp_path / "out" / "report.html").read_text()
    assert "detour: flow policy (rtc_exact, delay 2 steps, push=1.5)" in page


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("execution.mode=rtc", "mode='rtc' is unknown; choices: receding_horizon"),
        ("execution.delay=5", "a delay of 5 control steps is too long for chunks of 8: expected at most 4"),
        ("execution.latencies_ms=[30,-1]", "latencies_ms has -1.0"),
        ("execution.mode=rtc_trained", "mode='rtc_trained' is not possible with this policy"),
        ("eval.perturb.observation_noize=1", "did you mean 'observation_noise'?"),
        ("eval.perturb.frame_drop=1.5", "perturb.frame_drop=1.5 must lie in [0, 1)"),
        ("eval.perturb.body=leg", "perturb.body='leg' is no body of this world: choose one of robot"),
    ],
)
def test_a_mistake_is_told_in_one_line(checkpoint, tmp_path, override, message):
    more = ["eval.perturb.push=1"] if "body" in override else []
    told = call(
        f"checkpoint={checkpoint}", f"out={tmp_path}/out", "wandb.mode=disabled", "eval.workers=inline", override, *more
    )
    assert told.startswith("error: ")
    assert message in told
    assert "\n" not in told
