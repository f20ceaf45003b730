"""Where the strings of elements hold words of an instruction: exact comparisons, by hashes of their bytes."""

from __future__ import annotations

import torch
from torch import Tensor

# A string that is a word; one that is several words in a row, at the first of them; a part of a string, between
# characters that are no letters and digits, that is a word but for small and capital letters.
KINDS = ("whole", "span", "part")
LONGEST_SPAN = 4  # words in a row
BASE = 0x5851F42D4C957F2D  # of the hash, odd: sum of byte_i * BASE^i modulo 2^64
SPACE = 32


def matches(strings: Tensor, words: Tensor, sparse: bool = False) -> Tensor:
    """Which strings (B, N, S, L) match which words (B, M, L), in bytes: (B, N, M, S * len(KINDS)), 0 or 1.

    Two different strings have the same hash once in 2^64 pairs. With `sparse` only parts that there are get compared,
    which is much less for many screens, and no graph of fixed shapes.
    """
    strings, words = strings.long(), words.long()
    found = [_whole(strings, words), _span(strings, words), _part(strings, words, sparse)]
    return torch.cat([each.permute(0, 1, 3, 2) for each in found], dim=-1).float()


def _whole(strings: Tensor, words: Tensor) -> Tensor:
    return _equal(_hash(strings, strings > 0), _hash(words, words > 0))


def _span(strings: Tensor, words: Tensor) -> Tensor:
    """Of two to LONGEST_SPAN words with one space between them."""
    own = _hash(words, words > 0)
    lengths = (words > 0).sum(-1)
    powers = torch.tensor(_powers(words.shape[-1] + 1), device=words.device)[lengths]
    whole, spans, target = own, [], _hash(strings, strings > 0)
    for _ in range(LONGEST_SPAN - 1):
        # The hash of a word and what follows: its own, and that of what follows shifted by its length.
        rest = torch.cat([whole[:, 1:], torch.zeros_like(whole[:, :1])], dim=1)
        whole = torch.where((own != 0) & (rest != 0), own + powers * (SPACE + BASE * rest), 0)
        spans.append(_equal(target, whole))
    return torch.stack(spans).any(0)


def _part(strings: Tensor, words: Tensor, sparse: bool) -> Tensor:
    """Each string's parts against the first part of each word."""
    strings, words = small(strings), small(words)
    own, starts = _parts(words)
    first = starts & (starts.cumsum(-1) == 1)
    word = _sum(own * first)  # (B, M)
    if sparse:
        return _sparse_part(strings, word)
    parts, begins = _parts(strings)
    parts = torch.where(begins, parts, 0)
    parts = (parts + _ahead(parts, 1))[..., ::2]  # no two neighbouring places begin one
    word = torch.where(word == 0, -1, word)  # which no part has
    return (parts.unsqueeze(-2) == word[:, None, None, :, None]).any(-1)


def _sparse_part(strings: Tensor, word: Tensor) -> Tensor:
    """As `_part`, of the strings that are not empty."""
    filled = (strings > 0).any(-1)
    parts, begins = _parts(strings[filled])
    string, place = begins.nonzero(as_tuple=True)  # of each part
    screen = filled.nonzero(as_tuple=True)[0][string]
    equal = (parts[string, place].unsqueeze(-1) == word[screen]) & (word[screen] != 0)
    found = torch.zeros(len(parts), word.shape[1], dtype=torch.int64, device=word.device)
    found.index_add_(0, string, equal.long())
    whole = torch.zeros(*filled.shape, word.shape[1], dtype=torch.bool, device=word.device)
    whole[filled] = found > 0
    return whole


def hashed(strings: Tensor) -> Tensor:
    """The hash of each string (..., L): equal where the strings are, of nothing 0."""
    strings = strings.long()
    return _hash(strings, strings > 0)


def hashed_text(text: str) -> int:
    """The same of one text."""
    code = text.encode()
    number = sum(byte * pow(BASE, i, 2**64) for i, byte in enumerate(code)) % 2**64
    return number - 2**64 if number >= 2**63 else number


def _equal(strings: Tensor, words: Tensor) -> Tensor:
    """Equal hashes (B, N, S) and (B, M), neither of nothing: (B, N, S, M)."""
    word = words[:, None, None, :]
    return (strings.unsqueeze(-1) == word) & (word != 0)


def _hash(text: Tensor, counts: Tensor) -> Tensor:
    """The hash of what counts at the beginning of texts (..., L), of nothing 0."""
    powers = torch.tensor(_powers(text.shape[-1]), device=text.device)
    return _sum(text * counts * powers)


def _sum(values: Tensor) -> Tensor:
    """Sum over the last dimension by additions: ONNX Runtime's ReduceSum of large int64 loses their low bits."""
    while values.shape[-1] > 1:
        half = values.shape[-1] // 2
        rest = values[..., 2 * half :]
        values = torch.cat([values[..., :half] + values[..., half : 2 * half], rest], dim=-1)
    return values[..., 0]


def _parts(text: Tensor) -> tuple[Tensor, Tensor]:
    """The hash of the part that begins at each place of texts (..., L), and where parts begin.

    After each doubling it is that of the first 1, 2, 4, ... letters and digits, or fewer where the part has fewer.
    """
    letter = _is_letter(text)
    found, whole, length = text * letter, letter, 1
    while length < text.shape[-1]:
        found = found + whole * (_powers(length + 1)[-1] * _ahead(found, length))
        whole, length = whole & _ahead(whole, length), 2 * length
    before = torch.cat([torch.zeros_like(letter[..., :1]), letter[..., :-1]], dim=-1)
    return found, letter & ~before


def _ahead(values: Tensor, places: int) -> Tensor:
    """What stands so many places further on, nothing past the end."""
    return torch.cat([values[..., places:], torch.zeros_like(values[..., :places])], dim=-1)


def _is_letter(text: Tensor) -> Tensor:
    """Letters and digits; bytes above 127 belong to letters of other alphabets."""
    digit, capital, small = ((text >= ord(a)) & (text <= ord(z)) for a, z in ("09", "AZ", "az"))
    return digit | capital | small | (text > 127)


def small(text: Tensor) -> Tensor:
    """Bytes with small letters in place of capital ones."""
    return torch.where((text >= ord("A")) & (text <= ord("Z")), text + 32, text)


def _powers(count: int) -> list[int]:
    """BASE^0 to BASE^(count - 1) modulo 2^64, as signed numbers."""
    found, power = [], 1
    for _ in range(count):
        found.append(power - 2**64 if power >= 2**63 else power)
        power = power * BASE % 2**64
    return found
