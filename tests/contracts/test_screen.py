"""The contract of screens: features that go to JSON and back, pointers that fit, and what makes a plan stale."""

from dataclasses import replace

import numpy as np
import pytest

from flowhand.contracts.features import Feature, Spec
from flowhand.contracts.screen.fields import (
    ACTIONS,
    ELEMENTS,
    FIELDS,
    NUMBERS,
    action_feature,
    observation_features,
    pixel_action_feature,
    stale,
)


@pytest.mark.parametrize("action", [action_feature(), pixel_action_feature()])
def test_the_specification_goes_to_json_and_back(action):
    spec = Spec(observation_features(), action, None)
    assert Spec.from_dict(spec.to_dict()) == spec


def test_every_action_uses_fields_that_it_has():
    action = action_feature()
    assert action.uses is not None
    assert action.choices is not None
    assert len(action.uses) == len(ACTIONS) == action.choices[0]
    used = {FIELDS[place] for each in action.uses for place in each}
    assert used == set(FIELDS) - {"action"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pointers": ((5, "elements"),)}, "is no choice"),
        ({"pointers": ((1, "elements"), (1, "words"))}, "twice"),
        ({"pointers": ((1,),)}, "expected its dimension and the name"),
        ({"uses": ((1,),)}, "one for each choice of dimension 0"),
        ({"uses": ((99,),) * len(ACTIONS)}, "must name dimensions from 1"),
    ],
)
def test_pointers_and_uses_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(action_feature(), **change)


def test_a_pointer_needs_an_observation_with_as_many_rows():
    features = observation_features()
    features["elements"] = Feature((ELEMENTS - 1, len(NUMBERS)), "float32", "", kind="elements")
    with pytest.raises(ValueError, match=r"points at 64 rows of 'elements'"):
        Spec(features, action_feature(), None)


def screen() -> dict[str, np.ndarray]:
    observation = {name: np.zeros(f.shape, f.dtype) for name, f in observation_features().items()}
    observation["elements"][:3, NUMBERS.index("present")] = 1
    observation["element_strings"][:3] = np.random.default_rng(0).integers(97, 122, (3, 5, 24))
    return observation


def click(row: int) -> np.ndarray:
    action = np.zeros(len(FIELDS), np.float32)
    action[[0, 1]] = ACTIONS.index("click"), row
    return action


def test_a_plan_is_stale_when_what_it_points_at_has_gone_or_changed():
    seen, now = screen(), screen()
    assert not stale(click(1), seen, now)
    now["element_strings"][1, 2] += 1  # its value, which typing changes
    now["elements"][1, 1] += 0.5  # its place
    assert not stale(click(1), seen, now)
    now["element_strings"][1, 1] += 1
    assert stale(click(1), seen, now)
    assert not stale(click(2), seen, now)
    now = screen()
    now["elements"][1, NUMBERS.index("present")] = 0
    assert stale(click(1), seen, now)
    assert not stale(np.zeros(len(FIELDS), np.float32), seen, now)  # stop points at nothing
