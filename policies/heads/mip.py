"""Minimal iterative policy: two evaluations, deterministic; regression that refines its own first answer."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..conditioning import Conditioning
from ..draws import drawn
from ..nets.base import Modulation, Net
from .base import Head, HeadConfig


@dataclass
class MIPConfig(HeadConfig):
    """Two supervised steps, noise in training only (arXiv 2512.01809). For precise tasks with one right action."""

    kind: str = "mip"
    time: float = 0.9  # t*, the generation time of the second evaluation, in (0, 1)
    # what a wrong choice costs: squared (of its code) | cross_entropy (the net gives probabilities) | auto
    # (cross_entropy where the action points at rows of the observation and the net predicts data, else squared)
    choices: str = field(default="auto", metadata={"before": "auto"})

    def __post_init__(self) -> None:
        self.require_choice_error(self.choices)
        if not 1e-6 <= self.time <= 1 - 1e-6:
            raise ValueError(f"head.time={self.time} must lie between 0 and 1, without the ends")


class MIPHead(Head):
    """First the chunk from nothing (t=0, zeros), then once more from t* times the first answer."""

    times: Tensor

    def __init__(self, config: MIPConfig, cond_size: int, tokens: tuple[int, int] = (0, 0)):
        super().__init__()
        self.config = config
        self.register_buffer("times", torch.tensor([0.0, config.time], dtype=torch.float32), persistent=False)

    @property
    def evaluations(self) -> int:
        """Two."""
        return 2

    def loss(
        self, net: Net, x1_BTA: Tensor, cond: Conditioning, mask_BT: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """`|net(0, 0) - x1|^2 / t* + |net(t* x1 + (1-t*) z, t*) - x1|^2 / (1-t*)`, z normal (arXiv 2512.01809).

        The weights suit squared errors. Where choices cost cross-entropy both parts count alike: the second, which can
        read the choice from what it is shown, would drown the first.
        """
        time = self.config.time
        z = drawn(torch.randn, x1_BTA.shape, generator, device=x1_BTA.device, dtype=x1_BTA.dtype)
        x_t = torch.stack([torch.zeros_like(x1_BTA), time * x1_BTA + (1 - time) * z])
        prepared = self._prepare(net, x1_BTA, cond)
        output = net(x_t.flatten(0, 1), prepared.flatten(0, 1)).unflatten(0, (2, len(x1_BTA)))
        first, second = (self.error(part, x1_BTA, mask_BT, generator) for part in output)
        return first + second if self.choice_error == "cross_entropy" else first / time + second / (1 - time)

    def sample(self, net: Net, noise_BTA: Tensor, cond: Conditioning) -> Tensor:
        """The refined chunk; the noise gives only the shape."""
        prepared = self._prepare(net, noise_BTA, cond)
        first = self.expected(net(torch.zeros_like(noise_BTA), prepared[0]))
        return net(self.config.time * first, prepared[1])

    def _prepare(self, net: Net, like: Tensor, cond: Conditioning) -> Modulation:
        """Of the two evaluations."""
        return net.prepare(self.times[:, None].expand(-1, len(like)), cond)
