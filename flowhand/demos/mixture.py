"""Several data sets as one: mapped onto one specification by the names of their dimensions, each with its share."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from flowhand.contracts.data.episode import Episode
from flowhand.contracts.data.statistics import Statistics, measure
from flowhand.contracts.features import Feature, Spec, shown
from flowhand.contracts.planner import learnable

from .native import Store
from .states import IMAGES, Origin, StateEpisodes


@dataclass(frozen=True)
class Member:
    """A data set of a mixture."""

    name: str  # by which a policy is told whose statistics to take
    data: Store | StateEpisodes
    weight: float = 1.0  # its share in what a training draws; the shares need not add up to one


@dataclass(frozen=True)
class Column:
    """Where a feature of the mixture comes from in one of its sets."""

    name: str  # of the feature in the set
    order: tuple[int, ...] | None  # places of its dimensions there; None: all of them as they are

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """The values (N, ...) of the set as the mixture has them."""
        return values if self.order is None else np.ascontiguousarray(values[..., list(self.order)])


class Mixture:
    """A `Dataset` of the episodes of several, one set after the other.

    The first set says what the features are called and in which order their dimensions come. A feature of another set
    is the one of the same name, or else the only one of its kind whose dimensions have the same names. Dimensions are
    matched by their names, and by their place only where neither set names them.

    Args:
        members: the sets, with names that differ.

    Attributes:
        columns: of each set, by the name of the feature, "action" included.
        left_out: what not every set has, with a set that lacks it.

    Raises:
        ValueError: the sets cannot be mapped onto one another; the line names set, feature and dimension.
    """

    def __init__(self, members: Sequence[Member]):
        names = [member.name for member in members]
        if not members or len(set(names)) < len(names):
            raise ValueError(f"a mixture has the sets {names}, expected one or more with names that differ")
        for member in members:
            if not len(member.data) or not 0 < member.weight < math.inf:
                raise ValueError(
                    f"the set {member.name!r} of a mixture has {len(member.data)} episodes and the weight "
                    f"{member.weight}, expected one or more and a positive number"
                )
        self.members = list(members)
        specs = [learnable(member.data.spec) for member in members]
        self.left_out = _left_out(specs, names)
        kept = {name: f for name, f in specs[0].observation.items() if name not in self.left_out}
        if not kept:
            raise ValueError(f"the sets {', '.join(names)} have no observation in common; name their dimensions alike")
        target = replace(specs[0], observation=kept)
        self.columns = [columns(target, spec, name) for spec, name in zip(specs, names, strict=True)]
        self.spec = _bounded(target, specs, self.columns)
        self._ends = list(accumulate(len(member.data) for member in members))

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def names(self) -> list[str]:
        """Of the sets."""
        return [member.name for member in self.members]

    @property
    def weights(self) -> list[float]:
        """The share of each set; see `Member`."""
        return [member.weight for member in self.members]

    @property
    def sources(self) -> list[int]:
        """The number of the set of each episode."""
        return [number for number, member in enumerate(self.members) for _ in range(len(member.data))]

    @property
    def tasks(self) -> list[str]:
        """The task text of each episode."""
        return [text for member in self.members for text in member.data.tasks]

    @property
    def lengths(self) -> list[int]:
        """The control steps of each episode."""
        return [length for member in self.members for length in member.data.lengths]

    @property
    def seeds(self) -> list[int]:
        """Seeds that were demonstrated, of all sets together, each once."""
        return sorted({seed for member in self.members for seed in member.data.seeds})

    @property
    def meta(self) -> Origin:
        """Where the episodes come from."""
        tasks, versions = set(self.tasks), {member.data.meta.env_version for member in self.members}
        return Origin(next(iter(tasks)) if len(tasks) == 1 else "", "; ".join(sorted(versions)))

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of the names and the fingerprints of the sets."""
        return self._digest([each.data.fingerprint for each in self.members])

    def hash(self) -> str:
        """The same of their contents, as far as these are known: which data trained a policy."""
        return self._digest([each.data.hash() for each in self.members])

    def _digest(self, prints: Sequence[str]) -> str:
        lines = (f"{name} {each}\n" for name, each in zip(self.names, prints, strict=True))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def read(self, episode: int, start: int = 0, stop: int | None = None) -> Episode:
        """The control steps from `start` to before `stop` (None: to the end) of an episode.

        Raises:
            ValueError: these are no steps of the episode, or it is damaged.
            IndexError: there is no such episode.
        """
        if not 0 <= episode < len(self):
            raise IndexError(f"episode {episode} of {len(self)}")
        number = bisect_right(self._ends, episode)
        first = self._ends[number - 1] if number else 0
        return self.mapped(number, self.members[number].data.read(episode - first, start, stop))

    def __iter__(self) -> Iterator[Episode]:
        for number, member in enumerate(self.members):
            for episode in member.data:
                yield self.mapped(number, episode)

    def mapped(self, number: int, episode: Episode) -> Episode:
        """An episode of a set as the mixture has it."""
        return mapped(episode, self.columns[number], self.spec)

    def statistics(self) -> Statistics:
        """Moments, extremes and true quantiles of every feature, over all episodes of all sets."""
        return measure(self, self.spec)

    def lines(self) -> Iterator[str]:
        """How each set is mapped, line by line."""
        total = sum(self.weights)
        for member, columns in zip(self.members, self.columns, strict=True):
            share = f"{len(member.data)} episodes, {member.weight / total:.0%} of what is drawn"
            yield f"set        {member.name}: {share}"
            for name, column in columns.items():
                feature = self.spec.action if name == "action" else self.spec.observation[name]
                how = "as it is" if column.order is None else f"dimensions {', '.join(map(str, column.order))}"
                listed = f"  [{', '.join(feature.names)}]" if feature.names else ""
                yield f"  {name:24s} from {column.name}, {how}{listed}"
        yield from (f"left out   {name}: {why}" for name, why in self.left_out.items())


def mapped(episode: Episode, columns: Mapping[str, Column], spec: Spec) -> Episode:
    """An episode of a set with the features of the specification, which the columns say where to find."""
    observation = {
        name: columns[name](episode.observation[columns[name].name]).astype(feature.dtype, copy=False)
        for name, feature in spec.observation.items()
    }
    action = columns["action"](episode.action).astype(spec.action.dtype, copy=False)
    plan = None if episode.plan is None else columns["action"](episode.plan)
    return replace(episode, observation=observation, action=action, plan=plan)


class MappedEpisodes(StateEpisodes):
    """Episodes of a recorded set as a mixture, or a policy that was trained on one, has them.

    Args:
        own: the episodes.
        columns: where each feature is found, of `columns`.
        spec: the features.
    """

    def __init__(self, own: StateEpisodes, columns: Mapping[str, Column], spec: Spec):
        self.__dict__.update(own.__dict__)
        self._own, self._columns, self.spec = own, columns, spec

    def read(self, episode: int, start: int = 0, stop: int | None = None) -> Episode:
        """See `StateEpisodes`."""
        return mapped(self._own.read(episode, start, stop), self._columns, self.spec)

    def part(self, episodes: Sequence[int]) -> MappedEpisodes:
        """See `StateEpisodes`."""
        return MappedEpisodes(self._own.part(episodes), self._columns, self.spec)

    def vectors(self) -> MappedEpisodes:
        """See `StateEpisodes`."""
        kept = {name: f for name, f in self.spec.observation.items() if f.kind not in IMAGES}
        return MappedEpisodes(self._own.vectors(), self._columns, replace(self.spec, observation=kept))


def columns(target: Spec, own: Spec, where: str) -> dict[str, Column]:
    """Where each feature of the target comes from in a set that has `own`.

    Raises:
        ValueError: there is none, or what there is does not fit or is ambiguous.
    """
    a, b = target.control_dt_s, own.control_dt_s
    if (a is None) != (b is None) or (a is not None and b is not None and not math.isclose(a, b, rel_tol=1e-6)):
        raise ValueError(f"the set {where!r} has a control period of {b} s, the first set one of {a} s; resample one")
    found = {}
    for name, feature in target.observation.items():
        other = _counterpart(name, feature, own, where)
        if other is None:
            raise ValueError(f"the set {where!r} has no observation {name!r}")
        found[name] = Column(other, _order(feature, own.observation[other], f"the set {where!r}: {other!r}"))
    order = _order(target.action, own.action, f"the set {where!r}: 'action'")
    if own.action.size != target.action.size:
        raise ValueError(f"the set {where!r} has {own.action.size} action dimensions, expected {target.action.size}")
    return {**found, "action": Column("action", order)}


def _left_out(specs: Sequence[Spec], names: Sequence[str]) -> dict[str, str]:
    """Features of the first set that another one lacks, and of others that the first one lacks."""
    found: dict[str, str] = {}
    for spec, where in zip(specs[1:], names[1:], strict=True):
        taken = set()
        for name, feature in specs[0].observation.items():
            other = _counterpart(name, feature, spec, where)
            taken.add(other)
            if other is None:
                found[name] = f"{where} has none"
        extra = [name for name in spec.observation if name not in taken and name not in specs[0].observation]
        found |= dict.fromkeys(extra, f"of {where}; {names[0]} has none")
    return found


def _counterpart(name: str, feature: Feature, own: Spec, where: str) -> str | None:
    """The feature of a set that is the one of this name in the first set; None: there is none.

    Raises:
        ValueError: several could be it.
    """
    if name in own.observation:
        return name
    names = set(feature.names or ())
    alike = [n for n, f in own.observation.items() if names and f.kind == feature.kind and names <= set(f.names or ())]
    if feature.camera:
        alike += [n for n, f in own.observation.items() if f.kind == feature.kind and f.camera == feature.camera]
    if len(alike) > 1:
        raise ValueError(f"the set {where!r} has {', '.join(alike)}, each of which could be {name!r}; rename one")
    return alike[0] if alike else None


def _order(target: Feature, own: Feature, where: str) -> tuple[int, ...] | None:
    """Places of the target's dimensions among the own ones; None: all, as they are."""
    for part in ("kind", "unit"):
        a, b = getattr(target, part), getattr(own, part)
        if a != b and a and b:
            raise ValueError(f"{where} has the {part} {b!r}, the first set {a!r}")
    whole = target.kind in IMAGES or target.kind == "elements"
    if whole or not (target.names or own.names):
        if target.shape != own.shape or (target.kind == "elements" and target.names != own.names):
            raise ValueError(f"{where} has shape {own.shape}, the first set {target.shape}")
        order = None
    else:
        order = _by_names(target, own, where)
    if target.kind == "elements":  # its rows are found by no name
        return None
    for part in ("pointers", "uses"):
        if getattr(target, part) != getattr(own, part) or (order and getattr(target, part)):
            raise ValueError(f"{where} has other {part} than the first set, or has them in another order")
    for part in ("wraps", "choices", "rotations"):
        if _placed(target, part, None) != _placed(own, part, order):
            a, b = shown(getattr(target, part)), shown(getattr(own, part))
            raise ValueError(f"{where} has {part} {b}, the first set {a}, which differ dimension by dimension")
    return order


def _by_names(target: Feature, own: Feature, where: str) -> tuple[int, ...] | None:
    if not (target.names and own.names):
        which = "it" if own.names is None else "the first set"
        raise ValueError(f"{where} cannot be matched by names: {which} does not name its dimensions")
    for side in (target, own):
        if twice := [name for name in side.names or () if (side.names or ()).count(name) > 1]:
            raise ValueError(f"{where} cannot be matched by names: {twice[0]!r} occurs twice")
    if missing := [name for name in target.names if name not in own.names]:
        raise ValueError(f"{where} has the dimensions {shown(list(own.names))}, which lack {missing[0]!r}")
    order = tuple(own.names.index(name) for name in target.names)
    return None if order == tuple(range(own.size)) else order


def _placed(feature: Feature, part: str, order: tuple[int, ...] | None) -> object:
    """A part of a feature as it is after its dimensions were put in order."""
    places = order or tuple(range(feature.size))
    value = getattr(feature, part)
    if part == "choices":
        counts = value or (0,) * feature.size
        return tuple(counts[place] for place in places)
    if part == "wraps":
        return {i for i, place in enumerate(places) if place in (value or ())}
    return {(places.index(first), form) for first, form in value or () if first in places}


def _bounded(target: Spec, specs: Sequence[Spec], found: Sequence[Mapping[str, Column]]) -> Spec:
    """The target with bounds that hold for every set; none where a set does not say any."""

    def widened(name: str, feature: Feature) -> Feature:
        if feature.kind in IMAGES or feature.low is None or feature.high is None:
            return replace(feature, low=None, high=None)
        lows, highs = [], []
        for spec, columns in zip(specs, found, strict=True):
            own = spec.action if name == "action" else spec.observation[columns[name].name]
            if own.low is None or own.high is None:
                return replace(feature, low=None, high=None)
            lows.append(columns[name](np.array(own.low)))
            highs.append(columns[name](np.array(own.high)))
        return replace(feature, low=tuple(np.min(lows, 0).tolist()), high=tuple(np.max(highs, 0).tolist()))

    observation = {name: widened(name, feature) for name, feature in target.observation.items()}
    return replace(target, observation=observation, action=widened("action", target.action))
