"""Changes of training images, drawn for each sample, as a few tensor operations on the whole batch."""

from __future__ import annotations

from functools import partial

import torch
from torch import Generator, Tensor

from ...draws import drawn

GREY = (0.299, 0.587, 0.114)  # of red, green and blue in brightness (ITU-R BT.601)


def shifted(images: Tensor, size: tuple[int, int], reach: int, generator: Generator | None) -> Tensor:
    """A part (B, O, h, w, C) of images (B, O, H, W, C): at a random place, or the middle without a generator.

    The place is uniform over those inside the image, then moved by up to `reach` pixels along each axis, where the
    image's edge is repeated (Kostrikov 2021, DrQ). All O images of a sample move alike, so that what moves from one to
    the next is the world.
    """
    rows, columns = images.shape[0], images.shape[3]
    spare = images.shape[2] - size[0], columns - size[1]
    if generator is None:
        top, left = spare[0] // 2, spare[1] // 2
        return images[:, :, top : top + size[0], left : left + size[1]]
    if not (reach or any(spare)):
        return images
    top, left = (_places(rows, most, reach, generator) for most in spare)
    index = torch.arange(size[0], device=images.device)
    line = (top[:, None] - reach + index).clamp(0, images.shape[2] - 1)  # (B, h)
    edges = [images[:, :, :, at : at + 1].expand(-1, -1, -1, reach, -1) for at in (0, columns - 1)]
    wide = torch.cat([edges[0], images, edges[1]], dim=3) if reach else images
    channels = images.shape[-1]
    # Every part of a line as a view, so that the gather copies whole lines and not single pixels.
    parts = wide.flatten(3).unfold(-1, size[1] * channels, channels)
    sample = torch.arange(rows, device=images.device)[:, None, None]
    frame = torch.arange(images.shape[1], device=images.device)[None, :, None]
    return parts[sample, frame, line[:, None], left[:, None, None]].unflatten(-1, (size[1], channels))


def _places(rows: int, spare: int, reach: int, generator: Generator) -> Tensor:
    """Where a part begins, (rows,), counted from `reach` pixels before the image."""
    part, moved = (
        drawn(partial(torch.randint, most + 1), (rows,), generator, device=generator.device)
        for most in (spare, 2 * reach)
    )
    return part + moved


def coloured(
    images: Tensor, brightness: float, contrast: float, saturation: float, generator: Generator | None
) -> Tensor:
    """Images (B, O, C, H, W), 0 to 255 in float, with other colours; as they are without a generator.

    Each factor is uniform in 1 - value .. 1 + value, drawn for a sample and the same for its O images. Saturation moves
    colours from their grey, contrast from the image's mean grey, brightness from black, in this order (the operations
    of Pillow's ImageEnhance); what leaves 0 to 255 is cut off at the end.
    """
    if generator is None or not (brightness or contrast or saturation):
        return images
    most = torch.tensor([brightness, contrast, saturation], device=images.device)
    draw = drawn(torch.rand, (3, len(images)), generator, 1, device=images.device)
    b, c, s = (1 + most[:, None] * (2 * draw - 1))[..., None, None, None, None]
    channels = images.shape[2]
    share = GREY if channels == 3 else (1 / channels,) * channels
    grey = sum(images[:, :, i : i + 1] * share[i] for i in range(channels))
    mean = grey.mean((-1, -2), keepdim=True)  # pyright: ignore[reportAttributeAccessIssue]
    return (b * c * s * images + (b * c * (1 - s) * grey + b * (1 - c) * mean)).clamp(0, 255)
