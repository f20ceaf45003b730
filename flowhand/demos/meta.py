"""What all the episodes of a store have in common, and `meta.json`, the file that says it."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from flowhand.contracts.features import Spec, shown

from .archive import read_bounded

FORMAT_VERSION = 1
MOST_BYTES = 2**23  # of the file
MOST_NESTING = 64  # lists and dicts inside each other


@dataclass(frozen=True)
class StoreMeta:
    """What all the episodes of a store have in common."""

    features: dict[str, Any]  # the JSON form of their `Spec`, as it is stored
    task: str  # instruction in words
    env: str  # where the episodes come from, e.g. "metaworld pick-place-v3" or "SO-101 arm, left table"
    env_version: str  # e.g. "metaworld 3.1.1, mujoco 3.3.0"; empty if nothing has a version
    recipe: dict[str, Any]  # everything that determines the episodes; empty for recorded ones

    def __post_init__(self) -> None:
        self.spec()
        for name, kind in (("task", str), ("env", str), ("env_version", str), ("recipe", dict)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name} is {shown(getattr(self, name))}: expected a {kind.__name__}")

    def spec(self) -> Spec:
        """What the episodes hold."""
        return Spec.from_dict(self.features)

    @property
    def recipe_hash(self) -> str:
        """SHA-256 of the recipe, hexadecimal."""
        return recipe_hash(self.recipe)


def recipe_hash(recipe: dict[str, Any]) -> str:
    """SHA-256 (hexadecimal) of a JSON-able recipe, whatever the order of its keys."""
    return hashlib.sha256(canonical(recipe).encode()).hexdigest()


def canonical(content: dict[str, Any]) -> str:
    """The content as JSON, whatever the order of its keys."""
    try:
        return json.dumps(content, sort_keys=True, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"store meta data must be plain JSON: {error}") from error


def meta_text(meta: StoreMeta) -> bytes:
    """The content of the file.

    Raises:
        ValueError: the meta data is not plain JSON.
    """
    return canonical({"format_version": FORMAT_VERSION, "recipe_hash": meta.recipe_hash, **asdict(meta)}).encode()


def read_meta(file: Path) -> StoreMeta:
    """The meta data in the file.

    Raises:
        ValueError: the file is missing, too large, or not what `meta_text` gives.
    """
    try:
        return parse_meta(read_bounded(file, MOST_BYTES), file)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{file} does not exist: {file.parent} is not a store of demonstrations") from error


def parse_meta(text: bytes, file: Path) -> StoreMeta:
    """The meta data in the text, which stands or will stand in the file."""
    try:
        content = json.loads(text)
        _require_shallow(content)
        json.dumps(content, ensure_ascii=False).encode()  # fails over a string that no file could hold
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {shown(str(error))}. Restore it from a copy or collect again") from error
    version = content.pop("format_version", None) if isinstance(content, dict) else None
    if type(version) is not int or version != FORMAT_VERSION:
        raise ValueError(
            f"{file}: format_version is {shown(version)}, this program reads {FORMAT_VERSION}: update flowhand"
        )
    expected = {field.name for field in fields(StoreMeta)} | {"recipe_hash"}
    if set(content) != expected:
        difference = sorted(set(content) ^ expected)
        raise ValueError(f"{file}: missing or unknown fields {shown(difference)}: expected {sorted(expected)}")
    recorded_hash = content.pop("recipe_hash")
    try:
        meta = StoreMeta(**content)
        actual_hash = meta.recipe_hash
    except ValueError as error:
        raise ValueError(f"{file}: {error}. Restore it from a copy or collect again") from error
    if recorded_hash != actual_hash:
        raise ValueError(f"{file}: recipe_hash is not that of the recipe: the file was edited, restore it")
    return meta


def _require_shallow(content: Any) -> None:
    """Raise ValueError where lists and dicts lie deeper inside each other than any meta data has them."""
    level = [content]
    for _ in range(MOST_NESTING):
        within = [part for part in level if isinstance(part, dict | list)]
        level = [part for each in within for part in (each.values() if isinstance(each, dict) else each)]
    if level:
        raise ValueError(f"more than {MOST_NESTING} lists and dicts lie inside each other")
