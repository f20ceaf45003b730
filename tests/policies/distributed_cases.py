"""What one of several processes of a training does in test_distributed.py; run as a script by each of them."""

from __future__ import annotations

import copy
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import policies
from flowhand.contracts.features import Feature, Spec
from policies.encoders.state import StateEncoderConfig
from policies.heads import HEADS
from policies.nets.mlp import MLPConfig
from policies.training import distributed
from policies.training.config import TrainingConfig
from policies.training.distributed import LostProcessError, OneProcess
from policies.training.trainer import Trainer
from policies.training.windows import Windows

STEPS, HALF = 12, 6
TRIED = ("flow", "drift", "mean_flow")  # all heads: test_draws.py in threads, benchmarks/ranks.py in processes
BATCH = 13  # which does not divide


@dataclass
class Recorded:
    """What training reads of an episode."""

    observation: dict[str, np.ndarray]
    action: np.ndarray
    task: str = ""


def trainer_of(head: str, processes: OneProcess | None = None) -> Trainer:
    """A small training of the head, on random demonstrations."""
    random = np.random.default_rng(0)
    shapes = [(20, 3), (20, 2)]
    drawn = [[random.normal(size=shape).astype(np.float32) for shape in shapes] for _ in range(4)]
    spec = Spec({"state": Feature((3,), "float32", "m")}, Feature((2,), "float32", ""), 0.05)
    config = policies.PolicyConfig(
        encoder=StateEncoderConfig(width=16), net=MLPConfig(width=16, blocks=1), head=HEADS[head][0]()
    )
    chunk = config.chunk
    episodes = [Recorded({"state": state}, action) for state, action in drawn]
    windows = Windows(episodes, spec, chunk.history, chunk.prediction_horizon)
    training = TrainingConfig(steps=STEPS, batch_size=BATCH, draws=2, warmup_steps=5, threads=1, precision="fp32")
    return Trainer(training, config, spec, windows, torch.device("cpu"), processes=processes)


def advanced(trainer: Trainer, steps: int) -> Trainer:
    """The training after so many more steps."""
    for _ in range(steps):
        trainer.advance()
    return trainer


def failure(trainer: Trainer, rank: int) -> str:
    """What is said where the loss of the second process is not a number in the third step."""
    honest = trainer.loss

    def loss(*given: Any) -> torch.Tensor:
        return honest(*given) * (float("nan") if rank == 1 and trainer.step == 2 else 1.0)

    trainer.loss = loss
    advanced(trainer, 5)
    try:
        trainer.require_finite()
    except ValueError as error:
        return str(error)
    return ""


def lost(trainer: Trainer, rank: int) -> dict[str, Any]:
    """What is left of a training whose second process ends in the middle of the fourth step."""
    honest = trainer.loss

    def loss(*given: Any) -> torch.Tensor:
        if rank == 1 and trainer.step == 3:
            os._exit(9)
        return honest(*given)

    trainer.loss = loss
    try:
        advanced(trainer, STEPS)
    except LostProcessError as error:
        return {"state": trainer.state(), "missing": trainer.processes.missing(), "error": str(error)}
    return {}


def main(folder: Path) -> None:
    """All cases, one after another; what they come to is left in the folder."""
    torch.set_num_threads(1)
    with distributed.joined(torch.device("cpu"), timeout_s=30) as processes:
        rank, found = processes.rank, {}
        for head in TRIED:
            trainer = advanced(trainer_of(head, processes), HALF)
            found[head, "half"] = copy.deepcopy(trainer.state()) if head == "flow" else {}
            found[head, "whole"] = advanced(trainer, STEPS - HALF).state()
            trainer.require_together()
        went_on = trainer_of("flow", processes)
        went_on.restore(torch.load(folder / "half.pt"))
        found["went on"] = advanced(went_on, STEPS - HALF).state()
        found["not finite"] = failure(trainer_of("flow", processes), rank)
        found["asked"] = [processes.agree(rank * number, 0) for number in (0, 15)]
        found["alone"] = processes.alone(lambda: "first")
        found["in turn"] = processes.in_turn(lambda: rank)
        try:
            processes.require_same(steps=3, windows=80 + rank)
        except ValueError as error:
            found["different"] = str(error)
        torch.save(found, folder / f"{rank}.pt")
        found["lost"] = lost(trainer_of("flow", processes), rank)
        torch.save(found, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
