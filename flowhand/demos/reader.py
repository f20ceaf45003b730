"""What the readers of recorded files share: a lazy data set of episodes, with chosen features and episodes."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from flowhand.contracts.data.episode import Episode, is_number, shown
from flowhand.contracts.data.statistics import Statistics
from flowhand.contracts.features import Spec

from .archive import open_regular, read_bounded
from .columns import Column, as_feature, make_episode
from .statistics import gathered

MOST_EPISODE_BYTES = 2**31  # of one episode's arrays; what claims to be larger is refused
MOST_JSON_BYTES = 2**27
BLOCK_BYTES = 2**24  # of the part of an episode that `blocks` gives at once
FOOTER = 2**12  # bytes at both ends of a file that the fingerprint covers
DAMAGE = (ValueError, TypeError, KeyError, IndexError, OSError, EOFError, RuntimeError, MemoryError, OverflowError)

logger = logging.getLogger(__name__)
Self = TypeVar("Self", bound="Reader")


def required(module: str, what: str) -> Any:
    """A module of the extra `data`, imported now.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ValueError(f"{what} needs the package {module.split('.')[0]}: pip install 'flowhand[data]'") from error


@contextmanager
def damage(where: str, named: str = "") -> Iterator[None]:
    """Turns what a damaged file makes the libraries raise into one line that begins with `where`.

    A line that begins with `named` (by default `where`) already stays as it is.
    """
    try:
        yield
    except ImportError:
        raise
    except DAMAGE as error:
        text = " ".join(str(error).split())[:300]
        if isinstance(error, ValueError) and text.startswith(named or where):
            raise
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise ValueError(f"{where}: {kind}{text}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    with damage(str(path)):
        try:
            content = json.loads(read_bounded(path, MOST_JSON_BYTES))
        except RecursionError as error:
            raise ValueError("nested too deeply") from error
        if not isinstance(content, dict):
            raise ValueError(f"holds {shown(content)}, expected a JSON object")
    return content


class Reader:
    """A data set on the disk, read when it is asked for; a sequence of episodes too.

    A format is a subclass that fills the attributes and gives `_arrays`.
    """

    format = ""  # what it is, in words
    path: Path
    columns: dict[str, Column]  # by name in the specification; "action" is the action
    spec: Spec
    tasks: Sequence[str]  # task text of each episode; "": none is recorded
    lengths: Sequence[int]  # control steps of each episode
    warnings: list[str]  # a line each on what is unusual
    left_out: dict[str, str]  # columns that become no feature, and why
    revision: str = ""  # of a data set from the hub, "owner/name@commit"; part of the fingerprint

    def _begin(self, path: Path | str) -> None:
        self.path = Path(path)
        self.warnings, self.left_out = [], {}

    def _finish(
        self, columns: Mapping[str, Column], rate_hz: float, tasks: Sequence[str], lengths: Sequence[int]
    ) -> None:
        """Sets what follows from the columns and the episodes."""
        if not lengths:
            raise ValueError(f"{self.path} holds no episode that can be used")
        self.columns = dict(columns)
        self.rate_hz = rate_hz
        self.tasks, self.lengths = list(tasks), list(lengths)
        self._stored = list(range(len(lengths)))  # where each episode stands in the files
        self._name_features(f"{self.path}")

    def _name_features(self, where: str) -> None:
        observation = {name: column.feature for name, column in self.columns.items() if name != "action"}
        with damage(where):
            self.spec = Spec(observation, self.columns["action"].feature, 1 / self.rate_hz)

    def _warn(self, line: str) -> None:
        self.warnings.append(line)
        logger.warning("%s: %s", self.path, line)

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[Episode]:
        return (self.read(episode) for episode in range(len(self)))

    def read(self, episode: int, start: int = 0, stop: int | None = None) -> Episode:
        """Control steps `start` to `stop` (exclusive; None: to the end) of an episode.

        Raises:
            IndexError: there is no such episode.
            ValueError: it has no such steps, or the files do not hold them as they should; the line then names the
                file, the episode and the column.
        """
        if not 0 <= episode < len(self):
            raise IndexError(f"{self.path}: episode {episode} of {len(self)}")
        length = self.lengths[episode]
        stop = length if stop is None else stop
        if not 0 <= start < stop <= length:
            raise ValueError(f"{self.path}: steps {start} to {stop} of episode {episode}, which has {length}")
        with damage(f"{self.path}: episode {episode}", str(self.path)):
            arrays, extra = self._arrays(self._stored[episode], start, stop, list(self.columns))
            action = arrays.pop("action")
            return make_episode(arrays, action, self.tasks[episode], self.spec.seconds(), **extra)

    def blocks(self, name: str, episode: int, most_bytes: int = BLOCK_BYTES) -> Iterator[np.ndarray]:
        """The values of one feature, or "action", over an episode, part by part, so that no more of it is held.

        A part may be overwritten when the next one is asked for.

        Raises:
            ValueError: the files do not hold them as they should; the line names the file, the episode and the column.
        """
        feature, length = self.columns[name].feature, self.lengths[episode]
        size = max(1, most_bytes // (feature.size * np.dtype(feature.dtype).itemsize))
        for start in range(0, length, size):
            with damage(f"{self.path}: episode {episode}", str(self.path)):
                stop = min(start + size, length)
                arrays, _ = self._arrays(self._stored[episode], start, stop, [name])
            yield arrays[name]

    def pick(self, name: str, episode: int, steps: np.ndarray) -> np.ndarray:
        """The values of one feature, or "action", at these steps (n,) of an episode, in any order.

        Raises:
            ValueError: the files do not hold them as they should; the line names the file, the episode and the column.
        """
        order, place = np.unique(steps, return_inverse=True)
        with damage(f"{self.path}: episode {episode}", str(self.path)):
            parts = [
                self._arrays(self._stored[episode], int(run[0]), int(run[-1]) + 1, [name])[0][name]
                for run in np.split(order, np.flatnonzero(np.diff(order) > 1) + 1)
            ]
        return np.concatenate(parts)[place]

    def plan(self, episode: int) -> np.ndarray | None:
        """None: recorded files have actions, no plans."""
        return None

    def release(self) -> None:
        """Lets go of the files that are kept open for the next reading, which opens them again."""

    def origin(self, name: str) -> str:
        """Where in the files a feature comes from, in words that differ where its values may."""
        column = self.columns[name]
        return f"{column.source} {column.stored} {column.encoding} {column.feature.shape} {column.feature.dtype}"

    @property
    def numbers(self) -> Sequence[int]:
        """What the files count each episode as, from 0 on, whichever were selected."""
        return self._stored

    def _arrays(
        self, stored: int, start: int, stop: int, names: Sequence[str]
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The columns of these names over the steps, as features have them; and reward, success, seed, if recorded."""
        raise NotImplementedError

    def _checked(self, name: str, values: np.ndarray, steps: int, where: str) -> np.ndarray:
        """The values as the feature has them; there must be so many steps."""
        column = self.columns[name]
        place = f"{where}: column {column.source!r}"
        if len(values) != steps:
            raise ValueError(f"{place} has {len(values)} rows, expected {steps}")
        return as_feature(values, column, place)

    def select(self: Self, observation: Sequence[str] | None = None, episodes: Sequence[int] | None = None) -> Self:
        """The same data with these observation features and these episodes only (None: all that there are now).

        Raises:
            ValueError: there is no such feature or episode.
        """
        view = copy.copy(self)
        if observation is not None:
            known = sorted(self.spec.observation)
            for name in observation:
                if name not in known:
                    raise ValueError(f"{self.path} has no observation {name!r}; choices: {', '.join(known)}")
            view.columns = {name: self.columns[name] for name in (*observation, "action")}
            view._name_features(f"{self.path}")
        if episodes is not None:
            for episode in episodes:
                if type(episode) is not int or not 0 <= episode < len(self):
                    raise ValueError(f"{self.path} has no episode {shown(episode)}; it has 0 to {len(self) - 1}")
            for name in ("tasks", "lengths", "_stored"):
                setattr(view, name, [getattr(self, name)[episode] for episode in episodes])
        return view

    def only(self: Self, observation: Sequence[str]) -> Self:
        """The same data with these observation features, or none, for `read`; nothing else of it is changed."""
        view = copy.copy(self)
        view.columns = {name: self.columns[name] for name in (*observation, "action")}
        return view

    def times_s(self, episode: int) -> np.ndarray | None:
        """When each row of an episode was recorded (N,), seconds; None where the files do not say."""
        return None

    def recorded(self) -> set[str]:
        """Which of reward, success and seed the files hold, by their first episode."""
        plain = [name for name, column in self.columns.items() if column.encoding == "numbers" and name != "action"]
        view = self.only(plain)
        with damage(f"{self.path}: episode 0", str(self.path)):
            return set(view._arrays(view._stored[0], 0, 1, list(view.columns))[1]) & {"reward", "success", "seed"}

    @property
    def cameras(self) -> list[str]:
        """Names of the observations that are images."""
        return [name for name, column in self.columns.items() if column.kind in ("image", "depth")]

    def statistics(self) -> Statistics:
        """Moments, extremes and exact quantiles of each state and of the action, over the rows of these episodes.

        Memory is bounded: episodes are read one at a time, and several times where they are many.
        """
        names = [name for name, column in self.columns.items() if column.kind in ("state", "action")]

        def passes() -> Iterator[dict[str, np.ndarray]]:
            for episode, length in enumerate(self.lengths):
                with damage(f"{self.path}: episode {episode}", str(self.path)):
                    yield self._arrays(self._stored[episode], 0, length, names)[0]

        return gathered(passes, {name: self.columns[name].feature.shape for name in names}, sum(self.lengths))

    def _files(self) -> Iterator[Path]:
        """All files that the data come from."""
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of the files' names, sizes, modification times, first and last bytes; read once."""
        return self._print

    @cached_property
    def _print(self) -> str:
        digest = hashlib.sha256(f"{self.format} {self.revision}".encode())
        for file in sorted(self._files()):
            try:
                state = os.stat(file)
                name = os.path.relpath(file, self.path)
                digest.update(f"{name} {state.st_size} {state.st_mtime_ns}\n".encode(errors="surrogateescape"))
                with open_regular(file) as content:
                    digest.update(content.read(FOOTER))
                    content.seek(max(0, state.st_size - FOOTER))
                    digest.update(content.read(FOOTER))
            except FileNotFoundError:
                digest.update(f"{file.name} is absent\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


def require_rate(value: Any, where: str) -> float:
    """The value as control steps a second.

    Raises:
        ValueError: it is no such number.
    """
    if not is_number(value) or not 1e-3 <= value <= 1e5:
        raise ValueError(f"{where} is {shown(value)}, expected control steps a second, 0.001 to 100000")
    return float(value)
