"""Findings on frames: those that cannot be decoded, that show nothing, and that stand still."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..lerobot.dataset import LeRobotDataset
from ..native import Store
from ..reader import Reader
from .episodes import named
from .finding import Finding

SAMPLED_EPISODES = 8  # of which frames are decoded unless all are asked for
EMPTY = 1.0  # grey levels: the spread of a frame that shows nothing
FROZEN_S = 1.0  # that the same frame is shown while the states move
BLOCK_BYTES = 2**26  # of frames that are held at once


class Camera:
    """What is found of one camera."""

    def __init__(self, data: Reader | Store, name: str):
        self.data, self.name = data, name
        self.decoded = 0
        self.empty: list[tuple[int, int]] = []
        self.frozen: list[tuple[int, int, int]] = []
        self.damaged: dict[int, str] = {}
        self.missing: list[int] = []

    def sample(self) -> None:
        """Decodes the first, the middle and the last frame of some episodes."""
        usable = self._usable()
        places = np.unique(np.linspace(0, len(usable) - 1, min(SAMPLED_EPISODES, len(usable))).astype(int))
        for episode in [usable[place] for place in places]:
            last = self.data.lengths[episode] - 1
            for step in sorted({0, last // 2, last}):
                self._look(episode, step, step + 1)

    def every(self, is_still: dict[int, np.ndarray]) -> None:
        """Decodes all frames; `is_still` says of each episode's steps (N - 1,) whether no state changes."""
        feature = self.data.spec.observation[self.name]
        size = max(2, BLOCK_BYTES // (feature.size * np.dtype(feature.dtype).itemsize))
        for episode in self._usable():
            run, before = 0, None
            for start in range(0, self.data.lengths[episode], size):
                frames = self._look(episode, start, min(start + size, self.data.lengths[episode]))
                if frames is None:
                    break
                run, before = self._stands(episode, start, frames, run, before, is_still.get(episode))

    def _usable(self) -> list[int]:
        """Episodes whose frames are there at all."""
        data, every = self.data, range(len(self.data))
        if isinstance(data, LeRobotDataset) and data.columns[self.name].encoding == "video":
            self.missing = [episode for episode in every if data.video_of(episode, self.name) is None]
        lost = set(self.missing)
        return [episode for episode in every if episode not in lost]

    def _look(self, episode: int, start: int, stop: int) -> np.ndarray | None:
        data = self.data
        try:
            part = data.only([self.name]) if isinstance(data, Reader) else data
            frames = part.read(episode, start, stop).observation[self.name]
        except ValueError as error:
            self.damaged.setdefault(episode, str(error))
            return None
        self.decoded += len(frames)
        flat = frames.reshape(len(frames), -1)
        for step in np.flatnonzero(flat.max(1) - flat.min(1).astype(np.int64) <= EMPTY):
            self.empty.append((episode, start + int(step)))
        return frames

    def _stands(
        self,
        episode: int,
        start: int,
        frames: np.ndarray,
        run: int,
        before: np.ndarray | None,
        still: np.ndarray | None,
    ) -> tuple[int, np.ndarray]:
        """Counts frames that are the one before them while a state moves; the run so far, and the last frame."""
        most = max(2, round(FROZEN_S / (self.data.spec.control_dt_s or FROZEN_S)))
        for number, frame in enumerate(frames):
            same = before is not None and np.array_equal(frame, before)
            moved = still is None or start + number == 0 or not still[start + number - 1]
            run = run + 1 if same and moved else 0
            if run == most:
                self.frozen.append((episode, start + number - run, run))
            before = frame
        assert before is not None
        return run, before

    def findings(self, total: int) -> Iterator[Finding]:
        """What was found, of so many episodes."""
        if self.missing:
            text = f"the videos of {len(self.missing)} of {total} episodes are missing: {named(self.missing)}"
            advice = "States are usable without them; fetch the files, or leave the camera or the episodes out."
            yield Finding("warning", "missing video", text, advice, self.missing[0], dimension=self.name)
        for number, (episode, line) in enumerate(self.damaged.items()):
            if number == 3:
                text = f"frames of {len(self.damaged)} episodes cannot be read: {named(list(self.damaged))}"
                yield Finding("error", "frames", text, "See the lines above.", episode, dimension=self.name)
                break
            advice = "Fetch the file again, or leave the episode out."
            yield Finding("error", "frames", line, advice, episode, dimension=self.name)
        if self.empty:
            text = f"{len(self.empty)} of {self.decoded} frames show one grey level only"
            advice = "Was the camera covered, or not there yet?"
            yield Finding("warning", "empty frames", text, advice, *self.empty[0], dimension=self.name)
        if self.frozen:
            episode, step, _ = self.frozen[0]
            text = f"the same frame is shown for {FROZEN_S:g} s or more while the states move, {len(self.frozen)} times"
            advice = "The camera stopped: cut the episodes there, or leave them out."
            yield Finding("warning", "frozen frames", text, advice, episode, step, self.name)
