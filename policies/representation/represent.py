"""Actions to the columns that a net learns, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flowhand.contracts.features import Feature, Spec

from .config import ActionConfig
from .parts import Anchor, Part, anchors, parts
from .segments import Circle, Numbers, Segment, Turn

MOST_VALUES = 2**25  # of the chunks from which statistics are taken; of more, evenly spaced windows are
SLACK = 0.1  # by which lengths and angles between the columns of a demonstrated rotation may be off


class Representation(nn.Module):
    """Between chunks of actions (B, T, A) in physical units and columns (B, T, D), not yet normalized.

    Differences are taken to the observation at the decision, the last one of its history; see `ActionConfig`.
    """

    reference: Tensor

    def __init__(self, config: ActionConfig, spec: Spec):
        super().__init__()
        self.action, self.parts = spec.action, parts(spec.action)
        to = anchors(config, spec)
        self.features = list(dict.fromkeys(each.feature for each in to if each))  # those with anchors
        at, start = {}, 0
        for name in self.features:
            at[name], start = start, start + spec.observation[name].size
        self.segments = nn.ModuleList(_segments(config, spec.action, self.parts, to, at))
        self.anchored = bool(self.features)
        self.plain = all(isinstance(segment, Numbers) and not segment.moving for segment in self.segments)
        self.choices = _choices(spec.action, self._each())
        self.size = len(self.choices)  # D
        self.turned = [each for each in to if each and each.part.turns]
        if any(not isinstance(segment, Numbers) for segment in self.segments):
            self.register_buffer("reference", torch.full((spec.action.size,), torch.nan))

    def encode(self, action: Tensor, observation: Mapping[str, Tensor]) -> Tensor:
        """Chunks (B, T, A), decided from histories (B, O, *shape), to columns (B, T, D)."""
        if self.plain:
            return action
        state = self._state(observation)
        return torch.cat([segment.encode(action[..., segment.places], state) for segment in self._each()], dim=-1)

    def decode(self, columns: Tensor, observation: Mapping[str, Tensor]) -> Tensor:
        """Columns (B, T, D) to chunks (B, T, A) in physical units, in float32."""
        if self.plain:
            return columns
        state, found, start = self._state(observation), [], 0
        for segment in self._each():
            code, start = columns[..., start : start + segment.width].float(), start + segment.width
            reference = code if isinstance(segment, Numbers) else self.reference[segment.places]
            found.append(segment.decode(code, state, reference))
        return torch.cat(found, dim=-1)

    def fit(self, action: Tensor, observation: Mapping[str, Tensor]) -> None:
        """Learns from the demonstrated actions (N, A) which of equal values they have.

        Raises:
            ValueError: an action or an anchor that is declared a rotation and is none.
        """
        for part in self.parts:
            _require_rotation(action[:, part.places], part, "action dimension")
        for each in self.turned:
            values = observation[each.feature].flatten(1)[:, each.part.places]
            _require_rotation(values, each.part, f"observation {each.feature!r} dimension")
        if any(not isinstance(segment, Numbers) for segment in self.segments):
            low, high = (torch.as_tensor(bound).to(action) for bound in self.action.bounds())
            limited = torch.isfinite(low) & torch.isfinite(high)
            low, high = (torch.where(limited, a, b) for a, b in ((low, action.amin(0)), (high, action.amax(0))))
            turns = torch.zeros(len(low), dtype=torch.bool, device=action.device)
            for part in self.parts:
                turns[part.places] = part.turns
            self.reference.copy_(torch.where(turns, action.mean(0), (low + high) / 2))

    def rows(
        self, observation: Mapping[str, Tensor], action: Tensor, last: Tensor | None, horizon: int, padded: bool
    ) -> list[Tensor]:
        """What statistics are taken of: the columns (n, D) of demonstrated steps, for each step of a chunk.

        Args:
            observation: each (N, *shape), N control steps of all episodes.
            action: (N, A).
            last: (N,) the last step of the episode of each step.
            horizon: control steps of a chunk.
            padded: take the steps past an episode's end, too.

        Raises:
            ValueError: differences are asked for, and it is not known where episodes end.
        """
        if not self.anchored:
            return [self.encode(action.unsqueeze(1), {}).squeeze(1)]
        if last is None:
            raise ValueError("statistics of differences are those of chunks: tell where the episodes end with last=")
        index = self.sampled(len(action), horizon).to(action.device)
        future = index[:, None] + torch.arange(horizon, device=action.device)
        end = last[index, None]
        seen = {name: observation[name][index].unsqueeze(1) for name in self.features}
        return self.rows_of_chunks(seen, action[torch.minimum(future, end)], (future <= end) | padded)

    def sampled(self, count: int, horizon: int) -> Tensor:
        """Of which of the windows that start at so many control steps statistics are taken: evenly spaced ones."""
        kept = min(count, max(2, MOST_VALUES // (horizon * self.size)))
        return torch.arange(kept) * count // kept

    def rows_of_chunks(self, observation: Mapping[str, Tensor], chunks: Tensor, kept: Tensor) -> list[Tensor]:
        """What statistics are taken of, see `rows`, of chunks (n, T, A) that were decided from (n, O, *shape).

        Args:
            observation: of the features with anchors.
            chunks: of actions.
            kept: (n, T) which of their steps count.
        """
        columns = self.encode(chunks, observation)
        return [columns[kept[:, step], step] for step in range(chunks.shape[1])]

    @property
    def groups(self) -> list[slice]:
        """The columns of each angle and each rotation, which share a scale."""
        found, start = [], 0
        for segment in self._each():
            if not isinstance(segment, Numbers):
                found.append(slice(start, start + segment.width))
            start += segment.width
        return found

    def spread(self, scale: Tensor, horizon: int) -> Tensor:
        """The spread of each dimension (A,) of the action, of the scales (D,) of its columns.

        Differences to the action before add up: that of a chunk of so many steps is taken to be that of a random walk.
        """
        found, start = [], 0
        for segment in self._each():
            own = scale[start : start + segment.width]
            start += segment.width
            if not isinstance(segment, Numbers):  # an angle moves its columns by as much, a quaternion by half
                half = isinstance(segment, Turn) and segment.form.startswith("quaternion")
                own = own[:1].expand(segment.size) / (2 if half else 1)
            found.append(torch.where(segment.adds_N, own * horizon**0.5, own))
        return torch.cat(found)

    def columns_of(self, spread: Tensor) -> Tensor:
        """Values (A,) of dimensions as those of their columns (D,): of an angle or a rotation, the first one's."""
        own = [
            spread[segment.places] if isinstance(segment, Numbers) else spread[segment.first].expand(segment.width)
            for segment in self._each()
        ]
        return torch.cat(own)

    def _each(self) -> list[Segment]:
        return [segment for segment in self.segments if isinstance(segment, Segment)]

    def _state(self, observation: Mapping[str, Tensor]) -> Tensor | None:
        """The present values (B, S) of the features with anchors."""
        if not self.anchored:
            return None
        return torch.cat([observation[name][:, -1].flatten(1) for name in self.features], dim=-1)


def _segments(
    config: ActionConfig, action: Feature, own: list[Part], to: list[Anchor | None], at: Mapping[str, int]
) -> list[Segment]:
    """The runs of the action's parts; neighbouring numbers are one."""
    delta, found, run = config.representation == "delta", [], []

    def close() -> None:
        if run:
            found.append(Numbers([part for part, _ in run], [each for _, each in run], at, action, delta))
            run.clear()

    for part, each in zip(own, to, strict=True):
        circle = part.kind == "angle" and each is None and config.wrapped == "sin_cos"
        if not (circle or part.turns):
            run.append((part, each))
            continue
        close()
        found.append(Circle(part) if circle else Turn(part, each, at, delta))
    close()
    return found


def _choices(action: Feature, segments: list[Segment]) -> tuple[int, ...]:
    """How many choices each column has, 0 for a continuous one."""
    own = action.choices or (0,) * action.size
    found: list[int] = []
    for segment in segments:
        found += own[segment.places] if isinstance(segment, Numbers) else (0,) * segment.width
    return tuple(found)


def _require_rotation(values: Tensor, part: Part, where: str) -> None:
    """Raises `ValueError` unless the values (N, n) have the form of the part's rotation."""
    if not part.turns or part.kind == "axis_angle":
        return
    if part.kind.startswith("quaternion"):
        off = (values.norm(dim=-1) - 1).abs()
    else:
        first, second = values[:, :3], values[:, 3:]
        lengths = torch.stack([first.norm(dim=-1), second.norm(dim=-1)], dim=-1) - 1
        off = torch.cat([lengths, (first * second).sum(-1, keepdim=True)], dim=-1).abs().amax(-1)
    if (off > SLACK).any():
        row = int((off > SLACK).nonzero()[0])
        raise ValueError(
            f"{where} {part.first} begins a {part.kind}, but control step {row} has {values[row].tolist()}, whose "
            f"lengths or angles are off by {off[row].item():.2g}"
        )
