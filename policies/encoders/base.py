"""What every observation encoder shares."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass
class EncoderConfig:
    """Base of every encoder's configuration."""

    kind: str = "???"


class Encoder(nn.Module):
    """Turns a normalized observation history into one conditioning vector."""

    size: int  # E, length of the conditioning vector

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        """Observations (B, O, *shape) to conditioning (B, E)."""
        raise NotImplementedError
