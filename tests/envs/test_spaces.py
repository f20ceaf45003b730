"""Every action space is a vector and back: Gymnasium itself says what belongs to a space."""

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple, flatten_space

from envs.spaces import ActionVector

MIXED = Dict(
    {
        "arm": Box(-2.0, 2.0, (2, 2), np.float64),
        "gripper": Discrete(2),
        "tool": Discrete(3, start=5),
        "more": Tuple([MultiDiscrete(np.array([[2, 4], [3, 2]]), start=np.array([[0, 1], [0, 0]])), MultiBinary(3)]),
    }
)
SPACES = [MIXED, Discrete(2), Discrete(4, start=-1), MultiDiscrete([3, 2]), MultiBinary(2), Box(-1, 1, (3,))]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_any_vector_inside_the_range_is_an_element_of_the_space(space):
    vectors = ActionVector(space)
    rng = np.random.default_rng(0)
    assert vectors.feature.shape == (len(vectors.choices),)
    for _ in range(50):
        continuous = rng.uniform(vectors.low, vectors.high)
        index = [rng.integers(n) if n else value for n, value in zip(vectors.choices, continuous, strict=True)]
        native = vectors.native(np.array(index, np.float32))
        assert space.contains(native), native


def test_every_part_lands_in_its_place():
    vectors = ActionVector(MIXED)
    # Gymnasium sorts the keys of a Dict that it is given as a plain dict: arm, gripper, more, tool.
    assert vectors.choices == [0, 0, 0, 0, 2, 2, 4, 3, 2, 2, 2, 2, 3]
    native = vectors.native(np.array([0.5, -0.5, 1, -1, 1, 1, 3, 2, 0, 0, 1, 1, 2], np.float32))
    np.testing.assert_array_equal(native["arm"], [[0.5, -0.5], [1, -1]])
    assert (native["gripper"], native["tool"]) == (1, 7)
    np.testing.assert_array_equal(native["more"][0], [[1, 4], [2, 0]])
    np.testing.assert_array_equal(native["more"][1], [0, 1, 1])


def test_the_choices_are_as_many_as_gymnasium_counts_in_one_hot():
    discrete = Tuple([Discrete(5), MultiDiscrete([3, 4])])
    assert sum(ActionVector(discrete).choices) == len(flatten_space(discrete).sample())


def test_a_space_without_choices_says_nothing_about_them():
    assert ActionVector(Box(-1, 1, (3,))).feature.choices is None
    assert ActionVector(Box(-np.inf, 1, (3,))).feature.low is None


@pytest.mark.parametrize("value", [3, -1, 0.5, np.nan])
def test_what_is_no_choice_is_refused(value):
    with pytest.raises(ValueError, match=r"action dimension 1 is .*, expected one of its choices 0 to 2"):
        ActionVector(Tuple([Discrete(2), Discrete(3)])).native(np.array([0, value], np.float32))
