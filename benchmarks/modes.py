"""Two right answers: flow and regression on detour, by success and by which way was taken.

    python -m benchmarks.modes [--episodes N]

Each policy is evaluated at two execution horizons: deciding anew every 2 steps, feedback may break the tie that a mean
of both ways leaves; executing 8 steps blindly, it cannot.
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks import cells
from benchmarks.heads import ARMS, modes
from benchmarks.result import write
from flowhand.commands import eval as evaluation
from flowhand.evaluation.statistics import summarize


def measure(arm: str, episodes: int) -> list[dict[str, Any]]:
    """One trained head with each of its sampler settings at both execution horizons."""
    overrides, samplers = ARMS[arm]
    config = cells.configure(["env=detour", "data.noise=0.02", *overrides], episodes)
    trainer, about = cells.learn(config)
    rows = []
    for name, fields in samplers.items():
        policy = trainer.ema.module.with_head(**fields)
        for horizon in (2, 8):
            config.execution.execution_horizon = horizon
            records = evaluation.evaluate(policy, config.env, config.eval, config.execution)
            told = {"name": name, "execution_horizon": horizon, "modes": modes(records)}
            rows.append({**told, **vars(summarize(records)), **cells.outcomes(records), **about})
            print(f"{name:12s} executes {horizon}: {rows[-1]['successes']}/{episodes} {told['modes']}", flush=True)
    return rows


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=100, help="held-out episodes of each setting")
    arguments = parser.parse_args()
    rows = [row for arm in ("flow", "regression") for row in measure(arm, arguments.episodes)]
    print(write("modes", {"cells": rows}, device="cpu", threads=1))


if __name__ == "__main__":
    main()
