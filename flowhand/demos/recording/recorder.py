"""Writes demonstrations while they happen: into a LeRobot set, or, where that has no place for them, into a store.

    with Recorder("data/monday", spec, task="pick up the cube") as recorder:
        recorder.begin()
        recorder.add(observation, sent, asked=wanted, intervention=False)  # of each control step
        recorder.end()  # or drop()

Whatever happens to the program or the disk, episodes that `end` has returned for are whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from flowhand.contracts.data.episode import SEED_LIMIT, Episode
from flowhand.contracts.durable import claimed
from flowhand.contracts.features import Spec

from ..lerobot import summary
from ..lerobot.parts import reason_against
from ..lerobot.tables import cells, pictures
from ..meta import StoreMeta
from ..native import Store
from ..reader import required
from .camera import Camera
from .compaction import compact
from .config import RecorderConfig
from .files import GrowingSet
from .layout import ASKED, INTERVENTION, Layout, as_written
from .queue import Room


class Recorder:
    """Records episodes of one specification at a path; use it in a `with` block.

    Args:
        path: of the set, new or one that these episodes fit.
        spec: what is observed and commanded.
        config: format, images, bounds.
        task: instruction in words, of episodes for which `begin` has none.
        robot: what is recorded: the type of robot, or a world's name.
        judged: whether reward and success of each step are recorded.
        version: of the world or robot, where it has one.

    Attributes:
        format: lerobot | native.
        lines: on what was unusual, to be told.

    Raises:
        ValueError: the path holds a set that these episodes do not fit, or another process records there.
    """

    def __init__(
        self,
        path: Path | str,
        spec: Spec,
        config: RecorderConfig | None = None,
        task: str = "",
        robot: str = "",
        judged: bool = False,
        version: str = "",
    ):
        self.path, self.spec, self.config = Path(os.path.abspath(path)), spec, config or RecorderConfig()
        self.task, self.robot, self.judged, self._version = task, robot, judged, version
        self.format, self.lines = self.config.format, []
        reason = reason_against(spec)
        if reason and self.format == "lerobot":
            self.format = "native"
            self.lines.append(f"{path} is recorded as a store of flowhand: {reason}")
        self._staging = self.path.with_name(f".{self.path.name}.recording")
        self._set: GrowingSet | None = None
        self._store: Store | None = None
        self._rows: list[dict[str, Any]] | None = None  # of the episode that is recorded
        self._cameras: dict[str, Camera] = {}
        self._about: tuple[str, int | None] = (task, None)

    def __enter__(self) -> Recorder:
        self._stack = ExitStack()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.format == "native":
            self._store = self._opened_store()
            self._stack.enter_context(self._store.writing())
            return self
        required("pyarrow", "recording LeRobot data sets")
        self._stack.enter_context(claimed(self._staging))
        self._stack.callback(lambda: [shutil.rmtree(one, ignore_errors=True) for one in self._staging.glob("*/")])
        try:
            shutil.rmtree(self._joined, ignore_errors=True)  # of a compaction that was killed
            layout = Layout.of(self.spec, self.config, self.robot, self.judged)
            self._set = GrowingSet(self.path, self._staging, layout)
            self.lines += self._set.lines
        except BaseException:
            self._stack.close()
            raise
        return self

    @property
    def _joined(self) -> Path:
        return self.path.with_name(f".{self.path.name}.joined")

    def _opened_store(self) -> Store:
        about = StoreMeta(self.spec.to_dict(), self.task, self.robot or "recorded", self._version, {})
        if not (self.path / "meta.json").exists():
            return Store.create(self.path, about)
        store = Store.open(self.path)
        if store.spec != self.spec or store.meta.recipe:
            raise ValueError(f"{self.path} holds other episodes than these ({store.spec}); choose another data.path")
        return store

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.drop()
            if self._set is not None and self._set.episodes and not (kind and issubclass(kind, OSError)):
                line = compact(self.path, self._joined, self.config.data_mb, self.config.video_mb)
                self.lines += [line] if line else []
        finally:
            self._stack.close()
            if self._set is not None:
                shutil.rmtree(self._staging, ignore_errors=True)

    @property
    def episodes(self) -> int:
        """Episodes that are there and whole, earlier ones included."""
        return self._set.episodes if self._set is not None else len(self._store or ())

    @property
    def seeds(self) -> list[int]:
        """Of the episodes that are there, where a world has made them."""
        if self._store is not None:
            return self._store.seeds
        return [] if self._set is None else self._set.seeds

    @property
    def steps(self) -> int:
        """Control steps of the episode that is recorded."""
        return len(self._rows or ())

    @property
    def waiting(self) -> int:
        """Frames that wait for the encoders."""
        return max((camera.waiting for camera in self._cameras.values()), default=0)

    def begin(self, task: str = "", seed: int | None = None) -> None:
        """Begins an episode; one that is neither ended nor dropped is dropped.

        Args:
            task: instruction in words.
            seed: of a simulated world.
        """
        self.drop()
        self._rows, self._about = [], (task or self.task, seed)
        if self._set is None:
            return
        layout, folder, room = self._set.layout, self._set.emptied(), Room(self.config.queue_gb * 2**30)
        for name, kind in layout.kinds.items():
            if kind in ("image", "depth"):
                video = (layout.fps, layout.codec) if name in layout.videos else None
                self._cameras[name] = Camera(folder / name, layout.feature(name), kind, video, room)

    def add(
        self,
        observation: Mapping[str, np.ndarray],
        sent: np.ndarray,
        asked: np.ndarray | None = None,
        intervention: bool = False,
        reward: float = 0.0,
        success: bool = False,
    ) -> None:
        """Adds a control step.

        Args:
            observation: what was acted on.
            sent: (A,) what safety let through to the robot.
            asked: (A,) what was wished; None: the same.
            intervention: whether a person or an expert acted in the place of a policy.
            reward: that a world gave.
            success: whether a world says that the task is solved after the step.

        Raises:
            ValueError: it does not fit the specification, or too many frames wait for the encoder.
            OSError: the disk does not take it.
        """
        if self._rows is None:
            raise ValueError("no episode was begun; call begin() before add()")
        row = {name: self._checked(name, value) for name, value in observation.items() if name in self.spec.observation}
        if missing := sorted(set(self.spec.observation) - set(row)):
            raise ValueError(f"step {len(self._rows)}: observation {missing[0]!r} is missing")
        for name, camera in self._cameras.items():
            camera.add(row.pop(name))
        row["action"] = self._checked("action", sent)
        row[ASKED] = row["action"] if asked is None else self._checked("action", asked)
        self._rows.append({**row, INTERVENTION: bool(intervention), "next.reward": reward, "next.success": success})

    def _checked(self, name: str, value: np.ndarray) -> np.ndarray:
        feature = self.spec.action if name == "action" else self.spec.observation[name]
        value = np.asarray(value)
        if value.shape != feature.shape:
            raise ValueError(f"step {self.steps}: {name!r} has shape {value.shape}, expected {feature.shape}")
        if value.dtype != feature.dtype and feature.dtype != "str":
            value = value.astype(feature.dtype)
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ValueError(f"step {self.steps}: {name!r} is not finite: {value.tolist()}")
        return value

    def end(self, task: str = "") -> int | None:
        """Finishes the episode, which is on the disk when this returns.

        Args:
            task: instruction in words, where it is another one than at the beginning.

        Returns:
            Its number; None: it had no step.

        Raises:
            ValueError: an encoder failed.
            OSError: the disk does not take it. Of both, the episode is lost and the earlier ones are whole.
        """
        rows, self._rows = self._rows, None
        about = (task or self._about[0], self._about[1])
        if not rows:
            self._release()
            return None
        try:
            return self._add_to_store(rows, *about) if self._store is not None else self._add_to_set(rows, *about)
        finally:
            self._release()

    def drop(self) -> None:
        """Forgets the episode that is recorded, if there is one."""
        self._rows = None
        self._release()

    def _release(self) -> None:
        cameras, self._cameras = self._cameras, {}
        for camera in cameras.values():
            camera.drop()

    def _add_to_set(self, rows: list[dict[str, Any]], task: str, seed: int | None) -> int:
        assert self._set is not None
        layout = self._set.layout
        columns: dict[str, Any] = {}
        stats: dict[str, Any] = {}
        videos = {}
        for name, kind in layout.kinds.items():
            column, feature = layout.columns[name], layout.feature(name)
            if name in self._cameras:
                video = self._cameras[name].end()
                stats[column] = self._cameras[name].samples.summary(kind)
                if video is not None:
                    videos[column] = video
                else:
                    columns[column] = pictures(self._cameras[name].pictures)
            else:
                values = as_written([row[name] for row in rows], feature.dtype, feature.shape)
                columns[column], stats[column] = cells(values), summary.of_rows(values)
        for column, dtype in layout.extras.items():
            columns[column] = cells(as_written([row[column] for row in rows], dtype, (1,)))
        return self._set.add(columns, len(rows), task, stats, videos, seed)

    def _add_to_store(self, rows: list[dict[str, Any]], task: str, seed: int | None) -> int:
        assert self._store is not None
        features = {**self.spec.observation, "action": self.spec.action}
        arrays = {n: as_written([row[n] for row in rows], f.dtype, f.shape) for n, f in features.items()}
        action = arrays.pop("action")
        reward = np.array([row["next.reward"] for row in rows], np.float32)
        success = np.array([row["next.success"] for row in rows], bool)
        asked = as_written([row[ASKED] for row in rows], self.spec.action.dtype, self.spec.action.shape)
        acted = np.array([row[INTERVENTION] for row in rows], bool)
        number = len(self._store) if seed is None or not 0 <= seed < SEED_LIMIT else seed
        dt = self.spec.control_dt_s
        told = {"intervention": acted, "asked": asked}
        self._store.append(Episode(arrays, action, reward, success, task, number, dt, **told))
        return len(self._store) - 1
