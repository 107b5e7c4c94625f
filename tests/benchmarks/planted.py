"""Changes that a restoration must not make, planted into restorations; and a restorer that is bad on purpose."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
from skimage.color import lab2rgb, rgb2lab

from idm_core.restorer import Photograph
from pipelines.faces.face import Points
from pipelines.faces.landmarks import similarity
from tests.benchmarks.held_out import Truth

#: Length of a planted shift of a*b*, in CIELAB's units: twice what is just noticed.
COLOUR_SHIFT: Final = 5.0
#: Of planted blurs, unsharp masks and shifts, in shares of the side: 2, 1 and 2 px at 128.
SMOOTH_SIGMA: Final = 1 / 64
SHARP_SIGMA: Final = 1 / 128
SHARP_AMOUNT: Final = 2.0
SHIFT: Final = 1 / 64

#: A restored face, its truth, another person's truth => the changed one. Both truths have landmarks.
Plant = Callable[[Photograph, Truth, Truth], Photograph]


def other_eyes(image: Photograph, truth: Truth, other: Truth) -> Photograph:
    """The eyes and brows of another person, sharp, where this person's were."""
    here, there = _landmarks(truth), _landmarks(other)
    span = float(np.linalg.norm(here[1] - here[0]))
    masks = [_ellipse(image, (float(x), float(y)), (0.36 * span, 0.24 * span)) for x, y in here[:2]]
    return _blend(image, _moved(other.image, there, here), np.maximum(*masks))


def other_face(image: Photograph, truth: Truth, other: Truth) -> Photograph:
    """Another person's face in the same place, sharp; hair and background stay."""
    here, there = _landmarks(truth), _landmarks(other)
    span = float(np.linalg.norm(here[1] - here[0]))
    x, y = here.mean(0)
    mask = _ellipse(image, (float(x), float(y)), (1.05 * span, 1.3 * span))
    return _blend(image, _moved(other.image, there, here), mask)


def colour_shift(image: Photograph, truth: Truth, other: Truth) -> Photograph:
    """All colours moved alike, in a direction drawn by the name."""
    angle = 2 * math.pi * hashlib.sha256(truth.key.encode()).digest()[0] / 256
    lab = rgb2lab(image.astype(np.float64) / 255)
    lab[..., 1:] += COLOUR_SHIFT * np.array([math.cos(angle), math.sin(angle)])
    return _pixels(255 * np.clip(lab2rgb(lab), 0, 1))


def over_smoothed(image: Photograph, truth: Truth, other: Truth) -> Photograph:
    """Blurred, as a restorer does that knows no better than the mean."""
    return _pixels(blurred(image, SMOOTH_SIGMA * image.shape[0]))


def over_sharpened(image: Photograph, truth: Truth, other: Truth) -> Photograph:
    """An unsharp mask of 200 %."""
    return sharpened(image, SHARP_SIGMA * image.shape[0], SHARP_AMOUNT)


def shifted(image: Photograph, truth: Truth, other: Truth) -> Photograph:
    """Moved down and to the right."""
    by = round(SHIFT * image.shape[0])
    return np.ascontiguousarray(np.pad(image, ((by, 0), (by, 0), (0, 0)), "reflect")[:-by, :-by])


PLANTED: Final[dict[str, Plant]] = {
    "another's eyes": other_eyes,
    "another's face": other_face,
    "colour shift": colour_shift,
    "over-smoothed": over_smoothed,
    "over-sharpened": over_sharpened,
    "shifted": shifted,
}


def bad_restorer(source: Photograph) -> Photograph:
    """Blurs what it is given and sharpens the blur: looks crisp at a glance, and has lost what there was."""
    sigma = SMOOTH_SIGMA * source.shape[0]
    return sharpened(_pixels(blurred(source, sigma)), sigma, SHARP_AMOUNT)


def blurred(image: Photograph, sigma: float) -> npt.NDArray[np.float64]:
    return np.asarray(cv2.GaussianBlur(image.astype(np.float64), (0, 0), sigma, borderType=cv2.BORDER_REFLECT))


def sharpened(image: Photograph, sigma: float, amount: float) -> Photograph:
    return _pixels(image + amount * (image - blurred(image, sigma)))


def _landmarks(truth: Truth) -> Points:
    if truth.landmarks is None:
        raise ValueError(f"{truth.name}: no face was found in it")
    return truth.landmarks


def _moved(image: Photograph, landmarks: Points, onto: Points) -> Photograph:
    size = image.shape[1], image.shape[0]
    return np.asarray(cv2.warpAffine(image, similarity(landmarks, onto), size, borderMode=cv2.BORDER_REFLECT), np.uint8)


def _ellipse(image: Photograph, centre: tuple[float, float], axes: tuple[float, float]) -> npt.NDArray[np.float64]:
    """1 inside, 0 outside, with a soft rim."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    radius = ((x - centre[0]) / axes[0]) ** 2 + ((y - centre[1]) / axes[1]) ** 2
    return np.asarray(np.clip((1.3 - radius) / 0.6, 0, 1))[..., None]


def _blend(image: Photograph, other: Photograph, mask: npt.NDArray[np.float64]) -> Photograph:
    return _pixels(image * (1 - mask) + other * mask)


def _pixels(values: npt.NDArray[np.float64]) -> Photograph:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
