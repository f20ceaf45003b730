"""What a conversion takes from where, settled before anything is written."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flowhand.contracts.features import Feature, Spec, shown

from ..lerobot.dataset import LeRobotDataset
from ..native import Store
from ..reader import Reader

ARROW = "=>"  # between the text that episodes have and the one that they get
READ_APART = ("next.reward", "next.success")  # columns that are no observations and are written all the same
EXACT = ("int8", "int16")  # dtypes that no feature has, whose values float32 holds exactly


@dataclass(frozen=True)
class Source:
    """One data set that is read."""

    name: str  # as the user wrote it
    data: Store | Reader

    def camera_files(self, name: str) -> bool:
        """Whether the feature's frames lie in videos."""
        return isinstance(self.data, Reader) and self.data.columns[name].encoding == "video"


@dataclass(frozen=True)
class Taken:
    """One episode that is written."""

    source: Source
    episode: int  # its number there
    length: int  # control steps
    task: str  # the text that it gets


@dataclass(frozen=True)
class Plan:
    """What is written; nothing has been written yet."""

    sources: list[Source]
    episodes: list[Taken]
    spec: Spec
    names: dict[str, str]  # column of each feature, where the first source has such names
    judged: set[str]  # of reward and success, what is recorded
    lines: list[str] = field(default_factory=list)  # on what is not as one may expect

    @property
    def steps(self) -> int:
        """Control steps in all."""
        return sum(taken.length for taken in self.episodes)

    @property
    def cameras(self) -> list[str]:
        """The features that are images."""
        return [name for name, feature in self.spec.observation.items() if feature.kind in ("image", "depth")]

    def key(self, how: Mapping[str, Any]) -> str:
        """Changes when the sources, or what is done with them, do."""
        told = [source.data.fingerprint for source in self.sources]
        places = [(self.sources.index(taken.source), taken.episode, taken.task) for taken in self.episodes]
        content = [told, places, self.spec.to_dict(), self.names, sorted(self.judged), dict(how)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def planned(
    sources: Sequence[Source], episodes: Sequence[str] = (), drop: Sequence[str] = (), tasks: Sequence[str] = ()
) -> Plan:
    """Settles what is written.

    Args:
        sources: of one kind of robot, in this order.
        episodes: numbers and ranges (FIRST:END) of episodes, counted on through the sources; empty: all.
        drop: names of observations that are left out.
        tasks: "OLD => NEW" for the episodes with that text, or NEW for all.

    Raises:
        ValueError: the sources do not fit each other, or there is no such episode, observation or text.
    """
    lines: list[str] = []
    specs = [_without(source, drop) for source in sources]
    for source, spec in zip(sources, specs, strict=True):
        lines += _of_dtypes(source, spec)
        if isinstance(source.data, Reader):
            left = {name: why for name, why in source.data.left_out.items() if name not in READ_APART}
            lines += [f"{source.name}: {name} is left out: {why}" for name, why in left.items()]
    spec = specs[0]
    for source, other in zip(sources[1:], specs[1:], strict=True):
        spec = _joined(spec, other, sources[0].name, source.name)
    every = [(source, episode) for source in sources for episode in range(len(source.data))]
    chosen = [every[number] for number in numbers_of(episodes, len(every))]
    texts = _renamed([source.data.tasks[episode] for source, episode in chosen], tasks)
    taken = [
        Taken(source, episode, source.data.lengths[episode], text)
        for (source, episode), text in zip(chosen, texts, strict=True)
    ]
    _require_videos(taken, spec)
    return Plan(list(sources), taken, spec, _columns(sources[0], spec), _judged(sources, lines), lines)


def numbers_of(words: Sequence[str], count: int) -> list[int]:
    """The episodes that numbers and ranges such as "0:50", "-5:" and "60" mean, in this order, each once.

    Raises:
        ValueError: it is no such word, or there are no such episodes.
    """
    if not words:
        return list(range(count))
    found: list[int] = []
    for word in map(str, words):
        match = re.fullmatch(r"\s*(-?\d{1,9})?\s*(:)?\s*(-?\d{1,9})?\s*", word)
        if match is None or not (match[2] or (match[1] and not match[3])):
            raise ValueError(f"episodes holds {shown(word)}, expected numbers and ranges FIRST:END such as 0:50")
        if match[2]:
            part = list(range(count))[slice(*(int(end) if end else None for end in (match[1], match[3])))]
        else:
            part = [int(match[1])] if -count <= int(match[1]) < count else []
        if not part:
            raise ValueError(f"episodes holds {shown(word)}, which is none of the {count} episodes 0 to {count - 1}")
        found += [number % count for number in part]
    return list(dict.fromkeys(found))


def _without(source: Source, drop: Sequence[str]) -> Spec:
    """The specification without what is dropped."""
    spec = source.data.spec
    for name in drop:
        if name not in spec.observation:
            known = ", ".join(spec.observation)
            raise ValueError(f"{source.name} has no observation {name!r} to drop; choices: {known}")
    left = {name: feature for name, feature in spec.observation.items() if name not in drop}
    if not left:
        raise ValueError(f"drop leaves no observation of {source.name}; a data set needs one")
    return Spec(left, spec.action, spec.control_dt_s)


def _of_dtypes(source: Source, spec: Spec) -> Iterator[str]:
    """Lines on numbers whose dtype no feature has; what would be changed is refused."""
    if not isinstance(source.data, Reader):
        return
    for name, feature in {**spec.observation, "action": spec.action}.items():
        column = source.data.columns[name]
        if column.encoding != "numbers" or column.kind == "image" or column.stored == feature.dtype:
            continue
        if column.stored not in EXACT:
            raise ValueError(
                f"{source.name}: {name!r} is stored as {column.stored}, which {feature.dtype} cannot hold exactly; "
                f"leave it out with drop=[{name}]"
            )
        yield f"{source.name}: {name} is stored as {column.stored} and becomes {feature.dtype}, with the same values"


def _joined(one: Spec, other: Spec, here: str, there: str) -> Spec:
    """What both hold.

    Raises:
        ValueError: they hold different things; the line names the first.
    """
    if one.control_dt_s != other.control_dt_s:
        rates = [f"{1 / dt:g} Hz" if dt else "at events" for dt in (one.control_dt_s, other.control_dt_s)]
        raise ValueError(f"{here} and {there} differ: the rate is {rates[0]} and {rates[1]}")
    for name in [*one.observation, *other.observation]:
        if name not in other.observation or name not in one.observation:
            where = here if name in one.observation else there
            raise ValueError(f"{here} and {there} differ: only {where} has {name!r}; drop=[{name}] leaves it out")
    pairs = {name: (feature, other.observation[name]) for name, feature in one.observation.items()}
    pairs["action"] = (one.action, other.action)
    joined = {name: _same(name, *pair, here, there) for name, pair in pairs.items()}
    action = joined.pop("action")
    return Spec(joined, action, one.control_dt_s)


def _same(name: str, one: Feature, other: Feature, here: str, there: str) -> Feature:
    for what in ("kind", "dtype", "shape", "names", "choices", "wraps", "unit"):
        values = getattr(one, what), getattr(other, what)
        unknown = what in ("names", "unit", "wraps") and not all(values)
        if values[0] != values[1] and not unknown:
            raise ValueError(
                f"{here} and {there} differ: the {what} of {name!r} is {shown(values[0])} and {shown(values[1])}"
            )
    bounds = {}
    for what, widest in (("low", min), ("high", max)):
        ends = getattr(one, what), getattr(other, what)
        bounds[what] = None if None in ends else tuple(map(widest, *ends))
    more = {what: getattr(one, what) or getattr(other, what) for what in ("names", "unit", "wraps")}
    return replace(one, **bounds, **more)


def _renamed(texts: list[str], tasks: Sequence[str]) -> list[str]:
    """The texts that the episodes get."""
    known, changes = Counter(texts), {}
    for word in tasks:
        old, arrow, new = word.partition(ARROW)
        if not arrow:
            changes |= dict.fromkeys(known, word.strip())
            continue
        if old.strip() not in known:
            some = ", ".join(repr(text) for text in list(known)[:5])
            raise ValueError(f"tasks renames {old.strip()!r}, which is the text of no episode; there are {some}")
        changes[old.strip()] = new.strip()
    return [changes.get(text, text) for text in texts]


def _require_videos(episodes: Sequence[Taken], spec: Spec) -> None:
    """Raises ValueError where an episode lacks the video of a camera, with what can be done."""
    for name in spec.observation:
        there, lacking = [], []
        for number, taken in enumerate(episodes):
            data = taken.source.data
            if taken.source.camera_files(name) and isinstance(data, LeRobotDataset):
                (there if data.video_of(taken.episode, name) else lacking).append(number)
        if lacking:
            some = f" or take some episodes, such as episodes=[{','.join(map(str, there[:5]))}]" if there else ""
            raise ValueError(
                f"the videos of {name!r} are missing in {len(lacking)} of {len(episodes)} episodes, the first of them "
                f"{lacking[0]}: leave it out with drop=[{name}]{some}"
            )


def _columns(source: Source, spec: Spec) -> dict[str, str]:
    """Names of columns as the source has them, where it is of the format that has such names."""
    if not isinstance(source.data, LeRobotDataset):
        return {}
    return {name: source.data.columns[name].source for name in spec.observation}


def _judged(sources: Sequence[Source], lines: list[str]) -> set[str]:
    """Of reward and success, what every source has recorded."""
    has = [{"reward", "success"} if isinstance(s.data, Store) else s.data.recorded() for s in sources]
    shared = set.intersection(*has) & {"reward", "success"}
    partly = sorted((set.union(*has) & {"reward", "success"}) - shared)
    lines += [f"{name} is recorded in some of the sources only, and left out" for name in partly]
    return shared
