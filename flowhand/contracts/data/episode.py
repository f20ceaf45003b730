"""One demonstration, checked against a specification, and what a data set of them is."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..features import Spec, shown
from ..screen.plans import require_stop

if TYPE_CHECKING:
    from .statistics import Statistics

# Demonstrations use seeds below this one, evaluation the seeds from it on: a policy is never scored on what it saw.
SEED_LIMIT = 1_000_000
RECORDED = ("plan", "intervention", "asked")  # fields that only some recordings have


@dataclass(eq=False)
class Episode:
    """N control steps of one demonstration; observation n is the one at which action n was decided."""

    observation: dict[str, np.ndarray]  # each (N, *shape), shape and dtype as in the specification
    action: np.ndarray  # (N, A); the action that was meant, without execution noise
    reward: np.ndarray  # (N,) float32; earned by that step
    success: np.ndarray  # (N,) bool; true if the task was solved after that step
    task: str  # instruction in words
    seed: int  # start state and goal, in [0, 1_000_000)
    control_dt_s: float | None  # time between two actions, seconds; None: each action waits for an event
    # (N, T, A) float32: all that the expert would do from each state on, T at least 1, filled with stops. None: no plan
    plan: np.ndarray | None = field(default=None, kw_only=True)
    # (N,) bool: a person or an expert acted in the place of a policy
    intervention: np.ndarray | None = field(default=None, kw_only=True)
    # (N, A) as the action: what was wished, where safety let something else through
    asked: np.ndarray | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.action)

    def steps(self, start: int = 0, stop: int | None = None) -> Episode:
        """The control steps from `start` to before `stop` (None: to the end), which are views of this episode's.

        Raises:
            ValueError: these are no steps of the episode.
        """
        stop = len(self) if stop is None else stop
        if not 0 <= start < stop <= len(self):
            raise ValueError(f"steps {start} to {stop} were asked for, the episode has steps 0 to {len(self)}")
        part = slice(start, stop)
        observation = {name: values[part] for name, values in self.observation.items()}
        rest = {"action": self.action[part], "reward": self.reward[part], "success": self.success[part]}
        rest |= {name: array[part] for name, array in self.recorded().items()}
        return replace(self, observation=observation, **rest)

    def recorded(self) -> dict[str, np.ndarray]:
        """What only some recordings tell of each step, by name."""
        return {name: array for name in RECORDED if (array := getattr(self, name)) is not None}

    def validate(self, spec: Spec) -> None:
        """Check every field against the specification.

        Raises:
            ValueError: names the field, the step and the dimension of the first thing that is wrong.
        """
        if np.size(self.action) == 0:
            raise ValueError("action has no step 0: an episode needs at least one step, this one is empty")
        self._check_names(set(spec.observation))
        _check_array("action", self.action, spec.action.shape, spec.action.dtype, steps=None)
        for name, feature in spec.observation.items():
            _check_array(f"observation {name!r}", self.observation[name], feature.shape, feature.dtype, len(self))
        _check_array("reward", self.reward, (), "float32", len(self))
        _check_array("success", self.success, (), "bool", len(self))
        if self.plan is not None:
            self._check_plan(self.plan, spec)
        asked = (spec.action.shape, spec.action.dtype)
        expected: dict[str, tuple[tuple[int, ...], str]] = {"intervention": ((), "bool"), "asked": asked}
        for name in expected.keys() & self.recorded():
            _check_array(name, self.recorded()[name], *expected[name], len(self))
        self._check_scalars(spec.control_dt_s)

    def _check_names(self, expected: set[str]) -> None:
        got = set(self.observation)
        for what, names in (("misses", expected - got), ("has unknown", got - expected)):
            if names:
                raise ValueError(f"observation {what} key {sorted(names)[0]!r}: the features list {sorted(expected)}")

    def _check_plan(self, plan: np.ndarray, spec: Spec) -> None:
        require_stop(spec.action)
        actions = np.shape(plan)[1] if np.ndim(plan) == 3 else 0
        if not actions:
            raise ValueError(f"plan has shape {np.shape(plan)}: expected {(len(self), 'T', *spec.action.shape)}")
        _check_array("plan", plan, (actions, *spec.action.shape), "float32", len(self))
        for dimension, n in enumerate(spec.action.choices or ()):
            value = plan[..., dimension]
            wrong = (value != np.round(value)) | (value < 0) | (value >= n)
            if n and wrong.any():
                step, at = (int(i) for i in np.argwhere(wrong)[0])
                got = f"plan is {value[step, at]:g} at step {step}, action {at}, dimension {dimension}"
                raise ValueError(f"{got}: expected one of its {n} choices, 0 to {n - 1}")

    def _check_scalars(self, control_dt_s: float | None) -> None:
        number = isinstance(self.seed, int | np.integer) and not isinstance(self.seed, bool)
        if not number or not 0 <= self.seed < SEED_LIMIT:
            raise ValueError(
                f"seed is {shown(self.seed)}: demonstrations have int seeds in [0, {SEED_LIMIT}), evaluation the "
                "larger ones"
            )
        if not isinstance(self.task, str) or not _is_text(self.task):
            raise ValueError(f"task is {shown(self.task)}: expected the instruction as a string")
        dt = self.control_dt_s
        if not (dt is None or is_number(dt)) or dt != control_dt_s:
            raise ValueError(f"control_dt_s is {shown(self.control_dt_s)} s, but the features say {control_dt_s} s")


class Dataset(Protocol):
    """Episodes of one specification, wherever they lie; readers are lazy, so an open data set holds none of them."""

    @property
    def spec(self) -> Spec:
        """What every episode holds, and the control period."""
        ...

    @property
    def tasks(self) -> Sequence[str]:
        """The task text of each episode."""
        ...

    @property
    def lengths(self) -> Sequence[int]:
        """The control steps of each episode."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes when the data do: of metadata, file footers, sizes and modification times, computed once."""
        ...

    def read(self, episode: int, start: int = 0, stop: int | None = None) -> Episode:
        """The control steps from `start` to before `stop` (None: to the end) of an episode."""
        ...

    def statistics(self) -> Statistics:
        """Moments, extremes and true quantiles of every feature, over all episodes."""
        ...


def _check_array(name: str, array: np.ndarray, shape: tuple[int, ...], dtype: str, steps: int | None) -> None:
    """Raise ValueError unless `array` holds `steps` (None: any number) finite entries of this shape and dtype."""
    if type(array) not in (np.ndarray, np.memmap):  # a masked array, for example, is not what is written of it
        raise ValueError(f"{name} is a {type(array).__name__}: expected a numpy array")
    if (array.dtype.kind != "U") if dtype == "str" else (array.dtype != np.dtype(dtype)):
        raise ValueError(f"{name} has dtype {array.dtype} from step 0 on: expected {dtype}")
    if array.ndim == 0 or array.shape[1:] != shape:
        raise ValueError(f"{name} has shape {array.shape[1:]} from step 0 on: expected {shape}")
    if steps is not None and len(array) != steps:
        raise ValueError(
            f"{name} has {len(array)} steps but action has {steps}: they part at step {min(len(array), steps)}"
        )
    if array.dtype.kind == "b" and (array.view(np.uint8) > 1).any():
        raise ValueError(f"{name} holds bytes that are neither 0 nor 1: expected bool")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        step, *dimension = (int(i) for i in np.argwhere(~np.isfinite(array))[0])
        value = array[(step, *dimension)]
        where = f", dimension {dimension[0] if len(dimension) == 1 else dimension}" if dimension else ""
        raise ValueError(f"{name} is {value} at step {step}{where}: expected finite numbers")


def is_number(value: Any) -> bool:
    """Whether it is a finite number as JSON has it; not one of numpy's, which are written otherwise."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_text(value: str) -> bool:
    """Whether the string can be written to a file."""
    return not any("\ud800" <= character <= "\udfff" for character in value)
