"""Writes a LeRobot data set of version 3.0.

States and actions are written as they are, to the last bit. Images become videos, which lose a little, or PNG files in
the table, which lose nothing; frames that lie in a video already keep it. The folder is filled under another name, and
is there whole or not at all.

It is written in parts: a data file, a video of each camera and a table of episodes that are finished together. A writer
that was stopped goes on after the last finished part, if it was told where to keep them.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from flowhand.contracts.data.episode import Episode
from flowhand.contracts.durable import sync
from flowhand.contracts.features import Feature, Spec

from ..reader import read_json, required
from . import summary
from .dataset import LeRobotDataset
from .parquet import EXTRA
from .parts import kind_of_written, levels_of, place_of, reason_against, remove_others
from .tables import DEFAULTS, cells, entry, pictures, png, write_info, write_json, write_tasks
from .video import FILES_OF_CHUNK, Recorded, VideoWriter

STATE = "unfinished.json"  # in the folder while it is filled: what is finished
Images = Mapping[str, Iterable[np.ndarray] | Recorded]


class LeRobotWriter:
    """A data set in the making; use it in a `with` block, at whose end it appears.

    Args:
        path: the folder, which must not exist.
        spec: what the episodes hold.
        names: of the dimensions of features; they have their own otherwise.
        columns: names of columns by feature; None: observation.<name>, observation.images.<name>, action.
        robot: what was recorded.
        images: video (LeRobot's usual, loses a little) | png (loses nothing).
        codec: of videos: av1 | h264.
        rewards: also write the reward of each step.
        success: also write the success of each step; None: as `rewards`.
        data_mb: megabytes of a data file after which a part ends.
        video_mb: the same for videos.
        part_s: seconds after which a part ends.
        unfinished: the folder that is filled; kept where the block ends with an error, and then gone on with. None: a
            folder that no error leaves behind.

    Raises:
        ValueError: LeRobot has no place for such episodes (`reason_against`), or the folder exists.
    """

    def __init__(
        self,
        path: Path | str,
        spec: Spec,
        names: Mapping[str, tuple[str, ...]] | None = None,
        columns: Mapping[str, str] | None = None,
        robot: str = "",
        images: Literal["video", "png"] | Mapping[str, str] = "video",
        codec: str = "av1",
        rewards: bool = False,
        success: bool | None = None,
        data_mb: float = 100,
        video_mb: float = 200,
        part_s: float = math.inf,
        unfinished: Path | None = None,
    ):
        self.path, self.spec, self.robot = Path(path), spec, robot
        if reason := reason_against(spec):
            raise ValueError(f"{reason}; leave it out, or write natively: format=native")
        self.fps = round(1 / spec.seconds())
        if self.path.exists():
            raise ValueError(f"{self.path} exists; choose another path")
        self.judged = [name for name, on in (("reward", rewards), ("success", rewards if success is None else success))
                       if on]  # fmt: skip
        self.names = {name: f.names for name, f in self._features().items() if f.names} | dict(names or {})
        self._limits, self._part_s, self.codec = (data_mb * 2**20, video_mb * 2**20), part_s, codec
        self.kinds = {name: kind_of_written(name, feature) for name, feature in self._features().items()}
        self.columns = {name: self._column(name) for name in self.kinds} | dict(columns or {})
        self.in_video = self._in_video(images)
        self._tasks: dict[str, int] = {}
        self._pending: list[dict[str, Any]] = []
        self._steps, self.episodes, self._part = 0, 0, 0
        self._data: Any = None
        self._sink: Any = None
        self._began_s = time.monotonic()
        self._levels = {name: levels_of(kind) for name, kind in self.kinds.items() if kind in ("image", "depth")}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._keep = unfinished is not None
        self.folder = unfinished or self.path.with_name(f".{self.path.name}.tmp-{secrets.token_hex(4)}")
        self._videos = {name: self._video(name) for name in self.in_video}

    def _features(self) -> dict[str, Feature]:
        return {**self.spec.observation, "action": self.spec.action}

    def _column(self, name: str) -> str:
        if name == "action":
            return name
        return f"observation.images.{name}" if self.kinds[name] in ("image", "depth") else f"observation.{name}"

    def _in_video(self, images: str | Mapping[str, str]) -> list[str]:
        pictured = [name for name, kind in self.kinds.items() if kind == "image"]
        chosen = dict.fromkeys(pictured, images) if isinstance(images, str) else images
        for value in [images] if isinstance(images, str) else chosen.values():
            if value not in ("video", "png"):
                raise ValueError(f"images is {value!r}; choices: video, png")
        return [name for name in pictured if chosen.get(name, "video") == "video"]

    def _video(self, name: str) -> VideoWriter:
        height, width, _ = self.spec.observation[name].shape
        return VideoWriter(self.folder / "videos" / self.columns[name], self.fps, (height, width), self.codec)

    def __enter__(self) -> LeRobotWriter:
        self.folder.mkdir(parents=True, exist_ok=self._keep)
        if (self.folder / STATE).exists():
            self._go_on()
        elif self._keep:  # stopped before its first part was finished
            remove_others(self.folder, [])
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self._finish()
                (self.folder / STATE).unlink(missing_ok=True)
                for file in [*self.folder.rglob("*"), self.folder]:
                    sync(file)
                self.folder.rename(self.path)
                sync(self.path.parent)
        finally:
            self._abandon()
            if not (self._keep and (self.folder / STATE).exists()):  # nothing in it is finished
                shutil.rmtree(self.folder, ignore_errors=True)

    def _abandon(self) -> None:
        """Closes what is still open; it is not kept."""
        for close in (*(video.close for video in self._videos.values()), self._close_data):
            with suppress(Exception):  # such as the full disk that led here
                close()

    def append(self, episode: Episode, images: Images | None = None) -> None:
        """Adds an episode.

        Args:
            episode: it; of its observations those in `images` may be left out.
            images: frames that come in blocks (n, H, W[, C]), or lie in a video already, by feature.

        Raises:
            ValueError: it does not fit the specification.
        """
        images = images or {}
        arrays = {**episode.observation, "action": episode.action}
        steps, number = len(episode.action), self.episodes
        for name, feature in self._features().items():
            got = arrays.get(name)
            if name in images:
                continue
            if got is None or got.shape != (steps, *feature.shape) or got.dtype != np.dtype(feature.dtype):
                what = "is missing" if got is None else f"is {got.dtype} of shape {got.shape}"
                expected = f"{feature.dtype} {(steps, *feature.shape)}"
                raise ValueError(f"episode {number}: {name!r} {what}, expected {expected}")
        row: dict[str, Any] = {"episode_index": number, "tasks": [episode.task], "length": steps}
        columns: dict[str, Any] = {}
        for name, kind in self.kinds.items():
            if kind in ("image", "depth"):
                found = self._add_images(name, images.get(name, [arrays.get(name)]), steps, row, columns)
            else:
                columns[self.columns[name]] = cells(arrays[name])
                found = summary.of_rows(arrays[name])
            row |= {f"stats/{self.columns[name]}/{key}": value.tolist() for key, value in found.items()}
        columns |= {f"next.{name}": required("pyarrow", EXTRA).array(getattr(episode, name)) for name in self.judged}
        self._write_rows(columns, steps, number, self._tasks.setdefault(episode.task, len(self._tasks)))
        row |= place_of("data", self._part) | place_of("meta/episodes", self._part)
        row |= {"dataset_from_index": self._steps, "dataset_to_index": self._steps + steps}
        self._steps, self.episodes = self._steps + steps, number + 1
        self._pending.append(row)
        if self._is_full():
            self._end_part()

    def _add_images(
        self, name: str, source: Any, steps: int, row: dict[str, Any], columns: dict[str, Any]
    ) -> dict[str, np.ndarray]:
        """Writes the frames of an episode into its video, or into `columns`; their statistics."""
        levels, count = levels_of(self.kinds[name]), 0

        def counted() -> Iterable[np.ndarray]:
            nonlocal count
            for block in source:
                levels.add(block)
                count += len(block)
                yield block

        if isinstance(source, Recorded):
            levels, count = source.levels, steps
            place = self._videos[name].copy(source, steps)
        elif name in self.in_video:
            place = self._videos[name].add(counted())
        else:
            place = None
            columns[self.columns[name]] = pictures(png(image) for block in counted() for image in block)
        if count != steps:
            raise ValueError(f"episode {self.episodes}: {name!r} has {count} frames, expected {steps}")
        if place is not None:
            row |= place_of(f"videos/{self.columns[name]}", place[0])
            row |= {f"videos/{self.columns[name]}/{key}": value
                    for key, value in zip(("from_timestamp", "to_timestamp"), place[1:], strict=True)}  # fmt: skip
        self._levels[name].merge(levels)
        return levels.summary()

    def _write_rows(self, columns: dict[str, Any], steps: int, number: int, task: int) -> None:
        """One row group."""
        pa, pq = required("pyarrow", EXTRA), required("pyarrow.parquet", EXTRA)
        count = np.arange(steps)
        numbers = (count / self.fps, count, np.full(steps, number), self._steps + count, np.full(steps, task))
        columns |= {name: pa.array(v.astype(dtype)) for (name, dtype), v in zip(DEFAULTS.items(), numbers, strict=True)}
        table = pa.table(columns)
        if self._data is None:
            self._sink = pa.OSFile(str(self._file("data")), "wb")
            self._data = pq.ParquetWriter(self._sink, table.schema, compression="snappy")
        self._data.write_table(table, row_group_size=max(steps, 1))

    def _file(self, folder: str) -> Path:
        place = f"chunk-{self._part // FILES_OF_CHUNK:03d}/file-{self._part % FILES_OF_CHUNK:03d}.parquet"
        path = self.folder / folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _is_full(self) -> bool:
        large = max((video.bytes for video in self._videos.values()), default=0)
        long = time.monotonic() - self._began_s > self._part_s
        return long or self._sink.tell() > self._limits[0] or large > self._limits[1]

    def _close_data(self) -> None:
        data, sink, self._data, self._sink = self._data, self._sink, None, None
        if data is not None:
            try:
                data.close()
            finally:
                sink.close()

    def _end_part(self) -> None:
        """Finishes the files that are open; from here on they are kept."""
        pa, pq = required("pyarrow", EXTRA), required("pyarrow.parquet", EXTRA)
        if self._pending:
            for video in self._videos.values():
                video.close()
            self._close_data()
            pq.write_table(pa.Table.from_pylist(self._pending), str(self._file("meta/episodes")))
            self._pending, self._part = [], self._part + 1
        if self._keep:
            self._remember()
        self._began_s = time.monotonic()

    def _remember(self) -> None:
        """Says in the folder what is finished, after it is on the disk."""
        files = [file for file in self.folder.rglob("*") if file.is_file() and file.name != STATE]
        for file in files:
            sync(file)
        numbers = {"steps": self._steps, "episodes": self.episodes, "part": self._part}
        videos = {
            name: {"number": v.number, "copied": v.copied, "encoding": [v.codec, v.pix_fmt]}
            for name, v in self._videos.items()
        }
        levels = {name: {"frames": v.frames, "counts": v.counts.tolist()} for name, v in self._levels.items()}
        content = {**numbers, "tasks": list(self._tasks), "videos": videos, "levels": levels,
                   "files": [os.path.relpath(file, self.folder) for file in files]}  # fmt: skip
        temporary = self.folder / f".{STATE}"
        temporary.write_text(json.dumps(content))
        sync(temporary)
        temporary.replace(self.folder / STATE)
        sync(self.folder)

    def _go_on(self) -> None:
        """Takes up what an earlier writer has finished, and removes the rest."""
        content = read_json(self.folder / STATE)
        self._steps, self.episodes, self._part = (content[name] for name in ("steps", "episodes", "part"))
        self._tasks = {text: number for number, text in enumerate(content["tasks"])}
        for name, told in content["videos"].items():
            video = self._videos[name]
            video.number, video.copied, (video.codec, video.pix_fmt) = (
                told[k] for k in ("number", "copied", "encoding")
            )
        for name, told in content["levels"].items():
            self._levels[name].frames, self._levels[name].counts = told["frames"], np.array(told["counts"], np.int64)
        remove_others(self.folder, [STATE, *content["files"]])

    def _finish(self) -> None:
        if not self.episodes:
            raise ValueError(f"{self.path}: a data set needs at least one episode")
        self._end_part()
        write_tasks(self.folder, self._tasks)
        features = {self.columns[name]: self._feature(name, f) for name, f in self._features().items()}
        features |= {f"next.{name}": entry("float32" if name == "reward" else "bool", [1]) for name in self.judged}
        features |= {name: entry(dtype, [1]) for name, dtype in DEFAULTS.items()}
        totals = (self.episodes, self._steps, len(self._tasks))
        write_info(self.folder, self.robot, self.fps, totals, features, bool(self.in_video))
        states = {name: self.columns[name] for name in self.kinds if self.kinds[name] in ("state", "action")}
        observed = {name: column for name, column in states.items() if name != "action"}
        written = LeRobotDataset(self.folder, observed) if observed else None
        found = {} if written is None else written.statistics()
        shapes = {name: column.feature.shape for name, column in (written.columns.items() if written else ())}
        stats = {
            states[name]: summary.as_lists(summary.of_statistics(value, shapes[name])) for name, value in found.items()
        }
        stats |= {self.columns[name]: summary.as_lists(levels.summary()) for name, levels in self._levels.items()}
        write_json(self.folder / "meta" / "stats.json", stats)

    def _feature(self, name: str, feature: Feature) -> dict[str, Any]:
        kind = self.kinds[name]
        if name in self.in_video:
            dims = ["height", "width", "channels"]
            return {**entry("video", list(feature.shape), dims), "info": self._videos[name].info()}
        if kind in ("image", "depth"):
            return entry("image", list(feature.shape), ["height", "width", "channels"][: len(feature.shape)])
        return entry(feature.dtype, list(feature.shape), list(self.names.get(name, ())) or None)
