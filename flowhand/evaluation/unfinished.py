"""The episodes of an evaluation that is not finished: written as they end, and taken up by the same evaluation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flowhand.contracts.durable import write_whole
from flowhand.contracts.observers import EpisodeEnds, Observer

from .lanes import MakeEnv
from .records import EpisodeRecord, RecordWriter, parse_records
from .rollout import Agent, rollout

NAMES = ("episodes.unfinished.jsonl", "expert.unfinished.jsonl")


class Unfinished(Observer):
    """A JSON-lines file whose first line says of what evaluation the records are; given to a rollout it keeps its own.

    Args:
        path: the file.
        fingerprint: of everything that an outcome depends on beside its seed; records with another one are discarded.
    """

    essential = True  # an evaluation must not go on whose records are lost

    def __init__(self, path: Path, fingerprint: str):
        self.path, self.fingerprint = path, fingerprint
        self.records: dict[int, EpisodeRecord] = {}  # by seed
        self.discarded = 0  # records of another evaluation
        self._take_up()

    def _take_up(self) -> None:
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.is_file() else []
        whole = [line for line in lines if line.endswith(b"\n")]  # a kill may have torn the last one
        head = json.dumps({"fingerprint": self.fingerprint}).encode() + b"\n"
        if whole[:1] != [head]:
            self.discarded, whole = len(whole[1:]), [head]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, b"".join(whole))
        self.records = {record.seed: record for record in parse_records(whole[1:], self.path)}
        self._writer = RecordWriter(self.path)

    def episode_ends(self, event: EpisodeEnds) -> None:
        """Keeps its record."""
        self.write(event.record)

    def write(self, record: EpisodeRecord) -> None:
        """Keeps a record, also if the process is killed right after."""
        self._writer.write(record)
        self.records[record.seed] = record

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()


@contextmanager
def unfinished(folder: Path, fingerprint: str) -> Iterator[tuple[Unfinished, Unfinished]]:
    """What is kept of the policy's and of the expert's episodes; says in a line what is taken up or discarded."""
    with closing(Unfinished(folder / NAMES[0], fingerprint)) as of_policy:  # noqa: SIM117
        with closing(Unfinished(folder / NAMES[1], fingerprint)) as of_expert:
            if kept := len(of_policy.records) + len(of_expert.records):
                print(f"{folder}: {kept} episodes of this evaluation are there already")  # noqa: T201
            if discarded := of_policy.discarded + of_expert.discarded:
                print(f"{folder}: {discarded} episodes of another unfinished evaluation are discarded")  # noqa: T201
            yield of_policy, of_expert


def discard_unfinished(folder: Path) -> None:
    """Removes what was kept, once the results are written."""
    for name in NAMES:
        (folder / name).unlink(missing_ok=True)


def completed(
    kept: Unfinished | None,
    seeds: Sequence[int],
    make_env: MakeEnv,
    agent: Agent | Literal["expert"],
    lanes: dict,
    observers: Sequence[Observer] = (),
) -> list[EpisodeRecord]:
    """The records of the seeds, in their order: those that are kept already, and the others, kept as they end.

    `lanes` are options of `rollout`; `observers` watch the others.
    """
    records = dict(kept.records) if kept else {}
    if left := [seed for seed in seeds if seed not in records]:
        watching = [*([kept] if kept else []), *observers]
        run = rollout(make_env, agent, left, progress=True, observers=watching, **lanes)
        records |= {record.seed: record for record in run}
    return [records[seed] for seed in seeds]


def fingerprint(about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of settings and arrays."""
    content = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for name, array in arrays.items():
        content.update(f"{name} {array.dtype.str} {array.shape}".encode() + array.tobytes())
    return content.hexdigest()
