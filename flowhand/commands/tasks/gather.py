"""The demonstrations of many tasks, or of several recorded sets, as one; and what a policy is given of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from conf.verbs.train import TrainRoot
from envs import EnvConfig
from flowhand.contracts.data.rows import RowSet
from flowhand.contracts.data.tasks import SOURCE, TASK, packed
from flowhand.contracts.features import Feature, Spec
from flowhand.demos.config import COLLECTED, TrainingDataConfig
from flowhand.demos.decoded.joined import JoinedRowSet
from flowhand.demos.decoded.rows import read_features, training_rows
from flowhand.demos.formats import open_dataset
from flowhand.demos.mixture import Member, Mixture
from flowhand.demos.native import Store
from flowhand.demos.reader import Reader
from flowhand.demos.states import StateEpisodes
from policies.encoders.words.config import SentenceConfig
from policies.encoders.words.sentence import SentenceModel

from .. import held_out
from ..collect import collect


def of_tasks(worlds: Sequence[EnvConfig], data: TrainingDataConfig) -> Mixture:
    """What the expert of every task shows, each task with the same share; a task's own store is used, and extended.

    Raises:
        ValueError: a path is given, where each task has a store of its own, or two tasks have the same text.
    """
    if data.path or data.mixture:
        raise ValueError("many tasks have a store each, in data.cache_dir; leave out data.path and data.mixture")
    if data.mirror:
        raise ValueError("data.mirror is for recorded demonstrations that a world observes; set data.mirror=false")
    data.episodes = data.episodes or COLLECTED
    stores = [collect(world, data) for world in worlds]
    return Mixture([Member(store.meta.task, store) for store in stores])


def of_sets(data: TrainingDataConfig, images: bool) -> tuple[Mixture, list[StateEpisodes | None]]:
    """The recorded sets of `data.mixture` as one, and of each the episodes that are held out."""
    members, unseen = [], []
    for each in data.mixture:
        own = replace(data, mixture=[], path=each.path, episodes=each.episodes)
        trained, kept = held_out.split(open_dataset(each.path), own, images)
        members.append(Member(each.known_as, trained, each.weight))
        unseen.append(kept)
    mixture = Mixture(members)
    print(*mixture.lines(), sep="\n")
    return mixture, unseen


def rows_of(mixture: Mixture, spec: Spec, sizes: dict[str, tuple[int, int]], data: TrainingDataConfig) -> RowSet:
    """The rows of a mixture as a policy reads them, images at these sizes."""
    features, parts = read_features(spec, sizes), []
    for member, columns in zip(mixture.members, mixture.columns, strict=True):
        source = member.data
        recorded = source.data if isinstance(source, StateEpisodes) else source
        numbers = source.numbers if isinstance(source, StateEpisodes) else range(len(source))
        own = {}
        for name, column in columns.items():
            theirs = source.spec.action if name == "action" else source.spec.observation[column.name]
            own[column.name] = replace(theirs, shape=features[name].shape) if theirs.camera or name in sizes else theirs
        assert isinstance(recorded, Store | Reader)
        parts.append(training_rows(recorded, numbers, own, data))
    return JoinedRowSet(mixture, parts, features)


def given_by(
    config: TrainRoot, spec: Spec, store: Store | StateEpisodes | Mixture, earlier: Spec | None = None
) -> Spec:
    """The specification with what the policy is to be given for an episode: its task, and its source.

    Args:
        config: `words` and `data.statistics` say what.
        spec: of the demonstrations.
        store: these.
        earlier: of a run that goes on, which has the vectors of the texts already.

    Raises:
        ValueError: an episode without text, or one set only where each is to have statistics.
    """
    added: dict[str, Feature] = {}
    if config.words.kind != "none":
        added[TASK] = _task(config, sorted(set(store.tasks)), earlier)
    if config.data.statistics == "each":
        if not isinstance(store, Mixture):
            raise ValueError("data.statistics=each is for many tasks or a data.mixture; here is one, so take all")
        names = tuple(store.names)
        added[SOURCE] = Feature((len(names),), "float32", "", kind=SOURCE, names=names)
    taken = sorted(added.keys() & spec.observation.keys())
    if taken:
        raise ValueError(f"the demonstrations have an observation {taken[0]!r}, which the policy is given; rename it")
    return replace(spec, observation={**spec.observation, **added})


def _task(config: TrainRoot, texts: list[str], earlier: Spec | None) -> Feature:
    if "" in texts:
        raise ValueError(f"words={config.words.kind} needs the task of every episode in words, and some have none")
    if earlier is not None and (known := earlier.observation.get(TASK)) is not None and known.texts == tuple(texts):
        return known
    if not isinstance(config.words, SentenceConfig):
        return Feature((len(texts),), "float32", "", kind=TASK, texts=tuple(texts))
    vectors = SentenceModel(config.words.model).vectors(texts)
    return Feature((vectors.shape[1],), "float32", "", kind=TASK, texts=tuple(texts), vectors=packed(vectors))
