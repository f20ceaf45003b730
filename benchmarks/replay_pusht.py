"""The 206 human episodes of Push-T, played again in gym-pusht: where each of them parts from the record.

    FLOWHAND_DATA=FOLDER python -m benchmarks.replay_pusht [--episodes N] [--out FILE]

FOLDER holds `pusht_human_zarr` (Chi et al. 2023). Each episode begins as it did in its recorder (`envs.pusht`,
`begin_at`), and takes the recorded actions. The state reached (disc x, y, block x, y in px, angle in rad) is rounded to
float32, as the record is, and subtracted: float32 has steps of 0.00003 between 256 and 512 px, so that smaller numbers
than these are no difference there.
"""

from __future__ import annotations

import argparse
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

import envs
from benchmarks.result import write
from flowhand.commands.replay import Replayed
from flowhand.commands.replay.session import in_world
from flowhand.demos.formats import open_dataset

TOLERANCES = (1e-4, 1e-2, 1.0)  # px, and rad


def row(number: int, length: int, result: Replayed) -> dict[str, Any]:
    """What an episode came to."""
    differences = result.errors["state"]
    parts = {f"{t:g}": _first(differences, result.compared, t) for t in TOLERANCES}
    return {
        "episode": number,
        "steps": length,
        "first_error": result.first_error,
        "largest": result.largest,
        "last": float(differences[-1].max()),
        "parts_at": parts,
    }


def _first(differences: np.ndarray, steps: list[int], tolerance: float) -> int | None:
    rows = np.flatnonzero(differences.max(1) > tolerance)
    return steps[int(rows[0])] if len(rows) else None


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=0, help="the first ones; 0: all")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    folder = Path(os.environ["FLOWHAND_DATA"]) / "pusht_human_zarr" / "pusht_cchi_v7_replay.zarr"
    data = open_dataset(folder)
    count = options.episodes or len(data)
    rows = []
    with closing(envs.make(envs.PushTConfig(max_steps=10**6))) as world:
        states = data.select(["state"])  # pyright: ignore[reportAttributeAccessIssue]
        for number in range(count):
            episode = states.read(number)
            rows.append(row(number, len(episode), in_world(world, episode, states.spec, None)))
            print(rows[-1], flush=True)
        version = world.version
    firsts = np.array([each["first_error"] for each in rows])
    parted = {f"{t:g}": sum(each["parts_at"][f"{t:g}"] is not None for each in rows) for t in TOLERANCES}
    content = {
        "simulator": version,
        "episodes": count,
        "steps": sum(each["steps"] for each in rows),
        "first_error": float(firsts.max()),
        "first_step_equal": int((firsts == 0).sum()),
        "parted": parted,
        "whole_episodes_below_0.0001": count - parted["0.0001"],
        "table": rows,
    }
    path = write("replay_pusht", content, options.out, device="cpu", threads=1)
    print({name: value for name, value in content.items() if name != "table"}, path)


if __name__ == "__main__":
    main()
