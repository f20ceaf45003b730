"""Hostile training states, for `benchmarks/fuzz.py`: another archive, another pickle in it, or other values."""

from __future__ import annotations

import copy
import io
import random
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.fuzz_inputs import FLOATS, NUMBERS, TENSOR_DTYPES, mutated, one_line
from policies.training.train_state import require_state, unpacked

STEPS = 10
OPCODES = (
    *(b"cbuiltins\nbytearray\n(K\x01tR.", b"cbuiltins\nbytearray\n\x8a\x05\0\xe4\x0bT\x02\x85R", b"r\xff\xff\xff\x7f"),
    *(
        b"]q\x01h\x01a",
        b"(" * 500,
        b"]" * 2000,
        b"}q\0h\0",
        b"cos\nsystem\n(U\x01ltR",
        b"N0",
        b"\x8a\xff",
        b"\x8d",
        b"b",
    ),
    *(
        b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"X\xff\xff\xff\xff",
        b"ccollections\nOrderedDict\n)R}b",
        b"Q",
        b"t",
        b"u",
    ),
)


def trainer() -> tuple[dict[str, Any], list[torch.Tensor]]:
    """The state of a very small training after a step, and its parameters."""
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    history = [{"step": 1, "loss": 0.5, "lr": 1e-3, "threads": 1, "success": {"n": 1, "successes": 0}}]
    state = {"policy": net.state_dict(), "ema": net.state_dict(), "ema_updates": 1, "optimizer": optimizer.state_dict()}
    state |= {"generator": torch.Generator().get_state(), "step": 1, "seconds": 0.5, "history": history}
    return {**state, "threads": [[0, 1]]}, list(net.parameters())


def other_tensor(rng: random.Random, old: torch.Tensor) -> torch.Tensor:
    """The tensor in another shape or dtype, or with other numbers."""
    new = [old.to(rng.choice(TENSOR_DTYPES)), old.flatten(), old[None], old[None][:0], old.expand(3, *old.shape)]
    number = rng.choice((0, 1) if old.dtype == torch.uint8 else (*FLOATS, 0.0, -1.0, 1e30))
    new.append(torch.full(old.shape, number).to(old.dtype))  # of which a narrow dtype makes what it can
    return rng.choice(new)


def other_values(rng: random.Random, state: dict[str, Any]) -> Any:
    """The state with up to three other values in it."""
    state = copy.deepcopy(state)
    for _ in range(rng.randint(1, 3)):
        place: Any = state
        while True:
            key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
            if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.2:
                break
            place = place[key]
        kind = rng.randrange(6)
        if kind == 0:
            del place[key]
        elif kind == 1 and isinstance(place, dict):
            place[rng.choice(("other", "", "step", 7, "\ud800\n"))] = place[key]
        elif isinstance(place[key], torch.Tensor) and kind < 5:
            place[key] = other_tensor(rng, place[key])
        else:
            odd = (
                None,
                True,
                "x\ny",
                "\ud800",
                [],
                {},
                (1,),
                10**400,
                [[0, 1, 2]],
                {"a": {}},
                torch.ones(2),
                OrderedDict(),
            )
            place[key] = rng.choice((*odd, *NUMBERS, *FLOATS))
        if not state:
            break
    return state


def other_archive(rng: random.Random, good: bytes) -> bytes:
    """The archive with other entries, or another pickle."""
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name, kind = rng.choice(list(entries)), rng.randrange(6)
    method = zipfile.ZIP_DEFLATED if kind == 0 else zipfile.ZIP_STORED
    pickled = next(name for name in entries if name.endswith("data.pkl"))
    if kind == 1:
        del entries[name]
    elif kind == 2:
        entries[name] = rng.choice((b"", b"big", bytes(10_000), entries[name][:-1]))
    elif kind == 3:
        entries[pickled] = mutated(rng, entries[pickled])
    elif kind > 3:
        at = rng.randrange(len(entries[pickled]))
        entries[pickled] = (
            entries[pickled][:at] + rng.choice(OPCODES) + entries[pickled][at + rng.choice((0, 0, 1, 5)) :]
        )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for other, content in entries.items():
            archive.writestr(other, content)
    return packed.getvalue()


def other_state(rng: random.Random, state: dict[str, Any], good: bytes) -> bytes:
    """The file of another state, another archive, or other bytes."""
    kind = rng.random()
    if kind < 0.4:
        packed = io.BytesIO()
        torch.save(other_values(rng, state), packed)
        return packed.getvalue()
    if kind < 0.8:
        return other_archive(rng, good)
    cut = rng.choice((0, 60, len(good) - 1000, len(good) - 22))
    return good[:cut] + mutated(rng, good[cut:])


def target(_: Path) -> Callable[[random.Random], str]:
    """What a resumed training does with a state before it takes anything of it."""
    state, parameters = trainer()
    packed = io.BytesIO()
    torch.save(state, packed)
    require_state(unpacked(packed.getvalue()), state, parameters, STEPS)

    def case(rng: random.Random) -> str:
        try:
            found = unpacked(other_state(rng, state, packed.getvalue()))
        except ValueError as error:
            one_line(str(error))
            return "not read"
        if not isinstance(found, dict):
            return "no dict"
        try:
            require_state(found, state, parameters, STEPS)
        except ValueError as error:
            one_line(str(error))
            str(error).encode()
            return "refused"
        assert all(bool(value.isfinite().all()) for value in found["policy"].values())
        optimizer = torch.optim.AdamW(parameters, 1e-3)
        optimizer.load_state_dict(found["optimizer"])
        torch.Generator().set_state(found["generator"])
        return "taken"

    return case
