"""Parts of an action that point at rows of an observation, and which parts of it count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def check_pointers(pointers: Any, uses: Any, choices: tuple[int, ...]) -> None:
    """Checks `Feature.pointers` and `Feature.uses` against the numbers of choices of its dimensions.

    Raises:
        ValueError: a pointer is no choice or has no name; the uses are not one per choice of dimension 0.
    """
    for each in pointers or ():
        if len(each) != 2 or type(each[0]) is not int or not isinstance(each[1], str):
            raise ValueError(
                f"a pointer of a feature is {each!r}, expected its dimension and the name that it points at"
            )
        if not 0 <= each[0] < len(choices) or not choices[each[0]]:
            raise ValueError(f"the pointer {each!r} of a feature is no choice; its dimensions have {choices} choices")
    if len({place for place, _ in pointers or ()}) != len(pointers or ()):
        raise ValueError(f"the pointers {pointers!r} of a feature name a dimension twice")
    if uses is None:
        return
    if not choices or len(uses) != choices[0]:
        raise ValueError(
            f"feature uses has {len(uses)} entries, expected one for each choice of dimension 0, whose number is "
            f"{choices[0] if choices else 0}"
        )
    if any(type(place) is not int or not 0 < place < len(choices) for used in uses for place in used):
        raise ValueError(f"feature uses {uses!r} must name dimensions from 1 to {len(choices) - 1}")


def require_rows(pointers: Any, choices: tuple[int, ...], observation: Mapping[str, Any]) -> None:
    """Raises `ValueError` unless every pointer has an observation of elements with as many rows as it has choices."""
    for place, name in pointers or ():
        rows = observation.get(name)
        if rows is None or rows.kind != "elements" or rows.shape[0] != choices[place]:
            raise ValueError(
                f"dimension {place} of the action points at {choices[place]} rows of {name!r}, expected an observation "
                f"of kind 'elements' with as many; got {rows}"
            )
