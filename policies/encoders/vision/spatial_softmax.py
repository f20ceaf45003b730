"""Where something is in an image: expected coordinates of feature maps."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

SHARP = 0.65  # standard deviation of the logits at the start, for features of size 1, in log(cells)


class SpatialSoftmax(nn.Module):
    """Each map as a distribution over its cells, and of that the mean place (Levine 2016, Sec. 5.1).

    Places are those of the cells' middles, x to the right and y down, -1 to 1 from edge to edge whatever the number of
    cells. They are computed in fp32: in bf16 half a per cent of the image would be lost.
    """

    x: Tensor
    y: Tensor

    def __init__(self, height: int, width: int):
        super().__init__()
        for name, cells in (("y", height), ("x", width)):
            places = (2 * torch.arange(cells, dtype=torch.float32) + 1) / cells - 1
            self.register_buffer(name, places, persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (N, K, height, width) of logits to (N, 2 K): all x, then all y."""
        share = maps.float().flatten(2).softmax(-1).unflatten(-1, maps.shape[2:])
        x, y = (share.sum(2) * self.x).sum(-1), (share.sum(3) * self.y).sum(-1)
        return torch.cat([x, y], dim=1)


class Keypoints(nn.Module):
    """A linear layer to K maps, and the mean places of these.

    The maps start sharp. From nearly even ones all places would start in the middle of the image, and the gradient to
    what lies before would be next to nothing, so that learning starts late. The fewer the cells, the softer, for
    between two cells a place needs a share of both.
    """

    def __init__(self, channels: int, count: int, height: int, width: int):
        super().__init__()
        self.logits = nn.Conv2d(channels, count, 1)
        sharp = SHARP * math.log(max(2, height * width))
        nn.init.normal_(self.logits.weight, std=sharp / math.sqrt(channels))
        self.softmax = SpatialSoftmax(height, width)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (N, channels, height, width) to places (N, 2 K), as `SpatialSoftmax` gives them."""
        return self.softmax(self.logits(maps))
