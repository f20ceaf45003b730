"""One array of a zarr store of version 2, read chunk by chunk with a bound on what a chunk may become."""

from __future__ import annotations

import bz2
import itertools
import lzma
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from flowhand.contracts.data.episode import shown

from ..reader import required

MOST_CHUNK = 2**29  # bytes of a chunk, before and after it is decompressed
COMPRESSORS = ("blosc", "zstd", "lz4", "zlib", "gzip", "bz2", "lzma")


class ZarrArray:
    """An array as its `.zarray` describes it.

    Args:
        about: the description.
        read: gives the stored bytes of a chunk by its key, None if it is not there.

    Raises:
        ValueError: it is described in a way that cannot be read.
    """

    def __init__(self, about: Any, read: Callable[[str], bytes | None]):
        if not isinstance(about, dict) or about.get("zarr_format") != 2:
            raise ValueError(f"its description is {shown(about)}, expected one of zarr version 2")
        self.shape, self.chunks = _sizes(about, "shape", 0), _sizes(about, "chunks", 1)
        if len(self.shape) != len(self.chunks):
            raise ValueError(f"shape {self.shape} is cut into chunks {self.chunks}")
        dtype = about.get("dtype")
        if not isinstance(dtype, str) or not re.fullmatch(r"[<>|](f[248]|[iu][1248]|b1)", dtype):
            raise ValueError(f"dtype is {shown(dtype)}, expected numbers")
        self.dtype = np.dtype(dtype).newbyteorder("=")
        self._stored = np.dtype(dtype)
        self._bytes = self._stored.itemsize * int(np.prod(self.chunks, dtype=object))
        if self._bytes > MOST_CHUNK:
            raise ValueError(f"a chunk {self.chunks} has {self._bytes} bytes, more than {MOST_CHUNK}")
        if about.get("filters"):
            raise ValueError(f"it has filters {shown(about['filters'])}, which are not read")
        self._compressor = _compressor(about.get("compressor"))
        self._order, self._fill = about.get("order", "C"), _fill(about.get("fill_value"))
        self._separator = about.get("dimension_separator", ".")
        if self._order not in ("C", "F") or self._separator not in (".", "/"):
            raise ValueError(f"order {shown(self._order)} and separator {shown(self._separator)} are unknown")
        self._read = read
        self._last: tuple[str, np.ndarray] | None = None  # episodes that follow each other share chunks

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, list[str]]:
        """Rows `start` to `stop` (exclusive), and the keys of chunks that are not there and were filled.

        Raises:
            ValueError: there are no such rows, or a chunk is damaged.
        """
        if not 0 <= start <= stop <= self.shape[0]:
            raise ValueError(f"rows {start} to {stop} asked for, it has {self.shape[0]}")
        out, absent = np.empty((stop - start, *self.shape[1:]), self.dtype), []
        if not out.size:
            return out, absent
        size = self.chunks[0]
        grids = [range(start // size, -(-stop // size))]
        grids += [range(-(-n // c)) for n, c in zip(self.shape[1:], self.chunks[1:], strict=True)]
        for place in itertools.product(*grids):
            key = self._separator.join(map(str, place))
            chunk = self._chunk(key)
            first = [p * c for p, c in zip(place, self.chunks, strict=True)]
            ends = [min(f + c, n) for f, c, n in zip(first, self.chunks, (stop, *self.shape[1:]), strict=True)]
            begins = [max(first[0], start), *first[1:]]
            target = (slice(begins[0] - start, ends[0] - start), *map(slice, begins[1:], ends[1:]))
            source = tuple(slice(b - f, e - f) for b, e, f in zip(begins, ends, first, strict=True))
            if chunk is None:
                absent.append(key)
            out[target] = self._fill if chunk is None else chunk[source]
        return out, absent

    def _chunk(self, key: str) -> np.ndarray | None:
        if self._last and self._last[0] == key:
            return self._last[1]
        data = self._read(key)
        if data is None:
            return None
        try:
            content = _decompressed(self._compressor, data, self._bytes)
        except Exception as error:  # whatever a damaged chunk makes the decompressors raise
            raise ValueError(
                f"chunk {key} is damaged: {type(error).__name__}: {' '.join(str(error).split())[:150]}"
            ) from error
        if len(content) != self._bytes:
            raise ValueError(f"chunk {key} is damaged: {len(content)} bytes, expected {self._bytes}")
        values = np.frombuffer(content, self._stored).reshape(self.chunks, order=self._order)
        self._last = key, values
        return values


def _sizes(about: Mapping[str, Any], name: str, least: int) -> tuple[int, ...]:
    sizes = about.get(name)
    if not isinstance(sizes, list) or len(sizes) > 8 or not all(type(n) is int and least <= n < 2**40 for n in sizes):
        raise ValueError(f"{name} is {shown(sizes)}, expected a list of sizes")
    return tuple(sizes)


def _fill(value: Any) -> float:
    special = {"NaN": np.nan, "Infinity": np.inf, "-Infinity": -np.inf, None: 0}
    value = special.get(value, value) if isinstance(value, str | None) else value
    if not isinstance(value, int | float):
        raise ValueError(f"fill_value is {shown(value)}, expected a number")
    return value


def _compressor(about: Any) -> str:
    name = about.get("id") if isinstance(about, dict) else about
    if name is not None and name not in COMPRESSORS:
        raise ValueError(f"compressor {shown(name)} is unknown; choices: {', '.join(COMPRESSORS)}")
    return name or ""


def _decompressed(name: str, data: bytes, size: int) -> bytes:
    """The chunk's content, of which no more is made than `size` bytes and a few.

    Raises:
        Exception: of any kind, if it is damaged or claims another size.
    """
    if name == "":
        return data
    if name in ("zlib", "gzip"):
        return zlib.decompressobj(wbits=31 if name == "gzip" else 15).decompress(data, size + 1)
    if name == "bz2":
        return bz2.BZ2Decompressor().decompress(data, size + 1)
    if name == "lzma":
        return lzma.LZMADecompressor().decompress(data, size + 1)
    codec = required(f"numcodecs.{name}", "reading a compressed zarr store")
    if name == "blosc":
        claimed, stored = (int.from_bytes(data[at : at + 4], "little") for at in (4, 12))
        if len(data) < 16 or claimed != size or stored != len(data):
            raise ValueError(f"it claims {claimed} bytes in {stored}, expected {size} in {len(data)}")
    if name == "lz4" and int.from_bytes(data[:4], "little") != size:
        raise ValueError(f"it claims {int.from_bytes(data[:4], 'little')} bytes, expected {size}")
    content = bytearray(size)
    codec.decompress(data, content)
    return bytes(content)
