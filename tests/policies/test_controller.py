import itertools
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from flowhand.contracts.execution import ExecutionConfig
from flowhand.contracts.features import ChunkConfig, Feature, Spec
from flowhand.contracts.noise import noise
from flowhand.contracts.strict import whole
from flowhand.control.async_controller import AsyncController
from flowhand.control.controller import Controller
from policies import Policy, PolicyConfig
from tests.cases import some

SPEC = Spec(
    {"state": Feature((1,), "float32", "m"), "image": Feature((2, 2, 1), "uint8", "")},
    Feature((2,), "float32", "N"),
    control_dt_s=0.1,
)


class Scripted(Policy):
    """Answers with [100 * latest state + k, oldest state] for step k of the chunk, and notes what it was asked."""

    def __init__(self, history: int = 2, prediction_horizon: int = 4, execution_horizon: int = 2):
        vectors = Spec({"state": SPEC.observation["state"]}, SPEC.action, SPEC.control_dt_s)
        super().__init__(PolicyConfig(ChunkConfig(history, prediction_horizon, execution_horizon)), vectors)
        self.spec = SPEC
        self.asked: list[tuple[Mapping[str, torch.Tensor], torch.Tensor]] = []

    def sample(self, observation, noise, prefix=None):
        self.asked.append((observation, noise))
        state = observation["state"][..., 0]
        chunk = torch.empty_like(noise)
        chunk[..., 0] = 100 * state[:, -1:] + torch.arange(noise.shape[1])
        chunk[..., 1] = state[:, :1]
        return chunk


def see(state: float) -> dict[str, np.ndarray]:
    return {"state": np.array([state], np.float32), "image": np.full((2, 2, 1), state, np.uint8)}


def follow(controller: Controller, states, lane: int = 0) -> list[list[int]]:
    return [controller.act({lane: see(s)})[lane].astype(int).tolist() for s in states]


def test_actions_are_those_of_the_table():
    """History 2, prediction horizon 4, execution horizon 2: decisions at states 1, 3 and 5."""
    controller = Controller(Scripted())
    controller.reset(seed=0)
    assert follow(controller, [1, 2, 3, 4, 5, 6]) == [[100, 1], [101, 1], [300, 2], [301, 2], [500, 4], [501, 4]]


@pytest.mark.parametrize(
    ("execution_horizon", "expected"),
    [
        (1, [100, 200, 300, 400, 500, 600]),
        (3, [100, 101, 102, 400, 401, 402]),
        (4, [100, 101, 102, 103, 500, 501]),  # the whole chunk: open loop
    ],
)
def test_the_execution_horizon_can_be_overridden(execution_horizon, expected):
    controller = Controller(Scripted(), execution_horizon)
    controller.reset(seed=0)
    assert [action[0] for action in follow(controller, [1, 2, 3, 4, 5, 6])] == expected


def test_actions_stay_within_the_bounds_and_what_was_clipped_is_counted():
    policy = Scripted()
    bounded = Feature((2,), "float32", "N", (-math.inf, 1.0), (150.0, 1.5))
    policy.spec = Spec(SPEC.observation, bounded, SPEC.control_dt_s)
    controller, free = Controller(policy), Controller(policy, execution=ExecutionConfig(clip=False))
    for each in (controller, free):
        each.reset(seed=0)
    assert np.array_equal([controller.step(see(s)) for s in (1, 2, 3, 4)], [[100, 1], [101, 1], [150, 1.5], [150, 1.5]])
    assert controller.limits.counts.tolist() == [2, 2]
    assert "actions clipped [2, 2] of 4" in repr(controller)
    assert follow(free, [1, 2, 3, 4])[-1] == [301, 2]
    assert "actions not clipped" in repr(free)


def test_executing_all_of_it_plays_each_chunk_to_its_end(make_policy):
    policy = make_policy()
    controller = Controller(policy, execution_horizon=4, execution=ExecutionConfig(clip=False))
    controller.reset(seed=5)
    observation = {"state": np.ones(3, np.float32), "goal": np.ones(2, np.float32)}
    played = np.stack([controller.step(observation) for _ in range(4)])
    noise = torch.from_numpy(noises(0, 5, 1)[0])
    history = {name: torch.from_numpy(np.stack([value] * 2))[None] for name, value in observation.items()}
    with torch.no_grad():
        assert np.array_equal(played, policy.sample(history, noise[None])[0].numpy())


def test_the_history_starts_with_copies_of_the_first_observation():
    policy = Scripted(history=3)
    controller = Controller(policy, execution_horizon=1)
    controller.reset(seed=0)
    follow(controller, [7, 8, 9, 10])
    expected = [[7, 7, 7], [7, 7, 8], [7, 8, 9], [8, 9, 10]]
    assert [observation["state"][0, :, 0].tolist() for observation, _ in policy.asked] == expected
    assert [observation["image"][0, :, 0, 0, 0].tolist() for observation, _ in policy.asked] == expected
    assert policy.asked[0][0]["image"].dtype == torch.uint8


def test_a_reset_forgets_observations_actions_and_decisions():
    policy = Scripted()
    controller = Controller(policy)
    runs = []
    for _ in range(2):
        controller.reset(seed=3)
        runs.append(follow(controller, [1, 2, 3]))  # ends with an action left in the queue
    assert runs[0] == runs[1]
    assert torch.equal(policy.asked[0][1], policy.asked[2][1])


def test_changing_an_observation_afterwards_changes_nothing():
    policy = Scripted()
    controller = Controller(policy, execution_horizon=1)
    controller.reset(seed=0)
    observation = see(1)
    controller.step(observation)
    observation["state"][:] = -1
    observation["image"][:] = 99
    controller.step(see(2))
    assert policy.asked[1][0]["state"][0, :, 0].tolist() == [1, 2]
    assert policy.asked[1][0]["image"][0, :, 0, 0, 0].tolist() == [1, 2]


def test_changing_an_action_changes_no_other():
    controller = Controller(Scripted())
    controller.reset(seed=0)
    controller.step(see(1))[:] = -1
    assert controller.step(see(2)).tolist() == [101, 1]


def noises(noise_seed: int, seed: int, decisions: int, **options) -> list[np.ndarray]:
    """The noise of the first decisions of an episode in lane 0."""
    policy = Scripted()
    controller = Controller(policy, execution_horizon=1, noise_seed=noise_seed, **options)
    controller.reset(0, seed)
    follow(controller, range(decisions))
    return [noise[0].numpy() for _, noise in policy.asked]


NUMPY = pytest.mark.parametrize("kind", [np.uint8, np.int32, np.uint32, np.int64, np.uint64])


@NUMPY
def test_a_seed_of_numpy_is_the_number_that_it_is(kind):
    """np.uint32(7) << 32 is 0, and np.uint64 and an int make a float."""
    given: Any = (kind(7), kind(200))
    assert np.array_equal(noises(given[0], given[1], 2), noises(7, 200, 2))
    controller = AsyncController(Scripted(), given[0])
    controller.reset(seed=given[1])
    assert controller._episode
    assert np.array_equal(noise(controller.noise_seed, controller._episode.seed, 0, (4, 2)), noises(7, 200, 1)[0])


@NUMPY
def test_a_count_of_numpy_is_the_number_that_it_is(kind):
    """np.uint8(200) + 100 is 44, or an error."""
    given: Any = kind(1)
    controller = Controller(Scripted(), execution_horizon=given, inference_batch=given)
    controller.reset(0)
    for lane in range(3):
        controller.reset(lane)
    assert len(controller.act({lane: see(lane) for lane in range(3)})) == 3
    controller.skip(kind(100))
    controller.skip(kind(100))
    controller.skip(kind(100))
    assert controller._episodes[0].timeline.step == 301


@pytest.mark.parametrize("value", [True, np.True_, 1.0, "1", None, [1]])
def test_what_is_no_integer_is_no_seed_and_no_count(value):
    with pytest.raises(ValueError, match=r"seed is .*, expected an integer"):
        whole("seed", value)


def test_noise_differs_between_noise_seeds_episodes_and_decisions_and_is_standard_normal():
    seen = [n for a, b in itertools.product((0, 1, 2**32 - 1), (0, 1, 2, 2**32 - 1)) for n in noises(a, b, 30)]
    assert len({n.tobytes() for n in seen}) == 3 * 4 * 30
    values = np.stack(seen)
    assert stats.kstest(values.ravel(), "norm").pvalue > 0.01
    correlation = np.corrcoef(values.reshape(len(values), -1)[:-1].ravel(), values.reshape(len(values), -1)[1:].ravel())
    assert abs(correlation[0, 1]) < 0.08


def test_noise_follows_from_noise_seed_episode_and_decision_alone():
    expected = noises(4, 11, 3)
    policy = Scripted()
    controller = Controller(policy, noise_seed=4, inference_batch=3)
    controller.reset(2, 5)
    follow(controller, [8, 8, 8], lane=2)  # another lane has been busy
    controller.reset(7, 11)
    policy.asked.clear()
    torch.manual_seed(99)
    for state in range(3):
        for _ in range(2):
            controller.act({2: see(1), 7: see(50 + state)})
    of_lane_7 = [
        noise[row].numpy()
        for observation, noise in policy.asked
        for row in range(3)
        if observation["state"][row, -1, 0] >= 50
    ]
    assert len(of_lane_7) == 3
    assert all(np.array_equal(a, b) for a, b in zip(of_lane_7, expected, strict=True))


@pytest.mark.parametrize(
    ("lanes", "batch", "calls"), [(1, 1, 1), (3, 1, 3), (3, 4, 1), (4, 4, 1), (5, 4, 2), (9, 4, 3)]
)
def test_every_inference_call_has_the_same_number_of_rows(lanes, batch, calls):
    policy = Scripted()
    controller = Controller(policy, inference_batch=batch)
    policy.asked.clear()  # what it was asked to prove that rows are computed alike
    for lane in range(lanes):
        controller.reset(lane, lane)
    actions = controller.act({lane: see(lane) for lane in range(lanes)})
    assert [action[0] for action in actions.values()] == [100 * lane for lane in range(lanes)]
    assert [noise.shape for _, noise in policy.asked] == [(batch, 4, 2)] * calls
    assert all(len(value) == batch for observation, _ in policy.asked for value in observation.values())
    controller.act({lane: see(lane) for lane in range(lanes)})  # nobody waits
    assert len(policy.asked) == calls


def episode(seed: int, steps: int = 7) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(seed)
    return [
        {"state": generator.standard_normal(3).astype(np.float32), "goal": np.full(2, seed, np.float32)}
        for _ in range(steps)
    ]


def run_together(controller: Controller, starts: dict[int, tuple[int, int]], reverse: bool) -> dict[int, np.ndarray]:
    """Actions of episodes, by seed, where each lane starts at its own tick: {lane: (seed, tick)}."""
    actions: dict[int, list[np.ndarray]] = {seed: [] for seed, _ in starts.values()}
    for tick in range(40):
        observations = {}
        for lane in sorted(starts, reverse=reverse):
            seed, start = starts[lane]
            if tick == start:
                controller.reset(lane, seed)
            if 0 <= tick - start < 7:
                observations[lane] = episode(seed)[tick - start]
        for lane, action in controller.act(observations).items():
            actions[starts[lane][0]].append(action)
    return {seed: np.stack(taken) for seed, taken in actions.items()}


@pytest.mark.parametrize(
    ("net", "head"),
    some([("mlp", "flow"), ("transformer", "flow"), ("mlp", "regression")], [("mlp", "flow"), ("mlp", "regression")]),
)
@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(4, marks=pytest.mark.slow)])
def test_an_episode_does_not_depend_on_the_lanes_beside_it(make_policy, net, head, batch):
    """Bit for bit, with any number of lanes in any order that start at any time (see test_heads.py for the width)."""
    policy = make_policy(net=net, head=head, width=32)
    alone = {}
    for seed in range(6):
        alone |= run_together(Controller(policy, inference_batch=batch), {0: (seed, 0)}, reverse=False)
    arrangements = [
        {lane: (lane, 0) for lane in range(6)},
        {lane: (5 - lane, 0) for lane in range(6)},
        {lane: (lane, lane) for lane in range(6)},
        {10 - lane: (lane, 7 - lane) for lane in range(5)},
    ]
    for starts, reverse in itertools.product(arrangements, (False, True)):
        together = run_together(Controller(policy, inference_batch=batch), starts, reverse)
        for seed, actions in together.items():
            assert actions.shape == (7, 2)
            assert np.array_equal(actions, alone[seed])


def test_actions_are_vectors_of_float32():
    controller = Controller(Scripted())
    controller.reset()
    action = controller.step(see(1))
    assert action.shape == (2,)
    assert action.dtype == np.float32


def test_finer_numbers_are_welcome():
    policy = Scripted()
    controller = Controller(policy)
    controller.reset()
    observation = {**see(1), "state": np.array([1.0], np.float64)}
    assert controller.step(observation)[0] == 100
    assert policy.asked[0][0].keys() == {"state", "image"}
    assert policy.asked[0][0]["state"].dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": None}, "the observation has ['image'], expected ['image', 'state']"),
        ({"state": np.zeros(2)}, "observation 'state' has shape (2,), expected (1,)"),
        ({"state": np.zeros((1, 1))}, "observation 'state' has shape (1, 1), expected (1,)"),
        ({"state": np.array([np.nan])}, "observation 'state' has NaN or infinity"),
        ({"state": np.array([-np.inf])}, "observation 'state' has NaN or infinity"),
        ({"state": np.array([1e39])}, "observation 'state' has NaN or infinity"),  # in float32
        ({"state": np.array(["1"])}, "observation 'state' is <U1, expected float32"),
        ({"state": np.array([None])}, "observation 'state' is object, expected float32"),
        ({"image": np.zeros((2, 2, 1), np.float32)}, "observation 'image' is float32, expected uint8"),
        ({"image": np.full((2, 2, 1), 300, np.uint16)}, "observation 'image' is uint16, expected uint8"),
        ({"depth": np.zeros(3)}, "the observation has ['depth', 'image', 'state'], expected ['image', 'state']"),
        ({"image": np.zeros((1, 2, 2), np.uint8)}, "observation 'image' has shape (1, 2, 2), expected (2, 2"),
    ],
)
def test_a_wrong_observation_is_refused_and_leaves_no_trace(change, message):
    controller = Controller(Scripted(), execution_horizon=1)
    for lane in (0, 1):
        controller.reset(lane)
        controller.act({lane: see(1)})
    wrong = {name: value for name, value in {**see(2), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=re.escape(message)):
        controller.act({0: see(5), 1: wrong})
    assert controller.act({0: see(2)})[0].tolist() == [200, 1]  # its history is 1, 2 and knows nothing of 5


def test_a_lane_without_an_episode_is_an_error():
    controller = Controller(Scripted())
    controller.reset(1)
    with pytest.raises(ValueError, match=r"lane 0 has no episode; call reset\(lane, seed\) first"):
        controller.step(see(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"execution_horizon": 0}, "execution_horizon=0 must lie in 1..4"),
        ({"execution_horizon": 5}, "execution_horizon=5 must lie in 1..4"),
        ({"inference_batch": 0}, "inference_batch=0 must be at least 1"),
        ({"noise_seed": -1}, "noise_seed=-1 must lie in [0, 2^32)"),
        ({"noise_seed": 2**32}, "noise_seed=4294967296 must lie in [0, 2^32)"),
    ],
)
def test_a_wrong_option_is_an_error(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Controller(Scripted(), **options)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_outside_its_range_is_an_error(seed):
    """It would give another episode's noise."""
    with pytest.raises(ValueError, match=re.escape(f"seed={seed} must lie in [0, 2^32)")):
        Controller(Scripted()).reset(seed=seed)
