"""Makes small recorded sets in the formats of others, by the libraries themselves and not by what is tested."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FPS = 10


def described(data: Any) -> Any:
    """What an episode of the data set is checked against."""
    return data.spec


def frames_of(episode: int, steps: int, size: tuple[int, int] = (48, 64), camera: int = 0) -> np.ndarray:
    """Frames whose grey level and a moving bar say which they are, though a codec loses a little."""
    frames = np.zeros((steps, *size, 3), np.uint8)
    for step in range(steps):
        frames[step] = 20 + 12 * (step % 16)
        frames[step, :, (3 * step) % size[1] : (3 * step) % size[1] + 6, episode % 3] = 255
        frames[step, :8, :, camera % 3] = 40 * (episode % 6)
    return frames


def write_video(path: Path, frames: np.ndarray, fps: int = FPS, codec: str = "libx264", b_frames: int = 2) -> None:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        options = {"crf": "10"} if codec == "libx264" else {"crf": "20", "preset": "12"}
        stream: Any = container.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = 12
        if codec == "libx264":
            stream.codec_context.max_b_frames = b_frames
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def decoded(path: Path) -> np.ndarray:
    """All frames of a video, one after the other."""
    import av

    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def rows_of(episode: int, steps: int, first: int = 0, size: int = 3, dtype: str = "float32") -> dict[str, np.ndarray]:
    random = np.random.default_rng(episode)
    return {
        "observation.state": random.normal(size=(steps, size)).astype(dtype),
        "action": random.normal(size=(steps, 2)).astype(dtype),
        "timestamp": (np.arange(steps) / FPS).astype(np.float32),
        "frame_index": np.arange(steps),
        "episode_index": np.full(steps, episode),
        "index": np.arange(first, first + steps),
        "task_index": np.full(steps, episode % 2),
    }


def table_of(rows: dict[str, np.ndarray]) -> pa.Table:
    return pa.table({name: pa.array(v.tolist() if v.ndim > 1 else v, _type(v)) for name, v in rows.items()})


def _type(values: np.ndarray) -> pa.DataType:
    kind = pa.from_numpy_dtype(values.dtype)
    for _ in values.shape[1:]:
        kind = pa.list_(kind)
    return kind


FEATURES = {
    "observation.state": {"dtype": "float32", "shape": [3], "names": [["x", "y", "z"]]},
    "action": {"dtype": "float32", "shape": [2], "names": {"motors": ["left", "right"]}},
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    **{name: {"dtype": "int64", "shape": [1], "names": None} for name in ("frame_index", "episode_index", "index")},
    "task_index": {"dtype": "int64", "shape": [1], "names": None},
}
TASKS = ["pick up the cube", "put it down"]


def camera(size: tuple[int, int] = (48, 64)) -> dict:
    return {"dtype": "video", "shape": [*size, 3], "names": ["height", "width", "channel"]}


class Set2:
    """A set of version 2.1 (or 2.0); what is to be odd is changed before `write`."""

    def __init__(self, path: Path, lengths: tuple[int, ...] = (7, 5, 9), cameras: tuple[str, ...] = (), version="v2.1"):
        self.path, self.lengths, self.cameras = path, lengths, cameras
        self.features = {**copy.deepcopy(FEATURES), **{f"observation.images.{name}": camera() for name in cameras}}
        self.info = {"codebase_version": version, "robot_type": "two motors", "fps": FPS, "chunks_size": 1000}
        self.info |= {"total_episodes": len(lengths), "splits": {"train": f"0:{len(lengths)}"}}
        self.info |= {"data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"}
        self.info |= {"video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"}
        starts = np.cumsum([0, *lengths])
        self.rows = [rows_of(e, n, int(starts[e])) for e, n in enumerate(lengths)]
        self.episodes = [
            {"episode_index": e, "tasks": [TASKS[e % 2]], "length": n} for e, n in enumerate(lengths)
        ]  # fmt: skip
        self.frames = {
            name: [frames_of(e, n, camera=c) for e, n in enumerate(lengths)] for c, name in enumerate(cameras)
        }

    def write(self) -> Path:
        meta = self.path / "meta"
        meta.mkdir(parents=True)
        (meta / "info.json").write_text(json.dumps({**self.info, "features": self.features}))
        (meta / "episodes.jsonl").write_text("\n".join(map(json.dumps, self.episodes)))
        tasks = [{"task_index": i, "task": text} for i, text in enumerate(TASKS)]
        (meta / "tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)))
        for episode, rows in enumerate(self.rows):
            file = self.data(episode)
            file.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(rows if isinstance(rows, pa.Table) else table_of(rows), file)
        for name, videos in self.frames.items():
            for episode, frames in enumerate(videos):
                write_video(self.video(name, episode), frames)
        return self.path

    def data(self, episode: int) -> Path:
        return self.path / "data" / f"chunk-{episode // 1000:03d}" / f"episode_{episode:06d}.parquet"

    def video(self, name: str, episode: int) -> Path:
        return self.path / "videos" / "chunk-000" / f"observation.images.{name}" / f"episode_{episode:06d}.mp4"


class Set3:
    """A set of version 3.0: several data files and videos of uneven length, several row groups."""

    def __init__(
        self,
        path: Path,
        lengths: tuple[int, ...] = (7, 5, 9, 4, 6),
        data_files: tuple[tuple[int, ...], ...] = ((0,), (1, 2, 3), (4,)),
        video_files: dict[str, tuple[tuple[int, ...], ...]] | None = None,
        codec: str = "libx264",
    ):
        self.path, self.lengths, self.data_files, self.codec = path, lengths, data_files, codec
        self.video_files = video_files or {}
        self.features = {
            **copy.deepcopy(FEATURES),
            **{f"observation.images.{name}": camera() for name in self.video_files},
        }
        self.info = {"codebase_version": "v3.0", "robot_type": "two motors", "fps": FPS, "total_episodes": len(lengths)}
        self.info |= {"data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"}
        self.info |= {"video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"}
        starts = np.cumsum([0, *lengths])
        self.rows = [rows_of(e, n, int(starts[e])) for e, n in enumerate(lengths)]
        self.frames = {
            name: [frames_of(e, n, camera=c) for e, n in enumerate(lengths)] for c, name in enumerate(self.video_files)
        }
        self.task_column = "task"
        self.episodes = self._episodes(starts)

    def _episodes(self, starts: np.ndarray) -> list[dict]:
        rows = []
        for e, n in enumerate(self.lengths):
            file = next(i for i, episodes in enumerate(self.data_files) if e in episodes)
            row = {
                "episode_index": e,
                "tasks": [TASKS[e % 2]],
                "length": n,
                "data/chunk_index": 0,
                "data/file_index": file,
            }
            row |= {"dataset_from_index": int(starts[e]), "dataset_to_index": int(starts[e] + n)}
            for name, files in self.video_files.items():
                file = next(i for i, episodes in enumerate(files) if e in episodes)
                before = sum(self.lengths[other] for other in files[file] if other < e)
                key = f"videos/observation.images.{name}"
                row |= {f"{key}/chunk_index": 0, f"{key}/file_index": file}
                row |= {f"{key}/from_timestamp": before / FPS, f"{key}/to_timestamp": (before + n) / FPS}
            rows.append(row)
        return rows

    def write(self) -> Path:
        meta = self.path / "meta"
        (meta / "episodes" / "chunk-000").mkdir(parents=True)
        (meta / "info.json").write_text(json.dumps({**self.info, "features": self.features}))
        tasks = {self.task_column: TASKS, "task_index": [0, 1]}
        pq.write_table(pa.table(tasks), meta / "tasks.parquet")
        table = pa.Table.from_pylist(self.episodes)
        pq.write_table(table, meta / "episodes" / "chunk-000" / "file-000.parquet", row_group_size=2)
        for number, episodes in enumerate(self.data_files):
            file = self.data(number)
            file.parent.mkdir(parents=True, exist_ok=True)
            rows = [self.rows[e] for e in episodes]
            tables = [part if isinstance(part, pa.Table) else table_of(part) for part in rows]
            pq.write_table(pa.concat_tables(tables), file, row_group_size=4)
        for name, files in self.video_files.items():
            for number, episodes in enumerate(files):
                frames = np.concatenate([self.frames[name][e] for e in episodes])
                write_video(self.video(name, number), frames, codec=self.codec)
        return self.path

    def data(self, number: int) -> Path:
        return self.path / "data" / "chunk-000" / f"file-{number:03d}.parquet"

    def video(self, name: str, number: int) -> Path:
        return self.path / "videos" / f"observation.images.{name}" / "chunk-000" / f"file-{number:03d}.mp4"
