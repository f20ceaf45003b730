"""Lanes: an environment with the episode it is in. They run in this process or in a worker; the code is the same."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from flowhand.contracts import world
from flowhand.contracts.features import Spec
from flowhand.contracts.world import Observation, World, WorldError

from .records import EpisodeRecord

MakeEnv = Callable[[], World]
Command = int | np.ndarray  # the seed of an episode to begin, or the action to take in the present one


@dataclass(frozen=True)
class LaneOptions:
    """What is the same for all lanes."""

    stop_at_success: bool = True  # an episode ends at its first success
    expert: bool = False  # a command to begin runs the whole episode with the scripted expert
    frame_seeds: frozenset[int] = frozenset()  # episodes of which images are kept
    frame_every: int = 1  # control steps from one image to the next


@dataclass(frozen=True)
class Finished:
    """The end of an episode."""

    record: EpisodeRecord
    frames: list[np.ndarray] = field(default_factory=list)  # uint8 (H, W, 3); empty unless asked for


Reply = Observation | Finished | WorldError  # the last where the world returned what it may not


class Lane:
    """One environment and its episode.

    Raises:
        ValueError: the expert is asked for and the environment has none.
    """

    def __init__(self, env: World, options: LaneOptions):
        if options.expert and env.expert is None:
            raise ValueError(f"{env.task} has no scripted expert")
        self.env = env
        self.options = options

    def run(self, command: Command) -> Reply:
        """Begin an episode or take a step in it; return the next observation, or how the episode ended."""
        try:
            reply = self._step(command) if isinstance(command, np.ndarray) else self._begin(command)
            while self.options.expert and not isinstance(reply, Finished | WorldError):
                assert self.env.expert is not None
                reply = self._step(self.env.expert(self._info["expert_observation"]))
        except WorldError as error:  # an answer like others, so that what other lanes have finished is not lost
            return WorldError(f"{self.env.task}, seed {self._seed}, step {self._steps}: {error}")
        except Exception as error:
            error.add_note(f"This happened in {self.env.task}, seed {self._seed}, step {self._steps}.")
            raise
        return reply

    def _begin(self, seed: int) -> Reply:
        self._seed, self._steps = seed, 0
        self._started = time.perf_counter()
        self._return = 0.0
        self._first_success: int | None = None
        self._score: float | None = None
        self._frames: list[np.ndarray] = []
        observation, self._info, self._solved_before = world.begin(self.env, seed)
        self._keep_frame(last=False)
        return observation

    def _step(self, action: np.ndarray) -> Reply:
        step = world.step(self.env, action)
        self._info = step.info
        self._return += step.reward
        if not math.isfinite(self._return):
            raise WorldError(f"the sum of the rewards is {self._return}, expected a finite number")
        self._steps += 1
        if "score" in step.info:
            score = world.real(step.info["score"], "info['score']")
            self._score = score if self._score is None else max(self._score, score)
        if step.success and self._first_success is None:
            self._first_success = self._steps
        self._failure = str(self._info.get("failure", "terminated" if step.terminated else "time limit"))
        done = step.terminated or step.truncated or (step.success and self.options.stop_at_success)
        self._keep_frame(last=done)
        return Finished(self._record(step.success), self._frames) if done else step.observation

    def _record(self, final_success: bool) -> EpisodeRecord:
        return EpisodeRecord(
            task=self.env.task,
            seed=self._seed,
            failure="" if self._first_success is not None else self._failure,
            mode=str(self._info.get("mode", "")),
            success=self._first_success is not None,
            final_success=final_success,
            first_success_step=self._first_success,
            steps=self._steps,
            return_=self._return,
            wall_s=time.perf_counter() - self._started,
            perturbation=self.env.perturbation,
            solved_before=self._solved_before,
            score=self._score,
        )

    def _keep_frame(self, *, last: bool) -> None:
        if self._seed in self.options.frame_seeds and (last or self._steps % self.options.frame_every == 0):
            self._frames.append(np.asarray(self.env.render()))


class LaneGroup:
    """The lanes of one process."""

    def __init__(self, make_env: MakeEnv, lanes: Collection[int], options: LaneOptions):
        self.lanes = tuple(lanes)
        self._lanes = {lane: Lane(make_env(), options) for lane in lanes}
        self._replies: dict[int, Reply] = {}
        env = self._lanes[self.lanes[0]].env
        self.task: str = env.task
        self.features: Spec = env.features

    def send(self, commands: Mapping[int, Command]) -> None:
        """Run the commands of these lanes; `receive` returns what came of them."""
        self._replies = {lane: self._lanes[lane].run(command) for lane, command in commands.items()}

    def receive(self) -> dict[int, Reply]:
        """Return one reply for every command sent."""
        return self._replies

    def close(self) -> None:
        """Close the environments."""
        for lane in self._lanes.values():
            lane.env.close()
