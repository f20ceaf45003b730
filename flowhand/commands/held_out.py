"""Judges a policy on recorded episodes that its training did not see: held_out.json and held_out.html."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conf.verbs.eval import EvalRoot
from flowhand.contracts.data.episode import Episode
from flowhand.contracts.data.tasks import SOURCE, TASK, given
from flowhand.contracts.durable import claimed, write_whole
from flowhand.contracts.features import PREVIOUS, Feature
from flowhand.contracts.planner import LoadedPlanner
from flowhand.contracts.provenance import versions
from flowhand.demos.config import TrainingDataConfig
from flowhand.demos.formats import open_dataset
from flowhand.demos.mixture import MappedEpisodes, Mixture
from flowhand.demos.mixture import columns as columns_of
from flowhand.demos.native import Store
from flowhand.demos.reader import Reader
from flowhand.demos.states import StateEpisodes, held_out, numbers, ranges
from flowhand.evaluation import chunk_errors as errors
from flowhand.evaluation.statistics import bootstrap_mean
from flowhand.pages.held_out import Drawn, write_page
from policies.device import cpu_threads, hardware

from .runs import wandb_run

SAMPLES = 8  # chunks of every decision, of which the mean is judged too
POLICY, MEAN = "policy", f"policy, mean of {SAMPLES} samples"
REPEAT, NEAREST, RIDGE = "repeat the last action", "nearest neighbour", "ridge regression on two states"
RIDGE_PREVIOUS = "ridge regression on two states and the last action"
DRAWN_EPISODES, DRAWN_DIMENSIONS = 3, 6
FILES = "held_out.json", "held_out.html"


@dataclass
class Judged:
    """What was measured, as held_out.json has it, and what the page draws."""

    content: dict[str, Any]
    drawn: list[Drawn]


def split(
    data: Store | Reader, config: TrainingDataConfig, images: bool = False
) -> tuple[StateEpisodes, StateEpisodes | None]:
    """The episodes of a recorded set to train on, and those that are held out; says in a line what is not used.

    The held-out ones are drawn from the whole set; of the others the first `data.episodes` are trained on.

    Raises:
        ValueError: there are fewer, or no such features.
    """
    try:
        unseen = held_out(len(data), config.held_out, config.held_out_seed, config.episodes)
    except ValueError as error:
        raise ValueError(f"{data.path}: {error}") from error
    rest = sorted(set(range(len(data))) - set(unseen))
    count = config.episodes or len(rest)
    states = StateEpisodes(data, rest[:count], config.observation, config.previous_action, images)
    print(*states.lines, sep="\n", end="\n" if states.lines else "")
    more = f", {len(rest) - count} unused (data.episodes={count})" if count < len(rest) else ""
    print(f"{data.path}: {len(data)} episodes, {count} to train on, {len(unseen)} held out{more}")
    return states, states.part(unseen) if unseen else None


def described(trained: StateEpisodes, unseen: StateEpisodes | None) -> dict[str, Any]:
    """A recorded set as the provenance of a checkpoint names it."""
    data = trained.data
    return {
        "format": data.format if isinstance(data, Reader) else "flowhand store",
        "name": Path(trained.path).name,
        "revision": getattr(data, "revision", ""),
        "fingerprint": trained.hash(),
        "trained_on": ranges(trained.numbers),
        "held_out": ranges(unseen.numbers) if unseen else "",
    }


def sets(store: Store | StateEpisodes | Mixture, unseen: Any) -> list[dict[str, Any]]:
    """The recorded sets of a training, as the provenance of a checkpoint names them; those of a mixture by name."""
    if isinstance(store, StateEpisodes):
        return [described(store, unseen)]
    found = []
    for number, member in enumerate(store.members if isinstance(store, Mixture) else ()):
        if isinstance(member.data, StateEpisodes):
            found.append({**described(member.data, unseen[number]), "source": member.name, "weight": member.weight})
    return found


def judged_on(store: Any, unseen: Any, out: Path) -> list[tuple[StateEpisodes, StateEpisodes, str, Path]]:
    """Recorded sets with held-out episodes: what was trained on, what was held out, its source, and the folder."""
    if isinstance(store, StateEpisodes) and unseen is not None:
        return [(store, unseen, "", out)]
    if not isinstance(store, Mixture) or not unseen:
        return []
    found = []
    for member, columns, kept in zip(store.members, store.columns, unseen, strict=True):
        if isinstance(member.data, StateEpisodes) and kept is not None:
            trained, held = (MappedEpisodes(each, columns, store.spec) for each in (member.data, kept))
            found.append((trained, held, member.name, out / "sets" / member.name))
    return found


def of_checkpoint(policy: LoadedPlanner, where: str) -> tuple[StateEpisodes, StateEpisodes, str]:
    """The episodes that a policy was trained on, those that were held out, and the source, of the set that lies there.

    Raises:
        ValueError: the policy was not trained on a recorded set, nothing was held out, or it is another set.
    """
    recorded = [each for each in policy.provenance.recorded if each.get("held_out")]
    if not recorded:
        raise ValueError("the checkpoint names no recorded set with held-out episodes; evaluate it in a world")
    data, spec = open_dataset(where), policy.spec.recorded
    named = [each for each in recorded if each.get("name") == Path(where.partition("@")[0]).name]
    entry = named[0] if named else recorded[0]
    if not named and len(recorded) > 1:
        raise ValueError(f"{where} is none of the checkpoint's sets: {', '.join(each['name'] for each in recorded)}")
    groups = [numbers(entry.get(name), len(data)) for name in ("trained_on", "held_out")]
    previous = any(feature.kind == PREVIOUS for feature in spec.observation.values())
    source = str(entry.get("source", ""))
    if source:
        own = StateEpisodes(data, groups[0], previous_action=previous, images=True)
        trained: StateEpisodes = MappedEpisodes(own, columns_of(spec, own.spec, source), spec)
    else:
        trained = StateEpisodes(data, groups[0], list(spec.sensed), previous_action=previous)
    for name, feature in {**spec.observation, "action": spec.action}.items():
        found = {**trained.spec.observation, "action": trained.spec.action}[name]
        if (found.shape, found.names) != (feature.shape, feature.names):
            raise ValueError(f"{where} has another {name} than the set {entry.get('name')!r} of the checkpoint")
    if trained.hash() != entry.get("fingerprint"):
        print(f"{where}: not the files of the training as they were then: copied, or changed")
    return trained, trained.part(groups[1]), source


def judge(
    policy: LoadedPlanner,
    trained: StateEpisodes,
    unseen: StateEpisodes,
    command: Sequence[str],
    samples: int = SAMPLES,
    source: str = "",
) -> Judged:
    """The errors of the policy's chunks and of the baselines' on every held-out episode.

    Args:
        policy: was trained on `trained`.
        trained: what the baselines learn from.
        unseen: what all are judged on; those of one step are left out.
        command: that asked for it, for the page.
        samples: of a policy that generates; one that gives the same chunk for any noise has one.
        source: whose statistics a policy takes that has those of several; empty: of the only ones.
    """
    spec, chunk = policy.spec.recorded, policy.chunk
    found: dict[str, list[np.ndarray]] = {}
    moves, about, drawn = [], [], []
    with cpu_threads(1):
        methods = _baselines(trained.vectors(), policy)
        for number, episode in zip(unseen.numbers, unseen, strict=True):
            at = errors.decisions(episode, spec, chunk, errors.judged_steps(episode, chunk))
            if not len(at.steps):
                continue
            known = given_for(policy, episode, source)
            chunks = errors.sampled(policy, replace(at, observation={**at.observation, **known(at)}), number, samples)
            samples = 1 if samples > 1 and (chunks == chunks[:1]).all() else samples
            predicted = {POLICY: chunks[0]} | ({MEAN: errors.mean_of(chunks, spec.action)} if samples > 1 else {})
            predicted |= {name: method(at) for name, method in methods.items()}
            for name, each in predicted.items():
                found.setdefault(name, []).append(errors.error(each, at, spec.action))
            moves.append(errors.movement(at, spec.action))
            about.append({"episode": number, "steps": len(episode), "decisions": len(at.steps)})
            if len(drawn) < DRAWN_EPISODES:
                drawn.append(Drawn(number, episode.action, at.steps, chunks[0]))
    if not about:
        raise ValueError(f"{unseen.path}: no held-out episode has two steps or more, so there is nothing to judge on")
    content = {
        "what": errors.__doc__,
        "policy": policy.words,
        "data": described(trained, unseen),
        "command": shlex.join(command),
        "judged_at": f"every {chunk.execution_horizon} steps from step 1 on, over {chunk.prediction_horizon} steps",
        "baselines_see": f"at most {errors.MOST_WINDOWS} windows of the training episodes, evenly spread",
        "samples": samples,
        **summarized({name: np.array(each) for name, each in found.items()}, np.array(moves), spec.action),
        "episodes": about,
        "versions": versions(),
        "hardware": hardware(torch.device(policy.device_name)),
    }
    most = np.argsort(-np.mean(moves, axis=0))[:DRAWN_DIMENSIONS]
    for each in drawn:
        each.dimensions = sorted(most.tolist())
        each.control_dt_s = spec.control_dt_s
    return Judged(content, drawn)


def given_for(
    policy: LoadedPlanner, episode: Episode, source: str
) -> Callable[[errors.Decisions], dict[str, np.ndarray]]:
    """What the policy is given of an episode: for decisions, histories (n, O, D) of its task and its source."""
    features = policy.spec.observation
    task = episode.task if TASK in features else None
    known = given(features, task, source if SOURCE in features and source else None)
    rows = policy.chunk.history
    return lambda at: {
        name: np.broadcast_to(value, (len(at.steps), rows, *value.shape)).copy() for name, value in known.items()
    }


def _baselines(trained: StateEpisodes, policy: LoadedPlanner) -> dict[str, errors.Predict]:
    training = errors.Training(trained, sum(trained.lengths), policy.spec.recorded, policy.chunk)
    methods: dict[str, errors.Predict] = {REPEAT: errors.repeat_last}
    if training.vectors:
        methods[NEAREST] = errors.nearest_neighbour(training)
    if training.sensed:
        methods[RIDGE] = errors.ridge(training, training.sensed)
        if PREVIOUS in training.vectors:
            methods[RIDGE_PREVIOUS] = errors.ridge(training, training.sensed, PREVIOUS)
    return methods


def summarized(found: dict[str, np.ndarray], moves: np.ndarray, action: Feature) -> dict[str, Any]:
    """Means over episodes with their intervals: of each method, and of its difference to each other from the policy.

    Args:
        found: errors (E, A) of each method, per episode.
        moves: (E, A).
        action: names its dimensions.
    """
    methods = {}
    for name, each in found.items():
        row: dict[str, Any] = {"mean": each.mean(), "dimensions": each.mean(0).tolist()}
        row["mean_95"] = [float(end) for end in bootstrap_mean(each.mean(1))]
        if not name.startswith(POLICY):
            row["policy_minus_this"] = {
                mine: _difference(found[mine] - each) for mine in found if mine.startswith(POLICY)
            }
        row["episodes"] = each.tolist()
        methods[name] = row
    return {
        "dimensions": names_of(action),
        "unit": action.unit,
        "moves": moves.mean(0).tolist(),
        "methods": methods,
        "interval": "95 %, percentile bootstrap over episodes, 10000 draws, seed 0",
    }


def _difference(gap: np.ndarray) -> dict[str, Any]:
    """Of errors (E, A), with the interval that the pairing by episode gives."""
    low, high = bootstrap_mean(gap)
    ends = [float(end) for end in bootstrap_mean(gap.mean(1))]
    dimensions = [[*each] for each in np.stack([gap.mean(0), low, high], axis=1).tolist()]
    return {"mean": [float(gap.mean()), *ends], "dimensions": dimensions}


def names_of(action: Feature) -> list[str]:
    """A name of each dimension of an action."""
    return list(action.names or (f"action {i}" for i in range(action.size)))


def write(judged: Judged, out: Path) -> None:
    """Writes held_out.json and held_out.html into the folder."""
    write_page(judged.content, judged.drawn, out / FILES[1])
    write_whole(out / FILES[0], (json.dumps(judged.content, indent=1) + "\n").encode())


def conclude(
    policy: LoadedPlanner,
    trained: StateEpisodes,
    unseen: StateEpisodes,
    command: Sequence[str],
    out: Path,
    run: Any = None,
    source: str = "",
) -> str:
    """Judges as `judge` does, and writes the results into the folder and into the wandb run; the closing line."""
    judged = judge(policy, trained, unseen, command, source=source)
    write(judged, out)
    if run is not None:
        place = f"held_out/{source}/" if source else "held_out/"
        run.summary.update({f"{place}{name}": row["mean"] for name, row in judged.content["methods"].items()})
    return closing_line(judged, out)


def closing_line(judged: Judged, out: Path) -> str:
    """One line with all that matters."""
    methods, count = judged.content["methods"], len(judged.content["episodes"])
    told = ", ".join(f"{name} {row['mean']:.4g}" for name, row in methods.items())
    unit = f" {judged.content['unit']}" if judged.content["unit"] else ""
    return f"mean absolute error on {count} held-out episodes{unit}: {told}; page: {out / FILES[1]}"


def judged_again(config: EvalRoot, policy: LoadedPlanner, checkpoint: Path) -> str:
    """Judges a policy on the held-out episodes of the recorded set that it was trained on; the closing line."""
    if config.env is not None:
        raise ValueError("data.path judges on recorded episodes and env in a world; give one of them")
    trained, unseen, source = of_checkpoint(policy, config.data.path)
    changed = "".join(f"-{name}-{value}" for name, value in policy.changed_head.items())
    out = Path(config.out or checkpoint.parent / f"eval-held_out-{Path(config.data.path).name}{changed}")
    words = ["python", "eval.py", f"checkpoint={config.checkpoint}", f"data.path={config.data.path}"]
    words += [f"head.{name}={value}" for name, value in config.head.changes.items()]
    with claimed(out), wandb_run(config.wandb, out, asdict(config)) as log:
        return conclude(policy, trained, unseen, words, out, log, source)
