"""Random sets, written, read, windowed and converted, against a reading by pandas and plain slices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flowhand.contracts.data.episode import Episode
from flowhand.contracts.features import Feature, Spec
from flowhand.demos.conversion.convert import How, convert
from flowhand.demos.conversion.plan import Source, planned
from flowhand.demos.formats import open_dataset
from flowhand.demos.lerobot.write import LeRobotWriter

DTYPES = ("float16", "float32", "float64", "uint8", "uint16", "int32", "int64", "bool")


def made(seed: int) -> tuple[Spec, list[Episode], np.random.Generator]:
    """A specification and episodes of any sizes, dtypes, cameras and rates."""
    random = np.random.default_rng(seed)
    observation = {}
    for number in range(random.integers(1, 4)):
        shape = tuple(int(n) for n in random.integers(1, 5, random.integers(1, 4)))
        observation[f"x{number}"] = Feature(shape, str(random.choice(DTYPES)), "")
    for number in range(random.integers(0, 3)):
        observation[f"camera{number}"] = Feature((*map(int, random.integers(8, 20, 2)), 3), "uint8", "")
    if random.random() < 0.3:
        observation["depth"] = Feature((9, 11), "uint16", "", kind="depth")
    action = Feature((int(random.integers(1, 6)),), str(random.choice(DTYPES[:3])), "")
    spec = Spec(observation, action, 1 / int(random.integers(1, 120)))
    episodes = []
    for number in range(random.integers(1, 7)):
        steps = int(random.integers(1, 25))
        values = {}
        for name, feature in {**observation, "action": action}.items():
            high = 2 if feature.dtype == "bool" else 250
            drawn = random.integers(0, high, (steps, *feature.shape))
            noise = random.normal(size=drawn.shape) if feature.dtype.startswith("f") else 0
            values[name] = (drawn + noise).astype(feature.dtype)
        reward = random.normal(size=steps).astype(np.float32)
        task = f"task {number % 3}"
        episodes.append(Episode(values, values.pop("action"), reward, reward > 0, task, 0, spec.control_dt_s))
    return spec, episodes, random


def by_pandas(path: Path, column: str) -> list[np.ndarray]:
    """A column of every episode, from all data files, without flowhand's readers."""
    files = sorted((path / "data").rglob("*.parquet"))
    table = pd.concat([pd.read_parquet(file) for file in files])
    parts = [group.sort_values("frame_index")[column] for _, group in table.groupby("episode_index")]
    return [np.array([flat(value) for value in part]) for part in parts]


def flat(value: object) -> list[object]:
    """The numbers of a cell, lists taken apart."""
    if isinstance(value, np.ndarray | list):
        return [number for part in value for number in flat(part)]
    return [value]


@pytest.mark.parametrize("seed", range(8))
def test_random_sets(tmp_path, seed):
    spec, episodes, random = made(seed)
    size = float(random.choice([1e-4, 0.01, 100]))
    with LeRobotWriter(tmp_path / "set", spec, images="png", rewards=True, data_mb=size) as writer:
        for episode in episodes:
            writer.append(episode)
    for name, feature in {**spec.observation, "action": spec.action}.items():
        if feature.kind in ("image", "depth"):
            continue
        for got, episode in zip(by_pandas(tmp_path / "set", writer.columns[name]), episodes, strict=True):
            expected = episode.action if name == "action" else episode.observation[name]
            np.testing.assert_array_equal(got.astype(feature.dtype), expected.reshape(len(expected), -1))
    paths = [tmp_path / "set"]
    for number, format in enumerate(random.permutation(["native", "lerobot"])):
        target = tmp_path / f"converted{number}"
        convert(planned([Source("last", open_dataset(paths[-1]))]), target, How(str(format)))
        paths.append(target)
    for path in paths:
        data = open_dataset(path)
        assert list(data.lengths) == [len(episode) for episode in episodes]
        for number, expected in enumerate(episodes):
            start = int(random.integers(len(expected)))
            stop = int(random.integers(start, len(expected))) + 1
            got = data.read(number, start, stop)
            for name, values in expected.observation.items():
                assert got.observation[name].dtype == values.dtype
                np.testing.assert_array_equal(got.observation[name], values[start:stop])
            for name in ("action", "reward", "success"):
                np.testing.assert_array_equal(getattr(got, name), getattr(expected, name)[start:stop])
            assert (got.task, got.control_dt_s) == (expected.task, expected.control_dt_s)
