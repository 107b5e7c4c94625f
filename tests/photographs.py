"""Real photographs that scikit-image carries, cut into small files for tests."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from skimage import data as skimage_data

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


def crops(count: int, side: int = 64) -> list[Pixels]:
    """``count`` distinct crops of astronaut, coffee and chelsea, brought down by half so that they are sharp."""
    found: list[Pixels] = []
    photographs: list[Pixels] = [getattr(skimage_data, name)() for name in ("astronaut", "coffee", "chelsea")]
    for photo in photographs:
        small = np.asarray(
            Image.fromarray(photo).resize((photo.shape[1] // 2, photo.shape[0] // 2), Image.Resampling.BOX)
        )
        step = side // 3
        for top in range(0, small.shape[0] - side + 1, step):
            for left in range(0, small.shape[1] - side + 1, step):
                found.append(small[top : top + side, left : left + side])
    assert len(found) >= count
    return [found[i * len(found) // count] for i in range(count)]


def png(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def blurred(pixels: Pixels, sigma: float) -> Pixels:
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma)))


def write_folder(folder: Path, count: int, classes: tuple[str, ...] = ("ape", "bee")) -> Path:
    """A folder of PNG crops in class sub-folders; every third one is blurred."""
    for i, pixels in enumerate(crops(count)):
        place = folder / classes[i % len(classes)]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"photo {i:03d}.v1.png").write_bytes(png(blurred(pixels, 1.5) if i % 3 == 0 else pixels))
    return folder
