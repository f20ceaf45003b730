"""`flowhand calibrate`: from a training run to a stored monitor, and what it refuses."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

import policies
from conf import cli
from conf.verbs.calibrate import CalibrateRoot
from envs import DetourConfig
from flowhand.commands import calibrate as module
from flowhand.commands.calibrate import calibrate, demonstrations
from flowhand.commands.collect import collect
from flowhand.commands.train import provenance, trainer_of
from flowhand.control.alarm import Monitor, Trace
from flowhand.demos.config import DataConfig
from flowhand.evaluation.records import EpisodeRecord
from policies.monitor.calibrated import MonitorConfig, load_monitor
from policies.monitor.density import DensityConfig


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A policy that has learned for a moment; what it does counts as success here."""
    folder = tmp_path_factory.mktemp("calibrate")
    GlobalHydra.instance().clear()
    small = ["env=detour", "env.max_steps=60", "net.width=16", "net.blocks=1", "train.steps=2", "train.threads=1"]
    config = cli.compose([*small, "data.episodes=3", f"data.cache_dir={folder}/demos", "train.device=cpu"])
    store = collect(config.env, config.data, progress=False)
    trainer = trainer_of(config, store.spec, store, torch.device("cpu"))
    trainer.advance()
    golden = trainer.windows.gather(torch.arange(2)).observation
    state = {"config": {"demos": vars(config.data)}}
    policies.save(folder / "checkpoint", trainer.ema.module, provenance(config, store), golden, state)
    return folder / "checkpoint"


def root(checkpoint, **options) -> CalibrateRoot:
    short = {"episodes": 13, "workers": "inline", "env": DetourConfig(max_steps=6)}
    short["calibration"] = MonitorConfig(alpha=0.1, confidence=0.0)
    return CalibrateRoot(**{"checkpoint": str(checkpoint), **short, **options})


@pytest.fixture
def everything_succeeds(monkeypatch):
    monkeypatch.setattr(module, "successes", lambda episodes: [np.array(trace.scores) for _, trace in episodes])


@pytest.mark.usefixtures("everything_succeeds")
def test_a_calibrated_monitor_watches_the_policy(checkpoint):
    scores = ["acceleration", "logpzo", "stac"]
    density = DensityConfig(width=8, steps=2)
    chosen = MonitorConfig(scores, alpha=0.1, confidence=0.0, density=density)
    line = calibrate(root(checkpoint, calibration=chosen))
    assert "at most 10.0% of successful episodes like the 13 of 13" in line
    assert "\n" not in line
    policy = policies.load(checkpoint)
    calibrated = load_monitor(checkpoint, policy)
    assert calibrated.about.monitor.scores == scores
    assert (calibrated.about.first_seed, calibrated.about.successes) == (3_000_000, 13)
    assert calibrated.about.env["max_steps"] == 6
    assert calibrated.band.center_ND.shape == (3, 3)  # a decision every 2 of 6 control steps
    Monitor(calibrated, policy)
    first = (checkpoint / "monitor" / "monitor.safetensors").read_bytes()
    calibrate(root(checkpoint, calibration=chosen, n_envs=1))
    assert (checkpoint / "monitor" / "monitor.safetensors").read_bytes() == first


def test_without_successes_there_is_no_band(checkpoint):
    with pytest.raises(ValueError, match=r"got 0 successful episodes; alpha=0.1 .* takes at least 13"):
        calibrate(root(checkpoint))


def test_only_the_demonstrations_of_the_training_will_do(checkpoint, tmp_path):
    store = demonstrations(checkpoint, None)
    assert len(store) == 3
    assert demonstrations(checkpoint, DataConfig(path=str(store.path), episodes=3)).seeds == store.seeds
    other = DataConfig(cache_dir=str(tmp_path), episodes=2)
    with pytest.raises(ValueError, match=r"does not hold what .* was trained on"):
        demonstrations(checkpoint, other)
    state = checkpoint / "train_state.pt"
    state.rename(state.with_suffix(".away"))
    try:
        with pytest.raises(ValueError, match="does not say how its demonstrations were collected"):
            demonstrations(checkpoint, None)
    finally:
        state.with_suffix(".away").rename(state)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("seed=1000000", "seed=1000000 must be 3000000 or more"),
        ("episodes=0", "episodes and n_envs must be at least 1"),
        ("calibration.alpha=2", "alpha=2.0 must lie in"),
        ("calibration.scores=[speed]", "must be different ones of: acceleration"),
        ("workers=many", "choices: process, inline"),
        ("apha=0.1", "did you mean 'calibration.alpha'"),
    ],
)
def test_the_command_tells_what_is_wrong(checkpoint, option, message, monkeypatch):
    GlobalHydra.instance().clear()
    monkeypatch.setattr(sys, "argv", ["flowhand.commands.calibrate", f"checkpoint={checkpoint}", option])
    with pytest.raises(SystemExit, match=message):
        module.main()


def test_the_command_asks_for_a_checkpoint(monkeypatch):
    GlobalHydra.instance().clear()
    monkeypatch.setattr(sys, "argv", ["flowhand.commands.calibrate"])
    with pytest.raises(SystemExit, match="which checkpoint"):
        module.main()


def test_successes_are_what_calibrates():
    def record(seed, success):
        outcome = (success, False, "" if success else "slow", "", 1 if success else None)
        return EpisodeRecord("toy", seed, *outcome, 2, 0.0, 0.0)

    traces = [(record(s, s > 0), Trace(s, ["stac"], [0], [[float(s)]])) for s in range(3)]
    assert [scores.tolist() for scores in module.successes(traces)] == [[[1.0]], [[2.0]]]
