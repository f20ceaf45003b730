"""What the parts of a LeRobot data set in the making share: how features are written, where files lie, what is kept."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from flowhand.contracts.features import Feature, Spec

from ..columns import kind_of
from .summary import GreyLevels
from .video import FILES_OF_CHUNK

WHOLE = 1e-6  # share by which a rate may differ from a whole number of Hz


def reason_against(spec: Spec) -> str:
    """Why a LeRobot set cannot hold episodes of this specification; empty where it can."""
    for name, feature in spec.observation.items():
        if feature.kind == "elements" or feature.dtype == "str":
            return f"{name!r} is of kind {feature.kind!r}, which LeRobot has no place for"
    if spec.control_dt_s is None:
        return "actions wait for events, and LeRobot has a whole number of steps a second"
    rate_hz = 1 / spec.control_dt_s
    if round(rate_hz) < 1 or abs(rate_hz - round(rate_hz)) > WHOLE * rate_hz:
        return f"{rate_hz:g} Hz is no whole number of steps a second, as LeRobot has it"
    return ""


def kind_of_written(name: str, feature: Feature) -> str:
    """How a feature is written: state, image, depth, action."""
    if name == "action":
        return name
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
