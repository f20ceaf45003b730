"""Writes what a plan says: LeRobot 3.0, or a store of flowhand.

What is finished is kept when the writer is stopped, and not done again. The target is there whole or not at all.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from flowhand.contracts.data.episode import Episode
from flowhand.contracts.durable import sync
from flowhand.contracts.features import Feature

from ..lerobot.dataset import LeRobotDataset
from ..lerobot.parts import kind_of_written, levels_of
from ..lerobot.video import Recorded
from ..lerobot.write import LeRobotWriter
from ..meta import StoreMeta
from ..native import Store
from ..reader import Reader
from .plan import Plan, Taken
from .staging import staged

FORMATS = ("lerobot", "native")
IMAGES = ("keep", "video", "png")
VERSION = 1  # of what is kept of a conversion that was stopped
PART_S = 120.0  # seconds after which what is done is kept
BLOCK_BYTES = 2**26  # of frames that are held at once
SAMPLED = 32  # frames of an episode that the statistics of a copied video come from
TOLERANCE_S = 5e-5  # LeRobot finds a frame that is at most 1e-4 s off


@dataclass(frozen=True)
class How:
    """What is written of a plan."""

    format: str = "lerobot"  # one of FORMATS
    images: str = "keep"  # one of IMAGES
    codec: str = "av1"  # of videos that are encoded: av1 | h264

    def __post_init__(self) -> None:
        for name, known in (("format", FORMATS), ("images", IMAGES), ("codec", ("av1", "h264"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choices: {', '.join(known)}")


def pictured(plan: Plan, how: How) -> dict[str, str]:
    """What becomes of each camera's frames: copied, video, png, or numbers.

    Raises:
        ValueError: the format cannot hold a feature, or some frames could be kept only as videos and some only as not.
    """
    found: dict[str, str] = {}
    for name, feature in plan.spec.observation.items():
        if how.format == "native":
            found |= {name: "numbers"} if name in plan.cameras else {}
            continue
        kind = kind_of_written(name, feature)
        if kind not in ("image", "depth"):
            continue
        if kind == "depth" or how.images == "png":
            found[name] = "png"
        elif how.images == "video":
            found[name] = "video"
        else:
            in_video = {source.camera_files(name) for source in plan.sources}
            if len(in_video) > 1:
                raise ValueError(f"{name!r} is a video in some sources only: choose images=video or images=png")
            found[name] = "copied" if in_video == {True} else "png"
    return found


def convert(plan: Plan, target: Path, how: How, said: Callable[[int], object] = lambda steps: None) -> None:
    """Writes the plan to the target, which must not exist.

    Args:
        plan: what is written.
        target: the folder that appears when all is there.
        how: in which form.
        said: is told how many control steps were written since it was last told, those of an earlier try first.

    Raises:
        ValueError: an episode cannot be read, or does not fit the format; what is done is kept.
    """
    form = pictured(plan, how)
    key = plan.key({"version": VERSION, "form": form, "codec": how.codec, "format": how.format})
    with staged(target, key) as folder, _room(target):
        write = _write_store if how.format == "native" else _write_lerobot
        write(plan, target, folder / "set", form, how, said)


@contextmanager
def _room(target: Path) -> Iterator[None]:
    """A full disk is one line that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ValueError(
            f"no room on the disk of {target}: make room, and the same command goes on where it stopped; nothing else "
            "was changed"
        ) from error


def _write_lerobot(
    plan: Plan, target: Path, folder: Path, form: dict[str, str], how: How, said: Callable[[int], object]
) -> None:
    first = plan.sources[0].data
    robot = first.meta.robot if isinstance(first, LeRobotDataset) else ""
    images = {name: "png" if kind == "png" else "video" for name, kind in form.items()}
    with LeRobotWriter(
        target,
        plan.spec,
        columns=plan.names,
        robot=robot,
        images=images,
        codec=how.codec,
        rewards="reward" in plan.judged,
        success="success" in plan.judged,
        part_s=PART_S,
        unfinished=folder,
    ) as writer:
        said(sum(taken.length for taken in plan.episodes[: writer.episodes]))
        for taken in plan.episodes[writer.episodes :]:
            episode = _read(taken, [name for name in plan.spec.observation if name not in form])
            streams = {name: _frames(taken, name, plan.spec.observation[name], kind) for name, kind in form.items()}
            writer.append(episode, streams)
            said(taken.length)


def _write_store(
    plan: Plan, target: Path, folder: Path, form: dict[str, str], how: How, said: Callable[[int], object]
) -> None:
    texts = {taken.task for taken in plan.episodes}
    about = "; ".join(f"{s.name}: {s.data.format if isinstance(s.data, Reader) else 'store'}" for s in plan.sources)
    meta = StoreMeta(plan.spec.to_dict(), texts.pop() if len(texts) == 1 else "", f"converted from {about}", "", {})
    store = Store.open(folder) if (folder / "meta.json").exists() else Store.create(folder, meta)
    with store.writing():
        said(sum(taken.length for taken in plan.episodes[: len(store)]))
        for taken in plan.episodes[len(store) :]:
            store.append(_read(taken, list(plan.spec.observation)))
            said(taken.length)
    folder.rename(target)
    sync(target.parent)


def _read(taken: Taken, names: list[str]) -> Episode:
    """The episode with these observations."""
    data = taken.source.data
    if isinstance(data, Reader):
        episode = data.only(names).read(taken.episode)
    else:
        episode = data[taken.episode]
        episode = replace(episode, observation={name: episode.observation[name] for name in names})
    return replace(episode, task=taken.task)


def _frames(taken: Taken, name: str, feature: Feature, kind: str) -> Iterable[np.ndarray] | Recorded:
    data = taken.source.data
    if kind == "copied":
        assert isinstance(data, LeRobotDataset)
        return _recorded(data, taken, name)
    return _blocks(taken, name, feature)


def _blocks(taken: Taken, name: str, feature: Feature) -> Iterator[np.ndarray]:
    """The frames of an episode, some at a time."""
    data = taken.source.data
    if isinstance(data, Store):
        yield data[taken.episode].observation[name]
        return
    view, size = data.only([name]), max(1, BLOCK_BYTES // (feature.size * np.dtype(feature.dtype).itemsize))
    for start in range(0, taken.length, size):
        yield view.read(taken.episode, start, min(start + size, taken.length)).observation[name]


def _recorded(data: LeRobotDataset, taken: Taken, name: str) -> Recorded:
    """The frames where they lie.

    Raises:
        ValueError: they do not follow each other at the rate, so that the new rows would not find them.
    """
    video, index = data.frame_numbers(taken.episode, name)
    times_s = video.times_s[index]
    off_s = np.abs(times_s - times_s[0] - np.arange(len(index)) / data.meta.fps)
    if (np.diff(index) != 1).any() or off_s.max() > TOLERANCE_S:
        raise ValueError(
            f"{video.path}: episode {taken.episode}: frames do not follow each other at {data.meta.fps:g} a second, so "
            "the file cannot be copied as it is: choose images=video or images=png"
        )
    levels = levels_of("image")
    levels.add(video.read(index[:: -(-len(index) // SAMPLED)]))
    return Recorded(video.path, float(times_s[0]), levels)
