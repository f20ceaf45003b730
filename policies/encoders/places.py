"""What the numbers in strings are worth, and the how-manieth of its like an element is: exact, not learned."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .matching import hashed, hashed_text, small

ORDERS = 4  # by which elements are counted
# Places are told apart up to this many, counted from 0; what stands further on counts as the last of them.
PLACES = 12
POWERS = 10.0 ** torch.arange(8)  # a number is read to its eighth digit from the right
MINUS, POINT, COMMA, SPACE = (ord(sign) for sign in "-., ")
NUMBER_FEATURES, AWAY, NEARNESS = 5, 4, 3
_MONTHS = (
    "january", "february", "march", "april", "may", "june",
    "july", "august", "september", "october", "november", "december",
)  # fmt: skip
# Names of months, and their first three letters, stand for their numbers.
MONTHS = torch.tensor([[hashed_text(name), hashed_text(name[:3])] for name in _MONTHS])
NEAR = 0.02  # widths of the screen within which two places are beside each other, not one after the other


class Numbers(NamedTuple):
    """The first two numbers of strings, each of shape (...): "-3h 20m" has -3 and 20, "$1,200.50" has 1200.5.

    The second is 0 where there is none. A string that is the name of a month has the number of the month.
    """

    there: Tensor  # bool
    first: Tensor
    second: Tensor

    @property
    def rank(self) -> Tensor:
        """By it strings with numbers are put in order: by the first number, then by the second."""
        return self.first + self.first.sign().where(self.first != 0, 1.0) * (self.second / 1e4).clamp(max=0.9999)

    @property
    def features(self) -> Tensor:
        """(..., NUMBER_FEATURES): the first number at several scales, zero where there is none."""
        v = self.first
        scales = [torch.tanh(v / 10), torch.tanh(v / 100), torch.tanh(v / 1000), v.sign() * v.abs().log1p() / 8]
        return torch.stack([torch.ones_like(v), *scales], dim=-1) * self.there.unsqueeze(-1)


def numbers(strings: Tensor) -> Numbers:
    """The numbers in strings (..., L) of bytes, zero where they have ended; exact up to seven digits."""
    text = strings.long()
    digit = (text >= ord("0")) & (text <= ord("9"))
    before = F.pad(text, (1, 0))[..., :-1]
    start = digit & ~F.pad(digit, (1, 0))[..., :-1]
    run = start.long().cumsum(-1) * digit
    which = torch.arange(1, 4, device=text.device).unsqueeze(-1)
    first, second, third = _value(text.unsqueeze(-2), run.unsqueeze(-2) == which).unbind(-1)
    sign_at = start & (run == 1) & (before == MINUS)
    ahead = F.pad(text, (2, 0))[..., :-2]
    negative = (sign_at & ((ahead == SPACE) | (ahead == 0))).any(-1)
    comma, point = (_joined(text, run, 1, sign) for sign in (COMMA, POINT))
    thousands = comma & ((run == 2).sum(-1) == 3)
    whole = torch.where(thousands, first * 1000 + second, first)
    rest = torch.where(thousands, third, second)
    fraction = (point & ~thousands) | (thousands & _joined(text, run, 2, POINT))
    places = torch.where(thousands, (run == 3).sum(-1), (run == 2).sum(-1)).clamp(max=7)
    part = rest / POWERS.to(rest.device)[places]
    value = whole + torch.where(fraction, part, torch.zeros_like(part))
    value = torch.where(negative, -value, value)
    is_month = (hashed(small(text))[..., None, None] == MONTHS.to(text.device)).any(-1)  # (..., 12)
    month = (is_month * torch.arange(1, 13, device=text.device)).sum(-1)
    return Numbers(digit.any(-1) | (month > 0), value + month, torch.where(fraction, torch.zeros_like(rest), rest))


def _value(text: Tensor, digits: Tensor) -> Tensor:
    """The number that these places of a string are, 0 where there are none."""
    after = digits.sum(-1, keepdim=True) - digits.long().cumsum(-1)
    worth = POWERS.to(text.device)[after.clamp(0, len(POWERS) - 1)] * (after < len(POWERS))
    return ((text - ord("0")) * digits * worth).sum(-1).float()


def _joined(text: Tensor, run: Tensor, number: int, sign: int) -> Tensor:
    """Whether between a number and the next stands this sign alone."""
    left = F.pad(run == number, (1, 0))[..., :-1]
    right = F.pad(run == number + 1, (0, 1))[..., 1:]
    return (left & (text == sign) & right).any(-1)


def chosen(one: Numbers, other: Numbers) -> Numbers:
    """The numbers of one string, and where it has none, of the other."""
    first, second = (torch.where(one.there, *pair) for pair in ((one.first, other.first), (one.second, other.second)))
    return Numbers(one.there | other.there, first, second)


def equal(elements: Numbers, words: Numbers) -> Tensor:
    """Whether an element's first number (B, N) is the first, or the second, of a word (B, M): (B, N, M, 2)."""
    both = (elements.there.unsqueeze(2) & words.there.unsqueeze(1)).unsqueeze(-1)
    own = elements.first[:, :, None, None]
    return (both & (own == torch.stack([words.first, words.second], dim=-1).unsqueeze(1))).float()


def away(elements: Numbers, words: Numbers) -> Tensor:
    """How far an element's number (B, N) is from those of the words (B, M) in the mean: (B, N, AWAY), near and far."""
    both = (elements.there.unsqueeze(2) & words.there.unsqueeze(1)).float()
    missing = ((words.first.unsqueeze(1) - elements.first.unsqueeze(2)) * both).sum(2) / both.sum(2).clamp(min=1)
    return torch.stack([missing.sign(), *((missing / scale).clamp(-1, 1) for scale in (5, 50, 500))], dim=-1)


def places(strings: Tensor, where: Tensor, there: Tensor, matched: Tensor, value: Numbers) -> Tensor:
    """Of how many of its like each element is the next: (B, N, ORDERS * PLACES), one 1 in each quarter, or none.

    In the order of rows and in that of columns among the elements with its tag that, as it, are named in the
    instruction or not; and among those with its tag and name in the order of rows, and in that of their numbers.

    Args:
        strings: tag, and name with classes (B, N, 2, L).
        where: x and y (B, N, 2), in widths of the screen.
        there: which rows (B, N) there are.
        matched: which of them hold something of the instruction.
        value: numbers of the elements.
    """
    tag, name = (hashed(strings[:, :, i]) for i in range(2))
    both = there.unsqueeze(1) & there.unsqueeze(2)
    kin = both & _same(tag)
    like = kin & _same(matched)
    x, y = (where[..., i].unsqueeze(1) - where[..., i].unsqueeze(2) for i in range(2))  # of the other, from one's own
    by_rows = (y < -NEAR) | ((y.abs() <= NEAR) & (x < -NEAR))
    by_columns = (x < -NEAR) | ((x.abs() <= NEAR) & (y < -NEAR))
    named = kin & _same(name)
    counted = named & value.there.unsqueeze(1) & value.there.unsqueeze(2)
    smaller = value.rank.unsqueeze(1) < value.rank.unsqueeze(2)
    before = torch.stack([like & by_rows, like & by_columns, named & by_rows, counted & smaller], dim=1)
    counts = torch.stack([there, there, there, value.there], dim=2)  # (B, N, ORDERS)
    place = before.sum(-1).clamp(max=PLACES - 1).transpose(1, 2).unsqueeze(-1)
    return ((place == torch.arange(PLACES, device=place.device)) & counts.unsqueeze(-1)).float().flatten(2)


def near(where: Tensor) -> Tensor:
    """How near elements are by their x and y (B, N, 2): (B, N, N, NEARNESS), 1 beside each other, 0 far away."""
    apart = (where.unsqueeze(1) - where.unsqueeze(2)).square()
    height, distance = apart[..., 1], apart.sum(-1)
    return torch.stack(
        [torch.exp(-height / 0.1**2), torch.exp(-height / 0.3**2), torch.exp(-distance / 0.2**2)], dim=-1
    )


def _same(of: Tensor) -> Tensor:
    return of.unsqueeze(1) == of.unsqueeze(2)
