"""Vision transformer: patches as tokens, which the transformer net can look at one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...nets.transformer import attend
from .cameras import Backbone, CameraEncoder
from .config import ImageConfig
from .spatial_softmax import Keypoints


@dataclass
class ViTConfig(ImageConfig):
    """ViT (Dosovitskiy 2021): for net=transformer with net.cross_attention=true, large data sets, and a GPU."""

    positive: ClassVar[tuple[str, ...]] = (
        *("features", "width", "keypoints"),
        *("patch", "token_width", "blocks", "heads", "expansion"),
    )

    kind: str = "vit"
    patch: int = 8  # pixels of a patch's side; must divide the image's height and width
    token_width: int = 128  # features of a token
    blocks: int = 4  # transformer blocks
    heads: int = 4  # attention heads; must divide token_width
    expansion: int = 4  # hidden features of a block's perceptron, as a multiple of token_width
    keypoints: int = 32  # places that are read off the map of patches
    registers: int = 0  # tokens of no patch, where the blocks can keep what is about the whole image (Darcet 2024)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.registers <= 1024:
            raise ValueError(f"vision.registers={self.registers} must lie in 0..1024")
        if self.token_width % self.heads:
            raise ValueError(f"vision.token_width={self.token_width} must be a multiple of vision.heads={self.heads}")


class ViTBlock(nn.Module):
    """Self-attention and perceptron, each behind a layer normalization."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        width = config.token_width
        self.heads = config.heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.attention_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, config.expansion * width), nn.Linear(config.expansion * width, width)

    def forward(self, x_NPW: Tensor) -> Tensor:
        """Tokens (N, P, W) to tokens."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.attention_norm(x_NPW)).chunk(3, dim=-1)
        )
        x_NPW = x_NPW + self.attention_out(attend(q, k, v).transpose(1, 2).flatten(2))
        return x_NPW + self.down(F.gelu(self.up(self.mlp_norm(x_NPW)), approximate="tanh"))


class ViTBackbone(Backbone):
    """Patches with learned positions and blocks; places and the mean of the patches are the image's vector.

    A mean alone hardly differs from image to image at the start, and learns where something is much later.
    """

    registers: Tensor | None

    def __init__(self, config: ViTConfig, shape: tuple[int, int, int]):
        super().__init__()
        channels, height, width = shape
        if height % config.patch or width % config.patch:
            raise ValueError(
                f"vision.patch={config.patch} must divide the images' {height} x {width} pixels; "
                "choose another, or vision.image_size"
            )
        count = (height // config.patch) * (width // config.patch)
        self.tokens = (count, config.token_width)
        self.patches = nn.Conv2d(channels, config.token_width, config.patch, config.patch)
        self.positions = nn.Parameter(torch.randn(count, config.token_width) * 0.02)
        kept = nn.Parameter(torch.randn(config.registers, config.token_width) * 0.02) if config.registers else None
        self.register_parameter("registers", kept)
        self.blocks = nn.ModuleList(ViTBlock(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.token_width)
        self.places = (height // config.patch, width // config.patch)
        self.keypoints = Keypoints(config.token_width, config.keypoints, *self.places)
        self.out = nn.Linear(2 * config.keypoints + config.token_width, config.features)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images (N, C, H, W) to vectors (N, features) and tokens (N, P, W), one for each patch."""
        x_NPW = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        if self.registers is not None:
            x_NPW = torch.cat([x_NPW, self.registers.expand(len(x_NPW), -1, -1)], dim=1)
        for block in self.blocks:
            x_NPW = block(x_NPW)
        x_NPW = self.norm(x_NPW[:, : self.tokens[0]])
        where = self.keypoints(x_NPW.transpose(1, 2).unflatten(-1, self.places))
        return self.out(torch.cat([where, x_NPW.mean(1)], dim=1)), x_NPW


class ViTEncoder(CameraEncoder):
    """Images through `ViTBackbone`."""

    backbone = ViTBackbone
