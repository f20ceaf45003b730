"""Hostile stores of demonstrations, for `benchmarks/fuzz.py`: what a stranger may have done to each of their files.

Archives are put together by hand, so that what an array's own header says, what its entry in the table of contents says
and what is there can each be something else.
"""

from __future__ import annotations

import os
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.fuzz_inputs import mutated, mutated_text, one_line, other_json
from flowhand.contracts.data.episode import Episode
from flowhand.demos.meta import StoreMeta
from flowhand.demos.native import Store

VECTOR = {"shape": [2], "dtype": "float32", "unit": "m", "low": [-1.0, -1.0], "high": [1.0, 1.0]}
IMAGE = {"shape": [2, 2, 3], "dtype": "uint8", "unit": "", "low": None, "high": None}
FEATURES = {"observation": {"state": VECTOR, "image": IMAGE}, "action": VECTOR, "control_dt_s": 0.05}
STEPS = 3
NUMBERS = (0, 1, 2, 8, 20, 99, 255, 2**12, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
DESCRIPTIONS = (
    "<f4",
    "<f8",
    ">f4",
    "|u1",
    "|b1",
    "<i8",
    "<U9",
    "<U0",
    "<U999999999",
    "|O",
    "<c8",
    "|V8",
    "<M8[s]",
    "f4,f4",
)
SHAPES = ("()", "(3,)", "(3, 2)", "(0,)", "(3, -2)", "(999999999999,)", "(3, 2", "(3,), 'x': 1", "((3,))", "(True, 2)")


@dataclass
class Member:
    """An array in an archive, as it is, and what its two headers say otherwise."""

    name: str
    content: bytes
    method: int = 0
    local: dict[str, int] = field(default_factory=dict)
    central: dict[str, int] = field(default_factory=dict)
    central_name: str | None = None


def headers(member: Member, data: bytes, offset: int) -> tuple[bytes, bytes]:
    """The header before the array and the entry in the table of contents."""
    told = {
        "version": 20,
        "flags": 0,
        "method": member.method,
        "time": 0,
        "date": 33,
        "crc": zlib.crc32(member.content),
        "packed": len(data),
        "size": len(member.content),
        "name": 0,
        "extra": 0,
    }
    name, other = member.name.encode(), (member.central_name or member.name).encode()
    before = [value % 2**32 for value in (told | {"name": len(name)} | member.local).values()]
    entry = told | {"name": len(other), "comment": 0, "disk": 0, "internal": 0, "external": 0, "offset": offset}
    table = [value % 2**32 for value in (entry | member.central).values()]
    small = [n % 2**16 for n in before[:5]] + before[5:8] + [n % 2**16 for n in before[8:]]
    large = [20, *(n % 2**16 for n in table[:5]), *table[5:8], *(n % 2**16 for n in table[8:13]), *table[13:]]
    local = struct.pack("<4s5H3L2H", b"PK\x03\x04", *small) + name
    return local + data, struct.pack("<4s6H3L5H2L", b"PK\x01\x02", *large) + other


def archive(members: list[Member], end: dict[str, int]) -> bytes:
    """The file; `end` is what its last record says otherwise."""
    body, table = b"", b""
    for member in members:
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        data = packer.compress(member.content) + packer.flush() if member.method == 8 else member.content
        before, entry = headers(member, data, len(body))
        body, table = body + before, table + entry
    count = len(members)
    told = {"disk": 0, "first": 0, "here": count, "all": count, "size": len(table), "offset": len(body), "comment": 0}
    values = list((told | end).values())
    last = [n % 2**16 for n in values[:4]] + [n % 2**32 for n in values[4:6]] + [values[6] % 2**16]
    return body + table + struct.pack("<4s4H2LH", b"PK\x05\x06", *last)


def npy(array: np.ndarray, header: str | None = None) -> bytes:
    """The array's file, with another header if one is given."""
    order = array.flags.f_contiguous and not array.flags.c_contiguous
    text = header or f"{{'descr': '{array.dtype.str}', 'fortran_order': {order}, 'shape': {array.shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text.encode()) % 2**16) + text.encode() + array.tobytes()


def arrays() -> dict[str, np.ndarray]:
    """Those of a good episode."""
    return {
        "observation/state": np.ones((STEPS, 2), np.float32),
        "observation/image": np.zeros((STEPS, 2, 2, 3), np.uint8),
        "action": np.zeros((STEPS, 2), np.float32),
        "reward": np.zeros(STEPS, np.float32),
        "success": np.ones(STEPS, bool),
        "task": np.array("reach"),
        "seed": np.array(3),
        "control_dt_s": np.array(0.05),
    }


def other_array(rng: random.Random, array: np.ndarray) -> bytes:
    """The array's file with another header, other numbers, or another array."""
    kind = rng.randrange(4)
    if kind == 0:
        header = (
            f"{{'descr': '{rng.choice(DESCRIPTIONS)}', 'fortran_order': {rng.choice(('False', 'True', '1'))}, "
            f"'shape': {rng.choice(SHAPES)}, }}"
        )
        return npy(array, mutated_text(rng, header) if rng.random() < 0.3 else header)
    if kind == 1:
        content = npy(array)
        cut = rng.choice((10, 80, len(content)))
        return mutated(rng, content[:cut]) + content[cut:]
    if kind == 2:
        return npy(array) + bytes(rng.choice((1, 8, 10_000)))
    others = [array[None], array.ravel()[:0], np.asfortranarray(array), np.array("\ud800x"), np.zeros(2**13)]
    others += [array.astype(np.float64), np.full_like(array, 2)] if array.dtype.kind != "U" else [np.array("a\nb")]
    return npy(rng.choice([*others, np.full(array.shape, np.nan, np.float32)]))


def other_archive(rng: random.Random, good: dict[str, np.ndarray]) -> bytes:
    """An archive in which up to three things are not as they should be."""
    members = [Member(f"{name}.npy", npy(array), rng.choice((0, 0, 8))) for name, array in good.items()]
    end: dict[str, int] = {}
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(members))
        member, kind = members[at], rng.randrange(8)
        if kind < 3:
            name = member.name.removesuffix(".npy")
            member.content = other_array(rng, good[name]) if name in good else mutated(rng, member.content)
        elif kind == 3:
            place = member.local if rng.random() < 0.5 else member.central
            fields = ("flags", "method", "crc", "packed", "size", "name", "extra", "offset", "comment")
            place[rng.choice(fields if place is member.central else fields[:7])] = rng.choice(NUMBERS)
        elif kind == 4:
            member.central_name = rng.choice(("x.npy", "action", "../a.npy", "\0", "", "task.npy", member.name + "\0"))
        elif kind == 5:
            member.name = rng.choice(("x.npy", "action", "action.npy", "observation/", "observation/.npy", "é.npy"))
        elif kind == 6:
            members.insert(at, Member(member.name, member.content)) if rng.random() < 0.5 else members.remove(member)
        else:
            end[rng.choice(("disk", "here", "all", "size", "offset", "comment"))] = rng.choice(NUMBERS)
    return archive(members, end)


def other_episode(rng: random.Random, good: bytes, values: dict[str, np.ndarray]) -> bytes:
    """The file with other bytes, or another archive."""
    if rng.random() < 0.7:
        return other_archive(rng, values)
    cut = rng.choice((0, 100, len(good) - 400, len(good) - 22))
    return good[:cut] + mutated(rng, good[cut:])


def no_file(rng: random.Random, file: Path) -> None:
    """Something that is not a file in a file's place."""
    kind = rng.randrange(3)
    if kind == 0:
        os.mkfifo(file)
    elif kind == 1:
        file.mkdir()
    else:
        file.symlink_to(rng.choice(("/dev/zero", "/dev/null", "/nowhere", file)))


def remove(file: Path) -> None:
    """Whatever is there."""
    if file.is_dir() and not file.is_symlink():
        file.rmdir()
    else:
        file.unlink(missing_ok=True)


def use(path: Path) -> None:
    """What training does with a store, and what must be true of an episode that is taken."""
    store = Store.open(path)
    store.hash()
    for episode in store:
        assert np.isfinite(episode.action).all()
        assert episode.action.shape == (len(episode), *store.spec.action.shape)
        assert 0 <= episode.seed < 10**6
        assert episode.task.encode() is not None
        assert all(len(value) == len(episode) for value in episode.observation.values())


def target(folder: Path) -> Callable[[random.Random], str]:
    """Opening a store that was tampered with, and reading all of it."""
    store = Store.create(folder / "store", StoreMeta(FEATURES, "reach", "toy", "1", {"seed": 0, "noise": 0.1}))
    values = arrays()
    observation = {name.partition("/")[2]: values[name] for name in values if "/" in name}
    store.append(Episode(observation, values["action"], values["reward"], values["success"], "reach", 3, 0.05))
    files = {name: (store.path / name).read_bytes() for name in ("meta.json", "episodes/000000.npz")}

    def case(rng: random.Random) -> str:
        name = "meta.json" if rng.random() < 0.3 else "episodes/000000.npz"
        file, good = store.path / name, files[name]
        remove(file)
        if rng.random() < 0.05:
            no_file(rng, file)
        else:
            file.write_bytes(other_json(rng, good) if name == "meta.json" else other_episode(rng, good, values))
        try:
            use(store.path)
        except ValueError as error:
            one_line(str(error))
            return "refused"
        finally:
            remove(file)
            file.write_bytes(good)
        return "taken"

    return case
