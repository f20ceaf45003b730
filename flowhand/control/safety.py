"""Safety: between what a policy asks for and what a robot is told. It needs numpy alone.

A command passes unchanged, to the last bit, where the robot can follow it within all limits and can still be braked to
rest within them afterwards. So some command inside every limit always exists, and limits never contradict each other:
the bounds win, by braking in front of them as early as velocity, acceleration and jerk ask for. Any other finite
command is replaced by the one that brings the robot to the wanted value soonest without passing it. What must not be
followed at all (not finite, too old, outside the workspace) is refused, and the safe action is taken.

A workspace has the last word: what it makes of the command is sent even where that breaks a limit of change, since no
limit of a command's changes can know how far the robot will move.

A dimension that is a choice has no values between its indices. Limits of place and change leave it alone, and what is
no index is refused, whoever says it.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flowhand.contracts.features import Spec

from .background import Logger, in_words
from .limits.braking import Axis, Motion
from .limits.config import SafetyConfig
from .limits.vectors import _spread, vector

logger = Logger(__name__)

CLAMPS = ("workspace", "chunk", "bounds", "velocity", "acceleration", "jerk", "braking")
REFUSALS = (
    *("shape", "not finite", "choice", "stale observation", "stale chunk"),
    *("impossible observation age", "impossible chunk age", "workspace"),
)
LARGEST = float(np.finfo(np.float32).max)  # of a command: larger ones are infinite in float32
SMALLEST = 1e-30  # of a limit per control step: the arithmetic of much smaller ones would overflow
NEAR = 1e-6  # share of the bounds' size that a float32 may lie beyond them: some eight units in its last place
AGES_S = (-0.01, 1e8)  # of an observation: clocks agree to 10 ms, and none has run for three years

Observation = Mapping[str, np.ndarray]
Vector = Sequence[float] | np.ndarray
Workspace = Callable[[Observation, np.ndarray], np.ndarray | None]
SafeAction = Callable[[Observation | None, np.ndarray | None], np.ndarray]


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
        choices: how many choices each dimension has, 0 for a continuous one; None: all continuous. A limit that is one
            number for all dimensions is meant for the continuous ones.

    Attributes:
        workspace: the function. A runtime replaces it by one that is not waited for without end.
        safe_action: the same.

    Raises:
        ValueError: limits of a wrong length or for a choice, contradicting bounds, a safe vector outside the bounds.
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
        choices: Sequence[int] | None = None,
    ):
        if not 0 < control_dt_s < math.inf:
            raise ValueError(f"control_dt_s is {control_dt_s}, expected a positive number of seconds")
        self.size, self.config, self._dt = size, (config := config or SafetyConfig()), control_dt_s
        self._choices = np.array([0] * size if choices is None else choices)
        self._discrete = self._choices > 0
        self._choosing = bool(self._discrete.any())
        self._raised: dict[str, type[BaseException]] = {}  # by a user's function, last
        self._low = np.fmax(_spread("low", low, size, -math.inf), self._limit("low", -math.inf))
        self._high = np.fmin(_spread("high", high, size, math.inf), self._limit("high", math.inf))
        self._low[self._discrete], self._high[self._discrete] = 0, (self._choices - 1)[self._discrete]
        if not ((self._low <= self._high) & (self._low <= LARGEST) & (self._high >= -LARGEST)).all():
            raise ValueError(f"no command lies between low {self._low.tolist()} and high {self._high.tolist()}")
        limits = [self._per_step(*each) for each in (("velocity", 1), ("acceleration", 2), ("jerk", 3))]
        self._axes = [Axis(*row) for row in np.stack([self._low, self._high, *limits], 1).tolist()]
        self._jump = self._limit("chunk_jump", math.inf)
        rest = _spread("rest", [math.inf if x is None else x for x in config.rest or [None]], size, math.inf)
        rest[self._discrete & (len(config.rest or ()) == 1 < size)] = math.inf
        self._rest = np.where(np.isinf(rest), rest, self._inside("rest", np.where(np.isinf(rest), self._place(), rest)))
        self.workspace, self.safe_action = workspace, safe_action
        if moved := set(np.flatnonzero(self._discrete).tolist()) & set(getattr(workspace, "actions", ())):
            raise ValueError(f"workspace.actions has {sorted(moved)}, which are choices and displace nothing")
        fixed = config.safe_action != "hold" and safe_action is None
        self._fixed = self._inside("safe_vector", config.safe_vector) if fixed else None
        self.counts: Counter[str] = Counter()  # commands, by "clamp: reason" and "refusal: reason", over all episodes
        self.reset()

    @classmethod
    def for_spec(cls, spec: Spec, config: SafetyConfig | None = None, control_dt_s: float = 0.0, **more: Any) -> Safety:
        """Safety with the bounds of a checkpoint's specification (`policies.Spec`), and, unless given, its period."""
        action = spec.action
        bounds = {"low": action.low, "high": action.high, "choices": action.choices}
        return cls(action.size, control_dt_s or spec.seconds(), config, **bounds, **more)

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
        asked = vector(action)
        if fault := self._fault(asked):
            return self.refuse(fault, observation)
        ages = {"observation": observation_age_s, "chunk": chunk_age_s}
        limits = {"observation": self.config.max_observation_age_s, "chunk": self.config.max_chunk_age_s}
        for what, age_s in ages.items():
            if fault := _old(what, age_s, limits[what]):
                return self.refuse(fault, observation, "by the age of %g s, on the clock of time.monotonic()", age_s)
        inside = self._answer("workspace", observation or {}, asked.copy()) if self.workspace else asked
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

    def refuse(self, reason: str, observation: Observation | None = None, detail: str = "", *values: Any) -> Verdict:
        """The safe action, for a command that must not be followed or does not exist; the log gets the detail.

        The workspace cuts it as any command where there is an observation to judge it by.
        """
        self._note(f"refusal: {reason}", detail, *values)
        self._before = self._motions, self._excess
        self._joins, self._excess = True, np.zeros(self.size)
        safe = self._answer("safe_action", observation, self.last) if self.safe_action else self._fixed
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

    def _answer(self, name: str, *arguments: Any) -> np.ndarray | None:
        """What a user's function answers; None where it raises or answers no command (A,)."""
        try:
            answer = vector(getattr(self, name)(*arguments))
        except BaseException as error:  # even SystemExit: it must not end the control of the robot
            if isinstance(error, KeyboardInterrupt):
                raise
            again, self._raised[name] = self._raised.get(name) is type(error), type(error)
            logger.log(logging.DEBUG if again else logging.ERROR, "%s raised %s", name, in_words(error), error=error)
            return None
        return None if self._fault(answer) else answer

    def _fault(self, command: np.ndarray) -> str:
        """Why this is no command at all; empty if it is one."""
        if command.shape != (self.size,):
            return "shape"
        if not (np.abs(command) <= LARGEST).all():
            return "not finite"
        if not self._choosing:
            return ""
        fits = (command == np.floor(command)) & (command >= 0) & (command < self._choices)
        return "choice" if (self._discrete > fits).any() else ""

    def _join(self, wanted: np.ndarray, chunk_start: bool) -> np.ndarray:
        """The command, held back where a chunk begins too far from the last command.

        What the jump has beyond `chunk_jump` is taken off the whole new chunk, less by `chunk_jump` at every step. So
        the chunk's own motion stays, and the jump is spread over the steps that it needs.
        """
        starts, last = chunk_start or self._joins, self.last
        excess = wanted - last if starts and last is not None else self._excess
        self._excess = np.sign(excess) * np.maximum(np.abs(excess) - self._jump, 0)
        self._joins = False
        if not self._excess.any():
            return wanted
        return np.where(self._excess == 0, wanted, np.clip(wanted - self._excess, -LARGEST, LARGEST))

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
        if self.workspace is None or command is None:
            return np.zeros(self.size, bool)
        inside = self._answer("workspace", observation, command.copy())
        if inside is None:
            return None
        inside = np.clip(inside, self._low, self._high)
        cut = inside != command
        moved = zip(self._motions, inside.tolist(), cut, strict=True)
        self._motions = [Motion(p, wanted=p) if changed else now for now, p, changed in moved]
        return cut

    def _limit(self, name: str, missing: float) -> np.ndarray:
        """A limit of the configuration as (A,); `missing` for choices, which have none."""
        values = getattr(self.config, name)
        limit = _spread(name, values, self.size, missing)
        if values is not None and len(values) > 1:
            excludes = limit > 0 if name == "low" else limit < (self._choices - 1 if name == "high" else missing)
            if (where := np.flatnonzero(self._discrete & excludes).tolist()) != []:
                raise ValueError(f"{name} is {values}, but dimensions {where} are choices and have none; put {missing}")
        return np.where(self._discrete, missing, limit)

    def _per_step(self, name: str, power: int) -> np.ndarray:
        """A limit of change (A,) per control step; infinite where no command can exceed it."""
        with np.errstate(over="ignore"):
            limit = self._limit(name, math.inf) * self._dt**power
        if not (limit >= SMALLEST).all():
            raise ValueError(f"{name} {limit.tolist()} per control step must be {SMALLEST} or more")
        return np.where(limit > 8 * LARGEST, math.inf, limit)

    def _place(self) -> np.ndarray:
        """Some command within the bounds (A,)."""
        return np.clip(np.zeros(self.size), self._low, self._high)

    def _inside(self, name: str, values: Vector | None) -> np.ndarray:
        """The command (A,), which may lie as far beyond the bounds as rounding to float32 brings it.

        Raises:
            ValueError: it lies further out, or is no index where it must be one.
        """
        given = _spread(name, values, self.size, 0.0)
        command = np.clip(np.where(self._discrete, np.round(given), given), self._low, self._high)
        bounds = np.abs([self._low, self._high])
        near = NEAR * np.where(np.isfinite(bounds), bounds, 0).max(0)
        if not (np.abs(command - given) <= near).all() or not (np.abs(command) <= LARGEST).all():
            where = np.flatnonzero(~((np.abs(command - given) <= near) & (np.abs(command) <= LARGEST))).tolist()
            raise ValueError(
                f"{name} {given.tolist()} lies outside the bounds {self._low.tolist()} to {self._high.tolist()}, or "
                f"is no choice, in dimensions {where}"
            )
        return command

    def _clamps(self, flags: Mapping[str, Any], asked: Any) -> dict[str, tuple[int, ...]]:
        """Counts the reasons for which dimensions were changed, each (A,) of truth values; those that there are."""
        clamps = {reason: tuple(np.flatnonzero(flag).tolist()) for reason, flag in flags.items() if np.any(flag)}
        for reason, dimensions in clamps.items():
            self._note(f"clamp: {reason}", "in dimensions %s of %s", dimensions, asked)
        return clamps

    def _note(self, what: str, detail: str, *values: Any) -> None:
        """Counts, and logs: the first of its kind as a warning, the others for who wants to see them."""
        self.counts[what] += 1
        level = logging.WARNING if self.counts[what] == 1 else logging.DEBUG
        logger.log(level, f"%s {detail}", what, *values)


def _old(what: str, age_s: float, limit_s: float | None) -> str:
    """Why something of this age is not acted on; empty if it is. An age that cannot be is of a wrong clock."""
    if limit_s is None:
        return ""
    if not AGES_S[0] <= age_s <= AGES_S[1]:  # NaN too
        return f"impossible {what} age"
    return "" if age_s <= limit_s else f"stale {what}"
