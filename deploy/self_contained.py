"""Whether an ONNX model is all in one file: read from its bytes, before any runtime believes them. No dependencies."""

from __future__ import annotations

from collections.abc import Iterator

# Of the messages of onnx.proto that are walked: which field holds which message.
INSIDE = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 10: "tensor", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
FORBIDDEN = {
    ("model", 20): "instructions for training",
    ("model", 25): "functions of its own",
    ("attribute", 6): "a graph inside the graph (a loop or a branch)",
    ("attribute", 11): "a graph inside the graph (a loop or a branch)",
    ("tensor", 13): "weights in another file",
}
NODE_DOMAIN, DATA_LOCATION = ("node", 7), ("tensor", 14)
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types


def require_self_contained(model: bytes) -> None:
    """Raises `ValueError` unless the model consists of standard operators and of weights that stand in it.

    What is refused could read another file, or run code that is not part of the runtime: weights in other files,
    operators of other domains, functions, loops and branches. Nothing of it occurs in an exported policy.
    """
    waiting = [("model", memoryview(model))]
    while waiting:
        kind, message = waiting.pop()
        for number, value in _fields(message):
            if (kind, number) in FORBIDDEN:
                raise ValueError(f"the model has {FORBIDDEN[kind, number]}, which an exported policy never has")
            if (kind, number) == DATA_LOCATION and value != 0:
                raise ValueError("the model has weights in another file, which an exported policy never has")
            if (kind, number) == NODE_DOMAIN and value not in (b"", b"ai.onnx"):
                name = bytes(value).decode(errors="replace") if isinstance(value, memoryview) else value
                raise ValueError(f"the model has an operator of the domain {name!r}, expected only standard ones")
            if number in INSIDE[kind] and isinstance(value, memoryview):
                waiting.append((INSIDE[kind][number], value))


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field of a message in protobuf's encoding."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == BYTES:
            size, at = _varint(message, at)
        elif wire in (FIXED64, FIXED32):
            size = 8 if wire == FIXED64 else 4
        else:
            raise ValueError(f"the model is no ONNX file: wire type {wire} at byte {at}")
        if size > len(message) - at:
            raise ValueError("the model is no ONNX file, or it is truncated")
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of variable length, and where it ends."""
    value = 0
    for i in range(10):
        if at + i >= len(message):
            break
        byte = message[at + i]
        value |= (byte & 127) << (7 * i)
        if byte < 128:
            return value, at + i + 1
    raise ValueError("the model is no ONNX file, or it is truncated")
