"""Cells of a sweep: train one policy in one world, keep what came of it, never run a finished cell again."""

from __future__ import annotations

import argparse
import fcntl
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

import policies
from conf.cli import compose
from conf.verbs.train import TrainRoot
from flowhand.commands import train
from flowhand.commands.collect import collect
from flowhand.evaluation.records import EpisodeRecord
from flowhand.evaluation.statistics import wilson
from policies.device import select_device

WAIT_S = 5.0  # before looking again whether another process has finished what a cell needs


class Cell(Protocol):
    """A dataclass of what tells a cell from all others."""

    @property
    def name(self) -> str:
        """Of its file."""
        ...


C = TypeVar("C", bound=Cell)


def configure(overrides: list[str], episodes: int) -> TrainRoot:
    """The configuration of a cell: the recipe with these overrides, in one process with one thread."""
    lanes = [f"eval.episodes={episodes}", "eval.workers=inline", "eval.n_envs=16"]
    return compose([*overrides, *lanes, "train.threads=1", "train.device=cpu"])


def collected(config: TrainRoot) -> train.Demonstrations:
    """What the world's expert shows."""
    return collect(config.env, config.data, progress=False)


def learn(config: TrainRoot, store: train.Demonstrations | None = None) -> tuple[train.Trainer, dict[str, Any]]:
    """The policy trained on the demonstrations (None: the expert's), and what to remember of its training."""
    device = select_device(config.train.device, config.train.threads)
    started = time.perf_counter()
    store = collected(config) if store is None else store
    ready = time.perf_counter()
    trainer = train.trainer_of(config, train.observed(config, store), store, device)
    begun = time.process_time()
    while trainer.step < config.train.steps:
        trainer.advance()
    trainer.require_finite()
    return trainer, {
        "steps": trainer.step,
        "parameters": sum(p.numel() for p in trainer.policy.parameters()),
        "collect_seconds": round(ready - started, 1),
        "train_seconds": round(time.perf_counter() - ready, 1),
        "train_cpu_seconds": round(time.process_time() - begun, 1),
        "demonstrations": store.hash(),
    }


def outcomes(records: list[EpisodeRecord]) -> dict[str, Any]:
    """What a cell keeps of its episodes: one character per seed, 1 for success."""
    bits = "".join("1" if record.success else "0" for record in records)
    return {"first_seed": records[0].seed, "n": len(bits), "outcomes": bits}


@contextmanager
def claim(path: Path) -> Iterator[Callable[[dict[str, Any]], None] | None]:
    """A function that keeps the finished cell; None if it is finished or another process is at it.

    The claim is a lock that the system takes from a process that dies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return

        def save(cell: dict[str, Any]) -> None:
            unfinished = path.with_suffix(".tmp")
            unfinished.write_text(json.dumps(cell))
            unfinished.replace(path)

        yield None if path.exists() else save


def trained(
    folder: Path, name: str, config: TrainRoot, demonstrations: Callable[[], train.Demonstrations] | None = None
) -> policies.Policy | None:
    """The policy of this name, trained by the first process that asks; None while another one is at it.

    Its demonstrations are the expert's unless others are given.
    The checkpoint stays in the folder, for several cells that evaluate one policy and for a run that was killed.
    """
    checkpoint = folder / name
    with claim(folder / f"{name}.trained.json") as save:
        if save is not None:
            store = demonstrations() if demonstrations else collected(config)
            trainer, about = learn(config, store)
            source = train.provenance(config, store)
            golden = trainer.policy.observed(trainer.windows.gather(torch.arange(4)))
            policies.save(checkpoint, trainer.ema.module, source, golden, {"step": trainer.step, "history": []})
            save({"name": name, **about})
    return policies.load(checkpoint) if (folder / f"{name}.trained.json").exists() else None


def options(parser: argparse.ArgumentParser, name: str) -> None:
    """Adds what every sweep can be told: where its finished cells are, and whether to run more of them."""
    parser.add_argument("--cells", type=Path, default=Path("outputs") / name, help="folder of the finished cells")
    parser.add_argument("--restore", type=Path, default=None, help="take what this result file finished as finished")
    parser.add_argument("--summary", action="store_true", help="run nothing, only write the result file")
    parser.add_argument("--out", type=Path, default=None, help="result file (default: in benchmarks/results)")


def sweep(folder: Path, plan: Sequence[C], run: Callable[[C], dict[str, Any] | None]) -> None:
    """Runs every cell that is not finished and that no other process is at, with one line for each.

    Args:
        folder: of the finished cells.
        plan: in the order in which to run them.
        run: gives what a cell keeps, `outcomes` included; None while another process makes what it needs.
    """
    worked = waiting = True
    while worked or waiting:
        worked = waiting = False
        for cell in plan:
            with claim(folder / f"{cell.name}.json") as save:
                if save is None:
                    continue
                started, kept = time.perf_counter(), run(cell)
                if kept is None:
                    waiting = True
                    continue
                save(kept)
                worked = True
                told = f"{kept['outcomes'].count('1')}/{kept['n']} in {time.perf_counter() - started:.0f} s"
                print(f"{cell.name:48s} {told}", flush=True)
        if waiting and not worked:
            time.sleep(WAIT_S)


def finished(folder: Path, plan: Sequence[C]) -> dict[C, dict[str, Any]]:
    """What the finished cells of the plan keep, in its order, with the count of successes and its 95 % interval."""
    found = {cell: folder / f"{cell.name}.json" for cell in plan}
    kept = {cell: json.loads(path.read_text()) for cell, path in found.items() if path.exists()}
    for told in kept.values():
        told["successes"] = told["outcomes"].count("1")
        told["wilson"] = wilson(told["successes"], told["n"])
    return kept


def solved(told: dict[str, Any]) -> list[bool]:
    """The outcomes of a cell, seed by seed."""
    return [bit == "1" for bit in told["outcomes"]]


def restore(result: Path, folder: Path, kind: type[Any]) -> None:
    """Makes the cells, of this dataclass, of an earlier, perhaps partial, result file finished cells here."""
    folder.mkdir(parents=True, exist_ok=True)
    for told in json.loads(result.read_text())["cells"]:
        cell: Cell = kind(**{field.name: told[field.name] for field in fields(kind)})
        file = folder / f"{cell.name}.json"
        if not file.exists():
            file.write_text(json.dumps(told))
