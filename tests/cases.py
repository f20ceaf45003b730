"""Which cases of a parametrized test stand for the others in the fast suite."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def some(cases: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """All cases, where those that are not among the quick ones are run by `make test-all` only."""
    found = []
    for case in cases:
        values = case if isinstance(case, tuple) else (case,)
        marks = [] if case in quick else [pytest.mark.slow]
        found.append(pytest.param(*values, id="-".join(map(str, values)), marks=marks))
    assert len({len(case.marks) for case in found}) == 2, "some cases are quick and some are not"
    return found


def each_head_and_each_net(combinations: Iterable[tuple[str, ...]]) -> list[Any]:
    """Of combinations that end with a net and a head: each head with one net, and each net with one head, are quick.

    What heads and nets do together for every pair is tried by the tests of losses and gradients, which are quick.
    """
    return some(pairs := list(combinations), [pair for pair in pairs if pair[-2] == "mlp" or pair[-1] == "flow"])
