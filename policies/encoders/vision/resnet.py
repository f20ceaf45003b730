"""ResNet-18 with group normalization and spatial softmax, the vision encoder of Diffusion Policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cameras import Backbone, CameraEncoder
from .config import ImageConfig
from .spatial_softmax import Keypoints

STAGES = (1, 2, 4, 8)  # widths of the four stages, each of two blocks, as multiples of the first one's
GROUP = 16  # channels that are normalized together
STRIDE = 32  # pixels from one cell of the last map to the next
USUAL = 64  # channels of the first stage, in files of weights too


@dataclass
class ResNet18Config(ImageConfig):
    """ResNet-18 (He 2016) as in Diffusion Policy (Chi 2023): for a GPU, or to compare; 11 million weights a network."""

    positive: ClassVar[tuple[str, ...]] = ("features", "width", "channels", "keypoints")

    kind: str = "resnet18"
    channels: int = USUAL  # of the first stage; the others have 2, 4 and 8 times as many
    keypoints: int = 32  # places that are read off the last map, 1/32 of the image's height and width
    # safetensors file of a ResNet-18 with torchvision's names that the training starts from; empty: from random weights
    weights: str = ""
    weights_licence: str = ""  # of that file, noted in the checkpoint; empty: what the file says of itself

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels % GROUP:
            raise ValueError(f"vision.channels={self.channels} must be a multiple of {GROUP}")
        if self.weights and self.channels != USUAL:
            raise ValueError(f"vision.channels={self.channels} must be {USUAL} with vision.weights")

    @property
    def pretrained(self) -> str:
        """The file of weights."""
        return self.weights


class FrozenNorm(nn.Module):
    """A trained batch normalization as what it is when it no longer learns: a factor and an offset of each channel.

    They are NaN until a file or a checkpoint gives them, so that missing ones never look like the identity.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, channels: int):
        super().__init__()
        for name in ("scale", "shift"):
            self.register_buffer(name, torch.full((channels,), torch.nan))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to the same."""
        return x * self.scale[:, None, None] + self.shift[:, None, None]


def norm(channels: int, frozen: bool) -> nn.Module:
    """What stands in the place of a batch normalization."""
    return FrozenNorm(channels) if frozen else nn.GroupNorm(channels // GROUP, channels)


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, channels: int, stride: int, frozen: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.bn1 = norm(channels, frozen)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = norm(channels, frozen)
        shortcut = [nn.Conv2d(inputs, channels, 1, stride, bias=False), norm(channels, frozen)]
        self.downsample = nn.Sequential(*shortcut) if stride > 1 or inputs != channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, inputs, H, W) to (N, channels, H / stride, W / stride)."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.downsample(x))


class ResNet18(nn.Module):
    """All of ResNet-18 up to its last map; the parts have torchvision's names, so that its weights fit."""

    def __init__(self, inputs: int, channels: int = USUAL, frozen: bool = False):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 7, 2, 3, bias=False)
        self.bn1 = norm(channels, frozen)
        inputs = channels
        for number, times in enumerate(STAGES, start=1):
            width = times * channels
            first = BasicBlock(inputs, width, 1 if number == 1 else 2, frozen)
            setattr(self, f"layer{number}", nn.Sequential(first, BasicBlock(width, width, 1, frozen)))
            inputs = width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) to maps (N, 8 * channels, ceil(H / 32), ceil(W / 32))."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, 2, 1)
        for number in range(1, len(STAGES) + 1):
            x = getattr(self, f"layer{number}")(x)
        return x


class ResNetBackbone(Backbone):
    """ResNet-18, a linear layer to keypoints, their places, and a linear layer (as in robomimic's VisualCore)."""

    def __init__(self, config: ResNet18Config, shape: tuple[int, int, int]):
        super().__init__()
        channels, height, width = shape
        if height <= STRIDE or width <= STRIDE:  # else nothing is left of a place
            raise ValueError(
                f"vision=resnet18 needs images of more than {STRIDE} x {STRIDE} pixels, got {height} x {width}"
            )
        self.resnet = ResNet18(channels, config.channels, bool(config.weights))
        places = (-(-height // STRIDE), -(-width // STRIDE))
        self.keypoints = Keypoints(STAGES[-1] * config.channels, config.keypoints, *places)
        self.out = nn.Linear(2 * config.keypoints, config.features)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images (N, C, H, W) to vectors (N, features)."""
        return self.out(self.keypoints(self.resnet(images))), None


class ResNet18Encoder(CameraEncoder):
    """Images through `ResNetBackbone`."""

    backbone = ResNetBackbone
