"""A LeRobot data set of version 3.0, 2.1 or 2.0, read when it is asked for.

Rows are found by their column `episode_index`, and frames by their time; neither is believed to be where the metadata
say before that has been looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import images
from ..columns import NUMBERS, Column, column, feature_names, kind_of, names_of
from ..frames import VideoFile, size_of
from ..reader import BLOCK_BYTES, Reader, damage
from .meta import EpisodeEntry, Meta, read_meta
from .parquet import ParquetFile, dtype_of, numbers
from .recent import Recent
from .rows import episode_rows, frame_indices, naming, row_times

OF_STEPS = {"reward": "next.reward", "success": "next.success", "intervention": "intervention"}  # columns by field
BOOKKEEPING = {"timestamp", "frame_index", "episode_index", "index", "task_index"}
PREFIXES = ("observation.images.", "observation.image.", "observation.")


class LeRobotDataset(Reader):
    """A folder with `meta/info.json`.

    Args:
        path: the folder.
        observation: {name of the feature: column}; None: every column that begins with "observation", or, where there
            is none, every column that is no bookkeeping.
        action: the column of the action.

    Raises:
        ValueError: it cannot be read right; the line names the file.
    """

    format = "LeRobot"

    def __init__(
        self,
        path: Path | str,
        observation: Mapping[str, str] | None = None,
        action: str = "action",
    ):
        self._begin(path)
        self._parquet, self._video, self._rows = Recent(ParquetFile), Recent(VideoFile), Recent(self._find_rows)
        self.meta: Meta = read_meta(self.path)
        self.format = f"LeRobot {self.meta.version}"
        self._said: set[str] = set()
        for line in self.meta.warnings:
            self._warn(line)
        self._schema = self._first_file().file.schema_arrow
        if action not in self.meta.features and action == "action" and "actions" in self.meta.features:
            action = "actions"
        chosen = self._chosen(observation, action)
        columns = {name: found for name, source in chosen.items() if (found := self._column(source, source == action))}
        if "action" not in columns:
            raise ValueError(f"{self.path}: no action {action!r}; features: {', '.join(self.meta.features)[:300]}")
        entries = self.meta.episodes
        self._finish(columns, self.meta.fps, [self._text(entry) for entry in entries], [e.length for e in entries])
        several = sum(len(entry.tasks) > 1 for entry in entries)
        if several:
            self._warn(f"{several} episodes list several texts; the first of each is taken")
        self._look_for_videos()

    def _first_file(self) -> ParquetFile:
        """Of the first episode whose rows are there: it says which columns there are."""
        for entry in self.meta.episodes:
            if entry.data.is_file():
                return self._parquet(entry.data)
        raise ValueError(f"{self.path}: no data file is there; the first would be {self.meta.episodes[0].data}")

    def _chosen(self, observation: Mapping[str, str] | None, action: str) -> dict[str, str]:
        """Column by name of the feature."""
        known = self.meta.features
        if observation is not None:
            for name, source in observation.items():
                if source not in known:
                    raise ValueError(f"{self.path}: {name!r} is column {source!r}; there are {', '.join(known)[:300]}")
            return {**observation, "action": action}
        seen = [key for key in known if key.startswith("observation")]
        if not seen:
            seen = [key for key in known if key not in BOOKKEEPING and not key.startswith(("next.", "annotation"))]
        seen = [key for key in seen if key != action]
        for key in known:
            if key not in seen and key not in BOOKKEEPING and key != action:
                self.left_out[key] = "no observation by name"
        return {**{name: source for source, name in feature_names(seen, PREFIXES).items()}, "action": action}

    def _column(self, source: str, is_action: bool) -> Column | None:
        """What the column becomes; None, and a line about it, where it cannot be a feature."""
        feature = self.meta.features.get(source)
        if feature is None:
            return None
        shape, names = list(feature.get("shape") or [1]), names_of(feature.get("names"))
        if feature["dtype"] == "video":
            return self._camera(source, feature, _height_first(shape, names))
        if source not in self._schema.names:
            return self._leave(source, "its column is missing in the data files")
        stored = dtype_of(self._schema.field(source).type)
        if feature["dtype"] == "image":
            shape = _height_first(shape, names)
            kind = "depth" if shape[2:] == [1] or len(shape) == 2 else "image"
            return column(source, "uint16" if kind == "depth" else "uint8", shape, kind, encoding="image")
        if stored not in NUMBERS:
            return self._leave(source, f"it holds {feature['dtype']}, which no policy reads yet")
        if stored != feature["dtype"]:
            self._warn(f"column {source!r} holds {stored}, though info.json says {feature['dtype']}")
        kind = "action" if is_action else kind_of(shape, stored)
        kind = "state" if kind == "image" and stored != "uint8" else kind
        return column(source, stored, shape, kind, names)

    def _camera(self, source: str, feature: Mapping[str, Any], shape: list[int]) -> Column | None:
        about = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
        if about.get("video.is_depth_map") or about.get("is_depth_map"):
            return self._leave(source, "it is a video of depth, which cannot be read yet")
        there = [p.file for e in self.meta.episodes if (p := e.videos.get(source)) and p.file.is_file()]
        if not there:
            return self._leave(source, "no file of this camera is there")
        size = list(size_of(there[0]))
        if shape[:2] != size:
            self._warn(f"camera {source!r} has frames of {size[0]} x {size[1]} points, though info.json says {shape}")
        return column(source, "uint8", [*size, 3], "image", encoding="video")

    def _leave(self, source: str, reason: str) -> None:
        self.left_out[source] = reason
        self._warn(f"{source!r} is left out: {reason}")

    def _look_for_videos(self) -> None:
        entries = self.meta.episodes
        for camera in self.columns.values():
            if camera.encoding == "video":
                there = [e.index for e in entries if (p := e.videos.get(camera.source)) and p.file.is_file()]
                missing = len(entries) - len(there)
                if missing:
                    some = ", ".join(map(str, there[:8])) + (" ..." if len(there) > 8 else "")
                    self._warn(
                        f"camera {camera.source!r}: the videos of {missing} of {len(entries)} episodes are missing "
                        f"(there: {some}); choose other observations, or these episodes"
                    )

    def _text(self, entry: EpisodeEntry) -> str:
        """The instruction: the first that the episode lists, else that of its first row."""
        if entry.tasks or not self.meta.tasks:
            return next(iter(entry.tasks), "")
        file = self._parquet(entry.data)
        if "task_index" not in file.names:
            return ""
        first, _ = self._find(entry)
        table = file.table(["task_index"], first, first + 1)
        return self.meta.tasks.get(table.column("task_index")[0].as_py(), "")

    def _find_rows(self, path: Path) -> dict[int, tuple[int, int]]:
        return episode_rows(self._parquet(path), [entry for entry in self.meta.episodes if entry.data == path])

    def _find(self, entry: EpisodeEntry) -> tuple[int, int]:
        if not entry.data.is_file():
            raise ValueError(f"{entry.data}: episode {entry.index}: the data file is missing")
        found = self._rows(entry.data).get(entry.index)
        if found is None or found[1] - found[0] != entry.length:
            rows = 0 if found is None else found[1] - found[0]
            raise ValueError(
                f"{entry.data}: episode {entry.index}: column 'episode_index' has {rows} rows of it, but the metadata "
                f"list {entry.length}"
            )
        return found

    def _arrays(
        self, stored: int, start: int, stop: int, names: Sequence[str]
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        entry = self.meta.episodes[stored]
        first, _ = self._find(entry)
        file: ParquetFile = self._parquet(entry.data)
        where = f"{entry.data}: episode {entry.index}"
        tabular = {name: self.columns[name] for name in names if self.columns[name].encoding != "video"}
        extra = OF_STEPS if len(names) == len(self.columns) else {}
        extra = {name: source for name, source in extra.items() if source in file.names}
        checks = ["frame_index"] if "frame_index" in file.names else []
        wanted = dict.fromkeys([*(c.source for c in tabular.values()), *extra.values(), *checks])
        table = file.table(list(wanted), first + start, first + stop)
        if checks:
            counted = numbers(table.column("frame_index"), stop - start, [1], f"{where}: column 'frame_index'").reshape(
                -1
            )
            if not np.array_equal(counted, np.arange(start, stop)):
                row = int(np.argmax(counted != np.arange(start, stop)))
                raise ValueError(f"{where}: column 'frame_index' is {counted[row]} at row {start + row}")
        arrays = {name: self._values(name, table, stop - start, where) for name in tabular}
        for name in names:
            if name not in arrays:
                video, index = self._located(entry, name, file, first)
                with naming(video, entry.index, self.columns[name].source):
                    arrays[name] = video.read(index[start:stop])
        return arrays, {
            name: numbers(table.column(source), stop - start, [1], f"{where}: column {source!r}")
            for name, source in extra.items()
        }

    def _values(self, name: str, table: Any, steps: int, where: str) -> np.ndarray:
        column = self.columns[name]
        place = f"{where}: column {column.source!r}"
        cells = table.column(column.source)
        if column.encoding == "image":
            shape, dtype = column.feature.shape, column.stored
            decoded = (images.decoded(self._bytes(cell.as_py(), place), shape, dtype) for cell in cells)
            with damage(place):
                values = np.stack(list(decoded))
        else:
            if (kind := dtype_of(cells.type)) != column.stored:
                raise ValueError(f"{place} holds {kind} here and {column.stored} in the first file")
            values = numbers(cells, steps, self.meta.features[column.source].get("shape") or [1], place)
        return self._checked(name, values, steps, where)

    def _bytes(self, cell: Any, place: str) -> bytes:
        """The encoded image of a cell, which holds it, or names a file in the data set."""
        if isinstance(cell, bytes):
            return cell
        if isinstance(cell, dict) and isinstance(cell.get("bytes"), bytes):
            return cell["bytes"]
        name = cell.get("path") if isinstance(cell, dict) else cell
        if not isinstance(name, str) or name.startswith("/") or ".." in Path(name).parts or "\0" in name:
            raise ValueError(f"{place} holds neither an image nor the name of a file in the data set")
        from ..archive import read_bounded

        return read_bounded(self.path / name, images.MOST_BYTES)

    def blocks(self, name: str, episode: int, most_bytes: int = BLOCK_BYTES) -> Iterator[np.ndarray]:
        """See `Reader.blocks`. A video is decoded once from the episode's first frame to its last."""
        if self.columns[name].encoding != "video":
            yield from super().blocks(name, episode, most_bytes)
            return
        entry = self.meta.episodes[self._stored[episode]]
        with damage(f"{self.path}: episode {episode}", str(self.path)):
            first, _ = self._find(entry)
            video, index = self._located(entry, name, self._parquet(entry.data), first)
            order, counts = np.unique(index, return_counts=True)
            shape = self.columns[name].feature.shape
            block = np.empty((max(1, min(len(index), most_bytes // int(np.prod(shape)))), *shape), np.uint8)
            filled = 0
            with naming(video, entry.index, self.columns[name].source):
                for frame, count in zip(video.frames(order), counts, strict=True):
                    for _ in range(count):  # more than one where the camera was slower than the rows
                        block[filled] = frame
                        filled += 1
                        if filled == len(block):
                            yield block
                            filled = 0
            if filled:
                yield block[:filled]

    def pick(self, name: str, episode: int, steps: np.ndarray) -> np.ndarray:
        """See `Reader.pick`. A video is opened once."""
        if self.columns[name].encoding != "video":
            return super().pick(name, episode, steps)
        entry = self.meta.episodes[self._stored[episode]]
        with damage(f"{self.path}: episode {episode}", str(self.path)):
            first, _ = self._find(entry)
            video, index = self._located(entry, name, self._parquet(entry.data), first)
            with naming(video, entry.index, self.columns[name].source):
                return video.read(index[steps])

    def times_s(self, episode: int) -> np.ndarray | None:
        """When each row of an episode was recorded (N,), seconds; None where the files do not say.

        Raises:
            ValueError: the times do not grow.
        """
        entry = self.meta.episodes[self._stored[episode]]
        first, _ = self._find(entry)
        times_s, note = row_times(
            self._parquet(entry.data), first, entry, self.meta.fps, f"{entry.data}: {entry.index}"
        )
        return None if note else times_s

    def video_of(self, episode: int, camera: str) -> Path | None:
        """The file that shows the episode; None if it is not there."""
        part = self.meta.episodes[self._stored[episode]].videos.get(self.columns[camera].source)
        return part.file if part and part.file.is_file() else None

    def frame_numbers(self, episode: int, camera: str) -> tuple[VideoFile, np.ndarray]:
        """The video that shows the episode, and the number of each control step's frame in it (N,).

        Raises:
            ValueError: there is no such video, or a step has no frame in it.
        """
        entry = self.meta.episodes[self._stored[episode]]
        first, _ = self._find(entry)
        return self._located(entry, camera, self._parquet(entry.data), first)

    def release(self) -> None:
        """See `Reader.release`. The description of a file with many row groups takes tens of megabytes."""
        for recent in (self._parquet, self._video, self._rows):
            recent.kept.clear()

    def _located(self, entry: EpisodeEntry, name: str, file: ParquetFile, first: int) -> tuple[VideoFile, np.ndarray]:
        """The video of an episode, and the number of each row's frame in it."""
        source = self.columns[name].source
        where = f"{entry.data}: episode {entry.index}: camera {source!r}"
        part = entry.videos.get(source)
        if part is None or not part.file.is_file():
            missing = f"{part.file} is missing" if part else "no video is listed"
            raise ValueError(f"{where}: {missing}; states are usable: choose observations without it")
        video: VideoFile = self._video(part.file)
        expected = self.columns[name].feature.shape[:2]
        if video.shape != expected:
            raise ValueError(f"{part.file}: episode {entry.index}: frames of {video.shape}, expected {expected}")
        times_s, note = row_times(file, first, entry, self.meta.fps, where)
        index, other = frame_indices(entry, source, video, times_s, self.meta.fps)
        for line in filter(None, (note, other)):
            self._once(line)
        return video, index

    def _once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._warn(line)

    def _files(self) -> Iterator[Path]:
        yield from self.meta.files
        yield from {entry.data for entry in self.meta.episodes}
        yield from {part.file for entry in self.meta.episodes for part in entry.videos.values()}


def _height_first(shape: list[int], names: Sequence[str]) -> list[int]:
    """The shape of an image as (H, W, C), for it is written as (C, H, W) too."""
    if len(shape) == 3 and (
        (shape[0] in (1, 3) and shape[2] not in (1, 3)) or list(names[:1]) in (["channel"], ["channels"])
    ):
        return [shape[1], shape[2], shape[0]]
    return shape
