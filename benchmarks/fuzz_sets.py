"""Small good data sets of every format that flowhand reads, and what a stranger may have done to their files."""

from __future__ import annotations

import io
import json
import os
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzz_inputs import mutated, other_json
from flowhand.contracts.data.episode import Episode
from flowhand.contracts.features import Feature, Spec
from flowhand.demos.lerobot.write import LeRobotWriter

LENGTHS, FPS, SIZE = (4, 3, 5), 10, (16, 16)
SECRET = "secret.parquet"  # beside the data set: no path of it may lead here
TEMPLATES = (
    "../secret.parquet", "/etc/passwd", "{video_key}", "data/../../secret.parquet", "{x}", "{episode_index:09999999d}",
    "data/{episode_index!r}", "{episode_index.__class__}", "{{", "}", "", "data\\..\\x", "a\0b", "data/" + "x/" * 600,
    "data/chunk-{chunk_index:03d}/file-{chunk_index:03d}.parquet", "./data/chunk-000/file-000.parquet",
)  # fmt: skip
COUNTS = (-1, 0, 1, 2, 5, 2**31, 2**40, 2**63 - 1, -(2**63))
FLOATS = (float("nan"), float("inf"), -1.0, 1e300, 0.05, 1e-9)


def lerobot3(folder: Path) -> None:
    """Version 3.0, with a video, an image in the table and a matrix."""
    observed = {"state": Feature((3,), "float32", ""), "front": Feature((*SIZE, 3), "uint8", "")}
    observed |= {"still": Feature((*SIZE, 3), "uint8", ""), "matrix": Feature((2, 2), "float64", "")}
    spec = Spec(observed, Feature((2,), "float32", ""), 1 / FPS)
    images = {"front": "video", "still": "png"}
    with LeRobotWriter(folder, spec, images=images, codec="h264", rewards=True, part_s=0.0) as writer:
        for number, steps in enumerate(LENGTHS):
            maker = np.random.default_rng(number)
            frames = {name: maker.integers(0, 256, (steps, *SIZE, 3), np.uint8) for name in ("front", "still")}
            rows = {
                "state": maker.normal(size=(steps, 3)).astype(np.float32),
                "matrix": maker.normal(size=(steps, 2, 2)),
            }
            action, zeros = maker.normal(size=(steps, 2)).astype(np.float32), np.zeros(steps, np.float32)
            writer.append(Episode({**frames, **rows}, action, zeros, zeros > 0, f"task {number}", 0, 1 / FPS))


def lerobot2(folder: Path) -> None:
    """Version 2.1, states alone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "meta").mkdir(parents=True)
    (folder / "data" / "chunk-000").mkdir(parents=True)
    features: dict[str, Any] = {"observation.state": {"dtype": "float32", "shape": [3], "names": ["x", "y", "z"]}}
    features |= {"action": {"dtype": "float32", "shape": [2], "names": [["left", "right"]]}}
    features |= {name: {"dtype": "int64", "shape": [1]} for name in ("frame_index", "episode_index", "task_index")}
    features |= {"timestamp": {"dtype": "float32", "shape": [1]}}
    info = {"codebase_version": "v2.1", "fps": FPS, "features": features, "total_episodes": len(LENGTHS),
            "splits": {"train": f"0:{len(LENGTHS)}"}, "chunks_size": 1000,
            "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"}  # fmt: skip
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    lines = [{"episode_index": e, "length": n, "tasks": [f"task {e}"]} for e, n in enumerate(LENGTHS)]
    (folder / "meta" / "episodes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    tasks = [{"task_index": e, "task": f"task {e}"} for e in range(len(LENGTHS))]
    (folder / "meta" / "tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    for number, steps in enumerate(LENGTHS):
        maker = np.random.default_rng(number)
        rows = {"observation.state": maker.normal(size=(steps, 3)).astype(np.float32).tolist()}
        rows |= {"action": maker.normal(size=(steps, 2)).astype(np.float32).tolist()}
        rows |= {"frame_index": list(range(steps)), "episode_index": [number] * steps, "task_index": [number] * steps}
        rows |= {"timestamp": [n / FPS for n in range(steps)]}
        pq.write_table(pa.table(rows), folder / "data" / "chunk-000" / f"episode_{number:06d}.parquet")


def robomimic(folder: Path) -> None:
    """One HDF5 file with states, an image and rewards."""
    import h5py

    folder.mkdir(parents=True)
    with h5py.File(folder / "set.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {"control_freq": 20}})
        data.attrs["total"] = sum(LENGTHS)
        for number, steps in enumerate(LENGTHS):
            maker, demo = np.random.default_rng(number), data.create_group(f"demo_{number}")
            demo.attrs["num_samples"], demo.attrs["success"] = steps, np.bool_(number != 1)
            demo["actions"], demo["rewards"] = maker.normal(size=(steps, 2)), np.zeros(steps)
            demo["obs/object"] = maker.normal(size=(steps, 3)).astype(np.float32)
            demo.create_dataset("obs/eye", data=maker.integers(0, 256, (steps, 8, 8, 3), np.uint8), compression="gzip")


def minari(folder: Path) -> None:
    """Minari's folder with its metadata."""
    import h5py

    (folder / "data").mkdir(parents=True)
    box = {"type": "Box", "dtype": "float64", "shape": [3], "low": [-1] * 3, "high": [1] * 3}
    about = {"observation_space": json.dumps({"type": "Dict", "subspaces": {"pose": box}}), "total_episodes": 3,
             "action_space": json.dumps({"type": "Discrete", "dtype": "int64", "start": 0, "n": 4})}  # fmt: skip
    (folder / "data" / "metadata.json").write_text(json.dumps(about))
    with h5py.File(folder / "data" / "main_data.hdf5", "w") as file:
        for number, steps in enumerate(LENGTHS):
            maker, episode = np.random.default_rng(number), file.create_group(f"episode_{number}")
            episode.attrs.update({"id": number, "total_steps": steps, "seed": number})
            episode["observations/pose"] = maker.normal(size=(steps + 1, 3))
            episode["actions"], episode["rewards"] = maker.integers(0, 4, steps), np.arange(steps, dtype=float)
            episode["terminations"] = episode["truncations"] = np.zeros(steps, bool)


def zarr(folder: Path) -> None:
    """A replay buffer of version 2, written by hand."""
    maker, steps = np.random.default_rng(0), sum(LENGTHS)
    arrays = {"data/state": maker.normal(size=(steps, 5)).astype("<f4"), "data/action": maker.normal(size=(steps, 2))}
    arrays["data/img"] = maker.integers(0, 256, (steps, 8, 8, 3)).astype("<f4")
    arrays["meta/episode_ends"] = np.cumsum(LENGTHS).astype("<i8")
    for name, values in arrays.items():
        place = folder / name
        place.mkdir(parents=True)
        chunk = (5, *values.shape[1:])
        about = {"zarr_format": 2, "shape": list(values.shape), "chunks": list(chunk), "dtype": values.dtype.str,
                 "compressor": {"id": "zlib", "level": 1}, "fill_value": 0, "order": "C", "filters": None}  # fmt: skip
        (place / ".zarray").write_text(json.dumps(about))
        for number in range(-(-len(values) // 5)):
            part = np.zeros(chunk, values.dtype)
            rows = values[5 * number : 5 * number + 5]
            part[: len(rows)] = rows
            key = ".".join([str(number), *["0"] * (values.ndim - 1)])
            (place / key).write_bytes(zlib.compress(part.tobytes()))
    for place in (folder, folder / "data", folder / "meta"):
        (place / ".zgroup").write_text('{"zarr_format": 2}')


MAKERS: dict[str, Callable[[Path], None]] = {
    "lerobot3": lerobot3, "lerobot2": lerobot2, "robomimic": robomimic, "minari": minari, "zarr": zarr
}  # fmt: skip


def changed(rng: random.Random, name: str, good: bytes, folder: Path) -> bytes:
    """What a file holds after someone was at it; a file of that name, good as it was, may lie in the folder for it."""
    if rng.random() < 0.1:
        return good[: rng.randrange(len(good) + 1)]
    if name.endswith((".json", ".zarray", ".zgroup")):
        return _other_description(rng, good)
    if name.endswith(".jsonl"):
        lines = good.split(b"\n")
        at = rng.randrange(len(lines))
        lines[at] = other_json(rng, lines[at]) if rng.random() < 0.8 else lines[rng.randrange(len(lines))]
        return b"\n".join(lines)
    if rng.random() < 0.35:
        cut = rng.choice((0, 64, max(0, len(good) - 600), max(0, len(good) - 64)))
        return good[:cut] + mutated(rng, good[cut:])
    if name.endswith(".parquet"):
        return _other_table(rng, good)
    if name.endswith(".hdf5"):
        return _other_hdf5(rng, good, folder)
    return mutated(rng, good)


def _other_description(rng: random.Random, good: bytes) -> bytes:
    content = json.loads(good)
    if isinstance(content, dict) and rng.random() < 0.4:
        keys = [key for key in ("data_path", "video_path") if key in content]
        if keys and rng.random() < 0.6:
            content[rng.choice(keys)] = rng.choice(TEMPLATES)
            return json.dumps(content).encode()
        if "chunks" in content:
            key = rng.choice(("shape", "chunks"))
            content[key][rng.randrange(len(content[key]))] = rng.choice(COUNTS)
            content["dtype"] = rng.choice((content["dtype"], "<f8", "|O", "<M8[s]", "<U9", "|b1", ">f4"))
            ids = ("zlib", "blosc", "pickle", "json2", "lz4", "bz2", "x")
            content["compressor"] = rng.choice((None, {"id": rng.choice(ids), "level": rng.choice(COUNTS)}))
            return json.dumps(content).encode()
    return other_json(rng, good)


def _other_table(rng: random.Random, good: bytes) -> bytes:
    """The table with other columns, rows or numbers."""
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(good))
    for _ in range(rng.randint(1, 3)):
        table = _other_columns(rng, table)
    sink = io.BytesIO()
    size = rng.choice((1, 2, 1000))
    pq.write_table(table, sink, compression=rng.choice(("snappy", "zstd", "gzip", "none")), row_group_size=size)
    return sink.getvalue()


def _other_columns(rng: random.Random, table: Any) -> Any:
    import pyarrow as pa

    if not table.num_columns:
        return table
    at, kind = rng.randrange(table.num_columns), rng.randrange(8)
    name, column = table.column_names[at], table.column(at)
    if kind == 0:
        return table.remove_column(at)
    if kind == 1:
        others = ("x", "observation.state", "action", "episode_index", "../x", "")
        return table.rename_columns([*table.column_names[:at], rng.choice(others), *table.column_names[at + 1 :]])
    if kind == 2:
        return table.slice(rng.randrange(table.num_rows + 1))
    if kind == 3:
        return pa.concat_tables([table, table])
    values = column.to_pylist()
    if kind == 4 and values:
        values[rng.randrange(len(values))] = None
    elif kind == 5 and values:
        place = rng.randrange(len(values))
        other = rng.choice(
            ("../secret.parquet", "/etc/passwd", b"x", {"bytes": None, "path": "../secret.parquet"}, "é")
        )
        values[place] = [*values[place], 1.0] if isinstance(values[place], list) else other
    elif kind == 6:
        order = [rng.randrange(len(values)) for _ in values]
        values = [values[place] for place in order]
    else:
        values = [rng.choice((*COUNTS, *FLOATS)) if rng.random() < 0.3 else value for value in values]
    try:
        return table.set_column(at, name, pa.array(values, column.type if rng.random() < 0.7 else None))
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return table.set_column(at, name, pa.array([rng.choice(COUNTS[:5])] * len(values)))


def _other_hdf5(rng: random.Random, good: bytes, folder: Path) -> bytes:
    """The file with links elsewhere, arrays of other forms, and numbers that are none."""
    import h5py

    path = folder / "changing.hdf5"
    path.write_bytes(good)
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        for _ in range(rng.randint(1, 2)):
            name = rng.choice(names)
            if name in file:
                _other_item(rng, file, name)
    content = path.read_bytes()
    path.unlink()
    return content


def _other_item(rng: random.Random, file: Any, name: str) -> None:
    import h5py

    item, kind = file[name], rng.randrange(9)
    if kind == 0:
        key = rng.choice(("num_samples", "total", "env_args", "success", "total_steps", "seed", "id", "ep_meta"))
        values = (
            *COUNTS[:7],
            *FLOATS,
            "x",
            "{",
            json.dumps({"env_kwargs": {"control_freq": -1}}),
            np.zeros(3),
            b"\xff",
        )
        item.attrs[key] = rng.choice(values)
        return
    try:
        array = item[()] if isinstance(item, h5py.Dataset) and item.nbytes < 2**20 else np.zeros((4, 2))
    except OSError:  # it was changed before, and lies nowhere now
        array = np.zeros((4, 2))
    del file[name]
    if kind == 1:
        file[name] = rng.choice((h5py.ExternalLink(SECRET, "/"), h5py.SoftLink("/data"), h5py.SoftLink("/nowhere")))
    elif kind == 2:
        shape = rng.choice(((2**40, 2), (4, 2**31), (4, 2**20, 2**12)))
        file.create_dataset(name, shape, "f8", chunks=(1, *[min(n, 2**12) for n in shape[1:]]))
    elif kind == 3:
        file.create_dataset(name, (4, 2), "f8", external=[(SECRET, 0, 64)])
    elif kind == 4:
        layout = h5py.VirtualLayout((4, 2), "f8")
        layout[:] = h5py.VirtualSource(SECRET, "x", (4, 2))
        file.create_virtual_dataset(name, layout)
    elif kind == 5:
        file[name] = rng.choice(
            (array[:-1], array[None], array.reshape(-1), array.astype("S8"), array.astype(np.int16))
        )
    elif kind == 6:
        file[name] = np.full(array.shape, rng.choice(FLOATS))
    elif kind == 7:
        file[name] = rng.choice((b"text", np.array([b"demo_0", b"demo_9"]), np.zeros((0, 2)), 3.0))


def no_file(rng: random.Random, file: Path) -> None:
    """Something that is not a file in a file's place."""
    kind = rng.randrange(4)
    if kind == 0:
        os.mkfifo(file)
    elif kind == 1:
        file.mkdir()
    elif kind == 2:
        file.symlink_to(rng.choice(("/dev/zero", "/dev/null", "/nowhere", str(file))))
