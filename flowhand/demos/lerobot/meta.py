"""What a LeRobot data set says about itself: rate, features, tasks, and where each episode lies."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowhand.contracts.data.episode import shown

from ..archive import read_bounded
from ..reader import MOST_JSON_BYTES, read_json, require_rate
from .parquet import ParquetFile

VERSIONS = ("v2.0", "v2.1", "v3.0")
MOST_EPISODES = 10**7
# Where files lie unless `info.json` says otherwise, and where they lie when its own template leads to nothing.
DATA = {
    2: "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    3: "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
}
VIDEO = {
    2: "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    3: "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}
_SLOT = re.compile(r"\{(\w{1,40})(?::0?([1-9])d)?\}")


@dataclass
class VideoPart:
    """The part of a video file that belongs to one episode."""

    file: Path
    begin_s: float = 0.0  # in the file
    end_s: float = math.inf


@dataclass
class EpisodeEntry:
    """Where one episode lies."""

    index: int  # its number in the column `episode_index`
    length: int
    tasks: list[str]
    data: Path
    videos: dict[str, VideoPart] = field(default_factory=dict)  # by feature


@dataclass
class Meta:
    """All of a data set but the rows and the frames."""

    root: Path
    version: str
    fps: float
    features: dict[str, dict[str, Any]]
    robot: str
    episodes: list[EpisodeEntry]
    tasks: dict[int, str]
    splits: dict[str, range]  # of episodes, cut to those that there are
    files: list[Path]  # that this was read from
    warnings: list[str]


def fill(template: str, values: Mapping[str, Any]) -> str:
    """A relative path out of a template such as "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet".

    Raises:
        ValueError: an unknown slot, or a path that leads out of the data set.
    """

    def slot(match: re.Match[str]) -> str:
        name, digits = match.groups()
        if name not in values:
            raise ValueError(f"the template {shown(template)} has the slot {name!r}; known: {', '.join(values)}")
        value = values[name]
        return f"{value:0{digits}d}" if digits and isinstance(value, int) else str(value)

    path = _SLOT.sub(slot, template)
    if re.search(r"[{}\0\\]", path) or path.startswith("/") or ".." in path.split("/") or len(path) > 1000:
        raise ValueError(f"the template {shown(template)} gives {shown(path)}, which is no path in the data set")
    return path


class _Places:
    """Finds files, and remembers which template was wrong."""

    def __init__(self, root: Path, info: Mapping[str, Any], major: int):
        self.root, self.major = root, major
        self.warnings: dict[str, str] = {}
        self.known: dict[tuple[Any, ...], Path] = {}
        self.templates: dict[str, list[str]] = {}
        for key, standard in (("data_path", DATA[major]), ("video_path", VIDEO[major])):
            given = info.get(key)
            if given is not None and not isinstance(given, str):
                raise ValueError(f"{root / 'meta/info.json'}: {key} is {shown(given)}, expected a path with slots")
            self.templates[key] = list(dict.fromkeys([given or standard, standard]))

    def __call__(self, key: str, values: Mapping[str, Any]) -> Path:
        """The file that the template leads to; the standard place, if there is nothing and that has it."""
        known = (key, *values.values())
        if known not in self.known:
            self.known[known] = self._find(key, values)
        return self.known[known]

    def _find(self, key: str, values: Mapping[str, Any]) -> Path:
        paths = [self.root / fill(template, values) for template in self.templates[key]]
        for number, path in enumerate(paths):
            if path.is_file():
                if number:
                    given = self.templates[key][0]
                    self.warnings[key] = f"{key} {given!r} leads to no file; {path.relative_to(self.root)} was found"
                return path
        return paths[0]


def read_meta(root: Path) -> Meta:
    """Reads everything below `meta/`, for any of the versions.

    Raises:
        ValueError: it is damaged, or of another version; the line names the file.
    """
    file = root / "meta" / "info.json"
    info = read_json(file)
    version = info.get("codebase_version")
    if version not in VERSIONS:
        raise ValueError(f"{file}: codebase_version is {shown(version)}, expected one of {', '.join(VERSIONS)}")
    fps = require_rate(info.get("fps"), f"{file}: fps")
    features = _features(info.get("features"), file)
    places, cameras = _Places(root, info, int(version[1])), [k for k, f in features.items() if f["dtype"] == "video"]
    read = _episodes_3 if version == "v3.0" else _episodes_2
    tasks, files, warnings = _tasks(root)
    episodes, more = read(root, places, cameras, info)
    if not episodes:
        raise ValueError(f"{root} has no episodes")
    warnings += places.warnings.values()
    if info.get("total_episodes") not in (None, len(episodes)):
        warnings.append(f"total_episodes is {shown(info.get('total_episodes'))}, but {len(episodes)} are listed")
    splits, more_warnings = _splits(info.get("splits"), len(episodes))
    robot = info.get("robot_type")
    return Meta(
        root, version, fps, features, robot if isinstance(robot, str) else "", episodes, tasks, splits,
        [file, *files, *more], warnings + more_warnings,
    )  # fmt: skip


def _features(value: Any, file: Path) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{file}: features is {shown(value)}, expected a mapping of names to features")
    for name, feature in value.items():
        if not isinstance(feature, dict) or not isinstance(feature.get("dtype"), str):
            raise ValueError(
                f"{file}: feature {name!r} is {shown(feature)}, expected a mapping with its dtype and shape"
            )
        shape = feature.get("shape")
        whole = isinstance(shape, list) and all(type(n) is int and 0 < n < 2**31 for n in shape) and len(shape) <= 8
        if not whole and feature["dtype"] not in ("language", "string"):
            raise ValueError(f"{file}: feature {name!r} has shape {shown(shape)}, expected a list of sizes above 0")
    return value


def _splits(value: Any, count: int) -> tuple[dict[str, range], list[str]]:
    splits, warnings = {}, []
    for name, text in value.items() if isinstance(value, dict) else ():
        match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text) if isinstance(text, str) else None
        if match is None:
            warnings.append(f"split {shown(name)} is {shown(text)}, expected FIRST:END; it is left out")
            continue
        first, end = int(match[1]), int(match[2])
        if end > count:
            warnings.append(
                f"split {name!r} is {text}, but there are {count} episodes; it is cut to {min(first, count)}:{count}"
            )
        splits[str(name)] = range(min(first, count), min(end, count))
    return splits, warnings


def _lines(file: Path) -> list[dict[str, Any]]:
    try:
        found = [json.loads(line) for line in read_bounded(file, MOST_JSON_BYTES).splitlines() if line.strip()]
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(f"{file}: {' '.join(str(error).split())[:200]}") from error
    for number, line in enumerate(found):
        if not isinstance(line, dict):
            raise ValueError(f"{file}: line {number + 1} is {shown(line)}, expected a JSON object")
    return found


def _whole(value: Any, where: str, most: int = 2**40) -> int:
    if type(value) is not int or not 0 <= value < most:
        raise ValueError(f"{where} is {shown(value)}, expected a whole number below {most}")
    return value


def _texts(value: Any, where: str) -> list[str]:
    value = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{where}: tasks is {shown(value)}, expected a list of texts")
    return value


def _tasks(root: Path) -> tuple[dict[int, str], list[Path], list[str]]:
    """Text by task index; the files read; warnings."""
    lines, table = root / "meta" / "tasks.jsonl", root / "meta" / "tasks.parquet"
    if table.is_file():
        return _task_table(table), [table], []
    if not lines.is_file():
        return {}, [], ["no meta/tasks.parquet or meta/tasks.jsonl: task texts are those that the episodes list"]
    tasks = {}
    for number, line in enumerate(_lines(lines)):
        text = line.get("task")
        if not isinstance(text, str):
            raise ValueError(f"{lines}: line {number + 1}: task is {shown(text)}, expected a text")
        tasks[_whole(line.get("task_index"), f"{lines}: line {number + 1}: task_index")] = text
    return tasks, [lines], []


def _task_table(file: Path) -> dict[int, str]:
    """The texts are in a column `task`, or in the frame's index, whatever that is called."""
    parquet = ParquetFile(file)
    columns = {name: parquet.table([name]).column(name).to_pylist() for name in parquet.names}
    numbers = columns.pop("task_index", None)
    texts = {name: c for name, c in columns.items() if all(isinstance(text, str) for text in c)}
    chosen = [name for name in ("task", "__index_level_0__") if name in texts] or list(texts)
    if numbers is None or not chosen or (len(chosen) > 1 and chosen[0] not in ("task", "__index_level_0__")):
        raise ValueError(f"{file}: columns {', '.join(parquet.names)[:200]}; expected task_index and one of texts")
    return {_whole(n, f"{file}: task_index"): text for n, text in zip(numbers, texts[chosen[0]], strict=True)}


def _episodes_2(
    root: Path, places: _Places, cameras: Sequence[str], info: Mapping[str, Any]
) -> tuple[list[EpisodeEntry], list[Path]]:
    file = root / "meta" / "episodes.jsonl"
    size = _whole(info.get("chunks_size", 1000), f"{root / 'meta/info.json'}: chunks_size") or 1000
    entries = []
    for number, line in enumerate(_lines(file)):
        where = f"{file}: line {number + 1}"
        index = _whole(line.get("episode_index"), f"{where}: episode_index", MOST_EPISODES)
        values = {"episode_chunk": index // size, "episode_index": index}
        videos = {key: VideoPart(places("video_path", {**values, "video_key": key})) for key in cameras}
        length = _whole(line.get("length"), f"{where}: length")
        entries.append(
            EpisodeEntry(index, length, _texts(line.get("tasks"), where), places("data_path", values), videos)
        )
    return _unique(entries, file), [file]


def _episodes_3(
    root: Path, places: _Places, cameras: Sequence[str], info: Mapping[str, Any]
) -> tuple[list[EpisodeEntry], list[Path]]:
    folder = root / "meta" / "episodes"
    files = sorted(folder.glob("*/*.parquet"), key=lambda file: [int(n) for n in re.findall(r"\d{1,12}", str(file))])
    if not files:
        raise ValueError(f"{folder} holds no parquet files; was the writer stopped before it had finished?")
    entries: list[EpisodeEntry] = []
    for file in files:
        parquet = ParquetFile(file)
        if len(entries) + len(parquet) > MOST_EPISODES:
            raise ValueError(f"{file}: more than {MOST_EPISODES} episodes")
        listed = {key: names for key in cameras if set(names := _video_columns(key)) <= set(parquet.names)}
        names = ["episode_index", "length", "data/chunk_index", "data/file_index"]
        names += ["tasks"] if "tasks" in parquet.names else []
        rows = parquet.table([*names, *(n for group in listed.values() for n in group)]).to_pylist()
        entries += [_entry_3(row, listed, places, f"{file}: episode {shown(row['episode_index'])}") for row in rows]
    return _unique(entries, folder), files


def _video_columns(key: str) -> list[str]:
    return [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")]


def _entry_3(row: Mapping[str, Any], listed: Mapping[str, list[str]], places: _Places, where: str) -> EpisodeEntry:
    def place(key: str, chunk: str, file: str, **more: str) -> Path:
        numbers = {name: _whole(row[column], f"{where}: {column}") for name, column in
                   (("chunk_index", chunk), ("file_index", file))}  # fmt: skip
        return places(key, {**numbers, **more})

    videos: dict[str, VideoPart] = {}
    for key, (chunk, number, begin, end) in listed.items():
        if row[chunk] is None and row[number] is None:
            continue  # this episode has no such video
        for name in (begin, end):
            if not isinstance(row[name], float) or not 0 <= row[name] < 1e9:
                raise ValueError(f"{where}: {name} is {shown(row[name])}, expected seconds")
        videos[key] = VideoPart(place("video_path", chunk, number, video_key=key), row[begin], row[end])
    return EpisodeEntry(
        _whole(row["episode_index"], f"{where}: episode_index", MOST_EPISODES),
        _whole(row["length"], f"{where}: length"),
        _texts(row.get("tasks"), where),
        place("data_path", "data/chunk_index", "data/file_index"),
        videos,
    )


def _unique(entries: list[EpisodeEntry], file: Path) -> list[EpisodeEntry]:
    seen: set[int] = set()
    for entry in entries:
        if entry.index in seen:
            raise ValueError(f"{file}: episode {entry.index} is listed twice")
        seen.add(entry.index)
    return sorted(entries, key=lambda entry: entry.index)
