"""One camera's images as a network takes them: resized, cut, augmented and scaled."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Generator, Tensor, nn

from flowhand.contracts.features import Feature
from flowhand.contracts.resize import weights

from .augment import coloured, shifted
from .config import ImageConfig, size_read

# Mean and standard deviation of ImageNet's colours, 0 to 1, with which networks of its classes were trained.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Picture(nn.Module):
    """Images (B, O, H, W[, C]) to float (B * O, C, height, width).

    Colours come as uint8 and leave as -1 to 1, or standardized as ImageNet's for a pretrained network. Depth comes
    normalized. Nothing of it is learned.
    """

    rows: Tensor
    columns: Tensor
    factor: Tensor
    offset: Tensor

    def __init__(self, config: ImageConfig, name: str, feature: Feature):
        super().__init__()
        self.config, self.colour = config, feature.kind == "image"
        self.name, self.source, self.size = name, tuple(feature.shape[:2]), size_read(config, feature)
        self.part = (int(config.crop[0]), int(config.crop[1])) if config.crop else self.size
        if self.part[0] > self.size[0] or self.part[1] > self.size[1]:
            raise ValueError(
                f"vision.crop={list(self.part)} is larger than the images {name!r}, which are read as "
                f"{list(self.size)}; choose at most that"
            )
        self.channels = feature.shape[2] if len(feature.shape) == 3 else 1
        if config.pretrained and (self.channels, self.colour) != (3, True):
            raise ValueError(
                f"vision.weights are of a network for colour images, {name!r} is {feature.kind} of shape "
                f"{feature.shape}; train it without vision.weights"
            )
        constants = {"factor": torch.full((1,), 1 / 127.5), "offset": torch.full((1,), -1.0)}
        if config.pretrained:
            mean, std = (torch.tensor(value).view(3, 1, 1) for value in IMAGENET)
            constants = {"factor": 1 / (255 * std), "offset": -mean / std}
        if self.size != self.source:
            for side, source, target in zip(("rows", "columns"), feature.shape, self.size, strict=False):
                constants[side] = torch.tensor(weights(source, target))
        for constant, value in constants.items():
            self.register_buffer(constant, value, persistent=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what leaves."""
        return (self.channels, *self.part)

    def forward(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        """Images of the camera's own size, or of the size that the policy reads, to what a network takes."""
        images = images.unsqueeze(-1) if images.ndim == 4 else images
        if tuple(images.shape[2:4]) != self.size:
            images = self._resized(images)
        images = shifted(images, self.part, self.config.shift, generator)
        # The channels stay where they lie in memory, last, which convolutions on a CPU read fastest.
        values = images.permute(0, 1, 4, 2, 3).float()
        if self.colour:
            config = self.config
            values = coloured(values, config.brightness, config.contrast, config.saturation, generator)
            values = values * self.factor + self.offset
        return values.flatten(0, 1)

    def _resized(self, images: Tensor) -> Tensor:
        """The two matrix products of `flowhand.contracts.resize`; colours are rounded to whole grey levels."""
        if tuple(images.shape[2:4]) != self.source:
            raise ValueError(
                f"the images {self.name!r} have {tuple(images.shape[2:4])} pixels, expected {self.source}, as the "
                f"camera gives them, or {self.size}, as the policy reads them"
            )
        kind = images.device.type
        # In bf16, which autocast would take, a grey level is lost.
        exact = torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
        with exact:
            values = self.rows @ images.permute(0, 1, 4, 2, 3).float() @ self.columns.T
        values = values.round() if self.colour else values
        return values.permute(0, 1, 3, 4, 2)
