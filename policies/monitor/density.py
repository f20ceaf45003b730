"""How common an observation was in the demonstrations: a flow from the policy's embeddings to noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowhand.contracts.strict import whole_numbers

from ..conditioning import Conditioning

MOST_EMBEDDED = 4096  # numbers of a conditioning whose tokens are looked at too


def embedded_size(size: int, tokens: tuple[int, int]) -> int:
    """Numbers of the embedding of a conditioning with a vector of this size and tokens of the shape (N, W)."""
    flat = size + tokens[0] * tokens[1]
    return flat if flat <= MOST_EMBEDDED else size


def embedding(cond: Conditioning) -> Tensor:
    """What a density looks at, (B, E): vector and tokens or, where these are as many as an image's patches, the vector.

    A density of tens of thousands of numbers would need more demonstrations than there are; the vector of a vision
    encoder has been through all of an image's tokens.
    """
    flat = embedded_size(cond.vector_BE.shape[-1], cond.tokens) > cond.vector_BE.shape[-1]
    return cond.flat_BF if flat else cond.vector_BE


@dataclass
class DensityConfig:
    """The net and its training."""

    width: int = 256  # features of each of the three hidden layers
    steps: int = 2000  # optimizer steps
    batch_size: int = 128  # embeddings per step
    learning_rate: float = 1e-3  # of Adam
    seed: int = 0  # of weights, batches and noise

    def __post_init__(self) -> None:
        whole_numbers(self)
        for name in ("width", "steps", "batch_size"):
            if not 1 <= getattr(self, name) <= 100_000:
                raise ValueError(f"density.{name}={getattr(self, name)} must lie in 1..100000")
        if not 0 < self.learning_rate < 1:
            raise ValueError(f"density.learning_rate={self.learning_rate} must lie in (0, 1)")


class Density(nn.Module):
    """A flow from embeddings (t=0) to noise (t=1), the other way round than a policy's.

    Embeddings are standardized first, so that no feature counts more because it is larger.
    """

    mean: Tensor  # (E,)
    scale: Tensor  # (E,)

    def __init__(self, config: DensityConfig, size: int):
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        width, layers = config.width, [nn.Linear(size + 1, config.width), nn.SiLU()]
        layers += [nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, size)]
        self.net = nn.Sequential(*layers)

    def velocity(self, x_BE: Float[Tensor, "B E"], t_B: Float[Tensor, " B"]) -> Float[Tensor, "B E"]:
        """Velocity of standardized embeddings on their way to noise."""
        return self.net(torch.cat([x_BE, t_B[:, None]], dim=1))

    def loss(self, o_BE: Float[Tensor, "B E"], generator: torch.Generator) -> Float[Tensor, ""]:
        """Flow matching with x0 the embedding and x1 the noise: the target is x1 - x0 (Xu 2025, FAIL-Detect)."""
        x0 = self._standardized(o_BE)
        x1 = torch.randn(x0.shape, generator=generator)
        t = torch.rand(len(x0), generator=generator)
        x_t = torch.lerp(x0, x1, t[:, None])
        return (self.velocity(x_t, t) - (x1 - x0)).square().mean()

    def score(self, o_BE: Float[Tensor, "B E"], steps: int) -> Float[Tensor, " B"]:
        """Squared length of the noise at which Euler's method with so many steps, so many evaluations, arrives.

        With many steps it is that of a standard normal vector for a common embedding and larger for a rare one. With
        one it is |O + v(O, 0)|^2 (logpZO; Xu 2025). The exact v(O, 0) is the mean of x1 - O, which is -O wherever O
        lies, so what the one-step score measures is the error of the net, which grows where nothing was to learn from.
        """
        x = self._standardized(o_BE)
        for k in range(steps):
            x = x + self.velocity(x, torch.full((len(x),), k / steps)) / steps
        return x.square().sum(1)

    def _standardized(self, o_BE: Tensor) -> Tensor:
        return (o_BE.float() - self.mean) / self.scale


def learn_density(o_NE: Float[Tensor, "N E"], config: DensityConfig) -> Density:
    """The flow of the embeddings of the demonstrations; the same embeddings and seed give the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        density = Density(config, o_NE.shape[1])
    density.mean.copy_(o_NE.mean(0))
    spread = o_NE.std(0, correction=0)
    # A dead feature has no spread. All are of one kind, so the largest spread tells what is small.
    density.scale.copy_(torch.where(spread > 1e-4 * spread.max(), spread, 1.0))
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.Adam(density.parameters(), lr=config.learning_rate)
    for _ in range(config.steps):
        rows = torch.randint(len(o_NE), (config.batch_size,), generator=generator)
        optimizer.zero_grad()
        density.loss(o_NE[rows], generator).backward()
        optimizer.step()
    return density.eval().requires_grad_(False)
