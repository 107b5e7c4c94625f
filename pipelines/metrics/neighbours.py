"""Precision, recall, density and coverage: how two sets of features lie among each other's nearest neighbours.

Precision and recall: Kynkaanniemi et al., arXiv 1904.06991. Density and coverage: Naeem et al., arXiv 2002.09797.
Distances are computed block by block in float64, so memory does not grow with the product of the two numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]
Values = npt.NDArray[np.float64]

#: Samples of a block's side: 4096 x 4096 distances are 134 MB.
BLOCK: Final = 4096
#: Squared distances below this part of the squared lengths are zero: rounding leaves them, and what is less is the
#: last bits of float32 features. Balls are closed and wider by the same part of their own, so that a sample on the
#: rim is in, whatever the order of the sum.
ROUNDING: Final = 1e-10


@dataclass(frozen=True, slots=True)
class Neighbours:
    """All 0-1 but density, which is 1 where the sets are alike and may be more."""

    precision: float  # share of the samples inside a ball of the reference: fidelity
    recall: float  # share of the reference inside a ball of the samples: variety
    density: float  # balls of the reference that hold a sample, mean, by k: fidelity that outliers do not inflate
    coverage: float  # share of the reference's balls that hold a sample: variety that outliers do not inflate


def neighbours(
    samples: Array, reference: Array, *, manifold_k: int = 3, density_k: int = 5, block: int = BLOCK
) -> Neighbours:
    """Measure samples, N x D, against a reference, M x D.

    A sample's ball reaches to its k-th nearest neighbour in its own set.

    Args:
        manifold_k: neighbours for precision and recall; 3, as their paper.
        density_k: for density and coverage; 5, as theirs.
        block: samples of a block's side.

    Raises:
        ValueError: different dimensions, or too few samples to have that many neighbours.
    """
    if samples.ndim != 2 or reference.ndim != 2 or samples.shape[1] != reference.shape[1]:
        raise ValueError(f"features are N x D and M x D, not {samples.shape} and {reference.shape}")
    k = max(manifold_k, density_k)
    if min(len(samples), len(reference)) <= k:
        raise ValueError(f"{k} neighbours need {k + 1} samples; there are {len(samples)} and {len(reference)}")
    # Distances do not depend on the origin, but their rounding does.
    origin = reference.mean(axis=0, dtype=np.float64)
    own = _nearest(samples, origin, manifold_k, block)[:, manifold_k - 1]
    theirs = _nearest(reference, origin, k, block)
    wide, narrow = theirs[:, density_k - 1], theirs[:, manifold_k - 1]

    precise, holding = np.zeros(len(samples), bool), np.zeros(len(samples), np.int64)
    recalled, covered = np.zeros(len(reference), bool), np.zeros(len(reference), bool)
    for rows, columns, squared in _blocks(samples, reference, origin, block):
        precise[rows] |= (squared <= _rim(narrow[columns])).any(axis=1)
        recalled[columns] |= (squared <= _rim(own[rows])[:, None]).any(axis=0)
        inside = squared <= _rim(wide[columns])
        holding[rows] += inside.sum(axis=1)
        covered[columns] |= inside.any(axis=0)
    return Neighbours(
        precision=float(precise.mean()),
        recall=float(recalled.mean()),
        density=float(holding.mean() / density_k),
        coverage=float(covered.mean()),
    )


def _rim(squared_radii: Values) -> Values:
    return squared_radii * (1 + ROUNDING)


def _nearest(x: Array, origin: Values, k: int, block: int) -> Values:
    """Squared distances of each sample's ``k`` nearest others, N x k, nearest first."""
    found = np.empty((len(x), k))
    for first in range(0, len(x), block):
        rows = slice(first, first + block)
        nearest = np.full((len(x[rows]), k + 1), np.inf)  # itself is one of them, at distance zero
        for _, _, squared in _blocks(x[rows], x, origin, block):
            nearest = np.partition(np.concatenate([nearest, squared], axis=1), k, axis=1)[:, : k + 1]
        found[rows] = np.sort(nearest, axis=1)[:, 1:]
    return found


def _blocks(x: Array, y: Array, origin: Values, block: int) -> Iterator[tuple[slice, slice, Values]]:
    """Squared distances between rows of x and rows of y, block by block."""
    for i in range(0, len(x), block):
        a = x[i : i + block] - origin
        lengths = np.square(a).sum(axis=1)
        for j in range(0, len(y), block):
            b = y[j : j + block] - origin
            sums = lengths[:, None] + np.square(b).sum(axis=1)
            squared = sums - 2 * (a @ b.T)
            squared[squared < ROUNDING * sums] = 0
            yield slice(i, i + block), slice(j, j + block), squared
