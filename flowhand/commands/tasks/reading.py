"""Demonstrations as the windows that a training draws: in memory, or read from the disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch

from conf.verbs.train import TrainRoot
from flowhand.contracts.data.episode import Episode
from flowhand.contracts.data.rows import RowSet
from flowhand.contracts.features import Feature, Spec
from flowhand.demos.decoded.rows import read_features, row_bytes, training_rows
from flowhand.demos.mixture import Mixture
from flowhand.demos.native import Store
from flowhand.demos.reader import Reader
from flowhand.demos.states import StateEpisodes
from policies.encoders import image_sizes
from policies.training.stream import Stream, WindowSource
from policies.training.windows import Windows

from .gather import rows_of


def windows_of(config: TrainRoot, spec: Spec, episodes: Iterable[Episode], device: torch.device) -> WindowSource:
    """The demonstrations as windows: all on the device where they fit into `data.memory_gb`, else read from the disk.

    Recorded frames are decoded once, to the size that the policy reads.
    """
    shape, room = (config.chunk.history, config.chunk.prediction_horizon), int(config.data.memory_gb * 1e9)
    sizes = image_sizes(config.vision, spec)
    if isinstance(episodes, Mixture):
        features = read_features(spec.recorded, sizes)
        fits = sum(episodes.lengths) * row_bytes(features) <= room
        if fits and not sizes:
            return Windows(episodes, spec, *shape, device)
        joined = rows_of(episodes, spec.recorded, sizes, config.data)
        return _windows(joined, spec, features, fits, shape, device, config)
    data, numbers = (episodes.data, episodes.numbers) if isinstance(episodes, StateEpisodes) else (episodes, None)
    if not isinstance(data, Store | Reader):  # held in memory as they are
        return Windows(episodes, spec, *shape, device)
    numbers = range(len(data)) if numbers is None else numbers
    features = read_features(spec.recorded, sizes)
    lengths = data.lengths
    fits = sum(lengths[number] for number in numbers) * row_bytes(features) <= room
    if fits and not sizes:
        return Windows(episodes, spec, *shape, device)
    if not fits and data.plan(numbers[0]) is not None:
        limit = f"data.memory_gb={config.data.memory_gb}"
        raise ValueError(f"plans are not read from the disk batch by batch; raise {limit}")
    rows = training_rows(data, numbers, features, config.data)
    return _windows(rows, spec, features, fits, shape, device, config)


def _windows(
    rows: RowSet,
    spec: Spec,
    features: Mapping[str, Feature],
    fits: bool,
    shape: tuple[int, int],
    device: torch.device,
    config: TrainRoot,
) -> WindowSource:
    """Decoded rows as windows, in memory where they fit."""
    if not fits:
        return Stream(rows, *shape, device, int(config.data.memory_gb * 1e9), config.data.prefetch)
    observation = {name: features.get(name, feature) for name, feature in spec.observation.items()}
    return Windows(rows, replace(spec, observation=observation), *shape, device)
