"""The one resize of images: antialiased, as a weight matrix of rows and one of columns.

Store, policy, exported graph and runtime multiply by the same two matrices and round once, so that an image is the same
to one grey level wherever it was resized. Both axes are scaled on their own: the whole image is kept, not its aspect.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

MOST_LENGTH = 2**16  # of a side of an image


@lru_cache(maxsize=64)
def weights(source: int, target: int) -> np.ndarray:
    """How much of each of the source's points is in each of the target's, float32 (target, source); rows sum to 1.

    Points are the middles of equal parts of the side. The filter is a triangle that reaches one point to each side, of
    the coarser of both grids: linear interpolation where the target is finer, an antialiased mean where it is coarser
    (what Pillow calls BILINEAR, and torch bilinear with antialias=True).

    Raises:
        ValueError: a side without points, or with more than `MOST_LENGTH`.
    """
    for name, length in (("source", source), ("target", target)):
        if not 1 <= length <= MOST_LENGTH:
            raise ValueError(f"an image's {name} side has {length} points, expected 1 to {MOST_LENGTH}")
    ratio = source / target
    middle = (np.arange(target)[:, None] + 0.5) * ratio
    distance = np.abs(np.arange(source) + 0.5 - middle) / max(1.0, ratio)
    share = np.maximum(0.0, 1.0 - distance)
    share = (share / share.sum(axis=1, keepdims=True)).astype(np.float32)
    share.flags.writeable = False  # all who ask hold the same array
    return share


@lru_cache(maxsize=16)
def _columns(source: int, target: int, channels: int) -> np.ndarray:
    """The weights of a row of points whose channels lie side by side, (source * channels, target * channels)."""
    return np.kron(weights(source, target).T, np.eye(channels, dtype=np.float32))


def resized(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Images (..., H, W, C) as (..., height, width, C), of the same dtype; whole numbers are rounded, half to even.

    Args:
        images: numbers, such as uint8 colours; not changed, and given back as they are if they have the size.
        size: height and width wanted.

    Raises:
        ValueError: an array of fewer than three dimensions, or a size that no image can have.
    """
    if images.ndim < 3:
        raise ValueError(f"images have shape {images.shape}, expected (..., height, width, channels)")
    *leading, height, width, channels = images.shape
    if (height, width) == tuple(size):
        return images
    # The channels of a row stay side by side, so that each axis is one large matrix product.
    values = weights(height, size[0]) @ images.reshape(-1, height, width * channels).astype(np.float32)
    values = values.reshape(-1, width * channels) @ _columns(width, size[1], channels)
    if images.dtype.kind in "iu":
        values = np.rint(values)  # within the dtype's range: each is a mean of values that are
    return values.astype(images.dtype).reshape(*leading, *size, channels)
