"""Images that are stored one by one (PNG, JPEG, TIFF), decoded with a bound on their size."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP")  # what data sets hold; no others are tried
MOST_BYTES = 2**27  # of one encoded image


def decoded(data: bytes, shape: Sequence[int], dtype: str) -> np.ndarray:
    """The image as (H, W, C), or (H, W) where the shape says so.

    Args:
        data: the encoded image.
        shape: of the result; the image's size is checked before it is decoded.
        dtype: "uint8" for colours, "uint16" for depth.

    Raises:
        ValueError: it is no such image.
    """
    from PIL import Image

    if len(data) > MOST_BYTES:
        raise ValueError(f"an encoded image has {len(data)} bytes, expected at most {MOST_BYTES}")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.size != (shape[1], shape[0]):
                raise ValueError(
                    f"an image has {image.size[1]} x {image.size[0]} points, expected {shape[0]} x {shape[1]}"
                )
            if dtype == "uint16":
                if image.mode not in ("I;16", "I;16B", "I", "L"):
                    raise ValueError(f"a depth image has mode {image.mode}, expected 16 bits of one channel")
                values = np.asarray(image)
                if values.min() < 0 or values.max() > 65535:
                    raise ValueError("a depth image has values outside 0 to 65535")
                return values.astype(np.uint16).reshape(tuple(shape))
            if image.mode not in ("RGB", "RGBA", "L", "P", "CMYK", "YCbCr", "1", "LA"):
                raise ValueError(f"a colour image has mode {image.mode}, expected 8 bits a channel")
            return np.asarray(image.convert("RGB" if shape[2] == 3 else "L"), np.uint8).reshape(tuple(shape))
    except ValueError:
        raise
    except Exception as error:  # the decoders raise whatever a damaged image leads them to
        raise ValueError(f"an image cannot be decoded: {type(error).__name__}: {error}") from error


def size_of(data: bytes) -> tuple[int, int]:
    """Height and width of an encoded image, without decoding it.

    Raises:
        ValueError: it is none.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.size[1], image.size[0]
    except Exception as error:
        raise ValueError(f"an image cannot be decoded: {type(error).__name__}: {error}") from error
