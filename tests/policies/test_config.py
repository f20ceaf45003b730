import itertools
import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest

from flowhand.contracts.strict import build
from policies import PolicyConfig
from policies.config import policy_config
from policies.encoders import ENCODERS
from policies.heads import HEADS
from policies.nets import NETS

COMBINATIONS = list(itertools.product(ENCODERS, NETS, HEADS))


@dataclass
class Example:
    count: int = 1
    share: float = 0.5
    on: bool = True
    name: str = "a"
    limit: float | None = None
    seeds: list[int] | None = None
    versions: dict[str, str] | None = None
    anything: Any = None


@dataclass
class Grown:
    count: int = 1
    path: str = field(default="new", metadata={"before": "old"})  # added after checkpoints had been written


def test_a_field_that_came_later_may_be_missing_and_then_means_what_was_meant_before():
    assert build(Grown, {"count": 2}, "part") == Grown(2, "old")
    assert build(Grown, {"count": 2, "path": "new"}, "part") == Grown(2, "new")
    with pytest.raises(ValueError, match="part lacks the field 'count'"):
        build(Grown, {"path": "new"}, "part")


def test_a_flow_with_the_fields_of_the_first_release_is_the_plain_one():
    data = as_json(PolicyConfig())
    data["head"] = {name: data["head"][name] for name in ("kind", "prediction", "time", "draws", "steps", "solver")}
    head = policy_config(data).head
    assert head == PolicyConfig().head
    assert vars(head).items() >= {"path": "linear", "coupling": "independent", "guidance": 1.0, "prefix_max": 0}.items()


def as_json(config: PolicyConfig) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(config)))


@pytest.mark.parametrize(("encoder", "net", "head"), COMBINATIONS)
def test_a_configuration_survives_json(tiny, encoder, net, head):
    config = PolicyConfig(encoder=tiny(ENCODERS, encoder), net=tiny(NETS, net), head=tiny(HEADS, head))
    config.chunk.history = 5
    config.normalizer.action = "min_max"
    restored = policy_config(as_json(config))
    assert restored == config
    assert [type(part) for part in vars(restored).values()] == [type(part) for part in vars(config).values()]


def changed(path: str, value: Any) -> dict[str, Any]:
    """The default configuration with one field set, or removed (`...`)."""
    data = as_json(PolicyConfig())
    *groups, name = path.split(".")
    part = data
    for group in groups:
        part = part[group]
    if value is ...:
        del part[name]
    else:
        part[name] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("net.kind", "mpl", f"policy.net.kind is 'mpl'; choices: {', '.join(sorted(NETS))}"),
        ("head.kind", "os.system", f"policy.head.kind is 'os.system'; choices: {', '.join(sorted(HEADS))}"),
        ("encoder.kind", ["state"], "policy.encoder.kind is ['state']; choices: elements, state"),
        ("encoder.kind", ..., "policy.encoder.kind is None; choices: elements, state"),
        ("net", ..., "policy.net is None, expected fields and values"),
        ("head", 3, "policy.head is 3, expected fields and values"),
        ("chunk", ..., "policy.chunk is None, expected fields and values"),
        ("normalizer", [], "policy.normalizer is [], expected fields and values"),
        ("decoder", {}, "policy has the unknown field 'decoder'; did you mean 'encoder'?"),
        ("net.widht", 8, "policy.net has the unknown field 'widht'; did you mean 'width'?"),
        ("net._target_", "os.system", "policy.net has the unknown field '_target_'; fields: kind, width,"),
        ("net.width", ..., "policy.net lacks the field 'width'"),
        ("chunk.history", ..., "policy.chunk lacks the field 'history'"),
        ("net.width", "256", "policy.net.width is '256', expected a value of type int"),
        ("net.width", 256.0, "policy.net.width is 256.0, expected a value of type int"),
        ("net.width", True, "policy.net.width is True, expected a value of type int"),
        ("net.width", None, "policy.net.width is None, expected a value of type int"),
        ("chunk.loss_on_padding", 1, "policy.chunk.loss_on_padding is 1, expected a value of type bool"),
        ("head.coupling_condition", "1", "policy.head.coupling_condition is '1', expected a value of type float"),
        ("head.coupling_condition", True, "policy.head.coupling_condition is True, expected a value of type float"),
        ("head.coupling_condition", float("nan"), "policy.head.coupling_condition is nan, expected a value"),
        ("head.coupling_condition", float("inf"), "policy.head.coupling_condition is inf, expected a value"),
        ("head.coupling_condition", 10**400, "expected a value of type float"),
        ("net.width", 0, "net.width=0 must lie in 1..65536"),
        ("chunk.execution_horizon", 17, "chunk.execution_horizon=17 is longer than chunk.prediction_horizon=16"),
        ("chunk.history", 0, "chunk.history=0 must be at least 1"),
        ("normalizer.action", "log", "normalizer.action='log' is unknown; choices: mean_std, min_max"),
    ],
)
def test_a_wrong_configuration_is_an_error_naming_the_field(path, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        policy_config(changed(path, value))


def test_a_field_of_an_earlier_version_is_passed_over():
    assert policy_config(changed("normalizer.constant_below", 1e-4)) == policy_config(changed("net.width", 256))
    with pytest.raises(ValueError, match=r"policy.normalizer has the unknown field 'constant_above'"):
        policy_config(changed("normalizer.constant_above", 1e-4))


@pytest.mark.parametrize("data", [None, [], "mlp", 3])
def test_what_is_no_mapping_is_an_error(data):
    with pytest.raises(ValueError, match=r"policy is .*, expected fields and values"):
        policy_config(data)


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("count", [0, -3, 10**20], [True, 1.0, "1", None, [1]]),
        ("share", [0.5, -1.0, 0.0], [True, "1", None, float("inf"), float("nan"), [0.5]]),
        ("on", [True, False], [0, 1, "true", None]),
        ("name", ["", "b"], [1, None, ["a"], True]),
        ("limit", [None, 0.5, 1], ["1", True, [0.5]]),
        ("seeds", [None, [], [1, 2]], [[1.0], [True], ["1"], [[1]], {"1": 1}, "12", 1]),
        ("versions", [None, {}, {"torch": "2"}], [{"torch": 2}, [["torch", "2"]], "torch", {1: "2"}]),
        ("anything", [None, 1, "a", [{}]], []),
    ],
)
def test_values_have_the_type_of_their_field(field, good, bad):
    for value in good:
        assert getattr(build(Example, {**asdict(Example()), field: value}, "example"), field) == value
    for value in bad:
        with pytest.raises(ValueError, match=rf"example.{field} is .*, expected a value of type"):
            build(Example, {**asdict(Example()), field: value}, "example")


def test_a_whole_number_becomes_a_float_where_a_float_is_due():
    example = build(Example, {**asdict(Example()), "share": 1}, "example")
    assert type(example.share) is float
