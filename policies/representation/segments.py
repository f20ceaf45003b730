"""Runs of an action's dimensions, each with its way into the columns that a net learns and back."""

# ruff: noqa: N815  (shape suffixes)

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from flowhand.contracts.features import Feature

from . import rotation
from .parts import Anchor, Part

TURN = 2 * math.pi


class Segment(nn.Module):
    """Neighbouring dimensions of an action: `first` is the place of the first, `size` how many, `width` its columns."""

    first: int
    size: int
    width: int
    adds_N: Tensor  # whether each of them is the sum of differences, bool (size,)

    @property
    def places(self) -> slice:
        """Where they are in the action."""
        return slice(self.first, self.first + self.size)

    def encode(self, x_BTN: Tensor, state_BS: Tensor | None) -> Tensor:
        """Values (B, T, size) of an action to columns (B, T, width); the state is what anchors are taken from."""
        raise NotImplementedError

    def decode(self, code_BTW: Tensor, state_BS: Tensor | None, reference_N: Tensor) -> Tensor:
        """Columns (B, T, width) to values (B, T, size); the reference chooses between equal ones."""
        raise NotImplementedError


class Numbers(Segment):
    """Numbers, choices, and angles that are differences: one column each.

    Differences are taken before anything is scaled, and those of neighbouring float32 numbers are exact, so nothing is
    lost beside a large offset. Differences of angles go the short way round, from one step to the next as well.
    """

    index_N: Tensor
    moves_N: Tensor
    wraps_N: Tensor
    middle_N: Tensor
    half_N: Tensor

    def __init__(
        self, own: Sequence[Part], to: Sequence[Anchor | None], at: Mapping[str, int], action: Feature, delta: bool
    ):
        super().__init__()
        self.first, self.size, self.width, self.delta = own[0].first, len(own), len(own), delta
        index = [at[each.feature] + each.part.first if each else 0 for each in to]
        wraps = [part.kind == "angle" and each is not None for part, each in zip(own, to, strict=True)]
        self.moving, self.wrapping = any(to), any(wraps)
        low, high = (torch.as_tensor(bound[self.places]).double() for bound in action.bounds())
        bounded = torch.tensor(wraps) & torch.isfinite(low) & torch.isfinite(high)
        half = torch.where(bounded, ((high - low) / 2).clamp(min=math.pi), math.inf)
        middle = torch.where(bounded, (high + low) / 2, 0.0)
        moves = torch.tensor([each is not None for each in to])
        self.register_buffer("adds_N", moves & delta, persistent=False)
        self.register_buffer("index_N", torch.tensor(index), persistent=False)
        self.register_buffer("moves_N", moves, persistent=False)
        self.register_buffer("wraps_N", torch.tensor(wraps), persistent=False)
        self.register_buffer("middle_N", middle.float(), persistent=False)
        self.register_buffer("half_N", half.float(), persistent=False)

    def encode(self, x_BTN: Tensor, state_BS: Tensor | None) -> Tensor:
        """See `Segment`."""
        if not self.moving or state_BS is None:
            return x_BTN
        anchor = self._anchor(state_BS)
        before = torch.cat([anchor, x_BTN[:, :-1]], dim=1) if self.delta else anchor
        code = torch.where(self.moves_N, x_BTN - before, x_BTN)
        if not self.wrapping:
            return code
        steps = code if self.delta else torch.cat([code[:, :1], code[:, 1:] - code[:, :-1]], dim=1)
        turns = torch.round(steps / TURN)
        turns = turns if self.delta else turns.cumsum(1)
        return torch.where(self.wraps_N, code - TURN * turns, code)

    def decode(self, code_BTW: Tensor, state_BS: Tensor | None, reference_N: Tensor) -> Tensor:
        """See `Segment`; an angle comes out near its anchor, or, where the action has limits, within them."""
        if not self.moving or state_BS is None:
            return code_BTW
        moved = code_BTW.cumsum(1) if self.delta else code_BTW  # added up before the anchor, which may be large
        x_BTN = torch.where(self.moves_N, moved + self._anchor(state_BS), code_BTW)
        if not self.wrapping:
            return x_BTN
        beyond = x_BTN - self.middle_N
        down = torch.ceil((beyond - self.half_N).clamp(min=0) / TURN)
        up = torch.ceil((-beyond - self.half_N).clamp(min=0) / TURN)
        return x_BTN + TURN * (up - down)

    def _anchor(self, state_BS: Tensor) -> Tensor:
        return state_BS.index_select(1, self.index_N).unsqueeze(1)


class Circle(Segment):
    """An absolute angle that wraps, as its cosine and sine; it comes out within half a turn of the reference."""

    def __init__(self, part: Part):
        super().__init__()
        self.first, self.size, self.width = part.first, 1, 2
        self.register_buffer("adds_N", torch.zeros(1, dtype=torch.bool), persistent=False)

    def encode(self, x_BTN: Tensor, state_BS: Tensor | None) -> Tensor:
        """See `Segment`."""
        return torch.cat([torch.cos(x_BTN), torch.sin(x_BTN)], dim=-1)

    def decode(self, code_BTW: Tensor, state_BS: Tensor | None, reference_N: Tensor) -> Tensor:
        """See `Segment`."""
        angle = torch.atan2(code_BTW[..., 1:], code_BTW[..., :1])
        return angle + TURN * torch.round((reference_N - angle) / TURN)


class Turn(Segment):
    """A rotation as the first two columns of its matrix (Zhou 2019, arXiv 1812.07035).

    A difference is the rotation as the anchor sees it, R_anchor^T R: differences compose, in SO(3), to what they were
    taken of. Of equal values (quaternions q and -q, vectors a whole turn apart) the nearest to the anchor comes out,
    or to the reference where there is none.
    """

    def __init__(self, part: Part, to: Anchor | None, at: Mapping[str, int], delta: bool):
        super().__init__()
        self.first, self.size, self.width, self.form, self.delta = part.first, part.size, 6, part.kind, delta
        self.anchored = to is not None
        self.register_buffer("adds_N", torch.full((part.size,), self.anchored and delta), persistent=False)
        if to is not None:
            first = at[to.feature] + to.part.first
            self.state, self.state_form = slice(first, first + to.part.size), to.part.kind

    def encode(self, x_BTN: Tensor, state_BS: Tensor | None) -> Tensor:
        """See `Segment`."""
        turned = rotation.matrix(x_BTN, self.form)
        if self.anchored and state_BS is not None:
            before = rotation.matrix(state_BS[:, None, self.state], self.state_form)
            before = torch.cat([before, turned[:, :-1]], dim=1) if self.delta else before
            turned = rotation.product(rotation.inverse(before), turned)
        return rotation.six(turned)

    def decode(self, code_BTW: Tensor, state_BS: Tensor | None, reference_N: Tensor) -> Tensor:
        """See `Segment`."""
        turned = rotation.orthonormal(code_BTW)
        if self.anchored and state_BS is not None:
            state = state_BS[:, None, self.state]
            anchor = rotation.matrix(state, self.state_form)
            same = self.state_form == self.form
            reference_N = state if same else rotation.values(anchor, self.form, reference_N)
            turned = self._composed(anchor, turned)
        return rotation.values(turned, self.form, reference_N)

    def _composed(self, anchor: Tensor, turned: Tensor) -> Tensor:
        """The rotations (B, T, 3, 3) that these differences were taken of."""
        if not self.delta:
            return rotation.product(anchor, turned)
        found = [anchor[:, 0]]
        for step in turned.unbind(1):
            found.append(rotation.product(found[-1], step))
        return torch.stack(found[1:], dim=1)
