"""Runs the steps of the GPU kit, each in a process with a time limit, and judges what they found. See README.md.

    python -m benchmarks.gpu.kit --out FOLDER [--dry-run] [--only STEP ...] [--seconds S]

Every step writes FOLDER/<step>.json as it goes. A step that has finished is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TOTAL_S = 480.0
LIMITS_S = {  # in the order of what is wanted most
    "machine": 40.0,
    "decisions": 200.0,
    "training": 150.0,
    "parity": 60.0,
    "processes": 100.0,
    "task": 120.0,
    "tests": 150.0,
    "many_tasks": 420.0,
}
ALONE = ("many_tasks",)  # a command of its own, for it takes as long as all others
DRY_LIMIT_S = 1800.0  # of a step: a dry run is not in a hurry
Found = dict[str, Any]


def load(file: Path) -> Found:
    """What a step has found so far; nothing where it has not begun."""
    return json.loads(file.read_text()) if file.is_file() else {}


def store(file: Path, found: Found) -> None:
    """Writes a file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".tmp-new")
    new.write_text(json.dumps(found, indent=1) + "\n")
    new.replace(file)


def run_step(command: list[str], file: Path, limit_s: float) -> Found:
    """Runs a step in a process group of its own, and notes how it ended beside what it found."""
    start = time.monotonic()
    process = subprocess.Popen([*command, str(file)], start_new_session=True)
    try:
        status = "finished" if process.wait(limit_s) == 0 else f"failed with exit status {process.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        status = f"stopped after its limit of {limit_s:.0f} s"
    found = {**load(file), "status": status, "seconds": round(time.monotonic() - start, 1)}
    store(file, found)
    return found


def judge(folder: Path) -> Found:
    """The wanted figures beside the measured ones; `met` is None where there is nothing to judge."""
    decisions = load(folder / "decisions.json").get("cells", {})
    one = decisions.get("transformer-20m 1", {}).get("programs", {})
    many = decisions.get("transformer-20m 4096", {}).get("programs", {})
    captured = [speed["p99_ms"] for name, speed in one.items() if name in ("captured-fp32", "captured-bf16")]
    share = many.get("captured-bf16", {}).get("share_of_matmul_rate")
    step = load(folder / "training.json").get("captured_step", {}).get("over_matmul_time")
    differs = load(folder / "processes.json").get("weights_differ_by", {})
    parity, tests = load(folder / "parity.json").get("all_within"), load(folder / "tests.json").get("failures")
    return {
        "transformer of 20 M parameters, batch 1, K = 10: p99 below 1 ms": _judged(
            min(captured, default=None), below=1.0
        ),
        "the same at batch 4,096: at least .4 of the bf16 matmul rate": _judged(share, at_least=0.4),
        "one captured training step of the demo's policy: at most 3 times its matmul time": _judged(step, below=3.0),
        "two processes on the card have the weights of one: to 1e-5": _judged(
            max(differs.values(), default=None), below=1e-5
        ),
        "losses and samples are those of the CPU": {"value": parity, "met": parity},
        "failures of the CUDA tests: none": {"value": tests, "met": None if tests is None else tests == 0},
    }


def _judged(value: float | None, below: float = float("inf"), at_least: float = 0.0) -> Found:
    return {"value": value, "met": None if value is None else at_least <= value <= below}


def main() -> None:
    """Entry point; exit status 1 if a step did not finish or a wanted figure is not met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with tiny sizes; its numbers mean nothing")
    parser.add_argument("--only", nargs="+", choices=LIMITS_S, default=[])
    parser.add_argument("--seconds", type=float, default=TOTAL_S, help="for all steps together")
    arguments = parser.parse_args()
    names = arguments.only or [name for name in LIMITS_S if arguments.dry_run or name not in ALONE]
    end = time.monotonic() + (arguments.seconds if not arguments.dry_run else DRY_LIMIT_S * len(LIMITS_S))
    statuses: dict[str, str] = {}
    for name in names:
        file, left_s = arguments.out / f"{name}.json", end - time.monotonic()
        if load(file).get("status") == "finished":
            statuses[name] = "finished earlier"
        elif left_s < 10:
            statuses[name] = "not begun, the time is over"
        else:
            command = [sys.executable, "-m", "benchmarks.gpu.steps", name, *(["--dry-run"] * arguments.dry_run)]
            limit_s = DRY_LIMIT_S if arguments.dry_run else min(LIMITS_S[name], left_s)
            found = run_step(command, file, limit_s)
            statuses[name] = f"{found['status']} ({found['seconds']} s)"
        print(f"{name}: {statuses[name]}", flush=True)
        summary = {"dry_run": arguments.dry_run, "steps": statuses, "wanted": judge(arguments.out)}
        store(arguments.out / "summary.json", summary)
    for what, found in judge(arguments.out).items():
        print(f"{ {True: 'met', False: 'NOT MET', None: 'not measured'}[found['met']] }: {what}: {found['value']}")
    missed = [what for what, found in judge(arguments.out).items() if found["met"] is False and not arguments.dry_run]
    sys.exit(1 if missed or not all(status.startswith("finished") for status in statuses.values()) else 0)


if __name__ == "__main__":
    main()
