"""The tables and descriptions of a LeRobot data set, as its own programs write them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..reader import required
from .meta import DATA, VIDEO
from .parquet import EXTRA

COMPRESSION = 3  # of PNG: half the time of the usual 6
DEFAULTS = {
    "timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64", "task_index": "int64"
}  # fmt: skip


def entry(dtype: str, shape: list[int], names: list[str] | None = None) -> dict[str, Any]:
    """A feature in `info.json`."""
    return {"dtype": dtype, "shape": shape, "names": names}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes an object that can be read by people."""
    path.write_text(json.dumps(content, indent=4, allow_nan=False))


def write_info(
    folder: Path, robot: str, fps: int, totals: tuple[int, int, int], features: Mapping[str, Any], has_videos: bool
) -> None:
    """Writes `meta/info.json`; the totals are episodes, steps and task texts."""
    episodes, steps, tasks = totals
    info = {
        "codebase_version": "v3.0", "robot_type": robot or None, "total_episodes": episodes, "total_frames": steps,
        "total_tasks": tasks, "chunks_size": 1000, "data_files_size_in_mb": 100, "video_files_size_in_mb": 200,
        "fps": fps, "splits": {"train": f"0:{episodes}"}, "data_path": DATA[3],
        "video_path": VIDEO[3] if has_videos else None, "features": features,
    }  # fmt: skip
    write_json(folder / "meta" / "info.json", info)


def write_tasks(folder: Path, tasks: Mapping[str, int]) -> None:
    """A pandas frame whose index, named `task`, has the texts: that is how LeRobot looks them up."""
    pa, pq = required("pyarrow", EXTRA), required("pyarrow.parquet", EXTRA)
    table = pa.table({"task_index": pa.array(list(tasks.values()), pa.int64()), "task": list(tasks)})
    kinds = {"task_index": ("int64", "int64"), "task": ("unicode", "object")}
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": dtype, "metadata": None}
        for name, (kind, dtype) in kinds.items()
    ]
    about = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.0.0"}
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(about)}), str(folder / "meta" / "tasks.parquet"))


def cells(values: np.ndarray) -> Any:
    """The values (N, ...) as an arrow column: scalars, lists, or lists of lists."""
    pa = required("pyarrow", EXTRA)
    shape = values.shape[1:]
    column = pa.array(np.ascontiguousarray(values).reshape(-1))
    if shape == (1,):
        return column
    for size in reversed(shape[1:]):
        column = pa.ListArray.from_arrays(pa.array(np.arange(0, len(column) + 1, size, dtype=np.int32)), column)
    return pa.FixedSizeListArray.from_arrays(column, shape[0])


def pictures(encoded: Iterable[bytes]) -> Any:
    """Encoded images as an arrow column."""
    pa = required("pyarrow", EXTRA)
    found = [{"bytes": image, "path": None} for image in encoded]
    return pa.array(found, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def png(value: np.ndarray) -> bytes:
    """An image (H, W[, C]) as PNG, which loses nothing."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(value.reshape(value.shape[:2]) if value.ndim == 3 and value.shape[2] == 1 else value).save(
        file, "PNG", compress_level=COMPRESSION
    )
    return file.getvalue()
