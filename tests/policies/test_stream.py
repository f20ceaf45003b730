"""A stream gives the batches of `Windows`, with and without its thread, and goes on where it stopped."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from flowhand.contracts.data.rows import RowSet
from flowhand.contracts.data.statistics import measure
from flowhand.contracts.features import ChunkConfig, Feature, Spec
from flowhand.demos.columns import make_episode
from policies import Batch, Policy, PolicyConfig, Windows
from policies.encoders.vision.conv import ConvConfig
from policies.normalizer import NormalizerConfig
from policies.representation.config import ActionConfig
from policies.training.config import TrainingConfig
from policies.training.stream import Stream, WindowSource
from policies.training.trainer import Trainer

LENGTHS, TASKS = (5, 1, 9, 3), ("b", "a", "b", "c")
FEATURES = {
    "state": Feature((3,), "float32", "m"),
    "image": Feature((4, 5, 3), "uint8", ""),
    "depth": Feature((8, 9), "uint16", "mm", kind="depth"),
    "action": Feature((2,), "float32", "N"),
}
SPEC = Spec({name: FEATURES[name] for name in ("state", "image")}, FEATURES["action"], 0.1)
SHAPE = (3, 4)  # history, prediction horizon


class FakeRows:
    """Rows in memory, which say who takes them."""

    def __init__(self, feature: Feature, values: np.ndarray):
        self.feature, self.values, self.threads, self.fails = feature, values, set(), False

    def take(self, steps: np.ndarray, out: np.ndarray) -> None:
        self.threads.add(threading.current_thread().name)
        if self.fails:
            raise ValueError("set/a.mp4: episode 3: frame 7 is corrupt")
        out[:] = self.values[steps]


class FakeSet:
    """Random episodes."""

    def __init__(self, names: tuple[str, ...] = ("state", "image", "action"), lengths: tuple[int, ...] = LENGTHS):
        random, steps = np.random.default_rng(0), sum(lengths)
        self.lengths, self.tasks = lengths, [TASKS[i % len(TASKS)] for i in range(len(lengths))]
        self.rows = {}
        for name in names:
            shape = (steps, *FEATURES[name].shape)
            dtype = FEATURES[name].dtype
            values = random.normal(size=shape).astype(np.float32)
            if FEATURES[name].kind in ("image", "depth"):
                values = random.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
            self.rows[name] = FakeRows(FEATURES[name], values)

    def __iter__(self) -> Iterator[Any]:
        ends = np.cumsum(self.lengths)
        for end, length, task in zip(ends, self.lengths, self.tasks, strict=True):
            arrays = {name: rows.values[end - length : end] for name, rows in self.rows.items()}
            yield make_episode(arrays, arrays.pop("action"), task, 0.1)

    def statistics(self) -> Any:
        observation = {name: FEATURES[name] for name in self.rows if name != "action"}
        found = measure(self, replace(SPEC, observation=observation))
        return {name: each for name, each in found.items() if name in ("state", "action")}


def equal(one: Batch, other: Batch) -> bool:
    assert one.observation.keys() == other.observation.keys()
    pairs = [(one.action, other.action), (one.mask, other.mask), (one.task, other.task)]
    pairs += [(one.observation[name], other.observation[name]) for name in one.observation]
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def drawn(source: WindowSource, generator: torch.Generator, count: int, size: int = 6) -> list[Batch]:
    return [source.draw(size, generator) for _ in range(count)]


@pytest.mark.parametrize("resident", [0, 18 * 2 * 4, 18 * (2 + 3) * 4, 10**6])
def test_windows_are_those_of_windows(resident):
    """Whether nothing, the actions, all vectors or everything is on the device."""
    rows = FakeSet()
    assert isinstance(rows, RowSet)
    windows, stream = Windows(rows, SPEC, *SHAPE), Stream(rows, *SHAPE, resident_bytes=resident)
    assert isinstance(windows, WindowSource)
    assert isinstance(stream, WindowSource)
    assert len(stream.resident) == (0, 18 * 8, 18 * 20, 10**6).index(resident)
    assert (len(stream), stream.tasks) == (len(windows), windows.tasks)
    index = torch.tensor([17, 0, 5, 6, 4, 16, 5])
    assert equal(stream.gather(index), windows.gather(index))
    every = torch.arange(len(windows))
    assert equal(stream.gather(every), windows.gather(every))
    assert list(stream.gather(every).observation) == ["state", "image"]


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_draws_are_the_same_with_and_without_the_thread(prefetch):
    rows = FakeSet()
    generator = torch.Generator().manual_seed(3)
    expected = drawn(Windows(rows, SPEC, *SHAPE), generator, 9)
    own = torch.Generator().manual_seed(3)
    stream = Stream(rows, *SHAPE, prefetch=prefetch)
    assert all(map(equal, drawn(stream, own, 9), expected))
    assert torch.equal(own.get_state(), generator.get_state())  # of the batches given out, not of those ahead
    assert rows.rows["image"].threads == {"windows_0" if prefetch else "MainThread"}


def test_another_draw_in_between_changes_nothing():
    """Another batch size, another generator, a state that was set: what was read ahead is not what is wanted."""
    rows = FakeSet()
    windows, stream = Windows(rows, SPEC, *SHAPE), Stream(rows, *SHAPE, prefetch=3)
    one, other = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    spare, spare_other = torch.Generator().manual_seed(2), torch.Generator().manual_seed(2)
    for size, a, b in [(4, one, other), (4, one, other), (5, one, other), (5, spare, spare_other), (5, one, other)]:
        assert equal(stream.draw(size, a), windows.draw(size, b))
    for generator in (one, other):
        generator.manual_seed(7)
    assert equal(stream.draw(5, one), windows.draw(5, other))


def test_what_cannot_be_read_is_raised_where_the_batch_is_drawn():
    rows = FakeSet()
    stream, generator = Stream(rows, *SHAPE), torch.Generator().manual_seed(0)
    stream.draw(4, generator)
    rows.rows["image"].fails = True
    with pytest.raises(ValueError, match="frame 7 is corrupt"):
        drawn(stream, generator, 8)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_part_of_a_batch_is_a_part_of_the_whole_one(prefetch):
    """As each of several processes draws it; the generator goes on as for the whole batch."""
    rows, part = FakeSet(), slice(2, 5)
    whole, own = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    expected = [Windows(rows, SPEC, *SHAPE).draw(6, whole) for _ in range(3)]
    stream = Stream(rows, *SHAPE, prefetch=prefetch)
    for batch in expected:
        mine = stream.draw(6, own, part)
        assert torch.equal(mine.action, batch.action[part])
        assert torch.equal(mine.observation["image"], batch.observation["image"][part])
    assert torch.equal(own.get_state(), whole.get_state())
    whole.manual_seed(3)
    assert torch.equal(Windows(rows, SPEC, *SHAPE).draw(6, whole, part).action, expected[0].action[part])


def test_a_thread_ends_with_its_stream():
    before = set(threading.enumerate())
    stream = Stream(FakeSet(), *SHAPE)
    stream.draw(4, torch.Generator())
    [thread] = set(threading.enumerate()) - before
    del stream
    thread.join(10)
    assert not thread.is_alive()


def test_no_episode_is_refused():
    with pytest.raises(ValueError, match="no episodes to train on"):
        Stream(FakeSet(lengths=()), *SHAPE)


VECTORS = Spec({"state": FEATURES["state"]}, FEATURES["action"], 0.1)
CONFIG = PolicyConfig(chunk=ChunkConfig(history=2, prediction_horizon=4))


def trainer(streamed: bool, steps: int = 8, prefetch: int = 2) -> Trainer:
    torch.manual_seed(0)
    rows = FakeSet(("state", "action"), (20, 30, 25))
    windows = Stream(rows, 2, 4, prefetch=prefetch) if streamed else Windows(rows, VECTORS, 2, 4)
    config = TrainingConfig(steps=steps, batch_size=8, warmup_steps=2)
    return Trainer(config, CONFIG, VECTORS, windows, torch.device("cpu"))


def weights(trained: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trained.policy.state_dict().items()}


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_training_that_was_stopped_goes_on_bit_for_bit(prefetch):
    whole = trainer(True)
    for _ in range(8):
        whole.advance()
    first = trainer(True)
    for _ in range(5):
        first.advance()
    second = trainer(True, prefetch=prefetch)
    second.restore(first.state())
    for _ in range(3):
        second.trial()  # changes nothing
        second.advance()
    for name, value in weights(whole).items():
        assert torch.equal(weights(second)[name], value), name


def test_a_training_is_resumed_from_the_disk_or_from_memory_as_it_began():
    for streamed in (True, False):
        with pytest.raises(ValueError, match=r"set data\.memory_gb as it was then"):
            trainer(not streamed).restore(trainer(streamed).state())
    broken = trainer(True).state()
    with pytest.raises(ValueError, match="the training state's order"):
        trainer(True).restore({**broken, "order": broken["order"][:-8]})


@pytest.mark.parametrize("mode", ["mean_std", "min_max", "quantile", "identity"])
def test_statistics_are_those_of_all_rows(mode):
    rows = FakeSet(("state", "action"), (400, 300))
    rows.rows["state"].values[:, 1] = 0.25  # a constant
    normalizer = NormalizerConfig(mode, mode)
    config = replace(CONFIG, normalizer=normalizer)
    one, other = Policy(config, VECTORS), Policy(config, VECTORS)
    Windows(rows, VECTORS, 2, 4).fit_normalizers(one)
    Stream(rows, 2, 4).fit_normalizers(other)
    for (name, a), (_, b) in zip(one.normalizers(), other.normalizers(), strict=True):
        torch.testing.assert_close(b.shift, a.shift, rtol=1e-6, atol=1e-7, msg=name)
        torch.testing.assert_close(b.scale, a.scale, rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("kind", ["relative", "step", "delta", "circle", "depth"])
def test_statistics_of_what_is_learned_otherwise_are_the_same(kind):
    """Differences, per step and not, sines and cosines, and pixels of depth."""
    names = ("state", "depth", "action") if kind == "depth" else ("state", "action")
    rows = FakeSet(names, (40, 1, 30))
    observation = {name: FEATURES[name] for name in names if name != "action"}
    observation["state"] = replace(FEATURES["state"], unit="N", names=("a", "b", "c"))
    options = {"step": {"representation": "relative", "statistics": "step"}, "circle": {"angles": ["b"]}, "depth": {}}
    action = ActionConfig(**options.get(kind, {"representation": kind}))
    spec = Spec(observation, replace(FEATURES["action"], names=("a", "b")), 0.1)
    config = replace(
        CONFIG, action=action, vision=ConvConfig(features=4, width=8) if kind == "depth" else CONFIG.vision
    )
    one, other = Policy(config, spec), Policy(config, spec)
    Windows(rows, spec, 2, 4).fit_normalizers(one)
    Stream(rows, 2, 4).fit_normalizers(other)
    for (name, a), (_, b) in zip(one.normalizers(), other.normalizers(), strict=True):
        torch.testing.assert_close(b.shift, a.shift, rtol=1e-6, atol=1e-6, msg=name)
        torch.testing.assert_close(b.scale, a.scale, rtol=1e-6, atol=1e-6, msg=name)
    assert len(one.normalizers()) == len(names)


def test_choices_are_looked_at_and_not_scaled():
    action = replace(FEATURES["action"], choices=(0, 3))
    spec, rows = replace(VECTORS, action=action), FakeSet(("state", "action"))
    rows.rows["action"].values[:, 1] = np.arange(18) % 3
    policy = Policy(CONFIG, spec)
    Stream(rows, 2, 4).fit_normalizers(policy)
    assert (policy.action_normalizer.shift[1], policy.action_normalizer.scale[1]) == (0, 1)
    rows.rows["action"].values[17, 1] = 3
    with pytest.raises(ValueError, match="action dimension 1 has 3 choices"):
        Stream(rows, 2, 4).fit_normalizers(policy)


def test_a_gpu_is_not_needed_but_used():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    rows, index = FakeSet(), torch.arange(18)
    batch = Stream(rows, *SHAPE, "cuda").gather(index)
    assert equal(Batch(*(_cpu(part) for part in vars(batch).values())), Windows(rows, SPEC, *SHAPE).gather(index))


def _cpu(part: Any) -> Any:
    return {name: value.cpu() for name, value in part.items()} if isinstance(part, dict) else part.cpu()
