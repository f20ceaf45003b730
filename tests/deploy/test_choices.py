"""A dimension that is a choice: whatever limits say, the robot is told one of its indices, or nothing."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import numpy as np
import pytest

from flowhand.contracts.features import Feature, Spec
from flowhand.control import safety
from flowhand.control.limits.workspace import Box

Safety: Any = safety.Safety  # Any, since its commands are None only before the first
SafetyConfig: Any = safety.SafetyConfig
DT = 0.05
CHOICES = (0, 3, 0, 2)
LOW, HIGH = (-1.0, 0.0, -2.0, 0.0), (1.0, 2.0, 2.0, 1.0)
CONTINUOUS, DISCRETE = [0, 2], [1, 3]
LIMITS = [
    {},
    {"velocity": [5.0]},
    {"velocity": [5.0, math.inf, 1.0, math.inf], "chunk_jump": [0.1]},
    {"acceleration": [20.0], "chunk_jump": [0.2, math.inf, 0.1, math.inf]},
    {"velocity": [3.0], "acceleration": [40.0], "jerk": [900.0]},
    {"low": [0.5], "high": [0.7], "velocity": [0.2]},  # of the continuous ones
    {"low": [-0.5, 0.0, -0.5, -math.inf], "high": [0.5, 2.0, 0.5, 1.0], "jerk": [100.0]},
]
SAFE = [{}, {"rest": [0.0]}, {"rest": [0.0, 1.0, None, None]}, {"safe_action": "zero"}]
CASES = [each for each in itertools.product(LIMITS, SAFE) if each[0].get("low") != [0.5] or not each[1]]  # 0 < 0.5


def make(config: Any, **options) -> Any:
    action = Feature((4,), "float32", "", LOW, HIGH, CHOICES)
    spec = Spec({"state": Feature((1,), "float32", "")}, action, DT)
    return Safety.for_spec(spec, config, **options)


def asked(steps: int = 120) -> np.ndarray:
    random = np.random.default_rng(0)
    return np.stack([random.normal(0, 2, steps) if n == 0 else random.integers(0, n, steps) for n in CHOICES], 1)


def of_continuous(values):
    return [values[i] for i in CONTINUOUS] if values is not None and len(values) > 1 else values


@pytest.mark.parametrize(("limits", "safe"), CASES)
def test_limits_touch_the_continuous_dimensions_alone(limits, safe):
    """They are as without the others; the others are what the policy chose."""
    both = make(SafetyConfig(**limits, **safe))
    config = SafetyConfig(**{k: of_continuous(v) if k != "safe_action" else v for k, v in {**limits, **safe}.items()})
    alone = Safety(2, DT, config, of_continuous(LOW), of_continuous(HIGH))
    before: Any = None
    for step, action in enumerate(asked()):
        start = step % 8 == 0
        if step % 10 < 8:
            verdict = both.step(action, chunk_start=start)
            expected = alone.step(action[CONTINUOUS], chunk_start=start)
            before = action[DISCRETE]
        else:
            verdict, expected = both.refuse("test"), alone.refuse("test")
            rest = safe.get("rest", [None])
            before = np.zeros(2) if safe.get("safe_action") else [1.0, before[1]] if len(rest) > 1 else before
        assert verdict.action[CONTINUOUS].tobytes() == expected.action.tobytes()
        assert verdict.action[DISCRETE].tolist() == list(before)
        assert {reason: [CONTINUOUS.index(i) for i in dims] for reason, dims in verdict.clamps.items()} == {
            reason: list(dims) for reason, dims in expected.clamps.items()
        }
    while not both.resting:
        assert both.refuse("test").action[1] in (0, 1, 2)


@pytest.mark.parametrize("wrong", [0.25, 2.5, -1.0, 3.0, 1.0000001, 1e30, -0.5])
def test_what_is_no_index_is_refused_whoever_says_it(wrong):
    good = [0.1, 1.0, 0.2, 1.0]
    bad = [0.1, wrong, 0.2, 1.0]
    safety = make(SafetyConfig(velocity=[5.0]))
    safety.reset(good)
    assert (safety.step(bad).refused, safety.last.tolist()) == ("choice", good)
    box = make(SafetyConfig(), workspace=lambda observation, command: bad)
    assert box.step(good, {}).refused == "workspace"
    safe = make(SafetyConfig(), safe_action=lambda observation, last: bad)
    safe.reset(good)
    assert safe.refuse("test").action.tolist() == good  # held, as where it raises
    late = make(SafetyConfig(velocity=[1.0]), workspace=lambda _, c: c if c[0] in (0.1, 0.9) else bad)
    late.reset(good)
    assert (late.step([0.9, 0.0, 0.2, 1.0], {}).refused, late.last.tolist()) == ("workspace", good)
    for name, build in {
        "start": lambda: safety.reset(bad),
        "safe_vector": lambda: make(SafetyConfig(safe_action="vector", safe_vector=bad)),
        "rest": lambda: make(SafetyConfig(rest=bad)),
    }.items():
        if abs(wrong - round(wrong)) > 1e-6 or not -1e-6 < wrong < 2 + 1e-6:
            with pytest.raises(ValueError, match=re.escape(f"{name} {bad} lies outside") + r".*or is no choice.*\[1\]"):
                build()
        else:  # an index in the precision of float32
            build()


def test_a_workspace_may_choose_otherwise():
    safety = make(SafetyConfig(velocity=[1.0]), workspace=lambda _, command: [command[0], 0.0, command[2], 0.0])
    safety.reset([0.0, 2.0, 0.0, 1.0])
    verdict = safety.step([0.9, 2.0, 0.0, 1.0], {})
    assert verdict.action == pytest.approx([0.05, 0.0, 0.0, 0.0])
    assert verdict.clamps == {"workspace": (1, 3), "velocity": (0,)}


@pytest.mark.parametrize("name", ["velocity", "acceleration", "jerk", "chunk_jump"])
def test_a_limit_of_change_for_a_choice_is_an_error(name):
    with pytest.raises(ValueError, match=f"{name} is .* but dimensions \\[1, 3\\] are choices and have none; put inf"):
        make(SafetyConfig(**{name: [1.0, 1.0, 1.0, 5.0]}))


@pytest.mark.parametrize(("name", "values"), [("low", [-1.0, 1.0, -1.0, 0.0]), ("high", [1.0, 1.0, 1.0, 1.0])])
def test_bounds_that_exclude_a_choice_are_an_error(name, values):
    with pytest.raises(ValueError, match=f"{name} is .* but dimensions .1. are choices"):
        make(SafetyConfig(**{name: values}))


def test_a_box_displaces_no_choice():
    box = Box("state", dimensions=[0], actions=[1], gain=[0.1], low=[0.0], high=[1.0])
    with pytest.raises(ValueError, match=r"workspace.actions has \[1\], which are choices"):
        make(SafetyConfig(), workspace=box)
