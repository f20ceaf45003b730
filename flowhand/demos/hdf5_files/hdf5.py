"""What the readers of HDF5 files share: opening a file from a stranger, and taking arrays out of it.

A file may point to other files: links, external storage, virtual arrays. None of them is followed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from ..archive import open_regular
from ..reader import MOST_EPISODE_BYTES, damage, required

MOST_DEPTH, MOST_ARRAYS = 8, 1000  # of groups in each other, and of arrays in an episode
MOST_CHUNK = 2**28  # bytes that one compressed piece becomes


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file, open for reading; whatever a damaged one leads to is one line that begins with its name.

    Raises:
        ValueError: it is no HDF5 file, or damaged.
    """
    h5py = required("h5py", "reading HDF5 files")
    open_regular(path).close()
    with damage(str(path)):
        try:
            file = h5py.File(path, "r")
        except BlockingIOError:  # another process writes to it, or the file system has no locks
            file = h5py.File(path, "r", locking=False)
        with file:
            yield file


def child(group: Any, name: str, where: str) -> Any:
    """A group or an array in a group, None if there is none.

    Raises:
        ValueError: it lies in another file.
    """
    h5py = required("h5py", "reading HDF5 files")
    link = group.get(name, getlink=True)
    if link is None:
        return None
    if isinstance(link, h5py.ExternalLink):
        raise ValueError(f"{where}: {name!r} is a link to another file, which is not followed")
    return group.get(name)


def arrays_of(group: Any, where: str, depth: int = MOST_DEPTH, prefix: str = "") -> dict[str, Any]:
    """All arrays below a group, by their path there ("pose/left")."""
    h5py = required("h5py", "reading HDF5 files")
    found: dict[str, Any] = {}
    for name in group:
        value = child(group, name, where)
        if isinstance(value, h5py.Dataset):
            found[prefix + name] = value
        elif isinstance(value, h5py.Group) and depth:
            found |= arrays_of(value, where, depth - 1, f"{prefix}{name}/")
        if len(found) > MOST_ARRAYS:
            raise ValueError(f"{where}: more than {MOST_ARRAYS} arrays")
    return found


def is_array(value: Any) -> TypeGuard[Any]:
    """Whether it is an array, and no group or nothing."""
    return isinstance(value, required("h5py", "reading HDF5 files").Dataset)


def is_group(value: Any) -> TypeGuard[Any]:
    """Whether it is a group, and no array or nothing."""
    return isinstance(value, required("h5py", "reading HDF5 files").Group)


def rows(dataset: Any, start: int, stop: int, where: str) -> np.ndarray:
    """Rows `start` to `stop` (exclusive) of an array of numbers.

    Raises:
        ValueError: it holds something else, lies in another file, has fewer rows, or is larger than an episode may be.
    """
    require_plain(dataset, where)
    if dataset.dtype.kind not in "fiub":
        raise ValueError(f"{where} holds {dataset.dtype}, expected numbers")
    if dataset.ndim == 0 or len(dataset) < stop:
        raise ValueError(f"{where} has shape {dataset.shape}, expected at least {stop} rows")
    if (stop - start) * dataset.dtype.itemsize * int(np.prod(dataset.shape[1:], dtype=object)) > MOST_EPISODE_BYTES:
        raise ValueError(f"{where}: {stop - start} rows of shape {dataset.shape[1:]} are more than can be read")
    return dataset[start:stop]


def require_plain(dataset: Any, where: str) -> None:
    """Raises `ValueError` unless the array's bytes lie in the file itself, in pieces that are not too large."""
    if not is_array(dataset):
        raise ValueError(f"{where} is no array")
    if dataset.is_virtual or dataset.external:
        raise ValueError(f"{where} lies in another file, which is not read")
    if dataset.chunks and dataset.dtype.itemsize * int(np.prod(dataset.chunks, dtype=object)) > MOST_CHUNK:
        raise ValueError(f"{where} has pieces of shape {dataset.chunks}, larger than can be read")


def numbered(names: Any, prefix: str) -> list[str]:
    """Those of the names that are the prefix and a number, in the order of the numbers."""
    found = [name for name in names if re.fullmatch(rf"{prefix}\d{{1,12}}", name)]
    return sorted(found, key=lambda name: int(name[len(prefix) :]))


def text_of(value: Any) -> str:
    """An attribute that is text, "" where it is none."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str) else ""
