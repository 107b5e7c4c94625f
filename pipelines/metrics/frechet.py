"""Frechet distance between two sets of features, each taken as a Gaussian; statistics stream and merge in float64.

d^2 = |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2)          Dowson and Landau 1982; arXiv 1706.08500
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]  # D
Matrix = npt.NDArray[np.float64]  # D D


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """Number, mean and scatter of feature vectors; parts of a set merge to those of the whole.

    Attributes:
        n: vectors seen.
        mean: D.
        scatter: D x D, sum over the vectors of the outer products of their differences from the mean.
    """

    n: int
    mean: Vector
    scatter: Matrix

    @property
    def covariance(self) -> Matrix:
        """D x D, unbiased: ``scatter / (n - 1)``.

        Raises:
            ValueError: fewer than two vectors.
        """
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 samples, not {self.n}")
        return self.scatter / (self.n - 1)


def no_statistics(dimension: int) -> Statistics:
    """Of an empty set: what a stream starts from."""
    return Statistics(0, np.zeros(dimension), np.zeros((dimension, dimension)))


def statistics_of(features: npt.NDArray[np.floating[Any]]) -> Statistics:
    """Statistics of one batch, N x D of any float type, N may be 0.

    Raises:
        ValueError: another shape, or values that are not finite: one of them would spoil the whole set unseen.
    """
    if features.ndim != 2:
        raise ValueError(f"features are N x D, not {features.shape}")
    x = features.astype(np.float64)
    if not np.isfinite(x).all():
        raise ValueError(f"features of {int((~np.isfinite(x)).any(axis=1).sum())} of {len(x)} samples are not finite")
    if len(x) == 0:
        return no_statistics(x.shape[1])
    mean = x.mean(axis=0)
    x -= mean
    return Statistics(len(x), mean, x.T @ x)


def merge(a: Statistics, b: Statistics) -> Statistics:
    """Statistics of both sets together (Chan, Golub and LeVeque 1979), without the cancellation of plain sums.

    Raises:
        ValueError: the features have different dimensions.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {len(a.mean)} and of {len(b.mean)} dimensions do not merge")
    n = a.n + b.n
    if n == 0:
        return a
    difference = b.mean - a.mean
    mean = a.mean + difference * (b.n / n)
    return Statistics(n, mean, a.scatter + b.scatter + np.outer(difference, difference) * (a.n * b.n / n))


def streamed(batches: Iterable[npt.NDArray[np.floating[Any]]], dimension: int) -> Statistics:
    """Statistics of batches, each n x ``dimension``, that are held one at a time."""
    return reduce(merge, map(statistics_of, batches), no_statistics(dimension))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Squared Frechet distance of two Gaussians with these statistics, as FID is written; 0 and more.

    The trace of the root is summed from eigenvalues of a symmetric matrix: at 1280 dimensions this takes a second where
    a general matrix root takes many, and singular covariances (fewer samples than dimensions) are no special case.

    Raises:
        ValueError: fewer than two samples on one side, or different dimensions.
    """
    return distances_to(a, [b])[0]


@lru_cache(maxsize=8)
def root_of(statistics: Statistics) -> Matrix:
    """The symmetric square root of the covariance, D x D. Kept: many sets are compared with few references."""
    values, vectors = np.linalg.eigh(statistics.covariance)
    root: Matrix = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    return root


def distances_to(reference: Statistics, others: Iterable[Statistics]) -> list[float]:
    """The same for several, one at a time; what is of the reference alone, half of the work, is done once.

    Raises:
        ValueError: as ``frechet_distance``.
    """
    first, root = reference.covariance, root_of(reference)
    distances = []
    for other in others:
        if reference.mean.shape != other.mean.shape:
            raise ValueError(f"features of {len(reference.mean)} and of {len(other.mean)} dimensions have no distance")
        second = other.covariance
        # Rounding leaves eigenvalues a little below zero where the truth is zero.
        eigenvalues = np.linalg.eigvalsh(root @ second @ root).clip(0)
        difference = reference.mean - other.mean
        squared = difference @ difference + np.trace(first) + np.trace(second) - 2 * np.sqrt(eigenvalues).sum()
        distances.append(max(float(squared), 0.0))
    return distances
