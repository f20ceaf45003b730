"""How often the script solves so101, how long that takes, and what a step costs.

python -m benchmarks.so101 [--episodes 200]
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import numpy as np

import envs
from benchmarks.result import write
from flowhand.evaluation.rollout import rollout
from flowhand.evaluation.statistics import wilson

FIRST = 1_000_000


def main() -> None:
    """Writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=200)
    options = parser.parse_args()
    world = envs.SO101Config(observes="state")
    began = time.perf_counter()
    records = rollout(partial(envs.make, world), "expert", range(FIRST, FIRST + options.episodes))
    seconds = time.perf_counter() - began
    solved = sum(record.success for record in records)
    steps = [record.steps for record in records]
    content = {
        "expert": {"solved": solved, "episodes": len(records), "wilson_95": wilson(solved, len(records))},
        "steps": {"mean": float(np.mean(steps)), "p95": float(np.percentile(steps, 95)), "seconds_all": seconds},
        "step_ms": {name: step_ms(config) for name, config in (("state", world), ("pixels_96", envs.SO101Config()))},
    }
    path = write("so101", content, device="cpu", threads=1)
    print(f"{solved} of {len(records)} solved, {content['steps']}, {content['step_ms']}; {path}")


def step_ms(config: envs.SO101Config, steps: int = 100) -> float:
    """Time of a control step with its observation, in ms."""
    env = envs.make(config)
    _, info = env.reset(seed=0)
    assert env.expert is not None
    began = time.perf_counter()
    for _ in range(steps):
        *_, info = env.step(env.expert(info["expert_observation"]))
    env.close()
    return 1e3 * (time.perf_counter() - began) / steps


if __name__ == "__main__":
    main()
