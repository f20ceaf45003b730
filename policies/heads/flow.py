"""Flow matching head: the generative head of choice for demonstrations with more than one way to do it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..nets import Net
from ..paths import PATHS, TIMES, sample_time, to_velocity
from ..solvers import SOLVERS, integrate, stage_times
from .base import Head, HeadConfig, masked_mean

PREDICTIONS = ("velocity", "data")


@dataclass
class FlowConfig(HeadConfig):
    """Conditional flow matching (Lipman 2023, Liu 2023), any number of steps."""

    kind: str = "flow"
    prediction: str = "data"  # what the net predicts: velocity | data
    time: str = "beta"  # training times: uniform | beta (more near the noise) | logit_normal (more in the middle)
    draws: int = 1  # (time, noise) pairs per encoded observation in training
    steps: int = 4  # solver steps K per decision
    solver: str = "euler"  # euler | midpoint | heun | rk4
    # linear | cosine (keeps the variance of normalized data; it is curved, which euler needs many steps to follow)
    path: str = field(default="linear", metadata={"before": "linear"})

    def __post_init__(self) -> None:
        for name, choices in (("prediction", PREDICTIONS), ("time", TIMES), ("solver", SOLVERS), ("path", PATHS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"head.{name}={getattr(self, name)!r} is unknown; choices: {', '.join(choices)}")
        for name in ("draws", "steps"):
            if not 1 <= getattr(self, name) <= 1000:
                raise ValueError(f"head.{name}={getattr(self, name)} must lie in 1..1000")
        if self.prediction == "data" and 1.0 in SOLVERS[self.solver].c:
            raise ValueError(
                f"head.solver={self.solver!r} evaluates at t=1, where the velocity of head.prediction='data' is "
                "singular; use euler or midpoint"
            )


class FlowHead(Head):
    """Learns the velocity of the path and integrates it from noise to data."""

    def __init__(self, config: FlowConfig, cond_size: int):
        super().__init__()
        self.config = config
        self.tableau = SOLVERS[config.solver]
        self.path = PATHS[config.path]

    @property
    def evaluations(self) -> int:
        """Network evaluations per decision."""
        return self.config.steps * self.tableau.stages

    def loss(
        self, net: Net, x1_BTA: Tensor, cond_BE: Tensor, mask_BT: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Mean squared error of the prediction at random times (Lipman 2023, Eq. 9).

        With prediction=data the target is the chunk itself (on the linear path weight (1-t)^2 relative to the velocity
        loss), which learns the conditional mean as fast as regression does.
        """
        draws, (B, T, A) = self.config.draws, x1_BTA.shape
        t = sample_time(self.config.time, (draws, B), x1_BTA, generator)
        x0 = torch.randn((draws, B, T, A), generator=generator, device=x1_BTA.device, dtype=x1_BTA.dtype)
        c = self.path(t[..., None, None])
        x_t = c.alpha * x1_BTA + c.sigma * x0
        target = c.d_alpha * x1_BTA + c.d_sigma * x0 if self.config.prediction == "velocity" else x1_BTA.expand_as(x0)
        output = net(x_t.flatten(0, 1), net.prepare(t, cond_BE).flatten(0, 1)).unflatten(0, (draws, B))
        return masked_mean((output - target).square(), mask_BT)

    def sample(self, net: Net, noise_BTA: Tensor, cond_BE: Tensor) -> Tensor:
        """Integrates from the noise; all time-dependent work is done for the K steps at once, before the loop."""
        times = torch.tensor(stage_times(self.tableau, self.config.steps), device=noise_BTA.device)
        prepared = net.prepare(times[:, None].expand(-1, len(noise_BTA)), cond_BE)

        def velocity(x: Tensor, i: int) -> Tensor:
            return to_velocity(self.config.prediction, net(x, prepared[i]), x, self.path(times[i]))

        return integrate(velocity, noise_BTA, self.tableau, self.config.steps)
