"""What an export makes a graph of: the whole decision as a function of tensors, with a monitor's scores or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from ..conditioning import Conditioning
from ..monitor.density import Density, embedding
from ..monitor.scores import SCORES, DirectScore
from ..nets.base import Modulation, Net
from ..policy import Policy


class Decision(nn.Module):
    """One decision as a function of tensors alone."""

    outputs: ClassVar[tuple[str, ...]] = ("action",)

    def __init__(self, policy: Policy, net: Net | None = None):
        super().__init__()
        self.policy, self.net = policy, net or policy.net

    def with_net(self, net: Net) -> Decision:
        """The same decision with a net in place of the policy's own."""
        return Decision(self.policy, net)

    def forward(self, noise: Tensor, observation: dict[str, Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        """Noise (B, *noise_shape) and histories (B, O, *shape) to chunks (B, T, A)."""
        return self.policy.generate(self.net, observation, noise)


class ScoredDecision(Decision):
    """One decision and the D scores of a monitor, which tell how far it is from what was learned.

    Args:
        policy: decides.
        scores: names of scores that follow from the decision alone.
        density: where a score needs it.
        net: stands in for the policy's own.

    Raises:
        ValueError: a score that takes more than the decision.
    """

    outputs = ("action", "scores")

    def __init__(self, policy: Policy, scores: Sequence[str], density: Density | None, net: Net | None = None):
        super().__init__(policy, net)
        self.names, self.density, self.scores = list(scores), density, [SCORES[name]() for name in scores]
        able = sorted(name for name, score in SCORES.items() if isinstance(score(), DirectScore))
        if unable := [name for name in self.names if name not in able]:
            raise ValueError(
                f"scores {', '.join(unable)} sample further chunks at every decision, which an export does not; "
                f"calibrate the monitor with some of: {', '.join(able)}"
            )

    def with_net(self, net: Net) -> ScoredDecision:
        """The same decision with a net in place of the policy's own."""
        return ScoredDecision(self.policy, self.names, self.density, net)

    def forward(self, noise: Tensor, observation: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Noise (B, *noise_shape) and histories (B, O, *shape) to chunks (B, T, A) and scores (B, D)."""
        head, cond, heard = self.policy.head, self.policy.encode(observation), Heard(self.net)
        action_BTA = self.policy.decode(head.sample(heard, noise, cond), observation)
        path = any("path" in score.needs for score in self.scores)
        velocity = head.velocities(heard.asked) if path else torch.zeros(0)
        scores = [cast(DirectScore, score).rows(embedding(cond), velocity, self.density) for score in self.scores]
        return action_BTA, torch.stack(scores, dim=1)


class Heard(Net):
    """A net that notes all that it is asked and answers."""

    def __init__(self, net: Net):
        super().__init__()
        self.net = net
        self.asked: list[tuple[Tensor, Tensor]] = []

    def prepare(self, t: Tensor, cond: Conditioning, per_action: bool = False) -> Modulation:
        """The net's own."""
        return self.net.prepare(t, cond, per_action)

    def next_action(
        self, x_B1A: Tensor, place: int, horizon: int, modulation: Modulation, earlier: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """The net's own; it tells of no way from the noise."""
        return self.net.next_action(x_B1A, place, horizon, modulation, earlier)

    def forward(self, x_BTA: Tensor, modulation: Modulation) -> Tensor:
        """The net's own."""
        answer = self.net(x_BTA, modulation)
        self.asked.append((x_BTA, answer))
        return answer
