"""Machines that are taken away: signals save, submitit puts jobs back, a run goes on as the same run at wandb."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import policies
from conf.verbs.eval import WandbConfig
from flowhand.commands import runs, train
from tests.test_train import make_trainer

ROOT = Path(__file__).parent.parent


def interrupted(trainer, number, step=3):
    """The training sends itself a signal in the middle of a step."""
    honest = trainer.loss

    def loss(*given):
        if trainer.step == step:
            os.kill(os.getpid(), number)
        return honest(*given)

    trainer.loss = loss
    return trainer


def test_slurms_warning_saves_and_is_told_in_the_exit_status():
    trainer, saved = interrupted(make_trainer("train.steps=1000"), signal.SIGUSR1), []
    assert train.fit(trainer, lambda: saved.append(trainer.step), dict, lambda *_, **__: None) == signal.SIGUSR1
    assert saved == [4]
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_submitit_puts_the_job_back_after_all_is_saved(monkeypatch):
    trainer, happened = make_trainer("train.steps=1000"), []

    class Handler:
        def checkpoint_and_try_requeue(self, number, frame):
            happened.append(("requeue", number))
            sys.exit(144)

        def bypass(self, number, frame):
            happened.append(("bypass", number))

    handler = Handler()
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    signal.signal(signal.SIGUSR2, handler.checkpoint_and_try_requeue)
    signal.signal(signal.SIGTERM, handler.bypass)
    try:
        interrupted(trainer, signal.SIGTERM, step=2)  # Slurm sends it as well, and submitit passes over it
        interrupted(trainer, signal.SIGUSR2, step=5)
        with pytest.raises(SystemExit) as ended:
            train.fit(trainer, lambda: happened.append(("saved", trainer.step)), dict, lambda *_, **__: None)
    finally:
        for number, was in before.items():
            signal.signal(number, was)
    assert happened == [("bypass", signal.SIGTERM), ("saved", 6), ("requeue", signal.SIGUSR2)]
    assert ended.value.code == 144


@pytest.mark.parametrize("text", ["", "[]", '{"id": 3}', '{"id": "../x"}', '{"id": "a b"}', '{"no": 1}'])
def test_a_file_that_names_no_run_of_wandb_is_refused(tmp_path, text):
    (tmp_path / "wandb.json").write_text(text)
    with pytest.raises(ValueError, match="does not name a run of Weights & Biases; remove it"):
        runs._number(tmp_path / "wandb.json")
    assert runs._number(tmp_path / "nowhere") == ""


@pytest.mark.slow
def test_a_run_goes_on_as_the_same_run_at_wandb(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    seen = []
    for resumed in (False, True, False):
        with runs.wandb_run(WandbConfig(mode="offline"), tmp_path, {"seed": 0}, resumed) as run:
            seen.append(run.id)
            run.log({"loss": 1.0}, step=len(seen))
    assert seen[0] == seen[1] != seen[2]
    assert json.loads((tmp_path / "wandb.json").read_text()) == {"id": seen[2]}
    written = [folder.name.rpartition("-")[2] for folder in (tmp_path / "wandb").glob("offline-run-*")]
    assert sorted(written) == sorted(seen)


SMALL = ("env=detour", "data.episodes=2", "train.steps=100000", "train.save_every=20", "net.width=16", "net.blocks=1")
QUIET = ("train.batch_size=9", "train.threads=1", "eval.episodes=0", "wandb.mode=disabled", "train.timeout_s=20")


def started(count, *words):
    """A training in so many processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    launcher += ["--signals-to-handle=SIGTERM,SIGUSR1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *(launcher if count > 1 else []), str(ROOT / "train.py"), *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(place, running):
    while not place.exists():
        assert running.poll() is None, running.communicate()[0]
        time.sleep(0.05)


def ranks_of(running):
    """The processes of torchrun by rank."""
    from benchmarks.ranks import children

    return children(running.pid)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGUSR1", "SIGTERM", "kill 1", "hang 1", "kill 0"])
def test_two_processes_end_together_and_one_goes_on(tmp_path, how):
    out = tmp_path / "run"
    running = started(2, *SMALL, *QUIET, f"out={out}", f"data.cache_dir={tmp_path}/demos")
    wait_for(out / "checkpoint", running)
    begun = time.monotonic()
    if how.startswith("SIG"):
        running.send_signal(signal.Signals[how])
    else:
        kind, rank = how.split()
        os.kill(ranks_of(running)[int(rank)], signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
    said = running.communicate(timeout=100)[0]
    assert time.monotonic() - begun < 20 + 30 + 30  # the timeout, torchrun's patience, and a busy machine
    assert running.returncode != 0
    lines = [line for line in said.replace("\r", "\n").splitlines() if line.startswith(("error:", "stopped at"))]
    assert len(lines) == 1, said
    step = policies.load_train_state(out / "checkpoint")["step"]
    if how.startswith("SIG"):
        assert lines[0].startswith(f"stopped at step {step}; go on with:")
    elif how.endswith("1"):
        assert lines[0].startswith(f"error: process 1 of 2 was lost at step {step}, its checkpoint is saved; go on")
    else:
        assert lines[0].startswith("error: process 0 of 2 was lost at step")
        assert "the last checkpoint stands" in lines[0]
    again = started(1, f"resume={out}")
    try:
        while policies.load_train_state(out / "checkpoint")["step"] <= step:
            assert again.poll() is None, again.communicate()[0]
            time.sleep(0.2)
    finally:
        again.kill()
        again.communicate()
