"""How often each recorded step is drawn in training, by who acted at it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..native import Store
from ..reader import Reader


def step_weights(data: Store | Reader, episodes: Sequence[int], weight: float) -> np.ndarray | None:
    """The weight of each control step (N,) of these episodes, one after the other.

    Args:
        data: the set.
        episodes: numbers in the set.
        weight: of a step at which somebody had taken over; the others have 1.

    Returns:
        The weights; None where all are alike.

    Raises:
        ValueError: nobody has taken over at any step.
    """
    if weight == 1:
        return None
    rows = data if isinstance(data, Store) else data.only([])
    taken = []
    for number in episodes:
        episode = rows.read(number)
        acted = episode.intervention
        taken.append(np.zeros(len(episode), bool) if acted is None else acted)
    steps = np.concatenate(taken)
    if not steps.any():
        raise ValueError(
            f"data.intervention_weight={weight:g}, but at no step of {data.path} had somebody taken over; record such "
            "episodes with flowhand record checkpoint=... takeover.by=..., or leave it at 1"
        )
    return np.where(steps, weight, 1.0)
