"""Screens: plans refined at once beside plans decoded action by action, and the table of tasks.

    python -m benchmarks.screen                        run what is missing, then write the result file
    python -m benchmarks.screen --summary              only write the result file from the finished cells
    python -m benchmarks.screen --part tasks           the table of tasks alone; also orders: the comparison, and blind

Three parts. In `orders` each head is trained with five seeds on pages whose plans have 1, 3, 6 and 12 actions; in
`tasks` one flow policy is trained for 25 tasks; in `blind` one for the shop that does not see the instruction. A cell
is one way to decide (arm) on one task with one training seed; arms that decide otherwise with the same weights share a
policy. Demonstrations are the experts', 200 of each task. A training that took more of the CPU than its part allows is
marked; it is not cut, for then its learning rate would end high. What is compared was fixed beforehand:
docs/decisions.md, 52. Finished cells and policies are kept below --cells, so a killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import cells
from benchmarks.result import write
from flowhand.commands import eval as evaluation
from flowhand.commands import train

FIRST_SEED = 1_000_000
LENGTHS = {"any-order-1": 1, "any-order-3": 3, "any-order-6": 6, "any-order-12": 12}
ORDERS = (*LENGTHS, "click-checkboxes-large")
TASKS = (
    "click-test-2", "click-button", "click-link", "click-button-sequence", "click-dialog-2", "click-tab-2-hard",
    "click-collapsible-2-nodelay", "click-option", "click-checkboxes", "click-checkboxes-large", "choose-list",
    "click-scroll-list", "enter-text", "enter-password", "login-user", "enter-date", "multi-orderings",
    "search-engine", "email-inbox-forward", "use-autocomplete-nodelay", "drag-box", "use-slider", "drag-sort-numbers",
    "book-flight-nodelay", "shop",
)  # fmt: skip
# Evaluated only: never trained on.
UNSEEN = ("click-checkboxes-transfer", "login-option", "text-checkboxes")
# How a decision is made: the head that is trained, and what its sampling is told.
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "flow-4": ("flow", {"steps": 4}),
    "flow-1": ("flow", {"steps": 1}),
    "tokens": ("tokens", {}),
    "tokens-drawn": ("tokens", {"temperature": 1.0}),
    "classification": ("classification", {}),
    "regression": ("regression", {}),
    "blind": ("flow", {"steps": 4}),  # without the instruction: what a page gives away
}
OF_ARM = {"blind": ["encoder.words=false"]}  # what else is set


@dataclass(frozen=True)
class Part:
    """What is trained together, and how long."""

    tasks: tuple[str, ...]
    evaluated: tuple[str, ...]
    arms: tuple[str, ...]
    seeds: int  # of the trainings
    steps: int
    most_cpu_s: float  # of one training
    episodes: int  # of a cell


PARTS = {
    "orders": Part(ORDERS, ORDERS, tuple(arm for arm in ARMS if arm != "blind"), 5, 1500, 600.0, 150),
    "tasks": Part(TASKS, (*TASKS, *UNSEEN), ("flow-4", "tokens"), 1, 7500, 3600.0, 100),
    "blind": Part(("shop",), ("shop",), ("blind",), 1, 1500, 600.0, 100),
}
MARGIN = 0.02  # by which refinement may be worse


@dataclass(frozen=True)
class Cell:
    """One way to decide, on one task, with one training seed."""

    part: str
    arm: str
    task: str
    seed: int
    first_seed: int
    episodes: int
    steps: int  # of the training
    shown: int  # demonstrations of each task

    @property
    def policy(self) -> str:
        """The name of its policy."""
        return "-".join(map(str, (self.part, ARMS[self.arm][0], self.seed, self.steps, self.shown)))

    @property
    def name(self) -> str:
        """Of its file."""
        return "-".join(map(str, (self.policy, self.arm, self.task, self.first_seed, self.episodes)))

    @property
    def overrides(self) -> list[str]:
        """Its configuration."""
        part = PARTS[self.part]
        data = [f"env.task=[{','.join(part.tasks)}]", f"data.episodes={self.shown}"]
        data += [f"train.steps={self.steps}"]
        head = [f"head={ARMS[self.arm][0]}"]
        return [
            "experiment=web",
            *data,
            *head,
            *OF_ARM.get(self.arm, []),
            f"seed={self.seed}",
            f"eval.seed={self.first_seed}",
        ]


def run(folder: Path, cell: Cell) -> dict[str, Any] | None:
    """What a cell keeps; None while another process trains its policy."""
    config = cells.configure(cell.overrides, cell.episodes)
    config.eval.n_envs = 4  # tabs
    _, fields = ARMS[cell.arm]
    policy = cells.trained(folder / "policies", cell.policy, config, lambda: train.demonstrations(config)[0])
    if policy is None:
        return None
    env = replace(config.env, task=cell.task)
    records = evaluation.evaluate(policy.with_head(**fields), env, config.eval, config.execution)
    about = json.loads((folder / "policies" / f"{cell.policy}.trained.json").read_text())
    too_long = about["train_cpu_seconds"] > PARTS[cell.part].most_cpu_s
    failures = {kind: sum(record.failure == kind for record in records) for kind in {r.failure for r in records}}
    return {**asdict(cell), **about, "name": cell.name, "too_long": too_long, "failures": failures} | cells.outcomes(
        records
    )


def plan(arguments: argparse.Namespace) -> list[Cell]:
    """All cells that were asked for: training seed by training seed, so that what is there can be compared."""
    return [
        Cell(
            name,
            arm,
            task,
            seed,
            arguments.first_seed,
            arguments.episodes or PARTS[name].episodes,
            arguments.steps or PARTS[name].steps,
            arguments.demonstrations,
        )
        for name in arguments.part
        for seed in range(PARTS[name].seeds)
        for arm in PARTS[name].arms
        for task in PARTS[name].evaluated
        if arm in arguments.arms
    ]


def paired(finished: dict[Cell, dict[str, Any]], arm: str, other: str) -> Iterator[tuple[Cell, np.ndarray, np.ndarray]]:
    """Outcomes of two arms on the same episodes with the same training seed."""
    for cell, told in finished.items():
        partner = finished.get(replace(cell, arm=other))
        if cell.arm == arm and partner is not None and cell.task in LENGTHS:
            yield cell, np.array(cells.solved(told)), np.array(cells.solved(partner))


def compared(finished: dict[Cell, dict[str, Any]], arm: str, other: str) -> dict[str, Any] | None:
    """Difference of success, pooled over lengths and seeds, with its 95 % interval by resampling training seeds.

    Episodes of one policy share its luck, so whole policies are drawn with replacement, and episodes within them.
    """
    pairs = list(paired(finished, arm, other))
    if not pairs:
        return None
    by_seed: dict[int, list[np.ndarray]] = {}
    for cell, ours, theirs in pairs:
        by_seed.setdefault(cell.seed, []).append(ours.astype(float) - theirs)
    differences = [np.concatenate(each) for each in by_seed.values()]
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(4000):
        seeds = random.integers(len(differences), size=len(differences))
        parts = [differences[s][random.integers(len(differences[s]), size=len(differences[s]))] for s in seeds]
        drawn.append(np.concatenate(parts).mean())
    low, high = (float(end) for end in np.quantile(drawn, [0.025, 0.975]))
    whole = np.concatenate(differences)
    found = {"arm": arm, "other": other, "episodes": len(whole), "training_seeds": len(differences)}
    return {**found, "difference": float(whole.mean()), "interval": [low, high], "non_inferior": low > -MARGIN}


def summarize(folder: Path, asked: list[Cell]) -> dict[str, Any]:
    """Every finished cell, success by arm and task over training seeds, and the registered comparisons."""
    finished = cells.finished(folder, asked)
    rows = []
    for key in dict.fromkeys((cell.part, cell.arm, cell.task) for cell in finished):
        of = [told for cell, told in finished.items() if (cell.part, cell.arm, cell.task) == key]
        row = dict(zip(("part", "arm", "task"), key, strict=True))
        shares = [told["successes"] / told["n"] for told in of]
        rows.append({**row, "seeds": len(of), "success": float(np.mean(shares)), "each": shares})
    pairs = [(arm, "tokens") for arm in ("flow-1", "flow-4", "classification", "regression")]
    found = [compared(finished, *pair) for pair in pairs]
    return {
        "margin": MARGIN,
        "rows": rows,
        "comparisons": [each for each in found if each is not None],
        "cells": list(finished.values()),
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--episodes", type=int, default=0, help="held-out episodes of a cell (default: of its part)")
    parser.add_argument("--steps", type=int, default=0, help="of the training (default: of its part)")
    parser.add_argument("--demonstrations", type=int, default=200, help="of each task")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help="of the held-out episodes")
    cells.options(parser, "screen")
    arguments = parser.parse_args()
    if arguments.restore:
        cells.restore(arguments.restore, arguments.cells, Cell)
    asked = plan(arguments)
    if not arguments.summary:
        cells.sweep(arguments.cells, asked, partial(run, arguments.cells))
    result = summarize(arguments.cells, asked)
    for row in result["rows"]:
        print(f"{row['part']:7s} {row['arm']:15s} {row['task']:28s} {row['success']:.3f}, {row['seeds']} seeds")
    for each in result["comparisons"]:
        low, high = each["interval"]
        print(f"{each['arm']} - {each['other']}: {each['difference']:+.3f} ({low:+.3f} to {high:+.3f})")
    print(write("screen", result, arguments.out, device="cpu", threads=1))


if __name__ == "__main__":
    main()
