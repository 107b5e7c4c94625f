"""What a detector is: a fixed network that turns images into features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]  # N H W 3, sRGB
Features = npt.NDArray[np.float32]  # N D


class Detector(Protocol):
    """A fixed network that turns images into features. One image's features do not depend on those beside it, but for
    the last bits: kernels for another number of images may add up in another order.
    """

    @property
    def name(self) -> str:
        """Which network at which input size; features of two names are not to be compared."""
        ...

    @property
    def frechet(self) -> str:
        """What the Frechet distance of these features is called; of Inception's alone it is FID."""
        ...

    @property
    def kernel(self) -> str:
        """What their kernel distance is called; of Inception's alone it is KID."""
        ...

    @property
    def sha256(self) -> str:
        """Of the weights, hex."""
        ...

    @property
    def dimension(self) -> int:
        """Features of one image."""
        ...

    @property
    def side(self) -> int:
        """Pixels of the square that images are resized to."""
        ...

    def __call__(self, images: Images) -> Features:
        """N x H x W x 3 uint8 sRGB, any H and W => N x ``dimension`` float32."""
        ...


#: Takes a torch device, gives the detector on it: what workers are sent, since networks do not travel.
OpenDetector = Callable[[str], Detector]


def checked(images: Images) -> Images:
    """The images, if they are what a detector takes.

    Raises:
        ValueError: they have another shape or type.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:]:
        raise ValueError(f"images are N x H x W x 3 uint8, not {images.dtype} {images.shape}")
    return images
