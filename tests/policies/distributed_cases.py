"""What one of several processes of a training does in test_distributed.py; run as a script by each of them."""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path
from typing import Any

import torch

from policies.heads import HEADS
from policies.training import distributed
from policies.training.distributed import LostProcessError, OneProcess
from policies.training.trainer import Trainer
from tests import test_train

STEPS, HALF = 12, 6
BATCH = 13  # which does not divide


def trainer_of(head: str, processes: OneProcess | None = None) -> Trainer:
    """A small training of the head."""
    words = [
        f"head={head}",
        f"train.steps={STEPS}",
        f"train.batch_size={BATCH}",
        "train.draws=2",
        "train.warmup_steps=5",
    ]
    trainer = test_train.make_trainer(*words)
    trainer.processes = processes or OneProcess()
    return trainer


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
        for head in HEADS:
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
