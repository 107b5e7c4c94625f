"""Kernel distance between two sets of features: what KID is of Inception's (Binkowski et al., arXiv 1801.01401).

k(x, y) = (x.y / D + 1)^3;  MMD^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y), over pairs of different samples
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class KernelDistance:
    """Over random subsets. ``mean`` is unbiased whatever the number of samples, and so may be a little below zero."""

    mean: float
    std: float | None  # over the subsets: of one of them, not of their mean; None where a subset is all there is


def squared_mmd(x: Array, y: Array) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy, of N x D and M x D samples with N, M >= 2.

    Raises:
        ValueError: fewer samples, or different dimensions.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"kernel distances are of N x D and M x D features, N, M >= 2, not {x.shape} and {y.shape}")
    a, b = x.astype(np.float64), y.astype(np.float64)

    def kernel(u: npt.NDArray[np.float64], v: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray((u @ v.T / u.shape[1] + 1) ** 3)

    def within(u: npt.NDArray[np.float64]) -> float:
        k = kernel(u, u)
        return float((k.sum() - np.trace(k)) / (len(u) * (len(u) - 1)))

    return within(a) + within(b) - 2 * float(kernel(a, b).mean())


def kernel_distance(x: Array, y: Array, *, subsets: int = 100, size: int = 1000, seed: int = 0) -> KernelDistance:
    """Mean and deviation of ``squared_mmd`` over random subsets, which bound its cost and memory.

    Args:
        x: N x D, samples.
        y: M x D, reference.
        subsets: how many; each is drawn anew from both sides, without replacement within one.
        size: samples of a subset; all of the smaller set where it has fewer.
        seed: of the draws. They are of NumPy's frozen generator, so that another NumPy draws the same ones.
    """
    size = min(size, len(x), len(y))
    if size == len(x) == len(y):
        return KernelDistance(squared_mmd(x, y), None)
    draw = np.random.RandomState(seed)
    found = []
    for _ in range(subsets):
        chosen = draw.choice(len(x), size, replace=False)
        found.append(squared_mmd(x[chosen], y[draw.choice(len(y), size, replace=False)]))
    return KernelDistance(float(np.mean(found)), float(np.std(found)))
