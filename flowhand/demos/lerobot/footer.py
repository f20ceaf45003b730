"""What a parquet file says of the sizes of its columns, read here.

pyarrow's own objects for it end the process where a damaged file's size statistics contradict its schema: the error of
the C++ library passes through a function that may not throw. The format is parquet.thrift in Thrift's compact protocol,
of which only what is asked for is understood and all else is passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

BOOLEANS, BYTE, INTEGERS, DOUBLE, BINARY, LISTS, MAP, STRUCT, UUID = (1, 2), 3, (4, 5, 6), 7, 8, (9, 10), 11, 12, 13
DEEPEST = 32  # structures in structures; parquet's have 6


class Chunk(NamedTuple):
    """The values of one column in one group of rows."""

    column: str  # the outermost name of its path
    values: int
    bytes: int  # without compression


def chunks(footer: bytes) -> list[list[Chunk]]:
    """The columns of each group of rows, from the bytes of a file's footer.

    Raises:
        ValueError: they are no such footer.
    """
    read = _Compact(footer)
    try:
        for field, kind in read.fields():
            if (field, kind) == (4, LISTS[0]):
                return [_group(read) for _ in read.items(STRUCT)]
            read.skip(kind)
    except IndexError as error:
        raise ValueError("its footer ends early") from error
    return []


def _group(read: _Compact) -> list[Chunk]:
    found: list[Chunk] = []
    for field, kind in read.fields():
        if (field, kind) == (1, LISTS[0]):
            found += [_column(read) for _ in read.items(STRUCT)]
        else:
            read.skip(kind)
    return found


def _column(read: _Compact) -> Chunk:
    found = Chunk("", 0, 0)
    for field, kind in read.fields():
        if (field, kind) == (3, STRUCT):
            found = _about(read)
        else:
            read.skip(kind)
    return found


def _about(read: _Compact) -> Chunk:
    path: list[bytes] = []
    sizes = {5: 0, 6: 0}  # values, bytes
    for field, kind in read.fields():
        if (field, kind) == (3, LISTS[0]):
            path = [read.binary() for _ in read.items(BINARY)]
        elif field in sizes and kind in INTEGERS:
            sizes[field] = read.integer()
        else:
            read.skip(kind)
    return Chunk(path[0].decode(errors="replace") if path else "", sizes[5], sizes[6])


class _Compact:
    """Thrift's compact protocol, read from the front. All raise IndexError at the end, ValueError at what cannot be."""

    def __init__(self, data: bytes):
        self._data, self._at = data, 0

    def _byte(self) -> int:
        value = self._data[self._at]
        self._at += 1
        return value

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
            if shift > 63:
                raise ValueError("its footer has a number of more than 64 bits")
        return value | byte << shift

    def integer(self) -> int:
        """A number with a sign."""
        value = self._varint()
        return value >> 1 ^ -(value & 1)

    def binary(self) -> bytes:
        """Bytes or text."""
        start = self._passed(self._varint())
        return self._data[start : self._at]

    def fields(self) -> Iterator[tuple[int, int]]:
        """Number and type of each field of a structure, whose value has to be read before the next is asked for."""
        field = 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self.integer()
            yield field, head & 15

    def items(self, expected: int) -> range:
        """How many items of this type a list has."""
        count, kind = self._list()
        if kind != expected and count:
            raise ValueError(f"its footer has a list of type {kind}, expected {expected}")
        return range(count)

    def skip(self, kind: int, depth: int = 0, alone: bool = True) -> None:
        """Passes over a value; `alone`: of a field, whose type says already which of two booleans it is."""
        if depth > DEEPEST:
            raise ValueError("its footer has structures too deep in each other")
        if kind in BOOLEANS:
            self._passed(0 if alone else 1)
        elif kind in INTEGERS:
            self._varint()
        elif kind in LISTS:
            count, of = self._list()
            for _ in range(count):
                self.skip(of, depth + 1, alone=False)
        elif kind == MAP:
            if count := self._varint():
                pair = self._byte()
                for _ in range(count):
                    self.skip(pair >> 4, depth + 1, alone=False)
                    self.skip(pair & 15, depth + 1, alone=False)
        elif kind == STRUCT:
            for _, of in self.fields():
                self.skip(of, depth + 1)
        elif kind in (BYTE, DOUBLE, BINARY, UUID):
            self._passed({BYTE: 1, DOUBLE: 8, UUID: 16}.get(kind) or self._varint())
        else:
            raise ValueError(f"its footer has a value of type {kind}, which there is not")

    def _list(self) -> tuple[int, int]:
        head = self._byte()
        return (head >> 4 if head >> 4 < 15 else self._varint()), head & 15

    def _passed(self, count: int) -> int:
        """Where so many bytes begin, which are passed over."""
        start, self._at = self._at, self._at + count
        if self._at > len(self._data):
            raise IndexError
        return start
