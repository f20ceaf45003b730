"""The statistics of demonstrations that are held in memory, taken by a policy's normalizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .action_codec import require_choices
from .encoders.vision.config import KINDS

if TYPE_CHECKING:
    from .policy import Policy

DEPTH_PIXELS = 2**22  # of which statistics are taken at most


def fit(
    policy: Policy, observation: Mapping[str, Tensor], action: Tensor, last: Tensor | None, parts: Sequence[slice]
) -> None:
    """See `Policy.fit_normalizers`."""
    chunk = policy.config.chunk
    policy.config.head.require_reference()
    require_choices(policy.spec.action.choices or (), action)
    policy.representation.fit(action, observation)
    for source, part in enumerate(parts if policy.sources else (slice(None),)):
        seen, acted = {name: values[part] for name, values in observation.items()}, action[part]
        ends = None if last is None else last[part] - (part.start or 0)
        for name, normalizer in policy.normalizers()[:-1]:
            data = seen[name]
            data = pixels(data) if policy.spec.observation[name].kind in KINDS else data.flatten(1)
            normalizer.of(source).fit(data, policy.config.normalizer.observation, name)
        rows = policy.representation.rows(seen, acted, ends, chunk.prediction_horizon, chunk.loss_on_padding)
        fit_action(policy, rows, source)


def fit_action(policy: Policy, rows: Sequence[Tensor], source: int = 0) -> None:
    """Takes the statistics of the action: of its columns (N, D) at each step of a chunk, or at any."""
    discrete = torch.tensor([n > 0 for n in policy.codec.choices], device=rows[0].device)
    rows = [each.masked_fill(discrete, 0) for each in rows]  # the index of a choice stays as it is
    mode, groups = policy.config.normalizer.action, policy.representation.groups
    policy.action_normalizer.of(source).fit_steps(rows, mode, "action", groups)


def spread(count: int, size: int) -> Tensor:
    """Which of `count` frames of so many pixels give some million, evenly spread: for the statistics of depth."""
    return torch.linspace(0, count - 1, max(2, min(count, DEPTH_PIXELS // size))).long()


def pixels(frames: Tensor) -> Tensor:
    """Values (N, 1) of some of the frames (M, H, W[, 1]), see `spread`."""
    return frames[spread(len(frames), frames[0].numel()).to(frames.device)].reshape(-1, 1).float()
