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
from ..base import Encoder
from .config import IndexConfig, SentenceConfig


class TaskEncoder(Encoder):
    """A mixture of learned embeddings, one for each known text.

    Of a policy with one-hot vectors it is the embedding of the text. With sentence embeddings, the shares are a softmax
    of the cosines to the known texts: a known text has nearly its own embedding alone, and a new wording what the texts
    that mean the same have. A learned map of a few hundred inputs, fitted to ten texts, would leave most directions of
    a new one to chance (Nadaraya 1964 and Watson 1964 have the estimator).
    """

    group = "words"
    takes = "the task"
    vectors: Tensor

    def __init__(self, config: IndexConfig, spec: Spec, history: int, tokens: bool = False):
        super().__init__()
        feature = spec.observation[TASK]
        self.sharpness = config.sharpness if isinstance(config, SentenceConfig) else 0.0
        known = F.normalize(torch.from_numpy(vectors_of(feature)), dim=-1)
        self.register_buffer("vectors", known, persistent=False)  # they are part of the specification
        self.table = nn.Parameter(torch.randn(len(known), config.width))
        self.size = config.width
        self.tokens = (1, config.width) if tokens else (0, 0)

    @staticmethod
    def accepts(feature: Feature) -> bool:
        """The task."""
        return feature.kind == TASK

    def forward(self, observation: dict[str, Tensor], generator: Generator | None = None) -> Conditioning:
        """The task's vectors (B, O, D), of which the last counts, to conditioning; nothing of it is random."""
        shares = observation[TASK][:, -1]
        if self.sharpness:
            shares = torch.softmax(self.sharpness * F.normalize(shares, dim=-1) @ self.vectors.T, dim=-1)
        vector = shares @ self.table
        return Conditioning(vector, vector.unsqueeze(1) if self.tokens[0] else None)


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
