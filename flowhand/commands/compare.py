"""Compares evaluations on the same start states: `flowhand compare RUN RUN ...`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from flowhand.evaluation.records import EpisodeRecord, read_records
from flowhand.evaluation.statistics import compare_paired, summarize
from flowhand.pages.comparison import HEAD, Compared, aligned, rows, write_comparison

RECORDS = "episodes.jsonl"


def compare(runs: list[str], margin: float) -> list[Compared]:
    """Every policy, and how it does beside the first one on the same tasks and seeds.

    Args:
        runs: a folder of an evaluation for each policy, or several of them, one for each task, with commas between.
        margin: largest loss in success rate that still counts as not worse.

    Raises:
        ValueError: fewer than two policies, a folder without records, or policies that ran other tasks or seeds.
    """
    if len(runs) < 2:
        raise ValueError(f"got {len(runs)} evaluation to compare, expected two or more folders")
    found = {run: episodes(run) for run in runs}
    (first, base), *_ = found.items()
    compared = []
    for run, mine in found.items():
        if mine.keys() != base.keys():
            odd = sorted(mine.keys() ^ base.keys())[0]
            raise ValueError(f"{run} and {first} ran other start states: only one has task {odd[0]}, seed {odd[1]}")
        tasks = sorted({task for task, _ in mine})
        pairs = [
            [[side[key].success for key in sorted(side) if key[0] == task] for task in tasks] for side in (mine, base)
        ]
        against = None if run == first else compare_paired(*pairs, margin=margin)
        compared.append(Compared(run, tasks, summarize(mine.values()), against))
    return compared


def episodes(run: str) -> dict[tuple[str, int], EpisodeRecord]:
    """The records of a policy by task and seed."""
    found: dict[tuple[str, int], EpisodeRecord] = {}
    for name in run.split(","):
        file = Path(name) / RECORDS
        if not file.is_file():
            raise ValueError(f"there is no {RECORDS} in {name}; give the folder that an evaluation wrote")
        for record in read_records(file):
            if (record.task, record.seed) in found:
                raise ValueError(f"{run} has task {record.task}, seed {record.seed} twice")
            found[record.task, record.seed] = record
    if not found:
        raise ValueError(f"{run} has no episodes")
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="flowhand compare", description=__doc__)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folder of an evaluation; several with commas: one policy"
    )
    parser.add_argument("--margin", type=float, default=0.02, help="largest loss that counts as not worse")
    parser.add_argument("--out", type=Path, default=Path("comparison.html"), help="page to write")
    arguments = parser.parse_args()
    try:
        compared = compare(arguments.runs, arguments.margin)
        print(*aligned([HEAD, *rows(compared)]), sep="\n")
        write_comparison(compared, arguments.out)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"page: {arguments.out}")
