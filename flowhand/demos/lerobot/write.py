"""Writes a LeRobot data set of version 3.0.

States and actions are written as they are, to the last bit. Images become videos, which lose a little, or PNG files in
the table, which lose nothing. The folder is filled under another name, and is there whole or not at all.
"""

from __future__ import annotations

import io
import json
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from flowhand.contracts.data.episode import Episode
from flowhand.contracts.features import Feature, Spec

from ..columns import kind_of
from ..reader import required
from . import summary
from .dataset import LeRobotDataset
from .meta import DATA, VIDEO
from .parquet import EXTRA
from .video import VideoWriter

ROWS_OF_EPISODES = 1000  # that are held before they are written
DEFAULTS = {
    "timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64", "task_index": "int64"
}  # fmt: skip


class LeRobotWriter:
    """A data set in the making; use it in a `with` block, at whose end it appears.

    Args:
        path: the folder, which must not exist.
        spec: what the episodes hold.
        names: of the dimensions of features.
        columns: names of columns by feature; None: observation.<name>, observation.images.<name>, action.
        robot: what was recorded.
        images: video (LeRobot's usual, loses a little) | png (loses nothing).
        codec: of videos: av1 | h264.
        rewards: also write reward and success of each step.
        data_mb: megabytes after which a data file is followed by the next one.
        video_mb: the same for videos.

    Raises:
        ValueError: the rate is no whole number, as it must be there, or the folder exists.
    """

    def __init__(
        self,
        path: Path | str,
        spec: Spec,
        names: Mapping[str, tuple[str, ...]] | None = None,
        columns: Mapping[str, str] | None = None,
        robot: str = "",
        images: Literal["video", "png"] = "video",
        codec: str = "av1",
        rewards: bool = False,
        data_mb: float = 100,
        video_mb: float = 200,
    ):
        self.path, self.spec, self.robot, self.rewards = Path(path), spec, robot, rewards
        rate_hz = 1 / spec.seconds()
        self.fps = round(rate_hz)
        if self.fps < 1 or abs(rate_hz - self.fps) > 1e-6 * self.fps:
            raise ValueError(f"control_dt_s is {spec.control_dt_s} s: LeRobot has a whole number of steps a second")
        if self.path.exists():
            raise ValueError(f"{self.path} exists; choose another path")
        if images not in ("video", "png"):
            raise ValueError(f"images is {images!r}; choices: video, png")
        self.names, self.limits, self.codec = dict(names or {}), (data_mb * 2**20, video_mb * 2**20), codec
        self.kinds = {name: kind_of(f.shape, f.dtype) for name, f in spec.observation.items()} | {"action": "action"}
        self.columns = {name: self._column(name) for name in self.kinds} | dict(columns or {})
        self.in_video = {n for n, kind in self.kinds.items() if kind == "image" and images == "video"}
        self._tasks: dict[str, int] = {}
        self._episodes: list[dict[str, Any]] = []
        self._pending: list[dict[str, Any]] = []
        self._steps, self._file, self._data, self._meta = 0, -1, None, None
        self._grey = {n: summary.GreyLevels(3) for n, kind in self.kinds.items() if kind == "image"}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.folder = self.path.with_name(f".{self.path.name}.tmp-{secrets.token_hex(4)}")
        self._videos = {name: self._video(name) for name in self.in_video}

    def _column(self, name: str) -> str:
        if name == "action":
            return name
        return f"observation.images.{name}" if self.kinds[name] in ("image", "depth") else f"observation.{name}"

    def _video(self, name: str) -> VideoWriter:
        height, width, _ = self.spec.observation[name].shape
        folder = self.folder / "videos" / self.columns[name]
        return VideoWriter(folder, self.fps, (height, width), self.codec, int(self.limits[1]))

    def __enter__(self) -> LeRobotWriter:
        self.folder.mkdir()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            for video in self._videos.values():
                video.close()
            for writer in (self._data, self._meta):
                if writer is not None and kind is not None:
                    writer.close()
            if kind is None:
                self._finish()
                self.folder.rename(self.path)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def append(self, episode: Episode) -> None:
        """Adds an episode.

        Raises:
            ValueError: it does not fit the specification.
        """
        arrays = {**episode.observation, "action": episode.action}
        steps = len(episode.action)
        for name, feature in {**self.spec.observation, "action": self.spec.action}.items():
            got = arrays.get(name)
            if got is None or got.shape != (steps, *feature.shape) or got.dtype != np.dtype(feature.dtype):
                what = "is missing" if got is None else f"is {got.dtype} of shape {got.shape}"
                expected = f"{feature.dtype} {(steps, *feature.shape)}"
                raise ValueError(f"episode {len(self._episodes)}: {name!r} {what}, expected {expected}")
        number, task = len(self._episodes), self._tasks.setdefault(episode.task, len(self._tasks))
        row: dict[str, Any] = {"episode_index": number, "tasks": [episode.task], "length": steps}
        row |= {"data/chunk_index": 0, "data/file_index": self._write_rows(arrays, episode, number, task)}
        row |= {"dataset_from_index": self._steps, "dataset_to_index": self._steps + steps}
        for name, video in self._videos.items():
            file, begin, end = video.add(arrays[name])
            places = {"chunk_index": 0, "file_index": file, "from_timestamp": begin, "to_timestamp": end}
            row |= {f"videos/{self.columns[name]}/{key}": value for key, value in places.items()}
        row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        for name in self.kinds:
            for key, value in self._summary(name, arrays[name]).items():
                row[f"stats/{self.columns[name]}/{key}"] = value.tolist()
        self._steps += steps
        self._episodes.append({"length": steps})
        self._pending.append(row)
        if len(self._pending) >= ROWS_OF_EPISODES:
            self._write_episodes()

    def _summary(self, name: str, values: np.ndarray) -> dict[str, np.ndarray]:
        if self.kinds[name] != "image":
            return summary.of_rows(values)
        grey = summary.GreyLevels(3)
        grey.add(values)
        self._grey[name].merge(grey)
        return grey.summary()

    def _write_rows(self, arrays: Mapping[str, np.ndarray], episode: Episode, number: int, task: int) -> int:
        """One row group; the number of the file that it is in."""
        pa, pq = required("pyarrow", EXTRA), required("pyarrow.parquet", EXTRA)
        steps = len(episode.action)
        count = np.arange(steps)
        values = {self.columns[name]: _cells(arrays[name], self.kinds[name], pa) for name in self.kinds
                  if name not in self.in_video}  # fmt: skip
        if self.rewards:
            values |= {"next.reward": pa.array(episode.reward), "next.success": pa.array(episode.success)}
        numbers = (count / self.fps, count, np.full(steps, number), self._steps + count, np.full(steps, task))
        values |= {name: pa.array(v.astype(dtype)) for (name, dtype), v in zip(DEFAULTS.items(), numbers, strict=True)}
        table = pa.table(values)
        if self._data is None or self._sink.tell() > self.limits[0]:
            if self._data is not None:
                self._data.close()
            self._file += 1
            path = self.folder / "data" / "chunk-000" / f"file-{self._file:03d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            self._sink = pa.OSFile(str(path), "wb")
            self._data = pq.ParquetWriter(self._sink, table.schema, compression="snappy")
        self._data.write_table(table, row_group_size=max(steps, 1))
        return self._file

    def _write_episodes(self) -> None:
        pa, pq = required("pyarrow", EXTRA), required("pyarrow.parquet", EXTRA)
        if not self._pending:
            return
        table = pa.Table.from_pylist(self._pending, None if self._meta is None else self._meta.schema)
        if self._meta is None:
            path = self.folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            self._meta = pq.ParquetWriter(str(path), table.schema, compression="snappy")
        self._meta.write_table(table)
        self._pending = []

    def _finish(self) -> None:
        if not self._episodes:
            raise ValueError(f"{self.path}: a data set needs at least one episode")
        self._write_episodes()
        self._data.close()  # pyright: ignore[reportOptionalMemberAccess]
        self._sink.close()
        self._meta.close()  # pyright: ignore[reportOptionalMemberAccess]
        self._write_tasks()
        features = {self.columns[name]: self._feature(name, f) for name, f in self.spec.observation.items()}
        features["action"] = self._feature("action", self.spec.action)
        if self.rewards:
            features |= {"next.reward": _entry("float32", [1]), "next.success": _entry("bool", [1])}
        features |= {name: _entry(dtype, [1]) for name, dtype in DEFAULTS.items()}
        count = len(self._episodes)
        info = {
            "codebase_version": "v3.0", "robot_type": self.robot or None, "total_episodes": count,
            "total_frames": self._steps, "total_tasks": len(self._tasks), "chunks_size": 1000,
            "data_files_size_in_mb": 100, "video_files_size_in_mb": 200, "fps": self.fps,
            "splits": {"train": f"0:{count}"}, "data_path": DATA[3], "video_path": VIDEO[3] if self.in_video else None,
            "features": features,
        }  # fmt: skip
        _write_json(self.folder / "meta" / "info.json", info)
        states = {name: self.columns[name] for name in self.kinds if self.kinds[name] in ("state", "action")}
        observed = {name: column for name, column in states.items() if name != "action"}
        written = LeRobotDataset(self.folder, observed) if observed else None
        found = {} if written is None else written.statistics()
        shapes = {name: column.feature.shape for name, column in (written.columns.items() if written else ())}
        stats = {
            states[name]: summary.as_lists(summary.of_statistics(value, shapes[name])) for name, value in found.items()
        }
        stats |= {self.columns[name]: summary.as_lists(grey.summary()) for name, grey in self._grey.items()}
        _write_json(self.folder / "meta" / "stats.json", stats)

    def _feature(self, name: str, feature: Feature) -> dict[str, Any]:
        kind = self.kinds[name]
        if name in self.in_video:
            dims = ["height", "width", "channels"]
            return {**_entry("video", list(feature.shape), dims), "info": self._videos[name].info()}
        if kind in ("image", "depth"):
            return _entry("image", list(feature.shape), ["height", "width", "channels"][: len(feature.shape)])
        return _entry(feature.dtype, list(feature.shape), list(self.names.get(name, ())) or None)

    def _write_tasks(self) -> None:
        """A pandas frame whose index, named `task`, has the texts: that is how LeRobot looks them up."""
        pa, pq = required("pyarrow", EXTRA), required("pyarrow.parquet", EXTRA)
        table = pa.table({"task_index": pa.array(list(self._tasks.values()), pa.int64()), "task": list(self._tasks)})
        kinds = {"task_index": ("int64", "int64"), "task": ("unicode", "object")}
        columns = [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": dtype, "metadata": None}
            for name, (kind, dtype) in kinds.items()
        ]
        about = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.0.0"}
        path = str(self.folder / "meta" / "tasks.parquet")
        pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(about)}), path)


def _entry(dtype: str, shape: list[int], names: list[str] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "names": names}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=4, allow_nan=False))


def _cells(values: np.ndarray, kind: str, pa: Any) -> Any:
    """The values (N, ...) as an arrow column: scalars, lists, lists of lists, or encoded images."""
    if kind in ("image", "depth"):
        cells = [{"bytes": _png(value), "path": None} for value in values]
        return pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    shape = values.shape[1:]
    column = pa.array(np.ascontiguousarray(values).reshape(-1))
    if shape == (1,):
        return column
    for size in reversed(shape[1:]):
        column = pa.ListArray.from_arrays(pa.array(np.arange(0, len(column) + 1, size, dtype=np.int32)), column)
    return pa.FixedSizeListArray.from_arrays(column, shape[0])


def _png(value: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(value.reshape(value.shape[:2]) if value.ndim == 3 and value.shape[2] == 1 else value).save(
        file, "PNG"
    )
    return file.getvalue()
