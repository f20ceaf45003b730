"""A sweep: its cells, each in a folder of its own below `out`, which of them are done, and the table that it ends with.

`out=FOLDER` with one value makes a sweep that can be started again: FOLDER/sweep.json lists the cells, whichever of
Hydra's launchers runs them, and a cell that is done is not run again. Without it every run says itself where it writes.
"""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode

from flowhand.contracts.argument import argument
from flowhand.contracts.durable import claimed, exists, write_whole

HEAD = ("success", "rate", "95 % interval", "expert", "folder")
VERBS = ("train", "eval")  # whose runs write a folder with metrics
PLAN, DONE, METRICS = "sweep.json", "cell.json", "metrics.json"
FREE = ("out", "resume", "wandb", "train.device", "train.threads", "train.timeout_s")  # may differ when started again
LONGEST = 150  # characters of a folder's name

results: list[tuple[dict[str, str], tuple[str, ...]]] = []  # of each run that was evaluated: its settings, and a row


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    settings: dict[str, str]  # those in which the runs differ
    folder: str  # its name below the sweep's


@dataclass(frozen=True)
class Sweep:
    """The runs that a sweep consists of."""

    verb: str
    fixed: list[str]  # settings that all runs share
    cells: list[Cell]

    @property
    def swept(self) -> list[str]:
        """The names of the settings in which the runs differ."""
        return list(self.cells[0].settings)


def planned(verb: str, words: Sequence[str]) -> tuple[Path, list[str]] | None:
    """Writes the list of the cells of the sweep that the command line asks for.

    Returns:
        The sweep's folder, and what Hydra must be told of it; None where there is no sweep with one folder.

    Raises:
        ValueError: the folder holds another sweep, or a launcher needs one and there is none.
    """
    settings = [word for word in words if "=" in word and not word.startswith("-")]
    if not {"-m", "--multirun"} & set(words) or any(word.startswith("hydra/sweeper=") for word in settings):
        return None
    own = [word for word in settings if not word.startswith("hydra")]
    parsed = OverridesParser.create().parse_overrides(own)
    swept = list(dict.fromkeys(each.get_key_element() for each in parsed if each.is_sweep_override()))
    out = [each for each in parsed if each.key_or_group == "out"]
    where = "" if not out or out[-1].is_sweep_override() else str(out[-1].value())
    if verb not in VERBS or not where or "${" in where or not swept:
        launchers = [word for word in settings if word.startswith("hydra/launcher=") and not word.endswith("=basic")]
        if launchers and verb in VERBS:
            raise ValueError(
                f"a sweep with {launchers[0]} needs one out=FOLDER, below which each run has its own folder"
            )
        return None
    folder, jobs = Path(where).absolute(), BasicSweeper.split_arguments(parsed, None)[0]
    cells = _named([{name: value for name, value in map(_split, job) if name in swept} for job in jobs])
    fixed = sorted(word for word in jobs[0] if _split(word)[0] not in swept and not _is_free(_split(word)[0]))
    _write(folder, Sweep(verb, fixed, cells))
    return folder, [*shlex.split(argument("hydra.sweep.dir", folder)), "hydra.sweep.subdir=."]


def _split(word: str) -> tuple[str, str]:
    name, _, value = word.partition("=")
    return name, value


def _is_free(name: str) -> bool:
    return any(name.lstrip("+") == free or name.lstrip("+").startswith(f"{free}.") for free in FREE)


def _named(cells: Sequence[dict[str, str]]) -> list[Cell]:
    """Folders named after the settings, or numbered where such a name is too long or not its own."""
    names = [re.sub(r"[^\w.,=+-]+", "_", ",".join(f"{k}={v}" for k, v in cell.items())) for cell in cells]
    plain = len(set(names)) == len(names) and max(map(len, names)) <= LONGEST
    return [
        Cell(cell, name if plain else f"{at:04d}") for at, (cell, name) in enumerate(zip(cells, names, strict=True))
    ]


def _write(folder: Path, sweep: Sweep) -> None:
    """Writes the list, to which cells that are there already belong; a sweep can grow by values, not change."""
    cells = sweep.cells
    if exists(folder / PLAN):
        before = read(folder)
        same = (before.verb, before.swept, before.fixed) == (sweep.verb, sweep.swept, sweep.fixed)
        if not same:
            was = shlex.join(["flowhand", before.verb, *before.fixed, *(f"{name}=..." for name in before.swept)])
            raise ValueError(f"{folder} holds another sweep ({was}); choose another folder with out=")
        cells = _merged(before.cells, cells)
    elif exists(folder / "checkpoint"):
        raise ValueError(f"{folder} holds a run, which is no sweep; choose another folder with out=")
    write_whole(folder / PLAN, (json.dumps(asdict(Sweep(sweep.verb, sweep.fixed, cells)), indent=1) + "\n").encode())


def _merged(before: Sequence[Cell], now: Sequence[Cell]) -> list[Cell]:
    known = [cell.settings for cell in before]
    return [*before, *_named([*known, *(cell.settings for cell in now if cell.settings not in known)])[len(known) :]]


def read(folder: Path) -> Sweep:
    """The list of a sweep's cells; `ValueError` where there is none."""
    try:
        found = json.loads((folder / PLAN).read_bytes())
        cells = [Cell(dict(cell["settings"]), str(cell["folder"])) for cell in found["cells"]]
        sweep = Sweep(str(found["verb"]), list(found["fixed"]), cells)
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        raise ValueError(f"{folder} has no list of the cells of a sweep ({PLAN})") from error
    if not cells or any(Path(cell.folder).name != cell.folder or cell.folder in ("", "..") for cell in cells):
        raise ValueError(f"{folder / PLAN} names no cells, or some outside of its folder")
    return sweep


def is_done(folder: Path) -> bool:
    """Whether the run in this folder has come to its end."""
    return (folder / DONE).is_file()


def missing(folder: Path) -> list[Cell]:
    """The cells of a sweep that are not done."""
    return [cell for cell in read(folder).cells if not is_done(folder / cell.folder)]


def _cell() -> tuple[Path, Cell] | None:
    """The folder of the sweep with a list that this run belongs to, and its cell."""
    if not (HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN):
        return None
    folder = Path(str(HydraConfig.get().sweep.dir))
    if not (folder / PLAN).is_file():
        return None
    mine, sweep = dict(map(_split, HydraConfig.get().overrides.task)), read(folder)
    settings = {name: mine.get(name, "") for name in sweep.swept}
    return next(((folder, cell) for cell in sweep.cells if cell.settings == settings), None)


def cell_folder() -> str:
    """Where this run writes, if it is a cell of a sweep with a list; else empty."""
    found = _cell()
    return str(found[0] / found[1].folder) if found else ""


@contextmanager
def turn() -> Iterator[bool]:
    """Gives whether this run is to be done, as a finished cell is not; waits for a process that does the same."""
    found = _cell()
    if found is None:
        yield True
        return
    folder = found[0] / found[1].folder
    with _waited(folder.with_name(f"{folder.name}.running")):
        yield not is_done(folder)


@contextmanager
def _waited(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, which the system takes from a process that dies."""
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(claimed(folder))
                break
            except ValueError:  # another process holds it
                time.sleep(0.5)
        yield


def end() -> None:
    """Notes that this run has come to its end, where it is a cell of a sweep with a list."""
    found = _cell()
    if found is not None:
        text = json.dumps({"settings": found[1].settings}, indent=1)
        write_whole(found[0] / found[1].folder / DONE, f"{text}\n".encode())


def command_line() -> str:
    """The command that this run is, as it could be typed again; empty outside of a verb."""
    if not HydraConfig.initialized():
        return ""
    words = [word for word in HydraConfig.get().overrides.task if word]
    return shlex.join(["flowhand", str(HydraConfig.get().job.config_name), *words])


def note(metrics: dict[str, Any], out: Path) -> None:
    """Keeps what an evaluation came to, where it is part of a sweep."""
    if not (HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN):
        return
    settings = dict(word.lstrip("+").split("=", 1) for word in HydraConfig.get().overrides.task if "=" in word)
    results.append((settings, row(metrics, out)))


def row(metrics: Mapping[str, Any], out: Path) -> tuple[str, ...]:
    """What an evaluation came to, under `HEAD`."""
    expert = "" if metrics["expert_rate"] is None else f"{metrics['expert_rate']:.1%}"
    interval = f"{metrics['wilson_low']:.1%} to {metrics['wilson_high']:.1%}"
    return (f"{metrics['successes']}/{metrics['n']}", f"{metrics['rate']:.1%}", interval, expert, str(out))


def table(folder: Path | None = None) -> list[str]:
    """A line for each run: the settings in which the runs differ, and what they came to; none for a single run."""
    found = results if folder is None else _found(folder)
    if len(found) < 2:
        return []
    from flowhand.pages.comparison import aligned

    names = list(dict.fromkeys(name for settings, _ in found for name in settings))
    names = [name for name in names if len({settings.get(name) for settings, _ in found}) > 1]
    rows = [(*(settings.get(name, "") for name in names), *row) for settings, row in found]
    return aligned([(*names, *HEAD), *rows])


def _found(folder: Path) -> list[tuple[dict[str, str], tuple[str, ...]]]:
    """The same of a sweep with a list, whichever process ran its cells."""
    places = [(cell, folder / cell.folder) for cell in read(folder).cells]
    return [
        (cell.settings, row(json.loads((place / METRICS).read_bytes()), place))
        for cell, place in places
        if is_done(place) and (place / METRICS).is_file()
    ]
