"""What each image does to a Frechet distance: the influence function, by the distance's derivative."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from pipelines.detectors import Features
from pipelines.metrics.frechet import Statistics, root_of, statistics_of

#: Images that it needs, by the number of features: with fewer a covariance is next to singular.
LEAST_BY_DIMENSION: Final = 2


def distance_and_influence(features: Features, reference: Statistics) -> tuple[float, npt.NDArray[np.float64] | None]:
    """Frechet distance, and each image's influence on it: its derivative by the image's weight, N, of mean zero.

    d/de at e = 0 of the distance of (1 - e) P + e x, with D = I - S_r^1/2 (S_r^1/2 S S_r^1/2)^-1/2 S_r^1/2:
    2 (m - m_r).(x - m) + (x - m)^T D (x - m) - tr(D S). None with fewer than ``LEAST_BY_DIMENSION`` images a feature.
    """
    ours, root = statistics_of(features), root_of(reference)
    inner = root @ ours.covariance @ root
    values, vectors = np.linalg.eigh(inner)
    values = values.clip(0)
    offset = ours.mean - reference.mean
    traces = float(np.trace(ours.covariance) + np.trace(reference.covariance))
    distance = max(float(offset @ offset) + traces - 2 * float(np.sqrt(values).sum()), 0.0)
    if len(features) < LEAST_BY_DIMENSION * features.shape[1]:
        return distance, None
    # What is zero but for rounding has no derivative, and no part in it.
    inverse = np.where(values > values[-1] * 1e-10, 1 / np.sqrt(np.maximum(values, 1e-300)), 0.0)
    half = root @ vectors
    derivative = np.eye(len(root)) - (half * inverse) @ half.T
    x = features.astype(np.float64) - ours.mean
    influence = 2 * x @ offset + np.einsum("nd,nd->n", x @ derivative, x)
    return distance, influence - influence.mean()
