"""What a run takes from a folder, what it refuses to write over, and what a sweep does about a run that fails."""

import errno
import os
import sys
from dataclasses import asdict, fields
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import policies
from conf import cli, resume, sweep
from flowhand.commands import train
from flowhand.contracts.durable import claimed
from policies.heads import HEADS


def call(*words):
    """Runs train.py in this process; its exit message, empty if there is none."""
    GlobalHydra.instance().clear()
    argv, sys.argv = sys.argv, ["train.py", *words]
    try:
        train.main()
    except SystemExit as stop:
        return str(stop.code)
    finally:
        sys.argv = argv
    return ""


@pytest.mark.parametrize("override", ["env.task=${oc.env:SECRET}", "train.steps=${seed}", "wandb.name='${x}'"])
def test_no_interpolation_is_taken_from_a_file(override):
    with pytest.raises(ValueError, match="no interpolation is taken from a file"):
        resume.stored_overrides({"overrides": ["seed=1", override]}, Path("here"))


@pytest.mark.parametrize("overrides", [None, "seed=1", [1], ["seed=1", None], {"seed": 1}])
def test_only_a_list_of_settings_is_taken_from_a_file(overrides):
    with pytest.raises(ValueError, match="here does not say with which settings its run was started"):
        resume.stored_overrides({"overrides": overrides}, Path("here"))


@pytest.mark.parametrize("override", ["seed=1,2", "~train.steps", "train.steps=range(1,3)"])
def test_only_settings_with_one_value_are_taken_from_a_file(override):
    with pytest.raises(ValueError, match="a file can only give values"):
        resume.stored_overrides({"overrides": [override]}, Path("here"))


def test_where_things_go_is_not_taken_from_a_file():
    kept = ["env.task=reach-v3", "++train.steps=3", "experiment=demo"]
    dropped = [
        "wandb.mode=online",
        "+wandb.mode=online",
        "++wandb={mode: online}",
        "out=x",
        "resume=y",
        "hydra.run.dir=/",
    ]
    dropped += ["hydra/launcher=basic", "wandb.project=theirs", "hydra.sweep.dir=x"]
    assert resume.stored_overrides({"overrides": [*kept, *dropped]}, Path("here")) == kept


def test_a_fresh_run_leaves_the_checkpoint_of_an_interrupted_one(tmp_path):
    (tmp_path / "run" / "checkpoint.previous").mkdir(parents=True)
    words = (f"out={tmp_path}/run", f"data.cache_dir={tmp_path}", "wandb.mode=disabled")
    assert "already holds a run; go on with it by resume=" in call(*words)
    assert os.listdir(tmp_path / "run") == ["checkpoint.previous"]


def test_a_second_training_into_a_folder_is_refused(tmp_path):
    with claimed(tmp_path / "run"):
        told = call(f"out={tmp_path}/run", f"data.cache_dir={tmp_path}", "wandb.mode=disabled")
    assert f"another process (number {os.getpid()}) is writing to {tmp_path}/run" in told


def test_a_sweep_goes_on_after_a_run_that_cannot_be_and_fails_at_its_end(tmp_path, capsys, monkeypatch):
    done = []
    monkeypatch.setattr(train, "train", lambda config, *_: done.append(config.seed) or 0)
    with claimed(tmp_path / "b"):
        told = call("-m", f"out={tmp_path}/a,{tmp_path}/b,{tmp_path}/c", f"hydra.sweep.dir={tmp_path}/sweep")
    assert told == "error: 1 runs of the sweep failed; their lines are above"
    assert len(done) == 2
    assert f"is writing to {tmp_path}/b" in capsys.readouterr().err


def test_a_sweep_ends_with_a_table_of_what_its_runs_came_to(tmp_path, capsys, monkeypatch):
    def trained(config, *_):
        solved = 7 + config.seed
        interval = {"wilson_low": 0.25, "wilson_high": 0.875, "expert_rate": 1.0 if config.seed else None}
        sweep.note({"successes": solved, "n": 10, "rate": solved / 10, **interval}, Path(config.out))
        return 0

    monkeypatch.setattr(train, "train", trained)
    words = (f"out={tmp_path}/${{seed}}", f"hydra.sweep.dir={tmp_path}/sweep", "head=flow")
    assert call("-m", *words, "seed=0,1") == ""
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert [line.split() for line in lines] == [
        ["seed", "success", "rate", "95", "%", "interval", "expert", "folder"],
        ["0", "7/10", "70.0%", "25.0%", "to", "87.5%", f"{tmp_path}/0"],
        ["1", "8/10", "80.0%", "25.0%", "to", "87.5%", "100.0%", f"{tmp_path}/1"],
    ]
    assert call(*words, "seed=0") == ""
    assert "folder" not in capsys.readouterr().out  # a single run has its closing line


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EROFS, "choose a folder that can be written"),
        (errno.EACCES, "choose a folder"),
    ],
)
def test_what_the_system_refuses_is_told_in_one_line(number, hint, monkeypatch, tmp_path):
    def refused(*_):
        raise OSError(number, os.strerror(number), "/some/where")

    monkeypatch.setattr(train, "train", refused)
    told = call(f"out={tmp_path}/run")
    assert told.startswith(f"error: /some/where: {os.strerror(number)}; {hint}")
    assert "\n" not in told
    assert not (tmp_path / "run").exists()


def test_an_output_below_a_file_is_told_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    told = call(f"out={tmp_path}/file/run")
    assert "is a file; choose another path" in told or "a file lies where a folder is needed" in told


@pytest.fixture
def resumed(monkeypatch, tmp_path):
    """`resumed(config, *words)`: the configuration in which a run of an earlier version, with this one, goes on."""

    def go_on(saved, overrides, *words):
        seen = []
        monkeypatch.setattr(policies, "load_train_state", lambda _: {"overrides": overrides, "config": saved})
        monkeypatch.setattr(train, "train", lambda config, *_: seen.append(config) or 0)
        told = call(f"resume={tmp_path}/run", *words)
        assert not told, told
        resume.require_same(resume.completed(saved, OmegaConf.structured(seen[0])), asdict(seen[0]), "here")
        return seen[0]

    return go_on


@pytest.mark.parametrize("head", ["diffusion", "mean_flow"])  # that have other defaults by now
def test_a_run_from_before_a_field_goes_on_as_it_was(resumed, head):
    """With what the field's absence meant in a checkpoint."""
    saved = asdict(cli.compose([f"head={head}", "seed=3"]))
    later = {f.name: f.metadata["before"] for f in fields(HEADS[head][0]) if "before" in f.metadata}
    assert any(saved["head"][name] != before for name, before in later.items())
    saved["head"] = {name: value for name, value in saved["head"].items() if name not in later}
    config = resumed(saved, [f"head={head}", "seed=3"])
    assert {name: getattr(config.head, name) for name in later} == later


def test_a_run_goes_on_with_the_defaults_that_it_began_with(resumed):
    """But for what may change, and for what is asked for now, which is refused afterwards."""
    saved = asdict(cli.compose(["seed=3"]))
    saved["head"] |= {"prediction": "velocity", "steps": 7}
    saved["train"] |= {"weight_decay": 0.25, "log_every": 7}
    config = resumed(saved, ["seed=3"])
    assert (config.head.prediction, config.head.steps, config.train.weight_decay) == ("velocity", 7, 0.25)
    assert config.train.log_every != 7
    with pytest.raises(ValueError, match=r"head\.steps=7, now it is 8; start a new run"):
        resumed(saved, ["seed=3"], "head.steps=8")
    with pytest.raises(ValueError, match="start a new run"):
        resumed(saved, ["seed=3"], "head=diffusion")


def test_a_default_from_a_file_is_no_interpolation(resumed):
    saved = asdict(cli.compose([]))
    saved["head"]["prediction"] = "${oc.env:HOME}"
    with pytest.raises(AssertionError, match="no interpolation is taken from a file"):
        resumed(saved, [])
