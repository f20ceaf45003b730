"""What a recorded LeRobot set holds: its columns, and whether an existing set has the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flowhand.contracts.features import Feature, Spec

from ..lerobot.parts import kind_of_written, reason_against
from ..lerobot.tables import DEFAULTS, entry
from ..lerobot.video import VideoWriter
from .config import RecorderConfig

ASKED, INTERVENTION = "action_asked", "intervention"
EXTRAS = {"next.reward": "float32", "next.success": "bool"}  # of each step, where a world tells them


@dataclass(frozen=True)
class Layout:
    """The columns of a recording, and how each is written."""

    spec: Spec
    robot: str  # the type of robot, as `info.json` names it
    fps: int
    kinds: Mapping[str, str]  # by feature: state | image | depth | action
    columns: Mapping[str, str]  # by feature
    videos: tuple[str, ...]  # features that become videos
    codec: str
    extras: Mapping[str, str]  # dtype by column: what a world tells of each step

    @classmethod
    def of(cls, spec: Spec, config: RecorderConfig, robot: str, judged: bool) -> Layout:
        """The layout of new episodes; `judged`: a world tells reward and success.

        Raises:
            ValueError: LeRobot has no place for them.
        """
        if reason := reason_against(spec):
            raise ValueError(f"{reason}; record with data.format=native")
        asked = replace(spec.action, kind="state", choices=None, pointers=None, uses=None)
        features = {**spec.observation, "action": spec.action, ASKED: asked}
        kinds = {name: kind_of_written(name, feature) for name, feature in features.items()}
        columns = {name: _column(name, kind) for name, kind in kinds.items()}
        videos = tuple(name for name, kind in kinds.items() if kind == "image" and config.images == "video")
        extras = {INTERVENTION: "bool", **(EXTRAS if judged else {})}
        return cls(spec, robot, round(1 / spec.seconds()), kinds, columns, videos, config.codec, extras)

    def feature(self, name: str) -> Feature:
        """A feature that is written."""
        return self.spec.action if name in ("action", ASKED) else self.spec.observation[name]

    def entries(self, folder: Any) -> dict[str, Any]:
        """The features of `info.json`."""
        found = {self.columns[name]: self._entry(name, folder) for name in self.kinds}
        found |= {name: entry(dtype, [1]) for name, dtype in {**self.extras, **DEFAULTS}.items()}
        return found

    def _entry(self, name: str, folder: Any) -> dict[str, Any]:
        feature = self.feature(name)
        dims = ["height", "width", "channels"]
        if name in self.videos:
            writer = VideoWriter(folder, self.fps, (feature.shape[0], feature.shape[1]), self.codec)
            return {**entry("video", list(feature.shape), dims), "info": writer.info()}
        if self.kinds[name] in ("image", "depth"):
            return entry("image", list(feature.shape), dims[: len(feature.shape)])
        return entry(feature.dtype, list(feature.shape), list(feature.names or ()) or None)


def require_fit(there: Mapping[str, Any], layout: Layout, where: Any) -> None:
    """Raises `ValueError` unless a set with this `info.json` has the columns, rate and robot of the layout."""
    new = layout.entries(where)
    old = there.get("features", {})
    for name in [*new, *old]:
        got, expected = old.get(name), new.get(name)
        if got is None or expected is None:
            have = "has no" if got is None else "has a"
            raise ValueError(f"{where} cannot be extended: it {have} column {name!r}; choose another data.path")
        for key in ("dtype", "shape", "names"):
            if _plain(got.get(key)) != _plain(expected[key]) and not (key == "names" and got.get(key) is None):
                raise ValueError(
                    f"{where} cannot be extended: {key} of {name!r} is {got.get(key)} there and {expected[key]} now; "
                    "choose another data.path"
                )
    if there.get("fps") != layout.fps:
        raise ValueError(f"{where} cannot be extended: it has {there.get('fps')} Hz, and this is {layout.fps} Hz")
    if layout.robot and there.get("robot_type") not in (None, layout.robot):
        raise ValueError(
            f"{where} cannot be extended: it was recorded with robot {there['robot_type']!r}, this is {layout.robot!r}"
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _column(name: str, kind: str) -> str:
    if kind in ("image", "depth"):
        return f"observation.images.{name}"
    return name if name in ("action", ASKED) else f"observation.{name}"


def as_written(values: list[Any], dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values of all steps as one array (N, *shape)."""
    return np.stack([np.asarray(value, dtype).reshape(shape) for value in values])
