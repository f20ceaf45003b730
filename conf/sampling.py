"""How a checkpoint's head samples, where it is to sample otherwise than it says."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class SamplingConfig:
    """Fields of the head; None: as the checkpoint says. Which head has which: docs/heads.md."""

    steps: int | None = None  # per decision
    solver: str | None = None  # of flow: euler | midpoint | heun | rk4 | multistep
    grid: str | None = None  # of flow: uniform | power | tabulated
    guidance: float | None = None  # of flow: 1 samples as trained
    max_guidance: float | None = None  # of flow: largest weight of real-time chunking's guidance
    sampler: str | None = None  # of diffusion: ddim | ddpm | multistep
    spacing: str | None = None  # of diffusion: trailing | leading | power | tabulated
    clip: float | None = None  # of diffusion: largest size of a predicted normalized action; 0: not clipped
    least_alpha: float | None = None  # of diffusion: alpha counts as at least this
    sigma_min: float | None = None  # of edm: noise of the last level
    sigma_max: float | None = None  # of edm: noise of the first level
    rho: float | None = None  # of edm: how much the levels crowd near the data
    noise: float | None = None  # of drift: spread of the noise
    temperature: float | None = None  # of classification and tokens: 0 takes the likeliest choice, 1 draws as learned
    longest: int | None = None  # of tokens: actions that are decoded at most; 0: the whole chunk
    more: dict[str, Any] = field(default_factory=dict)  # fields of a head of your own package

    @property
    def changes(self) -> dict[str, Any]:
        """The fields that are given."""
        given = {name: value for name, value in asdict(self).items() if name != "more" and value is not None}
        return {**given, **self.more}
