"""Where the rows and the frames of an episode are, by what the files say of themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np

from ..frames import VideoFile
from .meta import EpisodeEntry
from .parquet import ParquetFile, numbers

ROWS_AT_ONCE = 2**20  # of the column of episodes


def episode_rows(file: ParquetFile, entries: Sequence[EpisodeEntry]) -> dict[int, tuple[int, int]]:
    """First and last row (exclusive) of each episode in a data file, by its column `episode_index`.

    Args:
        file: the data file.
        entries: the episodes that the metadata place there, in order; used where the file has no such column.

    Raises:
        ValueError: the rows of an episode lie apart, or there are not as many rows as are listed.
    """
    if "episode_index" not in file.names:
        return _listed(file, entries)
    found: dict[int, tuple[int, int]] = {}
    where = f"{file.path}: column 'episode_index'"
    edges = [*range(0, len(file), ROWS_AT_ONCE), len(file)]
    for first, end in pairwise(edges):
        rows = file.table(["episode_index"], first, end).column("episode_index")
        values = numbers(rows, end - first, [1], where).reshape(-1)
        cuts = np.flatnonzero(np.diff(values)) + 1
        for begin, until in zip([0, *cuts.tolist()], [*cuts.tolist(), len(values)], strict=True):
            if begin == until:
                continue
            episode, known = int(values[begin]), found.get(int(values[begin]))
            if known and known[1] != first + begin:
                raise ValueError(f"{where}: the rows of episode {episode} lie apart, at {known[1]} and {first + begin}")
            found[episode] = (known[0] if known else first + begin, first + until)
    return found


def _listed(file: ParquetFile, entries: Sequence[EpisodeEntry]) -> dict[int, tuple[int, int]]:
    found, begin = {}, 0
    for entry in entries:
        found[entry.index] = (begin, begin + entry.length)
        begin += entry.length
    if begin != len(file):
        raise ValueError(f"{file.path}: no column 'episode_index', and {len(file)} rows where {begin} are listed")
    return found


def row_times(
    file: ParquetFile, first: int, entry: EpisodeEntry, fps: float, where: str
) -> tuple[np.ndarray, str | None]:
    """When each row of the episode was recorded, seconds (N,); and a line, where that is not recorded.

    Raises:
        ValueError: the times do not grow.
    """
    if "timestamp" not in file.names:
        return np.arange(entry.length) / fps, "no column 'timestamp': rows are taken to follow each other at the rate"
    cells = file.table(["timestamp"], first, first + entry.length).column("timestamp")
    times_s = numbers(cells, entry.length, [1], f"{where}: column 'timestamp'").reshape(-1).astype(np.float64)
    if not (np.isfinite(times_s).all() and (np.diff(times_s) > 0).all()):
        raise ValueError(f"{where}: column 'timestamp' does not grow from row to row, so that no frame can be found")
    return times_s, None


def frame_indices(
    entry: EpisodeEntry, source: str, video: VideoFile, times_s: np.ndarray, fps: float
) -> tuple[np.ndarray, str | None]:
    """The number of each row's frame in the video (N,); and a line, where the times alone do not say it.

    Raises:
        ValueError: a row has no frame, or that of the next episode.
    """
    part, period_s, note = entry.videos[source], 1 / fps, None
    where = f"{part.file}: episode {entry.index}: camera {source!r}"
    try:
        index = video.indices_at(part.begin_s + times_s, period_s)
    except ValueError as error:
        late = times_s[0]
        # A video of this episode alone with as many frames as there are rows: only the clocks begin elsewhere.
        if not (np.isinf(part.end_s) and len(video) == entry.length and late != 0):
            raise ValueError(f"{where}: {error}") from error
        index = video.indices_at(times_s - late + video.times_s[0], period_s)
        note = (
            f"camera {source!r}: rows begin at {late:.3f} s and the video at {video.times_s[0]:.3f} s, with a frame "
            "for each row: frame n is taken for row n"
        )
    if video.times_s[index[-1]] >= part.end_s - period_s / 4:
        raise ValueError(
            f"{where}: the last row's frame is that of the next episode; there are fewer frames than the "
            f"{entry.length} rows"
        )
    return index, note


@contextmanager
def naming(video: VideoFile, episode: int, camera: str) -> Iterator[None]:
    """Adds episode and camera to what a video says of a frame."""
    try:
        yield
    except ValueError as error:
        what = str(error).removeprefix(f"{video.path}: ")
        raise ValueError(f"{video.path}: episode {episode}: camera {camera!r}: {what}") from error
