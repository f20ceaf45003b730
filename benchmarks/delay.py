"""Inference delay: success of every execution mode when chunks arrive 0 to 8 control steps late.

    python -m benchmarks.delay                  run what is missing, then write the result file
    python -m benchmarks.delay --summary        only write the result file from the finished cells

Chunks have 16 actions and a decision begins every 8 (delay <= 8 <= 16 - delay holds up to the largest delay, so that
nothing but the delay changes; temporal ensembling decides as often as inference allows). One flow policy per world is
executed in four modes, and a second one, trained with prefixes of up to 8 steps, in the fifth. All meet the same
episodes. Three worlds disturb, with noise on actions as in the evaluations of Black 2025 (arXiv 2506.07339) or with
pushes: a world that stands still forgives a chunk that was decided too early.

A cell is one world in one mode at one delay. Finished cells and trained policies are kept below --cells, so a killed
run goes on where it was; start the command once per core that you want to give it.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import eval as evaluation
from benchmarks import cells
from benchmarks.heads import modes
from benchmarks.result import write
from envs.records import wilson
from envs.statistics import compare_paired

# Name: what is trained, and what disturbs it in the evaluation.
WORLDS: dict[str, tuple[list[str], list[str]]] = {
    "hammer": (["env.task=hammer-v3"], []),
    "basketball": (["env.task=basketball-v3"], []),
    "soccer": (["env.task=soccer-v3"], []),
    "soccer-pushed": (["env.task=soccer-v3"], ["eval.perturb.push=2"]),
    "push-noisy": (["env.task=push-v3"], ["eval.perturb.action_noise=0.3"]),
    "detour": (["env=detour", "demos.noise=0.05"], []),
    "detour-noisy": (["env=detour", "demos.noise=0.05"], ["eval.perturb.action_noise=0.1"]),
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
        prefix = ["head.prefix_max=8"] if ARMS[self.arm][1] else []
        return f"{train[0].split('=')[1]}-{'prefix' if prefix else 'plain'}", [*train, *prefix]

    @property
    def overrides(self) -> list[str]:
        """Its configuration."""
        mode, _ = ARMS[self.arm]
        ensembling = mode == "temporal_ensembling"
        horizon = [] if ensembling else [f"eval.execution_horizon={HORIZON}"]
        return [*self.policy[1], *WORLDS[self.world][1], f"eval.mode={mode}", f"eval.delay={self.delay}", *horizon]


PLAN = [Cell(world, arm, delay) for world in WORLDS for arm in ARMS for delay in DELAYS]


def run_cell(cell: Cell, folder: Path, episodes: int, steps: int | None) -> dict[str, Any] | None:
    """Evaluates once; None while another process trains the policy."""
    config = cells.configure([*cell.overrides, *([f"train.steps={steps}"] if steps else [])], episodes)
    policy = cells.trained(folder, cell.policy[0], config)
    if policy is None:
        return None
    started = time.perf_counter()
    records = evaluation.evaluate(policy, config.env, config.eval)
    return {
        **vars(cell),
        "policy": cell.policy[0],
        **cells.outcomes(records),
        "modes": modes(records),
        "mean_steps": float(np.mean([record.steps for record in records])),
        "evaluate_seconds": round(time.perf_counter() - started, 1),
    }


def sweep(folder: Path, plan: list[Cell], episodes: int, steps: int | None) -> None:
    """Runs every cell that is not finished and that no other process is at, until nothing is left to do."""
    worked = True
    while worked:  # again: a policy that another process was training may be there now
        worked = False
        for cell in plan:
            with cells.claim(folder / f"{cell.name}.json") as save:
                finished = save and run_cell(cell, folder, episodes, steps)
                if save is None or not finished:
                    continue
                save(finished)
                worked = True
                print(f"{cell.name:32s} {finished['outcomes'].count('1')}/{finished['n']}", flush=True)


def summarize(folder: Path) -> dict[str, Any]:
    """Every finished cell, and over the worlds that have all of them, the means and what the best mode keeps."""
    found = {cell: folder / f"{cell.name}.json" for cell in PLAN}
    by_cell = {cell: json.loads(path.read_text()) for cell, path in found.items() if path.exists()}
    for told in by_cell.values():
        told["successes"] = told["outcomes"].count("1")
        told["wilson"] = wilson(told["successes"], told["n"])
    complete = [w for w in WORLDS if all(Cell(w, arm, d) in by_cell for arm in ARMS for d in DELAYS)]
    policies = [json.loads(path.read_text()) for path in sorted(folder.glob("*.trained.json"))]
    about = {"execution_horizon": HORIZON, "worlds": WORLDS, "policies": policies, "cells": list(by_cell.values())}
    return {**about, "all_worlds": totals(by_cell, complete) if complete else {"worlds": []}}


def totals(by_cell: dict[Cell, dict[str, Any]], worlds: list[str]) -> dict[str, Any]:
    """Mean success over the worlds, and how the modes compare at the largest delay."""

    def outcomes(arm: str, delay: int) -> list[list[bool]]:
        return [[bit == "1" for bit in by_cell[Cell(world, arm, delay)]["outcomes"]] for world in worlds]

    def mean(arm: str, delay: int) -> float:
        return float(np.mean([np.mean(bits) for bits in outcomes(arm, delay)]))

    last = DELAYS[-1]
    best, without = max(ARMS, key=lambda arm: mean(arm, last)), max(ARMS, key=lambda arm: mean(arm, 0))
    kept = mean(best, last) / mean(without, 0) if mean(without, 0) else 0.0
    against = {
        arm: vars(compare_paired(outcomes(arm, last), outcomes("naive", last))) for arm in ARMS if arm != "naive"
    }
    return {
        "worlds": worlds,
        "mean_success": {arm: {delay: mean(arm, delay) for delay in DELAYS} for arm in ARMS},
        "largest_delay": last,
        "best_at_largest_delay": best,
        "best_without_delay": without,
        "kept": kept,  # mean success of the first over that of the second
        f"kept_at_least_{KEEPS}": kept >= KEEPS,
        "against_naive_at_largest_delay": against,
    }


def table(result: dict[str, Any]) -> str:
    """Successes in percent, worlds and modes down, delays across."""
    lines = [f"{'world':14s} {'mode':13s} " + " ".join(f"d={delay:<4d}" for delay in DELAYS)]
    told = {(c["world"], c["arm"], c["delay"]): 100 * c["successes"] / c["n"] for c in result["cells"]}
    whole = result["all_worlds"]
    for world in WORLDS:
        for arm in ARMS:
            rates = [told.get((world, arm, delay)) for delay in DELAYS]
            if any(rate is not None for rate in rates):
                shown = " ".join(f"{'-' if rate is None else f'{rate:.1f}':6s}" for rate in rates)
                lines.append(f"{world:14s} {arm:13s} {shown}")
    for arm, means in whole.get("mean_success", {}).items():
        lines.append(f"{'mean':14s} {arm:13s} " + " ".join(f"{100 * means[delay]:<6.1f}" for delay in DELAYS))
    if whole["worlds"]:
        lines.append(
            f"at d={whole['largest_delay']} {whole['best_at_largest_delay']} keeps {whole['kept']:.3f} of the success "
            f"that {whole['best_without_delay']} has without delay (at least {KEEPS}: {whole['kept'] >= KEEPS})"
        )
    return "\n".join(lines)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="*", choices=WORLDS, default=list(WORLDS), help="only these worlds")
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS), help="only these modes")
    parser.add_argument("--delays", nargs="*", type=int, choices=DELAYS, default=DELAYS, help="only these delays")
    parser.add_argument("--episodes", type=int, default=200, help="held-out episodes of every cell")
    parser.add_argument("--steps", type=int, default=None, help="optimizer steps instead of the recipe's, for a trial")
    parser.add_argument("--cells", type=Path, default=Path("outputs/delay"), help="folder of the finished cells")
    parser.add_argument("--summary", action="store_true", help="run nothing, only write the result file")
    parser.add_argument("--out", type=Path, default=None, help="result file (default: in benchmarks/results)")
    a = parser.parse_args()
    if not a.summary:
        plan = [c for c in PLAN if c.world in a.worlds and c.arm in a.arms and c.delay in a.delays]
        sweep(a.cells, plan, a.episodes, a.steps)
    result = summarize(a.cells)
    print(table(result))
    print(write("delay", result, a.out))


if __name__ == "__main__":
    main()
