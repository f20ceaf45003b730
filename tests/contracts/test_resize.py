"""The one resize agrees with Pillow's and torch's, in numpy and as it is multiplied elsewhere."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from flowhand.contracts.resize import resized, weights

SIZES = [
    ((96, 96), (64, 64)),
    ((120, 160), (37, 53)),
    ((17, 31), (96, 64)),
    ((33, 20), (10, 45)),
    ((1, 5), (3, 1)),
    ((48, 64), (48, 64)),
]


def pictures(shape: tuple[int, ...]) -> np.ndarray:
    """Noise from black to white, the hardest image to resize."""
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_it_is_pillows_to_one_grey_level(source: tuple[int, int], target: tuple[int, int]) -> None:
    image = pictures((*source, 3))
    theirs = np.asarray(Image.fromarray(image).resize((target[1], target[0]), Image.Resampling.BILINEAR))
    assert np.abs(resized(image, target).astype(int) - theirs).max() <= 1


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_it_is_torchs_to_rounding(source: tuple[int, int], target: tuple[int, int]) -> None:
    images = pictures((2, *source, 3))
    floats = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    theirs = F.interpolate(floats, size=target, mode="bilinear", antialias=True).permute(0, 2, 3, 1).numpy()
    mine = resized(images, target)
    assert mine.dtype == np.uint8
    assert np.abs(mine - theirs).max() <= 0.5 + 1e-3


def test_weights_are_means_of_neighbours() -> None:
    assert np.array_equal(weights(7, 7), np.eye(7))
    assert np.array_equal(weights(4, 2), np.array([[3, 3, 1, 0], [0, 1, 3, 3]], np.float32) / np.float32(7))
    for source, target in ((480, 96), (96, 480), (31, 7)):
        matrix = weights(source, target)
        assert matrix.min() >= 0
        assert np.allclose(matrix.sum(axis=1), 1, atol=1e-6)
        assert np.allclose(matrix, matrix[::-1, ::-1], atol=1e-6)  # neither side is favoured


def test_leading_dimensions_and_dtypes() -> None:
    images = pictures((2, 3, 20, 16, 1))
    together = resized(images, (9, 11))
    assert together.shape == (2, 3, 9, 11, 1)
    assert np.array_equal(together[1, 2], resized(images[1, 2], (9, 11)))
    depth = images.astype(np.uint16) * 257  # to 65535
    assert resized(depth, (9, 11)).dtype == np.uint16
    assert resized(np.full((4, 4, 1), 65535, np.uint16), (3, 9)).min() == 65535
    metres = images.astype(np.float32) / 100
    assert np.abs(resized(metres, (9, 11)) * 100 - together).max() <= 0.5 + 1e-3


def test_an_image_of_the_size_is_not_copied() -> None:
    images = pictures((2, 8, 8, 3))
    assert resized(images, (8, 8)) is images


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"target side has 0 points, expected 1 to 65536"):
        resized(pictures((4, 4, 3)), (0, 4))
    with pytest.raises(ValueError, match=r"shape \(4, 4\), expected"):
        resized(pictures((4, 4)), (2, 2))
