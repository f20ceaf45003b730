"""What the parts of a LeRobot data set in the making share: how features are written, where files lie, what is kept."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from flowhand.contracts.features import Feature

from ..columns import kind_of
from .summary import GreyLevels
from .video import FILES_OF_CHUNK


def kind_of_written(name: str, feature: Feature) -> str:
    """How a feature is written: state, image, depth, action.

    Raises:
        ValueError: it is text, which has no place there.
    """
    if name == "action":
        return name
    if feature.dtype == "str":
        raise ValueError(
            f"{name!r} is text at every step, which a LeRobot data set of numbers cannot hold; leave it out"
        )
    kind = kind_of(feature.shape, feature.dtype)
    if kind == "image" and not (feature.dtype == "uint8" and feature.shape[2] == 3):
        return "state"
    return kind


def levels_of(kind: str) -> GreyLevels:
    """What counts the levels of images of this kind."""
    return GreyLevels(3) if kind == "image" else GreyLevels(1, 2**16, 1.0)


def place_of(what: str, number: int) -> dict[str, int]:
    """The columns that say in which file something lies."""
    return {f"{what}/chunk_index": number // FILES_OF_CHUNK, f"{what}/file_index": number % FILES_OF_CHUNK}


def remove_others(folder: Path, kept: Iterable[str]) -> None:
    """Removes the files that are not listed."""
    known = set(kept)
    for file in [file for file in folder.rglob("*") if not file.is_dir()]:
        if os.path.relpath(file, folder) not in known:
            file.unlink()
