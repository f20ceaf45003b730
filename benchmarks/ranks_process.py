"""One of the processes that ranks.py measures: `python -m benchmarks.ranks_process CASE.json`, with a RANK."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import policies
from conf.cli import compose
from conf.verbs.train import TrainRoot
from flowhand.commands import train
from flowhand.commands.runs import Save
from flowhand.contracts.data.episode import Episode
from flowhand.contracts.features import Feature, Spec
from policies.device import select_device
from policies.training import distributed
from policies.training.distributed import OneProcess
from policies.training.trainer import Trainer

PIXELS = 64
COMMON = ["wandb.mode=disabled", "eval.episodes=0", "train.threads=1", "train.steps=1000000"]


def data(pixels: bool) -> tuple[Spec, list[Episode]]:
    """Random demonstrations: states, or states and one camera."""
    random = np.random.default_rng(0)
    features = {"state": Feature((39,), "float32", "")}
    if pixels:
        features["camera"] = Feature((PIXELS, PIXELS, 3), "uint8", "", kind="image")
    spec, episodes = Spec(features, Feature((4,), "float32", ""), 0.05), []
    for seed in range(4 if pixels else 20):
        n = 100
        seen = {"state": random.normal(size=(n, 39)).astype(np.float32)}
        if pixels:
            seen["camera"] = random.integers(0, 256, (n, PIXELS, PIXELS, 3), dtype=np.uint8)
        action = np.tanh(seen["state"][:, :4] + random.normal(size=(n, 4))).astype(np.float32)
        episodes.append(Episode(seen, action, np.zeros(n, np.float32), np.zeros(n, bool), "", seed, 0.05))
    return spec, episodes


def trainer_of(case: dict[str, Any], processes: OneProcess, batch: int | None = None) -> tuple[TrainRoot, Trainer]:
    """The training of the case, alone or with the others."""
    size = [f"train.batch_size={batch}"] if batch else []
    config = compose([*COMMON, *case["overrides"], *size])
    spec, episodes = data(case.get("pixels", False))
    device = select_device(distributed.card_of(case["device"]) if processes.count > 1 else case["device"], 1)
    return config, train.trainer_of(config, spec, episodes, device, processes=processes)


def weights(case: dict[str, Any], processes: OneProcess) -> dict[str, Any]:
    """Trains for some steps and leaves the weights in the case's folder."""
    _, trainer = trainer_of(case, processes)
    for _ in range(case["steps"]):
        trainer.advance()
    trainer.require_finite()
    trainer.require_together()
    if processes.first:
        torch.save({k: v.cpu() for k, v in trainer.policy.state_dict().items()}, case["weights"])
    return {}


def speed(case: dict[str, Any], processes: OneProcess) -> dict[str, Any]:
    """Samples per second linked, and of both processes unlinked, in turns; and the seconds of a checkpoint."""
    whole = int(case["batch"])
    config, linked = trainer_of(case, processes, whole)
    alone = {"whole batch each": whole, "half the batch each": whole // processes.count}
    trainers = {"linked": linked, **{name: trainer_of(case, OneProcess(), size)[1] for name, size in alone.items()}}
    rates: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(case["rounds"]):
        for name, trainer in trainers.items():
            processes.agree(0, 0)  # all begin together
            size = whole // processes.count if name == "linked" else trainer.config.batch_size
            rate = steady(trainer, processes, case["seconds"], name == "linked") * size
            total = processes.summed(torch.tensor(rate, dtype=torch.float64))
            rates[name].append(float(total))
    return {"samples_per_s": rates, "checkpoint_s": checkpoints(config, linked, processes, case["rounds"])}


def steady(trainer: Trainer, processes: OneProcess, seconds: float, linked: bool) -> float:
    """Steps per second over so many seconds. Linked processes agree on when to stop, which is a part of their steps."""
    for _ in range(3):
        trainer.advance()
    begun, steps = time.perf_counter(), 0
    while True:
        over = time.perf_counter() - begun >= seconds
        if (processes.agree(int(over), steps) if linked else over) and steps:
            break
        trainer.advance()
        steps += 1
    if trainer.bad_step.device.type == "cuda":
        torch.cuda.synchronize()
    return steps / (time.perf_counter() - begun)


def checkpoints(config: TrainRoot, trainer: Trainer, processes: OneProcess, times: int) -> dict[str, list[float]]:
    """Seconds to write a checkpoint, in turns as one of several and as one alone while the others rest."""
    source = policies.Provenance({"kind": "none"}, "", "none", "", [], {}, "", 0)
    found: dict[str, list[float]] = {"linked": [], "alone": []}
    with tempfile.TemporaryDirectory() as folder:
        config.out = folder
        save = Save(trainer, config, [], source)
        for _ in range(times):
            processes.agree(0, 0)
            found["linked"].append(_timed(save))
            processes.agree(0, 0)
            if processes.first:
                trainer.processes = OneProcess()
                found["alone"].append(_timed(save))
                trainer.processes = processes
    return found


def _timed(work: Callable[[], None]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def kept(case: dict[str, Any], found: dict[str, Any]) -> None:
    """Leaves what was found, with medians of the lists."""
    for name, rates in [*found.get("samples_per_s", {}).items()]:
        found.setdefault("median", {})[name] = median(rates)
    Path(case["out"]).write_text(json.dumps(found))


CASES = {"weights": weights, "speed": speed}


def main() -> None:
    """Entry point."""
    case = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    name = case["device"]
    device = select_device(distributed.card_of(name) if distributed.started_by()[1] > 1 else name, 1)
    with distributed.joined(device, 120) as processes:
        found = CASES[case["case"]](case, processes)
        if processes.first:
            kept(case, found)


if __name__ == "__main__":
    main()
