"""What every vision encoder shares: several cameras, their history, and one vector of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from flowhand.contracts.features import Feature, Spec

from ...conditioning import Conditioning
from ..base import Encoder
from .config import KINDS, ImageConfig
from .picture import Picture


class Backbone(nn.Module):
    """A network for single images (N, C, H, W): a vector (N, F) of each and, where it has them, tokens (N, P, W).

    It is built from its encoder's configuration and the shape (C, H, W) of an image.
    """

    tokens: tuple[int, int] = (0, 0)  # P and W

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images to their vectors and tokens."""
        raise NotImplementedError


def parted(rows: Tensor, count: int) -> Sequence[Tensor]:
    """So many equal parts of the rows; not with `chunk`, which a graph for any number of rows cannot do."""
    return rows.reshape(count, -1, *rows.shape[1:]).unbind()


class CameraEncoder(Encoder):
    """Every image of every camera through a backbone; the vectors of all then through two layers.

    Tokens, where the net asks for them, are the backbone's, or the images' vectors, each with a learned place that
    tells the camera and the step of the history.
    """

    takes = "images and depth"
    group = "vision"
    backbone: ClassVar[type[Backbone]]

    def __init__(self, config: ImageConfig, spec: Spec, history: int, tokens: bool = False):
        super().__init__()
        self.names, self.frames = sorted(spec.observation), config.frames or history
        if self.frames > history:
            raise ValueError(f"vision.frames={config.frames} is more than chunk.history={history} observations")
        self.pictures = nn.ModuleDict(
            {name: Picture(config, name, feature) for name, feature in spec.observation.items()}
        )
        shapes = {name: self.picture(name).shape for name in self.names}
        first, *others = self.names
        odd = next((name for name in others if shapes[name] != shapes[first]), None)
        if config.shared and odd:
            raise ValueError(
                f"vision.shared=true needs images of one shape; {first!r} has (channels, height, width) "
                f"{shapes[first]}, {odd!r} has {shapes[odd]}: set vision.image_size, or vision.shared=false"
            )
        self.shared = config.shared
        kinds = {"shared": shapes[first]} if config.shared else shapes
        self.backbones = nn.ModuleDict({key: self.backbone(config, shape) for key, shape in kinds.items()})
        count = len(self.names) * self.frames
        self.layers = nn.Sequential(
            nn.Linear(count * config.features, config.width), nn.SiLU(), nn.Linear(config.width, config.width)
        )
        self.size = config.width
        if tokens:
            own = [backbone.tokens for backbone in self._each()]
            self.per_image = [number or 1 for number, _ in own]
            width = own[0][1] or config.features
            self.tokens = (self.frames * sum(self.per_image), width)
            self.places = nn.Parameter(torch.randn(len(self.names), self.frames, 1, width) * 0.02)

    @staticmethod
    def accepts(feature: Feature) -> bool:
        """Images and depth images."""
        return feature.kind in KINDS

    def picture(self, name: str) -> Picture:
        """What is done to the images of a camera before the network."""
        found = self.pictures[name]
        assert isinstance(found, Picture)
        return found

    def _each(self) -> list[Backbone]:
        """The backbone of every camera."""
        found = [self.backbones["shared" if self.shared else name] for name in self.names]
        return [backbone for backbone in found if isinstance(backbone, Backbone)]

    def forward(self, observation: dict[str, Tensor], generator: Generator | None = None) -> Conditioning:
        """Images (B, O, H, W[, C]) of every camera to conditioning; augmented with a generator only."""
        seen = [self.pictures[name](observation[name][:, -self.frames :], generator) for name in self.names]
        if self.shared:
            vectors, tokens = self.backbones["shared"](torch.cat(seen))
            own = [None] * len(seen) if tokens is None else parted(tokens, len(seen))
            answers = list(zip(parted(vectors, len(seen)), own, strict=True))
        else:
            answers = [self.backbones[name](images) for name, images in zip(self.names, seen, strict=True)]
        each = [vectors.unflatten(0, (-1, self.frames)) for vectors, _ in answers]  # (B, frames, F)
        vector = self.layers(torch.cat([vectors.flatten(1) for vectors in each], dim=1))
        if not self.tokens[0]:
            return Conditioning(vector)
        own = [
            vectors.unsqueeze(2) if tokens is None else tokens.unflatten(0, (-1, self.frames))
            for vectors, (_, tokens) in zip(each, answers, strict=True)
        ]  # (B, frames, P, W)
        placed = [(tokens + place).flatten(1, 2) for tokens, place in zip(own, self.places, strict=True)]
        return Conditioning(vector, torch.cat(placed, dim=1))
