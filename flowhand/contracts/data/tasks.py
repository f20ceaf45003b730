"""What a policy is given at the start of an episode: its task, and whose statistics its numbers have.

Both are observations that no robot measures: a controller fills them in, and they stay the same over an episode.

    task     (D,) the vector of the task's text, which the specification has with every text that the policy learned
    source   (K,) one for the data set whose statistics scale states and actions, zero for the K - 1 others
"""

from __future__ import annotations

import base64
import binascii
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

TASK, SOURCE = "task", "source"  # names and kinds of the two
MOST_TEXTS = 1000
MOST_CHARACTERS = 1024  # of a text
NAMED = 3  # known texts that an error names

TextModel = Callable[[str], np.ndarray]  # the vector (D,) of a text


def check_given(kind: str, size: int, names: Any, texts: Any, vectors: Any) -> None:
    """Raises `ValueError` unless a feature of this kind has the texts, vectors and names that its kind asks for."""
    if kind != TASK and (texts is not None or vectors is not None):
        raise ValueError(f"a feature of kind {kind!r} has texts or their vectors; only the task has")
    if kind == SOURCE and (names is None or len(set(names)) < len(names)):
        raise ValueError(f"the source has the names {names}, expected {size}, all different")
    if kind != TASK:
        return
    if not texts or len(texts) > MOST_TEXTS or not all(isinstance(t, str) and len(t) <= MOST_CHARACTERS for t in texts):
        raise ValueError(f"the task needs 1 to {MOST_TEXTS} texts of at most {MOST_CHARACTERS} characters")
    if len(set(texts)) < len(texts):
        raise ValueError("a text of the task occurs twice")
    if vectors is None and size != len(texts):
        raise ValueError(f"the task has {size} values and {len(texts)} texts without vectors, expected as many")
    if vectors is not None and not np.isfinite(unpacked(vectors, len(texts), size)).all():
        raise ValueError("the vectors of the task's texts have NaN or infinity")


def packed(vectors: np.ndarray) -> str:
    """Vectors (K, D) as a text: base64 of float32, least byte first, row by row."""
    return base64.b64encode(np.ascontiguousarray(vectors, "<f4").tobytes()).decode()


def unpacked(vectors: Any, count: int, size: int) -> np.ndarray:
    """What `packed` was given, float32 (count, size).

    Raises:
        ValueError: it is no such text.
    """
    try:
        content = base64.b64decode(vectors, validate=True) if isinstance(vectors, str) else b""
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"the vectors of the task's texts are not base64: {error}") from error
    if len(content) != 4 * count * size:
        raise ValueError(f"the vectors of the task's texts have {len(content)} bytes, expected {4 * count * size}")
    return np.frombuffer(content, "<f4").astype(np.float32).reshape(count, size)


def vectors_of(feature: Any) -> np.ndarray:
    """The vectors (K, D) of the texts of a task's feature: of each text its own, or one-hot."""
    count = len(feature.texts)
    return (
        np.eye(count, dtype=np.float32) if feature.vectors is None else unpacked(feature.vectors, count, feature.size)
    )


def given(
    observation: Mapping[str, Any],
    task: str | None = None,
    source: str | None = None,
    text_model: TextModel | None = None,
) -> dict[str, np.ndarray]:
    """The observations that a policy is given for an episode, each (*shape) float32.

    Args:
        observation: the features of the policy, by name.
        task: its text; None: the only one that the policy knows.
        source: a name of the source; None: the task, where the policy has statistics for each task.
        text_model: gives the vector of a text that the policy does not know.

    Raises:
        ValueError: a task or source that is missing, unknown or not asked for; known ones are named.
    """
    found: dict[str, np.ndarray] = {}
    sources = observation[SOURCE].names if SOURCE in observation else ()
    if TASK in observation:
        found[TASK] = _task(observation[TASK], task, text_model)
    elif task is not None and task not in sources:
        about = f"; its sources are {', '.join(sources)}" if sources else ""
        raise ValueError(f"the policy is not told its task, got the task {task[:200]!r}{about}")
    if SOURCE in observation:
        found[SOURCE] = _one_hot(sources, source if source is not None or task not in sources else task)
    elif source is not None:
        raise ValueError(f"the policy has one set of statistics, got the source {source[:200]!r}")
    return found


def _task(feature: Any, text: str | None, text_model: TextModel | None) -> np.ndarray:
    texts = feature.texts
    if text is None and len(texts) > 1:
        known = ", ".join(repr(each) for each in texts[:NAMED])
        raise ValueError(f"the policy must be told its task: reset(task=...), one of its {len(texts)}: {known} ...")
    if text is None or text in texts:
        return vectors_of(feature)[0 if text is None else texts.index(text)]
    if text_model is None or feature.vectors is None:
        near = ", ".join(repr(each) for each in nearest_texts(text, texts))
        why = "a text model" if feature.vectors is not None else "a policy trained with words=sentence"
        raise ValueError(f"the task {text[:200]!r} is none that the policy knows, nearest: {near}; others take {why}")
    vector = np.asarray(text_model(text), np.float32)
    if vector.shape != (feature.size,) or not np.isfinite(vector).all():
        raise ValueError(f"the text model gives {vector.shape} for a text, expected ({feature.size},) finite numbers")
    return vector


def _one_hot(names: Sequence[str], name: str | None) -> np.ndarray:
    if name is None and len(names) > 1:
        raise ValueError(
            f"the policy needs its source, whose statistics it takes: reset(source=...), {_near('', names)}"
        )
    if name is not None and name not in names:
        raise ValueError(f"the source {name[:200]!r} is unknown, {_near(name, names)}")
    return np.eye(len(names), dtype=np.float32)[0 if name is None else names.index(name)]


def _near(name: str, names: Sequence[str]) -> str:
    more = f", and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"one of {', '.join(nearest_texts(name, names))}{more}"


def nearest_texts(text: str, texts: Sequence[str]) -> list[str]:
    """The few texts that are most alike in their characters, the most alike first."""
    return (
        difflib.get_close_matches(text[:MOST_CHARACTERS], list(texts), NAMED, cutoff=0.0)
        if text
        else list(texts)[:NAMED]
    )
