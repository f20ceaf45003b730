"""What happened in each evaluation episode, one line of JSON per episode."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO


@dataclass(frozen=True)
class EpisodeRecord:
    """The outcome of one episode."""

    task: str  # name of the task
    seed: int  # fixes the start state and the goal
    success: bool  # at any step
    final_success: bool  # at the last step
    failure: str  # kind of failure in words; empty if there was success at any step
    mode: str  # which way it was done, where the world tells ways apart; empty elsewhere
    first_success_step: int | None  # number of steps after which success was first seen, None if never
    steps: int  # control steps taken
    return_: float  # sum of the rewards
    wall_s: float  # seconds from reset to the last step, other lanes' work included
    perturbation: str = ""  # what disturbed the world (envs/perturb.py); empty if nothing did
    solved_before: bool = False  # the world said at reset that the task was solved: no action of the policy's did it
    score: float | None = None  # the largest of the episode's steps; None where the world gives none


class RecordWriter:
    """Appends records to a JSON-lines file; each line is flushed, so a killed run keeps what it has finished."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = self.path.open("a", encoding="utf-8")

    def write(self, record: EpisodeRecord) -> None:
        """Append one record.

        Raises:
            ValueError: it is not as `read_records` wants it; nothing is written then.
        """
        where = f"the record of seed {record.seed}"
        try:
            line = json.dumps(dataclasses.asdict(record), allow_nan=False)
        except TypeError as error:
            raise ValueError(f"{where}: {error}") from error
        _parse(line, where)
        self._file.write(line + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def lines(records: Iterable[EpisodeRecord]) -> bytes:
    """The records as JSON lines."""
    return "".join(json.dumps(dataclasses.asdict(record), allow_nan=False) + "\n" for record in records).encode()


def write_records(path: str | Path, records: Iterable[EpisodeRecord]) -> None:
    """Append the records to a JSON-lines file."""
    with RecordWriter(path) as writer:
        for record in records:
            writer.write(record)


def read_records(path: str | Path) -> list[EpisodeRecord]:
    """Read a JSON-lines file.

    Raises:
        ValueError: a line is not a record; the message names the file and the line.
    """
    return parse_records(Path(path).read_bytes().splitlines(), path)


def parse_records(lines: Iterable[bytes], path: str | Path) -> list[EpisodeRecord]:
    """The records of the lines of a file; errors as `read_records` raises them."""
    return [_parse(line.decode(), f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


_KINDS: dict[str, Sequence[type]] = {
    "task": (str,),
    "seed": (int,),
    "success": (bool,),
    "final_success": (bool,),
    "failure": (str,),
    "mode": (str,),
    "first_success_step": (int, type(None)),
    "steps": (int,),
    "return_": (float, int),
    "wall_s": (float, int),
    "perturbation": (str,),
    "solved_before": (bool,),
    "score": (float, int, type(None)),
}
_BEFORE: dict[str, Any] = {
    "perturbation": "",
    "solved_before": False,
    "score": None,
}  # what the absence of later fields means in older files


def _parse(line: str, where: str) -> EpisodeRecord:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error}); was the writer killed in the middle of the line?") from error
    fields = _BEFORE | fields if isinstance(fields, dict) else fields
    if not isinstance(fields, dict) or fields.keys() != _KINDS.keys():
        raise ValueError(f"{where}: got {line[:200]!r}, expected an object with exactly the keys {', '.join(_KINDS)}")
    for name, kinds in _KINDS.items():
        # bool is an int to isinstance, so compare the types themselves.
        if type(fields[name]) not in kinds:
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"{where}: {name} is {fields[name]!r}, expected {expected}")
    record = EpisodeRecord(**fields)
    _check_consistent(record, where)
    return record


def _check_consistent(record: EpisodeRecord, where: str) -> None:
    first = record.first_success_step
    if not (math.isfinite(record.return_) and math.isfinite(record.wall_s)):
        raise ValueError(f"{where}: return_ and wall_s must be finite, got {record.return_} and {record.wall_s}")
    if record.score is not None and not math.isfinite(record.score):
        raise ValueError(f"{where}: score must be finite or null, got {record.score}")
    if record.success != (first is not None) or (record.final_success and not record.success):
        raise ValueError(
            f"{where}: success={record.success}, final_success={record.final_success} and "
            f"first_success_step={first} contradict each other"
        )
    if record.success == bool(record.failure):
        raise ValueError(f"{where}: success={record.success} and failure={record.failure!r} disagree")
    if first is not None and not 1 <= first <= record.steps:
        raise ValueError(f"{where}: first_success_step is {first}, expected 1 to steps={record.steps}")
