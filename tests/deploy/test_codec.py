"""Messages of the wire: openpi's bytes exactly, and nothing of what is wrong gets through."""

from __future__ import annotations

import random
import struct

import msgpack
import numpy as np
import pytest

from flowhand.deploy.client import DTYPES, pack, unpack


def array_map(data: bytes = b"\0" * 8, dtype: object = "<f4", shape: object = (2,), **more: object) -> bytes:
    """The message of an array as the protocol describes it, built by hand."""
    content = {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}
    return bytes(msgpack.packb({**content, **{name.encode(): value for name, value in more.items()}}) or b"")


def test_an_array_is_packed_as_the_protocol_says():
    value = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert pack(value) == array_map(struct.pack("<6f", *range(6)), "<f4", (2, 3))
    expected = msgpack.packb({b"__npgeneric__": True, b"data": 3, b"dtype": "<i4"})
    assert pack(np.int32(3)) == expected
    assert pack({"a": [1, 2.5, "x", None, True]}) == msgpack.packb({"a": [1, 2.5, "x", None, True]})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 1, 4)])
def test_arrays_come_back_to_the_bit(dtype, shape):
    count = int(np.prod(shape))
    value = np.arange(count).astype(dtype).reshape(shape)
    back = unpack(pack({"value": value}))["value"]
    assert back.dtype == value.dtype
    assert back.shape == shape
    assert back.tobytes() == value.tobytes()
    assert not back.flags.writeable


def test_layout_and_byte_order_do_not_matter():
    value = np.arange(12, dtype=np.float64).reshape(3, 4)
    for variant in (value.T.copy().T, value.astype(">f8"), np.asfortranarray(value)):
        np.testing.assert_array_equal(unpack(pack(variant)), value)


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (np.array([object()]), "dtype object cannot be packed"),
        (np.zeros(2, np.complex64), "dtype complex64"),
        (np.array(["text"]), "dtype <U4"),
        (np.zeros(2, "datetime64[s]"), "dtype datetime64"),
        (np.zeros(2, [("a", "f4")]), "cannot be packed"),
        ({1, 2}, "a set cannot be packed"),
        (2**70, "cannot be packed"),
    ],
)
def test_what_cannot_be_packed_is_named(value, match):
    with pytest.raises(ValueError, match=match):
        pack({"value": value})


NESTED = b"\x91" * 500 + b"\xc0"
HOSTILE = {
    "empty": (b"", "invalid message"),
    "truncated": (array_map()[:-3], "incomplete"),
    "two messages": (array_map() * 2, "extra data"),
    "reserved byte": (b"\xc1", "invalid message"),
    "object dtype": (array_map(dtype="|O"), "dtype '|O' is not allowed"),
    "text dtype": (array_map(dtype="<U2"), "dtype '<U2' is not allowed"),
    "structured dtype": (array_map(dtype="f4,f4"), "is not allowed"),
    "dtype as a list": (array_map(dtype=[["a", "<f4"]]), "is not allowed"),
    "big-endian": (array_map(dtype=">f4"), "is not allowed"),
    "too few bytes": (array_map(data=b"\0" * 7), "must be the bytes of shape"),
    "huge shape": (array_map(shape=(2**40, 2**40)), "must be the bytes of shape"),
    "wrapping shape": (array_map(shape=(2**62, 8)), "must be the bytes of shape"),  # 0 in 64 bits
    "negative shape": (array_map(shape=(-1, -2)), "list of at most 8 sizes"),
    "fraction in the shape": (array_map(shape=(2.0,)), "list of at most 8 sizes"),
    "truth in the shape": (array_map(data=b"\0" * 4, shape=(True,)), "list of at most 8 sizes"),
    "many dimensions": (array_map(data=b"\0" * 4, shape=(1,) * 30), "list of at most 8 sizes"),
    "shape is a number": (array_map(shape=2), "list of at most 8 sizes"),
    "data is text": (array_map(data="12345678"), "must be the bytes"),  # pyright: ignore[reportArgumentType]
    "a key too many": (array_map(order="F"), "exactly the keys"),
    "odd booleans": (array_map(data=b"\0\2", dtype="|b1"), "0 and 1"),
    "scalar of text": (msgpack.packb({b"__npgeneric__": True, b"data": "x", b"dtype": "<f4"}), "must be a number"),
    "scalar too large": (msgpack.packb({b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}), "invalid message"),
    "scalar that is rounded": (msgpack.packb({b"__npgeneric__": True, b"data": 2.5, b"dtype": "<i4"}), "cannot be 2.5"),
    "scalar that overflows": (msgpack.packb({b"__npgeneric__": True, b"data": 1e99, b"dtype": "<f4"}), "overflow"),
    "bytes keys": (msgpack.packb({b"a": 1}), "bytes keys"),
    "number as key": (b"\x81\x01\x02", "not allowed for map key"),
    "key twice": (b"\x82\xa1a\x01\xa1a\x02", "a key twice"),
    "bytes alone": (msgpack.packb({"a": b"xx"}), "stands outside an array"),
    "extension": (msgpack.packb(msgpack.ExtType(5, b"xx")), "stands outside an array"),
    "timestamp": (msgpack.packb(msgpack.Timestamp(1, 2)), "stands outside an array"),
    "text that is no UTF-8": (b"\xa2\xff\xfe", "invalid message"),
    "nesting": (NESTED, "inside each other"),
    "deep nesting": (b"\x91" * 100_000 + b"\xc0", "invalid message"),
    "nested maps": (b"\x81\xa1a" * 400 + b"\xc0", "inside each other"),
    "list that claims to be huge": (b"\xdd\xff\xff\xff\xff", "exceeds max_array_len"),
    "map that claims to be huge": (b"\xdf\xff\xff\xff\xff", "exceeds max_map_len"),
    "bytes that claim to be huge": (b"\xc6\xff\xff\xff\xff", "invalid message"),
    "long list": (msgpack.packb([None] * 1025), "exceeds max_array_len"),
    "many lists": (msgpack.packb([[[]] * 1000] * 9), "more than 4096 maps and lists"),
}


@pytest.mark.parametrize(("data", "match"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_messages_are_refused_in_one_line(data, match):
    with pytest.raises(ValueError, match=match) as caught:
        unpack(data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_mutated_messages_raise_nothing_but_a_value_error():
    rng = random.Random(0)
    value = {"joints": np.arange(4.0), "camera": np.zeros((2, 2, 3), np.uint8), "reset": 3, "more": [np.float32(1), {}]}
    message, passed = pack(value), 0
    for _ in range(3000):
        data = bytearray(message)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            unpack(bytes(data[: rng.randint(1, len(data))] if rng.random() < 0.3 else data))
            passed += 1
        except ValueError:
            pass
    assert 100 < passed < 2900  # changed values pass, changed structure does not
