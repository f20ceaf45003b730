"""Joins the files of a recorded LeRobot set into larger ones, so that readers open few of them.

The joined set is written into a second folder, forced to the disk, read back, and exchanged with the first in one step
of the system (renameat2). A kill at any moment leaves one of the two at the path, whole. Videos are joined packet by
packet, and nothing is encoded again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import closing, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

from flowhand.contracts.durable import exchange, sync

from ..lerobot.dataset import LeRobotDataset
from ..lerobot.meta import DATA, VIDEO
from ..lerobot.parquet import EXTRA, ParquetFile
from ..lerobot.parts import place_of
from ..lerobot.sink import Sink
from ..reader import read_json, required
from .files import EPISODES, number_of, place, rows_of

Row = dict[str, Any]
APART = ("data", "videos", "meta/episodes")  # folders that are written anew; the rest is copied


def compact(root: Path, new: Path, data_mb: float, video_mb: float) -> str:
    """Joins the files of the set at `root`, up to so many megabytes each.

    Args:
        root: the set.
        new: a folder beside it that does not exist, for the second set.
        data_mb: of a data file.
        video_mb: of a video.

    Returns:
        A line on what was done, or why it was not.

    Raises:
        ValueError: what was written cannot be read back; the set is as it was.
        OSError: the disk does not take it; the set is as it was.
    """
    rows, info = rows_of(root), read_json(root / "meta" / "info.json")
    cameras = [name for name, found in info["features"].items() if found["dtype"] == "video"]
    whats = {"data": (DATA[3], data_mb), **{f"videos/{name}": (VIDEO[3], video_mb) for name in cameras}}
    groups = {what: _groups(root, rows, what, *about) for what, about in whats.items()}
    if all(len(group) == 1 for found in groups.values() for group in found):
        return ""
    shutil.rmtree(new, ignore_errors=True)  # of one that was killed
    before = sum(len(group) for found in groups.values() for group in found)
    try:
        _write(root, new, rows, info, groups)
        _require_same(LeRobotDataset(new), rows, cameras)
        if not exchange(new, root):
            return f"{root}: files were not joined: this system cannot exchange two folders in one step"
        sync(root.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return f"{root}: {before} files joined to {sum(map(len, groups.values()))}"


def _groups(root: Path, rows: Sequence[Row], what: str, template: str, most_mb: float) -> list[list[int]]:
    """Numbers of the files that become one, in the order of their episodes."""
    groups: list[list[int]] = []
    size, kind, column = 0.0, None, what.partition("/")[2]
    for number in dict.fromkeys(number_of(row, what) for row in rows if row.get(f"{what}/file_index") is not None):
        file = root / place(template, number, column)
        own, its = file.stat().st_size / 2**20, _encoding(file) if column else None
        if groups and size + own <= most_mb and its == kind:
            groups[-1].append(number)
            size += own
        else:
            groups.append([number])
            size, kind = own, its
    return groups


def _encoding(file: Path) -> Any:
    """What two videos must have in common to be joined packet by packet."""
    import av

    with av.open(str(file)) as container:
        context = container.streams.video[0].codec_context
        return context.codec.canonical_name, context.pix_fmt, context.width, context.height, context.extradata


def _write(root: Path, new: Path, rows: list[Row], info: Row, groups: dict[str, list[list[int]]]) -> None:
    pa, pq = required("pyarrow", EXTRA), required("pyarrow.parquet", EXTRA)
    skipped = {root / name for name in APART}
    shutil.copytree(root, new, ignore=lambda at, names: [n for n in names if Path(at) / n in skipped])
    schema = ParquetFile(rows[0]["_file"]).file.schema_arrow
    for what, found in groups.items():
        column = what.partition("/")[2]
        for number, group in enumerate(found):
            template = VIDEO[3] if column else DATA[3]
            sources = [root / place(template, one, column) for one in group]
            target = new / place(template, number, column)
            target.parent.mkdir(parents=True, exist_ok=True)
            if len(sources) == 1:
                _taken(sources[0], target)
                begins = [0.0]
            elif column:
                begins = _join_videos(sources, target, info["fps"])
            else:
                begins = [0.0] * len(sources)
                _join_tables(sources, target)
            for row in rows:
                if row.get(f"{what}/file_index") is not None and (old := number_of(row, what)) in group:
                    row.setdefault("_new", {}).update(place_of(what, number))
                    if column:
                        for end in ("from_timestamp", "to_timestamp"):
                            row["_new"][f"{what}/{end}"] = row[f"{what}/{end}"] + begins[group.index(old)]
    listed = [{**row, **row["_new"], **place_of("meta/episodes", 0)} for row in rows]
    file = new / place(EPISODES, 0)
    file.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(listed, schema=schema), str(file))
    for one in [*new.rglob("*"), new]:
        sync(one)


def _taken(source: Path, target: Path) -> None:
    """The same file, without a copy where the disk can do without."""
    with suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)


def _join_tables(sources: Sequence[Path], target: Path) -> None:
    """Keeps every group of rows, which is one episode."""
    pq = required("pyarrow.parquet", EXTRA)
    schema = ParquetFile(sources[0]).file.schema_arrow
    with pq.ParquetWriter(str(target), schema, compression="snappy") as writer:
        for source in sources:
            file = ParquetFile(source).file
            for group in range(file.num_row_groups):
                writer.write_table(file.read_row_group(group).cast(schema))


def _join_videos(sources: Sequence[Path], target: Path, fps: int) -> list[float]:
    """One video after the other; when each begins, seconds."""
    import av

    begins, frames = [], 0
    with closing(Sink(target)) as sink, av.open(sink, "w", format="mp4") as output:
        stream: Any = None
        for source in sources:
            begins.append(frames / fps)
            with av.open(str(source)) as container:
                own = container.streams.video[0]
                if stream is None:
                    stream = output.add_stream_from_template(own)
                shift = int(Fraction(frames, fps) / Fraction(own.time_base or 1))
                for packet in container.demux(own):
                    if packet.dts is None or packet.pts is None:  # the end
                        continue
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = stream
                    output.mux(packet)
                    frames += 1
    return begins


def _require_same(joined: LeRobotDataset, rows: Sequence[Row], cameras: Sequence[str]) -> None:
    """Raises `ValueError` unless all episodes are there, with a frame for every row."""
    if list(joined.lengths) != [row["length"] for row in rows]:
        raise ValueError(f"{joined.path}: other episodes than before were read back; the set is left as it was")
    for camera in [name for name, column in joined.columns.items() if column.source in cameras]:
        for episode, length in enumerate(joined.lengths):
            if len(joined.frame_numbers(episode, camera)[1]) != length:
                raise ValueError(f"{joined.path}: episode {episode} lacks frames of {camera!r}")
