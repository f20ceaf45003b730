"""Safety, against limits that are checked again from nothing but the commands that went in and came out."""

from __future__ import annotations

import logging
import math
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linprog

from flowhand.contracts.features import Feature, Spec
from flowhand.control import safety
from flowhand.control.background import LINES
from flowhand.control.limits.config import SafetyConfig
from flowhand.control.limits.workspace import Box

Safety: Any = safety.Safety  # Any, since its commands are None only before the first
ROOT = Path(__file__).parents[2]
LOW, HIGH = np.array([-1.0, -0.5, 0.0]), np.array([1.0, 2.0, 0.3])
DT = 0.02
ROUNDING = 1e-12  # of commands of about 1
LIMITS = {  # per second; what a Safety of three dimensions is tested with
    "none": {},
    "velocity": {"velocity": [3.0, 1.0, 0.5]},
    "acceleration": {"acceleration": [20.0, 5.0, 4.0]},
    "jerk": {"jerk": [900.0, 100.0, 400.0]},
    "velocity and acceleration": {"velocity": [1.0, 2.0, 0.5], "acceleration": [5.0]},
    "all": {"velocity": [3.0, 1.0, 0.4], "acceleration": [20.0, 5.0, 4.0], "jerk": [900.0, 100.0, 400.0]},
    "all, the jerk tight": {"velocity": [2.0], "acceleration": [30.0], "jerk": [60.0]},
    "all, some not limited": {
        "velocity": [math.inf, 1.0, 0.4],
        "acceleration": [20.0, math.inf, math.inf],
        "jerk": [math.inf, 100.0, math.inf],
    },
}


def make(limits: dict, **options) -> Any:
    return Safety(3, DT, SafetyConfig(**limits, **options), LOW, HIGH)


def limit(limits: dict, name: str) -> np.ndarray:
    """Per step instead of per second."""
    power = {"velocity": 1, "acceleration": 2, "jerk": 3}[name]
    return np.broadcast_to(np.array(limits.get(name, [math.inf])) * DT**power, 3)


def sequences(steps: int = 75):
    """What a policy might ask for: (name, (steps, 3))."""
    random, time = np.random.default_rng(0), np.arange(steps)[:, None]
    yield "huge noise", random.normal(0, 1, (steps, 3)) * 10.0 ** random.integers(-3, 38, (steps, 1))
    yield "walk", np.cumsum(random.normal(0, 0.05, (steps, 3)), 0)
    yield "always up", np.full((steps, 3), 100.0)
    yield "up, and down at the worst moment", np.where(time < 37, 100.0, -100.0) * np.ones(3)
    for period in (3, 20):
        yield f"square wave of {period} steps", np.where(time // period % 2, 9.0, -9.0) * np.array([1, -1, 1])
    yield "just above the bound", HIGH + 1e-9 * random.normal(0, 1, (steps, 3))
    yield "steps", np.repeat(random.uniform(LOW, HIGH, (steps // 25, 3)), 25, 0)
    yield "swelling swing", 0.01 * 1.03**time * np.sin(time / 6) * np.ones(3)


SEQUENCES = dict(sequences())


def differences(padded: np.ndarray) -> dict[str, np.ndarray]:
    """Velocity, acceleration and jerk per step; the first three rows are only the past of the others."""
    names = ("velocity", "acceleration", "jerk")
    return {name: np.diff(padded, n, axis=0)[3 - n :] for n, name in enumerate(names, 1)}


def recount(asked: np.ndarray, sent: np.ndarray, limits: dict) -> Counter:
    """How often each reason must have been counted: every request against the commands sent before it."""
    counts: Counter[str] = Counter()
    inside = np.clip(asked, LOW, HIGH)
    history = np.concatenate([np.repeat(sent[:1], 3, 0), sent])
    for k, wanted in enumerate(inside):
        reasons = {"bounds"} if (wanted != asked[k]).any() else set()
        for dimension in range(3 if k else 0):
            past = history[: k + 3, dimension]
            here = differences(np.append(past[-3:], wanted[dimension])[:, None])
            exceeded = {
                name for name, values in here.items() if abs(values[-1, 0]) > limit(limits, name)[dimension] + ROUNDING
            }
            if sent[k, dimension] != wanted[dimension]:
                reasons |= exceeded or {"braking"}
            else:
                assert not exceeded
        counts.update(f"clamp: {reason}" for reason in reasons)
    return counts


@pytest.mark.parametrize("kind", LIMITS)
@pytest.mark.parametrize("name", SEQUENCES)
def test_commands_keep_to_every_limit_and_every_clamp_is_counted(name, kind):
    limits, asked = LIMITS[kind], SEQUENCES[name]
    safety = make(limits)
    sent = np.stack([safety.step(action).action for action in asked])
    assert ((sent >= LOW) & (sent <= HIGH)).all()
    padded = np.concatenate([np.repeat(sent[:1], 3, 0), sent])
    for quantity, values in differences(padded).items():
        assert (np.abs(values) <= limit(limits, quantity) + ROUNDING).all(), quantity
    assert safety.counts == recount(asked, sent, limits)

    again = make(limits)  # has nothing to do, since what the first has let through keeps to the limits
    verdicts = [again.step(command) for command in sent]
    assert np.stack([verdict.action for verdict in verdicts]).tobytes() == sent.tobytes()
    assert not again.counts
    assert all((verdict.refused, verdict.clamps) == ("", {}) for verdict in verdicts)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", LIMITS)
def test_a_smooth_motion_passes_to_the_last_bit(kind, dtype):
    """It starts at rest, and its derivatives stay below the limits by their closed forms."""
    amplitude, rate = np.array([0.9, 0.6, 0.1]), 0.8  # sin^3: derivatives below 1.2, 3 and 9 rate^n amplitude
    for name, factor, n in (("velocity", 1.2, 1), ("acceleration", 3, 2), ("jerk", 9, 3)):
        assert (factor * rate**n * amplitude * DT**n < limit(LIMITS[kind], name)).all()
    asked = (np.array([0.0, 0.7, 0.15]) + amplitude * np.sin(rate * DT * np.arange(500)[:, None]) ** 3).astype(dtype)
    safety = make(LIMITS[kind])
    for action in asked:
        verdict = safety.step(action)
        assert verdict.action.astype(dtype).tobytes() == action.tobytes()
        assert verdict.action.dtype == np.float64
    assert not safety.counts


def can_stop(sent: np.ndarray, low: float, high: float, limits: list[float], horizon: int, extra: float = 1e-12) -> Any:
    """The least and the greatest next command after which some motion comes to rest within all limits, by a linear
    program over `horizon` further commands; None where there is none. `sent` are the last three commands."""
    columns = horizon + 3
    identity = np.eye(columns)
    rows, bounds = [], []
    for n, value in enumerate(limits, 1):
        if value < math.inf:
            difference = np.diff(identity, n, axis=0)[3 - n :]
            rows += [difference, -difference]
            bounds += [np.full(2 * len(difference), value + extra)]
    fixed = np.concatenate([identity[:3], np.diff(identity, axis=0)[-3:]])  # the past, and rest at the end
    values = np.concatenate([sent, np.zeros(3)])
    inside = [(None, None)] * 3 + [(low - extra, high + extra)] * horizon
    found = []
    for sign in (1, -1):
        result = linprog(sign * identity[3], np.concatenate(rows), np.concatenate(bounds), fixed, values, inside)
        if not result.success:
            return None
        found.append(result.x[3])
    return found


@pytest.mark.parametrize(("velocity", "acceleration"), [(0.08, 0.01), (math.inf, 0.02), (0.05, 0.03)])
def test_without_jerk_limits_exactly_that_passes_after_which_a_stop_is_possible(velocity, acceleration):
    """The extreme command that Safety lets through is the one that a linear program finds."""
    random = np.random.default_rng(1)
    config = SafetyConfig(velocity=[velocity], acceleration=[acceleration])
    for _ in range(12):
        safety = Safety(1, 1.0, config, [-1.0], [1.0])
        for target in random.uniform(-1, 1, 4).repeat(random.integers(2, 12, 4)):
            safety.step(np.array([1.5 * target]))
        past = _commands(safety)
        least, greatest = can_stop(past, -1, 1, [velocity, acceleration], 60)
        inside = np.linspace(least + 1e-6, greatest - 1e-6, 3) if greatest - least > 3e-6 else []
        assert not any(_fork(safety).step(np.array([command])).clamps for command in inside)
        assert all(_fork(safety).step(np.array([command])).clamps for command in (least - 1e-6, greatest + 1e-6))


def _commands(safety: Any) -> np.ndarray:
    """The last three commands of a one-dimensional Safety."""
    (motion,) = safety._motions
    return np.array([motion.p - 2 * motion.v + motion.a, motion.p - motion.v, motion.p])


def _fork(safety: Any) -> Any:
    other = Safety(1, 1.0, safety.config, [-1.0], [1.0])
    other._motions = [motion._replace(wanted=motion.p) for motion in safety._motions]
    return other


def drive(safety: Any, wanted: float, steps: int) -> np.ndarray:
    return np.array([safety.step(np.array([wanted])).action[0] for _ in range(steps)])


@pytest.mark.parametrize("kind", ["velocity", "acceleration", "jerk", "all"])
@pytest.mark.parametrize("target", [0.9, -0.9, 0.05, 5.0])
def test_a_wanted_value_is_reached_exactly_and_not_passed(kind, target):
    limits = {name: values[:1] for name, values in LIMITS[kind].items()}
    safety = Safety(1, DT, SafetyConfig(**limits), [-1.0], [1.0])
    safety.reset([0.0])
    path, goal = drive(safety, target, 120), min(target, 1.0)
    assert (np.sign(goal) * np.diff(path) >= -ROUNDING).all()
    assert (path[-20:] == goal).all()
    assert safety.resting


def test_it_is_reached_as_soon_as_acceleration_allows():
    """Half the way speeding up, half braking: 2 sqrt(distance / acceleration) (bang-bang, a double integrator)."""
    for distance, acceleration in ((0.5, 2.0), (1.0, 0.7)):
        safety = Safety(1, DT, SafetyConfig(acceleration=[acceleration]))
        safety.reset([0.0])
        arrival = int(np.argmax(drive(safety, distance, 300) == distance)) + 1
        assert arrival * DT == pytest.approx(2 * math.sqrt(distance / acceleration), abs=2 * DT)


@pytest.mark.parametrize("kind", ["acceleration", "jerk", "all"])
def test_after_a_clamp_a_moving_command_is_caught_up_with(kind):
    """A ramp with one wrong command: half a second later the ramp passes to the last bit again."""
    limits = {name: values[:1] for name, values in LIMITS[kind].items()}
    safety = Safety(1, DT, SafetyConfig(**limits), [-1.0], [1.0])
    asked = -0.8 + 0.01 * np.arange(120)
    asked[60] += 0.1
    sent = np.array([safety.step(np.array([command])).action[0] for command in asked])
    assert sent[60] != asked[60]
    assert (sent[85:] == asked[85:]).all()


def test_velocity_clamps_at_once_and_to_the_number():
    safety = Safety(2, 0.5, SafetyConfig(velocity=[1.0, 4.0]), [-1, -10], [1, 10])
    safety.reset([0.0, 0.0])
    assert safety.step([0.75, 3.0]).action.tolist() == [0.5, 2.0]
    assert safety.step([0.75, 3.0]).action.tolist() == [0.75, 3.0]
    verdict = safety.step([-9.0, 0.5])
    assert verdict.action.tolist() == [0.25, 1.0]
    assert verdict.clamps == {"bounds": (0,), "velocity": (0, 1)}
    assert safety.counts == {"clamp: velocity": 2, "clamp: bounds": 1}


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ([0.1, math.nan], "not finite"),
        ([-math.inf, 0.1], "not finite"),
        ([1e39, 0.1], "not finite"),
        ([0.1], "shape"),
        ([[0.1, 0.1]], "shape"),
        (0.1, "shape"),
        (None, "shape"),
        (["a", "b"], "shape"),
        ([0.1, None], "not finite"),
    ],
)
def test_what_is_no_command_is_refused_and_the_last_one_held(action, reason):
    safety = Safety(2, DT, SafetyConfig(), [-1, -1], [1, 1])
    assert safety.step(action).action is None  # there is nothing to hold yet
    safety.step([0.3, 0.7])
    verdict = safety.step(action)
    assert (verdict.action.tolist(), verdict.refused, verdict.clamps) == ([0.3, 0.7], reason, {})
    assert safety.counts == {f"refusal: {reason}": 2}
    assert safety.step([0.4, 0.6]).action.tolist() == [0.4, 0.6]


@pytest.mark.parametrize("kind", LIMITS)
def test_holding_is_braking_to_rest_within_the_limits(kind):
    limits, random = LIMITS[kind], np.random.default_rng(0)
    safety = make(limits)
    sent = [safety.step(action).action for action in random.uniform(LOW, HIGH, (5, 3)).repeat(12, 0)[:55]]
    moving = len(sent)
    while not safety.resting:
        sent.append(safety.refuse("test").action)
    path = np.array(sent)
    for quantity, values in differences(np.concatenate([np.repeat(path[:1], 3, 0), path])).items():
        assert (np.abs(values) <= limit(limits, quantity) + ROUNDING).all()
    assert ((path >= LOW) & (path <= HIGH)).all()
    assert safety.refuse("test").action.tobytes() == path[-1].tobytes()
    if kind in ("none", "velocity"):
        assert (path[moving:] == path[moving - 1]).all()


def test_the_safe_action_may_be_zero_a_vector_or_a_function():
    action = np.array([0.9, 0.1, 0.2])
    zero = Safety(3, DT, SafetyConfig(safe_action="zero"), LOW, HIGH)
    assert zero.refuse("test").action.tolist() == [0, 0, 0]
    vector = Safety(3, DT, SafetyConfig(safe_action="vector", safe_vector=[0.1, 0.2, 0.3]), LOW, HIGH)
    assert vector.refuse("test").action.tolist() == [0.1, 0.2, 0.3]
    seen = []

    def function(observation, last):
        seen.append((observation, last))
        return np.array([-5.0, 0.0, 0.1])

    own = Safety(3, DT, SafetyConfig(safe_action="zero"), LOW, HIGH, safe_action=function)
    own.step(action)
    assert own.refuse("test", {"state": 1}).action.tolist() == [-1.0, 0.0, 0.1]  # bounds hold for it too
    assert seen[0][0] == {"state": 1}
    assert seen[0][1].tolist() == action.tolist()


def test_the_way_to_the_safe_action_keeps_to_the_limits():
    safety = Safety(1, DT, SafetyConfig(velocity=[1.0], safe_action="zero"))
    safety.reset([0.05])
    assert [safety.refuse("test").action[0] for _ in range(4)] == pytest.approx([0.03, 0.01, 0.0, 0.0])


@pytest.mark.parametrize("answer", [[math.nan, 0.0], [1.0], None, "raise"])
def test_a_safe_action_that_fails_is_replaced_by_holding(answer, caplog):
    def function(observation, last):
        if answer == "raise":
            raise RuntimeError("no idea")
        return answer

    safety = Safety(2, DT, SafetyConfig(), safe_action=function)
    safety.step([1.0, 2.0])
    assert safety.refuse("test").action.tolist() == [1.0, 2.0]
    assert LINES.drain(10)
    assert ("no idea" in caplog.text) == (answer == "raise")


@pytest.mark.parametrize("kind", LIMITS)
def test_holding_brings_rates_to_rest_and_keeps_positions(kind):
    limits = LIMITS[kind]
    safety = Safety(3, DT, SafetyConfig(**limits, rest=[0.0, None, 0.1]), LOW, HIGH)
    assert safety.refuse("test").action is None  # nothing to hold yet
    safety.reset([0.0, 0.0, 0.0])
    sent = [safety.step([0.9, 0.5, -0.6]).action for _ in range(60)]
    sent.append(safety.refuse("test").action)
    while not safety.resting:
        sent.append(safety.refuse("test").action)
    path = np.array(sent)
    for quantity, values in differences(np.concatenate([np.zeros((3, 3)), path])).items():
        assert (np.abs(values) <= limit(limits, quantity) + ROUNDING).all()
    assert path[-1, [0, 2]].tolist() == [0.0, 0.1]
    assert path[-1, 1] == pytest.approx(0.5)  # it rested there already


def test_old_observations_and_old_chunks_are_refused():
    safety = Safety(1, DT, SafetyConfig(max_observation_age_s=0.1, max_chunk_age_s=0.5))
    ages = [
        (0.1, 0.5, ""),
        (0.11, 0.0, "stale observation"),
        (0.0, 0.6, "stale chunk"),
        (math.nan, 0, "impossible obs.*"),
    ]
    for observation_age_s, chunk_age_s, refused in ages:
        verdict = safety.step([1.0], observation_age_s=observation_age_s, chunk_age_s=chunk_age_s)
        assert re.fullmatch(refused, verdict.refused)
    relaxed = Safety(1, DT, SafetyConfig(max_observation_age_s=None))
    assert not relaxed.step([1.0], observation_age_s=1e9, chunk_age_s=1e9).refused


@pytest.mark.parametrize("age_s", [-1.8e9, -0.02, -math.inf, math.nan, math.inf, 1.8e9])
def test_an_age_that_cannot_be_does_not_switch_the_limit_off(age_s, caplog):
    safety = Safety(1, DT, SafetyConfig(max_observation_age_s=0.1, max_chunk_age_s=0.5))
    safety.reset([0.5])
    for name in ("observation", "chunk"):
        verdict = safety.step([1.0], **{f"{name}_age_s": age_s})
        assert (verdict.refused, verdict.action.tolist()) == (f"impossible {name} age", [0.5])
    assert LINES.drain(10)
    assert "on the clock of time.monotonic()" in caplog.text
    assert not safety.step([1.0], observation_age_s=-0.005, chunk_age_s=-0.005).refused  # clocks agree so far


@pytest.mark.parametrize("limit", [1e-30, 1e-12, 1.0, 1e12, 1e38, 1e300])
@pytest.mark.parametrize("bound", [1e-40, 1.0, 3e38, math.inf])
def test_whatever_the_limits_a_command_is_a_finite_number_within_the_bounds(bound, limit):
    largest, random = float(np.finfo(np.float32).max), np.random.default_rng(0)
    sizes = [0.0, 1e-45, 1e-10, 1.0, 1e20, 3e38]
    for names in (("velocity",), ("acceleration", "chunk_jump"), ("jerk",), ("velocity", "acceleration", "jerk")):
        limits: Any = {name: [limit] for name in names}
        safety = Safety(1, 1.0, SafetyConfig(**limits), [-bound], [bound])
        for step in range(40):
            asked = random.choice([-1, 1]) * random.choice(sizes)
            verdict = safety.step([asked if step % 9 else math.nan], chunk_start=step % 5 == 0)
            assert verdict.action is None or abs(verdict.action[0]) <= min(bound, largest)


def test_a_jump_between_chunks_is_spread_and_the_motion_of_the_chunk_stays():
    safety = Safety(2, DT, SafetyConfig(chunk_jump=[0.2, math.inf]))
    safety.step([0.0, 0.0], chunk_start=True)
    chunk = [[1.0, 1.0], [1.1, 5.0], [1.2, 1.0], [1.3, 2.0], [1.4, 1.0], [1.5, 1.0]]
    verdicts = [safety.step(action, chunk_start=k == 0) for k, action in enumerate(chunk)]
    assert [v.action[0] for v in verdicts] == pytest.approx([0.2, 0.5, 0.8, 1.1, 1.4, 1.5])  # late by 0.8, 0.6 .. 0.0
    assert [v.action[1] for v in verdicts] == [1, 5, 1, 2, 1, 1]
    assert [v.clamps for v in verdicts] == [{"chunk": (0,)}] * 4 + [{}] * 2
    assert verdicts[4].action[0] == 1.4
    assert safety.step([9.0, 0.0]).action[0] == 9.0  # inside a chunk there is no such limit
    assert safety.step([9.15, 0.0], chunk_start=True).action[0] == 9.15


def test_after_a_refusal_a_chunk_begins():
    safety = Safety(1, DT, SafetyConfig(chunk_jump=[0.25]))
    safety.step([0.0])
    safety.step([math.nan])
    assert [safety.step([1.0]).action[0] for _ in range(4)] == [0.25, 0.5, 0.75, 1.0]


def box() -> Box:
    return Box("hand", dimensions=[0, 2], actions=[1, 0], gain=[0.1, -0.5], low=[0.0, -1.0], high=[1.0, 1.0])


@pytest.mark.parametrize(
    ("hand", "action", "followed"),
    [
        ([0.5, 9.0, 0.0], [0.3, 2.0], [0.3, 2.0]),
        ([0.5, 9.0, 0.0], [3.0, 7.0], [2.0, 5.0]),  # z may fall by 1 at -0.5 per action, x grow by 0.5 at 0.1
        ([0.5, 9.0, 0.0], [-3.0, -7.0], [-2.0, -5.0]),
        ([1.2, 9.0, -1.5], [1.0, 0.5], [0.0, 0.0]),  # already outside: no further out
        ([1.2, 9.0, -1.5], [-1.0, -0.5], [-1.0, -0.5]),  # but back in
    ],
)
def test_a_box_cuts_displacements_short(hand, action, followed):
    safety = Safety(2, DT, SafetyConfig(), workspace=box())
    verdict = safety.step(action, {"hand": np.array(hand, np.float32)})
    assert verdict.action == pytest.approx(followed)
    point = np.array(hand)[[0, 2]] + np.array([0.1, -0.5]) * verdict.action[[1, 0]]
    before = np.array(hand)[[0, 2]]
    assert (point <= np.maximum(before, 1) + 1e-6).all()
    assert (point >= np.minimum(before, [0, -1]) - 1e-6).all()
    assert (set(verdict.clamps) == {"workspace"}) == (action != followed)


@pytest.mark.parametrize("limits", [{"velocity": [2.0]}, {"acceleration": [20.0]}, {"chunk_jump": [0.3]}, {}])
@pytest.mark.parametrize("config", [{}, {"rest": [0.0]}, {"safe_action": "vector", "safe_vector": [1.0]}])
def test_nothing_carries_the_point_past_the_box(limits, config):
    """Wherever the policy wants to go, held back by limits of change, and through refusals."""
    wall = Box("hand", dimensions=[0], actions=[0], gain=[0.1], low=[0.0], high=[1.0])
    safety = Safety(1, DT, SafetyConfig(**limits, **config), [-1.0], [1.0], wall)
    random, hand, before = np.random.default_rng(0), 0.5, 0.0
    safety.reset([0.0])
    for step in range(300):
        asked = math.nan if step % 10 > 7 else random.uniform(-1, 1) + (1.0 if step // 50 % 2 else -1.0)
        verdict = safety.step([asked], {"hand": np.array([hand])}, chunk_start=step % 7 == 0)
        hand += 0.1 * verdict.action[0]
        assert -1e-9 <= hand <= 1 + 1e-9
        if "velocity" in limits and "workspace" not in verdict.clamps:
            assert abs(verdict.action[0] - before) <= 2.0 * DT + 1e-9
        before = verdict.action[0]
    assert safety.counts["clamp: workspace"] > 10


def test_where_the_point_is_not_known_nothing_is_allowed():
    safety = Safety(2, DT, SafetyConfig(rest=[0.0, 0.0]), workspace=box())
    safety.step([0.1, 0.1], {"hand": np.array([0.5, 0.0, 0.5])})
    for hand in ([math.nan, 0.0, 0.5], [0.5, 0.0, -math.inf]):
        verdict = safety.step([5.0, 5.0], {"hand": np.array(hand)})
        assert (verdict.refused, verdict.action.tolist()) == ("workspace", [0.0, 0.0])


def test_a_workspace_that_refuses_what_limits_have_made_of_a_command():
    """It allows the command, but no way to it: the last command is held, and the step counts once."""
    safety = Safety(1, DT, SafetyConfig(velocity=[1.0]), workspace=lambda _, c: c if c[0] in (0.0, 1.0) else None)
    safety.reset([0.0])
    verdict = safety.step([1.0], {})
    assert (verdict.refused, verdict.action.tolist()) == ("workspace", [0.0])


@pytest.mark.parametrize("answer", [None, [0.0], [math.inf, 0.0], "raise"])
def test_a_workspace_function_can_refuse(answer):
    def function(observation, command):
        return np.array([0.5, 0.5]) if observation["fine"] else observation[answer] if answer == "raise" else answer

    safety = Safety(2, DT, SafetyConfig(), workspace=function)
    assert safety.step([0.1, 0.2], {"fine": True}).action.tolist() == [0.5, 0.5]
    verdict = safety.step([0.1, 0.2], {"fine": False})
    assert (verdict.refused, verdict.action.tolist()) == ("workspace", [0.5, 0.5])


def test_a_missing_observation_is_a_refusal_and_not_an_end():
    safety = Safety(2, DT, SafetyConfig(), workspace=box())
    safety.reset([0.0, 0.0])
    assert safety.step([1.0, 1.0]).refused == "workspace"


@pytest.mark.parametrize("kind", LIMITS)
def test_a_reset_forgets_everything_but_the_counts(kind):
    asked = SEQUENCES["walk"]
    used, fresh = make(LIMITS[kind], chunk_jump=[0.1]), make(LIMITS[kind], chunk_jump=[0.1])
    for k, action in enumerate(SEQUENCES["huge noise"]):
        used.step(action if k % 20 else [math.nan] * 3, chunk_start=k % 8 == 0)
    before = used.counts.copy()
    used.reset()
    for action in asked[:40]:
        assert used.step(action).action.tobytes() == fresh.step(action).action.tobytes()
    assert used.counts - before == fresh.counts


def test_the_start_is_where_the_robot_rests():
    safety = Safety(1, DT, SafetyConfig(velocity=[1.0]), [-1.0], [1.0])
    safety.reset([0.5])
    assert safety.last.tolist() == [0.5]
    assert safety.step([1.0]).action.tolist() == [0.52]
    with pytest.raises(ValueError, match=re.escape("start [2.0] lies outside the bounds [-1.0] to [1.0]")):
        safety.reset([2.0])


@pytest.mark.parametrize("bound", [1.0, 0.3, 700.0])
def test_a_start_may_lie_beyond_a_bound_by_what_float32_cannot_tell(bound):
    safety = Safety(2, DT, SafetyConfig(velocity=[1.0]), [-bound, -bound], [bound, bound])
    beyond = bound * (1 + 1e-7)
    safety.reset([beyond, -beyond])
    assert safety.last.tolist() == [bound, -bound]
    assert safety.step([0.0, 0.0]).action == pytest.approx([bound - DT, DT - bound])
    with pytest.raises(ValueError, match=r"start .* lies outside the bounds .* in dimensions \[1\]"):
        safety.reset([beyond, -bound * (1 + 1e-5)])


def test_a_safe_command_may_be_written_as_a_number_that_float32_rounds_down():
    high = float(np.float32(0.7))  # .699999988
    safety = Safety(1, DT, SafetyConfig(safe_action="vector", safe_vector=[0.7]), [-high], [high])
    assert safety.refuse("test").action.tolist() == [high]
    rests = Safety(1, DT, SafetyConfig(rest=[0.7]), [-high], [high])
    rests.reset([0.0])
    assert rests.refuse("test").action.tolist() == [high]


@pytest.mark.parametrize("kind", LIMITS)
def test_a_rollback_forgets_the_last_command(kind):
    with_it, without = make(LIMITS[kind]), make(LIMITS[kind])
    for k, action in enumerate(SEQUENCES["walk"][:40]):
        if k % 7 == 3:
            with_it.step(-action) if k % 2 else with_it.refuse("test")
            with_it.rollback()
        assert with_it.step(action).action.tobytes() == without.step(action).action.tobytes()


def test_the_first_of_its_kind_is_a_warning(caplog):
    caplog.set_level(logging.DEBUG, "flowhand.control.safety")
    safety = Safety(1, DT, SafetyConfig(), [-1.0], [1.0])
    for action in (3.0, -4.0, math.nan):
        safety.step([action])
    safety.reset()
    safety.step([3.0])
    assert LINES.drain(10)
    told = [(record.levelno, record.getMessage()) for record in caplog.records]
    assert told[0] == (logging.WARNING, "clamp: bounds in dimensions (0,) of [3.]")
    assert told[1] == (logging.DEBUG, "clamp: bounds in dimensions (0,) of [-4.]")
    assert told[2][0] == logging.WARNING
    assert told[2][1].startswith("refusal: not finite")
    assert told[3][0] == logging.DEBUG


def test_bounds_and_period_come_from_the_specification():
    spec = Spec({"state": Feature((1,), "float32", "m")}, Feature((2,), "float32", "", (-1.0, -2.0), (1.0, 2.0)), 0.5)
    safety = Safety.for_spec(spec, SafetyConfig(low=[-0.5], high=[5.0, 1.5], velocity=[1.0]))
    assert safety.step([-9.0, 9.0]).action.tolist() == [-0.5, 1.5]
    assert safety.step([9.0, -9.0]).action.tolist() == [0.0, 1.0]
    faster = Safety.for_spec(spec, SafetyConfig(velocity=[1.0]), control_dt_s=0.1)
    faster.reset([0.0, 0.0])
    assert faster.step([1.0, 1.0]).action.tolist() == [0.1, 0.1]
    unknown = Spec(spec.observation, Feature((2,), "float32", ""), 0.5)
    assert Safety.for_spec(unknown).step([1e30, -1e30]).action.tolist() == [1e30, -1e30]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"velocity": [0.0]}, "safety.velocity=[0.0] must be positive"),
        ({"jerk": [1.0, math.nan, 1.0]}, "safety.jerk=[1.0, nan, 1.0] must be positive"),
        ({"chunk_jump": [-1.0]}, "safety.chunk_jump=[-1.0] must be positive"),
        ({"max_chunk_age_s": 0.0}, "safety.max_chunk_age_s=0.0 must be positive seconds"),
        ({"safe_action": "stop"}, "safety.safe_action='stop' is unknown; choices: hold, zero, vector"),
        ({"safe_action": "vector"}, "safety.safe_vector belongs to safety.safe_action=vector"),
        ({"safe_vector": [1.0]}, "safety.safe_vector belongs to safety.safe_action=vector"),
        (
            {"velocity": [1.0, 2.0]},
            "velocity is [1.0, 2.0]: expected one number for all dimensions, or one for each",
        ),
        ({"low": [math.nan]}, "low is [nan]: expected one number"),
        ({"low": [math.inf], "high": [math.inf]}, "no command lies between low [inf, inf, inf] and high"),
        ({"jerk": [1e-30]}, "must be 1e-30 or more"),
        ({"low": [2.0]}, "no command lies between low [2.0, 2.0, 2.0] and high [1."),
        ({"rest": [0.0], "safe_action": "zero"}, "safety.rest belongs to safety.safe_action=hold, and that is zero"),
        ({"rest": [None, 9.0, 0.0]}, "rest [0.0, 9.0, 0.0] lies outside the bounds"),
        ({"rest": [0.0, 0.0]}, "rest is [0.0, 0.0]: expected one number"),
        ({"safe_action": "zero", "low": [0.1]}, "safe_vector [0.0, 0.0, 0.0] lies outside the bounds [0.1"),
    ],
)
def test_a_wrong_limit_is_an_error(config, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Safety(3, DT, SafetyConfig(**config), LOW, HIGH)


def test_a_wrong_period_or_box_is_an_error():
    with pytest.raises(ValueError, match="control_dt_s is 0"):
        Safety(3, 0.0)
    with pytest.raises(ValueError, match="a box needs lists of one length, got"):
        Box("hand", [0])
    with pytest.raises(ValueError, match="gains that are not zero and low < high"):
        Box("hand", [0], [0], [0.0], [0.0], [1.0])


def test_a_robot_needs_no_torch_for_it():
    code = "import sys, flowhand.control.safety, flowhand.control.limits.workspace; "
    code += "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"torch", "policies", "envs", "hydra", "mujoco"} & set(done.stdout.split()) == set()
    assert "numpy" in done.stdout
