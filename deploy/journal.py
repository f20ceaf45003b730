"""The journal of a run: a JSON header, then one record of fixed size per control step. Numpy only, no pickle.

    8 bytes      MAGIC
    4 bytes      length of the header, little-endian
    header       JSON: what ran, and the layout of a record (names, formats, shapes)
    records      little-endian, each ending in the CRC-32 of what is before it

A record is handed to the system in one write as soon as its step is over. So a killed process loses at most the record
that it was writing; what the machine's own failure loses, the system decides. A reader stops before the first record
that is cut short or damaged.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = b"FLOWHAND"
FORMAT_VERSION = 1
MAX_HEADER_BYTES = 2**24
MESSAGE_BYTES = 160
FORMAT = re.compile(r"[<|]?[biufS][0-9]{1,6}")
# Times are nanoseconds of the monotonic clock, 0 where it did not happen.
FIELDS: tuple[tuple[str, str], ...] = (
    ("step", "<i8"),  # control step of the episode
    ("episode", "<i4"),  # since the journal began
    ("late", "u1"),  # 1: the answer of an earlier step, which came too late to be sent
    ("restarted", "u1"),  # 1: the policy was reset before it was asked
    ("seed", "<u4"),  # with this seed
    ("due_ns", "<i8"),  # when the step should have begun
    ("woke_ns", "<i8"),  # when it did
    ("observed_ns", "<i8"),  # when the observation was there
    ("decided_ns", "<i8"),  # when the policy had answered
    ("sent_ns", "<i8"),  # when the robot had taken the command
    ("asked", "u1"),  # 1: the policy answered
    ("started", "u1"),  # 1: the command that the robot held before the episode is known, `start`
    ("acted", "u1"),  # 1: the policy answered with a command, `action`
    ("told", "u1"),  # 1: there is a command for the robot, `safe`
    ("sent", "u1"),  # 1: the robot has taken it, if there is one
    ("arrived", "u1"),  # 1: a decision that was computed beside the control was there at this step
    ("chunk_start", "u1"),  # 1: the first action of a chunk
    ("observation_age_s", "<f8"),
    ("chunk_age_s", "<f8"),
    ("refused", "u1"),  # index into the header's `refusals`
)
FLAGS = {"started": "start", "acted": "action", "told": "safe"}  # of commands that may be missing


def layout(observation: Mapping[str, Any], actions: int) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name, format and shape of every field, for the features of an observation and this many action dimensions."""
    fields = [(name, form, ()) for name, form in FIELDS]
    fields += [(f"observation.{n}", np.dtype(f.dtype).newbyteorder("<").str, f.shape) for n, f in observation.items()]
    fields += [(name, "<f8", (actions,)) for name in FLAGS.values()]
    return [*fields, ("clamps", "<u2", (actions,)), ("message", f"S{MESSAGE_BYTES}", ()), ("crc", "<u4", ())]


class Journal:
    """Writes a run's journal; the file must not exist yet.

    Args:
        path: of the file; its folder is made.
        observation: the features of the observation (`policies.Spec.observation`).
        actions: number of action dimensions, A.
        about: goes into the header: JSON values only.
        refusals: the reasons that `refused` counts through; the first one is "".
        clamps: the reasons that the bits of `clamps` stand for.
    """

    def __init__(
        self,
        path: str | Path,
        observation: Mapping[str, Any],
        actions: int,
        about: Mapping[str, Any],
        refusals: Sequence[str],
        clamps: Sequence[str],
    ):
        fields = layout(observation, actions)
        self.path = Path(path)
        self._blank = np.zeros((), np.dtype(fields))
        self._clamps = list(clamps)
        content = {"format_version": FORMAT_VERSION, "record": fields, "refusals": refusals, "clamps": self._clamps}
        header = json.dumps({**content, **about}).encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self._write(MAGIC + len(header).to_bytes(4, "little") + header)
        os.fsync(self._file)

    def append(self, values: Mapping[str, Any], clamps: Mapping[str, Sequence[int]], message: str) -> None:
        """Writes a record.

        Args:
            values: of fields, by their names; missing ones are zero, and those that FLAGS names may be None.
            clamps: reason -> dimensions.
            message: errors and alarms in words; cut to what fits.
        """
        record = self._blank.copy()
        for name, value in values.items():
            if value is not None:
                record[name] = value
        for flag, name in FLAGS.items():
            record[flag] = values.get(name) is not None
        for reason, dimensions in clamps.items():
            record["clamps"][list(dimensions)] |= 1 << self._clamps.index(reason)
        record["message"] = message.encode()[:MESSAGE_BYTES]
        record["crc"] = zlib.crc32(record.tobytes()[:-4])
        self._write(record.tobytes())

    def close(self) -> None:
        """Forces everything to the disk and closes the file; a second call does nothing."""
        if self._file >= 0:
            os.fsync(self._file)
            os.close(self._file)
            self._file = -1

    def _write(self, data: bytes) -> None:
        if os.write(self._file, data) != len(data):
            raise OSError(f"{self.path}: the disk is full")


@dataclass
class Recording:
    """A journal that was read."""

    header: dict[str, Any]
    records: np.ndarray  # (N,) structured, as `layout` says
    lost_bytes: int  # after the last whole record; 0 unless the writer was killed or the file is damaged


def read(path: str | Path) -> Recording:
    """Reads a journal.

    Raises:
        ValueError: the file is no journal, of an unknown version, or its header is damaged.
    """
    data = Path(path).read_bytes()
    length = int.from_bytes(data[8:12], "little")
    if data[:8] != MAGIC or length > MAX_HEADER_BYTES or len(data) < 12 + length:
        raise ValueError(f"{path} is no journal of a run, or is cut off in its header")
    try:
        header = json.loads(data[12 : 12 + length])
        version, fields = header["format_version"], [_field(*field) for field in header["record"]]
        kind = np.dtype(fields)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} has a damaged header ({error})") from error
    if version != FORMAT_VERSION:
        raise ValueError(f"{path} has format version {version!r}, this flowhand reads {FORMAT_VERSION}")
    if fields[-1:] != [("crc", "<u4", ())]:
        raise ValueError(f"{path} has a damaged header (its records end in {fields[-1:]})")
    body = memoryview(data)[12 + length :]
    records = np.frombuffer(body[: len(body) // kind.itemsize * kind.itemsize], kind)
    whole = 0
    for record in records:
        if zlib.crc32(record.tobytes()[:-4]) != record["crc"]:
            break
        whole += 1
    return Recording(header, records[:whole], len(body) - whole * kind.itemsize)


def _field(name: str, form: str, shape: list[int]) -> tuple[str, str, tuple[int, ...]]:
    """A field of the layout; of numpy's formats only those of numbers and bytes, for others may be anything."""
    if not FORMAT.fullmatch(form):
        raise ValueError(f"the field {name!r} has the format {form!r}")
    return name, form, tuple(shape)


def observation_of(record: np.ndarray) -> dict[str, np.ndarray]:
    """The observation in a record, by feature."""
    names = record.dtype.names or ()
    prefix = "observation."
    return {name.removeprefix(prefix): record[name].copy() for name in names if name.startswith(prefix)}
