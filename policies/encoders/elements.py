"""Elements encoder: what stands on a screen and the words of an instruction, as tokens that see each other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from flowhand.contracts.features import Feature, Spec
from flowhand.contracts.screen.fields import NUMBERS
from flowhand.contracts.screen.fields import STRINGS as OF_ELEMENT

from ..conditioning import Conditioning
from ..fields import rows_there
from .base import Encoder, EncoderConfig
from .matching import KINDS, matches
from .places import AWAY, NEARNESS, NUMBER_FEATURES, ORDERS, PLACES, Numbers, away, chosen, equal, near, places
from .places import numbers as read_numbers

STRINGS, ELEMENTS, WORDS = "element_strings", "elements", "words"


@dataclass
class ElementsConfig(EncoderConfig):
    """For screens: rows of elements with strings and numbers, and the words of an instruction."""

    kind: str = "elements"
    width: int = 64  # features of a token
    layers: int = 2  # in which elements and words look at each other
    heads: int = 4  # of attention; must divide the width
    expansion: int = 2  # hidden features of a layer's perceptron, as a multiple of the width
    letters: int = 16  # features of a byte of a string
    text: int = 32  # features of a string, as a mean and as a maximum over its places
    size: int = 128  # features of the conditioning vector
    matching: bool = True  # elements and words are told where one's strings hold the other
    places: bool = True  # elements are told their numbers, and the how-manieth of their like they are
    words: bool = True  # the instruction is seen; without, a policy shows what can be done without it

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "expansion", "letters", "text", "size"):
            if not 1 <= getattr(self, name) <= 65536:
                raise ValueError(f"encoder.{name}={getattr(self, name)} must lie in 1..65536")
        if self.width % self.heads:
            raise ValueError(f"encoder.width={self.width} must be a multiple of encoder.heads={self.heads}")


class Letters(nn.Module):
    """Strings (..., L) of bytes, zero where they have ended, to features (..., 2 * text); an empty one is zero."""

    def __init__(self, letters: int, text: int, length: int):
        super().__init__()
        self.byte = nn.Embedding(256, letters)
        self.place = nn.Parameter(torch.randn(length, letters) * 0.2)
        self.triples = nn.Linear(3 * letters, text)

    def forward(self, strings: Tensor) -> Tensor:
        """Mean and maximum over the places, of what each byte and its neighbours are."""
        there = (strings > 0).unsqueeze(-1)
        each = (self.byte(strings) + self.place) * there
        around = torch.cat([F.pad(each, (0, 0, 1, 0))[..., :-1, :], each, F.pad(each, (0, 0, 0, 1))[..., 1:, :]], -1)
        found = self.triples(around).relu() * there
        return torch.cat([found.sum(-2) / there.sum(-2).clamp(min=1), found.amax(-2)], dim=-1)


class Layer(nn.Module):
    """Self-attention with a bias of its logits, and a perceptron, each after layer normalization."""

    def __init__(self, config: ElementsConfig):
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, config.expansion * width), nn.Linear(config.expansion * width, width)

    def forward(self, h_BNW: Tensor, bias_BHNN: Tensor) -> Tensor:
        """Tokens to tokens."""
        parts = self.qkv(self.before(h_BNW)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind()
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias_BHNN).softmax(-1)
        h_BNW = h_BNW + self.out((weights @ v).transpose(1, 2).flatten(2))
        return h_BNW + self.down(F.gelu(self.up(self.between(h_BNW)), approximate="tanh"))


class ElementsEncoder(Encoder):
    """A token for each element and each word; the vector is of their means.

    Rows of elements are a set: a permutation of them permutes their tokens. Words have places.
    """

    takes = f"{STRINGS}, {ELEMENTS} and {WORDS} of a screen"

    def __init__(self, config: ElementsConfig, spec: Spec, history: int, tokens: bool = False):
        super().__init__()
        seen = spec.observation
        if history != 1:
            raise ValueError(f"encoder=elements sees a single observation: chunk.history=1, got {history}")
        if WORDS not in seen or (STRINGS in seen) != (ELEMENTS in seen) or set(seen) - {STRINGS, ELEMENTS, WORDS}:
            raise ValueError(
                f"encoder=elements takes {WORDS}, and {STRINGS} with {ELEMENTS}, or neither; got {', '.join(seen)}"
            )
        self.config, self.seen = config, dict(seen)
        self.rows = seen[ELEMENTS].shape[0] if ELEMENTS in seen else 0
        self.words = seen[WORDS].shape[0]
        self.letters = Letters(config.letters, config.text, seen[WORDS].shape[-1])
        width, text = config.width, 2 * config.text
        self.word = nn.Linear(text, width)
        self.place = nn.Parameter(torch.randn(self.words, width) * 0.2)
        if self.rows:
            strings, numbers = seen[STRINGS].shape[1], seen[ELEMENTS].shape[1]
            if config.places and (strings, seen[ELEMENTS].names) != (len(OF_ELEMENT), NUMBERS):
                raise ValueError(
                    f"encoder.places=true reads of elements the strings {', '.join(OF_ELEMENT)} and the numbers "
                    f"{', '.join(NUMBERS)}, got {strings} strings and {seen[ELEMENTS].names}; "
                    "choose encoder.places=false"
                )
            self.told = (strings * len(KINDS) if config.matching else 0) + (2 if config.places else 0)
            counted = ORDERS * PLACES + NUMBER_FEATURES + AWAY if config.places else 0
            self.element = nn.Linear(strings * text + numbers, width)
            if self.told:
                # Apart, so that what is exact starts with as much weight as all letters have together.
                self.exact = nn.Linear(self.told + counted, width, bias=False)
            if config.places:
                self.worth = nn.Linear(NUMBER_FEATURES, width, bias=False)  # of a word that is a number
                self.nearness = nn.Parameter(torch.linspace(0, 2, config.heads).expand(NEARNESS, -1).clone())
            if self.told:
                self.matched_word = nn.Linear(self.told, width, bias=False)
                strength = torch.linspace(0, 4, config.heads).expand(2, self.told, config.heads)
                self.strength = nn.Parameter(strength.clone())  # of the match, from elements to words and back
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.pool = nn.Linear(2 * width, config.size)
        self.size, self.tokens = config.size, (self.rows + self.words, width)
        self.row_tokens = {WORDS: (self.rows, self.words)} | ({ELEMENTS: (0, self.rows)} if self.rows else {})

    @staticmethod
    def accepts(feature: Feature) -> bool:
        """Elements and words."""
        return feature.kind == "elements"

    def forward(self, observation: dict[str, Tensor], generator: Generator | None = None) -> Conditioning:
        """Elements and words (B, 1, N, ...) to a token each and a vector; nothing of it is random."""
        now = {name: observation[name][:, -1] for name in self.seen}
        words = now[WORDS] if self.config.words else torch.zeros_like(now[WORDS])
        said = rows_there(words, self.seen[WORDS])
        there = rows_there(now[ELEMENTS], self.seen[ELEMENTS]) if self.rows else said[:, :0]
        # In training on a CPU what is not there is left out, as far as a batch allows, which gives the same.
        short = self.training and said.device.type == "cpu" and not torch.compiler.is_compiling()
        count = _last(said) if short else self.words
        order = _first(there) if short and self.rows else None
        shown, heard = there if order is None else there.gather(1, order), said[:, :count]
        words = words[:, :count].long()
        parts, bias = [self.word(self._read(words)) + self.place[:count]], _blind(torch.cat([shown, heard], dim=1))
        if self.rows:
            strings, numbers = (_rows(now[name], order) for name in (STRINGS, ELEMENTS))
            strings = strings.long() * shown[..., None, None]
            element, word, more = self._compare(strings, numbers, shown, words, short)
            parts, bias = [element, parts[0] + word], bias + more
        tokens = torch.cat(parts, dim=1)
        for layer in self.layers:
            tokens = layer(tokens, bias)
        element, word = self.norm(tokens).split([shown.shape[1], count], dim=1)
        vector = self.pool(torch.cat([_mean(element, shown), _mean(word, heard)], dim=-1))
        if order is not None:
            whole = element.new_zeros(len(element), self.rows, element.shape[-1])
            element = whole.scatter(1, order.unsqueeze(-1).expand_as(element), element)
        word = F.pad(word, (0, 0, 0, self.words - count)) if short else word
        return Conditioning(vector, torch.cat([element, word], dim=1), torch.cat([there, said], dim=1))

    def _read(self, strings: Tensor) -> Tensor:
        """Features of strings (..., L); in training only those that are not empty are computed."""
        if not self.training or torch.compiler.is_compiling() or strings.device.type != "cpu":
            return self.letters(strings)
        filled = (strings > 0).any(-1)
        found = self.letters(strings[filled])
        return found.new_zeros(*filled.shape, found.shape[-1]).index_put((filled,), found)

    def _compare(
        self, strings: Tensor, numbers: Tensor, shown: Tensor, words: Tensor, sparse: bool
    ) -> tuple[Tensor, Tensor | float, Tensor | float]:
        """Tokens of elements, what is added to those of words, and to the logits between them."""
        element = self.element(torch.cat([self._read(strings).flatten(2), numbers], dim=-1))
        if not self.told:
            return element, 0.0, 0.0
        found = [matches(strings, words, sparse)] if self.config.matching else []
        values, spoken = _numbers(strings, words) if self.config.places else (None, None)
        if values is not None and spoken is not None:
            found.append(equal(values, spoken))
        match = torch.cat(found, dim=-1)  # (B, rows, words, told)
        exact, word = [match.amax(dim=2)], self.matched_word(match.amax(dim=1))
        if values is not None and spoken is not None:
            exact += [values.features, away(values, spoken), _places(strings, numbers, shown, exact[0], values)]
            word = word + self.worth(spoken.features)
        bias = self._bias(match)
        if self.config.places:
            beside = near(_where(numbers)) @ self.nearness
            bias = bias + F.pad(beside.permute(0, 3, 1, 2), (0, words.shape[1], 0, words.shape[1]))
        return element + self.exact(torch.cat(exact, dim=-1)), word, bias

    def _bias(self, match: Tensor) -> Tensor:
        """Logits (B, heads, N, N) that matches add: between elements and words, in both directions."""
        to_words = (match @ self.strength[0]).permute(0, 3, 1, 2)
        to_elements = (match @ self.strength[1]).permute(0, 3, 2, 1)
        rows, words = to_words.shape[2:]
        upper = F.pad(to_words, (rows, 0))
        return torch.cat([upper, F.pad(to_elements, (0, words))], dim=2)


def _numbers(strings: Tensor, words: Tensor) -> tuple[Numbers, Numbers]:
    """Those of elements, in the text, or where it has none, in the value; and those of words. Read all at once."""
    text, value = (strings[:, :, OF_ELEMENT.index(name)] for name in ("text", "value"))
    read, rows = read_numbers(torch.cat([text, value, words], dim=1)), text.shape[1]
    parts = zip(*(field.split([rows, rows, words.shape[1]], dim=1) for field in read), strict=True)
    text_numbers, value_numbers, spoken = (Numbers(*part) for part in parts)
    return chosen(text_numbers, value_numbers), spoken


def _places(strings: Tensor, numbers: Tensor, shown: Tensor, match: Tensor, values: Numbers) -> Tensor:
    kind = strings[:, :, [OF_ELEMENT.index(name) for name in ("tag", "name")]]
    return places(kind, _where(numbers), shown, match.any(-1), values)


def _where(numbers: Tensor) -> Tensor:
    return numbers[..., [NUMBERS.index(name) for name in ("x", "y")]]


def _last(there: Tensor) -> int:
    """How many of the first rows hold all that there are, at least one where there is any."""
    return int((there.any(0) * torch.arange(1, there.shape[1] + 1)).amax().clamp(min=1)) if there.shape[1] else 0


def _first(there: Tensor) -> Tensor:
    """For each screen the rows (B, n) that there are, in order, filled with others; n is the most of any, or 1."""
    most = int(there.sum(1).amax().clamp(min=1))
    return (~there).int().argsort(dim=1, stable=True)[:, :most]


def _rows(values: Tensor, order: Tensor | None) -> Tensor:
    """These rows (B, n) of values (B, N, ...); None: all."""
    return values if order is None else values[torch.arange(len(values)).unsqueeze(1), order]


def _blind(there_BN: Tensor) -> Tensor:
    """A bias of logits that keeps all from looking at what is not there; finite, so that no row becomes NaN."""
    bias = torch.zeros_like(there_BN, dtype=torch.float32)
    return bias.masked_fill(~there_BN, torch.finfo(torch.float32).min / 2)[:, None, None]


def _mean(tokens: Tensor, there: Tensor) -> Tensor:
    weight = there.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)
