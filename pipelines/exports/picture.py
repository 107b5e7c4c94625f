"""One image at another size: centre crop, Pillow's Lanczos, lossless PNG."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from PIL import Image

from pipelines import images

Crop = Literal["center", "none"]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]  # HWC


def size_at(width: int, height: int, resolution: int, crop: Crop) -> tuple[int, int]:
    """Width and height that an image gets, pixels: a square if it is cropped, else its shorter side gets there."""
    if crop == "center":
        return resolution, resolution
    side = min(width, height)
    return round(width * resolution / side), round(height * resolution / side)


def at_resolution(data: bytes, resolution: int, crop: Crop) -> bytes:
    """Decode an image file, crop it to its centre square, resize it, encode it as RGB PNG; see ``pixels_at``."""
    return images.encode_png(pixels_at(data, resolution, crop))


def pixels_at(data: bytes, resolution: int, crop: Crop) -> Pixels:
    """Decode an image file, crop it to its centre square, resize it: HWC uint8 RGB.

    The resizer is Pillow's Lanczos in 8 bits, whose window (3 lobes) grows with the reduction: antialiased. An image
    that has its size already keeps its pixels. The crop rounds as NVlabs' dataset_tool.py does.

    Raises:
        SampleError: it cannot be decoded.
    """
    rgb = images.decode(data).rgb
    height, width = rgb.shape[:2]
    if crop == "center":
        side = min(height, width)
        rgb = rgb[(height - side) // 2 : (height + side) // 2, (width - side) // 2 : (width + side) // 2]
    size = size_at(width, height, resolution, crop)
    if size != (rgb.shape[1], rgb.shape[0]):
        rgb = np.asarray(Image.fromarray(np.ascontiguousarray(rgb)).resize(size, Image.Resampling.LANCZOS))
    return rgb
