import json
import math
import re
from dataclasses import replace

import pytest
import torch

from flowhand.contracts.features import RESERVED, Feature, Spec
from flowhand.contracts.planner import check_spec
from policies import Batch

VECTOR = {"shape": [2], "dtype": "float32", "unit": "m", "low": [-1.0, -2.0], "high": [1.0, 2.0]}
IMAGE = {"shape": [4, 6, 3], "dtype": "uint8", "unit": "", "low": None, "high": None}
SPEC = {"observation": {"state": VECTOR, "image": IMAGE}, "action": VECTOR, "control_dt_s": 0.05}


def test_a_specification_survives_its_json_form():
    spec = Spec.from_dict(SPEC)
    assert spec.observation["image"] == Feature((4, 6, 3), "uint8", "")
    assert spec.action == Feature((2,), "float32", "m", (-1.0, -2.0), (1.0, 2.0), kind="action")
    assert spec.control_dt_s == 0.05
    text = json.dumps(spec.to_dict())
    assert json.loads(text) == SPEC
    assert Spec.from_dict(json.loads(text)) == spec


def test_what_is_not_usual_stands_in_the_json_form_too():
    feature = Feature((2, 3), "uint16", "mm", kind="depth", camera="wrist")
    state = Feature((2,), "float64", "rad", (-math.inf, -1.0), None, names=("elbow", "wrist"), wraps=(0,))
    spec = Spec({"depth": feature, "state": state}, Feature((1,), "int64", "", choices=(3,)), None)
    data = spec.to_dict()
    assert data["observation"]["depth"]["kind"] == "depth"
    assert data["observation"]["state"]["low"] == [None, -1.0]
    assert Spec.from_dict(json.loads(json.dumps(data, allow_nan=False))) == spec


def test_a_policy_takes_states_in_float32_and_images_in_uint8():
    spec = Spec.from_dict(SPEC)
    check_spec(spec)
    for feature in (Feature((2,), "float64", ""), Feature((2, 2), "uint16", "mm"), Feature((1,), "str", "")):
        with pytest.raises(ValueError, match=f"the observation 'odd' is {feature.dtype} of kind"):
            check_spec(replace(spec, observation={"odd": feature}))
    with pytest.raises(ValueError, match="the action is float64, a policy gives float32"):
        check_spec(replace(spec, action=Feature((2,), "float64", "m")))


def test_size_counts_all_values():
    assert Feature((4, 6, 3), "uint8", "").size == 72


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "complex64"}, "feature dtype 'complex64' is unknown; choices: float16, float32, float64, uint8, "),
        ({"dtype": ["float32"]}, "feature dtype ['float32'] is unknown"),
        ({"unit": 5}, "feature unit is 5, expected a string"),
        ({"shape": []}, "feature shape () must be 1 to 31 positive integers"),
        ({"shape": [0]}, "feature shape (0,) must be 1 to 31 positive integers"),
        ({"low": [0.0]}, "feature bound 'low' has 1 values, expected 2"),
        ({"high": [0.0, 0.0, 0.0]}, "feature bound 'high' has 3 values, expected 2"),
        ({"high": [0.0, float("nan")]}, "feature bound 'high' is (0.0, nan); write inf for a dimension that has none"),
        ({"low": [0.0, float("inf")]}, "feature bound 'low' is (0.0, inf); write -inf for a dimension"),
        ({"kind": "sound"}, "feature kind 'sound' is unknown; choices: state, image, depth, text, elements, action"),
        ({"kind": "image"}, "kind 'image' is float32 of shape (2,), expected uint8 of shape (height, width, channels)"),
        ({"kind": "text"}, "a feature of kind 'text' is float32 of shape (2,), expected text"),
        ({"dtype": "str"}, "feature bound 'low' has 2 values, expected none: it is text"),
        ({"names": ["x"]}, "feature names ('x',) must be 2 strings"),
        ({"wraps": [2]}, "feature wraps (2,) must be places on the last axis, 0 to 1"),
        ({"camera": "wrist"}, "a feature of kind 'state' has the camera 'wrist'; only images have one"),
        ({"colour": "red"}, "a feature has fields ['colour', 'dtype', 'high', 'low', 'shape', 'unit'], expected"),
    ],
)
def test_a_wrong_feature_is_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Feature.from_dict({**VECTOR, **change})


@pytest.mark.parametrize("shape", [[True, 2], [2, True]])
def test_a_bool_is_no_size(shape):
    with pytest.raises(ValueError, match="must be 1 to 31 positive integers"):
        Feature.from_dict({**VECTOR, "shape": shape, "low": None, "high": None})


def test_a_feature_without_a_field_is_refused():
    with pytest.raises(ValueError, match=re.escape("feature has fields ['dtype', 'high', 'low', 'shape'], expected")):
        Feature.from_dict({k: v for k, v in VECTOR.items() if k != "unit"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation": {}}, "the specification has no observation feature"),
        ({"action": IMAGE}, "kind 'action' is uint8 of shape (4, 6, 3), expected a vector (A,) of numbers"),
        ({"control_dt_s": 0}, "control_dt_s is 0.0, expected a positive number of seconds"),
        ({"control_dt_s": -0.1}, "control_dt_s is -0.1"),
        ({"control_dt_s": float("nan")}, "control_dt_s is nan"),
        ({"control_dt_s": float("inf")}, "control_dt_s is inf"),
        ({"control_dt_s": True}, "control_dt_s is True, expected a positive number of seconds"),
        ({"control_dt_s": "0.1"}, "control_dt_s is '0.1', expected a positive number of seconds"),
        ({"fps": 20}, "specification has fields ['action', 'control_dt_s', 'fps', 'observation'], expected"),
    ],
)
def test_a_wrong_specification_is_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Spec.from_dict({**SPEC, **change})


# "action" would be mistaken for the action, the others cannot name a part of a torch module.
@pytest.mark.parametrize("name", ["action", "observation.state", "", "keys", "train", "_parameters"])
def test_a_name_that_cannot_be_kept_apart_is_refused(name):
    spec = Spec.from_dict(SPEC)
    with pytest.raises(ValueError, match=re.escape(f"the observation name {name!r}")):
        replace(spec, observation={name: spec.action})


def test_every_name_of_a_torch_module_is_reserved():
    assert {name for name in dir(torch.nn.ModuleDict()) if not name.startswith("_")} <= RESERVED


def test_annotations_are_checked_under_pytest():
    """The import hook of conftest.py is at work: a mask that does not belong to the actions is refused."""
    with pytest.raises(TypeError, match="mask"):
        Batch({}, torch.zeros(3, 4, 2), torch.ones(4, 4, dtype=torch.bool))
