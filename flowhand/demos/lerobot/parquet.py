"""Columns of parquet files as arrays, with a bound on what a file may make the reader hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..archive import open_regular
from ..reader import MOST_EPISODE_BYTES, required
from .footer import Chunk, chunks

EXTRA = "reading LeRobot data sets"
MOST_FOOTER = 2**26  # bytes of a file's own description
MOST_ROWS = 2**31  # of one file


class ParquetFile:
    """One file: its columns by name, and its rows by number.

    Raises:
        ValueError: it is no parquet file.
    """

    def __init__(self, path: Path):
        pq = required("pyarrow.parquet", EXTRA)
        self.path = path
        self._chunks: list[list[Chunk]] | None = None
        with open_regular(path) as file:  # the library's errors about other things are long, and a pipe would block it
            size = file.seek(0, 2)
            file.seek(max(0, size - 8))
            end = file.read(8)
            described = int.from_bytes(end[:4], "little")
            file.seek(max(0, size - 8 - min(described, MOST_FOOTER)))
            self._footer = file.read(min(described, MOST_FOOTER))
        if len(end) < 8 or end[4:] != b"PAR1":
            raise ValueError(f"{path}: it does not end as a parquet file does; was its writer stopped, or the copy?")
        if described > min(size, MOST_FOOTER):
            raise ValueError(f"{path}: its footer claims {described} bytes")
        try:
            self.file = pq.ParquetFile(
                path, memory_map=False, thrift_string_size_limit=MOST_FOOTER, thrift_container_size_limit=10**7
            )
            groups = range(self.file.num_row_groups)
            counts = [self.file.metadata.row_group(group).num_rows for group in groups]
        except Exception as error:  # of any kind that a damaged footer leads the library to
            raise ValueError(f"{path}: {_line(error)}") from error
        if min(counts, default=0) < 0 or sum(counts) > MOST_ROWS or sum(counts) != self.file.metadata.num_rows:
            raise ValueError(f"{path}: its row groups have {sum(counts)} rows, expected {self.file.metadata.num_rows}")
        self.ends = np.cumsum([0, *counts])  # row at which each group begins, and the end
        self.names: list[str] = list(self.file.schema_arrow.names)
        if twice := [name for name, count in Counter(self.names).items() if count > 1]:
            raise ValueError(f"{path}: it has several columns {twice[0]!r}")

    def __len__(self) -> int:
        return int(self.ends[-1])

    def table(self, names: Sequence[str], start: int = 0, stop: int | None = None) -> Any:
        """The rows `start` to `stop` (exclusive) of these columns, as an arrow table.

        Raises:
            ValueError: there are no such columns or rows, they cannot be read, or are larger than an episode may be.
        """
        stop = len(self) if stop is None else stop
        for name in names:
            if name not in self.names:
                raise ValueError(f"{self.path}: column {name!r} is missing; it has {', '.join(self.names)[:200]}")
        if not 0 <= start <= stop <= len(self):
            raise ValueError(f"{self.path}: rows {start} to {stop} asked for, it has {len(self)}")
        first = int(np.searchsorted(self.ends, start, side="right")) - 1
        last = max(first + 1, int(np.searchsorted(self.ends, stop)))
        groups = range(min(first, self.file.num_row_groups), min(last, self.file.num_row_groups))
        self._require_size(names, groups)
        try:
            table = self.file.read_row_groups(list(groups), list(names), use_threads=False)
        except Exception as error:
            raise ValueError(f"{self.path}: columns {', '.join(names)[:200]}: {_line(error)}") from error
        offset = int(self.ends[groups.start]) if len(groups) else 0
        table = table.slice(start - offset, stop - start)
        if table.num_rows != stop - start:
            raise ValueError(f"{self.path}: it has fewer rows than its footer says")
        return table

    def _require_size(self, names: Sequence[str], groups: range) -> None:
        if self._chunks is None:  # a second for each MiB, so only where rows are read
            try:
                self._chunks = chunks(self._footer)
            except ValueError as error:
                raise ValueError(f"{self.path}: {error}") from error
            if len(self._chunks) != self.file.num_row_groups:
                expected = f"expected {self.file.num_row_groups}"
                raise ValueError(f"{self.path}: its footer has {len(self._chunks)} groups of rows, {expected}")
            self._footer = b""
        read = [chunk for group in groups for chunk in self._chunks[group] if chunk.column in names]
        total = sum(max(chunk.bytes, 0) + max(chunk.values, 0) for chunk in read)
        if total > MOST_EPISODE_BYTES:
            raise ValueError(f"{self.path}: the rows take {total} bytes, more than the {MOST_EPISODE_BYTES} allowed")


def numbers(array: Any, steps: int, shape: Sequence[int], where: str) -> np.ndarray:
    """An arrow column as an array (steps, *shape); a column of scalars may be called one of vectors of one number.

    Raises:
        ValueError: a value is missing, a row has another shape, or holds no numbers.
    """
    parts = [_flat(chunk, shape, where) for chunk in array.chunks if len(chunk)]
    values = np.concatenate(parts) if parts else np.zeros(0)
    if len(values) != steps * int(np.prod(shape, dtype=object)):
        raise ValueError(f"{where} has {len(values)} values in {steps} rows, expected steps of shape {tuple(shape)}")
    return values.reshape(steps, *shape)


def _flat(array: Any, shape: Sequence[int], where: str) -> np.ndarray:
    """The numbers of an arrow array, nested lists taken apart; the lists must have the lengths of the shape."""
    pa, pc = required("pyarrow", EXTRA), required("pyarrow.compute", EXTRA)
    depth = 0
    while True:
        array = array.storage if isinstance(array.type, pa.ExtensionType) else array
        if array.null_count:
            raise ValueError(f"{where} has no value at row {int(np.argmax(np.asarray(array.is_null())))}")
        if not _is_list(array.type):
            break
        expected = shape[depth] if depth < len(shape) else 0
        if pa.types.is_fixed_size_list(array.type):
            lengths = np.full(len(array), array.type.list_size)
        else:
            lengths = pc.list_value_length(array).to_numpy(zero_copy_only=False)
        if (lengths != expected).any():
            row = int(np.argmax(lengths != expected))
            raise ValueError(
                f"{where} has a list of {lengths[row]} at row {row}, expected steps of shape {tuple(shape)}"
            )
        array, depth = array.flatten(), depth + 1
    if depth != len(shape) and not (depth == 0 and np.prod(shape, dtype=object) == 1):
        raise ValueError(f"{where} has lists of depth {depth}, expected steps of shape {tuple(shape)}")
    if not (pa.types.is_floating(array.type) or pa.types.is_integer(array.type) or pa.types.is_boolean(array.type)):
        raise ValueError(f"{where} holds {array.type}, expected numbers")
    return array.to_numpy(zero_copy_only=False)


def _is_list(kind: Any) -> bool:
    types = required("pyarrow", EXTRA).types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def dtype_of(kind: Any) -> str:
    """Numpy's name of the numbers in an arrow type, or the arrow type's own where it holds none."""
    pa = required("pyarrow", EXTRA)
    while True:
        kind = kind.storage_type if isinstance(kind, pa.ExtensionType) else kind
        if not _is_list(kind):
            break
        kind = kind.value_type
    try:
        return np.dtype(kind.to_pandas_dtype()).name
    except (NotImplementedError, TypeError):
        return str(kind)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
