"""A sweep with one folder: its cells are listed, run once each on any launcher, run again when lost, and compared."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from conf import cli, sweep
from flowhand.commands import compare, train
from flowhand.contracts.durable import claimed
from flowhand.evaluation.statistics import holm
from tests.evaluation.test_compare import folder as evaluated

ROOT = Path(__file__).parent.parent


def call(*words):
    """Runs train.py in this process; its exit message, empty if there is none."""
    GlobalHydra.instance().clear()
    argv, sys.argv = sys.argv, ["train.py", *map(str, words)]
    try:
        train.main()
    except SystemExit as stop:
        return str(stop.code)
    finally:
        sys.argv = argv
    return ""


@pytest.fixture
def ran(monkeypatch):
    """The configurations of the runs, in place of running them; a run with seed 9 is refused."""
    found = []

    def trained(config, *_):
        if config.seed == 9:
            raise ValueError("no nine")
        found.append(config)
        Path(config.out).mkdir(parents=True, exist_ok=True)
        metrics = {"successes": 7 + config.seed, "n": 10, "rate": 0.7 + config.seed / 10, "expert_rate": None}
        (Path(config.out) / "metrics.json").write_text(json.dumps({**metrics, "wilson_low": 0.2, "wilson_high": 0.9}))
        return 0

    monkeypatch.setattr(train, "train", trained)
    return found


def test_every_cell_has_a_folder_and_is_run_once(tmp_path, ran, capsys):
    words = ["-m", f"out={tmp_path}/s", "head=flow,mip", "train.steps=7", "seed=0,1"]
    assert call(*words) == ""
    names = [f"head={head},seed={seed}" for head in ("flow", "mip") for seed in (0, 1)]
    assert [Path(config.out).relative_to(tmp_path / "s").as_posix() for config in ran] == names
    assert {(config.head.kind, config.seed, config.train.steps) for config in ran} == {
        (head, seed, 7) for head in ("flow", "mip") for seed in (0, 1)
    }
    table = [line.split() for line in capsys.readouterr().out.splitlines()[-5:]]
    assert table[0][:4] == ["head", "seed", "success", "rate"]
    assert table[4][:4] == ["mip", "1", "8/10", "80.0%"]
    (tmp_path / "s" / "head=mip,seed=0" / "cell.json").unlink()
    assert call(*words) == ""
    assert (len(ran), ran[4].head.kind, ran[4].seed) == (5, "mip", 0)


def test_a_sweep_grows_by_values_and_is_no_other(tmp_path, ran):
    assert call("-m", f"out={tmp_path}/s", "head=mip", "seed=0,1") == ""
    assert call("-m", f"out={tmp_path}/s", "head=mip", "seed=1,2", "wandb.mode=disabled") == ""
    assert [config.seed for config in ran] == [0, 1, 2]
    assert [cell.settings for cell in sweep.read(tmp_path / "s").cells] == [{"seed": s} for s in "012"]
    told = call("-m", f"out={tmp_path}/s", "head=flow", "seed=0,1")
    assert told.startswith(f"error: {tmp_path}/s holds another sweep (flowhand train head=mip seed=...);")


def test_cells_that_failed_are_named_and_a_launcher_needs_a_folder(tmp_path, ran, capsys):
    told = call("-m", f"out={tmp_path}/s", "seed=0,9")
    assert told == "error: 1 cells of the sweep have no result (seed=9); the same command runs them"
    assert "error: no nine" in capsys.readouterr().err
    assert [cell.folder for cell in sweep.missing(tmp_path / "s")] == ["seed=9"]
    assert "hydra/launcher=joblib needs one out=FOLDER" in call("-m", "hydra/launcher=joblib", "seed=0,1")


def test_names_that_are_no_folders_become_numbers(tmp_path, ran):
    long = ",".join(f"[{'x' * 160}{i}]" for i in range(2))
    sweep.planned("train", ["-m", f"out={tmp_path}/s", f"modules={long}", "seed=0"])
    assert [cell.folder for cell in sweep.read(tmp_path / "s").cells] == ["0000", "0001"]


def test_a_cell_that_another_process_runs_is_waited_for(tmp_path, ran, monkeypatch):
    lock = claimed(tmp_path / "s" / "seed=1.running")
    lock.__enter__()
    monkeypatch.setattr(sweep.time, "sleep", lambda _: lock.__exit__(None, None, None))
    assert call("-m", f"out={tmp_path}/s", "seed=0,1") == ""
    assert [config.seed for config in ran] == [0, 1]


def test_cells_of_lost_workers_are_run_again(capsys):
    class TerminatedWorkerError(Exception):
        pass

    tries = []

    def main():
        tries.append(1)
        if len(tries) < 3:
            raise TerminatedWorkerError

    cli.run_cells(main, again=True)
    assert len(tries) == 3
    assert "a worker of the sweep was lost (TerminatedWorkerError)" in capsys.readouterr().err
    tries.clear()
    with pytest.raises(TerminatedWorkerError):
        cli.run_cells(main, again=False)
    with pytest.raises(ValueError, match=r"lost .* in each of 5 rounds"):
        cli.run_cells(lambda: (_ for _ in ()).throw(TerminatedWorkerError()), again=True)


def test_resume_auto_goes_on_where_there_is_a_run(tmp_path, ran, monkeypatch):
    assert call(f"out={tmp_path}/a", "resume=auto", "seed=3") == ""
    assert (ran[0].resume, ran[0].out, ran[0].seed) == ("", f"{tmp_path}/a", 3)
    (tmp_path / "a" / "checkpoint").mkdir()
    state = {"overrides": ["seed=3", "head=mip"], "config": {}}
    monkeypatch.setattr(train.policies, "load_train_state", lambda _: state)
    assert call(f"out={tmp_path}/a", "resume=auto", "seed=3") == ""
    assert (ran[1].resume, ran[1].out, ran[1].head.kind) == (f"{tmp_path}/a", f"{tmp_path}/a", "mip")


def test_holm_is_that_of_the_paper():
    # By hand: 4 * .01, then 3 * .02 = .06, 2 * .03 = .06, and 1 * .2.
    assert holm([0.02, 0.01, 0.2, 0.03]) == pytest.approx([0.06, 0.04, 0.2, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_compare_joins_the_seeds_of_a_sweep(tmp_path, monkeypatch, capsys):
    outcomes = {
        ("flow", "0"): [1, 1, 1, 1, 1, 1, 1, 1],
        ("flow", "1"): [1, 1, 1, 1, 1, 1, 1, 0],
        ("mip", "0"): [1, 1, 0, 0, 0, 0, 0, 0],
        ("drift", "0"): [1, 1, 1, 1, 1, 1, 1, 0],
    }
    cells = [
        sweep.Cell({"head": head, "seed": seed}, f"{head}{seed}") for head in ("flow", "mip", "drift") for seed in "01"
    ]
    sweep._write(tmp_path / "s", sweep.Sweep("train", [], cells))
    for (head, seed), solved in outcomes.items():
        evaluated(tmp_path / "s" / f"{head}{seed}", solved)
        (tmp_path / "s" / f"{head}{seed}" / "cell.json").write_text("{}")
    page = tmp_path / "page.html"
    monkeypatch.setattr(sys, "argv", ["flowhand compare", str(tmp_path / "s"), "--out", str(page)])
    compare.main()
    head, flow, mip, drift, left, _ = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["head", "seeds", "solved", "mean"]
    assert flow.split()[:4] == ["flow", "2/2", "15/16", "93.8%"]
    # Six lost of eight, none gained: 2 / 2^6; with two comparisons twice that. One lost of eight: 1.
    assert mip.split()[:7] == ["mip", "1/2", "2/8", "25.0%", "-75.0%", "8", "0.0312"]
    assert mip.split()[7] == "0.0625"
    assert drift.split()[6:8] == ["1", "1"]
    assert left == "differences are to head=flow; cells without a result: mip1, drift1"
    text = page.read_text()
    assert "Heat map" in text
    assert "25% (1 of 2)" in text
    with pytest.raises(
        ValueError, match=r"--against head=edm is no group of .*; groups: head=flow; head=mip; head=drift"
    ):
        compare.compare_cells(tmp_path / "s", 0.02, "head=edm")
    assert compare.compare_cells(tmp_path / "s", 0.02, "head=mip")[1] == "head=mip"


SHORT = ("env=detour", "data.episodes=2", "train.steps=6", "train.batch_size=8", "train.threads=1", "eval.episodes=2")
QUIET = (
    "eval.n_envs=1",
    "eval.videos=0",
    "eval.expert=false",
    "wandb.mode=disabled",
    "head=mip,regression",
    "seed=0,1",
)


def started(launcher, out, python=sys.executable, **environment):
    """A four-cell sweep on a launcher, in a process of its own."""
    words = ["-m", *([f"hydra/launcher={launcher}"] if launcher else []), *SHORT, *QUIET, f"out={out}"]
    words += [f"data.cache_dir={out.parent / 'demos'}"]
    seen = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", **environment}
    return subprocess.run([python, ROOT / "train.py", *words], cwd=out.parent, env=seen, capture_output=True, text=True)


def metrics(out):
    """What the cells came to, without times and places."""
    names = ("task", "n", "successes", "rate", "score_mean", "expert_rate")
    found = {}
    for file in sorted(out.glob("*/metrics.json")):
        records = [json.loads(line) for line in (file.parent / "episodes.jsonl").read_text().splitlines()]
        for record in records:
            del record["wall_s"]
        found[file.parent.name] = ({name: json.loads(file.read_text())[name] for name in names}, records)
    return found


@pytest.mark.slow
def test_launchers_give_what_one_after_another_gives(tmp_path):
    plain = started("", tmp_path / "plain")
    assert plain.returncode == 0, plain.stderr
    expected = metrics(tmp_path / "plain")
    assert len(expected) == 4
    launchers = {"cores": sys.executable, "slurm_local": sys.executable, "ray_here": os.environ.get("RAY_PYTHON", "")}
    for launcher, python in launchers.items():
        if not python:  # it lives in an environment of its own (constraints-ray.txt)
            continue
        ended = started(launcher, tmp_path / launcher, python)
        assert ended.returncode == 0, ended.stderr[-3000:]
        assert metrics(tmp_path / launcher) == expected
