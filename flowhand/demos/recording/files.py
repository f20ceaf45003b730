"""A LeRobot set that grows by one episode at a time, and is whole after each of them.

The files of an episode are written into a folder beside the set, forced to the disk, and renamed in: videos, rows and
texts first, then the table of the episode, statistics, and `info.json` last. Until that one is replaced a reader counts
the earlier episodes alone, and all their files are as they were. What a killed recorder has renamed in of an episode
that is not counted is taken out again when the set is opened for recording.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowhand.contracts.durable import sync

from ..lerobot.meta import DATA, VIDEO, fill
from ..lerobot.parquet import EXTRA, ParquetFile
from ..lerobot.parts import place_of
from ..lerobot.tables import DEFAULTS, write_info, write_json, write_tasks
from ..lerobot.video import FILES_OF_CHUNK
from ..reader import read_json, required
from .layout import Layout, require_fit
from .stats import joined, of_episode

EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
NUMBERED = re.compile(r"chunk-(\d+)/file-(\d+)\.(?:parquet|mp4)$")


def place(template: str, number: int, video: str = "") -> str:
    """The relative path of a numbered file."""
    chunk, file = divmod(number, FILES_OF_CHUNK)
    return fill(template, {"chunk_index": chunk, "file_index": file, "video_key": video})


def number_of(row: Mapping[str, Any], what: str) -> int:
    """The number of the file in which an episode lies: `data`, `meta/episodes` or `videos/<column>`."""
    return row[f"{what}/chunk_index"] * FILES_OF_CHUNK + row[f"{what}/file_index"]


def rows_of(root: Path) -> list[dict[str, Any]]:
    """The rows of the table of episodes, by number; each with the file in which it stands under `_file`."""
    found = []
    for file in sorted((root / "meta" / "episodes").glob("*/*.parquet")):
        found += [{**row, "_file": file} for row in ParquetFile(file).file.read().to_pylist()]
    return sorted(found, key=lambda row: row["episode_index"])


class GrowingSet:
    """The set at `root`, new or with episodes.

    Args:
        root: its folder.
        staging: a folder on the same disk, for what is unfinished; it is emptied.
        layout: of the episodes to come.

    Attributes:
        episodes: that are whole.
        steps: of all of them.
        lines: on what was found and mended.

    Raises:
        ValueError: there is a set of other columns, rate or robot, or something else.
    """

    def __init__(self, root: Path, staging: Path, layout: Layout):
        self.root, self.staging, self.layout = root, staging, layout
        self.lines: list[str] = []
        self.info: dict[str, Any] = {}
        self.tasks: dict[str, int] = {}
        self.stats: dict[str, Any] = {}
        self.episodes = self.steps = 0
        self.seeds: list[int] = []  # of the episodes that a world has made
        self._schemas: dict[str, Any] = {}  # of the tables that are there
        self._next: dict[str, int] = {}  # numbers of the next files
        self._videos = [layout.columns[name] for name in layout.videos]
        self.emptied()
        if (root / "meta" / "info.json").is_file():
            self._take_up()
            return
        for file in root.rglob("*"):
            at = file.relative_to(root).as_posix()
            if not (file.is_dir() or NUMBERED.search(at) or at in ("meta/tasks.parquet", "meta/stats.json")):
                raise ValueError(f"{root} exists and is no LeRobot data set (it has {at}); choose another data.path")
        self._take_out([])

    def _take_up(self) -> None:
        self.info = read_json(self.root / "meta" / "info.json")
        if self.info.get("codebase_version") != "v3.0":
            raise ValueError(
                f"{self.root} is of version {self.info.get('codebase_version')!r}, which is not extended; "
                "flowhand convert makes it one of v3.0"
            )
        require_fit(self.info, self.layout, self.root)
        self.episodes, self.steps = self.info["total_episodes"], self.info["total_frames"]
        rows = rows_of(self.root)
        kept = [row for row in rows if row["episode_index"] < self.episodes]
        if [row["episode_index"] for row in kept] != list(range(self.episodes)):
            raise ValueError(f"{self.root} says {self.episodes} episodes, but not all of them are listed")
        table = ParquetFile(self.root / "meta" / "tasks.parquet").file.read().to_pydict()
        texts = table.get("task") or table["__index_level_0__"]
        self.tasks = dict(zip(texts, table["task_index"], strict=True))
        self.stats = read_json(self.root / "meta" / "stats.json") if (self.root / "meta/stats.json").is_file() else {}
        if kept:
            self._schemas = {
                "episodes": ParquetFile(kept[0]["_file"]).file.schema_arrow,
                "data": ParquetFile(self.root / place(DATA[3], number_of(kept[0], "data"))).file.schema_arrow,
            }
        whats = ["data", "meta/episodes", *(f"videos/{column}" for column in self._videos)]
        self._next = {what: 1 + max((number_of(row, what) for row in kept), default=-1) for what in whats[2:]}
        self._next["data"] = 1 + max((number_of(row, "data") for row in kept), default=-1)
        files = [NUMBERED.search(str(row["_file"])) for row in kept]
        self._next["meta/episodes"] = 1 + max((int(m[1]) * FILES_OF_CHUNK + int(m[2]) for m in files if m), default=-1)
        self.seeds = [row["seed"] for row in kept if row.get("seed") is not None]
        self._take_out(rows[len(kept) :])
        if len(rows) > len(kept) or self._is_uncounted():
            parts = [of_episode(row) for row in kept]
            self.stats = {name: joined(p[name] for p in parts) for name in parts[0]} if parts else {}
            write_json(self.staging / "stats.json", self.stats)
            self._put_in({"stats.json": "meta/stats.json"})

    def _is_uncounted(self) -> bool:
        """Whether the statistics are of other rows than are counted."""
        counts = [int(found["count"][0]) for name, found in self.stats.items() if name == "action"]
        return bool(counts) and counts[0] != self.steps

    def _take_out(self, uncounted: Sequence[Mapping[str, Any]]) -> None:
        """Removes the files of an episode that a killed recorder had not counted yet, tables first."""
        for file in {row["_file"] for row in uncounted}:
            if ParquetFile(file).file.metadata.num_rows != sum(row["_file"] == file for row in uncounted):
                raise ValueError(f"{file} lists episodes that info.json does not count among some that it does")
        found = list(self._beyond())
        for file in sorted(found, key=lambda file: "meta" not in file.parts):
            file.unlink()
        if found:
            self.lines.append(f"{self.root}: an episode that was not finished was removed ({len(found)} files)")

    def _beyond(self) -> Iterator[Path]:
        """Numbered files that no counted episode has and that come after all that one has."""
        folders = {"data": self.root / "data", "meta/episodes": self.root / "meta" / "episodes"}
        folders |= {f"videos/{column}": self.root / "videos" / column for column in self._videos}
        for what, folder in folders.items():
            for file in folder.glob("*/*"):
                match = NUMBERED.search(str(file))
                if match and int(match[1]) * FILES_OF_CHUNK + int(match[2]) >= self._next.get(what, 0):
                    yield file

    def add(
        self, columns: Mapping[str, Any], steps: int, task: str, stats: Mapping[str, Mapping[str, np.ndarray]],
        videos: Mapping[str, Path], seed: int | None,
    ) -> int:  # fmt: skip
        """Adds an episode; it is on the disk, and counted, when this returns.

        Args:
            columns: the rows, an arrow column each.
            steps: how many.
            task: instruction in words.
            stats: of each column.
            videos: the finished file of each camera, by column; it is moved.
            seed: of a simulated world; None: there is none.

        Returns:
            The number of the episode.
        """
        number, tasks = self.episodes, dict(self.tasks)
        task_number = tasks.setdefault(task, len(tasks))
        numbers = {what: self._next.get(what, 0) for what in ("data", "meta/episodes")}
        row: dict[str, Any] = {"episode_index": number, "tasks": [task], "length": steps, "seed": seed}
        row |= {
            f"stats/{name}/{key}": np.asarray(v).tolist() for name, all_ in stats.items() for key, v in all_.items()
        }
        for what, at in numbers.items():
            row |= place_of(what, at)
        row |= {"dataset_from_index": self.steps, "dataset_to_index": self.steps + steps}
        moves: dict[str, str] = {}
        for column, file in videos.items():
            at = self._next.get(f"videos/{column}", 0)
            row |= place_of(f"videos/{column}", at)
            row |= {f"videos/{column}/from_timestamp": 0.0, f"videos/{column}/to_timestamp": steps / self.layout.fps}
            moves[str(file.relative_to(self.staging))] = place(VIDEO[3], at, column)
        self._write_rows(columns, steps, number, task_number)
        moves["rows.parquet"] = place(DATA[3], numbers["data"])
        if len(tasks) > len(self.tasks):
            (self.staging / "meta").mkdir(exist_ok=True)
            write_tasks(self.staging, tasks)
            moves["meta/tasks.parquet"] = "meta/tasks.parquet"
        self._write_episode(row)
        moves["episode.parquet"] = place(EPISODES, numbers["meta/episodes"])
        self._finish(moves, row, steps, tasks)
        return number

    def _write_rows(self, columns: Mapping[str, Any], steps: int, number: int, task: int) -> None:
        pa, pq = required("pyarrow", EXTRA), required("pyarrow.parquet", EXTRA)
        count = np.arange(steps)
        values = (count / self.layout.fps, count, np.full(steps, number), self.steps + count, np.full(steps, task))
        extra = {name: pa.array(v.astype(dtype)) for (name, dtype), v in zip(DEFAULTS.items(), values, strict=True)}
        table = _cast(pa.table({**columns, **extra}), self._schemas.get("data"))
        self._schemas.setdefault("data", table.schema)
        pq.write_table(table, str(self.staging / "rows.parquet"), compression="snappy", row_group_size=max(steps, 1))

    def _write_episode(self, row: Mapping[str, Any]) -> None:
        pa, pq = required("pyarrow", EXTRA), required("pyarrow.parquet", EXTRA)
        schema = self._schemas.get("episodes")
        if schema is None:
            table = pa.Table.from_pylist([row])
            place_ = table.schema.get_field_index("seed")
            if row["seed"] is None:
                table = table.set_column(place_, "seed", pa.array([None], pa.int64()))
            self._schemas["episodes"] = table.schema
        else:
            table = pa.Table.from_pylist([row], schema=schema)
        pq.write_table(table, str(self.staging / "episode.parquet"))

    def _finish(self, moves: dict[str, str], row: Mapping[str, Any], steps: int, tasks: dict[str, int]) -> None:
        """Renames the files in, the order of which says what is finished, and counts the episode."""
        own = of_episode(row)
        stats = {
            name: joined([self.stats[name], found] if name in self.stats else [found])
            for name, found in own.items()
            if name in self.stats or not self.episodes
        }
        write_json(self.staging / "stats.json", {**self.stats, **stats})
        totals = (self.episodes + 1, self.steps + steps, len(tasks))
        info = {**self.info, **_totals(totals)} if self.info else self._new_info(totals)
        write_json(self.staging / "info.json", info)
        moves |= {"stats.json": "meta/stats.json", "info.json": "meta/info.json"}
        self._put_in(moves)
        self.info, self.tasks, self.stats = info, tasks, {**self.stats, **stats}
        self.episodes, self.steps = totals[:2]
        self.seeds += [] if row["seed"] is None else [row["seed"]]
        for what in ("data", "meta/episodes", *(f"videos/{column}" for column in self._videos)):
            self._next[what] = self._next.get(what, 0) + 1

    def _new_info(self, totals: tuple[int, int, int]) -> dict[str, Any]:
        features = self.layout.entries(self.staging / "unused")
        (self.staging / "meta").mkdir(exist_ok=True)
        write_info(self.staging, self.layout.robot, self.layout.fps, totals, features, bool(self._videos))
        return read_json(self.staging / "meta" / "info.json")

    def _put_in(self, moves: Mapping[str, str]) -> None:
        """Renames files out of the staging folder, in order, after all of them are on the disk."""
        for source in moves:
            sync(self.staging / source)
        for source, target in moves.items():
            path = self.root / target
            if not path.parent.is_dir():
                path.parent.mkdir(parents=True)
                for folder in (path.parent, *path.parent.parents[: len(Path(target).parts) - 1]):
                    sync(folder.parent)
            (self.staging / source).replace(path)
            sync(path.parent)

    def emptied(self) -> Path:
        """The staging folder, with nothing in it."""
        for entry in self.staging.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != "writer.lock":
                entry.unlink()
        return self.staging


def _totals(totals: tuple[int, int, int]) -> dict[str, Any]:
    episodes, steps, tasks = totals
    return {"total_episodes": episodes, "total_frames": steps, "total_tasks": tasks,
            "splits": {"train": f"0:{episodes}"}}  # fmt: skip


def _cast(table: Any, schema: Any) -> Any:
    """The table with the columns and types of those that are there already."""
    return table if schema is None else table.select(schema.names).cast(schema)
