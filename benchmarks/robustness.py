"""Robustness: success against the strength of a perturbation, flow beside regression and the scripted expert.

    python -m benchmarks.robustness                  run what is missing, then write the result file
    python -m benchmarks.robustness --summary        only write the result file from the finished cells
    python -m benchmarks.robustness --restore FILE   go on from the cells that a result file holds

Every strength meets the same seeds with the same draws, only scaled, so the points of a curve are paired. The expert
meets the same world, but sees it as it is. Its curve says what is still possible; at a start far outside of what was
demonstrated the task itself may not be.

Most solve an undisturbed task of Meta-World within 100 steps; episodes end after 250.

A cell is one world with one agent at one strength. Finished cells and trained policies are kept below --cells, so a
killed run goes on where it was; start the command once per core that you want to give it.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import cells
from benchmarks.result import write
from flowhand.commands import eval as evaluation

WORLDS: dict[str, list[str]] = {
    "push": ["env.task=push-v3", "env.max_steps=250"],
    "hammer": ["env.task=hammer-v3", "env.max_steps=250"],
    "detour": ["env=detour", "data.noise=0.05", "chunk.execution_horizon=8"],
}
AGENTS = {"flow": ["head=flow"], "regression": ["head=regression"], "expert": []}
STRENGTHS: dict[str, tuple[float, ...]] = {  # of each field of `eval.perturb`; what leaves the world alone is "none"
    "initial_shift": (0.5, 1.0, 2.0),
    "observation_noise_relative": (0.03, 0.1, 0.3),
    "observation_delay": (2, 4, 8),
    "frame_drop": (0.5, 0.75, 0.9),
    "action_noise": (0.1, 0.3, 1.0),
    "action_delay": (2, 4, 8),
    "push": (5.0, 10.0, 20.0),
    "mass_scale": (0.25, 4.0),
    "friction_scale": (0.25, 4.0),
}


@dataclass(frozen=True)
class Cell:
    """One world with one agent at one strength of one perturbation."""

    world: str
    agent: str
    perturbation: str = "none"
    strength: float = 0.0

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.world}-{self.agent}-{self.perturbation}-{self.strength:g}"

    @property
    def overrides(self) -> list[str]:
        """Its configuration."""
        perturb = [f"eval.perturb.{self.perturbation}={self.strength}"] if self.perturbation != "none" else []
        return [*WORLDS[self.world], *AGENTS[self.agent], *perturb]


def sees(agent: str, perturbation: str) -> bool:
    """Whether the agent meets the perturbation at all: the expert's sight is undisturbed."""
    return agent != "expert" or not perturbation.startswith(("observation", "frame"))


PLAN = [
    Cell(world, agent, perturbation, strength)
    for world in WORLDS
    for agent in AGENTS
    for perturbation, strengths in {"none": (0.0,), **STRENGTHS}.items()
    for strength in strengths
    if sees(agent, perturbation)
]


def run_cell(cell: Cell, folder: Path, episodes: int, steps: int | None) -> dict[str, Any] | None:
    """Evaluates once; None while another process trains the policy."""
    config = cells.configure([*cell.overrides, *([f"train.steps={steps}"] if steps else [])], episodes)
    started = time.perf_counter()
    if cell.agent == "expert":
        records = evaluation.evaluate_expert(config.env, config.eval)
    else:
        policy = cells.trained(folder, f"{cell.world}-{cell.agent}", config)
        if policy is None:
            return None
        started = time.perf_counter()
        records = evaluation.evaluate(policy, config.env, config.eval, config.execution)
    seconds = round(time.perf_counter() - started, 1)
    return {**vars(cell), **cells.outcomes(records), "evaluate_seconds": seconds}


def summarize(folder: Path) -> dict[str, Any]:
    """The curves: for every world, agent and perturbation the strengths with success and interval, from none on."""
    finished = cells.finished(folder, PLAN)
    curves = []
    for world in WORLDS:
        for agent in AGENTS:
            for perturbation, strengths in STRENGTHS.items():
                places = [Cell(world, agent), *(Cell(world, agent, perturbation, s) for s in strengths)]
                points = [finished[place] for place in places if place in finished]
                if len(points) > 1:
                    kept = ("perturbation", "strength", "successes", "n", "wilson")
                    shown = [{name: point[name] for name in kept} for point in points]
                    curves.append({"world": world, "agent": agent, "perturbation": perturbation, "points": shown})
    policies = [json.loads(path.read_text()) for path in sorted(folder.glob("*.trained.json"))]
    return {"worlds": WORLDS, "curves": curves, "policies": policies, "cells": list(finished.values())}


def table(result: dict[str, Any]) -> str:
    """One line per curve: strength, success in percent, 95 % Wilson interval."""
    lines = []
    for curve in result["curves"]:
        points = []
        for point in curve["points"]:
            low, high = (100 * bound for bound in point["wilson"])
            at = "none" if point["perturbation"] == "none" else f"{point['strength']:g}"
            points.append(f"{at}: {100 * point['successes'] / point['n']:.0f} ({low:.0f}-{high:.0f})")
        lines.append(f"{curve['world']:8s} {curve['perturbation']:27s} {curve['agent']:11s} {'  '.join(points)}")
    return "\n".join(lines)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["none", *STRENGTHS]
    parser.add_argument("--worlds", nargs="*", choices=WORLDS, default=list(WORLDS), help="only these worlds")
    parser.add_argument("--agents", nargs="*", choices=AGENTS, default=list(AGENTS), help="only these agents")
    parser.add_argument("--perturbations", nargs="*", choices=names, default=names, help="only these perturbations")
    parser.add_argument("--episodes", type=int, default=100, help="held-out episodes of every cell")
    parser.add_argument("--steps", type=int, default=None, help="optimizer steps instead of the recipe's, for a trial")
    cells.options(parser, "robustness")
    a = parser.parse_args()
    if a.restore:
        cells.restore(a.restore, a.cells, Cell)
    if not a.summary:
        chosen = [c for c in PLAN if c.world in a.worlds and c.agent in a.agents and c.perturbation in a.perturbations]
        cells.sweep(a.cells, chosen, partial(run_cell, folder=a.cells, episodes=a.episodes, steps=a.steps))
    result = summarize(a.cells)
    print(table(result))
    print(write("robustness", result, a.out, device="cpu", threads=1))


if __name__ == "__main__":
    main()
