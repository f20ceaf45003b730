"""robomimic's HDF5 files, and those of Isaac Lab, which have the same layout and say which episodes failed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flowhand.contracts.data.episode import shown

from ..columns import Column, column, feature_names, kind_of
from ..reader import Reader, require_rate
from .hdf5 import arrays_of, child, is_array, is_group, numbered, opened, require_plain, rows, text_of

USUAL_RATE_HZ = 20.0  # robosuite's, where a file does not say


@dataclass(frozen=True)
class _Demo:
    name: str
    length: int
    success: bool | None  # None: the file does not say
    task: str


class RobomimicDataset(Reader):
    """One HDF5 file with the group `data`.

    Args:
        path: the file.
        observation: {name of the feature: path of the array in an episode, such as "obs/object"}; None: all arrays of
            numbers directly in `obs`, or `states` where there is no `obs`.
        action: path of the action's array in an episode.
        rate_hz: control steps a second; None: as the file's `env_args` say, else robosuite's 20, with a line about it.
        filter_key: a list of episodes that the file has under `mask`, such as "train"; "": all.
        failed: what happens with episodes that the file calls failed: leave (out), keep, only.

    Raises:
        ValueError: it cannot be read right; the line names the file.
    """

    format = "robomimic HDF5"

    def __init__(
        self,
        path: Path | str,
        observation: Mapping[str, str] | None = None,
        action: str = "actions",
        rate_hz: float | None = None,
        filter_key: str = "",
        failed: Literal["leave", "keep", "only"] = "leave",
    ):
        if failed not in ("leave", "keep", "only"):
            raise ValueError(f"failed is {failed!r}; choices: leave, keep, only")
        self._begin(path)
        with opened(self.path) as file:
            data = child(file, "data", str(self.path))
            if not is_group(data):
                raise ValueError("it has no group 'data', as a robomimic file has")
            env, total = self._env(data), data.attrs.get("total")
            names = self._filtered(file, numbered(data, "demo_"), filter_key)
            demos = [demo for name in names if (demo := self._demo(data, name, action))]
            self.failed = [demo.name for demo in demos if demo.success is False]
            self._demos = self._by_success(demos, failed)
            if not self._demos:
                raise ValueError(f"no episode can be used of {len(names)}")
            first = child(data, self._demos[0].name, str(self.path))
            columns = self._columns(first, observation, action)
            steps = sum(demo.length for demo in demos)
            if total is not None and not filter_key and not np.array_equal(total, steps):
                self._warn(f"the file says {shown(np.asarray(total).tolist())} steps in all, its episodes have {steps}")
        rate = self._rate(env, rate_hz)
        self._finish(columns, rate, [demo.task for demo in self._demos], [demo.length for demo in self._demos])

    def _env(self, data: Any) -> dict[str, Any]:
        text = text_of(data.attrs.get("env_args"))
        try:
            env = json.loads(text) if text else {}
        except (ValueError, RecursionError):
            env = None
        if not isinstance(env, dict):
            self._warn("env_args is no JSON object")
            env = {}
        self.env_name = env.get("env_name") if isinstance(env.get("env_name"), str) else ""
        return env

    def _rate(self, env: Mapping[str, Any], rate_hz: float | None) -> float:
        if rate_hz is not None:
            return require_rate(rate_hz, "rate_hz")
        options = env.get("env_kwargs")
        frequency = options.get("control_freq") if isinstance(options, dict) else None
        if frequency is None:
            self._warn(f"the file does not say its rate: {USUAL_RATE_HZ:g} control steps a second are assumed")
            return USUAL_RATE_HZ
        return require_rate(frequency, f"{self.path}: env_args: control_freq")

    def _filtered(self, file: Any, names: list[str], key: str) -> list[str]:
        mask = child(file, "mask", str(self.path))
        self.filter_keys = sorted(mask) if is_group(mask) else []
        if not key:
            return names
        if key not in self.filter_keys:
            raise ValueError(f"no filter {key!r}; choices: {', '.join(self.filter_keys) or 'none, it has no mask'}")
        listed = child(mask, key, str(self.path))
        require_plain(listed, f"mask {key!r}")
        wanted = [text_of(name) for name in np.asarray(listed[()]).reshape(-1).tolist()]
        if unknown := sorted(set(wanted) - set(names)):
            raise ValueError(f"the filter {key!r} lists {unknown[0]!r}, which is not there")
        return [name for name in names if name in set(wanted)]

    def _demo(self, data: Any, name: str, action: str) -> _Demo | None:
        """What is known of an episode before it is read; None, and a line about it, if it is empty."""
        group = child(data, name, str(self.path))
        actions = child(group, action, f"episode {name}") if is_group(group) else None
        if not is_group(group) or not is_array(actions) or actions.ndim == 0 or len(actions) == 0:
            self._warn(f"episode {name} is left out: it has no {action!r}")
            return None
        said = group.attrs.get("num_samples")
        if said is not None and not np.array_equal(said, len(actions)):
            raise ValueError(
                f"episode {name}: num_samples is {shown(said)}, but column {action!r} has {len(actions)} rows"
            )
        success = group.attrs.get("success")
        return _Demo(name, len(actions), None if success is None else bool(np.all(success)), _instruction(group))

    def _by_success(self, demos: list[_Demo], failed: str) -> list[_Demo]:
        if self.failed and failed == "leave":
            what = f"{len(self.failed)} of {len(demos)} episodes failed"
            if len(self.failed) == len(demos):
                raise ValueError(f"all {what[: what.index(' of')]} episodes failed; failed=keep reads them")
            self._warn(f"{what} and are left out; failed=keep reads them too")
        return [demo for demo in demos if failed == "keep" or (demo.success is False) == (failed == "only")]

    def _columns(self, demo: Any, observation: Mapping[str, str] | None, action: str) -> dict[str, Column]:
        obs = child(demo, "obs", str(self.path))
        there = arrays_of(obs, str(self.path)) if is_group(obs) else {}
        if observation is None:
            chosen = [f"obs/{name}" for name, array in there.items() if "/" not in name and array.dtype.kind in "fiub"]
            self.left_out |= {f"obs/{name}": "it lies in a group" for name in there if f"obs/{name}" not in chosen}
            if not chosen and is_array(child(demo, "states", str(self.path))):
                chosen = ["states"]
                self._warn("no observations were recorded: the simulator's states are taken")
            observation = {name: source for source, name in feature_names(chosen, ("obs/",)).items()}
        columns = {}
        for name, source in {**observation, "action": action}.items():
            array = _at(demo, source, str(self.path))
            shape, stored = array.shape[1:], array.dtype.name
            kind = "action" if name == "action" else kind_of(shape, stored)
            columns[name] = column(source, stored, shape, "state" if kind == "image" and stored != "uint8" else kind)
        return columns

    def _arrays(
        self, stored: int, start: int, stop: int, names: Sequence[str]
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        demo, arrays, extra = self._demos[stored], {}, {}
        with opened(self.path) as file:
            group = child(child(file, "data", str(self.path)), demo.name, str(self.path))
            if not is_group(group):
                raise ValueError(f"episode {demo.name} is missing")
            for name in names:
                source = self.columns[name].source
                where = f"{self.path}: episode {demo.name}: column {source!r}"
                array = _at(group, source, f"{self.path}: episode {demo.name}")
                stored_as = self.columns[name].stored
                if len(array) != demo.length or array.dtype.name != stored_as:
                    got = f"{len(array)} rows of {array.dtype}"
                    raise ValueError(f"{where} has {got}, expected {demo.length} of {stored_as}")
                values = rows(array, start, stop, where)
                arrays[name] = self._checked(name, values, stop - start, f"{self.path}: episode {demo.name}")
            if len(names) == len(self.columns) and is_array(rewards := child(group, "rewards", demo.name)):
                extra["reward"] = rows(rewards, start, stop, f"{self.path}: episode {demo.name}: column 'rewards'")
        if demo.success is not None:  # the file says it of the whole episode
            extra["success"] = np.arange(start, stop) == (demo.length - 1 if demo.success else -1)
        return arrays, extra

    def origin(self, name: str) -> str:
        """See `Reader.origin`. Which episodes the numbers count depends on the filter and on what failed."""
        listed = hashlib.sha256(repr([demo.name for demo in self._demos]).encode()).hexdigest()
        return f"{super().origin(name)} {listed}"

    def _files(self) -> Iterator[Path]:
        yield self.path


def _at(group: Any, source: str, where: str) -> Any:
    """The array at a path below an episode."""
    for part in source.split("/"):
        group = child(group, part, where) if is_group(group) else None
    if not is_array(group) or group.ndim == 0:
        raise ValueError(f"{where}: column {source!r} is missing")
    return group


def _instruction(demo: Any) -> str:
    """The text that robocasa and others write into `ep_meta`."""
    try:
        about = json.loads(text_of(demo.attrs.get("ep_meta")) or "{}")
    except (ValueError, RecursionError):
        return ""
    text = about.get("lang") if isinstance(about, dict) else None
    return text if isinstance(text, str) else ""
