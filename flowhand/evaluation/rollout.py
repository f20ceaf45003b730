"""Run a policy, or the scripted expert, over seeds: one record per episode, the same however many run at once.

An environment with its current episode is a lane; when an episode ends its lane takes the next seed. Lanes live in this
process ("inline") or are shared out among worker processes ("process").
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from flowhand.contracts.features import Spec
from flowhand.contracts.observers import (
    Enough,
    EpisodeBegins,
    EpisodeEnds,
    Observer,
    Publisher,
    StepTaken,
    Stopped,
)
from flowhand.contracts.planner import require_drives
from flowhand.contracts.provenance import usable_cores
from flowhand.contracts.strict import whole
from flowhand.contracts.world import Observation, WorldError, check_action

from .lanes import Begin, Command, Finished, LaneGroup, LaneOptions, MakeEnv, NoisyExpert, Reply, Seen, copied
from .records import EpisodeRecord
from .workers import WorkerError, WorkerGroup, wait_for_any

Group = LaneGroup | WorkerGroup


class Agent(Protocol):
    """What chooses the actions."""

    def reset(self, lane: int, seed: int) -> None:
        """Forget the lane's last episode; the one of this seed begins."""
        ...

    def act(self, observations: dict[int, Observation]) -> dict[int, np.ndarray]:
        """Return an action (A,) for every lane given; each lane comes exactly once per control step of its episode."""
        ...


def rollout(
    make_env: MakeEnv,
    agent: Agent | Literal["expert"] | NoisyExpert,
    seeds: Sequence[int],
    *,
    n_envs: int = 1,
    workers: Literal["inline", "process"] = "inline",
    processes: int | None = None,
    stop_at_success: bool = True,
    after_success: int = 0,
    progress: bool = False,
    observers: Sequence[Observer] = (),
    spec: Spec | None = None,
    ask_expert: bool = False,
) -> list[EpisodeRecord]:
    """Run one episode per seed; the records come in the order of the seeds.

    Args:
        make_env: builds an environment, e.g. `functools.partial(envs.make, config)`; picklable for "process" workers.
        agent: chooses the actions; "expert" is the environment's own scripted expert, a `NoisyExpert` the same with
            noise on what is executed.
        seeds: one per episode, all different.
        n_envs: episodes that run at the same time.
        workers: where they run, in this process or in others.
        processes: how many others; None takes one per available processor, at most n_envs.
        stop_at_success: end an episode at its first success, instead of when the environment ends it.
        after_success: control steps to go on after the first success, where `stop_at_success` ends the episode.
        progress: show a bar with the success rate so far.
        observers: are given what happens as it happens, the end of an episode with its record, of different lanes in no
            fixed order. The events of an expert's episode come when it has ended. One that raises `Enough` ends the
            rollout; then only the episodes that have ended have records.
        spec: what the agent sees and commands, which the environment must have; None: not checked.
        ask_expert: ask the environment's expert at every state what it would do there; the steps carry its `advice`.

    Raises:
        ValueError: an argument is wrong, the environment does not fit, or an action is missing or not finite.
        WorldError: a world returned what it may not; the message names the seed and the step.
        WorkerError: a worker process failed or died.
    """
    seeds, n_envs = [whole("a seed", seed) for seed in seeds], whole("n_envs", n_envs)
    processes = None if processes is None else whole("processes", processes)
    _check_arguments(seeds, n_envs, processes, workers)
    publisher = Publisher(observers)
    expert = agent if isinstance(agent, NoisyExpert) else agent == "expert"
    watched = publisher.wants("episode_begins", "step")
    options = LaneOptions(after_success if stop_at_success else None, expert, watched, ask_expert)
    lanes = range(min(n_envs, len(seeds)))
    records: dict[int, EpisodeRecord] = {}
    groups: list[Group] = []
    acting = None if isinstance(agent, str | NoisyExpert) else agent
    with _stopping(publisher, groups):
        _open(groups, make_env, lanes, options, workers, processes or usable_cores())
        _require_fit(groups[0], spec)
        with tqdm(total=len(seeds), unit="episode", desc=groups[0].task, disable=not progress) as bar:
            for lane, finished in _episodes(groups, acting, seeds, publisher):
                record = records[finished.record.seed] = finished.record
                _show(bar, records)
                ended = record.failure or "success"
                publisher.episode_ends(EpisodeEnds(lane, record.seed, record.steps, ended, record))
    return [records[seed] for seed in seeds if seed in records]


@contextmanager
def _stopping(publisher: Publisher, groups: list[Group]) -> Iterator[None]:
    """Closes the groups and tells the observers that no event follows, and why; `Enough` is an end like any other."""
    reason = ""
    try:
        yield
    except Enough:
        pass
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        raise
    finally:
        for group in groups:
            group.close()
        publisher.stop(Stopped(reason))


def _check_arguments(seeds: list[int], n_envs: int, processes: int | None, workers: str) -> None:
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(
            f"got {len(seeds)} seeds, {len(set(seeds))} of them different; expected one or more, all different"
        )
    for name, count in (("n_envs", n_envs), ("processes", processes or 1)):
        if count < 1:
            raise ValueError(f"{name} is {count}, expected 1 or more")
    if workers not in ("inline", "process"):
        raise ValueError(f"workers is {workers!r}, expected 'inline' or 'process'")


def _open(
    groups: list[Group], make_env: MakeEnv, lanes: range, options: LaneOptions, workers: str, processes: int
) -> None:
    """Append the groups one by one, so that those already open are closed if the next one fails."""
    if workers == "inline":
        groups.append(LaneGroup(make_env, lanes, options))
        return
    n_groups = min(processes, len(lanes))
    started = []
    for first in range(n_groups):
        started.append(WorkerGroup(make_env, lanes[first::n_groups], options))
        groups.append(started[-1])
    for group in started:  # they build their environments side by side
        group.wait_until_ready()


class Place(NamedTuple):
    """Where a lane is in its episode."""

    seed: int
    step: int  # the number of actions it has been given
    observation: Observation | None = None  # acted on last; kept where somebody watches
    action: np.ndarray | None = None  # the last one
    advice: np.ndarray | None = None  # what the expert would have done instead, where it is asked


def _episodes(
    groups: Sequence[Group], agent: Agent | None, seeds: Sequence[int], publisher: Publisher
) -> Iterator[tuple[int, Finished]]:
    """Keep every lane busy until the seeds are used up; yield each episode, with its lane, as it ends."""
    waiting = deque(seeds)
    place: dict[int, Place] = {}

    def begin(lane: int) -> dict[int, Command]:
        if not waiting:
            return {}
        seed = waiting.popleft()
        place[lane] = Place(seed, 0)
        if agent is not None:
            agent.reset(lane, seed)
        return {lane: Begin(seed, publisher.pictures(lane, seed))}

    commands: dict[int, Command] = {}
    for lane in sorted(lane for group in groups for lane in group.lanes):
        commands |= begin(lane)
    busy: list[Group] = []
    while commands or busy:
        busy += _send(groups, commands)
        commands = {}
        waiting_for: dict[int, Seen] = {}
        failures: list[WorldError] = []
        for lane, reply in _receive(busy, wait_for_all=agent is not None).items():
            if isinstance(reply, WorldError):
                failures.append(reply)
                continue
            _publish(publisher, groups[0].task, lane, place[lane], reply)
            if isinstance(reply, Finished):
                yield lane, reply
                commands |= begin(lane)
            else:
                waiting_for[lane] = reply
        if failures:  # only now, so that no episode is lost that ended at the same time
            raise failures[0]
        if waiting_for:
            assert agent is not None  # the expert's lanes reply only when an episode has ended
            commands |= _act(agent, waiting_for, place, groups[0], watched=publisher.wants("step"))


def _publish(publisher: Publisher, task: str, lane: int, place: Place, reply: Seen | Finished) -> None:
    """Tell the observers what this reply of a lane says: that its episode has begun, or what a step came to."""
    if not publisher.wants("episode_begins", "step"):
        return
    seen = reply.seen if isinstance(reply, Finished) else reply
    if isinstance(reply, Finished) and reply.events:
        for event in reply.events:
            if isinstance(event, EpisodeBegins):
                publisher.episode_begins(event)
            else:
                publisher.step(event)
    elif place.action is None:
        about = lane, place.seed, task, seen.observation, seen.picture, seen.text
        publisher.episode_begins(EpisodeBegins(*about))
    elif publisher.wants("step"):
        acted = place.observation, place.action, place.action
        came = seen.reward, seen.success, seen.picture, place.advice
        publisher.step(StepTaken(lane, place.seed, place.step - 1, *acted, *came))


def _send(groups: Sequence[Group], commands: dict[int, Command]) -> list[Group]:
    """Send each group the commands of its lanes; return the groups that got any."""
    sent = []
    for group in groups:
        share = {lane: commands[lane] for lane in group.lanes if lane in commands}
        if share:
            group.send(share)
            sent.append(group)
    return sent


def _receive(busy: list[Group], *, wait_for_all: bool) -> dict[int, Reply]:
    """Return the replies of all busy groups, or of those that are ready first; take these off the list.

    An agent decides for all lanes at once because that is one forward pass; the expert's episodes are independent.
    """
    processes = [group for group in busy if isinstance(group, WorkerGroup)]
    ready = list(busy) if wait_for_all or not processes else wait_for_any(processes)
    replies: dict[int, Reply] = {}
    for group in ready:
        busy.remove(group)
        replies |= group.receive()
    return replies


def _require_fit(group: Group, spec: Spec | None) -> None:
    """Raises `ValueError` unless the environments have what the agent sees and commands."""
    if spec is not None and group.features is not None:
        require_drives(spec, group.features, group.task)


def _act(
    agent: Agent, seen: dict[int, Seen], place: dict[int, Place], group: Group, *, watched: bool
) -> dict[int, Command]:
    observations = {lane: each.observation for lane, each in seen.items()}
    # Copies, because an environment may write into the same arrays at every step.
    acted_on = {lane: copied(each) if watched else None for lane, each in observations.items()}
    actions = agent.act(observations)
    commands: dict[int, Command] = {}
    assert group.features is not None
    for lane in observations:
        seed, step = place[lane][:2]
        where = f"{group.task}, seed {seed}, step {step}"
        if lane not in actions:
            raise ValueError(f"{where}: the agent gave no action for lane {lane}, only for {sorted(actions)}")
        action = commands[lane] = check_action(actions[lane], group.features, where=where)
        place[lane] = Place(seed, step + 1, acted_on[lane], action, seen[lane].advice)
    return commands


def _show(bar: tqdm, records: dict[int, EpisodeRecord]) -> None:
    successes = sum(record.success for record in records.values())
    bar.set_postfix_str(f"success {successes}/{len(records)} = {successes / len(records):.2f}", refresh=False)
    bar.update()


__all__ = ["Agent", "NoisyExpert", "WorkerError", "rollout"]
