"""What a hostile peer sends, and a person who types without looking: the inputs of `benchmarks/fuzz.py`."""

from __future__ import annotations

import json
import random
import zlib
from typing import Any

import msgpack
import numpy as np
import safetensors.torch
import torch

from flowhand.deploy.client import DTYPES, pack

NUMBERS = (0, -1, 1, 2, 127, 128, 255, 2**31, 2**32, 2**63, -(2**63), 2**64 - 1, 0.0, -0.0, 1e308, 1e39, 1e-320)
FLOATS = (float("nan"), float("inf"), -float("inf"))
KEYS = ("joints", "camera", "reset", "decision", "prompt", "actions", "__ndarray__")
WORDS = (*KEYS, "", "x" * 300, "\n", "\0", "é", "<f4")
BAD_DTYPES = ("|O", "<c8", "<U4", "|S4", "|V8", "<M8[s]", ">f4", "f4,f4", "float32", "O", "", "|b1|b1", "<f4\n", "🤖")
TOKENS = (
    *(bytes([head]) + b"\xff" * size for head, size in ((0xDD, 4), (0xDF, 4), (0xC6, 4), (0xC9, 5), (0xDB, 4))),
    *(b"\x91" * 40, b"\x91" * 1100, b"\x81\xa1a" * 30, b"\xc1", b"\xc0", b"\xd6\xff\0\0\0\0"),
    *(b"\xcb\x7f\xf8" + b"\0" * 6, b"\xca\x7f\x80\0\0", b"\xa3<f4", b"\xa2|O"),
    *(b"\x81\xc4\x0b__ndarray__\xc3", b"\xc4\x05shape\x92\xcf" + b"\xff" * 8 + b"\x00"),
)
JSON = (
    "null",
    "true",
    "-1",
    "0",
    "1e400",
    "1" + "0" * 400,
    '"x"',
    '""',
    "[]",
    "{}",
    "[[[]]]",
    '{"kind": "flow"}',
    '"\\n"',
    *(json.dumps(dtype) for dtype in BAD_DTYPES),
)
TENSOR_DTYPES = (torch.bfloat16, torch.float8_e4m3fn, torch.float16, torch.float64, torch.int64, torch.bool)


def mutated(rng: random.Random, data: bytes) -> bytes:
    """The bytes after one to five small changes."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 5)):
        at, to = sorted(rng.randrange(len(out) + 1) for _ in range(2))
        kind = rng.randrange(6)
        if kind == 0 and out:
            out[min(at, len(out) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1 and out:
            out[min(at, len(out) - 1)] = rng.randrange(256)
        elif kind == 2:
            del out[at : min(to, at + 8)]
        elif kind == 3:
            out[at:at] = rng.choice(TOKENS)
        elif kind == 4:
            out[at:at] = out[at : min(to, at + 64)]
        elif rng.random() < 0.3:
            del out[at:]
    return bytes(out)


def weird(rng: random.Random, depth: int = 0) -> Any:
    """A value that msgpack can pack and nobody asked for."""
    kind = rng.randrange(9 if depth < 4 else 6)
    if kind < 2:
        return rng.choice(NUMBERS + FLOATS)
    if kind == 2:
        return rng.choice(WORDS)
    if kind == 3:
        return rng.randbytes(rng.choice((0, 1, 12, 24, 200)))
    if kind == 4:
        return rng.choice((None, True, False, msgpack.ExtType(rng.randrange(128), b"x"), msgpack.Timestamp(1, 2)))
    if kind in (5, 6):
        return weird_array(rng)
    entries = [weird(rng, depth + 1) for _ in range(rng.choice((0, 1, 2, 5, 30)))]
    keys = [rng.choice((*WORDS, *(word.encode() for word in WORDS))) for _ in entries]
    return entries if kind == 7 else dict(zip(keys, entries, strict=True))


def weird_array(rng: random.Random) -> dict[Any, Any]:
    """The map of an array of which some part may be wrong."""
    dtype = rng.choice(DTYPES) if rng.random() < 0.8 else rng.choice((*BAD_DTYPES, 4, None, [["a", "<f4"]]))
    shape = [rng.choice((0, 1, 2, 3, 8, -1, 2**31, 2**62, True, 2.0)) for _ in range(rng.randint(0, 9))]
    data = rng.randbytes(rng.choice((0, 1, 4, 12, 24, 192)))
    if rng.random() < 0.6:  # as many bytes as it says
        shape = [rng.choice((0, 1, 2, 3, 8)) for _ in range(rng.randint(0, 4))]
        itemsize = np.dtype(dtype).itemsize if dtype in DTYPES else 4
        data = rng.randbytes(int(np.prod(shape)) * itemsize)
    array = {b"__ndarray__": rng.choice((True, True, 1, None)), b"data": data, b"dtype": dtype, b"shape": shape}
    if rng.random() < 0.1:
        array.pop(rng.choice(list(array)))
    return array if rng.random() < 0.9 else {b"__npgeneric__": True, b"data": rng.choice(NUMBERS), b"dtype": dtype}


def message(rng: random.Random, good: dict[str, Any]) -> bytes:
    """A message that may once have been a good one."""
    kind = rng.randrange(4)
    if kind == 0:
        return mutated(rng, pack(good))
    if kind == 1:
        return bytes(msgpack.packb(weird(rng)) or b"")
    changed = unpack_plain(pack(good))
    for _ in range(rng.randint(1, 3)):
        changed[rng.choice([*good, *WORDS])] = weird(rng)
    packed = bytes(msgpack.packb(changed) or b"")
    return packed if kind == 2 else mutated(rng, packed)


def unpack_plain(data: bytes) -> Any:
    """The content of a message with its arrays still as maps."""
    return msgpack.unpackb(data, strict_map_key=False)


def one_line(text: str) -> None:
    """Raises `AssertionError` unless the text is an explanation of one line."""
    assert text.strip(), "an error says nothing"
    assert "\n" not in text, f"an error has several lines: {text!r}"
    assert "Traceback" not in text, f"an error has a traceback: {text!r}"


def weird_json(rng: random.Random, data: Any) -> str:
    """The data as JSON after one to three of its entries were changed, removed or added."""
    for _ in range(rng.randint(1, 3)):
        place: Any = data
        while isinstance(place, dict | list) and place:
            key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
            if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.3:
                break
            place = place[key]
        else:
            continue
        if rng.random() < 0.2:
            del place[key]
        elif rng.random() < 0.2 and isinstance(place, dict):
            place[rng.choice(("kind", "extra", "", "steps", "width"))] = json.loads(rng.choice(JSON))
        else:
            place[key] = rng.choice(NUMBERS + FLOATS) if rng.random() < 0.3 else json.loads(rng.choice(JSON))
    return json.dumps(data)


def other_json(rng: random.Random, good: bytes) -> bytes:
    """The JSON with other bytes, or with other content."""
    return mutated(rng, good) if rng.random() < 0.3 else weird_json(rng, json.loads(good)).encode()


def other_tensors(rng: random.Random, good: bytes) -> bytes:
    """The file of safetensors with other bytes, another header, or a tensor that is another one."""
    end, kind = 8 + int.from_bytes(good[:8], "little"), rng.randrange(3)
    if kind == 0:
        cut = rng.choice((8, end, len(good)))
        return mutated(rng, good[:cut]) + good[cut:]
    if kind == 1:
        header = weird_json(rng, json.loads(good[8:end])).encode()
        return len(header).to_bytes(8, "little") + header + good[end:]
    tensors = safetensors.torch.load(good)
    name = rng.choice(list(tensors))
    old = tensors.pop(name)
    new = [old.to(rng.choice(TENSOR_DTYPES)), old.flatten(), old[None], old[:0], old[..., :1].contiguous()]
    new.append(torch.full_like(old, rng.choice((*FLOATS, 0.0, -1.0, 1e30))))
    if rng.random() < 0.9:
        tensors[name if rng.random() < 0.9 else "other"] = rng.choice(new)
    return safetensors.torch.save(tensors)


def other_journal(rng: random.Random, good: bytes) -> bytes:
    """The journal of a run cut off, with other bytes in its beginning or anywhere, another header or other records."""
    end, kind = 12 + int.from_bytes(good[8:12], "little"), rng.randrange(9)
    if kind > 4:
        return other_records(rng, good[:end], good[end:])
    if kind == 0:
        return good[: rng.randrange(len(good))]
    if kind < 3:
        cut = rng.choice((12, end, len(good)))
        return mutated(rng, good[:cut]) + good[cut:]
    told = json.loads(good[12:end])
    if kind == 3:  # the layout of the records alone
        told["record"] = json.loads(weird_json(rng, told["record"]))
    header = json.dumps(told).encode() if kind == 3 else other_json(rng, good[12:end])
    return good[:8] + len(header).to_bytes(4, "little") + header + good[end:]


def other_records(rng: random.Random, start: bytes, body: bytes) -> bytes:
    """The journal with other values in its records, or other records, by someone who mends their checksums."""
    told = json.loads(start[12:])
    kind = np.dtype([(name, form, tuple(shape)) for name, form, shape in told["record"]])
    records = np.frombuffer(body, kind).copy()
    for _ in range(rng.randint(1, 4)):
        record, name = records[rng.randrange(len(records))], rng.choice(kind.names or ())
        values = record[name].reshape(-1) if kind[name].shape else records[name][rng.randrange(len(records))].reshape(1)
        if kind[name].shape:
            values[rng.randrange(len(values))] = other_value(rng, values.dtype)
        else:
            record[name] = other_value(rng, values.dtype)
    order = list(range(len(records)))
    if rng.random() < 0.3:
        order = [rng.randrange(len(records)) for _ in range(rng.randint(0, 2 * len(records)))]
    if rng.random() < 0.1:  # names of fewer reasons than the records have
        told[rng.choice(("refusals", "clamps"))] = rng.choice(([], [""], ["x"] * 300, [None], "no list"))
    records = records[order]
    for record in records if rng.random() < 0.9 else ():
        record["crc"] = zlib.crc32(record.tobytes()[:-4])
    header = json.dumps(told).encode()
    length = len(header) + (rng.choice((-1, 1, 2**31)) if rng.random() < 0.05 else 0)
    return start[:8] + length.to_bytes(4, "little") + header + records.tobytes() + rng.randbytes(rng.choice((0, 0, 7)))


def other_value(rng: random.Random, dtype: np.dtype) -> Any:
    """A number that is none, one at an end of its type, a time of another clock, or text of any bytes."""
    if dtype.kind == "f":
        value = rng.choice((*FLOATS, -1.8e9, -0.02, 1.8e9, 1e308, -1e308, 1e39, 1e-320, -0.0, 0.5, 1.0))
        return value if dtype.itemsize == 8 or abs(value) < 1e38 else rng.choice(FLOATS)
    if dtype.kind == "S":
        return rng.randbytes(rng.randrange(dtype.itemsize + 1))
    ends = np.iinfo(dtype)
    return rng.choice((ends.min, ends.max, ends.max - 1, 0, 1, 2, rng.randint(int(ends.min), int(ends.max))))


def mutated_text(rng: random.Random, text: str) -> str:
    """The text with a character of another world in it."""
    at = rng.randrange(len(text) + 1)
    return text[:at] + rng.choice("=:,[]{}$@~+ '\"\\é\n\0") + text[at:]


def observation() -> dict[str, Any]:
    """A good request to the toy policy."""
    return {"joints": np.zeros(3, np.float32), "camera": np.zeros((8, 8, 3), np.uint8), "reset": 1, "decision": 2}
