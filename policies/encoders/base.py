"""What every observation encoder shares."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass
class EncoderConfig:
    """Base of every encoder's configuration."""

    kind: str = "???"


class Encoder(nn.Module):
    """Turns a normalized observation history into the conditioning: a vector and, where the net asks for them, tokens.

    An encoder is built from its configuration, the specification, the history O, and whether the net attends to
    tokens; one that has none to give may ignore that. The tokens lie flattened behind the vector, so that the
    conditioning is one tensor to all that neither makes nor attends to them.
    """

    size: int  # E, length of the conditioning, tokens included
    tokens: tuple[int, int] = (0, 0)  # number N of tokens, and features W of each

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        """Observations (B, O, *shape) to conditioning (B, E), whose last N * W numbers are the tokens."""
        raise NotImplementedError
