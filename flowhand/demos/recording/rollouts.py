"""Makes demonstrations of what happens in a rollout, and appends them to a store."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from tqdm import tqdm

from flowhand.contracts.data.episode import Episode
from flowhand.contracts.observers import Enough, EpisodeBegins, EpisodeEnds, Observer, StepTaken

from ..config import NOISE, SEEDS_PER_COLLECTION, DataConfig
from ..native import Store

MIN_ATTEMPTS = 20  # before the success rate is judged


class EpisodeRecorder:
    """Makes demonstrations of the steps of episodes: what the expert would do is the label, whatever was executed.

    Args:
        task: the instruction of episodes that tell none of their own.
        control_dt_s: time between two actions, seconds, or None.
        relabel: the expert does not act but is asked; then every episode counts, also one that fails.
    """

    def __init__(self, task: str, control_dt_s: float | None, relabel: bool = False):
        self._task, self._control_dt_s, self._relabel = task, control_dt_s, relabel
        self._tasks: dict[int, str] = {}  # by seed
        self._steps: dict[int, list[StepTaken]] = {}

    def episode_begins(self, event: EpisodeBegins) -> None:
        """Takes the instruction."""
        self._tasks[event.seed] = event.text or self._task

    def step(self, event: StepTaken) -> None:
        """Takes a step of which the expert has something to say."""
        if not self._relabel or (event.advice is not None and len(event.advice)):
            self._steps.setdefault(event.seed, []).append(event)

    def episode(self, event: EpisodeEnds) -> Episode | None:
        """The episode that has ended; None if it is no demonstration."""
        steps, task = self._steps.pop(event.seed, []), self._tasks.pop(event.seed, self._task)
        if not steps or not (event.record.success or self._relabel):
            return None
        observations = [step.observation or {} for step in steps]
        episode = Episode(
            observation={name: np.stack([each[name] for each in observations]) for name in observations[0]},
            action=np.stack([self._label(step) for step in steps if step.chosen is not None]),
            reward=np.array([step.reward for step in steps], np.float32),
            success=np.array([step.success for step in steps], bool),
            task=task,
            seed=event.seed,
            control_dt_s=self._control_dt_s,
        )
        plans = [step.advice for step in steps if step.advice is not None and step.advice.ndim == 2]
        return replace(episode, plan=np.stack(plans)) if plans else episode

    def _label(self, step: StepTaken) -> np.ndarray:
        if not self._relabel:
            assert step.chosen is not None
            return step.chosen
        assert step.advice is not None  # others were not taken
        return step.advice if step.advice.ndim == 1 else step.advice[0]


class StoreWriter(Observer):
    """Appends the successful episodes of a rollout to a store, in the order of their seeds, until there are enough.

    Args:
        store: is written.
        config: how many, and how many attempts at most.
        seeds: of the rollout, in their order.
        bar: shows how far it is.
        relabel: the expert is asked while another acts, and every episode counts.

    Raises:
        ValueError: too few of the attempts succeed.
    """

    essential = True  # a collection must not go on whose episodes are lost

    def __init__(self, store: Store, config: DataConfig, seeds: range, bar: tqdm, relabel: bool = False):
        self._store, self._config, self._seeds, self._bar = store, config, seeds, bar
        self._recorder = EpisodeRecorder(store.meta.task, store.spec.control_dt_s, relabel)
        self._ended: dict[int, Episode | None] = {}  # those that wait for an earlier seed
        self._next = seeds[0] if seeds else 0

    def episode_begins(self, event: EpisodeBegins) -> None:
        """Keeps the instruction for the episode."""
        self._recorder.episode_begins(event)

    def step(self, event: StepTaken) -> None:
        """Keeps it for its episode."""
        self._recorder.step(event)

    def episode_ends(self, event: EpisodeEnds) -> None:
        """Appends what has been waited for; raises `Enough` where that is all."""
        self._ended[event.seed] = self._recorder.episode(event)
        while self._next in self._ended:
            self._take(self._ended.pop(self._next))
            self._next += 1

    def _take(self, episode: Episode | None) -> None:
        store, config = self._store, self._config
        tried = self._next - config.first_seed + 1
        if episode is not None:
            store.append(episode)
        elif tried >= MIN_ATTEMPTS and len(store) * config.max_attempts_factor < tried:
            raise ValueError(too_few(store, config, tried))
        self._bar.set_postfix_str(f"{len(store)} of {tried} attempts succeeded", refresh=episode is None)
        self._bar.update(len(store) - self._bar.n)
        if len(store) >= config.episodes:
            raise Enough


def too_few(store: Store, config: DataConfig, tried: int) -> str:
    """What to say when a collection does not come to its number of episodes."""
    noise = NOISE if config.noise is None else config.noise
    return (
        f"{store.meta.env}: {len(store)} of {tried} attempts succeeded, expected at least 1 in "
        f"{config.max_attempts_factor}, and {config.episodes} within {SEEDS_PER_COLLECTION} attempts: lower "
        f"data.noise (now {noise:g}), allow more steps, or raise data.max_attempts_factor"
    )
