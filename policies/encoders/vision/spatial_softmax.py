"""Where something is in an image: expected coordinates of feature maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
