"""Columns that point at rows of an observation, read and written through the rows' tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..conditioning import Conditioning
from ..fields import Fields


class PointerLayers(nn.Module):
    """How the code of an action that points at rows enters a net, and leaves it.

    On its way in, a pointer is the sum of its columns times the tokens of their rows; on its way out, each of its
    columns is the product of what the action looks for and what the row's token offers. So which row an element stands
    in means nothing, but for what the encoder tells of it. All other columns go through linear layers.

    Args:
        fields: of the code.
        places: first token and number of tokens of each observation that is pointed at.
        token_width: features of a token.
        width: features of an action in the net.

    Raises:
        ValueError: the encoder gives no token for each row.
    """

    def __init__(self, fields: Fields, places: Mapping[str, tuple[int, int]], token_width: int, width: int):
        super().__init__()
        self.fields = fields
        self.places = [places.get(field.rows, (0, 0)) for field in fields.pointing]
        for field, (_, count) in zip(fields.pointing, self.places, strict=True):
            if count != field.width:
                raise ValueError(
                    f"the action points at {field.width} rows of {field.rows!r}, and the encoder gives {count} tokens "
                    "of them; choose encoder=elements"
                )
        self.key_width = max(1, width // 2)
        others = sum(field.width for field in fields.each if not field.rows)
        self.inlet, self.outlet = nn.Linear(others, width), nn.Linear(width, others)
        self.reads = nn.ModuleList(nn.Linear(token_width, width) for _ in self.places)
        self.keys = nn.ModuleList(nn.Linear(token_width, self.key_width) for _ in self.places)
        self.query = nn.Linear(width, len(self.places) * self.key_width)
        for layer in (self.outlet, self.query):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def observed(self, cond: Conditioning) -> tuple[Tensor, ...]:
        """What is computed once per decision: readings (B, P, width), keys (B, key, n) each, rows that there are."""
        tokens_BNW, mask_BN = cond.tokens_BNW, cond.mask_BN
        assert tokens_BNW is not None
        reads, keys, there = [], [], []
        for (first, count), read, key in zip(self.places, self.reads, self.keys, strict=True):
            rows = tokens_BNW[:, first : first + count]
            mask = torch.ones_like(rows[..., 0], dtype=torch.bool)
            mask = mask if mask_BN is None else mask_BN[:, first : first + count]
            reads.append(read(rows) * mask.unsqueeze(-1))
            keys.append(key(rows).transpose(1, 2) / self.key_width**0.5)
            there.append(mask)
        return torch.cat(reads, dim=1), torch.cat(keys, dim=2), torch.cat(there, dim=1)

    def enter(self, x_BTC: Tensor, observed: tuple[Tensor, ...]) -> Tensor:
        """A code (B, T, C) to features (B, T, width)."""
        plain = torch.cat([x_BTC[..., field.columns] for field in self.fields.each if not field.rows], dim=-1)
        pointing = torch.cat([x_BTC[..., field.columns] for field in self.fields.pointing], dim=-1)
        return self.inlet(plain) + ((pointing + 1) / 2) @ observed[0]

    def leave(self, h_BTE: Tensor, observed: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Features (B, T, width) to a code (B, T, C), zero in columns of rows that are not there, and `_present`."""
        plain, queries = self.outlet(h_BTE), self.query(h_BTE).split(self.key_width, dim=-1)
        _, keys, there = observed
        found, start, at, pointer = [], 0, 0, 0
        for field in self.fields.each:
            if field.rows:
                part = queries[pointer] @ keys[:, :, start : start + field.width]
                found.append(part * there[:, None, start : start + field.width])
                start, pointer = start + field.width, pointer + 1
            else:
                found.append(plain[..., at : at + field.width])
                at += field.width
        return torch.cat(found, dim=-1), self._present(there)

    def _present(self, there: Tensor) -> Tensor:
        """Of which columns (B, 1, C) there is a row, or none is needed."""
        parts, start, every = [], 0, torch.ones_like(there[:, :1])
        for field in self.fields.each:
            parts.append(there[:, start : start + field.width] if field.rows else every.expand(-1, field.width))
            start += field.width if field.rows else 0
        return torch.cat(parts, dim=-1).unsqueeze(1)
