"""Compares evaluations on the same start states: `flowhand compare RUN RUN ...`, or the cells of a sweep: `SWEEP`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from conf import sweep as sweeps
from flowhand.evaluation.records import EpisodeRecord, read_records
from flowhand.evaluation.statistics import PairedComparison, compare_paired, holm, summarize
from flowhand.pages import sweep as sweep_page
from flowhand.pages.comparison import HEAD, Compared, aligned, rows, write_comparison
from flowhand.pages.sweep import Group, write_sweep

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


def compare_cells(folder: Path, margin: float, against: str = "") -> tuple[list[Group], str, list[str]]:
    """The groups of a sweep's cells that differ in more than the seed, beside one of them.

    Args:
        folder: of the sweep.
        margin: largest loss in success rate that still counts as not worse.
        against: settings of the group that the others are compared with, `name=value` with commas; empty: the first.

    Returns:
        The groups, the name of the one that is compared with, and the cells that have no result.

    Raises:
        ValueError: there is no such group, or cells of one seed ran other start states.
    """
    plan = sweeps.read(folder)
    grouped: dict[tuple[tuple[str, str], ...], dict[str, sweeps.Cell]] = {}
    for cell in plan.cells:
        settings = tuple((name, value) for name, value in cell.settings.items() if name != "seed")
        grouped.setdefault(settings, {})[cell.settings.get("seed", "")] = cell
    found = {
        settings: {
            seed: episodes(str(place)) for seed, cell in cells.items() if _has_result(place := folder / cell.folder)
        }
        for settings, cells in grouped.items()
    }
    wanted = {(name, value) for name, _, value in (word.partition("=") for word in against.split(",") if word)}
    first = next((each for each in grouped if wanted <= set(each)), None)
    if first is None:
        raise ValueError(f"--against {against} is no group of {folder}; groups: {_names(grouped)}")
    groups = [_group(dict(each), len(grouped[each]), found[each]) for each in grouped]
    tested = {
        at: _paired(found[each], found[first], margin, folder)
        for at, each in enumerate(grouped)
        if each != first and found[each].keys() & found[first].keys()
    }
    for (at, one), p in zip(tested.items(), holm([one.mcnemar_p for one in tested.values()]), strict=True):
        groups[at] = replace(groups[at], against=one, corrected_p=p)
    reference = groups[list(grouped).index(first)].name
    return groups, reference, [cell.folder for cell in plan.cells if not _has_result(folder / cell.folder)]


def _has_result(place: Path) -> bool:
    return sweeps.is_done(place) and (place / RECORDS).is_file()


def _names(groups: Iterable[tuple[tuple[str, str], ...]]) -> str:
    return "; ".join(",".join(f"{name}={value}" for name, value in settings) for settings in groups)


Records = dict[tuple[str, int], EpisodeRecord]  # of a policy, by task and seed


def _group(settings: dict[str, str], planned: int, found: dict[str, Records]) -> Group:
    rates = {seed: summarize(records.values()).rate for seed, records in found.items()}
    outcomes = [record.success for records in found.values() for record in records.values()]
    return Group(settings, planned, rates, sum(outcomes), len(outcomes))


def _paired(mine: dict[str, Records], base: dict[str, Records], margin: float, folder: Path) -> PairedComparison:
    """All pairs of the seeds that both have, a stratum for each seed and task."""
    strata: list[list[list[bool]]] = [[], []]
    for seed in sorted(mine.keys() & base.keys()):
        if mine[seed].keys() != base[seed].keys():
            raise ValueError(f"cells of {folder} with seed={seed} ran other start states; they cannot be compared")
        for task in sorted({task for task, _ in mine[seed]}):
            for side, records in zip(strata, (mine[seed], base[seed]), strict=True):
                side.append([records[key].success for key in sorted(records) if key[0] == task])
    return compare_paired(*strata, margin=margin)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="flowhand compare", description=__doc__)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folder of an evaluation, several with commas: one policy; or of a sweep"
    )
    parser.add_argument("--margin", type=float, default=0.02, help="largest loss that counts as not worse")
    parser.add_argument("--against", default="", help="of a sweep: settings of the group to compare with; head=flow")
    parser.add_argument("--out", type=Path, default=Path("comparison.html"), help="page to write")
    arguments = parser.parse_args()
    try:
        if len(arguments.runs) == 1 and (Path(arguments.runs[0]) / sweeps.PLAN).is_file():
            show_sweep(Path(arguments.runs[0]), arguments.margin, arguments.against, arguments.out)
            return
        compared = compare(arguments.runs, arguments.margin)
        print(*aligned([HEAD, *rows(compared)]), sep="\n")
        write_comparison(compared, arguments.out)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"page: {arguments.out}")


def show_sweep(folder: Path, margin: float, against: str, out: Path) -> None:
    """Prints the joint table of a sweep and what is missing, and writes the page."""
    groups, reference, missing = compare_cells(folder, margin, against)
    lines = [(*groups[0].settings, *sweep_page.HEAD), *sweep_page.rows(groups)]
    print(*aligned(lines), sep="\n")
    print(f"differences are to {reference}; cells without a result: {', '.join(missing) or 'none'}")
    write_sweep(groups, reference, missing, out)
    print(f"page: {out}")
