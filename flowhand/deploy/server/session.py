"""One robot's episode on the server: what it has seen, and which noise its next decision takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flowhand.contracts.data.tasks import SOURCE, TASK, given
from flowhand.contracts.features import GIVEN
from flowhand.contracts.history import History, fitting
from flowhand.contracts.planner import Planner

RESET, DECISION, PROMPT, FROM = "reset", "decision", "prompt", "source"  # keys of a request beside the observation's
MAX_PROMPT = 1024  # characters


class Session:
    """The episode of one connection. Plain openpi clients need not know of it: a new connection starts one, seed 0.

    A request is the observation's arrays, each (*shape) or its history (O, *shape). Of single ones the session keeps
    the last O, starting with copies of the first, so such a client asks at every control step; histories replace what
    was kept. Four more keys are optional:

        reset     starts an episode with this seed, in [0, 2^32), of which this is the first observation
        decision  number of this decision in its episode; without it the answered decisions are counted
        prompt    the task of at most `MAX_PROMPT` characters, as openpi's robots send it with every request; it holds
                  until another one comes. A policy that is told no task ignores it (one that observes a feature of this
                  name gets that array, as any other)
        source    the data set whose statistics are taken, for a policy that has those of several; it holds as well

    With seed, number and histories a request depends on nothing before it, and a restarted server gives the same
    answer.
    """

    def __init__(self, policy: Planner):
        self.seed = 0
        self.decision = 0
        features = policy.spec.observation
        self._beside = {RESET, DECISION} | ({PROMPT} - features.keys())
        self._policy, self._chosen = policy, dict[str, str]()  # what was said of the task and the source
        self._history = History(features, policy.chunk.history)

    def read(self, request: Any) -> dict[str, np.ndarray]:
        """The observation histories (O, *shape) to decide on; an invalid request changes nothing.

        Raises:
            ValueError: what is missing, unknown, or of the wrong shape, dtype or range.
        """
        if not isinstance(request, dict):
            raise ValueError(f"the request is a {type(request).__name__}, expected a map of arrays")
        chosen = self._chosen | self._named(request)
        arrays = {name: value for name, value in request.items() if name not in self._beside}
        features = self._history.features
        if FROM in features and isinstance(arrays.get(FROM), str):
            del arrays[FROM]
        known = self._known(chosen, [name for name in GIVEN if name in features and name not in arrays])
        features = {name: feature for name, feature in features.items() if name not in known}
        if arrays.keys() != features.keys():
            raise ValueError(
                f"the observation has {_names(arrays)}, expected {_names(features)} and, if wanted, "
                f"{RESET}, {DECISION} and {PROMPT}"
            )
        single = self._single(arrays)
        taken = fitting(arrays, features, *(() if single else (self._history.length,)))
        seed, decision = (_count(request, key) for key in (RESET, DECISION))
        if seed is not None:
            self.seed, self.decision = seed, 0
            self._history = History(self._history.features, self._history.length)
        self.decision = self.decision if decision is None else decision
        length, self._chosen = self._history.length, chosen
        (self._history.see if single else self._history.replace)(
            taken | {name: value if single else np.stack([value] * length) for name, value in known.items()}
        )
        return self._history.arrays() | {name: np.stack([value] * length) for name, value in known.items()}

    def _named(self, request: dict[str, Any]) -> dict[str, str]:
        """What a request says of its task and its source."""
        prompt = request.get(PROMPT, "") if PROMPT in self._beside else ""
        if not isinstance(prompt, str) or len(prompt) > MAX_PROMPT:
            raise ValueError(f"{PROMPT} must be a string of at most {MAX_PROMPT} characters")
        source = request.get(FROM, "")
        said = {PROMPT: prompt} | ({FROM: source[:MAX_PROMPT]} if isinstance(source, str) else {})
        return {name: text for name, text in said.items() if text}

    def _known(self, chosen: Mapping[str, str], names: Sequence[str]) -> dict[str, np.ndarray]:
        """What the policy is given for its episode, of these names."""
        features = self._policy.spec.observation
        task, source = chosen.get(PROMPT), chosen.get(FROM)
        sources = features[SOURCE].names or () if SOURCE in features else ()
        asked = {name: features[name] for name in names}
        told = task if TASK in asked or (task in sources and source is None) else None
        return given(asked, told, source if SOURCE in asked else None)

    def _single(self, arrays: dict[str, Any]) -> bool:
        """Whether the arrays are of a single control step, not histories; `ValueError` if they are neither."""
        forms = set()
        for name in arrays:
            feature = self._history.features[name]
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
