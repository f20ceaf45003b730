"""Modes and simulated delay, against a planner whose actions say from which decision and which step they are."""

import itertools
import math
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import envs
from flowhand.contracts.execution import MODES, ExecutionConfig
from flowhand.contracts.features import ChunkConfig, Feature, Spec
from flowhand.contracts.noise import generator
from flowhand.contracts.planner import FORMS, PrefixArrays
from flowhand.control.chunk_player import ChunkPlayer
from flowhand.control.controller import Controller
from flowhand.evaluation.rollout import rollout
from policies import Policy, PolicyConfig
from policies.heads.flow import FlowConfig
from policies.nets.mlp import MLPConfig
from tests.cases import some

SPEC = Spec({"step": Feature((1,), "float32", "")}, Feature((1,), "float32", ""), control_dt_s=0.1)
RTC = tuple(FORMS)


class Telling:
    """Answers a decision made at control step j with the actions 100 j + k, and notes prefixes and noise."""

    def __init__(self, T=16, s=8, continues=("exact", "identity", "trained"), longest=8):
        self.spec, self.chunk, self.noise_shape = SPEC, ChunkConfig(1, T, s), (T, 1)
        self.continues = dict.fromkeys(continues, longest)
        self.prefixes: list[PrefixArrays | None] = []
        self.noise: list[np.ndarray] = []

    def plan(self, observation, noise, prefix=None):
        self.prefixes.append(prefix)
        self.noise.append(noise)
        steps = np.arange(self.chunk.prediction_horizon, dtype=np.float32)
        return 100 * observation["step"][:, -1:] + steps[None, :, None]


def see(step: float) -> dict[str, np.ndarray]:
    return {"step": np.array([step], np.float32)}


def drive(controller, steps: int, seed: int = 0) -> list[float]:
    controller.reset(seed=seed)
    return [controller.step(see(step)).item() for step in range(steps)]


def arrived(i: int, s: int, d: int) -> list[int]:
    """The decisions, made every s steps, whose chunks are there at step i; the first is there at once."""
    return [j for j in range(0, i + 1, s) if j == 0 or j + d <= i]


@pytest.mark.parametrize("mode", ["receding_horizon", *RTC])
@pytest.mark.parametrize(
    ("T", "s", "d"), [(4, 2, 0), (4, 2, 1), (4, 2, 2), (4, 3, 1), (4, 4, 0), (16, 8, 8), (16, 8, 3), (2, 1, 1)]
)
def test_a_chunk_arrives_after_the_delay_and_its_first_actions_are_past(mode, T, s, d):
    controller = Controller(Telling(T, s), execution=ExecutionConfig(mode, delay=d))
    expected = [100 * arrived(i, s, d)[-1] + i - arrived(i, s, d)[-1] for i in range(40)]
    assert drive(controller, 40) == expected


def test_an_example():
    """Chunks of 4, decided every 2 steps, one step late: decisions at 2 and 4 are there at 3 and 5."""
    controller = Controller(Telling(4, 2), execution=ExecutionConfig(delay=1))
    assert drive(controller, 7) == [0, 1, 2, 201, 202, 401, 402]


@pytest.mark.parametrize("decay", [0.01, 0.5, 0.0])
@pytest.mark.parametrize(("T", "s", "d"), [(4, 0, 0), (4, 0, 1), (6, 0, 3), (6, 2, 0), (6, 3, 1), (1, 0, 0)])
def test_ensembling_is_the_weighted_mean_of_all_chunks_that_cover_the_step(T, s, d, decay):
    execution = ExecutionConfig("temporal_ensembling", s, d, ensemble_decay=decay)
    actions = drive(Controller(Telling(T, 2 if T > 1 else 1), execution=execution), 30)
    begun = [(0, 0)]  # step of the decision and of its arrival; the next one waits for that
    while begun[-1][0] < 30:
        j = max(begun[-1][0] + (s or 1), begun[-1][1])
        begun.append((j, j + d))
    for i, action in enumerate(actions):
        decisions = [j for j, arrival in begun if arrival <= i < j + T]
        weights = [np.exp(-decay * k) for k in range(len(decisions))]
        values = [100 * j + i - j for j in decisions]
        mean = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
        assert action == pytest.approx(mean, rel=1e-6)


def test_the_first_delay_is_no_longer_expected_once_there_is_another():
    """After a first decision of 12 steps, for which the robot stood still, the others are told of their own delays."""
    timeline, told = ChunkPlayer(ExecutionConfig("rtc_exact"), interval=4, longest=16), []
    for delay in [12, *[1] * 11]:
        while not timeline.due:
            timeline.advance()
        told.append(timeline.previous((16, 1))[1])
        timeline.begin()
        for _ in range(delay):
            timeline.advance()
        timeline.deliver(np.zeros((16, 1), np.float32))
    assert told == [0, 12, *[1] * 10]


@pytest.mark.parametrize("decay", [-1000.0, -60.0, -1.0, 60.0, 1000.0])
def test_ensembling_has_a_mean_however_steep_its_weights(decay):
    """Of 16 chunks with the actions 1 to 16."""
    timeline = ChunkPlayer(ExecutionConfig("temporal_ensembling", ensemble_decay=decay), interval=1, longest=16)
    for value in range(1, 17):
        timeline.begin()
        timeline.deliver(np.full((16, 1), value, np.float32), delay=0)
        action = timeline.advance()
        weights = [math.exp(-abs(decay) * k) for k in range(value)]  # from the heaviest on
        values = range(value, 0, -1) if decay < 0 else range(1, value + 1)
        assert action == pytest.approx(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights))


def test_choices_are_not_averaged_but_voted_on():
    timeline = ChunkPlayer(
        ExecutionConfig("temporal_ensembling", ensemble_decay=0.4), interval=1, longest=4, discrete=[1]
    )
    for first, second, choice, mean in [(0, 4, 4, 0), (1, 2, 4, 0.40131), (2, 2, 2, 0.74021)]:
        timeline.begin()
        timeline.deliver(np.array([[first, second]] * 4, np.float32), delay=0)
        assert timeline.advance() == pytest.approx([mean, choice], abs=1e-4)  # of the weights 1, 0.670 and 0.449


def test_a_controller_knows_which_dimensions_are_choices():
    planner = Telling(4, 2)
    action = Feature((1,), "float32", "", choices=(600,))
    planner.spec = Spec(SPEC.observation, action, 0.1)
    actions = drive(Controller(planner, execution=ExecutionConfig("temporal_ensembling", ensemble_decay=1.0)), 6)
    assert actions == [0, 1, 2, 3, 103, 203]  # the oldest


def test_ensembling_without_delay_asks_at_every_step():
    planner = Telling(8, 4)
    drive(Controller(planner, execution=ExecutionConfig("temporal_ensembling")), 10)
    assert len(planner.noise) == 10


@pytest.mark.parametrize("mode", RTC)
@pytest.mark.parametrize(("T", "s", "d"), [(16, 8, 8), (16, 8, 0), (16, 5, 3), (4, 2, 2)])
def test_a_chunk_continues_the_last_one(mode, T, s, d):
    planner = Telling(T, s)
    controller = Controller(planner, execution=ExecutionConfig(mode, delay=d), inference_batch=2)
    planner.prefixes.clear()  # what it was asked to prove that rows are computed alike
    drive(controller, 30)
    for k, prefix in enumerate(planner.prefixes):
        assert prefix is not None
        assert prefix.form == FORMS[mode]
        rest = [100 * (k - 1) * s + i for i in range(s, T)] if k else []
        assert prefix.actions_BTA[0, :, 0].tolist() == rest + [0] * (T - len(rest))
        assert (prefix.delay_B[0], prefix.overlap_B[0]) == ((d, T - s) if k else (0, 0))
        assert not prefix.actions_BTA[1].any()  # padding
        assert (prefix.delay_B[1], prefix.overlap_B[1]) == (0, 0)


@pytest.mark.parametrize("mode", ["receding_horizon", "temporal_ensembling"])
def test_other_modes_have_no_prefix_and_need_none(mode):
    planner = Telling(continues=())
    drive(Controller(planner, execution=ExecutionConfig(mode, delay=2)), 20)
    assert set(planner.prefixes) == {None}


def test_without_delay_the_modes_differ_only_in_what_is_asked():
    noise = {}
    for mode in ("receding_horizon", *RTC):
        planner = Telling(8, 4)
        drive(Controller(planner, execution=ExecutionConfig(mode)), 20, seed=5)
        noise[mode] = np.stack(planner.noise)
    assert all(np.array_equal(noise[mode], noise["receding_horizon"]) for mode in RTC)


LATENCIES = [10.0, 150.0, 250.0, 300.0]  # 1, 2, 3 and 3 steps of 0.1 s


def arrivals(actions: list[float]) -> dict[int, int]:
    """When each decision's chunk was first executed, by the step of the decision."""
    found: dict[int, int] = {}
    for i, action in enumerate(actions):
        found.setdefault(int(action) // 100, i)
    return found


def test_latencies_are_rounded_up_to_steps():
    assert ExecutionConfig(latencies_ms=[0.0, 0.1, 100.0, 100.1, 300.0, 700.0]).delays(0.1) == [0, 1, 1, 2, 3, 7]
    assert ExecutionConfig(latencies_ms=[12.5, 37.5, 38.0]).delays(0.0125) == [1, 3, 4]
    steps = range(1, 40)  # a latency of exactly n steps, however it is rounded, is n steps
    for dt in (0.1, 0.05, 0.02, 1 / 30):
        assert ExecutionConfig(latencies_ms=[n * dt * 1000 for n in steps]).delays(dt) == list(steps)
    assert ExecutionConfig(delay=3).delays(0.1) == [3]


def test_every_decision_draws_its_latency():
    drawn = {}
    for seed in range(30):
        controller = Controller(Telling(16, 5), execution=ExecutionConfig(latencies_ms=LATENCIES))
        found = arrivals(drive(controller, 60, seed))
        assert list(found) == list(range(0, 60, 5))
        drawn[seed] = tuple(at - begun for begun, at in found.items() if begun)
    every = [delay for delays in drawn.values() for delay in delays]
    share = {delay: every.count(delay) / len(every) for delay in (1, 2, 3)}
    assert set(every) == {1, 2, 3}
    assert share == pytest.approx({1: 0.25, 2: 0.25, 3: 0.5}, abs=0.1)
    assert len(set(drawn.values())) == 30


def test_the_delay_expected_is_the_largest_of_the_last_ten():
    timeline = ChunkPlayer(ExecutionConfig("rtc_exact"), interval=4, longest=6)
    delays, expected = [2, 1, 3, *[1] * 10, 9, 1], []
    for delay in delays:
        while not timeline.due:
            timeline.advance()
        expected.append(timeline.previous((16, 1))[1:])
        timeline.begin()
        timeline.deliver(np.zeros((16, 1), np.float32), delay)
    # Nothing before the first chunk; 9 is more than the 6 that a prefix may have.
    # The first one, for which the robot stood still, is expected only while nothing else is known.
    assert expected == [(0, 0), (2, 12), (1, 12), *[(3, 12)] * 10, (1, 12), (6, 12)]


def test_no_more_is_expected_to_be_executed_than_there_is():
    timeline = ChunkPlayer(ExecutionConfig("rtc_exact"), interval=2, longest=16)
    timeline.begin()
    timeline.deliver(np.arange(8, dtype=np.float32)[:, None], delay=5)
    for expected in (0, 1, 2, 3):
        assert timeline.advance() == expected
    actions, delay, overlap = timeline.previous((8, 1))
    assert (delay, overlap) == (4, 4)
    assert actions[:, 0].tolist() == [4, 5, 6, 7, 0, 0, 0, 0]
    for expected in (4, 5, 6, 7, None, None):
        assert timeline.advance() == expected
    assert timeline.previous((8, 1))[1:] == (0, 0)


def test_a_latency_follows_from_noise_seed_seed_and_decision_and_leaves_the_noise_alone():
    execution = ExecutionConfig(latencies_ms=LATENCIES)

    def run(seed, noise_seed=0, execution=execution, lanes=(0,)):
        planner = Telling(16, 5)
        controller = Controller(planner, execution=execution, noise_seed=noise_seed)
        for lane in lanes:
            controller.reset(lane, seed if lane == lanes[0] else 77 + lane)
        actions = [controller.act(dict.fromkeys(lanes, see(i)))[lanes[0]].item() for i in range(40)]
        return actions, planner.noise[:: len(lanes)]

    actions, noise = run(3)
    assert run(3)[0] == actions
    assert run(3, lanes=(2, 0, 5))[0] == actions
    assert run(4)[0] != actions
    assert run(3, noise_seed=1)[0] != actions
    without = run(3, execution=ExecutionConfig(delay=1))[1]
    assert all(np.array_equal(a, b) for a, b in zip(noise, without, strict=True))


def test_latency_and_noise_are_drawn_from_different_streams():
    assert generator(3, 4, 0, stream=0).bytes(16) != generator(3, 4, 0, stream=1).bytes(16)


def test_latencies_can_come_from_a_file(tmp_path):
    file = tmp_path / "latencies.txt"
    file.write_text("10\n150.0\n\n 250\n3e2\n")
    same = ExecutionConfig(latencies_file=str(file))
    assert same.delays(0.1) == ExecutionConfig(latencies_ms=LATENCIES).delays(0.1)
    runs = [drive(Controller(Telling(16, 5), execution=e), 40) for e in (same, ExecutionConfig(latencies_ms=LATENCIES))]
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("\n", "is empty; expected one number of milliseconds per line"),
        ("10\nslow\n", "could not convert string to float: 'slow'; expected one number of ms per line"),
        ("10\n-1\n", "has -1.0; expected milliseconds, 0 to 1e+09"),
        ("nan\n", "has nan; expected milliseconds, 0 to 1e+09"),
    ],
)
def test_a_file_that_holds_something_else_is_named(tmp_path, content, message):
    file = tmp_path / "latencies.txt"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=f"latencies_file='{re.escape(str(file))}'.*{re.escape(message)}"):
        Controller(Telling(), execution=ExecutionConfig(latencies_file=str(file)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "rtc"}, "mode='rtc' is unknown; choices: receding_horizon, temporal_ensembling, rtc_exact"),
        ({"delay": -1}, "delay=-1 must not be negative"),
        ({"execution_horizon": -1}, "execution_horizon=-1 must not be negative"),
        ({"ensemble_decay": float("nan")}, "ensemble_decay=nan must lie in -1000.0..1000.0"),
        ({"latencies_ms": [5.0, -1.0]}, "latencies_ms has -1.0; expected milliseconds, 0 to 1e+09"),
        ({"delay": 1, "latencies_ms": [5.0]}, "delay and latencies_ms are both given; choose one source of delay"),
    ],
)
def test_a_wrong_configuration_is_an_error(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ExecutionConfig(**fields)


@pytest.mark.parametrize(
    ("T", "fields", "message"),
    [
        (16, {"delay": 9}, "a delay of 9 control steps is too long for chunks of 16: expected at most 8"),
        (16, {"delay": 8, "execution_horizon": 7}, "execution_horizon=7 does not fit a delay of 8 .* expected 8..8"),
        (16, {"delay": 3, "execution_horizon": 2}, "execution_horizon=2 does not fit a delay of 3 .* expected 3..13"),
        (16, {"delay": 3, "execution_horizon": 14}, "execution_horizon=14 does not fit .* expected 3..13"),
        (16, {"delay": 3, "execution_horizon": 14, "mode": "temporal_ensembling"}, "expected 1..13"),
        (16, {"execution_horizon": 17}, "execution_horizon=17 must lie in 1..16"),
        (16, {"latencies_ms": [10.0, 900.0]}, "a delay of 9 control steps is too long"),
        (16, {"delay": 8, "mode": "rtc_trained"}, "a delay of 8 control steps: the policy takes at most 4"),
    ],
)
def test_chunks_that_cannot_bridge_the_delay_are_an_error(T, fields, message):
    with pytest.raises(ValueError, match=message):
        Controller(Telling(T, 8, longest=4), execution=ExecutionConfig(**fields))


def test_a_planner_that_cannot_continue_is_refused_when_the_controller_is_made(make_policy):
    with pytest.raises(ValueError, match=r"mode='rtc_exact' is not possible with this policy, only .*, rtc_identity; "):
        Controller(Telling(continues=["identity"]), execution=ExecutionConfig("rtc_exact"))
    with pytest.raises(ValueError, match=r"trained with head\.prefix_max above 0"):
        Controller(make_policy(), execution=ExecutionConfig("rtc_trained"))
    with pytest.raises(ValueError, match=r"only receding_horizon, temporal_ensembling; "):
        Controller(make_policy(head="regression"), execution=ExecutionConfig("rtc_identity"))
    for mode in ("rtc_exact", "rtc_identity"):
        with pytest.raises(ValueError, match=r"only .*, rtc_trained; it takes .* head=flow and head\.steps above 1"):
            Controller(make_policy(steps=1, prefix_max=2), execution=ExecutionConfig(mode))
        Controller(make_policy(steps=2), execution=ExecutionConfig(mode))
    Controller(make_policy(prefix_max=2), execution=ExecutionConfig("rtc_trained", delay=2))


def test_an_execution_horizon_given_twice_is_that_of_the_controller():
    controller = Controller(Telling(16, 8), 4, execution=ExecutionConfig(execution_horizon=6))
    assert drive(controller, 9) == [0, 1, 2, 3, 400, 401, 402, 403, 800]


def tiny(spec: Spec, **head) -> Policy:
    config = PolicyConfig(ChunkConfig(2, 8, 3), net=MLPConfig(width=32, blocks=2), head=FlowConfig(**head))
    policy = Policy(config, spec)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in policy.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5)
    shown = {name: torch.randn(50, f.size, generator=generator) for name, f in spec.observation.items()}
    policy.fit_normalizers(shown, 0.3 * torch.randn(50, spec.action.size, generator=generator))
    return policy


DELAYS = {"steps": {"delay": 2}, "latencies": {"latencies_ms": [0.0, 60.0, 140.0]}}
WAYS = [(mode, delay) for mode in MODES for delay in DELAYS]


@pytest.mark.parametrize(("mode", "delay"), some(WAYS, [*WAYS[::2], ("receding_horizon", "latencies")]))
def test_an_outcome_does_not_depend_on_how_many_run_beside_it(mode, delay):
    make_env = partial(envs.make, envs.DetourConfig(max_steps=9))
    policy = tiny(make_env().features, steps=2, prefix_max=4)
    execution = ExecutionConfig(mode, **DELAYS[delay])

    def run(n_envs):
        controller = Controller(policy, inference_batch=4, execution=execution)
        return [replace(r, wall_s=0.0) for r in rollout(make_env, controller, range(5, 10), n_envs=n_envs)]

    alone = run(1)
    assert run(3) == alone
    assert run(16) == alone
    assert len({record.return_ for record in alone}) == 5


def test_modes_and_delays_give_different_episodes():
    make_env = partial(envs.make, envs.DetourConfig(max_steps=9))
    policy = tiny(make_env().features, steps=2, prefix_max=4)
    returns = {}
    for way in itertools.product(MODES, (0, 2)):
        (record,) = rollout(make_env, Controller(policy, execution=ExecutionConfig(way[0], delay=way[1])), [5])
        returns[way] = record.return_
    # Without a delay a trained prefix holds nothing.
    assert returns.pop(("rtc_trained", 0)) == pytest.approx(returns["receding_horizon", 0], rel=1e-5)
    assert np.diff(sorted(returns.values())).min() > 1e-4


def test_a_trained_prefix_is_what_was_executed_meanwhile():
    policy = tiny(SPEC, prefix_max=3)
    chunks, plan = [], policy.plan

    def noted(*arguments):
        chunks.append(plan(*arguments))
        return chunks[-1]

    policy.plan = noted  # pyright: ignore[reportAttributeAccessIssue]
    actions = drive(Controller(policy, execution=ExecutionConfig("rtc_trained", delay=3)), 20)
    for k in range(1, 6):
        np.testing.assert_allclose(chunks[k][0, :3, 0], actions[3 * k : 3 * k + 3], rtol=1e-5)
        assert actions[3 * k : 3 * k + 3] == [a.item() for a in chunks[k - 1][0, 3:6]]
