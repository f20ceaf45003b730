"""ONNX files of which tags, lengths, numbers and places were changed: a target of `benchmarks/fuzz.py`.

What `flowhand.deploy.onnx_file` takes must be read the same by the official parser: writing it again gives the same
bytes, and nothing in it names another file, a foreign operator or a loop. Then the runtime gets it, in a folder with a
file that the hostile fields name, which it may not open (told by inotify).
"""

from __future__ import annotations

import ctypes
import os
import random
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks.fuzz_inputs import mutated, one_line
from flowhand.deploy import runner
from flowhand.deploy.onnx_file import require_self_contained

SECRET = "secret.bin"  # 64 bytes, the size of a weight
IN_ACCESS, IN_OPEN = 0x1, 0x20
LAST = 2**64 - 1
NUMBERS = (0, 1, 2, 7, 13, 14, 127, 128, 2**31 - 1, 2**31, 2**32, 2**32 + 1, 2**63, LAST, LAST - 2**31 + 1)


class Field:
    """One field of a message in protobuf's encoding, as somebody may write it."""

    def __init__(self, number: int, wire: int, value: Any, kind: Any = None):
        self.number, self.wire, self.value, self.kind = number, wire, value, kind
        self.high = 0  # bits of the tag beyond those that it may have
        self.longer = {"tag": 0, "value": 0, "length": 0}  # bytes more than the number takes
        self.off = 0  # by which the length is wrong

    def copy(self) -> Field:
        """Another one, to be changed by itself."""
        inside = [field.copy() for field in self.value] if isinstance(self.value, list) else self.value
        other = Field(self.number, self.wire, inside, self.kind)
        other.high, other.longer, other.off = self.high, dict(self.longer), self.off
        return other

    def encoded(self) -> bytes:
        """Its bytes."""
        tag = varint((self.number << 3 | self.wire) + self.high, self.longer["tag"])
        if isinstance(self.value, int):
            return tag + varint(self.value, self.longer["value"])
        content = encoded(self.value) if isinstance(self.value, list) else self.value
        if self.wire == 3:  # a group
            return tag + content + varint(self.number << 3 | 4)
        if self.wire != 2:
            return tag + content
        return tag + varint(max(len(content) + self.off, 0), self.longer["length"]) + content


def encoded(fields: list[Field]) -> bytes:
    """The bytes of a message."""
    return b"".join(field.encoded() for field in fields)


def varint(value: int, longer: int = 0) -> bytes:
    """A number, in more bytes than it takes where that is asked for."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    if longer:
        out[-1] |= 128
        out += b"\x80" * (longer - 1) + b"\0"
    return bytes(out)


def decoded(data: bytes, kind: Any) -> list[Field]:
    """The fields of a sound message of this kind."""
    fields, at = [], 0
    while at < len(data):
        tag, at = _number(data, at)
        inside = kind.fields_by_number[tag >> 3].message_type
        if tag & 7 == 0:
            value, at = _number(data, at)
            fields.append(Field(tag >> 3, 0, value))
            continue
        size, at = (4, at) if tag & 7 == 5 else _number(data, at)
        content = data[at : at + size]
        fields.append(Field(tag >> 3, tag & 7, decoded(content, inside) if inside else content, inside))
        at += size
    return fields


def _number(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while data[at] > 127:
        value, shift, at = value | (data[at] & 127) << shift, shift + 7, at + 1
    return value | data[at] << shift, at + 1


def small_graph() -> onnx.ModelProto:
    """A graph of a few operators that has fields of every kind that an export has."""
    float_, whole = TensorProto.FLOAT, TensorProto.INT64
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="product"),
        helper.make_node("Gemm", ["a", "w", "b"], ["c"], alpha=0.5, transB=1),
        helper.make_node("Constant", [], ["two"], value=helper.make_tensor("two", float_, [1], [2.0])),
        helper.make_node("Mul", ["c", "two"], ["d"]),
        helper.make_node("Transpose", ["d"], ["e"], perm=[0, 1]),
        helper.make_node("Gelu", ["e"], ["f"], approximate="tanh"),
        helper.make_node("Reshape", ["f", "shape"], ["y"]),
    ]
    weights = [
        helper.make_tensor("w", float_, [4, 4], np.eye(4, dtype=np.float32).tobytes(), raw=True),
        helper.make_tensor("b", float_, [4], [0.1, 0.2, 0.3, 0.4]),
        helper.make_tensor("shape", whole, [2], [-1, 4]),
    ]
    ends = [helper.make_tensor_value_info(name, float_, ["rows", 4]) for name in "xyd"]
    graph = helper.make_graph(nodes, "small", ends[:1], ends[1:2], weights, "doc", ends[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model.metadata_props.add(key="made by", value="nobody")
    return model


def hostile_fields() -> dict[str, list[Field]]:
    """By the name of a message: what would make it ask for something beyond itself."""
    weight = TensorProto(name="w", data_type=1, dims=[4, 4], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value=SECRET)
    inner = onnx.AttributeProto(name="body", type=onnx.AttributeProto.GRAPH, g=helper.make_graph([], "inner", [], []))
    loop = helper.make_node("Loop", ["two", ""], ["loop"])
    loop.attribute.append(inner)
    foreign = helper.make_node("Gelu", ["x"], ["z"], domain="com.microsoft")
    sparse = onnx.SparseTensorProto(values=weight, indices=helper.make_tensor("i", 7, [1], [0]), dims=[16])
    tensor = decoded(weight.SerializeToString(), TensorProto.DESCRIPTOR)
    graph = onnx.GraphProto(node=[loop, foreign], initializer=[weight], sparse_initializer=[sparse])
    model = onnx.ModelProto(graph=graph, functions=[onnx.FunctionProto(name="Gelu")])
    model.training_info.add(algorithm=graph)
    domain = Field(7, 2, b"com.microsoft")
    return {
        "TensorProto": [field for field in tensor if field.number > 12],
        "GraphProto": decoded(graph.SerializeToString(), onnx.GraphProto.DESCRIPTOR),
        "NodeProto": [domain, *decoded(loop.SerializeToString(), onnx.NodeProto.DESCRIPTOR)],
        "AttributeProto": decoded(inner.SerializeToString(), onnx.AttributeProto.DESCRIPTOR),
        "ModelProto": decoded(model.SerializeToString(), onnx.ModelProto.DESCRIPTOR),
    }


Place = tuple[list[Field], Any]  # fields, and the descriptor of their message


def places(fields: list[Field], kind: Any) -> list[Place]:
    """The message and all messages in it."""
    inside = [(field.value, field.kind) for field in fields if isinstance(field.value, list) and field.kind]
    return [(fields, kind), *(place for child in inside for place in places(*child))]


def mutate(rng: random.Random, model: list[Field], hostile: dict[str, list[Field]]) -> None:
    """One change in one of the messages."""
    everywhere = places(model, onnx.ModelProto.DESCRIPTOR)
    fields, kind = everywhere[0] if rng.random() < 0.1 else rng.choice(everywhere)
    if not fields:
        return
    at = rng.randrange(len(fields))
    field, change = fields[at], rng.randrange(11)
    if change == 0:
        field.high = rng.choice((1 << 32, 1 << 33, 1 << 35, 1 << 63, 1 << 64, rng.getrandbits(32) << 32))
    elif change == 1:
        field.longer[rng.choice(list(field.longer))] = rng.choice((1, 1, 2, 4, 8))
    elif change == 2:
        field.number = rng.choice((0, 1, rng.randrange(30), rng.choice(list(kind.fields_by_number)), 2**29 - 1))
    elif change == 3:
        field.wire = rng.randrange(8)
    elif change == 4:
        field.off = rng.choice((-1, 1, rng.randrange(-9, 9), 2**31, 2**32, LAST))
    elif change == 5:
        again = field.copy()
        change_value(rng, again)
        fields.insert(rng.choice((0, at, at + 1, len(fields))), again)
    elif change == 6:
        target = fields if rng.random() < 0.7 else rng.choice(everywhere)[0]
        target.insert(rng.randrange(len(target) + 1), fields.pop(at).copy())
    elif change == 7:
        del fields[at]
    elif change == 8 and isinstance(field.value, list):  # in two parts, which parsers put together
        rest = field.copy()
        cut = rng.randrange(len(rest.value) + 1)
        rest.value, field.value = rest.value[cut:], field.value[:cut]
        fields.insert(at + 1, rest)
    elif change == 9 and kind.name in hostile:
        bad = rng.choice(hostile[kind.name]).copy()
        if rng.random() < 0.7:
            bad.high, bad.longer["tag"] = rng.choice(((1 << 32, 0), (1 << 35, 0), (0, 1), (0, 4), (0, 0)))
        ordered = next((i for i, other in enumerate(fields) if other.number > bad.number), len(fields))
        fields.insert(rng.choice((ordered, ordered, 0, len(fields))), bad)
    else:
        change_value(rng, field)


def change_value(rng: random.Random, field: Field) -> None:
    """Another number, other bytes, or numbers of which some take more than they need."""
    if isinstance(field.value, int):
        field.value = rng.choice((*NUMBERS, rng.getrandbits(64)))
    elif isinstance(field.value, bytes):
        numbers = b"".join(varint(rng.choice(NUMBERS), rng.choice((0, 0, 1))) for _ in range(rng.randrange(4)))
        field.value = rng.choice((mutated(rng, field.value), numbers, b"com.microsoft", b"\xff", b""))


def same_to_the_official_parser(data: bytes) -> None:
    """Raises `AssertionError` where it reads more, other, or hostile things."""
    model = onnx.load_from_string(data)
    model.DiscardUnknownFields()
    assert model.SerializeToString() == data, "the official parser writes other bytes"
    waiting: list[Any] = [model]
    while waiting:
        message = waiting.pop()
        name = message.DESCRIPTOR.name
        assert name not in ("SparseTensorProto", "FunctionProto", "TrainingInfoProto"), f"there is a {name}"
        assert name != "TensorProto" or not (message.external_data or message.data_location), "weights elsewhere"
        assert name != "NodeProto" or message.domain in ("", "ai.onnx"), "a foreign operator"
        assert name != "AttributeProto" or not (message.HasField("g") or message.graphs), "a graph in the graph"
        for field, value in message.ListFields():
            if field.message_type:
                waiting.extend(value if field.is_repeated else [value])


def watch(file: Path) -> Callable[[], bool]:
    """Tells whether the file has been opened or read since the last question."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0 or libc.inotify_add_watch(descriptor, bytes(file), IN_OPEN | IN_ACCESS) < 0:
        raise OSError(ctypes.get_errno(), f"{file} cannot be watched")

    def touched() -> bool:
        try:
            return bool(os.read(descriptor, 4096))
        except BlockingIOError:
            return False

    return touched


def onnx_bytes(folder: Path) -> Callable[[random.Random], str]:
    """What the inspection takes of ONNX files that were changed with knowledge of their form."""
    (folder / SECRET).write_bytes(b"topsecret-key-16" * 4)
    touched, hostile = watch(folder / SECRET), hostile_fields()
    good = decoded(small_graph().SerializeToString(), onnx.ModelProto.DESCRIPTOR)
    assert encoded(good) == small_graph().SerializeToString()

    def case(rng: random.Random) -> str:
        model = [field.copy() for field in good]
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            mutate(rng, model, hostile)
        data = encoded(model)
        data = mutated(rng, data) if rng.random() < 0.05 else data
        try:
            require_self_contained(data)
        except ValueError as error:
            one_line(str(error))
            return "refused"
        same_to_the_official_parser(data)
        with chdir(folder):
            try:
                session = runner._session(data, 1)
                session.run(None, {"x": np.eye(4, dtype=np.float32)})
            except Exception:  # the runtime knows what it cannot run, in many ways
                ended = "taken, and refused by the runtime"
            else:
                ended = "taken, and run"
        assert not touched(), "the runtime opened a file"
        return ended

    return case
