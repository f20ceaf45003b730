"""Policies trained on recorded sets, judged on episodes that they did not see, beside four baselines.

    python -m benchmarks.recorded [--recipes regression flow] [--seed 0] [--steps N] [--keep FOLDER]

The sets lie where FLOWHAND_DATA says. Of the Unitree G1's 100 episodes 20 are held out, drawn by the seed. The recipes
were chosen on other splits than seed 0. Every run is one command of `train.py`, which is part of the result.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.result import write

G1 = "lerobot_v21_g1"
COMMON = [
    "env=none",
    "eval.episodes=0",
    "wandb.mode=disabled",
    "train.threads=1",
    "data.held_out=20",
    "data.previous_action=true",
    "action.representation=relative",
    "action.anchors=[previous_action]",
    "net.width=64",
    "encoder.width=64",
    "train.batch_size=128",
    "train.steps=600",
]
RECIPES = {"regression": ["head=regression", "head.error=absolute"], "flow": ["head=flow"]}
MOVES = 0.01  # in the units of the action: a dimension that moves more within a chunk has to be below the baselines
BARS = ("repeat the last action", "nearest neighbour")


def train(path: Path, words: list[str], out: Path) -> dict[str, Any]:
    """What held_out.json of one training says."""
    command = [sys.executable, "train.py", f"data.path={path}", *words, f"out={out}"]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
    return json.loads((out / "held_out.json").read_text())


def verdict(judged: dict[str, Any], policy: str) -> dict[str, Any]:
    """Where the policy is below the two baselines: in the mean, and in every dimension that moves."""
    methods = judged["methods"]
    moving = [i for i, moves in enumerate(judged["moves"]) if moves > MOVES]
    found: dict[str, Any] = {"moving_dimensions": len(moving)}
    for name in (each for each in methods if not each.startswith("policy")):
        gap = methods[name]["policy_minus_this"][policy]
        above = [judged["dimensions"][i] for i in moving if gap["dimensions"][i][0] >= 0]
        unsure = [judged["dimensions"][i] for i in moving if gap["dimensions"][i][0] < 0 <= gap["dimensions"][i][2]]
        found[name] = {"mean_difference_95": gap["mean"], "not_below": above, "below_but_not_sure": unsure}
    found["holds"] = all(found[name]["mean_difference_95"][0] < 0 and not found[name]["not_below"] for name in BARS)
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seed", type=int, default=0, help="of the draw of the held-out episodes")
    parser.add_argument("--steps", type=int, default=0, help="optimizer steps, instead of the recipe's")
    parser.add_argument("--keep", type=Path, help="folder for the runs")
    parser.add_argument("--out", type=Path, help="of the result, instead of benchmarks/results")
    options = parser.parse_args()
    if "FLOWHAND_DATA" not in os.environ:
        raise SystemExit("FLOWHAND_DATA names the folder of the recorded sets; it is not set")
    path, found = Path(os.environ["FLOWHAND_DATA"]) / G1, {}
    with tempfile.TemporaryDirectory() as temporary:
        for recipe in options.recipes:
            words = [*COMMON, *RECIPES[recipe], f"data.held_out_seed={options.seed}"]
            words += [f"train.steps={options.steps}"] if options.steps else []
            judged = train(path, words, (options.keep or Path(temporary)) / f"{G1}-{recipe}-{options.seed}")
            judged["command"] = " ".join(["python", "train.py", f"data.path={G1}", *words])
            policies = [name for name in judged["methods"] if name.startswith("policy")]
            found[recipe] = {"verdicts": {name: verdict(judged, name) for name in policies}, **judged}
            print(json.dumps(found[recipe]["verdicts"], indent=1))
    write("recorded", {"moves_more_than": MOVES, "recipes": found}, options.out, device="cpu", threads=1)


if __name__ == "__main__":
    main()
