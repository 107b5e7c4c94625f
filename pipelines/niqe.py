"""NIQE: how far an image's statistics are from those of pristine photographs, without a reference.

Mittal, Soundararajan and Bovik, "Making a completely blind image quality analyzer" (2013), in the conventions of their
MATLAB program, with its model of pristine photographs. About 2-5 for good photographs; lower is better.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

Bytes3 = npt.NDArray[np.uint8]  # H W 3, RGB
Values = npt.NDArray[np.float64]

#: Side of the blocks whose statistics are compared, pixels; half of it at the second scale.
BLOCK: Final = 96
#: Neighbours that a coefficient is multiplied with: to the right, below, and along both diagonals (rows, columns).
NEIGHBOURS: Final = ((0, 1), (1, 0), (1, 1), (1, -1))


@dataclass(frozen=True, slots=True, eq=False)
class Pristine:
    """The model: the mean and covariance of 36 features over blocks of pristine photographs, and the local window."""

    mean: Values  # 36
    covariance: Values  # 36 36
    window: Values  # 7 7, sums to 1


def open_pristine() -> Pristine:
    """The model, from the weights folder.

    Raises:
        ConfigError: its file is not there, or is another.
    """
    from pipelines import weights

    return load_pristine(weights.required_and_right(weights.NIQE))


def load_pristine(path: Path) -> Pristine:
    """The model from the file that BasicSR ships as ``niqe_pris_params.npz``.

    Raises:
        ValueError: it holds something else.
    """
    with np.load(path, allow_pickle=False) as file:
        model = Pristine(file["mu_pris_param"].ravel(), file["cov_pris_param"], file["gaussian_window"])
    if (model.mean.shape, model.covariance.shape, model.window.shape) != ((36,), (36, 36), (7, 7)):
        raise ValueError(f"{path}: no model of 36 features with a window of 7 x 7")
    return model


def niqe(rgb: Bytes3, pristine: Pristine) -> float | None:
    """The distance of an image's statistics to the pristine ones; None with fewer than two blocks that have any.

    Args:
        rgb: H x W x 3 uint8. What is over at the right and at the bottom after whole blocks has no say.
        pristine: the model.
    """
    found = statistics(rgb, pristine.window)
    if found is None:
        return None
    mean, covariance = found
    difference, pooled = mean - pristine.mean, (covariance + pristine.covariance) / 2
    return float(np.sqrt(difference @ np.linalg.pinv(pooled) @ difference))


def statistics(rgb: Bytes3, window: Values) -> tuple[Values, Values] | None:
    """Mean (36) and covariance (36 36) of the features of an image's blocks; None as for ``niqe``."""
    rows, columns = (side // BLOCK for side in rgb.shape[:2])
    if rows * columns < 2:
        return None
    # The luma of MATLAB's rgb2gray, in whole levels.
    image = np.rint(rgb[: rows * BLOCK, : columns * BLOCK] @ np.array([0.298936, 0.587043, 0.114021]))
    scales = []
    for block in (BLOCK, BLOCK // 2):
        normalised = _normalised(image, window)
        blocks = normalised.reshape(rows, block, columns, block).swapaxes(1, 2).reshape(-1, block, block)
        scales.append(np.array([_features(b) for b in blocks]))  # blocks, 18
        image = _halved(image)
    features = np.concatenate(scales, axis=1)
    features = features[np.isfinite(features).all(1)]  # a flat block has no distribution
    if len(features) < 2:
        return None
    return features.mean(0), np.asarray(np.cov(features, rowvar=False), np.float64)


def _normalised(image: Values, window: Values) -> Values:
    """Eq. 1: less the local mean, over the local standard deviation plus one level; borders repeat their pixels."""
    import cv2

    def local_mean(values: Values) -> Values:
        return np.asarray(cv2.filter2D(values, cv2.CV_64F, window, borderType=cv2.BORDER_REPLICATE), np.float64)

    mean = local_mean(image)
    deviation = np.sqrt(np.abs(local_mean(image * image) - mean * mean))
    normalised: Values = (image - mean) / (deviation + 1)
    return normalised


def _features(block: Values) -> list[float]:
    """The 18 of one block and scale: two of its coefficients (eq. 4), four of each product of neighbours (eq. 8)."""
    shape, left, right = _asymmetric_gaussian(block)
    found = [shape, (left + right) / 2]
    for shift in NEIGHBOURS:
        shape, left, right = _asymmetric_gaussian(block * np.roll(block, shift, (0, 1)))
        ratio = _gamma_ratio(shape) if np.isfinite(shape) else np.nan
        found += [shape, (right - left) * ratio, left, right]
    return found


def _asymmetric_gaussian(values: Values) -> tuple[float, float, float]:
    """Shape, left and right scale of the asymmetric generalised Gaussian that fits by its moments (Lasmar, 2009).

    NaN where all values lie on one side of zero.
    """
    from scipy.special import gamma

    below, above = values[values < 0], values[values > 0]
    if not below.size or not above.size:
        return (np.nan,) * 3
    left, right = np.sqrt(np.mean(below**2)), np.sqrt(np.mean(above**2))
    skew = left / right
    moment = np.mean(np.abs(values)) ** 2 / np.mean(values**2)
    wanted = moment * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    shapes, moments = _shapes()
    shape = float(shapes[np.argmin((moments - wanted) ** 2)])
    scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, float(left * scale), float(right * scale)


@cache
def _shapes() -> tuple[Values, Values]:
    """The shapes that are tried, and the ratio of moments of each."""
    from scipy.special import gamma

    shapes = np.arange(200, 10_001) / 1_000
    return shapes, gamma(2 / shapes) ** 2 / (gamma(1 / shapes) * gamma(3 / shapes))


def _gamma_ratio(shape: float) -> float:
    from scipy.special import gamma

    return float(gamma(2 / shape) / gamma(1 / shape))


def _halved(image: Values) -> Values:
    """Half the size as MATLAB's imresize does it: the cubic kernel (a = -0.5) twice as wide, borders mirrored."""
    x = np.abs(np.arange(-3.5, 4)) / 2
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x <= 1, near, far)
    weights /= weights.sum()
    for _ in range(2):  # rows, then columns
        padded = np.pad(image, ((3, 3), (0, 0)), mode="symmetric")
        length = len(image)
        image = sum(w * padded[k : k + length : 2] for k, w in enumerate(weights)).T
    return np.asarray(image, np.float64)
