"""One robot's episode on the server: what it has seen, and which noise its next decision takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from flowhand.contracts.history import History, fitting
from flowhand.contracts.planner import Planner

RESET, DECISION, PROMPT = "reset", "decision", "prompt"  # keys of a request beside the observation's
MAX_PROMPT = 1024  # characters


class Session:
    """The episode of one connection. Plain openpi clients need not know of it: a new connection starts one, seed 0.

    A request is the observation's arrays, each (*shape) or its history (O, *shape). Of single ones the session keeps
    the last O, starting with copies of the first, so such a client asks at every control step; histories replace what
    was kept. Three more keys are optional:

        reset     starts an episode with this seed, in [0, 2^32), of which this is the first observation
        decision  number of this decision in its episode; without it the answered decisions are counted
        prompt    an instruction of at most `MAX_PROMPT` characters, as openpi's robots send it; ignored, for policies
                  here have no language input (one that observes a feature of this name gets that array, as any other)

    With seed, number and histories a request depends on nothing before it, and a restarted server gives the same
    answer.
    """

    def __init__(self, policy: Planner):
        self.seed = 0
        self.decision = 0
        features = policy.spec.observation
        self._beside = {RESET, DECISION} | ({PROMPT} - features.keys())
        self._history = History(features, policy.chunk.history)

    def read(self, request: Any) -> dict[str, np.ndarray]:
        """The observation histories (O, *shape) to decide on; an invalid request changes nothing.

        Raises:
            ValueError: what is missing, unknown, or of the wrong shape, dtype or range.
        """
        if not isinstance(request, dict):
            raise ValueError(f"the request is a {type(request).__name__}, expected a map of arrays")
        arrays = {name: value for name, value in request.items() if name not in self._beside}
        features = self._history.features
        if arrays.keys() != features.keys():
            raise ValueError(
                f"the observation has {_names(arrays)}, expected {_names(features)} and, if wanted, "
                f"{RESET}, {DECISION} and {PROMPT}"
            )
        prompt = request.get(PROMPT, "") if PROMPT in self._beside else ""
        if not isinstance(prompt, str) or len(prompt) > MAX_PROMPT:
            raise ValueError(f"{PROMPT} must be a string of at most {MAX_PROMPT} characters")
        single = self._single(arrays)
        taken = fitting(arrays, features, *(() if single else (self._history.length,)))
        seed, decision = (_count(request, key) for key in (RESET, DECISION))
        if seed is not None:
            self.seed, self.decision, self._history = seed, 0, History(features, self._history.length)
        self.decision = self.decision if decision is None else decision
        (self._history.see if single else self._history.replace)(taken)
        return self._history.arrays()

    def _single(self, arrays: dict[str, Any]) -> bool:
        """Whether the arrays are of a single control step, not histories; `ValueError` if they are neither."""
        forms = set()
        for name, feature in self._history.features.items():
            value, history = arrays[name], (self._history.length, *feature.shape)
            if not isinstance(value, np.ndarray) or value.shape not in (feature.shape, history):
                got = f"shape {value.shape}" if isinstance(value, np.ndarray) else f"type {type(value).__name__}"
                raise ValueError(f"observation {name!r} has {got}, expected an array {feature.shape} or {history}")
            forms.add(value.shape == feature.shape)
        if len(forms) > 1:
            raise ValueError("some observations are of a single step and some are histories; expected one form")
        return forms.pop()


def _names(mapping: Mapping[str, Any]) -> str:
    names = [repr(name[:40]) for name in list(mapping)[:20]]
    return ", ".join([*names, "..."] if len(mapping) > 20 else names) or "nothing"


def _count(request: dict[str, Any], key: str) -> int | None:
    value = request.get(key)
    if value is not None and (type(value) is not int or not 0 <= value < 2**32):
        raise ValueError(f"{key} must be an integer in [0, 2^32)")
    return value
