"""A session of recording: one episode after the other, and what becomes of each."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

from conf.verbs.record import RecordRoot
from flowhand.contracts.world import World
from flowhand.control.runtime import Runtime
from flowhand.control.timing import on_signals
from flowhand.demos.recording.recorder import Recorder
from flowhand.robots import SimulatedConfig, ready
from flowhand.robots.acting.shadow import Shadow
from flowhand.robots.acting.stepped import SteppedRuntime
from flowhand.robots.teleoperators import Driver
from flowhand.robots.teleoperators.keys import Keys

from ..control import resting, safety_of
from .acting import Parts, actor_of, parts_of, shadow_of
from .keys import HELP, Listening, RecordingKeys
from .writing import EpisodeWriter

MOST_BROKEN = 3  # episodes in a row that are not whole: then something is wrong that no further one mends
MOST_FAILED = 4  # attempts for each episode that is kept, and some
POLL_S = 0.02  # between two looks for a key while nothing is controlled


@dataclass
class Recorded:
    """What came of a session."""

    kept: list[int] = field(default_factory=list)  # numbers of the episodes
    dropped: dict[str, int] = field(default_factory=dict)  # how many were not kept, by the reason
    steps: int = 0  # control steps of those that are kept
    interventions: int = 0  # of them, at which somebody had taken over
    filled: int = 0  # of them, that repeat the one before since nothing was observed in time
    ended: str = ""  # why the session ended early; empty: all episodes are there
    successes: int = 0  # of the episodes that are kept, those that a world calls a success
    shadow: Shadow | None = None
    lines: list[str] = field(default_factory=list)  # on what was unusual


def record(
    config: RecordRoot,
    *,
    world: World | None = None,
    robot: Any = None,
    driver: Driver | None = None,
    keys: Keys | None = None,
    say: Callable[[str], None] = print,
) -> Recorded:
    """Records as the configuration says.

    Args:
        config: what, where and how.
        world: in place of the one that the configuration describes.
        robot: in place of the one that the configuration describes; it is connected already.
        driver: in place of the one that the configuration describes; it is connected already.
        keys: what a person presses; None: the driver's.
        say: is told a line for every episode, and what is unusual.

    Raises:
        ValueError: the parts do not fit, the path holds another set, or no episode becomes whole.
        OSError: the disk takes no more; the episodes before are whole.
    """
    if not config.data.path:
        raise ValueError("record into which folder? Give data.path=PATH")
    with ExitStack() as stack:
        parts = parts_of(config, stack, world, robot)
        return _recorded(config, parts, stack, robot, driver, keys, say)


def _recorded(
    config: RecordRoot, parts: Parts, stack: ExitStack, robot: Any, driver: Driver | None, keys: Keys | None, say: Any
) -> Recorded:
    spec, dt = parts.spec, parts.spec.control_dt_s
    chosen, simulated = config.robot or SimulatedConfig(), {}
    if parts.world is not None:
        config.safety = resting(config.safety, parts.world)
        simulated = {"stop_at_success": config.stop_at_success}
    parts.robot = robot if robot is not None else stack.enter_context(
        ready(chosen, spec, dt or 1.0, parts.world, **simulated)
    )  # fmt: skip
    actor = actor_of(config, parts, stack, driver)
    task = config.task or (parts.world.task_text if parts.world is not None else "")
    version = parts.world.version if parts.world is not None else ""
    recorder = Recorder(config.data.path, spec, config.data, task, parts.name, parts.world is not None, version)
    with recorder:
        for line in recorder.lines:
            say(line)
        told = len(recorder.lines)
        pressed = RecordingKeys(keys or getattr(parts.driver, "keys", None), config.tasks)
        session = Session(config, parts, recorder, actor, pressed, say)
        with closing(session):
            session.run()
    session.result.lines = recorder.lines[told:]
    return session.result


class Session:
    """Records one episode after the other."""

    def __init__(self, config: RecordRoot, parts: Parts, recorder: Recorder, actor: Any, keys: RecordingKeys, say: Any):
        self._config, self._parts, self._recorder, self._keys, self._say = config, parts, recorder, keys, say
        spec, dt = parts.spec, parts.spec.control_dt_s
        self._actor = actor
        self._writer = EpisodeWriter(recorder, parts.robot, actor, config.data.gap_s, dt, parts.real_time)
        self.result = Recorded(shadow=shadow_of(config, parts, say))
        observers = [self._writer, *([self.result.shadow] if self.result.shadow is not None else [])]
        safety = safety_of(spec, config.safety, config.workspace, dt or 1.0)
        heard = Listening(actor, lambda: keys.look(self._runtime.end_episode, getattr(actor, "switch", None)))
        self._runtime: Any
        if parts.real_time:
            self._runtime = Runtime(
                parts.robot, heard, safety, spec.observation, spec.seconds(), config.runtime, observers=observers
            )
        else:
            self._runtime = SteppedRuntime(parts.robot, heard, safety, spec.observation, dt, observers)
        self._writer.ends = self._runtime.end_episode

    def close(self) -> None:
        """Ends the threads."""
        self._runtime.close()
        self._writer.close()

    def run(self) -> None:
        """Records until there are enough.

        Raises:
            ValueError: several episodes in a row are not whole, or too many fail.
            OSError: the disk takes no more.
        """
        if self._keys._keys is not None:
            self._say(HELP)
        seed, broken = self._first_seed(), 0
        with on_signals(self._runtime.stop):
            while len(self.result.kept) < self._config.episodes and not self.result.ended:
                if not self._ready(seed):
                    break
                reason = self._episode(seed)
                broken = broken + 1 if reason.startswith(("broken", "empty")) else 0
                if broken == MOST_BROKEN:
                    raise ValueError(f"{broken} episodes in a row were dropped; the last was {reason}")
                self._require_successes()
                seed += reason != "redo"

    def _first_seed(self) -> int:
        """That of a world's first episode: after those of the episodes that are there."""
        return max([self._config.seed, *(seed + 1 for seed in self._recorder.seeds)])

    def _require_successes(self) -> None:
        failed, kept = self.result.dropped.get("failed", 0), len(self.result.kept)
        if failed > MOST_FAILED * (kept + 5):
            raise ValueError(
                f"{failed} of {failed + kept} episodes failed; keep=all records them too, and they are not kept with "
                "keep=success"
            )

    def _ready(self, seed: int) -> bool:
        """Makes ready for an episode; whether it is to begin."""
        if reset := getattr(self._parts.robot, "reset", None):
            reset(seed)
            return True
        end_s = time.monotonic() + self._config.reset_s
        if not (self._config.reset_s or self._keys._keys):
            return True
        self._say("make the table ready" + ("" if self._config.reset_s else ", then press right"))
        while time.monotonic() < end_s or not self._config.reset_s:
            self._keys.begin()
            self._keys.look(lambda said: None, None)
            if self._keys.said == "stop" or self._runtime_stopped:
                self.result.ended = self._keys.said or self._runtime_stopped
                return False
            if self._keys.said == "end":
                break
            time.sleep(POLL_S)
        return True

    @property
    def _runtime_stopped(self) -> str:
        return self._runtime._stopped

    def _episode(self, seed: int) -> str:
        """Records one episode; why it was not kept, or an empty text."""
        self._keys.begin()
        self._writer.begin()
        if begin := getattr(self._actor, "begin", None):
            begin()
        self._recorder.begin(seed=seed if self._parts.world is not None else None)
        ended = self._runtime.run(self._config.seconds, seed)
        self._writer.wait()
        reason = self._judged(ended)
        steps, about = self._recorder.steps, self._about()
        if reason or not steps:
            reason = reason or f"empty: {self._writer.nothing or ended}"
            self._recorder.drop()
            self.result.dropped[reason.partition(":")[0]] = self.result.dropped.get(reason.partition(":")[0], 0) + 1
            self._say(f"dropped after {steps} steps{about}: {reason}")
            return reason
        number = self._recorder.end(self._keys.task)
        assert number is not None
        self._keep(number, steps)
        self._say(f"episode {number}: {steps} steps{about}, {self._keys.said or ended}")
        return ""

    def _judged(self, ended: str) -> str:
        """Why the episode is not kept; empty if it is."""
        if self._writer.broken:
            return f"broken: {self._writer.broken}"
        if self._keys.said in ("redo", "drop"):
            return self._keys.said
        if self._keys.said == "stop" or self._runtime_stopped:
            self.result.ended = self._keys.said or self._runtime_stopped
            return self.result.ended
        if ended in ("fault", "overrun", "alarm"):
            return f"broken: {ended}"
        is_judged = self._parts.world is not None and self._config.keep == "success" and self._keys.said != "end"
        return "failed" if is_judged and not self._writer.succeeded else ""

    def _keep(self, number: int, steps: int) -> None:
        result = self.result
        result.kept.append(number)
        result.steps += steps
        result.interventions += self._writer.interventions
        result.filled += self._writer.filled
        result.successes += self._writer.succeeded

    def _about(self) -> str:
        taken, filled = self._writer.interventions, self._writer.filled
        told = f", {taken} of them taken over" if taken else ""
        return told + (f", {filled} of them filled (nothing was observed in time)" if filled else "")
