"""Inference delay: success of every execution mode when chunks arrive 0 to 8 control steps late.

    python -m benchmarks.delay                  run what is missing, then write the result file
    python -m benchmarks.delay --summary        only write the result file from the finished cells
    python -m benchmarks.delay --restore FILE   go on from the cells that a result file holds

Chunks have 24 actions and in every mode a decision begins every 8 control steps, so that nothing but mode and delay
differs. That is no less than the largest delay, for inference is sequential, and a chunk that comes 8 steps late and
is executed for 8 still has 8 actions beyond, for the next one to continue or to be averaged with: with 16 there would
be none, and ensembling would be receding horizon. What deciding every 8 steps costs by itself is told by `every-2`,
which decides every 2 steps and knows no delay. One flow policy per task is executed in four modes, and a second one,
trained with prefixes of up to 8 steps, in the fifth. All meet the same episodes. So does the scripted expert, whose
actions are executed as late: it decides at every step, so what it loses no way of executing chunks can be blamed for.

A world that stands still forgives a chunk that was decided too early. So worlds are disturbed: by noise on actions, as
in the evaluations of Black 2025 (arXiv 2506.07339), or by pushes on the object, which then moves by itself. Episodes
end after 250 steps, detour's after 120; without delay most need a third of that.

A cell is one world in one mode at one delay. Finished cells and trained policies are kept below --cells, so a killed
run goes on where it was; start the command once per core that you want to give it.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import cells
from benchmarks.heads import modes
from benchmarks.result import write
from flowhand.commands import eval as evaluation
from flowhand.evaluation.statistics import compare_paired

# Name: what is trained, and what disturbs it in the evaluation.
WORLDS: dict[str, tuple[list[str], list[str]]] = {
    "hammer": (["env.task=hammer-v3", "env.max_steps=250"], []),
    "soccer-pushed": (["env.task=soccer-v3", "env.max_steps=250"], ["eval.perturb.push=5"]),
    "push-noisy": (["env.task=push-v3", "env.max_steps=250"], ["eval.perturb.action_noise=0.2"]),
    "detour-noisy": (["env=detour", "data.noise=0.05"], ["eval.perturb.action_noise=0.1"]),
}
# Name: the mode, and whether its policy is the one trained with prefixes.
ARMS: dict[str, tuple[str, bool]] = {
    "naive": ("receding_horizon", False),
    "ensembling": ("temporal_ensembling", False),
    "rtc-exact": ("rtc_exact", False),
    "rtc-identity": ("rtc_identity", False),
    "rtc-trained": ("rtc_trained", True),
}
DELAYS = (0, 1, 2, 4, 8)
HORIZON = 8  # control steps from one decision to the next
CLOSED_LOOP = ("every-2", 2)  # naive without delay at this horizon
EXPERT = "expert"
LENGTH = 24  # of a chunk
KEEPS = 0.9  # of the success without delay: what the best mode is to keep at the largest delay


@dataclass(frozen=True)
class Cell:
    """One world in one mode at one delay."""

    world: str
    arm: str
    delay: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.world}-{self.arm}-{self.delay}"

    @property
    def policy(self) -> tuple[str, list[str]]:
        """Name and overrides of the policy that it executes, which worlds and modes share."""
        train, _ = WORLDS[self.world]
        prefix = ["head.prefix_max=8"] if ARMS.get(self.arm, ("", False))[1] else []
        chunk = [f"chunk.prediction_horizon={LENGTH}", f"chunk.execution_horizon={HORIZON}"]
        return f"{train[0].split('=')[1]}-{'prefix' if prefix else 'plain'}", [*train, *chunk, *prefix]

    @property
    def overrides(self) -> list[str]:
        """Its configuration; the small inference batch costs less where few robots decide at one time."""
        if self.arm == EXPERT:
            return [*self.policy[1], *WORLDS[self.world][1], f"eval.perturb.action_delay={self.delay}"]
        mode, horizon = (ARMS[self.arm][0], HORIZON) if self.arm in ARMS else ("receding_horizon", CLOSED_LOOP[1])
        execution = [
            f"execution.mode={mode}",
            f"execution.delay={self.delay}",
            f"execution.execution_horizon={horizon}",
        ]
        return [*self.policy[1], *WORLDS[self.world][1], *execution, "eval.inference_batch=4"]


PLAN = [
    cell
    for world in WORLDS
    for cell in (
        Cell(world, CLOSED_LOOP[0], 0),
        *(Cell(world, arm, delay) for arm in (*ARMS, EXPERT) for delay in DELAYS),
    )
]


def run_cell(cell: Cell, folder: Path, episodes: int, steps: int | None) -> dict[str, Any] | None:
    """Evaluates once; None while another process trains the policy."""
    config = cells.configure([*cell.overrides, *([f"train.steps={steps}"] if steps else [])], episodes)
    policy = None if cell.arm == EXPERT else cells.trained(folder, cell.policy[0], config)
    if policy is None and cell.arm != EXPERT:
        return None
    started = time.perf_counter()
    if policy is None:
        records = evaluation.evaluate_expert(config.env, config.eval)
    else:
        records = evaluation.evaluate(policy, config.env, config.eval, config.execution)
    return {
        **vars(cell),
        "policy": cell.policy[0] if policy else None,
        **cells.outcomes(records),
        "modes": modes(records),
        "mean_steps": float(np.mean([record.steps for record in records])),
        "evaluate_seconds": round(time.perf_counter() - started, 1),
    }


def summarize(folder: Path) -> dict[str, Any]:
    """Every finished cell, and over the worlds that have all of them, the means and what the best mode keeps."""
    by_cell = cells.finished(folder, PLAN)
    complete = [w for w in WORLDS if all(cell in by_cell for cell in PLAN if cell.world == w)]
    policies = [json.loads(path.read_text()) for path in sorted(folder.glob("*.trained.json"))]
    about = {
        "execution_horizon": HORIZON,
        "prediction_horizon": LENGTH,
        "worlds": WORLDS,
        "policies": policies,
        "cells": list(by_cell.values()),
    }
    return {**about, "all_worlds": totals(by_cell, complete) if complete else {"worlds": []}}


def totals(by_cell: dict[Cell, dict[str, Any]], worlds: list[str]) -> dict[str, Any]:
    """Mean success over the worlds, and how the modes compare at the largest delay."""

    def outcomes(arm: str, delay: int) -> list[list[bool]]:
        return [cells.solved(by_cell[Cell(world, arm, delay)]) for world in worlds]

    def mean(arm: str, delay: int) -> float:
        return float(np.mean([np.mean(bits) for bits in outcomes(arm, delay)]))

    last = DELAYS[-1]
    best, without = max(ARMS, key=lambda arm: mean(arm, last)), max(ARMS, key=lambda arm: mean(arm, 0))
    kept = {name: mean(best, last) / (mean(name, 0) or np.inf) for name in (without, CLOSED_LOOP[0])}
    against = {
        arm: vars(compare_paired(outcomes(arm, last), outcomes("naive", last))) for arm in ARMS if arm != "naive"
    }
    return {
        "worlds": worlds,
        "mean_success": {arm: {delay: mean(arm, delay) for delay in DELAYS} for arm in (*ARMS, EXPERT)},
        "mean_success_closed_loop": mean(CLOSED_LOOP[0], 0),
        "expert_kept": mean(EXPERT, last) / (mean(EXPERT, 0) or np.inf),
        "largest_delay": last,
        "best_at_largest_delay": best,
        "best_without_delay": without,
        "kept": kept,  # mean success of the first over that without delay: of the best mode, and deciding every 2 steps
        f"kept_at_least_{KEEPS}": kept[without] >= KEEPS,
        "against_naive_at_largest_delay": against,
    }


def table(result: dict[str, Any]) -> str:
    """Markdown: successes in percent, worlds and modes down, delays across, and what the largest delay leaves."""
    lines = [f"| world | mode | {' | '.join(f'd={delay}' for delay in DELAYS)} |", "|---|---|" + "---|" * len(DELAYS)]
    told = {(c["world"], c["arm"], c["delay"]): 100 * c["successes"] / c["n"] for c in result["cells"]}
    whole = result["all_worlds"]
    for arm, means in whole.get("mean_success", {}).items():
        told |= {("mean", arm, delay): 100 * rate for delay, rate in means.items()}
    if whole["worlds"]:
        told["mean", CLOSED_LOOP[0], 0] = 100 * whole["mean_success_closed_loop"]
    for world in (*WORLDS, "mean"):
        for arm in (CLOSED_LOOP[0], *ARMS, EXPERT):
            rates = [told.get((world, arm, delay)) for delay in DELAYS]
            if any(rate is not None for rate in rates):
                lines.append(f"| {world} | {arm} | {' | '.join('' if r is None else f'{r:.1f}' for r in rates)} |")
    for reference, kept in whole.get("kept", {}).items():
        lines.append(
            f"at d={whole['largest_delay']} {whole['best_at_largest_delay']} keeps {kept:.3f} of the success that "
            f"{reference} has without delay"
        )
    if whole["worlds"]:
        lines.append(
            f"the expert, deciding at every step and executed as late, keeps {whole['expert_kept']:.3f} of its own"
        )
    return "\n".join(lines)


def main() -> None:
    """Entry point."""
    arms = [CLOSED_LOOP[0], *ARMS, EXPERT]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="*", choices=WORLDS, default=list(WORLDS), help="only these worlds")
    parser.add_argument("--arms", nargs="*", choices=arms, default=arms, help="only these modes")
    parser.add_argument("--delays", nargs="*", type=int, choices=DELAYS, default=DELAYS, help="only these delays")
    parser.add_argument("--episodes", type=int, default=200, help="held-out episodes of every cell")
    parser.add_argument("--steps", type=int, default=None, help="optimizer steps instead of the recipe's, for a trial")
    cells.options(parser, "delay")
    a = parser.parse_args()
    if a.restore:
        cells.restore(a.restore, a.cells, Cell)
    if not a.summary:
        plan = [c for c in PLAN if c.world in a.worlds and c.arm in a.arms and c.delay in a.delays]
        cells.sweep(a.cells, plan, partial(run_cell, folder=a.cells, episodes=a.episodes, steps=a.steps))
    result = summarize(a.cells)
    print(table(result))
    print(write("delay", result, a.out, device="cpu", threads=1))


if __name__ == "__main__":
    main()
