"""Dataclasses from mappings: only fields that exist, only values of their type."""

from __future__ import annotations

import difflib
import json
import operator
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any, TypeVar

T = TypeVar("T")


def require_within(config: Any, part: str, limits: Mapping[str, tuple[float, float]]) -> None:
    """Raises `ValueError` unless these fields lie between their limits; NaN does not."""
    for name, (low, high) in limits.items():
        if not low <= getattr(config, name) <= high:
            raise ValueError(f"{part}.{name}={getattr(config, name)} must lie in {low:g}..{high:g}")


def build(cls: type[T], data: Any, where: str) -> T:
    """A dataclass from a mapping with exactly its fields, each value of its field's type; `ValueError` otherwise.

    A field that came after the first release says in its metadata what a mapping from before meant by leaving it out:
    `path: str = field(default="cosine", metadata={"before": "linear"})`. A field that is gone stands in the class's
    `removed` and is passed over.
    """
    known = fields(cls)  # pyright: ignore[reportArgumentType]  (T is always a dataclass)
    removed = getattr(cls, "removed", ())
    values = {f.name: f.metadata["before"] for f in known if "before" in f.metadata}
    values |= {key: value for key, value in mapping(data, where).items() if key not in removed}
    hints = typing.get_type_hints(cls)
    names = [f.name for f in known]
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"fields: {', '.join(names)}"
            raise ValueError(f"{where} has the unknown field {key!r}; {hint}")
    for name in names:
        if name not in values:
            raise ValueError(f"{where} lacks the field {name!r}")
        if not fits(values[name], hints[name]):
            expected = hints[name] if typing.get_args(hints[name]) else hints[name].__name__
            raise ValueError(f"{where}.{name} is {values[name]!r}, expected a value of type {expected}")
    return cls(**{name: float(v) if hints[name] is float else v for name, v in values.items()})


def fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value is of the annotated type, elements included; floats are finite, a bool is no number."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, choice) for choice in arguments)
    if origin is list:
        return isinstance(value, list) and all(fits(v, arguments[0]) for v in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            fits(k, arguments[0]) and fits(v, arguments[1]) for k, v in value.items()
        )
    if hint is Any:
        return True
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return isinstance(value, hint) and isinstance(value, bool) == (hint is bool)


def mapping(data: Any, where: str) -> Mapping[str, Any]:
    """The data itself; `ValueError` if it is no mapping."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{where} is {data!r}, expected fields and values")
    return data


def parse_json(text: str | bytes) -> Any:
    """What JSON says; `ValueError` where a key occurs twice, which readers take differently."""
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"it has the key {next(key for key in keys if keys.count(key) > 1)[:60]!r} twice")
    return content


def whole(name: str, value: Any) -> int:
    """A seed or a count from outside as an int of Python: sums and shifts of NumPy's integers wrap around.

    Raises:
        ValueError: it is no integer; a bool is none either.
    """
    if not isinstance(value, bool):
        with suppress(TypeError):
            return operator.index(value)
    raise ValueError(f"{name} is {value!r}, expected an integer")


def whole_numbers(config: Any) -> None:
    """`whole` for every field of a dataclass that is annotated as int."""
    for field in fields(config):
        if field.type in ("int", int):
            setattr(config, field.name, whole(field.name, getattr(config, field.name)))


def nearest(name: str, choices: Iterable[str]) -> str:
    """Say which of the choices the name may have meant, for an error message."""
    choices = sorted(choices)
    close = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    return f"did you mean {', '.join(close)}?" if close else f"choose one of {', '.join(choices)}"
