"""The words of an instruction, and where each stands in it."""

from __future__ import annotations

import re
from typing import NamedTuple

# Between words: white space, and a comma or semicolon that stands between no digits ("1,000" is one word).
_GAP = re.compile(r"\s+|(?<!\d)[,;]|[,;](?!\d)")
ENDS = (
    "\"'`\u201c\u201d\u2018\u2019\u00ab\u00bb.,;:!?()[]{}<>"  # quotes and punctuation, stripped at both ends of a word
)


class Word(NamedTuple):
    """A word of a text: `text[start:end]`."""

    text: str
    start: int
    end: int


def split(text: str) -> list[Word]:
    """The words of a text without the quotes and the punctuation at their ends."""
    words, start = [], 0
    for end, after in [*((gap.start(), gap.end()) for gap in _GAP.finditer(text)), (len(text), len(text))]:
        piece = text[start:end]
        left = start + len(piece) - len(piece.lstrip(ENDS))
        word = piece.strip(ENDS)
        if word:
            words.append(Word(word, left, left + len(word)))
        start = after
    return words


def span(text: str, words: list[Word], first: int, last: int) -> str | None:
    """What stands in the text from the first to the last of these words; None where there is no such word.

    A last word before the first one means the first one alone.
    """
    if not 0 <= first < len(words):
        return None
    return text[words[first].start : words[min(max(first, last), len(words) - 1)].end]
