"""The contract between demonstrations, policies and controllers: what a batch is; what is in it, features say.

Dimensions, everywhere in this package:

    B batch    O observation history    T chunk length (prediction horizon)    A action
    S state    E embedding              K solver steps

The window decided at control step i (history O=2, prediction horizon T=4, execution horizon 2):

    control step    i-1   i   i+1  i+2  i+3
    observed         o    o
    predicted             a    a    a    a
    executed              a    a

Before the episode the first observation repeats. Past its end the last action repeats and the mask is False there.
Generation time runs from t=0 (noise) to t=1 (data).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

DTYPES = {"float32": torch.float32, "uint8": torch.uint8, "uint16": torch.uint16}


@dataclass
class Batch:
    """B windows on one device."""

    observation: dict[str, Tensor]  # each (B, O, *feature shape), in physical units
    action: Float[Tensor, "B T A"]  # in physical units
    mask: Bool[Tensor, "B T"]  # False where the action only repeats past the end of the episode
    task: Int64[Tensor, " B"] | None = None  # index into a list of task texts (`Windows.tasks`); None: not known
    source: Int64[Tensor, " B"] | None = None  # number of the data set in a mixture; None: there is one
