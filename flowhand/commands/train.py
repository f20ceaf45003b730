"""Demonstrations -> checkpoint -> success rate. `python train.py --help` lists everything that can be set."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

import envs
import policies
from conf import cli
from conf.resume import as_it_began, completed, require_same, stored_overrides, with_names_of_now
from conf.train import TrainRoot
from flowhand.commands import eval as evaluation
from flowhand.contracts.argument import argument
from flowhand.contracts.durable import claimed, exists
from flowhand.contracts.episode import Episode
from flowhand.contracts.features import Spec
from flowhand.contracts.modules import imported_modules
from flowhand.contracts.planner import learnable
from flowhand.contracts.provenance import revision
from flowhand.demos.formats import open_dataset
from flowhand.demos.hub import is_repo_id
from flowhand.demos.native import Store
from flowhand.demos.states import StateEpisodes
from policies.compile import require_compiler
from policies.device import has_bf16_units, select_device, usable_threads
from policies.threads import ThreadChooser, ladder
from policies.train_state import require_state

from .collect import collect
from .runs import StopRequest


class Trainer:
    """A policy in training. What must survive a stop is in `state`; `restore` takes it back."""

    def __init__(
        self,
        config: TrainRoot,
        spec: Spec,
        episodes: Iterable[Episode],
        device: torch.device,
        fitted: bool = False,  # the statistics come with `restore`: those that the run began with
    ):
        torch.manual_seed(config.seed)  # of the initial weights; all later randomness comes from the generator
        self.config = config.train
        chunk = config.chunk
        self.windows = policies.Windows(episodes, spec, chunk.history, chunk.prediction_horizon, device)
        self.policy = policies.Policy(config.policy, spec).to(device)
        if not fitted:
            self.policy.fit_normalizers(self.windows.observation, self.windows.action)
        self.ema = policies.EMA(self.policy, self.config.ema_decay)
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(), self.config.learning_rate, weight_decay=self.config.weight_decay, fused=True
        )
        self.generator = torch.Generator(device).manual_seed(config.seed)
        self.spare = torch.Generator(device).manual_seed(config.seed)  # of trials, on which nothing depends
        if self.config.compile and device.type == "cpu":
            require_compiler()
        loss = torch.compile(self.policy.loss) if self.config.compile else self.policy.loss
        self.loss: Callable[[policies.Batch, torch.Generator], torch.Tensor] = loss
        bf16 = has_bf16_units(device) if self.config.precision == "auto" else self.config.precision == "bf16"
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
        self.step = 0  # optimizer steps done
        self.seconds = 0.0  # spent training, evaluations not counted
        self.history: list[dict[str, Any]] = []  # log entries
        self.threads = [[0, torch.get_num_threads()]]  # from which step on how many of the CPU computed
        self.gradient_s = 0.0  # the last step's time up to its gradient; on a GPU, until all is launched
        self.bad_step = torch.full((), math.inf, device=device)  # the first step whose loss or gradient was not finite

    def learning_rate(self) -> float:
        """Linear warm-up, then a cosine to zero at the last step."""
        warm = min(1.0, (self.step + 1) / max(1, self.config.warmup_steps))
        return self.config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * self.step / self.config.steps))

    def advance(self) -> torch.Tensor:
        """One optimizer step; returns the loss without waiting for the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        started = time.perf_counter()
        loss = self._differentiate(self.generator)
        self.gradient_s = time.perf_counter() - started
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.clip_norm)
        self._guard(loss, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update()
        self.step += 1
        return loss.detach()

    def _differentiate(self, generator: torch.Generator) -> torch.Tensor:
        """The loss of a batch, whose gradient is then with the parameters."""
        batch = self.windows.draw(self.config.batch_size, generator)
        with self.autocast:
            loss = self.loss(batch, generator)
        loss.backward()
        return loss

    def trial(self) -> None:
        """The work of a step up to its gradient, for whoever times it: changes neither weights nor random numbers."""
        self._differentiate(self.spare)
        self.optimizer.zero_grad()

    def use_threads(self, count: int) -> None:
        """So many CPU threads from here on. Another number sums in another order, so it is noted with the step."""
        torch.set_num_threads(count)
        if count != self.threads[-1][1]:
            self.threads.append([self.step, count])

    def thread_chooser(self) -> ThreadChooser:
        """What chooses the number of CPU threads, unless the configuration does or a GPU computes."""
        count, free = self.threads[-1][1], self.config.threads == 0 and self.bad_step.device.type == "cpu"
        return ThreadChooser(count, ladder(usable_threads()) if free else [count], self.trial)

    def _guard(self, loss: torch.Tensor, norm: torch.Tensor) -> None:
        """From the first non-finite loss or gradient on, the optimizer's step does nothing.

        The flag stays on the device (the fused optimizer reads `found_inf`), so that no step waits for an answer;
        `require_finite` asks at every log entry and before every save.
        """
        bad = torch.where(torch.isfinite(loss + norm), math.inf, float(self.step))
        self.bad_step = torch.minimum(self.bad_step, bad.detach())
        self.optimizer.found_inf = torch.isfinite(self.bad_step).float()  # pyright: ignore[reportAttributeAccessIssue]

    def require_finite(self) -> None:
        """Raises `ValueError` naming the first step whose loss or gradient was not finite."""
        bad = self.bad_step.item()
        if math.isfinite(bad):
            raise ValueError(
                f"the loss or its gradient was not finite at step {int(bad)}; nothing was learned from it. "
                "Lower train.learning_rate, or look at the demonstrations"
            )

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, as tensors, numbers, strings, lists and dicts."""
        return {
            "policy": self.policy.state_dict(),
            "ema": self.ema.module.state_dict(),
            "ema_updates": self.ema.updates,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
            "threads": self.threads,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave; nothing, if any of it is wrong."""
        require_state(state, self.state(), list(self.policy.parameters()), self.config.steps)
        self.policy.load_state_dict(state["policy"])
        self.ema.module.load_state_dict(state["ema"])
        self.ema.updates = state["ema_updates"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]
        self.threads = state.get("threads", self.threads)  # an earlier version did not note them
        self.use_threads(self.config.threads or self.threads[-1][1])


def fit(
    trainer: Trainer, save: Callable[[], None], score: Callable[[], dict[str, Any]], log: Callable[..., None]
) -> int:
    """Trains to the last step, or until a signal arrives; returns the signal's number, 0 when finished."""
    config = trainer.config
    logged, started, chooser = trainer.step, time.perf_counter(), trainer.thread_chooser()
    bar = tqdm(total=config.steps, initial=trainer.step, desc="train", unit="step", mininterval=1)
    with bar, StopRequest() as stop:
        while trainer.step < config.steps and not stop.signal:
            loss = trainer.advance()
            step = trainer.step
            bar.update()
            evaluate = config.eval_every > 0 and step % config.eval_every == 0 and step < config.steps
            if step % config.log_every == 0 or step == config.steps or evaluate:
                trainer.require_finite()
                seconds = time.perf_counter() - started
                rate = (step - logged) * config.batch_size / seconds
                entry: dict[str, Any] = {"step": step, "loss": loss.item(), "lr": trainer.learning_rate()}
                entry |= {"samples_per_s": rate, "threads": trainer.threads[-1][1]}
                bar.set_postfix_str(f"loss {entry['loss']:.4f}, {rate:,.0f} samples/s")
                if evaluate:
                    entry["success"] = score()
                trainer.seconds += seconds
                trainer.history.append(entry)
                log(entry, step=step)
                logged, started = step, time.perf_counter()
            switched = step < config.steps and chooser.after_step(trainer.gradient_s)
            if switched:
                trainer.use_threads(chooser.count)
            if switched or (step % config.save_every == 0 and step < config.steps):
                save()
        save()
    return stop.signal


def train(config: TrainRoot, overrides: list[str], state: dict[str, Any] | None) -> int:
    """One run from demonstrations to report; returns the number of the signal that stopped it, 0 when finished."""
    started, out = time.perf_counter(), Path(config.out)
    device = select_device(config.train.device, config.train.threads)
    if state is None and exists(out / "checkpoint"):
        raise ValueError(
            f"{out} already holds a run; go on with it by {argument('resume', out)}, or choose another folder with out="
        )
    if state is None:
        config.head.require_reference()  # before the demonstrations are collected
    store = demonstrations(config)
    collect_seconds = time.perf_counter() - started
    trainer = Trainer(config, learnable(store.spec), store, device, fitted=state is not None)
    if state is not None:
        require_same(
            completed(with_names_of_now(state.get("config")), OmegaConf.structured(config)),
            asdict(config),
            config.resume,
        )
        trainer.restore(state)
    size = sum(p.numel() for p in trainer.policy.parameters())
    print(f"{len(store)} demonstrations, {len(trainer.windows)} windows, {size:,} parameters, {device}, -> {out}")

    golden = trainer.windows.gather(torch.arange(4, device=device) * (len(trainer.windows) // 4)).observation
    source = provenance(config, store, policies.read_config(out / "checkpoint")[2].git_sha if state else "")

    def save() -> None:
        trainer.require_finite()
        source.train_steps = trainer.step
        extra = {"overrides": overrides, "config": asdict(config)}
        policies.save(out / "checkpoint", trainer.ema.module, source, golden, {**trainer.state(), **extra})

    def score() -> dict[str, Any]:
        records = evaluation.evaluate(trainer.ema.module, config.env, config.eval, config.execution)
        return {"n": len(records), "successes": sum(record.success for record in records)}

    with evaluation.wandb_run(config.wandb, out, asdict(config)) as log:
        stopped = fit(trainer, save, score, log.log if log else lambda entry, step: None)
        if stopped:
            print(f"stopped at step {trainer.step}; go on with: python train.py {argument('resume', out)}")
            return stopped
        if config.eval.episodes:
            seconds = {"collect": collect_seconds, "train": trainer.seconds}
            what = config.env, config.eval, config.execution, asdict(config)
            run = evaluation.Run(out / "checkpoint", out, *what, trainer.history, seconds, started)
            metrics = evaluation.conclude(run, policies.load(out / "checkpoint", device))
            evaluation.log_results(log, metrics, out)
            print(evaluation.closing_line(metrics, out))
    return 0


def demonstrations(config: TrainRoot) -> Store | StateEpisodes:
    """Collected by the environment's expert, or, with env=none, the recorded ones at data.path, of any known format.

    Raises:
        ValueError: without an environment, the path is missing or an evaluation is asked for.
    """
    path = Path(config.data.path)
    if config.data.path and not path.exists() and not (config.env.kind == "none" and is_repo_id(config.data.path)):
        made = argument("data.path", path)
        raise ValueError(
            f"there are no demonstrations at {path}; correct the path, or collect them: flowhand collect {made}"
        )
    if config.env.kind != "none":
        return collect(config.env, config.data)
    if not config.data.path:
        raise ValueError("env=none trains on recorded demonstrations; give their store with data.path=")
    if config.eval.episodes:
        raise ValueError("env=none has nothing to evaluate in; set eval.episodes=0")
    data = open_dataset(config.data.path)
    if isinstance(data, Store):
        return data.head(config.data.episodes)
    states = StateEpisodes(data, config.data.episodes)
    print(*states.lines, sep="\n", end="\n" if states.lines else "")
    return states


def provenance(config: TrainRoot, store: Store | StateEpisodes, git_sha: str = "") -> policies.Provenance:
    """Where the policy comes from, for its checkpoint; an install without a clone leaves the commit that is known."""
    return policies.Provenance(
        env=asdict(config.env),
        env_version=store.meta.env_version,
        task=store.meta.task,
        demonstrations=store.hash(),
        demonstration_seeds=store.seeds,
        versions=evaluation.versions(),
        git_sha=revision() or git_sha,
        train_steps=0,
        modules=imported_modules(),
    )


def compose(cfg: DictConfig) -> tuple[TrainRoot, list[str], dict[str, Any] | None]:
    """The typed configuration, the command line's overrides, and the state to resume from.

    A resumed run takes the overrides it was started with, defaults of then that are others now, and what is given now.
    """
    now, state, folder = list(HydraConfig.get().overrides.task), None, Path(cfg.resume)
    overrides = now
    if cfg.resume:
        folder = folder / "checkpoint" if folder.name != "checkpoint" else folder
        state = policies.load_train_state(folder)
        stored = stored_overrides(state, folder)
        began = as_it_began(with_names_of_now(state.get("config")), hydra.compose("train", [*stored, *now]))
        overrides = [*stored_overrides({"overrides": [*stored, *began]}, folder), *now]
        cfg = hydra.compose("train", overrides)
    config: TrainRoot = cli.typed(cfg)
    if config.resume:
        config.out = str(folder.parent)
        given = {override.key_or_group for override in OverridesParser.create().parse_overrides(now)}
        if ":" in str(getattr(config.env, "id", "")) and "env.id" not in given:
            raise ValueError(f"{folder} asks to import {config.env.id!r}; give env=gymnasium env.id=... yourself")  # pyright: ignore[reportAttributeAccessIssue]
    config.out = config.out or f"outputs/{envs.name_of(config.env)}-{config.head.kind}-{config.seed}"
    return config, overrides, state


def run(cfg: DictConfig) -> int:
    """Trains as the configuration says; returns the number of the signal that stopped it, 0 when finished."""
    config, overrides, state = compose(cfg)
    with claimed(config.out):
        if state is not None:  # again, now that nobody else writes
            state = policies.load_train_state(Path(config.out) / "checkpoint")
        return train(config, overrides, state)


def main() -> None:
    """Entry point."""
    cli.program("train", run)
