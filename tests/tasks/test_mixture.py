"""Several data sets as one, against a brute-force reading; shares, statistics of each, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from conf.cli import compose
from flowhand.commands import train
from flowhand.commands.inspect import mixed
from flowhand.contracts.data.episode import Episode
from flowhand.contracts.data.statistics import measure
from flowhand.contracts.features import Feature, Spec
from flowhand.demos.meta import StoreMeta
from flowhand.demos.mixture import Member, Mixture, columns
from flowhand.demos.native import Store
from flowhand.demos.states import StateEpisodes
from policies.training.balance import Balance
from policies.training.stream import Stream
from policies.training.windows import Windows

JOINTS = ("shoulder", "elbow", "wrist")
ARM = Spec(
    {
        "state": Feature((3,), "float32", "rad", (-3.0,) * 3, (3.0,) * 3, names=JOINTS),
        "extra": Feature((1,), "float32", "", names=("x",)),
    },
    Feature((3,), "float32", "rad", (-1.0,) * 3, (1.0,) * 3, names=JOINTS),
    0.1,
)
TURNED = ("wrist", "shoulder", "elbow")
OTHER = Spec(
    {
        "joints": Feature((4,), "float64", "rad", (-9.0,) * 4, (9.0,) * 4, names=(*TURNED, "gripper")),
        "touch": Feature((2,), "float32", ""),
    },
    Feature((3,), "float32", "rad", (-2.0,) * 3, (2.0,) * 3, names=TURNED),
    0.1,
)


def episode(spec, seed, task, scale=1.0):
    random = np.random.default_rng(seed)
    steps = int(random.integers(5, 12))
    observation = {
        name: (scale * random.normal(size=(steps, *f.shape))).astype(f.dtype) for name, f in spec.observation.items()
    }
    action = (scale * random.normal(size=(steps, spec.action.size))).astype(np.float32)
    return Episode(observation, action, np.zeros(steps, np.float32), np.zeros(steps, bool), task, seed, 0.1)


def store(path, spec, seeds, task, scale=1.0):
    made = Store.create(path, StoreMeta(spec.to_dict(), task, "an arm", "", {}))
    for seed in seeds:
        made.append(episode(spec, seed, task, scale))
    return Store.open(made.path)


@pytest.fixture
def sets(tmp_path):
    first = store(tmp_path / "first", ARM, range(3), "lift")
    return first, store(tmp_path / "second", OTHER, range(10, 15), "push", 7.0)


@pytest.fixture
def mixture(sets):
    return Mixture([Member("first", sets[0]), Member("second", StateEpisodes(sets[1]), 3.0)])


def test_every_value_is_found_by_its_name(sets, mixture):
    assert list(mixture.spec.observation) == ["state"]
    expected = [(each.observation["state"], each.action, "lift") for each in sets[0]]
    for each in sets[1]:
        by_name = {name: each.observation["joints"][:, i] for i, name in enumerate((*TURNED, "gripper"))}
        acted = {name: each.action[:, i] for i, name in enumerate(TURNED)}
        state, action = (np.stack([found[name] for name in JOINTS], 1) for found in (by_name, acted))
        expected.append((state.astype(np.float32), action, "push"))
    assert len(mixture) == len(expected) == 8
    for number, (found, (state, action, task)) in enumerate(zip(mixture, expected, strict=True)):
        read = mixture.read(number, 1, 4)
        assert (found.observation["state"] == state).all()
        assert (found.action == action).all()
        assert (read.observation["state"] == state[1:4]).all()
        assert (found.task, mixture.tasks[number], mixture.lengths[number]) == (task, task, len(action))
        assert found.observation["state"].dtype == np.float32
    assert mixture.sources == [0] * 3 + [1] * 5
    assert mixture.spec.action.bounds()[0].tolist() == [-2, -2, -2]
    assert mixture.spec.observation["state"].bounds()[1].tolist() == [9, 9, 9]
    assert mixture.seeds == [0, 1, 2, 10, 11, 12, 13, 14]
    measured = mixture.statistics()
    assert measured["state"].mean == pytest.approx(np.concatenate([e[0] for e in expected]).mean(0), abs=1e-6)
    assert set(mixture.left_out) == {"extra", "touch"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"control_dt_s": 0.2}, "control period"),
        ({"action": replace(OTHER.action, unit="m")}, "has the unit 'm', the first set 'rad'"),
        ({"action": replace(OTHER.action, names=("wrist", "elbow", "base"))}, "lack 'shoulder'"),
        ({"action": replace(OTHER.action, names=None)}, "it does not name its dimensions"),
        ({"action": replace(OTHER.action, names=("wrist",) * 3)}, "'wrist' occurs twice"),
        ({"action": replace(OTHER.action, wraps=(0,))}, "has wraps"),
        ({"observation": {**OTHER.observation, "more": OTHER.observation["joints"]}}, "each of which could be 'state'"),
        ({"observation": {"touch": OTHER.observation["touch"]}}, "has no observation 'state'"),
    ],
)
def test_what_is_ambiguous_or_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        columns(replace(ARM, observation={"state": ARM.observation["state"]}), replace(OTHER, **change), "second")
    assert "second" in str(caught.value)


def test_sets_need_names_that_differ_positive_weights_and_something_in_common(sets):
    with pytest.raises(ValueError, match="names that differ"):
        Mixture([Member("a", sets[0]), Member("a", sets[1])])
    with pytest.raises(ValueError, match="positive number"):
        Mixture([Member("a", sets[0], 0.0)])


def test_angles_that_wrap_are_those_of_the_same_names():
    target = target_of(replace(ARM, action=replace(ARM.action, wraps=(2,))))
    turned = replace(OTHER, action=replace(OTHER.action, wraps=(0,)))  # the wrist in both
    assert columns(target, turned, "x")["action"].order == (1, 2, 0)


def target_of(spec):
    return replace(spec, observation={"state": spec.observation["state"]})


@pytest.mark.parametrize("weights", [(1.0, 3.0), (5.0, 1.0, 2.0)])
def test_each_set_is_drawn_by_its_weight_and_within_it_all_steps_alike(weights):
    sizes = (40, 7, 13)[: len(weights)]
    balance, count = Balance(sizes, weights), 200_000
    drawn = balance.draw(count, torch.Generator().manual_seed(0))
    ends = np.cumsum(sizes)
    times = np.bincount(drawn.numpy(), minlength=ends[-1]) / count
    for start, end, size, weight in zip(ends - sizes, ends, sizes, weights, strict=True):
        share = weight / sum(weights)
        assert abs(times[start:end].sum() - share) < 5 * (share / count) ** 0.5
        assert np.abs(times[start:end] - share / size).max() < 5 * (share / size / count) ** 0.5
    assert (drawn == balance.draw(count, torch.Generator().manual_seed(0))).all()


def test_windows_and_stream_draw_the_same_and_say_whose_they_are(mixture):
    windows = Windows(mixture, mixture.spec, 2, 4)

    from flowhand.commands.tasks.gather import rows_of
    from flowhand.demos.config import TrainingDataConfig

    data = TrainingDataConfig(cache_dir=str(mixture.members[0].data.path.parent / "cache"))
    rows = rows_of(mixture, mixture.spec, {}, data)
    assert [e.task for e in rows] == mixture.tasks
    a = windows.draw(64, torch.Generator().manual_seed(3))
    b = Stream(rows, 2, 4, prefetch=0).draw(64, torch.Generator().manual_seed(3))
    for x, y in ((a.action, b.action), (a.observation["state"], b.observation["state"]), (a.mask, b.mask)):
        assert (x == y).all()
    assert a.source is not None
    assert b.source is not None
    assert (a.source == b.source).all()
    assert (a.task == a.source).all()  # "lift" and "push", in the order of the alphabet and of the sets
    assert 0.6 < a.source.float().mean() < 0.9


TINY = ("net.width=16", "encoder.width=16", "net.blocks=1", "train.batch_size=32", "train.threads=1", "train.steps=3")


def trained(sets, *overrides):
    paths = ",".join(f"{{path:{each.path},weight:{i + 1}}}" for i, each in enumerate(sets))
    base = ("env=none", "eval.episodes=0", "data.held_out=0", f"data.mixture=[{paths}]", "wandb.mode=disabled")
    config = compose([*TINY, *base, *overrides])
    data, unseen = train.demonstrations(config)
    spec = train.observed(config, data)
    return train.trainer_of(config, spec, data, torch.device("cpu")), data, unseen


def test_each_set_has_the_statistics_that_it_has_alone_and_the_source_chooses_them(sets):
    trainer, data, _ = trained(sets, "data.statistics=each")
    assert isinstance(data, Mixture)
    policy = trainer.policy
    assert policy.spec.observation["source"].names == ("first", "second")
    for number in range(2):
        own = [e for e, source in zip(data, data.sources, strict=True) if source == number]
        measured = measure(own, data.spec)
        for name, normalizer in policy.normalizers():
            part = normalizer.of(number)
            assert part.shift.numpy() == pytest.approx(measured[name].mean, abs=1e-5)
            assert part.scale.numpy() == pytest.approx(measured[name].std, abs=1e-5)
    for _ in range(3):
        trainer.advance()
    sources = torch.eye(2)[:, None].expand(-1, 2, -1)
    rows = {"state": torch.randn(1, 2, 3).expand(2, -1, -1), "source": sources}
    means, tops = (policy.decode(torch.full((2, 16, 3), value), rows) for value in (0.0, 1.0))
    for number in range(2):
        of = measure([e for e, s in zip(data, data.sources, strict=True) if s == number], data.spec)["action"]
        assert means[number].numpy() == pytest.approx(np.tile(of.mean, (16, 1)), abs=1e-5)
        assert tops[number].numpy() == pytest.approx(np.tile(of.mean + of.std, (16, 1)), abs=1e-5)
        assert policy.code(tops, rows)[number].numpy() == pytest.approx(np.ones((16, 3)), abs=1e-5)
    filling = {**rows, "source": torch.zeros(2, 2, 2)}  # rows of zeros, as they fill a batch
    assert torch.isfinite(policy.sample(filling, torch.zeros(2, *policy.noise_shape))).all()
    chunks = policy.sample(rows, torch.randn(1, *policy.noise_shape).expand(2, -1, -1))
    assert not torch.allclose(chunks[0], chunks[1])


def test_a_mixture_with_one_set_of_statistics_is_told_nothing(sets):
    trainer, data, _ = trained(sets)
    assert list(trainer.policy.spec.observation) == ["state"]
    assert trainer.policy.sources == 0
    everything = measure(data, data.spec)
    assert trainer.policy.action_normalizer.shift.numpy() == pytest.approx(everything["action"].mean, abs=1e-5)


def test_the_checkpoint_names_its_sets(sets):
    from flowhand.commands.held_out import sets as described

    _, data, unseen = trained(sets)
    found = described(data, unseen)
    assert [each["source"] for each in found] == ["first", "second"]
    assert [each["trained_on"] for each in found] == ["0-2", "0-4"]
    assert [each["weight"] for each in found] == [1, 2]


def test_inspect_says_how_sets_are_mapped(sets):
    from conf.verbs.inspect import InspectRoot

    said = "\n".join(mixed(InspectRoot(where=str(sets[0].path), mixture=[str(sets[1].path)]), sets[0]))
    assert "from joints, dimensions 1, 2, 0  [shoulder, elbow, wrist]" in said
    assert "left out   touch: of second; first has none" in said


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.mixture=[{path:a}]", "data.path=b"], "names its sets"),
        (["data.mixture=[{weight:1}]"], "expected a path"),
        (["data.mixture=[{path:a,weight:-1}]"], "a positive number"),
        (["data.statistics=some"], "choices: all, each"),
    ],
)
def test_settings_of_a_mixture_are_checked(overrides, message):
    with pytest.raises(ValueError, match=message):
        compose(["env=none", "eval.episodes=0", *overrides])


def test_a_mixture_takes_no_world_and_one_set_has_no_statistics_of_each(sets):
    with pytest.raises(ValueError, match="set env=none"):
        train.demonstrations(compose(["env=detour", f"data.mixture=[{{path:{sets[0].path}}}]"]))
    config = compose(["env=none", "eval.episodes=0", "data.statistics=each"])
    with pytest.raises(ValueError, match="here is one"):
        train.observed(config, StateEpisodes(sets[0]))
