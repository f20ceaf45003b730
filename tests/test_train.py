"""Training: resume equals never having stopped, kills lose nothing, bad numbers stop before they are learned."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

import policies
from conf import resume
from conf.cli import compose
from flowhand.commands import train
from flowhand.contracts.data.episode import Episode
from flowhand.contracts.features import Spec
from tests import programs
from tests.cases import some

ROOT = Path(__file__).parent.parent
TINY = ("net.width=16", "encoder.width=16", "net.blocks=1", "train.batch_size=32", "train.threads=1", "train.steps=40")
RUN = (
    *TINY,
    "env.task=reach-v3",
    "data.episodes=3",
    "eval.episodes=0",
    "wandb.mode=disabled",
    "train.save_every=10",
    "train.log_every=5",
)
FEATURES = {
    "observation": {"state": {"shape": [3], "dtype": "float32", "unit": "m", "low": None, "high": None}},
    "action": {"shape": [2], "dtype": "float32", "unit": "", "low": None, "high": None},
    "control_dt_s": 0.05,
}


def configure(*overrides):
    return compose([*TINY, *overrides])


def make_trainer(*overrides, fitted=False):
    random = np.random.default_rng(0)
    episodes = [
        Episode(
            {"state": random.normal(size=(20, 3)).astype(np.float32)},
            random.normal(size=(20, 2)).astype(np.float32),
            np.zeros(20, np.float32),
            np.zeros(20, bool),
            "",
            seed,
            0.05,
        )
        for seed in range(4)
    ]
    spec = Spec.from_dict(FEATURES)
    return train.trainer_of(configure(*overrides), spec, episodes, torch.device("cpu"), fitted)


def assert_same_state(a, b):
    assert a.keys() == b.keys()
    for key in a.keys() - {"seconds", "history"}:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=0, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize(
    ("head", "precision"),
    some(product(["flow", "regression"], ["fp32", "bf16"]), [("flow", "fp32"), ("regression", "bf16")]),
)
def test_restored_trainer_goes_on_bit_for_bit(tmp_path, head, precision):
    options = (f"head={head}", f"train.precision={precision}")
    whole = make_trainer(*options)
    for _ in range(20):
        whole.advance()

    half = make_trainer(*options)
    for _ in range(9):
        half.advance()
    torch.save(half.state(), tmp_path / "state.pt")
    resumed = make_trainer(*options)
    resumed.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(11):
        resumed.advance()

    assert_same_state(whole.state(), resumed.state())


def test_learning_rate_warms_up_and_falls_to_zero():
    trainer = make_trainer("train.steps=1000", "train.warmup_steps=100", "train.learning_rate=1e-3")
    rates = []
    for step in (0, 99, 500, 1000):
        trainer.step = step
        rates.append(trainer.learning_rate())
    half_cosine = [0.5 * (1 + np.cos(np.pi * step / 1000)) for step in (0, 99, 500, 1000)]
    np.testing.assert_allclose(rates, 1e-3 * np.array([0.01, 1, 1, 1]) * half_cosine, atol=1e-12)


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_non_finite_numbers_stop_before_they_are_learned(how):
    trainer = make_trainer()
    for _ in range(3):
        trainer.advance()
    before = {name: value.clone() for name, value in trainer.policy.state_dict().items()}
    moments = [state["exp_avg"].clone() for state in trainer.optimizer.state.values()]
    honest = trainer.loss

    def broken(*given):
        loss = honest(*given)
        if how == "loss":
            return loss * float("nan")
        # finite value, infinite slope
        weight = trainer.policy.net.inlet.weight
        return loss + torch.sqrt((weight * 0).sum().abs())

    trainer.loss = broken
    trainer.advance()
    trainer.loss = honest
    trainer.advance()  # nobody has looked yet; nothing may be learned now either
    with pytest.raises(ValueError, match="not finite at step 3"):
        trainer.require_finite()
    for name, value in trainer.policy.state_dict().items():
        assert torch.equal(value, before[name]), name
    for state, moment in zip(trainer.optimizer.state.values(), moments, strict=True):
        assert torch.equal(state["exp_avg"], moment)


def test_loss_falls_on_a_learnable_mapping():
    trainer = make_trainer("train.steps=200", "train.learning_rate=1e-2", "train.warmup_steps=10")
    losses = [trainer.advance().item() for _ in range(200)]
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])


def test_compiling_without_a_compiler(monkeypatch):
    """What is computed is held against the plain loss in tests/policies/compiled_cases.py."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"needs the C\+\+ compiler 'no-such-compiler'.* or do without compiling"):
        make_trainer("train.compile=true")


def test_differences_name_the_fields():
    a = {"train": {"steps": 1, "seed": 0}, "x": 1}
    assert resume.differences(a, {"train": {"steps": 2, "seed": 0}, "x": 1}) == [("train.steps", 1, 2)]
    assert resume.differences(a, a) == []


def test_resume_refuses_what_would_change_the_run():
    old = {"train": {"learning_rate": 1e-3, "save_every": 5}, "eval": {"episodes": 3}}
    resume.require_same(old, {"train": {"learning_rate": 1e-3, "save_every": 9}, "eval": {"episodes": 7}}, "here")
    with pytest.raises(ValueError, match=r"train\.learning_rate=0\.001, now it is 0\.002; start a new run"):
        resume.require_same(old, {"train": {"learning_rate": 2e-3, "save_every": 5}, "eval": {"episodes": 3}}, "here")


def test_a_run_of_an_earlier_version_goes_on():
    """Its configuration and its overrides name a field that is gone."""
    overrides = [*TINY, "normalizer.constant_below=1e-6", "seed=3"]
    saved = asdict(configure("seed=3"))
    saved["normalizer"]["constant_below"] = 1e-6
    resume.require_same(saved, asdict(configure("seed=3")), "here")
    assert configure(*resume.stored_overrides({"overrides": overrides}, Path("here"))).seed == 3


def test_a_resumed_run_keeps_the_statistics_that_it_began_with():
    trainer = make_trainer()
    trainer.policy.action_normalizer.scale.fill_(9)
    resumed = make_trainer(fitted=True)
    assert resumed.policy.action_normalizer.scale.isnan().all()
    resumed.restore(trainer.state())
    assert (resumed.policy.action_normalizer.scale == 9).all()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("demos")


@pytest.fixture(scope="module")
def uninterrupted(cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    options = (*RUN, f"data.cache_dir={cache}", f"out={out}")
    assert train.train(configure(*options), list(options), None) == 0
    return out


def wait_for(path, process):
    deadline = time.monotonic() + 90
    while not path.exists():
        assert process.poll() is None, process.said()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_run_goes_on_bit_for_bit(number, cache, tmp_path, uninterrupted):
    out = tmp_path / "run"
    # A checkpoint after every step makes the steps slow enough for the signal to arrive between two of them.
    process = programs.start("train.py", *RUN, f"data.cache_dir={cache}", f"out={out}", "train.save_every=1")
    wait_for(out / "checkpoint" / "config.json", process)
    process.send_signal(number)
    said = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    elif process.returncode != 0:  # zero: it had finished before the signal came
        assert process.returncode == 128 + number
        assert f"resume={out}" in "".join(said)
    resumed = programs.run("train.py", f"resume={out}", "train.save_every=40")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_state(
        {k: v for k, v in policies.load_train_state(uninterrupted / "checkpoint").items() if k not in LEFT_OUT},
        {k: v for k, v in policies.load_train_state(out / "checkpoint").items() if k not in LEFT_OUT},
    )


LEFT_OUT = ("config", "overrides")  # they differ in the output folder


def test_a_finished_run_is_not_overwritten(uninterrupted, cache):
    before = (uninterrupted / "checkpoint" / "config.json").read_bytes()
    config = configure(*RUN, f"data.cache_dir={cache}", f"out={uninterrupted}")
    with pytest.raises(ValueError, match="already holds a run"):
        train.train(config, [], None)
    assert (uninterrupted / "checkpoint" / "config.json").read_bytes() == before


def test_the_checkpoint_says_where_it_comes_from(uninterrupted):
    data = json.loads((uninterrupted / "checkpoint" / "config.json").read_text())
    source = data["provenance"]
    assert source["train_steps"] == 40
    assert source["env"]["task"] == "reach-v3"
    assert source["demonstration_seeds"] == [0, 1, 2]
    assert "metaworld" in source["env_version"]
    assert len(source["demonstrations"]) >= 32
    assert str(ROOT) not in json.dumps(data["policy"])


def test_the_checkpoint_loads_without_simulator_or_hydra(uninterrupted):
    program = (
        "import sys, policies; p = policies.load(sys.argv[1]); "
        "bad = {'mujoco', 'gymnasium', 'hydra', 'omegaconf', 'wandb', 'envs', 'demos'} & set(sys.modules); "
        "assert not bad, bad; print(p.chunk_shape)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(uninterrupted / "checkpoint")], cwd=ROOT, capture_output=True, text=True
    )
    assert result.stdout.strip() == "(16, 4)", result.stderr


def test_recorded_demonstrations_need_no_simulator(cache, uninterrupted, tmp_path):
    store = next(path for path in cache.iterdir() if path.is_dir())
    options = (*TINY, "env=none", "eval.episodes=0", "wandb.mode=disabled", "data.episodes=3", f"out={tmp_path}/run")
    config = configure(*options, f"data.path={store}")
    assert train.train(config, [], None) == 0
    policy = policies.load(tmp_path / "run" / "checkpoint")
    assert policy.spec.action.size == 4
    assert not (tmp_path / "run" / "held_out.json").exists()  # data.episodes takes all
    with pytest.raises(ValueError, match=r"give their store with data\.path="):
        train.demonstrations(configure(*options))
    with pytest.raises(ValueError, match=r"set eval\.episodes=0"):
        train.demonstrations(configure(*options, f"data.path={store}", "eval.episodes=5"))
    with pytest.raises(ValueError, match=r"data\.episodes=9 asks for more episodes than there are: 3"):
        train.demonstrations(configure(*options, f"data.path={store}", "data.episodes=9"))


def test_evaluation_during_training_comes_at_its_own_steps():
    trainer = make_trainer("train.log_every=10", "train.eval_every=15", "train.steps=40")
    asked, logged, saved = [], [], []
    before = signal.getsignal(signal.SIGINT)
    stopped = train.fit(
        trainer,
        save=lambda: saved.append(trainer.step),
        score=lambda: asked.append(trainer.step) or {"n": 2, "successes": 1},
        log=lambda entry, step: logged.append(step),
    )
    assert stopped == 0
    assert asked == [15, 30]
    assert logged == [10, 15, 20, 30, 40]
    assert saved == [40]
    assert [entry["step"] for entry in trainer.history if "success" in entry] == [15, 30]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_step_finish_and_saves(number):
    trainer = make_trainer("train.steps=1000", "train.save_every=1000")
    honest, saved = trainer.loss, []

    def interrupted(*given):
        if trainer.step == 7:
            os.kill(os.getpid(), number)
        return honest(*given)

    trainer.loss = interrupted
    stopped = train.fit(trainer, lambda: saved.append(trainer.step), dict, lambda entry, step: None)
    assert stopped == number
    assert saved == [8]
