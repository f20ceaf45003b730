"""The fields of an action that does one of several things: which count, which exist, and how far off a code of them is.

A field is a dimension of the action, and has some columns of its code (`ActionCodec`). An action that is learned as it
is may say which of its dimensions each choice of the first uses (`Feature.uses`), and which of them point at rows of an
observation (`Feature.pointers`). In the code a field that is not used has no choice, -1 in all its columns, or is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowhand.contracts.features import Feature, Spec
from flowhand.contracts.screen.plans import stop_of

from .draws import over_all

LEAST = 1e-9  # probability whose logarithm is taken


@dataclass(frozen=True)
class Field:
    """The columns of one dimension of an action."""

    columns: slice
    width: int
    choices: int  # 0: a number
    rows: str  # the name of the observation that it points at; "": none


class Fields(nn.Module):
    """What of a code (..., C) belongs together, and when it counts.

    Args:
        choices: how many choices each column of an action has, 0 for a number.
        spec: what the policy sees and commands.
        plain: whether the columns are the dimensions of the action, in order.

    Raises:
        ValueError: the columns are no dimensions, and the action says which of these count.
    """

    used: Tensor
    neutral: Tensor

    def __init__(self, choices: Sequence[int], spec: Spec, plain: bool):
        super().__init__()
        action = spec.action
        self.stop = stop_of(action)
        self.kinds = action.uses  # which dimensions each choice of the first uses; None: always all
        if (action.uses or action.pointers) and not plain:
            raise ValueError("an action with pointers, or whose dimensions count by turns, is learned as it is")
        points, start, found = dict(action.pointers or ()), 0, []
        for dimension, n in enumerate(choices):
            width = n if n > 2 else 1
            found.append(Field(slice(start, start + width), width, n, points.get(dimension, "")))
            start += width
        self.each = tuple(found)
        self.rows = {name: spec.observation[name] for name in dict.fromkeys(points.values())}
        neutral = torch.cat([torch.full((f.width,), -1.0 if f.choices else 0.0) for f in found])
        self.register_buffer("neutral", neutral, persistent=False)
        if action.uses is not None:
            used = [[d == 0 or d in uses for d in range(len(choices))] for uses in action.uses]
            self.register_buffer("used", torch.tensor(used), persistent=False)

    @property
    def pointing(self) -> tuple[Field, ...]:
        """Those that point at rows."""
        return tuple(field for field in self.each if field.rows)

    @property
    def chooses(self) -> bool:
        """Whether there is a choice among them."""
        return any(field.choices for field in self.each)

    def wide(self, fields_BTD: Tensor) -> Tensor:
        """A value of each field (..., D) as that of each of its columns (..., C)."""
        parts = zip(fields_BTD.split(1, dim=-1), self.each, strict=True)
        return torch.cat([part.expand(*part.shape[:-1], field.width) for part, field in parts], dim=-1)

    def counting(self, action_BTA: Tensor) -> Tensor | None:
        """Which columns (B, T, C) count of what actions (B, T, A) are; None: all."""
        return None if self.kinds is None else self.wide(self.used[action_BTA[..., 0].long()])

    def present(self, observation: Mapping[str, Tensor]) -> Tensor | None:
        """Which columns (B, C) point at rows that are there, or at none, by histories (B, O, *shape); None: all."""
        if not self.rows:
            return None
        there = {name: rows_there(observation[name][:, -1], feature) for name, feature in self.rows.items()}
        first = next(iter(there.values()))
        every = torch.ones_like(first[:, :1])
        parts = [there[f.rows] if f.rows else every.expand(-1, f.width) for f in self.each]
        return torch.cat(parts, dim=-1)

    def narrowed(self, mask_BT: Tensor, action_BTA: Tensor, observation: Mapping[str, Tensor]) -> Tensor:
        """A mask of steps without what does not count of their actions: (B, T, C), or as it is where all counts."""
        counting, present = self.counting(action_BTA), self.present(observation)
        if counting is None and present is None:
            return mask_BT
        mask = mask_BT.unsqueeze(-1) if counting is None else mask_BT.unsqueeze(-1) & counting
        return mask if present is None else mask & present.unsqueeze(1)

    def without_absent(self, x_BTC: Tensor, observation: Mapping[str, Tensor]) -> Tensor:
        """A code in which no column of a row that is not there can be the largest."""
        present = self.present(observation)
        return x_BTC if present is None else x_BTC.masked_fill(~present.unsqueeze(1), torch.finfo(x_BTC.dtype).min)

    def blank(self, x1_BTC: Tensor, counting: Tensor | None) -> Tensor:
        """The code without what does not count."""
        return x1_BTC if counting is None else torch.where(counting, x1_BTC, self.neutral.to(x1_BTC.dtype))

    def canonical(self, action_BTA: Tensor) -> Tensor:
        """Actions in which what does not count is zero."""
        return action_BTA if self.kinds is None else action_BTA * self.used[action_BTA[..., 0].long()]

    def expected(self, x_BTC: Tensor) -> Tensor:
        """The mean of codes in which what counts has this mean, and the rest, by how likely each kind is, is blank.

        No loss sees what a net gives for fields that do not count, so it must not reach the net's next evaluation.
        """
        if self.kinds is None:
            return x_BTC
        kind = (x_BTC[..., self.each[0].columns] + 1) / 2
        kind = (kind if self.each[0].choices > 2 else torch.cat([1 - kind, kind], dim=-1)).clamp(0, 1)
        share = self.wide(kind @ self.used.to(kind.dtype) / kind.sum(-1, keepdim=True).clamp(min=LEAST))
        return torch.lerp(self.neutral.to(x_BTC.dtype).expand_as(x_BTC), x_BTC, share)

    def settled(self, x_BTC: Tensor) -> Tensor:
        """The code of the action that a code means: its largest choices, and nothing that does not count."""
        parts, kind = [], x_BTC[..., :0]
        for i, field in enumerate(self.each):
            part = x_BTC[..., field.columns]
            if field.choices > 2:
                index = torch.arange(field.choices, device=part.device)
                part = torch.where(part.argmax(-1, keepdim=True) == index, 1.0, -1.0).to(part.dtype)
            elif field.choices:
                part = torch.where(part > 0, 1.0, -1.0).to(part.dtype)
            kind = part if i == 0 else kind
            parts.append(part)
        code = torch.cat(parts, dim=-1)
        if self.kinds is None:
            return code
        chosen = kind.argmax(-1) if self.each[0].choices > 2 else (kind[..., 0] > 0).long()
        return self.blank(code, self.wide(self.used[chosen]))

    def _counts(self, field: Field, mask: Tensor) -> Tensor:
        """Whether a field counts, (..., 1), where any of its columns does; a mask for all columns has one."""
        return mask[..., field.columns].any(-1, keepdim=True) if mask.shape[-1] > 1 else mask

    def stops(self, code_BC: Tensor) -> Tensor | None:
        """Which rows (B,) of codes are the action that uses nothing, and ends a plan; None: there is none."""
        if self.stop is None:
            return None
        first = self.each[0]
        if first.choices == 2:
            return (code_BC[:, 0] > 0) == (self.stop == 1)
        return code_BC[:, first.columns].argmax(-1) == self.stop

    def probabilities(self, output: Tensor, present: Tensor | None = None) -> Tensor:
        """Logits of choices in the columns (..., C) to the mean of their codes, 2 p - 1; numbers stay as they are."""
        parts = []
        for field in self.each:
            part = output[..., field.columns]
            if field.choices:
                part = part.float()
                if field.rows and present is not None:
                    part = part.masked_fill(~present[..., field.columns], torch.finfo(part.dtype).min)
                part = 2 * part.softmax(-1) - 1 if field.choices > 2 else torch.tanh(part / 2)
            parts.append(part)
        return torch.cat(parts, dim=-1)

    def loss(
        self,
        output: Tensor,
        target: Tensor,
        mask: Tensor,
        weight: Tensor | float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Mean over the fields that count of the cross-entropy of choices, and of the squared error of numbers.

        Args:
            output: (..., B, T, C), of choices the mean of their code.
            target: the code.
            mask: (B, T) or (B, T, C), where it counts.
            weight: of each row, (..., B, 1, 1).
            generator: of the training; where several processes share the batch, it is this one's part of the mean.
        """
        errors, counts = [], []
        for field in self.each:
            got, wanted = output[..., field.columns].float(), target[..., field.columns]
            if field.choices:
                # Of two choices one column has both: p and 1 - p.
                right = ((got * wanted + 1) / 2) if field.choices == 2 else ((got + 1) / 2 * (wanted > 0)).sum(-1, True)
                errors.append(-right.clamp(min=LEAST).log())
            else:
                errors.append((got - wanted).square())
            counts.append(mask.unsqueeze(-1) if mask.ndim == 2 else self._counts(field, mask))
        error, count = torch.cat(errors, dim=-1) * weight, torch.cat(counts, dim=-1)
        count = count.to(error.dtype).expand_as(error)
        return (error * count).sum() / over_all(count.sum(), generator).clamp(min=1)


def rows_there(values: Tensor, feature: Feature) -> Tensor:
    """Which rows (B, N) of an observation of kind "elements" there are: by its number "present", or by its text."""
    if feature.dtype == "uint8":
        return values.flatten(2).long().sum(-1) > 0
    if feature.names and "present" in feature.names:
        return values[..., feature.names.index("present")] > 0.5
    return torch.ones_like(values[..., 0], dtype=torch.bool)
