"""Learning from corrections: an expert takes over from a policy, against as many and more fresh demonstrations.

    python -m benchmarks.takeover [--tasks T,T] [--seeds N] [--episodes N] [--work FOLDER] [--out FILE]

A policy is trained on 10 demonstrations. Three rounds follow: it acts in 10 episodes in which the world's expert takes
over after `--after` seconds, and goes on learning from its own checkpoint, with the corrected steps drawn `--weight`
times as often. Beside it policies are trained on 30 fresh demonstrations, which cost as many steps of an expert at
most, and on 50. All are judged on the same start states: the difference to 50 demonstrations, and whether it is as good
within 5 points. Every step is a command of flowhand; what is done is kept below --work, so that a
run which was stopped goes on.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.result import write
from flowhand.evaluation.records import read_records
from flowhand.evaluation.statistics import compare_paired, wilson

ROOT = Path(__file__).parents[1]
TASKS = ("pick-place-v3", "peg-insert-side-v3")
FIRST, ROUND, ROUNDS, FRESH = 10, 10, 3, (30, 50)
MARGIN = 0.05


@dataclass
class Trial:
    """One task and training seed."""

    task: str
    seed: int
    folder: Path
    options: argparse.Namespace

    def run(self, name: str, words: Sequence[str]) -> None:
        """Runs a command once; what it prints is kept."""
        done = self.folder / f"{name}.done"
        if done.exists():
            return
        print(self.folder.name, name, flush=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        log = self.folder / f"{name}.log"
        with log.open("w") as file:
            print(shlex.join(words), file=file, flush=True)
            code = subprocess.run(words, cwd=self.folder, env=environment, stdout=file, stderr=file).returncode
        if code:
            raise SystemExit(f"{name} failed with {code}; see {log}")
        done.touch()

    def record(self, name: str, data: str, episodes: int, *more: str) -> None:
        """Adds episodes to a set."""
        words = [sys.executable, "-m", "flowhand", "record", f"data.path={data}", "data.format=native", "health=false"]
        words += ["env=metaworld", f"env.task={self.task}", f"seed={self.seed * 10_000}"]
        self.run(name, [*words, f"episodes={episodes}", *more])

    def train(self, name: str, data: str, episodes: int, judged: bool, *more: str) -> None:
        """Trains on the first episodes of a set, and evaluates."""
        count = self.options.episodes if judged else 0
        words = [sys.executable, str(ROOT / "train.py"), "env=metaworld", f"env.task={self.task}", f"data.path={data}"]
        words += [f"data.episodes={episodes}", f"out={name}", f"seed={self.seed}", "train.threads=1"]
        words += [f"eval.episodes={count}", "eval.workers=inline", *shlex.split(self.options.train), *more]
        self.run(name, words)

    def corrected(self) -> str:
        """The rounds; the name of the last policy."""
        options = self.options
        self.record("demonstrations", "corrected_data", options.first)
        self.train("first", "corrected_data", options.first, True)
        before = "first"
        for number in range(1, options.rounds + 1):
            takes = ["takeover.by=expert", f"takeover.after_s={options.after}", f"checkpoint={before}"]
            self.record(f"corrections{number}", "corrected_data", options.round, *takes)
            count, name = options.first + number * options.round, f"round{number}"
            starts = [f"init={before}", f"data.intervention_weight={options.weight}"]
            self.train(name, "corrected_data", count, True, *starts)
            before = name
        return before

    def fresh(self, count: int) -> str:
        """A policy of fresh demonstrations; its name."""
        self.record(f"demonstrations{count}", f"fresh{count}_data", count)
        self.train(f"fresh{count}", f"fresh{count}_data", count, True)
        return f"fresh{count}"

    def outcome(self, name: str) -> list[Any]:
        """The records of a policy's episodes."""
        return read_records(self.folder / name / "episodes.jsonl")


def summary(trial: Trial, names: Sequence[str], best: str) -> dict[str, Any]:
    """Rates with their intervals, and each policy's difference to the best with its own."""
    found: dict[str, Any] = {"task": trial.task, "seed": trial.seed}
    against = [record.success for record in trial.outcome(best)]
    for name in names:
        ours = [record.success for record in trial.outcome(name)]
        low, high = wilson(sum(ours), len(ours))
        found[name] = {"successes": sum(ours), "n": len(ours), "interval": [low, high]}
        if name != best:
            found[name][f"minus_{best}"] = asdict(compare_paired([ours], [against], MARGIN))
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seeds", type=int, default=1, help="training seeds of each task")
    parser.add_argument("--episodes", type=int, default=400, help="judged, paired")
    parser.add_argument("--first", type=int, default=FIRST, help="demonstrations of the first policy")
    parser.add_argument("--round", type=int, default=ROUND, help="corrected episodes of a round")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--fresh", default=",".join(map(str, FRESH)), help="numbers of fresh demonstrations")
    parser.add_argument("--after", type=float, default=1.0, help="seconds after which the expert takes over")
    parser.add_argument("--weight", type=float, default=2.0, help="of a corrected step")
    parser.add_argument("--train", default="", help="further settings of every training")
    parser.add_argument("--work", type=Path, default=Path("outputs/takeover"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for task in options.tasks.split(","):
        for seed in range(options.seeds):
            folder = (options.work / f"{task}-{seed}").resolve()
            folder.mkdir(parents=True, exist_ok=True)
            trial = Trial(task, seed, folder, options)
            last = trial.corrected()
            fresh = [trial.fresh(int(count)) for count in options.fresh.split(",")]
            rounds = [f"round{number}" for number in range(1, options.rounds + 1)]
            rows.append(summary(trial, ["first", *rounds, *fresh], fresh[-1]))
            print(last, rows[-1], flush=True)
    settings = {name: value for name, value in vars(options).items() if name not in ("work", "out")}
    print(
        write("takeover", {"margin": MARGIN, "settings": settings, "rows": rows}, options.out, device="cpu", threads=1)
    )


if __name__ == "__main__":
    main()
