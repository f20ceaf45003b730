"""Lanes: an environment with the episode it is in. They run in this process or in a worker; the code is the same."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from flowhand.contracts import world
from flowhand.contracts.features import Spec
from flowhand.contracts.observers import EpisodeBegins, StepTaken
from flowhand.contracts.world import Observation, World, WorldError

from .records import EpisodeRecord

MakeEnv = Callable[[], World]
LOST = "the expert knows no way on"  # a kind of failure
NOISE_STREAM = 1  # keeps the noise of an expert independent of what the environment draws from the same seed


class Begin(NamedTuple):
    """A command to begin an episode."""

    seed: int
    pictures: int = 0  # control steps from one picture to the next; 0: none


Command = Begin | np.ndarray  # or the action to take in the present episode


@dataclass(frozen=True)
class NoisyExpert:
    """The environment's scripted expert, pushed off its path by noise on what is executed.

    It acts between the bounds of the action, and its choice without the noise is known too.
    """

    noise: float = 0.0  # standard deviation, in the action's units; choices get none


@dataclass(frozen=True)
class LaneOptions:
    """What is the same for all lanes."""

    after_success: int | None = 0  # control steps after the first success at which an episode ends; None: it goes on
    expert: bool | NoisyExpert = False  # a command to begin runs the whole episode with the scripted expert
    watched: bool = False  # keep the events of an expert's episode
    asked: bool = False  # ask the expert at every state what it would do there, while somebody else acts


class Seen(NamedTuple):
    """What the world showed after a command."""

    observation: Observation
    reward: float = 0.0
    success: bool = False
    picture: np.ndarray | None = None  # (H, W, 3) uint8
    text: str = ""  # the episode's task as an instruction; after a command to begin
    advice: np.ndarray | None = None  # what the expert would do now, (A,) or a whole plan (T, A), where it is asked


@dataclass(frozen=True)
class Finished:
    """The end of an episode."""

    record: EpisodeRecord
    seen: Seen
    events: list[EpisodeBegins | StepTaken] = field(default_factory=list)  # of an expert's episode that is watched


Reply = Seen | Finished | WorldError  # the last where the world returned what it may not


class Lane:
    """One environment and its episode.

    Args:
        env: the environment.
        options: of all lanes.
        number: of this one.
    """

    def __init__(self, env: World, options: LaneOptions, number: int = 0):
        self.env = env
        self.options = options
        self.number = number

    def run(self, command: Command) -> Reply:
        """Begin an episode or take a step in it; return what there is to see, or how the episode ended.

        Raises:
            ValueError: the expert is to act and the environment has none.
        """
        try:
            if isinstance(command, np.ndarray):
                return self._step(command)
            seen = self._begin(command)
            return self._run_expert(seen) if self.options.expert else seen
        except WorldError as error:  # an answer like others, so that what other lanes have finished is not lost
            return WorldError(f"{self.env.task}, seed {self._seed}, step {self._steps}: {error}")
        except Exception as error:
            error.add_note(f"This happened in {self.env.task}, seed {self._seed}, step {self._steps}.")
            raise

    def _begin(self, command: Begin) -> Seen:
        self._seed, self._pictures = command
        self._steps, self._return = 0, 0.0
        self._started = time.perf_counter()
        self._first_success: int | None = None
        self._score: float | None = None
        observation, self._info, self._solved_before = world.begin(self.env, self._seed)
        picture = self._picture(last=False)
        return Seen(observation, 0.0, self._solved_before, picture, self.env.task_text, self._advice())

    def _advice(self) -> np.ndarray | None:
        """What the expert would do now, where it is asked, between the bounds of the action."""
        if not self.options.asked:
            return None
        low, high = self.env.features.action.bounds()
        return np.clip(self._ask(), low, high).astype(low.dtype)

    def _ask(self) -> np.ndarray:
        """The expert's answer: an action (A,), or all that is left to do (T, A), of which (0, A) knows nothing."""
        expert = self.env.expert  # made by the reset
        if expert is None:
            raise ValueError(f"{self.env.task} has no scripted expert")
        return np.asarray(expert(self._info["expert_observation"]))

    def _run_expert(self, seen: Seen) -> Finished:
        """The whole episode, acted by the expert, with its events where they are wanted."""
        act = _Noisy(self.env.features, self.options.expert, self._seed) if self._noisy else _exactly
        events: list[EpisodeBegins | StepTaken] = []
        if self.options.watched:
            about = self.number, self._seed, self.env.task, copied(seen.observation), seen.picture, seen.text
            events.append(EpisodeBegins(*about))
        while True:
            answer = self._ask()
            plan = answer if answer.ndim == 2 else None
            if not len(answer):
                self._failure = LOST
                return Finished(self._record(False), seen, events)
            chosen, sent = act(answer if plan is None else plan[0])
            # A copy, because an environment may write into the same arrays at every step.
            acted_on, step = copied(seen.observation) if self.options.watched else None, self._steps
            reply = self._step(sent)
            seen = reply.seen if isinstance(reply, Finished) else reply
            if self.options.watched:
                what = acted_on, chosen, sent, seen.reward, seen.success, seen.picture, plan
                events.append(StepTaken(self.number, self._seed, step, *what))
            if isinstance(reply, Finished):
                return Finished(reply.record, reply.seen, events)

    @property
    def _noisy(self) -> bool:
        return isinstance(self.options.expert, NoisyExpert)

    def _step(self, action: np.ndarray) -> Seen | Finished:
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
        done = step.terminated or step.truncated or self._over()
        advice = None if done else self._advice()
        seen = Seen(step.observation, step.reward, step.success, self._picture(last=done), advice=advice)
        return Finished(self._record(step.success), seen) if done else seen

    def _over(self) -> bool:
        """Whether the episode has gone on for long enough after its first success."""
        first, after = self._first_success, self.options.after_success
        return first is not None and after is not None and self._steps - first >= after

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

    def _picture(self, *, last: bool) -> np.ndarray | None:
        wanted = self._pictures and (last or self._steps % self._pictures == 0)
        return np.asarray(self.env.render()) if wanted else None


def copied(observation: Observation) -> Observation:
    """The same arrays, which nobody writes into."""
    return {name: np.array(value) for name, value in observation.items()}


def _exactly(action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return action, action


class _Noisy:
    """What a noisy expert asks for and what is executed, both between the bounds of the action."""

    def __init__(self, spec: Spec, expert: bool | NoisyExpert, seed: int):
        assert isinstance(expert, NoisyExpert)
        self._random = np.random.default_rng([NOISE_STREAM, seed])
        self._low, self._high = spec.action.bounds()
        self._noise = expert.noise * ~spec.action.discrete  # none on choices: there is nothing between two of them

    def __call__(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        low, high = self._low, self._high
        clean = np.clip(action, low, high).astype(low.dtype)
        drawn = clean + self._noise * self._random.standard_normal(clean.shape)
        return clean, np.clip(drawn, low, high).astype(low.dtype)


class LaneGroup:
    """The lanes of one process."""

    def __init__(self, make_env: MakeEnv, lanes: Collection[int], options: LaneOptions):
        self.lanes = tuple(lanes)
        self._lanes = {lane: Lane(make_env(), options, lane) for lane in lanes}
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
