"""Statistics of demonstrations that are read from the disk, of which few are held at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from flowhand.contracts.data.statistics import Statistics

from ..action_codec import require_choices
from ..fitting import fit_action, spread
from ..policy import Policy

# The values (n, *shape) of a feature at control steps (n,).
Values = Callable[[str, np.ndarray], Tensor]


def take_statistics(
    policy: Policy,
    statistics: Statistics,
    actions: Iterable[Tensor],
    values: Values,
    last: Callable[[np.ndarray], np.ndarray],
    count: int,
) -> None:
    """Gives the policy what `Policy.fit_normalizers` gives it, without all values at once.

    States, and actions that are learned as they are, have the statistics of all rows. Depth, and actions that are
    learned otherwise, have those of evenly spaced rows or chunks, some million values of them.

    Args:
        policy: is given the statistics.
        statistics: of every vector of the observation, and of the action.
        actions: all actions, part by part (n, A); looked at where some are choices.
        values: gives values of a feature.
        last: gives the last step of the episode of each step.
        count: control steps that there are.
    """
    mode = policy.config.normalizer.observation
    policy.config.head.require_reference()
    choices = policy.spec.action.choices or ()
    for part in actions if any(choices) else ():
        require_choices(choices, part)
    for name, normalizer in policy.normalizers()[:-1]:
        feature = policy.spec.observation[name]
        if feature.kind == "depth":
            steps = spread(count, feature.size).numpy()
            normalizer.fit(values(name, steps).reshape(-1, 1).float(), mode, name)
        else:
            normalizer.take(statistics[name], mode, name)
    if policy.representation.plain and policy.action_normalizer.shift.ndim == 1:
        measured = statistics["action"].without(np.array(policy.codec.choices) > 0)
        policy.action_normalizer.take(measured, policy.config.normalizer.action, "action")
    else:
        _take_chunks(policy, values, last, count)


def _take_chunks(policy: Policy, values: Values, last: Callable[[np.ndarray], np.ndarray], count: int) -> None:
    """The statistics of an action that is learned otherwise than it is recorded."""
    chunk, represented = policy.chunk, policy.representation
    steps = represented.sampled(count, chunk.prediction_horizon).numpy()
    seen = {name: values(name, steps) for name in represented.features}
    now = values("action", steps)
    represented.fit(now, seen)
    if not represented.anchored:
        fit_action(policy, [represented.encode(now.unsqueeze(1), {}).squeeze(1)])
        return
    future, end = steps[:, None] + np.arange(chunk.prediction_horizon), last(steps)[:, None]
    chunks = values("action", np.minimum(future, end).reshape(-1)).unflatten(0, future.shape)
    kept = torch.from_numpy((future <= end) | chunk.loss_on_padding)
    fit_action(policy, represented.rows_of_chunks({n: each.unsqueeze(1) for n, each in seen.items()}, chunks, kept))
