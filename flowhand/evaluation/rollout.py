"""Run a policy, or the scripted expert, over seeds: one record per episode, the same however many run at once.

An environment with its current episode is a lane; when an episode ends its lane takes the next seed. Lanes live in this
process ("inline") or are shared out among worker processes ("process").
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Literal, Protocol

import numpy as np
from tqdm import tqdm

from flowhand.contracts.features import Spec
from flowhand.contracts.planner import require_drives
from flowhand.contracts.strict import whole
from flowhand.contracts.world import Observation, WorldError, check_action

from .lanes import Command, Finished, LaneGroup, LaneOptions, MakeEnv, Reply
from .records import EpisodeRecord
from .workers import WorkerError, WorkerGroup, available_cpus, wait_for_any

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
    agent: Agent | Literal["expert"],
    seeds: Sequence[int],
    *,
    n_envs: int = 1,
    workers: Literal["inline", "process"] = "inline",
    processes: int | None = None,
    stop_at_success: bool = True,
    progress: bool = False,
    on_record: Callable[[EpisodeRecord], None] | None = None,
    frame_seeds: Collection[int] = (),
    frame_every: int = 4,
    on_frames: Callable[[EpisodeRecord, list[np.ndarray]], None] | None = None,
    spec: Spec | None = None,
) -> list[EpisodeRecord]:
    """Run one episode per seed; the records come in the order of the seeds.

    Args:
        make_env: builds an environment, e.g. `functools.partial(envs.make, config)`; picklable for "process" workers.
        agent: chooses the actions; "expert" is the environment's own scripted expert.
        seeds: one per episode, all different.
        n_envs: episodes that run at the same time.
        workers: where they run, in this process or in others.
        processes: how many others; None takes one per available processor, at most n_envs.
        stop_at_success: end an episode at its first success, instead of when the environment ends it.
        progress: show a bar with the success rate so far.
        on_record: called with every record as soon as its episode ends, so in no fixed order.
        frame_seeds: episodes of which to keep images.
        frame_every: control steps from one image to the next; the first and the last are always kept.
        on_frames: called with the record and the images, uint8 (H, W, 3), as soon as such an episode ends.
        spec: what the agent sees and commands, which the environment must have; None: not checked.

    Raises:
        ValueError: an argument is wrong, the environment does not fit, or an action is missing or not finite.
        WorldError: a world returned what it may not; the message names the seed and the step.
        WorkerError: a worker process failed or died.
    """
    seeds, n_envs = [whole("a seed", seed) for seed in seeds], whole("n_envs", n_envs)
    frame_seeds, frame_every = {whole("a frame seed", seed) for seed in frame_seeds}, whole("frame_every", frame_every)
    processes = None if processes is None else whole("processes", processes)
    _check_arguments(seeds, n_envs, processes, workers, frame_seeds, frame_every, on_frames is not None)
    options = LaneOptions(stop_at_success, agent == "expert", frozenset(frame_seeds), frame_every)
    records: dict[int, EpisodeRecord] = {}
    groups: list[Group] = []
    try:
        _open(groups, make_env, range(min(n_envs, len(seeds))), options, workers, processes or available_cpus())
        _require_fit(groups[0], spec)
        with tqdm(total=len(seeds), unit="episode", desc=groups[0].task, disable=not progress) as bar:
            for finished in _episodes(groups, None if agent == "expert" else agent, seeds):
                record = records[finished.record.seed] = finished.record
                _show(bar, records)
                if on_record:
                    on_record(record)
                if on_frames and record.seed in options.frame_seeds:
                    on_frames(record, finished.frames)
    finally:
        for group in groups:
            group.close()
    return [records[seed] for seed in seeds]


def _check_arguments(
    seeds: list[int],
    n_envs: int,
    processes: int | None,
    workers: str,
    frame_seeds: Collection[int],
    frame_every: int,
    takes_frames: bool,
) -> None:
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(
            f"got {len(seeds)} seeds, {len(set(seeds))} of them different; expected one or more, all different"
        )
    for name, count in (("n_envs", n_envs), ("processes", processes or 1), ("frame_every", frame_every)):
        if count < 1:
            raise ValueError(f"{name} is {count}, expected 1 or more")
    if workers not in ("inline", "process"):
        raise ValueError(f"workers is {workers!r}, expected 'inline' or 'process'")
    if frame_seeds and not takes_frames:
        raise ValueError("frame_seeds is given but not on_frames, which receives the images")
    if unknown := sorted(set(frame_seeds) - set(seeds)):
        raise ValueError(f"frame_seeds holds {unknown}, which are not among the seeds")


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


def _episodes(groups: Sequence[Group], agent: Agent | None, seeds: Sequence[int]) -> Iterator[Finished]:
    """Keep every lane busy until the seeds are used up; yield each episode as it ends."""
    waiting = deque(seeds)
    place: dict[int, tuple[int, int]] = {}  # lane -> its seed and the number of actions it has been given

    def begin(lane: int) -> dict[int, Command]:
        if not waiting:
            return {}
        place[lane] = (waiting.popleft(), 0)
        if agent is not None:
            agent.reset(lane, place[lane][0])
        return {lane: place[lane][0]}

    commands: dict[int, Command] = {}
    for lane in sorted(lane for group in groups for lane in group.lanes):
        commands |= begin(lane)
    busy: list[Group] = []
    while commands or busy:
        busy += _send(groups, commands)
        commands = {}
        observations: dict[int, Observation] = {}
        failures: list[WorldError] = []
        for lane, reply in _receive(busy, wait_for_all=agent is not None).items():
            if isinstance(reply, WorldError):
                failures.append(reply)
            elif isinstance(reply, Finished):
                yield reply
                commands |= begin(lane)
            else:
                observations[lane] = reply
        if failures:  # only now, so that no episode is lost that ended at the same time
            raise failures[0]
        if observations:
            assert agent is not None  # the expert's lanes reply only when an episode has ended
            commands |= _act(agent, observations, place, groups[0])


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
    agent: Agent, observations: dict[int, Observation], place: dict[int, tuple[int, int]], group: Group
) -> dict[int, Command]:
    actions = agent.act(observations)
    commands: dict[int, Command] = {}
    assert group.features is not None
    for lane in observations:
        seed, step = place[lane]
        where = f"{group.task}, seed {seed}, step {step}"
        if lane not in actions:
            raise ValueError(f"{where}: the agent gave no action for lane {lane}, only for {sorted(actions)}")
        commands[lane] = check_action(actions[lane], group.features, where=where)
        place[lane] = (seed, step + 1)
    return commands


def _show(bar: tqdm, records: dict[int, EpisodeRecord]) -> None:
    successes = sum(record.success for record in records.values())
    bar.set_postfix_str(f"success {successes}/{len(records)} = {successes / len(records):.2f}", refresh=False)
    bar.update()


__all__ = ["Agent", "WorkerError", "rollout"]
