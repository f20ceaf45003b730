"""States, actions and, where a policy has eyes, images of recorded demonstrations as a policy learns from them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from flowhand.contracts.data.episode import Episode
from flowhand.contracts.features import Feature, Spec, shown
from flowhand.contracts.history import with_previous
from flowhand.contracts.planner import learnable
from flowhand.contracts.strict import nearest

from .native import Store
from .reader import Reader

IMAGES = ("image", "depth")  # kinds of features
AS_STORED = (*IMAGES, "elements")  # that are no vectors


@dataclass(frozen=True)
class Origin:
    """What a checkpoint says of where its demonstrations come from."""

    task: str  # the text of all episodes, "" where they differ
    env_version: str


class StateEpisodes:
    """Chosen episodes and features of a recorded set, with vectors of float32: here they are cast, and nowhere else.

    Args:
        data: the set.
        episodes: their numbers in the set; None: all.
        observation: names of the features to take; empty: all that can be read.
        previous_action: the action of the step before is one more feature.
        images: take images, too; they stay as they are.

    Attributes:
        lines: what is not used, a line each.
        numbers: of the episodes in the set.

    Raises:
        ValueError: it has no states, or no feature of a name.
    """

    def __init__(
        self,
        data: Store | Reader,
        episodes: Sequence[int] | None = None,
        observation: Sequence[str] = (),
        previous_action: bool = False,
        images: bool = False,
    ):
        known = data.spec.observation
        for name in observation:
            if name not in known:
                raise ValueError(
                    f"data.observation names {name!r}; {data.path} has no such feature: {nearest(name, known)}"
                )
        others = ("text",) if images else ("text", *IMAGES)
        names = [name for name in observation or known if known[name].kind not in others]
        unused = [name for name in observation or known if name not in names]
        if not names:
            raise ValueError(f"{data.path} has no states; {_unread(unused, known)}")
        self.lines = [_unread(unused, known)] if unused else []
        self.path, self.data = data.path, data.select(names) if isinstance(data, Reader) else data
        self.numbers = list(range(len(data)) if episodes is None else episodes)
        features = {name: _vector(known[name]) for name in names}
        spec = learnable(Spec(features, _vector(data.spec.action), data.spec.control_dt_s))
        self.spec = spec.with_previous_action() if previous_action else spec

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Episode]:
        for place in range(len(self)):
            yield self.read(place)

    def read(self, episode: int, start: int = 0, stop: int | None = None) -> Episode:
        """The control steps from `start` to before `stop` (None: to the end) of a chosen episode, by its place."""
        whole = self._cast(self.data.read(self.numbers[episode]))
        return whole if (start, stop) == (0, None) else whole.steps(start, stop)

    def _cast(self, episode: Episode) -> Episode:
        action, names = _as_read(episode.action, self.spec.action), self.spec.sensed
        observation = {name: _as_read(episode.observation[name], feature) for name, feature in names.items()}
        observation = with_previous(observation, action, self.spec.observation)
        return replace(episode, observation=observation, action=action)

    def part(self, episodes: Sequence[int]) -> StateEpisodes:
        """The same features of these episodes of the set."""
        other = object.__new__(StateEpisodes)
        other.__dict__.update(self.__dict__, numbers=list(episodes))
        return other

    def vectors(self) -> StateEpisodes:
        """The same episodes without their images, which then are not decoded."""
        other = self.part(self.numbers)
        names = [name for name, feature in self.spec.observation.items() if feature.kind not in IMAGES]
        other.spec = replace(self.spec, observation={name: self.spec.observation[name] for name in names})
        other.data = self.data.select(list(other.spec.sensed)) if isinstance(self.data, Reader) else self.data
        return other

    @property
    def lengths(self) -> list[int]:
        """Control steps of each episode."""
        lengths = self.data.lengths
        return [lengths[number] for number in self.numbers]

    @property
    def tasks(self) -> list[str]:
        """The task text of each episode."""
        texts = self.data.tasks
        return [texts[number] for number in self.numbers]

    @property
    def fingerprint(self) -> str:
        """That of the files."""
        return self.data.fingerprint

    @property
    def meta(self) -> Origin:
        """Where the episodes come from."""
        if isinstance(self.data, Store):
            return Origin(self.data.meta.task, self.data.meta.env_version)
        texts = self.data.tasks
        tasks = {texts[number] for number in self.numbers}
        return Origin(next(iter(tasks)) if len(tasks) == 1 else "", self.data.revision or self.data.format)

    @property
    def seeds(self) -> list[int]:
        """Seeds of the episodes: recorded sets of other formats than a store have none."""
        if not isinstance(self.data, Store):
            return []
        seeds = self.data.seeds
        return [seeds[number] for number in self.numbers]

    def hash(self) -> str:
        """The fingerprint of the files: which data trained a policy."""
        return self.data.hash() if isinstance(self.data, Store) else self.data.fingerprint


def held_out(count: int, wanted: float, seed: int, trained: int = 0) -> list[int]:
    """The numbers of the episodes that are kept from training, drawn by the seed, in order.

    Args:
        count: episodes of the set.
        wanted: below 1 their share, from 1 on their number; -1: a tenth, at most 50, of what `trained` leaves.
        seed: of the draw.
        trained: how many are to be trained on; 0: what is left.

    Raises:
        ValueError: too few would be left to train on.
    """
    least = max(1, trained)
    if count < least:
        raise ValueError(f"data.episodes={trained} asks for more episodes than there are: {count}")
    if wanted == -1:
        number = min(50, -(-count // 10), count - least)
    else:
        number = max(1, round(wanted * count)) if 0 < wanted < 1 else int(wanted)
    if count - number < least:
        raise ValueError(
            f"data.held_out={wanted:g} keeps {number} of {count} episodes from training, and {least} or more are to be "
            "trained on; lower it, or data.episodes"
        )
    return sorted(np.random.default_rng(seed).permutation(count)[:number].tolist())


def ranges(numbers: Sequence[int]) -> str:
    """Increasing numbers as a short text: "0-4,7,9-11"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def _unread(names: Sequence[str], known: Mapping[str, Feature]) -> str:
    """Says which features are left unused, and what would read them."""
    images = [name for name in names if known[name].kind in IMAGES]
    texts = [name for name in names if name not in images]
    parts = [f"{', '.join(images)} left unused: images are read with vision=conv, resnet18 or vit"] if images else []
    parts += [f"{', '.join(texts)} left unused: no policy reads text as an observation"] if texts else []
    return "; ".join(parts)


def numbers(text: object, count: int) -> list[int]:
    """The numbers below `count` that `ranges` gave as text; `ValueError` where it is no such text."""
    found: list[int] = []
    if not isinstance(text, str) or not re.fullmatch(r"\d{1,9}(-\d{1,9})?(,\d{1,9}(-\d{1,9})?)*", text):
        raise ValueError(f"episodes are {shown(text)}, expected numbers such as 0-4,7")
    for part in text.split(","):
        first, _, last = part.partition("-")
        begins, ends = int(first), int(last or first)
        if not (found[-1] if found else -1) < begins <= ends:
            raise ValueError(f"episodes are {shown(text)}, expected increasing numbers")
        if ends >= count:
            raise ValueError(f"episode {ends} is asked for, and there are {count}: 0 to {count - 1}")
        found += range(begins, ends + 1)
    return found


def _vector(feature: Feature) -> Feature:
    if feature.kind in AS_STORED:
        return feature
    names = feature.names if len(feature.shape) == 1 else None
    return replace(feature, shape=(math.prod(feature.shape),), dtype="float32", names=names)


def _as_read(values: np.ndarray, feature: Feature) -> np.ndarray:
    if feature.kind in AS_STORED:
        return values
    return np.ascontiguousarray(values.reshape(len(values), -1), np.float32)
