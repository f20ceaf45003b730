"""A folder that keeps what is done, whatever ends the writer, until the finished work takes its own name."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

LOCK = "writer.lock"


def require_free(target: Path, sources: Sequence[Path]) -> None:
    """Raises ValueError unless the target can be written without touching a source.

    Symbolic links are followed.
    """
    if os.path.lexists(target):
        raise ValueError(f"{target} exists; choose another target")
    place = Path(os.path.realpath(target))
    for source in sources:
        real = Path(os.path.realpath(source))
        if real == place or real in place.parents:
            raise ValueError(f"the target {target} lies in the source {source}; choose a place outside it")
        if place in real.parents:
            raise ValueError(f"the source {source} lies in the target {target}; choose another target")


def unfinished(target: Path) -> list[Path]:
    """The folders of conversions to this target that were stopped."""
    return sorted(target.parent.glob(f".{target.name}.*.partial")) if target.parent.is_dir() else []


@contextmanager
def staged(target: Path, key: str) -> Iterator[Path]:
    """A folder beside the target for what is done already; it is removed when the target is there.

    Args:
        target: what appears when the work is done.
        key: says which work it is; other work has another folder.

    Raises:
        ValueError: another process is at it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.with_name(f".{target.name}.{key[:8]}.partial")
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another process converts to {target}; wait for its end") from error
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)
        if folder.is_dir() and os.listdir(folder) == [LOCK]:  # nothing is done that could be kept
            shutil.rmtree(folder, ignore_errors=True)
