"""What verbs that run for long share: the steps of a training, a request to stop, and the log of Weights & Biases."""

from __future__ import annotations

import json
import re
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from tqdm import tqdm

import policies
from conf.verbs.eval import WandbConfig
from conf.verbs.train import TrainRoot
from flowhand.contracts.argument import argument
from flowhand.contracts.durable import write_whole
from flowhand.contracts.resize import resized
from policies.training.distributed import LostProcessError
from policies.training.trainer import Trainer

WANDB = "wandb.json"  # in a run's folder: which run of Weights & Biases it is


def fit(
    trainer: Trainer,
    save: Callable[[], None],
    score: Callable[[], dict[str, Any] | None],
    log: Callable[..., None],
    out: Path = Path(),
) -> int:
    """Trains to the last step, or until a signal arrives; returns the signal's number, 0 when finished.

    Raises:
        ValueError: the loss is not finite, or another process of the training was lost, after what is there was saved.
    """
    config, processes = trainer.config, trainer.processes
    bar = tqdm(
        total=config.steps, initial=trainer.step, desc="train", unit="step", mininterval=1, disable=not processes.first
    )
    with bar, StopRequest() as stop:
        try:
            stopped = _steps(trainer, save, score, log, bar, stop)
            save()
        except LostProcessError as lost:
            save()
            what = "its checkpoint is saved" if processes.first else "the last checkpoint stands"
            raise LostProcessError(
                f"{processes.missing()} of {processes.count} was lost at step {trainer.step}, {what}; go on, with any "
                f"number of processes: {argument('resume', out)} ({lost})"
            ) from lost
    return stopped


def _steps(
    trainer: Trainer,
    save: Callable[[], None],
    score: Callable[[], dict[str, Any] | None],
    log: Callable[..., None],
    bar: Any,
    stop: StopRequest,
) -> int:
    config, processes = trainer.config, trainer.processes
    logged, started, chooser = trainer.step, time.perf_counter(), trainer.thread_chooser()
    waited, stopped = trainer.waited_s, 0
    while trainer.step < config.steps and not (stopped := processes.agree(stop.signal, trainer.step)):
        loss = trainer.advance()
        step = trainer.step
        bar.update()
        evaluate = config.eval_every > 0 and step % config.eval_every == 0 and step < config.steps
        if step % config.log_every == 0 or step == config.steps or evaluate:
            trainer.require_finite()
            seconds = time.perf_counter() - started
            rate = (step - logged) * config.batch_size / seconds
            entry: dict[str, Any] = {"step": step, "loss": loss.item(), "lr": trainer.learning_rate()}
            waits = (trainer.waited_s - waited) / seconds  # share of the time that the training waits for data
            entry |= {"samples_per_s": rate, "data_wait": waits, "threads": trainer.threads[-1][1]}
            bar.set_postfix_str(f"loss {entry['loss']:.4f}, {rate:,.0f} samples/s, {waits:.0%} waiting for data")
            if evaluate:
                entry["success"] = score()
            trainer.seconds += seconds
            trainer.history.append(entry)
            log(entry, step=step)
            logged, started, waited = step, time.perf_counter(), trainer.waited_s
        switched = step < config.steps and chooser.after_step(trainer.gradient_s)
        if switched:
            trainer.use_threads(chooser.count)
        if switched or (step % config.save_every == 0 and step < config.steps):
            save()
    return stopped


def golden_observation(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Four histories that are stored beside the action that they give; images of the size that the camera has."""
    index = torch.arange(4, device=trainer.windows.device) * (len(trainer.windows) // 4)
    observation = trainer.policy.observed(trainer.windows.gather(index))
    for name in trainer.policy.image_sizes:
        shape, images = trainer.policy.spec.observation[name].shape, observation[name]
        values = images.cpu().numpy().reshape(*images.shape[:4], -1)  # depth may have no axis of channels
        whole = resized(values, (shape[0], shape[1])).reshape(*images.shape[:2], *shape)
        observation[name] = torch.from_numpy(whole).to(images.device)
    return observation


class Save:
    """Writes the checkpoint of a run, with all that it can go on from; of several processes the first one writes."""

    def __init__(self, trainer: Trainer, config: TrainRoot, overrides: list[str], source: policies.Provenance):
        self.trainer, self.source = trainer, source
        self.extra = {"overrides": overrides, "config": asdict(config)}
        self.folder, self.golden = Path(config.out) / "checkpoint", golden_observation(trainer)

    def __call__(self) -> None:
        """Writes it now; `ValueError` where the training has gone wrong, and the checkpoint before stays."""
        trainer = self.trainer
        trainer.require_finite()
        trainer.require_together()
        if trainer.processes.first:
            self.source.train_steps = trainer.step
            state = {**trainer.state(), **self.extra}
            policies.save(self.folder, trainer.ema.module, self.source, self.golden, state)


@contextmanager
def wandb_run(config: WandbConfig, out: Path, everything: dict[str, Any], resumed: bool = False) -> Iterator[Any]:
    """A wandb run whose files stay below `out`, marked as failed when the block raises; None where it is disabled.

    Args:
        config: where to, and whether anything leaves the machine.
        out: the run's folder, in which the run's number at wandb stands.
        everything: the whole configuration.
        resumed: go on with the run of that number, if there is one.
    """
    out.mkdir(parents=True, exist_ok=True)
    if config.mode == "disabled":
        yield None
        return
    import wandb  # only where it is used: it is large, and a machine without it can train and evaluate

    name, mode, quiet = config.name or out.name, cast(Any, config.mode), wandb.Settings(silent=True)
    number = (_number(out / WANDB) if resumed else "") or secrets.token_hex(4)
    goes_on = "allow" if mode == "online" else None  # offline there is nobody to ask; `wandb sync --append` joins them
    options = {"project": config.project, "name": name, "config": everything, "resume": goes_on}
    run = wandb.init(**cast(Any, options), id=number, mode=mode, dir=out, settings=quiet)
    write_whole(out / WANDB, (json.dumps({"id": number}) + "\n").encode())
    try:
        yield run
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()


def _number(file: Path) -> str:
    """The number of the run at wandb; empty where the file is not there. It may come from a stranger."""
    if not file.is_file():
        return ""
    try:
        number = json.loads(file.read_bytes()[:1000])["id"]
    except (ValueError, KeyError, TypeError):
        number = None
    if not isinstance(number, str) or not re.fullmatch(r"[a-z0-9]{1,64}", number):
        raise ValueError(f"{file} does not name a run of Weights & Biases; remove it to begin another one")
    return number


def log_results(log: Any, metrics: dict[str, Any], out: Path) -> None:
    """Puts the metrics and the report page into the wandb run, if there is one."""
    if log is not None:
        import wandb

        log.summary.update(metrics)
        log.log({"report": wandb.Html((out / "report.html").read_text())})


class StopRequest:
    """Notes signals that ask for an end, so that a step is finished and saved first; a second one ends the program.

    SIGTERM, SIGINT, and SIGUSR1, with which Slurm warns of the end of the time. Where submitit runs the job, its signal
    is noted in place of those that it passes over; when all is saved, submitit is told and puts the job back.
    """

    def __enter__(self) -> StopRequest:
        self.signal = 0
        self._before = {}
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            before = signal.getsignal(number)
            foreign = callable(before) and before not in (signal.default_int_handler, signal.SIG_DFL, signal.SIG_IGN)
            if _puts_back(before) or (number != signal.SIGUSR2 and not foreign):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        handler = self._before.get(self.signal)
        if kind is None and _puts_back(handler):
            cast(Any, handler)(self.signal, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, signal.SIG_DFL)


def _puts_back(handler: object) -> bool:
    """Whether it is submitit's, which puts a job back into the queue."""
    return getattr(handler, "__name__", "") == "checkpoint_and_try_requeue"
