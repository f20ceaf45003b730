"""Differences, angles and rotations against brute force in float64 and scipy; round trips; numerics; refusals."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from flowhand.contracts.features import ROTATIONS, Feature, Spec
from policies.representation.config import ActionConfig, declared
from policies.representation.represent import Representation

T, B = 6, 5
NAMES = ("shoulder", "elbow", "wrist", "Gripper.pos")
LEARNED = ("delta", "relative")


def joints(**more) -> Spec:
    """Two states; the action's joints stand in the second of them, in another order, between others."""
    state = Feature((6,), "float32", "rad", names=("wrist", "x", "shoulder", "Gripper.pos", "y", "elbow"))
    other = Feature((2,), "float32", "m", names=("z", "t"))
    return Spec({"other": other, "joints": state}, Feature((4,), "float32", "rad", names=NAMES, **more), 0.05)


def observed(spec: Spec, rows: int = B, history: int = 2, scale: float = 1.0) -> dict[str, torch.Tensor]:
    return {name: scale * torch.randn(rows, history, *f.shape) for name, f in spec.observation.items()}


def random_rotations(form: str, *shape: int) -> np.ndarray:
    return written(Rotation.random(math.prod(shape), rng=np.random.default_rng(7)), form).reshape(*shape, -1)


def written(turn: Rotation, form: str) -> np.ndarray:
    """scipy's rotations in one of the forms."""
    if form == "axis_angle":
        return turn.as_rotvec()
    if form.startswith("quaternion"):
        xyzw = turn.as_quat()
        return xyzw if form == "quaternion_xyzw" else np.roll(xyzw, 1, -1)
    matrix = turn.as_matrix()
    return (matrix[:, :, :2].transpose(0, 2, 1) if form == "rotation_6d" else matrix[:, :2]).reshape(-1, 6)


def of(values: np.ndarray, form: str) -> Rotation:
    """The rotations that these values (..., n) stand for."""
    flat = np.asarray(values, np.float64).reshape(-1, values.shape[-1])
    if form == "axis_angle":
        return Rotation.from_rotvec(flat)
    if form.startswith("quaternion"):
        return Rotation.from_quat(flat if form == "quaternion_xyzw" else np.roll(flat, -1, -1))
    two = flat.reshape(-1, 2, 3)
    rows = np.concatenate([two, np.cross(two[:, :1], two[:, 1:])], axis=1)
    return Rotation.from_matrix(rows if form == "rotation_6d_rows" else rows.transpose(0, 2, 1))


@pytest.mark.parametrize("representation", LEARNED)
def test_differences_are_what_brute_force_says(representation):
    spec = joints()
    made, seen, action = Representation(ActionConfig(representation), spec), observed(spec), torch.randn(B, T, 4)
    found, order = made.encode(action, seen), list(spec.observation["joints"].names or ())
    for row in range(B):
        for dimension, name in enumerate(NAMES):
            anchor = float(seen["joints"][row, -1, order.index(name)])
            for step in range(T):
                value = float(action[row, step, dimension])
                before = (
                    anchor if representation == "relative" or step == 0 else float(action[row, step - 1, dimension])
                )
                expected = value if name == "Gripper.pos" else value - before
                assert float(found[row, step, dimension]) == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(made.decode(found, seen), action, rtol=0, atol=1e-6)


@pytest.mark.parametrize("representation", LEARNED)
@pytest.mark.parametrize(("rows", "steps"), [(4, 4), (1, 1), (6, 4), (4, 6)])  # as many as A, as S, as each other
def test_sizes_that_coincide(representation, rows, steps):
    names = ("a", "b", "c", "d")
    spec = Spec({"state": Feature((4,), "float32", "", names=names)}, Feature((4,), "float32", "", names=names), 0.1)
    made, seen, action = Representation(ActionConfig(representation), spec), observed(spec, rows), None
    action = torch.randn(rows, steps, 4)
    anchor = seen["state"][:, -1].numpy()
    expected = np.stack(
        [
            action[b].numpy() - anchor[b]
            if representation == "relative"
            else np.diff(action[b], axis=0, prepend=anchor[b : b + 1])
            for b in range(rows)
        ]
    )
    np.testing.assert_allclose(made.encode(action, seen), expected, atol=1e-6)


@pytest.mark.parametrize("representation", LEARNED)
def test_nothing_is_lost_beside_a_large_offset(representation):
    """1e4 beside motions of 1e-3: what float32 has of both is kept to the last bit, both ways."""
    spec = joints()
    made = Representation(ActionConfig(representation, absolute=[]), spec)
    seen = {name: 1e4 + 1e-2 * value for name, value in observed(spec).items()}
    action = (1e4 + 1e-3 * torch.randn(B, 50, 4).cumsum(1)).float()
    found = made.encode(action, seen)
    order = [list(spec.observation["joints"].names or ()).index(name) for name in NAMES]
    anchor, wide = seen["joints"][:, -1:, order].double(), action.double()
    before = anchor if representation == "relative" else torch.cat([anchor, wide[:, :-1]], dim=1)
    assert torch.equal(found.double(), wide - before)
    assert found.abs().max() < 0.2
    assert torch.equal(made.decode(found, seen), action)


def test_grippers_and_choices_stay_absolute_unless_told():
    spec = joints(choices=(0, 0, 3, 0))
    moved = [
        Representation(ActionConfig("relative", absolute=absolute), spec)
        .segments[0]
        .get_buffer("moves_N")
        .bool()
        .tolist()
        for absolute in (["gripper"], [], ["shoulder", "1"])
    ]
    assert moved == [[True, True, False, False], [True, True, False, True], [False, False, False, True]]
    made = Representation(ActionConfig("relative"), spec)
    assert made.choices == (0, 0, 3, 0)


def test_anchors_by_feature_name_place_and_range():
    state, other = Feature((6,), "float32", ""), Feature((2,), "float32", "", names=("z", "t"))
    spec = Spec({"state": state, "other": other}, Feature((5,), "float32", ""), 0.05)
    seen, action = observed(spec), torch.zeros(B, T, 5)
    made = Representation(ActionConfig("relative", anchors=["other.t", "none", "state.4", "state.0:2"]), spec)
    s, o = seen["state"][:, -1], seen["other"][:, -1]
    expected = -torch.stack([o[:, 1], torch.zeros(B), s[:, 4], s[:, 0], s[:, 1]], dim=-1)
    torch.testing.assert_close(made.encode(action, seen), expected[:, None].expand(B, T, 5))
    whole = Representation(ActionConfig("relative", anchors=["other", "state.0:3"]), spec)
    expected = -torch.cat([o, s[:, :3]], dim=-1)
    torch.testing.assert_close(whole.encode(action, seen)[:, 0], expected)


def test_the_name_is_looked_for_in_the_feature_that_is_given():
    spec = joints()
    spec = replace(spec, observation={**spec.observation, "last": Feature((4,), "float32", "rad", names=NAMES)})
    with pytest.raises(ValueError, match="'shoulder' is found in joints, last, expected in one feature"):
        Representation(ActionConfig("delta"), spec)
    made, seen = Representation(ActionConfig("delta", anchors=["last"]), spec), observed(spec)
    found = made.encode(torch.zeros(B, T, 4), seen)
    torch.testing.assert_close(found[:, 0, :3], -seen["last"][:, -1, :3])
    assert (found[:, 1:] == 0).all()


@pytest.mark.parametrize("representation", LEARNED)
def test_differences_of_angles_go_the_short_way(representation):
    """Against numpy's unwrap; actions and states wrap in [-pi, pi) wherever they are, and chunks wind several times."""
    spec = joints(wraps=(0, 1))
    made, seen = Representation(ActionConfig(representation), spec), observed(spec, scale=3)
    seen["joints"] = (seen["joints"] + math.pi) % (2 * math.pi) - math.pi
    path = seen["joints"][:, -1:, [2, 5, 0, 3]] + (0.9 * torch.randn(B, 40, 4)).cumsum(1)
    action = path.clone()
    action[..., :2] = (path[..., :2] + math.pi) % (2 * math.pi) - math.pi
    found = made.encode(action, seen)
    anchor = seen["joints"][:, -1, [2, 5]].double().numpy()
    for b in range(B):
        wound = np.unwrap(np.concatenate([anchor[b : b + 1], action[b, :, :2].double().numpy()]), axis=0)
        expected = np.diff(wound, axis=0) if representation == "delta" else wound[1:] - anchor[b]
        np.testing.assert_allclose(found[b, :, :2], expected, atol=1e-5)
    decoded = made.decode(found, seen)
    turns = (decoded - action)[..., :2] / (2 * math.pi)
    torch.testing.assert_close(turns, turns.round(), rtol=0, atol=1e-5)
    assert (decoded[..., :2].diff(dim=1).abs() < math.pi + 1e-4).all()  # no jump of a turn
    torch.testing.assert_close(decoded[..., 2:], action[..., 2:], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("low", "high"), [(-math.pi, math.pi), (0.0, 2 * math.pi), (-2 * math.pi, 2 * math.pi)])
def test_an_angle_with_limits_comes_out_within_them(low, high):
    one = {"low": (low,) * 4, "high": (high,) * 4, "wraps": (0,)}
    spec = joints(**one)
    made, seen = Representation(ActionConfig("relative"), spec), observed(spec)
    seen["joints"] = torch.full_like(seen["joints"], high - 0.1)
    action = torch.full((B, T, 4), high - 0.1)
    action[..., 0] = high - 0.1 + torch.linspace(-0.5, 0.5, T)
    decoded = made.decode(made.encode(action, seen), seen)[..., 0]
    assert (decoded >= low - 1e-5).all()
    assert (decoded <= high + 1e-5).all()
    torch.testing.assert_close(torch.cos(decoded), torch.cos(action[..., 0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.sin(decoded), torch.sin(action[..., 0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("middle", [0.0, math.pi, 20.0])
def test_an_absolute_angle_is_its_cosine_and_sine(middle):
    """It comes out in the turn in which it was demonstrated."""
    spec = joints(wraps=(1,))
    made = Representation(ActionConfig(), spec)
    action = torch.randn(200, 4)
    action[:, 1] = middle + math.pi * (2 * torch.rand(200) - 1)
    made.fit(action, {})
    columns = made.encode(action[:, None], {})[:, 0]
    expected = [action[:, 0], action[:, 1].cos(), action[:, 1].sin(), action[:, 2], action[:, 3]]
    assert torch.equal(columns, torch.stack(expected, dim=-1))
    inner = (action[:, 1] - middle).abs() < 3.1  # at the end of the turn both ends are equal
    decoded = made.decode(1.7 * columns, {})  # whatever the length that a net gives them
    torch.testing.assert_close(decoded[inner, 1], action[inner, 1], rtol=0, atol=1e-5)
    assert Representation(ActionConfig(wrapped="number"), spec).plain


def test_an_angle_beside_limits_is_demonstrated_anywhere():
    spec = joints(wraps=(0,), low=(-math.pi, -9, -9, -9), high=(math.pi, 9, 9, 9))
    made = Representation(ActionConfig(), spec)
    made.fit(torch.full((3, 4), 0.5), {})
    decoded = made.decode(made.encode(torch.full((1, 1, 4), 4.0), {}), {})
    assert decoded[0, 0, 0] == pytest.approx(4.0 - 2 * math.pi, abs=1e-5)


def turning(form: str, state_form: str) -> Spec:
    """A position, a rotation and a gripper, with a state of the same, the rotation in another form."""
    n, m = ROTATIONS[form], ROTATIONS[state_form]
    state = Feature((3 + m,), "float32", "", rotations=((3, state_form),))
    return Spec({"state": state}, Feature((4 + n,), "float32", "", rotations=((3, form),)), 0.1)


@pytest.mark.parametrize("representation", ["absolute", *LEARNED])
@pytest.mark.parametrize("form", ROTATIONS)
@pytest.mark.parametrize("state_form", ROTATIONS)
def test_rotations_compose_as_scipy_says(representation, form, state_form):
    spec, n = turning(form, state_form), ROTATIONS[form]
    anchors = [] if representation == "absolute" else ["state", "none"]
    made = Representation(ActionConfig(representation, anchors=anchors), spec)
    action, seen = torch.randn(B, T, 4 + n), observed(spec)
    action[..., 3 : 3 + n] = torch.from_numpy(random_rotations(form, B, T)).float()
    seen["state"][..., 3:] = torch.from_numpy(random_rotations(state_form, B, 2)).float()
    made.fit(action.flatten(0, 1), {name: value[:, -1] for name, value in seen.items()})
    columns = made.encode(action, seen)
    assert columns.shape == (B, T, 3 + 6 + 1)
    turns = of(action[..., 3 : 3 + n].numpy(), form).as_matrix().reshape(B, T, 3, 3)
    anchor = of(seen["state"][:, -1, 3:].numpy(), state_form).as_matrix()
    before = np.broadcast_to(np.eye(3), turns.shape)
    if representation == "relative":
        before = np.broadcast_to(anchor[:, None], turns.shape)
    elif representation == "delta":
        before = np.concatenate([anchor[:, None], turns[:, :-1]], axis=1)
    difference = np.swapaxes(before, -1, -2) @ turns
    expected = np.concatenate([difference[..., 0], difference[..., 1]], axis=-1)
    np.testing.assert_allclose(columns[..., 3:9], expected, atol=3e-6)
    scaled = torch.cat([columns[..., :3], 2.5 * columns[..., 3:9], columns[..., 9:]], dim=-1)
    decoded = made.decode(scaled, seen)
    apart = of(decoded[..., 3 : 3 + n].numpy(), form).inv() * of(action[..., 3 : 3 + n].numpy(), form)
    assert apart.magnitude().max() < 2e-5
    others = [0, 1, 2, 3 + n]
    torch.testing.assert_close(decoded[..., others], action[..., others], rtol=0, atol=2e-6)


@pytest.mark.parametrize("form", ["axis_angle", "quaternion_xyzw", "quaternion_wxyz"])
@pytest.mark.parametrize("representation", ["absolute", *LEARNED])
def test_a_hand_that_points_down_does_not_flip(form, representation):
    """Half a turn about x, where vector and quaternion each have two equal values: what comes out is continuous."""
    spec, n = turning(form, form), ROTATIONS[form]
    anchors = [] if representation == "absolute" else ["state", "none"]
    made = Representation(ActionConfig(representation, anchors=anchors), spec)
    angle = math.pi + 0.3 * np.sin(np.linspace(0, 6, B * T))  # beyond half a turn, and below
    vector = np.stack([angle, 0.02 * np.cos(angle), 0.01 * angle], axis=-1)
    values = vector
    if form != "axis_angle":
        half = np.linalg.norm(vector, axis=-1, keepdims=True) / 2
        axis = vector / (2 * half)
        parts = [axis * np.sin(half), np.cos(half)]
        values = np.concatenate(parts if form == "quaternion_xyzw" else parts[::-1], axis=-1)
    action = torch.zeros(B, T, 4 + n)
    action[..., 3 : 3 + n] = torch.from_numpy(values).float().view(B, T, n)
    seen = {"state": torch.zeros(B, 2, 3 + n)}
    seen["state"][:, -1, 3:] = action[:, 0, 3 : 3 + n]
    made.fit(action.flatten(0, 1), {"state": seen["state"][:, -1]})
    torch.testing.assert_close(made.decode(made.encode(action, seen), seen), action, rtol=0, atol=1e-5)


def test_declarations_of_the_configuration_are_part_of_the_specification():
    plain = Spec({"pose": Feature((4,), "float32", "")}, Feature((5,), "float32", "", names=tuple("abcde")), 0.1)
    config = ActionConfig(angles=["e"], rotations=["action.0:axis_angle", "pose.0:quaternion_wxyz"])
    spec = declared(plain, config)
    assert spec.action.rotations == ((0, "axis_angle"),)
    assert spec.action.wraps == (4,)
    assert spec.observation["pose"].rotations == ((0, "quaternion_wxyz"),)
    assert declared(spec, config) == spec
    assert Spec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert (
        Spec.from_dict({**spec.to_dict(), "action": {**spec.action.to_dict(), "rotations": spec.action.rotations}})
        == spec
    )


def one(**more) -> Spec:
    return Spec({"state": Feature((4,), "float32", "m")}, Feature((4,), "float32", more.pop("unit", "m"), **more), 0.1)


@pytest.mark.parametrize(
    ("config", "spec", "message"),
    [
        (
            {"representation": "relativ"},
            one(),
            "action.representation='relativ' is unknown; choices: absolute, delta, re",
        ),
        (
            {"statistics": "step"},
            one(),
            "action.statistics=step is for differences, and action.representation=absolute",
        ),
        (
            {"representation": "relative"},
            one(),
            "the action's dimensions have none; give action.anchors, of the features st",
        ),
        (
            {"representation": "relative"},
            one(names=("a", "b", "c", "d")),
            "the action's 'a' is found in none of state, expected in one feature",
        ),
        (
            {"representation": "relative", "anchors": ["state.0:3"]},
            one(),
            "action.anchors gives 3 anchors to the 4 dimensions of the action",
        ),
        (
            {"representation": "delta", "anchors": ["stat"]},
            one(),
            "'stat' names no vector of the observation; choices: st",
        ),
        (
            {"representation": "delta", "anchors": ["state.4"]},
            one(),
            "action.anchors: '4' is no dimension; expected a pl",
        ),
        ({"representation": "delta", "anchors": ["state.2:9"]}, one(), "'state.2:9' begins or ends outside of 'state'"),
        (
            {"representation": "relative", "anchors": ["state"]},
            one(unit="m/s"),
            "have the units 'm/s' and 'm', whose diff",
        ),
        ({"representation": "relative", "anchors": ["none"] * 4}, one(), "leaves all dimensions absolute"),
        ({"representation": "relative", "anchors": ["state"], "absolute": ["hand"]}, one(), "'hand' is no dimension"),
        (
            {"representation": "relative", "anchors": ["state.0:2"], "rotations": ["action.0:axis_angle"]},
            one(),
            r"action dimension 0 \(axis_angle\) and its anchor, state.0 \(number\), must both be rotations, or neither",
        ),
        ({"rotations": ["action.2:axis_angle"]}, one(), "takes places 2 to 4, expected some of 0 to 3 that no other"),
        (
            {"rotations": ["action.0:euler"]},
            one(),
            "expected its first place and its form, one of axis_angle, quaternion_x",
        ),
        ({"rotations": ["action:axis_angle"]}, one(), "is none; expected FEATURE.PLACE:FORM"),
        ({"rotations": ["hand.0:axis_angle"]}, one(), "names no feature; choices: state, action"),
        ({"angles": ["yaw"]}, one(), "action.angles: 'yaw' is no dimension; expected a place from 0 to 3"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(config, spec, message):
    def make() -> None:
        made = ActionConfig(**config)
        Representation(made, declared(spec, made))

    with pytest.raises(ValueError, match=message) as refused:
        make()
    assert "\n" not in str(refused.value)


def test_a_state_that_wraps_asks_for_an_action_that_does():
    spec = one(unit="rad")
    spec = replace(spec, observation={"state": replace(spec.observation["state"], unit="rad", wraps=(2,))})
    with pytest.raises(
        ValueError, match=r"action dimension 2 \(number\) and its anchor, state.2 \(angle\), must both wr"
    ):
        Representation(ActionConfig("relative", anchors=["state"]), spec)
    Representation(ActionConfig("relative", anchors=["state"]), replace(spec, action=replace(spec.action, wraps=(2,))))


def test_what_is_no_rotation_is_refused_by_step():
    spec = turning("quaternion_xyzw", "rotation_6d")
    made = Representation(ActionConfig("relative", anchors=["state", "none"]), spec)
    action = torch.zeros(5, 8)
    action[:, 3:7] = torch.from_numpy(random_rotations("quaternion_xyzw", 5))
    state = torch.zeros(5, 9)
    state[:, 3:] = torch.from_numpy(random_rotations("rotation_6d", 5))
    made.fit(action, {"state": state})
    state[3, 3:6] *= 0.5
    with pytest.raises(
        ValueError, match="observation 'state' dimension 3 begins a rotation_6d, but control step 3 has"
    ):
        made.fit(action, {"state": state})
    action[2, 3:7] = 0
    with pytest.raises(
        ValueError, match=r"action dimension 3 begins a quaternion_xyzw, but control step 2 has \[0.0, "
    ):
        made.fit(action, {"state": state})


@pytest.mark.parametrize(
    ("rotations", "message"),
    [
        ([[0]], r"a rotation of a feature is \(0,\), expected its first place and its form"),
        ([["0", "axis_angle"]], "expected its first place and its form, one of axis_angle"),
        ([[True, "axis_angle"]], "expected its first place and its form"),
        ([[-1, "axis_angle"]], "takes places -1 to 1, expected some of 0 to 7"),
        ([[0, "axis_angle"], [2, "quaternion_xyzw"]], "takes places 2 to 5, .* that no other rotation"),
        ([[0, "rotation_6d"]], "takes places 0 to 5, .* that no other rotation, angle that wraps or choice has"),
        ("axis_angle", "feature rotations is 'axis_angle', expected a list"),
    ],
)
def test_impossible_rotations_of_a_feature_are_refused(rotations, message):
    data = {"shape": [8], "dtype": "float32", "unit": "", "low": None, "high": None, "wraps": [5]}
    with pytest.raises(ValueError, match=message):
        Feature.from_dict({**data, "rotations": rotations})


def test_more_dimensions_than_any_robot_has():
    with pytest.raises(ValueError, match="a feature has 65537 values, and an action or its anchors have at most 65536"):
        Representation(ActionConfig(), replace(one(), action=Feature((65537,), "float32", "")))
