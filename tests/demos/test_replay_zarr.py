"""Diffusion Policy's replay buffers, held against the zarr package."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowhand.demos.zarr_files.replay_zarr import ReplayZarrDataset
from tests.cases import some
from tests.demos.recorded import described
from tests.demos.test_lerobot import error_of

zarr: Any = pytest.importorskip("zarr")

LENGTHS = (7, 5, 9)


def make(path: Path, images: np.ndarray | None = None, compressor: str | None = "blosc", order: str = "C") -> Path:
    """A store that the zarr package writes."""
    import numcodecs

    kinds = {"blosc": numcodecs.Blosc("zstd", 5, 2), "lz4": numcodecs.LZ4(), "zlib": numcodecs.Zlib(), None: None}
    kinds |= {"zstd": numcodecs.Zstd(), "gzip": numcodecs.GZip(), "bz2": numcodecs.BZ2(), "lzma": numcodecs.LZMA()}
    root = zarr.open_group(str(path), mode="w", zarr_format=2)
    random, steps = np.random.default_rng(0), sum(LENGTHS)
    arrays = {"state": random.normal(size=(steps, 5)).astype(np.float32), "action": random.normal(size=(steps, 2))}
    arrays["keypoint"] = random.normal(size=(steps, 9, 2)).astype(np.float32)
    if images is not None:
        arrays["img"] = images
    for name, values in arrays.items():
        chunks = (4, *(max(1, n - 1) for n in values.shape[1:]))  # no divisor of anything
        array = root.create_array(f"data/{name}", shape=values.shape, chunks=chunks, dtype=values.dtype,
                                  compressors=kinds[compressor], order=order)  # fmt: skip
        array[:] = values
    ends = np.cumsum(LENGTHS)
    root.create_array("meta/episode_ends", shape=ends.shape, chunks=ends.shape, dtype="int64")[:] = ends
    return path


def same(data: ReplayZarrDataset, path: Path, names=("state", "keypoint")) -> None:
    root, begin = zarr.open_group(str(path), mode="r"), 0
    for number, steps in enumerate(LENGTHS):
        got = data.read(number)
        for name in names:
            np.testing.assert_array_equal(got.observation[name], root[f"data/{name}"][begin : begin + steps])
            part = data.read(number, 2, 5).observation[name]
            np.testing.assert_array_equal(part, root[f"data/{name}"][begin + 2 : begin + 5])
        np.testing.assert_array_equal(
            got.action, root["data/action"][begin : begin + steps].astype(data.spec.action.dtype)
        )
        got.validate(described(data))
        begin += steps


COMPRESSORS = ["blosc", "lz4", "zstd", "zlib", "gzip", "bz2", "lzma", None]
STORED = [(compressor, order) for order in ("C", "F") for compressor in COMPRESSORS]


@pytest.mark.parametrize(("compressor", "order"), some(STORED, [*STORED[:8], ("blosc", "F"), (None, "F")]))
def test_a_store_equals_what_zarr_reads(tmp_path, compressor, order):
    path = make(tmp_path / "set.zarr", compressor=compressor, order=order)
    data = ReplayZarrDataset(path)
    assert list(data.lengths) == list(LENGTHS)
    assert "10 control steps a second are assumed" in data.warnings[0]
    same(data, path)


def test_a_zip_file_is_the_same(tmp_path):
    path = make(tmp_path / "set.zarr")
    with zipfile.ZipFile(tmp_path / "set.zarr.zip", "w") as archive:
        for file in path.rglob("*"):
            if file.is_file():
                archive.write(file, file.relative_to(path))
    data = ReplayZarrDataset(tmp_path / "set.zarr.zip", rate_hz=20)
    assert data.warnings == []
    same(data, path)
    assert data.fingerprint != ReplayZarrDataset(path, rate_hz=20).fingerprint


@pytest.mark.parametrize("scale", [1, 255])
def test_float_images_become_grey_levels(tmp_path, scale):
    levels = np.random.default_rng(1).integers(0, 256, (21, 8, 10, 3), np.uint8)
    levels[:9] //= 255  # dark at first: 0 and 1 alone
    data = ReplayZarrDataset(make(tmp_path / "set.zarr", (levels / (256 - scale)).astype(np.float32)))
    assert data.spec.observation["img"].dtype == "uint8"
    np.testing.assert_array_equal(data.read(2).observation["img"], levels[12:])
    assert sum("img" in line for line in data.warnings) == 1


def test_images_between_grey_levels_are_refused(tmp_path):
    images = np.full((21, 8, 10, 3), 7.0, np.float32)
    images[15, 3, 3, 1] = 7.5
    data = ReplayZarrDataset(make(tmp_path / "set.zarr", images))
    data.read(1)
    assert "episode 2: array 'img': grey levels are no whole numbers" in error_of(lambda: data.read(2))


def test_images_with_channels_first(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (21, 3, 8, 10), np.uint8)
    data = ReplayZarrDataset(make(tmp_path / "set.zarr", images))
    np.testing.assert_array_equal(data.read(0).observation["img"], images[:7].transpose(0, 2, 3, 1))


def test_a_missing_chunk_is_filled_with_a_line(tmp_path):
    path = make(tmp_path / "set.zarr")
    (path / "data/state/2.0").unlink()
    data = ReplayZarrDataset(path)
    data.read(0)
    data.read(1)
    data.read(1)
    assert [line for line in data.warnings if "'state'" in line] == [
        "array 'state': chunk 2.0 is not there, and is read as its fill value; is the copy complete?"
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"filters": [{"id": "pickle"}]}, "filters"),
        ({"compressor": {"id": "pickle"}}, "compressor 'pickle' is unknown"),
        ({"dtype": "|O"}, "dtype is '|O', expected numbers"),
        ({"dtype": [["a", "<f4"]]}, "dtype is"),
        ({"chunks": [2**20, 2**20]}, "more than"),
        ({"chunks": [0, 5]}, "chunks is"),
        ({"shape": [2**39, 5]}, "has 549755813888 steps, but the last episode ends at 21"),
        ({"shape": [20, 5]}, "has 20 steps, but the last episode ends at 21"),
        ({"zarr_format": 3}, "zarr version 2"),
        ({"order": "K"}, "order 'K'"),
        ({"dimension_separator": "/../"}, "separator '/../'"),
        ({"fill_value": "x"}, "fill_value is 'x'"),
    ],
)
def test_descriptions_that_cannot_be_read(tmp_path, change, expected):
    path = make(tmp_path / "set.zarr")
    file = path / "data/state/.zarray"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    line = error_of(lambda: ReplayZarrDataset(path))
    assert expected in line
    assert "array 'state'" in line or "array 'data/state'" in line


def test_ends_that_do_not_grow(tmp_path):
    path = make(tmp_path / "set.zarr")
    zarr.open_group(str(path), mode="r+")["meta/episode_ends"][:] = [7, 7, 21]
    assert "the ends do not grow" in error_of(lambda: ReplayZarrDataset(path))
    shutil.rmtree(path / "meta")
    assert "array 'meta/episode_ends': it is missing" in error_of(lambda: ReplayZarrDataset(path))


def complaint(path: Path) -> str:
    try:
        data = ReplayZarrDataset(path)
        for episode in range(len(data)):
            data.read(episode)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("compressor", some(["blosc", "lz4", "zstd", "zlib"], ["blosc", "zlib"]))
def test_damaged_files_are_one_line_each(tmp_path, compressor):
    path = make(tmp_path / "set.zarr", compressor=compressor)
    random, failed = np.random.default_rng(0), 0
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and file.parent.name != "keypoint"]
    for attempt in range(120):
        file = files[attempt % len(files)]
        content = file.read_bytes()
        damaged = bytearray(content)
        if attempt % 3 == 0:
            damaged = damaged[: int(random.integers(0, len(damaged)))]
        for place in random.integers(0, max(1, len(damaged)), 1 + attempt % 5) if damaged else ():
            damaged[place] ^= int(random.integers(1, 256))
        file.write_bytes(bytes(damaged))
        line = complaint(path)
        failed += line != ""
        assert "\n" not in line
        assert line == "" or str(path) in line
        file.write_bytes(content)
    assert failed > 40
