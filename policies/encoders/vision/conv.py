"""Small convolutional vision encoder: for CPUs, few milliseconds, and tasks in which places matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cameras import Backbone, CameraEncoder
from .config import ImageConfig
from .spatial_softmax import Keypoints

STRIDE, COARSE = 4, 2  # of the first layer, and of the coarse map after it
GROUP = 16  # channels that are normalized together


@dataclass
class ConvConfig(ImageConfig):
    """The first choice on a CPU: 64 to 128 pixels, one or two cameras, decisions of milliseconds."""

    positive: ClassVar[tuple[str, ...]] = ("features", "width", "channels", "keypoints", "blocks")

    kind: str = "conv"
    channels: int = 32  # of the fine map, a quarter of the image's height and width; the coarse one has twice as many
    blocks: int = 2  # residual convolutions on the coarse map, an eighth of the image's height and width
    keypoints: int = 32  # places that are read off the fine map

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels % GROUP:
            raise ValueError(f"vision.channels={self.channels} must be a multiple of {GROUP}")


class ConvBackbone(Backbone):
    """A fine map of strided patches, a coarse one that sees further, and places read off their sum.

    One convolution of 8 x 8 pixels every 4 makes the fine map. The coarse map takes the costly 3 x 3 convolutions, at a
    quarter of the places. It returns to the fine one through a linear layer (Lin 2017, feature pyramids), so that
    keypoints know their surroundings and stay a quarter of the image fine. Beside them goes the coarse map's mean,
    which tells what is there.
    """

    def __init__(self, config: ConvConfig, shape: tuple[int, int, int]):
        super().__init__()
        channels, height, width = shape
        if height < 2 * STRIDE or width < 2 * STRIDE:
            raise ValueError(f"vision=conv needs images of {2 * STRIDE} x {2 * STRIDE} pixels, got {height} x {width}")
        fine, coarse = config.channels, COARSE * config.channels
        self.patches = nn.Conv2d(channels, fine, 2 * STRIDE, STRIDE, STRIDE // 2)
        self.patches_norm = nn.GroupNorm(fine // GROUP, fine)
        self.down = nn.Conv2d(fine, coarse, 3, COARSE, 1)
        self.down_norm = nn.GroupNorm(coarse // GROUP, coarse)
        self.convolutions = nn.ModuleList(nn.Conv2d(coarse, coarse, 3, 1, 1) for _ in range(config.blocks))
        self.norms = nn.ModuleList(nn.GroupNorm(coarse // GROUP, coarse) for _ in range(config.blocks))
        self.up = nn.Conv2d(coarse, fine, 1)
        self.places = (height // STRIDE, width // STRIDE)
        self.keypoints = Keypoints(fine, config.keypoints, *self.places)
        self.out = nn.Linear(2 * config.keypoints + coarse, config.features)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images (N, C, H, W) to vectors (N, features)."""
        fine = F.relu(self.patches_norm(self.patches(images)))
        coarse = F.relu(self.down_norm(self.down(fine)))
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            coarse = coarse + F.relu(norm(convolution(coarse)))
        fine = F.relu(fine + F.interpolate(self.up(coarse), size=self.places, mode="nearest"))
        found = [self.keypoints(fine), coarse.mean((2, 3))]
        return self.out(torch.cat(found, dim=1)), None


class ConvEncoder(CameraEncoder):
    """Images through `ConvBackbone`."""

    backbone = ConvBackbone
