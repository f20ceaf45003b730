"""The encoder of the task, and the observations that a batch's task and source stand for."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from flowhand.contracts.data.tasks import SOURCE, TASK, vectors_of
from flowhand.contracts.features import Feature, Spec

from ...batch import Batch
from ...conditioning import Conditioning
from ...draws import drawn
from ..base import Encoder
from .config import IndexConfig, SentenceConfig

LEAST_APART = 1e-3  # 1 - cosine of two texts; nearer ones are not told apart by a sharper mixture


class TaskEncoder(Encoder):
    """A mixture of learned embeddings, one for each known text.

    Of a policy with one-hot vectors it is the embedding of the text. With sentence embeddings the shares are a softmax
    of the cosines to the known texts (the kernel regression of Nadaraya 1964 and Watson 1964), as sharp as the two
    nearest of them need: a known text has its own embedding nearly alone, and a new wording mostly those of the texts
    that mean the same. A learned map of hundreds of inputs that is fitted to ten texts would leave most directions of a
    new one to chance.
    """

    group = "words"
    takes = "the task"
    known: Tensor

    def __init__(self, config: IndexConfig, spec: Spec, history: int, tokens: bool = False):
        super().__init__()
        feature = spec.observation[TASK]
        known = vectors_of(feature).astype(np.float64)
        known /= np.linalg.norm(known, axis=1, keepdims=True)
        self.sharpness = self.mixed = 0.0
        if isinstance(config, SentenceConfig):
            self.sharpness, self.mixed = sharpness(known, config.own), config.mixed
        # They follow from the specification, and are no weights.
        self.register_buffer("known", torch.from_numpy(known.astype(np.float32)), persistent=False)
        self.table = nn.Parameter(torch.randn(len(known), config.width))
        self.size = config.width
        self.tokens = (1, config.width) if tokens else (0, 0)

    @staticmethod
    def accepts(feature: Feature) -> bool:
        """The task."""
        return feature.kind == TASK

    def forward(self, observation: dict[str, Tensor], generator: Generator | None = None) -> Conditioning:
        """The task's vectors (B, O, D), of which the last counts, to conditioning.

        In training some are mixed with another task, of less weight, as those of a new wording are.
        """
        shares = observation[TASK][:, -1]
        if self.sharpness:
            shares = torch.softmax(self.sharpness * F.normalize(shares, dim=-1) @ self.known.T, dim=-1)
            if generator is not None and self.mixed:
                shares = self._mix(shares, generator)
        vector = shares @ self.table
        return Conditioning(vector, vector.unsqueeze(1) if self.tokens[0] else None)

    def _mix(self, shares: Tensor, generator: Generator) -> Tensor:
        """Some of the rows mixed with a row for another text, drawn uniformly."""
        numbers = drawn(torch.rand, (len(shares), 3), generator, device=shares.device)
        other = (numbers[:, 1] * shares.shape[1]).long().clamp(max=shares.shape[1] - 1)
        weight = torch.where(numbers[:, 0] < self.mixed, numbers[:, 2] / 2, 0).unsqueeze(1)
        return (1 - weight) * shares + weight * F.one_hot(other, shares.shape[1])


def sharpness(known: np.ndarray, own: float) -> float:
    """The factor of the cosines with which every known text has at least this share of its own.

    Args:
        known: vectors of length 1.
        own: the share.
    """
    if len(known) < 2:
        return 1.0
    cosines = known @ known.T - 2 * np.eye(len(known))
    return float(np.log((len(known) - 1) * own / (1 - own)) / max(1 - cosines.max(), LEAST_APART))


class Given(nn.Module):
    """The observations that a batch's tasks and sources stand for."""

    vectors: Tensor

    def __init__(self, spec: Spec):
        super().__init__()
        self.sizes = {name: spec.observation[name].size for name in (TASK, SOURCE) if name in spec.observation}
        known = vectors_of(spec.observation[TASK]) if TASK in self.sizes else np.empty((0, 0), np.float32)
        self.register_buffer("vectors", torch.from_numpy(known), persistent=False)

    def forward(self, batch: Batch, history: int) -> dict[str, Tensor]:
        """The observation of a batch with the vectors (B, O, D) of its tasks and the one-hot (B, O, K) of its sources.

        Raises:
            ValueError: they are asked for, and the batch does not say them.
        """
        observation = dict(batch.observation)
        for name, index in ((TASK, batch.task), (SOURCE, batch.source)):
            if name not in self.sizes or name in observation:
                continue
            if index is None:
                raise ValueError(f"the policy is given its {name}, and the batch does not say it")
            rows = self.vectors[index] if name == TASK else F.one_hot(index, self.sizes[name]).float()
            observation[name] = rows.unsqueeze(1).expand(-1, history, -1)
        return observation
