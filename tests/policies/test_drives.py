"""What a policy is asked to drive must have its observation and action: one line says what does not fit."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

import envs
from flowhand.contracts.features import Feature, Spec
from flowhand.contracts.planner import require_drives
from flowhand.evaluation.rollout import rollout

STATE = Feature((3,), "float32", "rad", names=("a", "b", "c"))
ACTION = Feature((4,), "float32", "rad", (-1.0,) * 4, (1.0,) * 4, names=("a", "b", "c", "d"), wraps=(3,))
SPEC = Spec({"state": STATE}, ACTION, 0.1)


def with_action(**changes) -> Spec:
    return replace(SPEC, action=replace(SPEC.action, **changes))


@pytest.mark.parametrize(
    ("driven", "message"),
    [
        (
            replace(SPEC, observation={"pose": STATE}),
            r"arm has the features \['action', 'pose'\], the policy expects \['act",
        ),
        (
            with_action(shape=(3,), low=None, high=None, names=None, wraps=None),
            r"'action' with shape \(3,\), the policy ex",
        ),
        (with_action(dtype="float64"), "arm has 'action' with dtype 'float64', the policy expects 'float32'"),
        (with_action(unit="deg"), "arm has 'action' with unit 'deg', the policy expects 'rad'"),
        (with_action(names=("b", "a", "c", "d")), r"'action' with names \('b', 'a', .*, the policy expects \('a', 'b'"),
        (with_action(wraps=(2,)), r"'action' with wraps \(2,\), the policy expects \(3,\)"),
        (with_action(choices=(0, 2, 0, 0)), r"'action' with choices \(0, 2, 0, 0\), the policy expects \(0, 0, 0, 0\)"),
        (
            replace(SPEC, observation={"state": replace(STATE, unit="m")}),
            "arm has 'state' with unit 'm', the policy exp",
        ),
    ],
)
def test_what_does_not_fit_is_refused(driven, message):
    with pytest.raises(ValueError, match=message) as refused:
        require_drives(SPEC, driven, "the arm")
    assert "\n" not in str(refused.value)


def test_another_form_of_a_rotation_is_refused():
    turned, other = (with_action(wraps=None, rotations=((0, form),)) for form in ("axis_angle", "quaternion_xyzw"))
    with pytest.raises(
        ValueError, match=r"rotations \(\(0, 'quaternion_xyzw'\),\), the policy expects \(\(0, 'axis_angle'"
    ):
        require_drives(turned, other, "the arm")


@pytest.mark.parametrize(
    "driven",
    [
        SPEC,
        with_action(unit="", names=None, wraps=None),  # which says less
        with_action(low=None, high=(9.0,) * 4, choices=(0,) * 4),
        replace(SPEC, control_dt_s=0.02),
    ],
)
def test_what_says_less_or_has_other_limits_fits(driven):
    require_drives(SPEC, driven, "the arm")
    require_drives(driven, SPEC, "the arm")


def test_an_evaluation_asks_before_the_first_episode():
    class Nothing:
        def reset(self, lane, seed):
            raise AssertionError("an episode began")

        def act(self, observations):
            return {lane: np.zeros(2, np.float32) for lane in observations}

    config = envs.DetourConfig(max_steps=3)
    spec = envs.make(config).features
    other = replace(spec, action=replace(spec.action, unit="furlong"))
    with pytest.raises(ValueError, match=r"'action' with unit .*, the policy expects 'furlong'"):
        rollout(partial(envs.make, config), Nothing(), [1_000_000], spec=other)
