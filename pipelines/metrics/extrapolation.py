"""Frechet distance at infinitely many samples: Chong and Forsyth, arXiv 1911.07023.

The distance of N samples is biased upwards by about c / N, with a c of each model's own: a line through the distances
of random subsets over 1/N, read at 1/N = 0, is without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipelines.metrics.frechet import Statistics, distances_to, statistics_of, streamed

#: Rows of features that are turned to float64 at once.
_ROWS: Final = 4096


@dataclass(frozen=True, slots=True)
class Extrapolation:
    """A line through distances over 1/N."""

    value: float  # at 1/N = 0; may be a little below zero
    numbers: tuple[int, ...]  # N of each subset
    distances: tuple[float, ...]  # of each subset


def least_samples(dimension: int) -> int:
    """How many samples an extrapolation needs: the smallest subset is half of them, and has two for each dimension.
    With fewer a subset's covariance is singular and the distance is no line in 1/N.
    """
    return 4 * dimension


def at_infinity(
    features: npt.NDArray[np.floating[Any]], reference: Statistics, *, points: int = 15, seed: int = 0
) -> Extrapolation:
    """Extrapolate the distance of samples, N x D, from a reference, whose own number stays what it is.

    Args:
        points: how many subsets, their numbers evenly spaced up to all samples.
        seed: of the draws, by NumPy's frozen generator.

    Raises:
        ValueError: fewer samples than ``least_samples``.
    """
    n, dimension = features.shape
    if n < least_samples(dimension):
        raise ValueError(f"{n} samples; with {dimension} features it takes {least_samples(dimension)}")
    numbers = [int(number) for number in np.linspace(max(2 * dimension, n // 10), n, points)]
    draw = np.random.RandomState(seed)

    def subset(number: int) -> Statistics:
        chosen = draw.permutation(n)[:number]
        return streamed((features[chosen[i : i + _ROWS]] for i in range(0, number, _ROWS)), dimension)

    distances = distances_to(reference, (subset(number) for number in numbers))
    return Extrapolation(intercept(numbers, distances), tuple(numbers), tuple(distances))


def slope(features: npt.NDArray[np.floating[Any]], reference: Statistics, *, seed: int = 0) -> float:
    """How fast the distance of samples, N x D, falls with their number: c of a + c / N.

    N times what the mean distance of two random halves is above that of all. Faces' distances (D = 1,280) follow 1/N
    well below D images, where an extrapolation to its end would not be sound.
    """
    n = len(features)
    order = np.random.RandomState(seed).permutation(n)
    halves = (statistics_of(features[np.sort(part)]) for part in np.array_split(order, 2))
    whole, *of_halves = distances_to(reference, (statistics_of(features), *halves))
    return float(n * (np.mean(of_halves) - whole))


def intercept(numbers: Sequence[int], distances: Sequence[float]) -> float:
    """Of the least-squares line through the distances over 1/N, at 1/N = 0."""
    line = np.polynomial.Polynomial.fit(1 / np.asarray(numbers, np.float64), np.asarray(distances), 1)
    return float(line(0.0))
