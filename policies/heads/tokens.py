"""Token-by-token decoding: one action after the other, each seeing those before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..conditioning import Conditioning
from ..nets.base import Modulation, Net
from .classification import ClassificationConfig, ClassificationHead, drawn


@dataclass
class TokensConfig(ClassificationConfig):
    """Cross-entropy of every choice given the actions before (squared error of numbers): how language models decide.

    The same net, causal over the chunk. A decision takes one small evaluation for each action, with the keys and values
    of the earlier ones kept (net=transformer; other nets are evaluated whole for each), and ends with the action that
    stops. The fields of one action are drawn at once.
    """

    sampling: ClassVar[tuple[str, ...]] = ("temperature", "longest")

    kind: str = "tokens"
    longest: int = 0  # actions that are decoded at most; those after them repeat the last. 0: the whole chunk

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.longest <= 65536:
            raise ValueError(f"head.longest={self.longest} must lie in 0..65536")


class TokensHead(ClassificationHead):
    """Predicts each action from those before it; before the first nothing is chosen."""

    config: TokensConfig

    def loss(
        self, net: Net, x1_BTA: Tensor, cond: Conditioning, mask_BT: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Mean over the fields that count, each action given the demonstrated ones before it; uses no randomness."""
        before = torch.cat([self._begin(x1_BTA), x1_BTA[:, :-1]], dim=1)
        return self.error(net.follow(before, self._prepare(net, x1_BTA, cond)), x1_BTA, mask_BT, generator)

    def sample(self, net: Net, noise_BTA: Tensor, cond: Conditioning) -> Tensor:
        """One action after the other, until all rows have stopped; a graph, which cannot tell, goes to the end."""
        modulation, horizon = self._prepare(net, noise_BTA, cond), noise_BTA.shape[1]
        action, earlier, found = self._begin(noise_BTA), [], []
        stopped = torch.zeros_like(noise_BTA[:, 0, 0], dtype=torch.bool)
        for place in range(min(self.config.longest or horizon, horizon)):
            output, earlier = net.next_action(action, place, horizon, modulation, earlier)
            action = drawn(self.fields, output, noise_BTA[:, place : place + 1], self.config.temperature)
            found.append(action)
            stop = None if self.fields is None else self.fields.stops(action[:, 0])
            if stop is not None and not torch.compiler.is_compiling():
                stopped = stopped | stop
                if bool(stopped.all()):
                    break
        found += [action] * (horizon - len(found))
        return torch.cat(found, dim=1)

    def _begin(self, like: Tensor) -> Tensor:
        """What stands before the first action (B, 1, A): nothing chosen."""
        zeros = torch.zeros_like(like[:, :1])
        return zeros if self.fields is None else zeros + self.fields.neutral.to(zeros.dtype)

    def _prepare(self, net: Net, like: Tensor, cond: Conditioning) -> Modulation:
        return net.prepare(torch.zeros_like(like[:, 0, 0]), cond)
