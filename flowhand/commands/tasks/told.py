"""What an evaluation tells a policy of the task at hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import envs
from conf.verbs.eval import EvaluationConfig
from flowhand.contracts.data.tasks import SOURCE, TASK, TextModel, given
from flowhand.contracts.features import Spec
from flowhand.contracts.strict import mapping, nearest, parse_json
from flowhand.contracts.world import Observation
from flowhand.control.controller import Controller

MOST_BYTES = 2**24  # of a file with wordings


@dataclass(frozen=True)
class Words:
    """What a policy is told in one world; nothing for one that is told nothing."""

    texts: tuple[str, ...] = ()  # the episode of seed s is told the text s modulo their number
    source: str | None = None  # whose statistics it takes
    text_model: TextModel | None = field(default=None, compare=False)

    def of(self, seed: int) -> str | None:
        """The text of an episode."""
        return self.texts[seed % len(self.texts)] if self.texts else None

    def given(self, spec: Spec, seed: int) -> dict[str, np.ndarray]:
        """The observations that the policy is given in an episode, each (*shape)."""
        return given(spec.observation, self.of(seed), self.source, self.text_model)


class ToldController:
    """A controller that is told the task of each episode; an `Agent`."""

    def __init__(self, controller: Controller, words: Words):
        self.controller, self._words = controller, words
        controller.text_model = words.text_model

    def reset(self, lane: int, seed: int) -> None:
        """Starts an episode in a lane."""
        self.controller.reset(lane, seed, task=self._words.of(seed), source=self._words.source)

    def act(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        """One action for every lane given."""
        return self.controller.act(observations)


def words_for(spec: Spec, env: envs.EnvConfig, config: EvaluationConfig) -> Words:
    """What a policy with this specification is told in a world: the task's own text, or other wordings of it.

    Raises:
        ValueError: other wordings or a source are given to a policy that takes none, a text is not known and there is
            no model for it, or the file does not fit.
    """
    if TASK not in spec.observation and config.wordings:
        raise ValueError("eval.wordings is for a policy that is told its task; this one was trained with words=none")
    if TASK not in spec.observation and SOURCE not in spec.observation:
        if config.source:
            raise ValueError("eval.source is for a policy with statistics of several sets; this one has one")
        return Words()
    with closing(envs.make(env)) as world:
        name, text = world.task, world.task_text
    texts: Sequence[str] = (text,)
    if config.wordings:
        known = read_wordings(Path(config.wordings))
        if name not in known:
            raise ValueError(f"{config.wordings} has no wordings of {name}: {nearest(name, known)}")
        texts = known[name]
    names = spec.observation[SOURCE].names or () if SOURCE in spec.observation else ()
    source = config.source or (text if text in names else None)
    words = Words(tuple(texts) if TASK in spec.observation else (), source, _model_for(spec, texts))
    for seed in range(len(texts)):
        words.given(spec, seed)  # which refuses what is not known, before the first episode
    return words


def _model_for(spec: Spec, texts: Sequence[str]) -> TextModel | None:
    """The text model, where a text is not known and the policy learned from one."""
    feature = spec.observation.get(TASK)
    if feature is None or feature.vectors is None or set(texts) <= set(feature.texts or ()):
        return None
    from policies.encoders.words.sentence import SentenceModel

    return SentenceModel()


def read_wordings(path: Path) -> dict[str, list[str]]:
    """Texts of each task, by its short name, from a JSON file.

    Raises:
        ValueError: the file is missing, too large, or holds something else.
    """
    if not path.is_file() or path.stat().st_size > MOST_BYTES:
        raise ValueError(f"eval.wordings={path} is no file of at most {MOST_BYTES} bytes")
    try:
        content = mapping(parse_json(path.read_bytes()), "it")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"eval.wordings={path} is no JSON of task names and texts: {error}") from error
    for name, texts in content.items():
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise ValueError(f"eval.wordings={path}: {name!r} has {json.dumps(texts)[:200]}, expected a list of texts")
    return dict(content)
