"""The help of a verb: its choices, the settings that matter, and, where asked for, all of them with their meaning."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from importlib import import_module
from typing import Any, get_args, get_type_hints

from . import groups

SHORT, ALL = "--help", "--help-all"
WIDTH = 118


def wanted(words: Sequence[str]) -> str:
    """Which help the command line asks for; empty for none."""
    return ALL if ALL in words else SHORT if {SHORT, "-h"} & set(words) else ""


def page(verb: str, whole: bool, words: Sequence[str] = ()) -> str:
    """The help of a verb: on one screen, or with every setting of the components that the command line chooses."""
    module, root = import_module(f"conf.verbs.{verb}"), groups.root(verb)
    examples = [f"  {example}" for example in module.EXAMPLES]
    lines = [f"usage: flowhand {verb} [name=value ...]", "", module.ABOUT, "", *examples]
    given = dict(word.split("=", 1) for word in words if "=" in word)
    chosen = {group: given.get(group, name) for group, name in groups.choices(verb).items()}
    for group, name in chosen.items():
        found = [f"[{each}]" if each == name else each for each in groups.names(group)]
        lines += ["", f"{group}=", *textwrap.wrap(", ".join(found), WIDTH, initial_indent="  ", subsequent_indent="  ")]
    lines += ["", "every setting:" if whole else "settings that matter most:"]
    known = {key: (default, comment) for key, default, comment in settings(root, chosen)}
    for key in known if whole else module.MATTER:
        default, comment = known[key]
        lines += textwrap.wrap(f"{key}={default}  {comment}", WIDTH, initial_indent="  ", subsequent_indent="      ")
    if not whole:
        lines += ["", f"{ALL} lists every setting; --multirun name=a,b,c runs a sweep"]
    return "\n".join(lines)


def keys(verb: str) -> list[str]:
    """The full name of every setting of a verb."""
    return [key for key, _, _ in settings(groups.root(verb), groups.choices(verb))]


def settings(root: type, chosen: Mapping[str, str | None], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(full name, default, meaning) of every setting below a class, of components by their default choice."""
    meanings, hints = comments(root), get_type_hints(root)
    for field in fields(root):
        key, kind = f"{prefix}{field.name}", hints[field.name]
        if not prefix and chosen.get(field.name):
            config = groups.table(field.name).get(str(chosen[field.name]))
            if config is not None:
                yield from settings(config, chosen, f"{key}.")
                continue
        nested = next((each for each in (kind, *get_args(kind)) if is_dataclass(each)), None)
        if not prefix and field.name in chosen:  # a group of which nothing is chosen
            continue
        if nested is not None:
            yield from settings(nested, chosen, f"{key}.")  # pyright: ignore[reportArgumentType]
        else:
            yield key, default_of(field), meanings.get(field.name, "")


def default_of(field: Field[Any]) -> str:
    """The default as it is typed; ??? where a value must be given."""
    if field.default is not MISSING:
        value = field.default
    elif field.default_factory is not MISSING:
        value = field.default_factory()
    else:
        value = "???"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@cache
def comments(config: type) -> dict[str, str]:
    """The comment of every field of a configuration class: at the end of its line, or in the lines above it."""
    found: dict[str, str] = {}
    for base in reversed(config.__mro__):
        if not is_dataclass(base):
            continue
        try:
            source = textwrap.dedent(inspect.getsource(base))
        except (OSError, TypeError):  # a class that was made without a file
            continue
        lines, body = source.splitlines(), ast.parse(source).body[0]
        assert isinstance(body, ast.ClassDef)
        for node in body.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                end = lines[(node.end_lineno or node.lineno) - 1][node.end_col_offset :].strip()
                above, at = [], node.lineno - 2
                while lines[at].strip().startswith("#"):
                    above.insert(0, lines[at].strip().removeprefix("#").strip())
                    at -= 1
                found[node.target.id] = " ".join([*above, end.removeprefix("#").strip()]).strip()
    return found
