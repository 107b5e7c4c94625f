"""The distance at infinitely many samples: exact on a line, and without the bias of a finite number on Gaussians."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.metrics.extrapolation import at_infinity, intercept, least_samples
from pipelines.metrics.frechet import Statistics, frechet_distance, statistics_of

DIMENSION = 12


def gaussian(deviation: float) -> Statistics:
    """The statistics that a Gaussian has, and no sample of it."""
    return Statistics(2, np.zeros(DIMENSION), deviation**2 * np.eye(DIMENSION))


def test_the_intercept_of_a_line_is_exact() -> None:
    numbers = [100, 150, 400, 1000]
    assert intercept(numbers, [7.0 + 300 / n for n in numbers]) == pytest.approx(7, rel=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1.3])
def test_the_bias_of_few_samples_is_taken_away(scale: float) -> None:
    truth = frechet_distance(gaussian(scale), gaussian(1))
    assert truth == pytest.approx(DIMENSION * (scale - 1) ** 2, abs=1e-9)
    errors, biases = [], []
    for seed in range(12):
        x = scale * np.random.default_rng(seed).normal(size=(300, DIMENSION))
        errors.append(at_infinity(x, gaussian(1), seed=seed).value - truth)
        biases.append(frechet_distance(statistics_of(x), gaussian(1)) - truth)
    assert np.mean(biases) > 0.05
    assert abs(np.mean(errors)) < np.mean(biases) / 3


def test_the_last_point_is_the_distance_of_all_samples() -> None:
    x = np.random.default_rng(0).normal(size=(5000, DIMENSION)).astype(np.float32)  # more than one block
    found = at_infinity(x, gaussian(1), points=5)
    assert found.numbers == (500, 1625, 2750, 3875, 5000)
    assert found.distances[-1] == pytest.approx(frechet_distance(statistics_of(x), gaussian(1)), rel=1e-9)
    assert found == at_infinity(x, gaussian(1), points=5)


def test_too_few_samples_for_a_line_are_refused() -> None:
    x = np.random.default_rng(0).normal(size=(least_samples(DIMENSION), DIMENSION))
    at_infinity(x, gaussian(1), points=3)
    with pytest.raises(ValueError, match="47 samples; with 12 features it takes 48"):
        at_infinity(x[1:], gaussian(1))
