"""The journal of a run: a JSON header, then one record of fixed size per control step. Numpy only, no pickle.

    8 bytes      MAGIC
    4 bytes      length of the header, little-endian
    header       JSON: what ran, and the layout of a record (names, formats, shapes)
    records      little-endian, each ending in the CRC-32 of what is before it

A record is handed to the system in one write. So a killed process loses at most the record that it was writing, and
what a runtime's thread had not yet been given; what the machine's own failure loses, the system decides. A reader stops
before the first record that is cut short or damaged.
"""

from __future__ import annotations

import json
import os
import re
import stat
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

MAGIC = b"FLOWHAND"
FORMAT_VERSION = 1
MAX_HEADER_BYTES = 2**24
MESSAGE_BYTES = 160
MOST_BYTES = 2**28  # of a record
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

    Attributes:
        size: of a record, in bytes.

    Raises:
        ValueError: the file exists already, or cannot be written there.
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
        self.size, self._file = self._blank.nbytes, -1
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
            self._write(MAGIC + len(header).to_bytes(4, "little") + header)
            os.fsync(self._file)
        except FileExistsError as error:
            raise ValueError(f"journal {self.path} exists already; give another name, or move it") from error
        except OSError as error:
            if self._file >= 0:
                os.close(self._file)
                self.path.unlink()
            reason = error.strerror or str(error)
            raise ValueError(
                f"journal {self.path} cannot be written ({reason}); give the name of a file in a folder that can"
            ) from error

    def append(self, values: Mapping[str, Any], clamps: Mapping[str, Sequence[int]], message: str) -> None:
        """Writes a record.

        Args:
            values: of fields, by their names; missing ones are zero, and those that FLAGS names may be None.
            clamps: reason -> dimensions.
            message: errors and alarms in words; cut to what fits.

        Raises:
            OSError: the system does not take it. What it took is removed: the file ends in a whole record.
        """
        record = self._blank.copy()
        for name, value in values.items():
            if value is not None:
                record[name] = value
        for flag, name in FLAGS.items():
            record[flag] = values.get(name) is not None
        for reason, dimensions in clamps.items():
            record["clamps"][list(dimensions)] |= 1 << self._clamps.index(reason)
        words = message.encode("utf-8", "backslashreplace")[:MESSAGE_BYTES]
        record["message"] = words.decode("utf-8", "ignore").encode()  # whole characters
        record["crc"] = zlib.crc32(record.tobytes()[:-4])
        self._write(record.tobytes())

    def close(self) -> None:
        """Forces everything to the disk and closes the file; a second call does nothing."""
        if self._file >= 0:
            os.fsync(self._file)
            os.close(self._file)
            self._file = -1

    def _write(self, data: bytes) -> None:
        taken = os.write(self._file, data)
        if taken != len(data):
            os.ftruncate(self._file, max(0, os.fstat(self._file).st_size - taken))
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
    try:
        size = os.stat(path)
        if not stat.S_ISREG(size.st_mode):  # anything else could hang or have no end
            raise ValueError(f"{path} is no file; give the journal of a run")
        with open(path, "rb") as file:
            return _read(file, size.st_size, path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); give the journal of a run") from error


def _read(file: BinaryIO, size: int, path: str | Path) -> Recording:
    """The journal in a file of this size; no more of it is kept than what is whole."""
    start = file.read(12)
    length = int.from_bytes(start[8:], "little")
    if start[:8] != MAGIC or not 12 + length <= min(size, MAX_HEADER_BYTES):
        raise ValueError(f"{path} is no journal of a run, or is cut off in its header")
    try:
        header = json.loads(file.read(length))
        version, fields = header["format_version"], [_field(*field) for field in header["record"]]
        kind = np.dtype(fields)
        names = [name for key in ("refusals", "clamps") for name in header[key]]
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} has a damaged header ({' '.join(str(error).split())[:200]})") from error
    if version != FORMAT_VERSION:
        raise ValueError(f"{path} has format version {repr(version)[:40]}, this flowhand reads {FORMAT_VERSION}")
    if fields[-1:] != [("crc", "<u4", ())] or kind.itemsize > MOST_BYTES:
        raise ValueError(f"{path} has a damaged header (records of {kind.itemsize} bytes that end in {fields[-1:]})")
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} has a damaged header (its refusals and clamps are no names)")
    whole = bytearray()
    while len(record := file.read(kind.itemsize)) == kind.itemsize:
        if zlib.crc32(record[:-4]) != int.from_bytes(record[-4:], "little"):
            break
        whole += record
    return Recording(header, np.frombuffer(bytes(whole), kind), size - 12 - length - len(whole))


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
