"""Safety: between what a policy asks for and what a robot is told. With axis.py, numpy only, to carry to any robot.

A command passes unchanged, to the last bit, where the robot can follow it within all limits and can still be braked to
rest within them afterwards. So some command inside every limit always exists, and limits never contradict each other:
the bounds win, by braking in front of them as early as velocity, acceleration and jerk ask for. Any other finite
command is replaced by the one that brings the robot to the wanted value soonest without passing it. What must not be
followed at all (not finite, too old, outside the workspace) is refused, and the safe action is taken.

A workspace has the last word: what it makes of the command is sent even where that breaks a limit of change, since no
limit of a command's changes can know how far the robot will move.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .axis import Axis, Motion

logger = logging.getLogger(__name__)

CLAMPS = ("workspace", "chunk", "bounds", "velocity", "acceleration", "jerk", "braking")
REFUSALS = ("shape", "not finite", "stale observation", "stale chunk", "workspace")
SAFE_ACTIONS = ("hold", "zero", "vector")
LARGEST = float(np.finfo(np.float32).max)  # of a command: larger ones are infinite in float32

Observation = Mapping[str, np.ndarray]
Vector = Sequence[float] | np.ndarray
Workspace = Callable[[Observation, np.ndarray], np.ndarray | None]
SafeAction = Callable[[Observation | None, np.ndarray | None], np.ndarray]


@dataclass
class SafetyConfig:
    """The limits of commands, in action units. A list has one number for all dimensions, or one for each.

    Raises:
        ValueError: a limit that is not positive, an unknown safe action.
    """

    low: list[float] | None = None  # smallest command, beside the checkpoint's own; null: only that
    high: list[float] | None = None  # largest command, beside the checkpoint's own; null: only that
    velocity: list[float] | None = None  # largest change per second; null (or .inf in the list): not limited
    acceleration: list[float] | None = None  # largest change of the velocity per second; null: not limited
    jerk: list[float] | None = None  # largest change of the acceleration per second; null: not limited
    chunk_jump: list[float] | None = None  # largest jump from one chunk to the next; null: not limited
    max_observation_age_s: float | None = 0.1  # refuse what was decided on an older observation; null: any age
    max_chunk_age_s: float | None = None  # refuse actions of a chunk decided longer ago; null: any age
    safe_action: str = "hold"  # after a refusal: hold (brake, stay; see rest) | zero | vector (safe_vector)
    rest: list[float | None] | None = None  # for hold, where a command is a rate: with which the robot stands still
    safe_vector: list[float] | None = None  # the command for safe_action=vector

    def __post_init__(self) -> None:
        for name in ("velocity", "acceleration", "jerk", "chunk_jump"):
            if any(not value > 0 for value in getattr(self, name) or ()):
                raise ValueError(f"safety.{name}={getattr(self, name)} must be positive numbers (.inf: not limited)")
        for name in ("max_observation_age_s", "max_chunk_age_s"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"safety.{name}={getattr(self, name)} must be positive seconds, or null for any age")
        if self.safe_action not in SAFE_ACTIONS:
            raise ValueError(f"safety.safe_action={self.safe_action!r} is unknown; choices: {', '.join(SAFE_ACTIONS)}")
        if (self.safe_action == "vector") != (self.safe_vector is not None):
            raise ValueError("safety.safe_vector belongs to safety.safe_action=vector; give both or neither")
        if self.rest is not None and self.safe_action != "hold":
            raise ValueError(f"safety.rest belongs to safety.safe_action=hold, and that is {self.safe_action}")


@dataclass(frozen=True)
class Verdict:
    """What became of one command."""

    action: np.ndarray | None  # (A,) float64, to send to the robot; None: nothing to hold yet, so send nothing
    refused: str = ""  # why it was refused; empty: it was not
    clamps: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # reason (of CLAMPS) -> dimensions changed


class Safety:
    """Turns every command into one inside all limits; counts and logs what it changes.

    One object serves one robot, with one call per control step. It returns float64: rounding a command to float32
    would break limits of acceleration and jerk by itself.

    Args:
        size: number of action dimensions, A.
        control_dt_s: time between two commands, in seconds.
        config: the limits.
        low: smallest value of each dimension, (A,); None where it is not known.
        high: largest value of each dimension, (A,); None where it is not known.
        workspace: a function of observation and command (A,) that returns the command to follow instead, or None to
            refuse it; a `workspace.Box`, or any other. Where the limits change the command it is asked about that too.
        safe_action: a function of the last observation and the last command (either may be None) that returns the
            command (A,) to take after a refusal; it replaces `config.safe_action`.

    Raises:
        ValueError: limits of a wrong length, contradicting bounds, a safe vector outside the bounds.
    """

    def __init__(
        self,
        size: int,
        control_dt_s: float,
        config: SafetyConfig | None = None,
        low: Vector | None = None,
        high: Vector | None = None,
        workspace: Workspace | None = None,
        safe_action: SafeAction | None = None,
    ):
        if not 0 < control_dt_s < math.inf:
            raise ValueError(f"control_dt_s is {control_dt_s}, expected a positive number of seconds")
        self.size, self.config = size, (config := config or SafetyConfig())
        self._low = np.fmax(_spread("low", low, size, -math.inf), _spread("low", config.low, size, -math.inf))
        self._high = np.fmin(_spread("high", high, size, math.inf), _spread("high", config.high, size, math.inf))
        if not (self._low <= self._high).all():
            raise ValueError(f"no command lies between low {self._low} and high {self._high}")
        limits = [_spread(name, getattr(config, name), size, math.inf) for name in ("velocity", "acceleration", "jerk")]
        limits = [limit * control_dt_s**power for power, limit in enumerate(limits, 1)]  # per control step
        self._axes = [Axis(*row) for row in np.stack([self._low, self._high, *limits], 1).tolist()]
        self._jump = _spread("chunk_jump", config.chunk_jump, size, math.inf)
        self._rest = _spread("rest", [math.inf if x is None else x for x in config.rest or [None]], size, math.inf)
        if not (np.isinf(self._rest) | (self._low <= self._rest) & (self._rest <= self._high)).all():
            raise ValueError(f"rest {config.rest} lies outside the bounds {self._low} to {self._high}")
        self._workspace = workspace
        self._safe_action = safe_action
        if safe_action is None and config.safe_action != "hold":
            vector = self._inside("safe_vector", config.safe_vector)
            self._safe_action = lambda observation, last: vector
        self.counts: Counter[str] = Counter()  # commands, by "clamp: reason" and "refusal: reason", over all episodes
        self.reset()

    @classmethod
    def for_spec(cls, spec: Any, config: SafetyConfig | None = None, control_dt_s: float = 0.0, **more: Any) -> Safety:
        """Safety with the bounds of a checkpoint's specification (`policies.Spec`), and, unless given, its period."""
        action = spec.action
        return cls(action.size, control_dt_s or spec.control_dt_s, config, action.low, action.high, **more)

    @property
    def last(self) -> np.ndarray | None:
        """The last command (A,) float64; None before the first."""
        command = np.array([motion.p for motion in self._motions])
        return None if np.isnan(command).any() else command

    @property
    def resting(self) -> bool:
        """Whether the last command repeats the one before: the robot stands still, if that is what the command says."""
        return all(axis.rests(now) for axis, now in zip(self._axes, self._motions, strict=True))

    def reset(self, start: Vector | None = None) -> None:
        """Starts an episode: at rest at the command `start` (A,), or, if that is unknown, at whatever comes first."""
        place = np.full(self.size, math.nan) if start is None else self._inside("start", start)
        self._motions = [Motion(p, wanted=p) for p in place.tolist()]
        self._excess = np.zeros(self.size)  # by which this chunk's commands are held back, see _join
        self._joins = False  # whether the next command starts a chunk whatever the caller says
        self._before = self._motions, self._excess

    def step(
        self,
        action: Vector,
        observation: Observation | None = None,
        *,
        observation_age_s: float = 0.0,
        chunk_age_s: float = 0.0,
        chunk_start: bool = False,
    ) -> Verdict:
        """The command to send instead of `action` (A,), and why.

        Args:
            action: what the policy asks for.
            observation: what the workspace looks at.
            observation_age_s: seconds since the latest observation was made.
            chunk_age_s: seconds since the observation was made from which this chunk was decided.
            chunk_start: whether this is the first action of a chunk.
        """
        asked = _vector(action)
        if refusal := self._refusal(asked, observation_age_s, chunk_age_s):
            return self.refuse(refusal, observation)
        inside = self._answer(self._workspace, observation or {}, asked.copy()) if self._workspace else asked
        if inside is None:
            return self.refuse("workspace", observation)
        self._before = self._motions, self._excess
        joined = self._join(inside, chunk_start)
        reasons = self._move(joined)
        cut = self._cut(observation or {}) if (self.last != inside).any() else np.zeros(self.size, bool)
        if cut is None:
            self._motions, self._excess = self._before
            return self.refuse("workspace", observation)
        flags = {"workspace": (inside != asked) | cut, "chunk": joined != inside}
        flags |= {reason: [reason in each for each in reasons] for reason in CLAMPS[2:]}
        return Verdict(self.last, "", self._clamps(flags, asked))

    def refuse(self, reason: str, observation: Observation | None = None) -> Verdict:
        """The safe action, for a command that must not be followed or does not exist.

        The workspace cuts it as any command where there is an observation to judge it by.
        """
        self._note(f"refusal: {reason}", "")
        self._before = self._motions, self._excess
        self._joins, self._excess = True, np.zeros(self.size)
        safe = self._answer(self._safe_action, observation, self.last) if self._safe_action else None
        if safe is not None:
            self._move(safe)
        else:
            self._motions = [self._held(*each) for each in zip(self._axes, self._motions, self._rest, strict=True)]
        cut = None if observation is None else self._cut(observation)
        return Verdict(self.last, reason, {} if cut is None else self._clamps({"workspace": cut}, safe))

    def rollback(self) -> None:
        """Forgets the last command, which did not reach the robot."""
        self._motions, self._excess = self._before
        self._joins = True

    def _answer(self, function: Callable[..., Any], *arguments: Any) -> np.ndarray | None:
        """What a user's function answers; None where it raises or answers no finite command (A,)."""
        try:
            answer = _vector(function(*arguments))
        except Exception:  # of any kind: it must not end the control of the robot
            logger.exception("%s raised", function)
            return None
        return None if self._fault(answer) else answer

    def _fault(self, command: np.ndarray) -> str:
        """Why this is no command at all; empty if it is one."""
        if command.shape != (self.size,):
            return "shape"
        return "" if (np.abs(command) <= LARGEST).all() else "not finite"

    def _refusal(self, asked: np.ndarray, observation_age_s: float, chunk_age_s: float) -> str:
        """Why the command is refused; empty if it is not."""
        if fault := self._fault(asked):
            return fault
        ages = {"observation": observation_age_s, "chunk": chunk_age_s}
        limits = {"observation": self.config.max_observation_age_s, "chunk": self.config.max_chunk_age_s}
        old = [what for what, limit in limits.items() if limit is not None and not ages[what] <= limit]  # NaN is old
        return f"stale {old[0]}" if old else ""

    def _join(self, wanted: np.ndarray, chunk_start: bool) -> np.ndarray:
        """The command, held back where a chunk begins too far from the last command.

        What the jump has beyond `chunk_jump` is taken off the whole new chunk, less by `chunk_jump` at every step. So
        the chunk's own motion stays, and the jump is spread over the steps that it needs.
        """
        starts, last = chunk_start or self._joins, self.last
        excess = wanted - last if starts and last is not None else self._excess
        self._excess = np.sign(excess) * np.maximum(np.abs(excess) - self._jump, 0)
        self._joins = False
        return np.where(self._excess == 0, wanted, wanted - self._excess)

    def _move(self, wanted: np.ndarray) -> list[set[str]]:
        """Brings every axis as near to the wanted value as it may; why not to it, for each."""
        moved = [axis.moved(now, x) for axis, now, x in zip(self._axes, self._motions, wanted.tolist(), strict=True)]
        self._motions = [motion for motion, _ in moved]
        return [reasons for _, reasons in moved]

    @staticmethod
    def _held(axis: Axis, now: Motion, rest: float) -> Motion:
        """The next step to standing still: to repeating the last command, or to the one at which the robot rests."""
        return axis.braked(now) if math.isinf(rest) or math.isnan(now.p) else axis.moved(now, rest)[0]

    def _cut(self, observation: Observation) -> np.ndarray | None:
        """Which dimensions (A,) of the command the workspace changes at the end; None where it refuses the command.

        An axis that it changes goes on from there as if at rest: braking as from a leap would lead away from it.
        """
        command = self.last
        if self._workspace is None or command is None:
            return np.zeros(self.size, bool)
        inside = self._answer(self._workspace, observation, command.copy())
        if inside is None:
            return None
        inside = np.clip(inside, self._low, self._high)
        cut = inside != command
        moved = zip(self._motions, inside.tolist(), cut, strict=True)
        self._motions = [Motion(p, wanted=p) if changed else now for now, p, changed in moved]
        return cut

    def _inside(self, name: str, values: Vector | None) -> np.ndarray:
        vector = _spread(name, values, self.size, 0.0)
        if not ((self._low <= vector) & (vector <= self._high)).all():
            raise ValueError(f"{name} {vector} lies outside the bounds {self._low} to {self._high}")
        return vector

    def _clamps(self, flags: Mapping[str, Any], asked: Any) -> dict[str, tuple[int, ...]]:
        """Counts the reasons for which dimensions were changed, each (A,) of truth values; those that there are."""
        clamps = {reason: tuple(np.flatnonzero(flag).tolist()) for reason, flag in flags.items() if np.any(flag)}
        for reason, dimensions in clamps.items():
            self._note(f"clamp: {reason}", f"in dimensions {dimensions} of {asked}")
        return clamps

    def _note(self, what: str, detail: str) -> None:
        """Counts, and logs: the first of its kind as a warning, the others for who wants to see them."""
        self.counts[what] += 1
        logger.log(logging.WARNING if self.counts[what] == 1 else logging.DEBUG, "%s %s", what, detail)


def _spread(name: str, values: Vector | None, size: int, missing: float) -> np.ndarray:
    """The values as (A,) float64, one for all or one each; `missing` where there are none."""
    array = np.array([missing] if values is None else values, np.float64).reshape(-1)
    if array.size not in (1, size) or np.isnan(array).any():
        raise ValueError(f"{name} is {values}: expected one number for all dimensions, or one for each of {size}")
    return np.broadcast_to(array, (size,)).copy()


def _vector(values: Any) -> np.ndarray:
    """The values as float64, of whatever shape; empty where they are no numbers."""
    try:
        return np.array(values, np.float64)
    except (TypeError, ValueError):
        return np.empty(0)
