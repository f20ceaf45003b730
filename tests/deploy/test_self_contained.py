"""What the inspection of an ONNX file takes, the runtime cannot read otherwise; and the runtime reads no file."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from benchmarks.fuzz_onnx import Field, decoded, encoded, same_to_the_official_parser, small_graph  # noqa: E402
from flowhand.deploy import runner  # noqa: E402
from flowhand.deploy.onnx_file import MESSAGES, require_self_contained  # noqa: E402

KEY = b"topsecret-key-16" * 4
HIGH = 1 << 32  # of a tag: what some parsers cut off and others do not
ONE = np.eye(4, dtype=np.float32)


def fields_of(model) -> list[Field]:
    return decoded(model.SerializeToString(), onnx.ModelProto.DESCRIPTOR)


def first(fields: list[Field], *path: int) -> Field:
    """The first field with these numbers, one inside the other."""
    field = next(field for field in fields if field.number == path[0])
    return first(field.value, *path[1:]) if path[1:] else field


def with_external_weights():
    """The small graph with its weight in a file of the working directory."""
    model = small_graph()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="key.bin")
    del model.graph.node[1:]
    model.graph.node[0].output[0] = "y"
    return model


@pytest.fixture
def key(tmp_path, monkeypatch):
    (tmp_path / "key.bin").write_bytes(KEY)
    monkeypatch.chdir(tmp_path)


def hidden(model) -> bytes:
    """The model with bit 32 of the tag of its graph set: an unknown field, or the graph."""
    fields = fields_of(model)
    first(fields, 7).high = HIGH
    return encoded(fields)


def test_a_graph_that_only_the_runtime_sees_is_refused(key):
    data = hidden(with_external_weights())
    providers = ["CPUExecutionProvider"]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    leak = onnxruntime.InferenceSession(data, options, providers=providers).run(None, {"x": ONE})[0]
    assert leak.tobytes() == KEY  # what a runtime that is handed it does: the file comes out as actions
    with pytest.raises(ValueError, match=r"no ONNX file .* field 536870919 of wire type 2"):
        require_self_contained(data)


@pytest.mark.parametrize("write", [encoded, lambda fields: hidden(with_external_weights())])
def test_the_runtime_reads_no_weights_from_a_file_even_uninspected(key, write):
    with pytest.raises(ValueError, match=r"the model cannot be run: .*External data path"):
        runner._session(write(fields_of(with_external_weights())), 1)


def test_a_sound_model_is_taken_and_runs():
    data = small_graph().SerializeToString()
    require_self_contained(data)
    same_to_the_official_parser(data)
    assert runner._session(data, 1).run(None, {"x": ONE})[0].shape == (4, 4)


def change(what: str, fields: list[Field]) -> None:
    """A model that two parsers could read differently, or that has what no exported policy has."""
    graph, node, weight = first(fields, 7), first(fields, 7, 1), first(fields, 7, 5)
    if what.startswith("tag"):
        first(fields, 7, 1, 4).high = {"tag 32": HIGH, "tag 35": 1 << 35, "tag 63": 1 << 63}[what]
    elif what.startswith("longer"):
        first(fields, 7, 5, 2 if what == "longer value" else 9).longer[what.split()[1]] = 1
    elif what in ("int32", "int64"):
        first(fields, 7, 5, 2).value += 2**32 if what == "int32" else 2**64
    elif what == "unknown":
        node.value.append(Field(12, 0, 1))
    elif what == "number 0":
        node.value.insert(0, Field(0, 0, 1))
    elif what == "group":
        graph.value.insert(0, Field(1, 3, node.value))
    elif what == "wire type":
        first(fields, 7, 1, 1).wire = 5
    elif what == "two graphs":
        fields.insert(fields.index(graph), Field(7, 2, [node]))
    elif what == "two names":
        graph.value.insert(graph.value.index(first(fields, 7, 2)), Field(2, 2, b"other"))
    elif what == "order":
        node.value.reverse()
    elif what == "two kinds of data":
        at = next(i for i, field in enumerate(weight.value) if field.number == 8)
        weight.value.insert(at, Field(4, 2, ONE.tobytes()))
    elif what == "packed":
        weight.value[:2] = [Field(1, 2, b"\4\4")]
    elif what == "text":
        first(fields, 7, 1, 4).value = b"Mat\xff"
    elif what == "text with an end":
        first(fields, 7, 1, 4).value = b"MatMul\0"
    elif what == "cut short":
        first(fields, 7, 1, 4).off = -1
    elif what == "two weights":
        graph.value.insert(graph.value.index(weight), weight.copy())
    elif what == "two versions":
        fields.insert(fields.index(first(fields, 8)), Field(8, 2, [Field(1, 2, b"ai.onnx"), Field(2, 0, 13)]))
    elif what == "settings":
        fields.append(Field(14, 2, [Field(1, 2, b"ort_config"), Field(2, 2, b"{}")]))
    else:
        attribute = next(
            inside for field in graph.value if field.number == 1 for inside in field.value if inside.number == 5
        )
        attribute.value[-1].value = 2 if what == "type" else 6


@pytest.mark.parametrize(
    ("what", "message"),
    [
        *((f"tag {bit}", "a node has field [0-9]+ of wire type 2") for bit in (32, 35)),
        ("tag 63", "a node has field [0-9]+ of wire type 2"),
        *((f"longer {where}", "no ONNX file") for where in ("tag", "value", "length")),
        ("int32", "field 2 of a tensor is larger than its kind"),
        ("int64", "a number is longer than it has to be"),
        ("unknown", "a node has field 12 of wire type 0"),
        ("number 0", "a node has field 0 of wire type 0"),
        ("group", "a graph has field 1 of wire type 3"),
        ("wire type", "a node has field 1 of wire type 5"),
        ("two graphs", "field 7 of a model comes again"),
        ("two names", "field 2 of a graph comes again"),
        ("order", "of a node comes again or out of order"),
        ("two kinds of data", r"ambiguous: a tensor has the fields \[4, 9\]"),
        ("packed", "a tensor has field 1 of wire type 2"),
        ("text", "a text is not UTF-8"),
        ("text with an end", "a text has a character of value 0"),
        ("cut short", "no ONNX file"),
        ("two weights", "ambiguous: a graph has two of tensor 'w'"),
        ("two versions", "ambiguous: it names the standard operators twice"),
        ("settings", "the model has settings of the runtime"),
        ("type", "ambiguous: an attribute of type 2 has the fields"),
        ("type 6", "ambiguous: an attribute of type 6"),
    ],
)
def test_what_parsers_could_read_differently_is_refused(what, message):
    fields = fields_of(small_graph())
    change(what, fields)
    with pytest.raises(ValueError, match=message):
        require_self_contained(encoded(fields))


def test_the_known_fields_are_those_of_the_official_description():
    """Of every message that is known: number, kind and packing of each field as onnx.proto has them."""
    scalars = {3: "number", 5: "int32", 14: "int32", 2: "float", 9: "text", 12: "bytes"}
    packed = {2: "floats", 1: "doubles", 5: "int32s", 3: "int64s", 4: "int64s"}
    waiting, met = [("model", onnx.ModelProto.DESCRIPTOR)], set()
    while waiting:
        kind, described = waiting.pop()
        if kind in met:
            continue
        met.add(kind)
        for known in MESSAGES[kind].split():
            number, held = known.split(":")
            field, inside = described.fields_by_number[int(number)], held.rstrip("*")
            if field.message_type:
                waiting.append((inside, field.message_type))
            elif field.is_packed:
                assert inside == packed[field.type]
            else:
                assert inside == scalars[field.type]
                assert field.is_repeated == held.endswith("*")
    assert met == set(MESSAGES)


@pytest.mark.parametrize("content", [b"\x0b", b"\x3a\x7f", b"\xff" * 20, b"\x08", b"\xba\x80\x80\x80\x10\x00"])
def test_what_is_no_model(content):
    with pytest.raises(ValueError, match="no ONNX file"):
        require_self_contained(content)
