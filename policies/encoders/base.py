"""What every observation encoder shares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from torch import Generator, Tensor, nn

from flowhand.contracts.features import Feature

from ..conditioning import Conditioning


@dataclass
class EncoderConfig:
    """Base of every encoder's configuration."""

    kind: str = "???"


class Encoder(nn.Module):
    """Turns a normalized observation history into the conditioning: a vector and, where the net asks for them, tokens.

    An encoder is built from its configuration, the specification with the features that it accepts, the history O, and
    whether the net asks for tokens; one that gives them anyway, or has none to give, may ignore that.
    """

    group: ClassVar[str] = "encoder"  # of the configuration, by which it is chosen
    takes: ClassVar[str]  # what it accepts, in words

    size: int  # E, length of the vector
    tokens: tuple[int, int] = (0, 0)  # number N of tokens, and features W of each
    # First token and number of tokens of each observation that an action may point at; each row of it has one.
    row_tokens: Mapping[str, tuple[int, int]] = MappingProxyType({})

    @staticmethod
    def accepts(feature: Feature) -> bool:
        """Whether it encodes such features."""
        raise NotImplementedError

    @property
    def flat_size(self) -> int:
        """Length of `Conditioning.flat_BF`."""
        return self.size + math.prod(self.tokens)

    def forward(self, observation: dict[str, Tensor], generator: Generator | None = None) -> Conditioning:
        """Observations (B, O, *shape) to conditioning.

        Args:
            observation: normalized.
            generator: of the randomness of training (augmentation); None: there is to be none.
        """
        raise NotImplementedError
