"""The npz archive of an episode: written as numpy writes it, and read so that a hostile file costs no more than it may.

Reading believes nothing beforehand. Only a regular file is opened, which neither waits nor never ends. The archive has
the form in which Python writes one, each array has the length that the archive tells, and how much that is in all is
known before any of it is read.
"""

import errno
import math
import operator
import os
import re
import stat
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from flowhand.contracts.data.episode import RECORDED, SEED_LIMIT, Episode, is_number
from flowhand.contracts.features import shown

OBSERVATION_PREFIX = "observation/"
OTHER_ARRAYS = {"action", "reward", "success", "task", "seed", "control_dt_s"}

MOST_BYTES = 2**31 - 1  # of an episode; a larger archive has another form
MOST_GROWTH = 64  # times the file's size that a compressed episode may have ...
ALWAYS_ALLOWED = 2**27  # bytes: ... or this many
MOST_DIRECTORY = 2**17  # bytes of the archive's table of contents
PIECE = 2**20  # bytes read at once

_END, _END_64 = (
    b"PK\x05\x06",
    b"PK\x06\x07",
)  # how the last two records of an archive begin; the second is for large ones
_HEADER = re.compile(
    r"\{'descr': '([<>|=][biufU][0-9]{1,9})', 'fortran_order': (True|False), "
    r"'shape': \(((?:[0-9]{1,12}, ?)*(?:[0-9]{1,12})?)\), \} *\n"
)


def open_regular(path: Path, flags: int = os.O_RDONLY) -> BinaryIO:
    """The file, opened without waiting.

    Raises:
        ValueError: it is no regular file: a pipe would never end, and a device has no end.
    """
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except IsADirectoryError as error:
        raise ValueError(f"{path} is no regular file, as a store's files are") from error
    except OSError as error:
        if not os.path.islink(path) or error.errno not in (errno.ELOOP, errno.ENOENT):
            raise
        raise ValueError(f"{path} is a link that leads to no file") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError(f"{path} is no regular file, as a store's files are")
        return os.fdopen(descriptor, "rb" if flags == os.O_RDONLY else "r+b")
    except BaseException:
        os.close(descriptor)
        raise


def read_bounded(path: Path, most: int) -> bytes:
    """The content of a regular file of at most so many bytes."""
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{path} has more than {most} bytes, the most that such a file may have")
    return content


def write_arrays(file: BinaryIO, arrays: dict[str, np.ndarray]) -> None:
    """Write what np.savez would, without its option to pickle."""
    size = sum(array.nbytes for array in arrays.values())
    if size > MOST_BYTES - MOST_DIRECTORY:
        raise ValueError(f"the episode has {size} bytes, more than the {MOST_BYTES - MOST_DIRECTORY} that one may have")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def read_arrays(path: Path, only: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Read what np.load would, or only some of it, but check each checksum before anything in an array is believed."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        _require_form(file, size)
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            _require_members(members, min(MOST_BYTES, max(ALWAYS_ALLOWED, MOST_GROWTH * size)))
            named = {info.filename.removesuffix(".npy"): info for info in members}
            return {name: _read_array(archive, info) for name, info in named.items() if not only or name in only}


def _require_form(file: BinaryIO, size: int) -> None:
    """Raise ValueError unless the file ends as an archive does that Python wrote, with a table that is not too long."""
    file.seek(max(0, size - 42))
    last = file.read(42)
    if size > MOST_BYTES or len(last) < 42 or last[20:24] != _END or last[40:] != b"\0\0" or last[:4] == _END_64:
        raise ValueError(f"the file of {size} bytes does not end as an npz archive of at most {MOST_BYTES} bytes does")
    directory = int.from_bytes(last[32:36], "little")
    if directory > MOST_DIRECTORY:
        raise ValueError(f"its table of contents has {directory} bytes, expected at most {MOST_DIRECTORY}")


def _require_members(members: list[zipfile.ZipInfo], most: int) -> None:
    """Raise ValueError unless these are arrays, each once, plain or deflated, with at most so many bytes in all."""
    seen: set[str] = set()
    for info in members:
        if not info.filename.endswith(".npy") or info.filename in seen:
            raise ValueError(f"{info.filename[:100]!r} is no array, or there twice: expected NAME.npy, each once")
        seen.add(info.filename)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{info.filename!r} has compression {info.compress_type}: expected none, or deflate")
    total = sum(info.file_size for info in members)
    if total > most:
        raise ValueError(f"the arrays have {total} bytes, more than the {most} that an episode in such a file may have")


def _read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as member:
        start = member.read(min(10, info.file_size))  # not more than that: what is asked for is what is inflated
        length = int.from_bytes(start[8:10], "little")
        if start[:8] != b"\x93NUMPY\x01\x00" or len(start) < 10 or length + 10 > info.file_size:
            raise ValueError(f"{info.filename!r} does not begin as an npy file of version 1.0 does")
        dtype, shape, order = _parsed(info.filename, member.read(length).decode("latin-1"))
        size = info.file_size - 10 - length
        if dtype.itemsize * math.prod(shape) != size or dtype.itemsize == 0:
            raise ValueError(f"{info.filename!r} has {size} bytes, expected those of {dtype} of shape {shape}")
        content = np.empty(size, np.uint8)
        for at in range(0, size, PIECE):
            piece = member.read(min(PIECE, size - at))
            content[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
            if len(piece) < min(PIECE, size - at):
                raise ValueError(f"{info.filename!r} ends after {at + len(piece)} of {size} bytes")
    return content.view(dtype).reshape(shape, order=order)


def _parsed(name: str, header: str) -> tuple[np.dtype, tuple[int, ...], Literal["C", "F"]]:
    """Dtype, shape and order that the header of an npy file tells."""
    match = _HEADER.fullmatch(header)
    if match is None:
        raise ValueError(f"{name!r} has the header {header[:100]!r}, which numpy does not write for numbers or text")
    descr, fortran_order, shape = match.groups()
    sizes = tuple(int(size) for size in re.findall("[0-9]+", shape))
    return np.dtype(descr), sizes, "F" if fortran_order == "True" else "C"


def _pack(episode: Episode) -> dict[str, np.ndarray]:
    return {OBSERVATION_PREFIX + name: array for name, array in episode.observation.items()} | {
        "action": episode.action,
        "reward": episode.reward,
        "success": episode.success,
        "task": np.array(episode.task),
        "seed": np.array(_index(episode.seed), dtype=np.int64),
        "control_dt_s": np.array(_seconds(episode.control_dt_s), dtype=np.float64),
        **episode.recorded(),
    }


def _index(seed: Any) -> int:
    try:
        index = operator.index(seed)
    except TypeError:
        index = -1
    if not 0 <= index < SEED_LIMIT:
        raise ValueError(f"seed is {shown(seed)}: demonstrations have int seeds in [0, {SEED_LIMIT})")
    return index


def _seconds(value: Any) -> float:
    if value is None:  # the action waits for an event
        return math.nan
    seconds = value.item() if isinstance(value, np.number) else value
    if not is_number(seconds):
        raise ValueError(f"control_dt_s is {shown(value)}: expected seconds")
    return float(seconds)


def _unpack(arrays: dict[str, np.ndarray]) -> Episode:
    observation = {
        name.removeprefix(OBSERVATION_PREFIX): array
        for name, array in arrays.items()
        if name.startswith(OBSERVATION_PREFIX)
    }
    other = {name: array for name, array in arrays.items() if not name.startswith(OBSERVATION_PREFIX)}
    if set(other) - set(RECORDED) != OTHER_ARRAYS:
        raise ValueError(f"missing or unknown arrays {sorted((set(other) - set(RECORDED)) ^ OTHER_ARRAYS)}")
    scalars = {name: other.pop(name).item() for name in ("task", "seed", "control_dt_s")}
    if scalars["control_dt_s"] != scalars["control_dt_s"]:
        scalars["control_dt_s"] = None
    return Episode(observation, **other, **scalars)
