"""What can be set of every vision encoder, and the size in which a policy reads images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from flowhand.contracts.features import Feature, Spec

MOST_PIXELS = 1024  # of a side of the image that a policy reads
KINDS = ("image", "depth")  # of features that are images


@dataclass
class VisionConfig:
    """Base of every vision encoder's configuration."""

    kind: str = "???"

    @property
    def pretrained(self) -> str:
        """The file of weights that a training starts from, "" for none."""
        return ""


@dataclass
class NoVisionConfig(VisionConfig):
    """For observations without images."""

    kind: str = "none"


@dataclass
class ImageConfig(VisionConfig):
    """What is done to images before any network, and what becomes of its answer."""

    image_size: list[int] = field(default_factory=list)  # [height, width] in pixels that the policy reads; []: all
    frames: int = 0  # newest images of the history that are read; 0: all of them
    shared: bool = False  # one network for all cameras; false: one each
    crop: list[int] = field(default_factory=list)  # [height, width], random in training, else the middle; []: whole
    shift: int = 4  # pixels by which a training image is moved at most, its edges repeated; 0: not at all
    brightness: float = 0.0  # largest relative change of a training image's brightness, in [0, 1)
    contrast: float = 0.0  # the same of its contrast
    saturation: float = 0.0  # the same of its saturation
    features: int = 64  # numbers that the network makes of one image
    width: int = 256  # features of the hidden layer and of the conditioning vector, which all images share

    positive: ClassVar[tuple[str, ...]] = ("features", "width")  # fields in 1..65536

    def __post_init__(self) -> None:
        for name in ("image_size", "crop"):
            value = getattr(self, name)
            if len(value) not in (0, 2) or not all(1 <= pixels <= MOST_PIXELS for pixels in value):
                raise ValueError(
                    f"vision.{name}={list(value)} must be [height,width] of 1..{MOST_PIXELS} pixels, or []"
                )
        if not 0 <= self.frames <= 65536:
            raise ValueError(f"vision.frames={self.frames} must lie in 0..65536")
        if not 0 <= self.shift <= MOST_PIXELS:
            raise ValueError(f"vision.shift={self.shift} must lie in 0..{MOST_PIXELS}")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"vision.{name}={getattr(self, name)} must lie in [0, 1)")
        for name in self.positive:
            if not 1 <= getattr(self, name) <= 65536:
                raise ValueError(f"vision.{name}={getattr(self, name)} must lie in 1..65536")


def size_read(config: VisionConfig, feature: Feature) -> tuple[int, int]:
    """Height and width in which the policy reads the images of a feature, before any crop."""
    wanted = getattr(config, "image_size", []) or feature.shape[:2]
    return int(wanted[0]), int(wanted[1])


def image_sizes(config: VisionConfig, spec: Spec) -> dict[str, tuple[int, int]]:
    """Height and width in which the policy reads each image and depth image of the specification.

    Whoever decodes frames for a training may resize them to this (`flowhand.contracts.resize`); the encoder then takes
    them as they are.
    """
    return {name: size_read(config, feature) for name, feature in spec.observation.items() if feature.kind in KINDS}
