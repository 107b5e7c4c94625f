"""Kernel distances: the definition, closed forms, clean-fid and torch-fidelity."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.metrics.kernel import kernel_distance, squared_mmd
from tests.test_metrics_frechet import features


def test_it_is_what_its_definition_says() -> None:
    x, y = features(7, 5, seed=1) / 10, features(4, 5, seed=2) / 10

    def mean(a: np.ndarray, b: np.ndarray, same: bool) -> float:
        pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if not (same and i == j)]
        return float(np.mean([(float(a[i].astype(np.float64) @ b[j]) / 5 + 1) ** 3 for i, j in pairs]))

    assert squared_mmd(x, y) == pytest.approx(mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False), rel=1e-9)


def test_its_mean_is_the_closed_form_of_two_gaussians() -> None:
    """Of one dimension: E (xy + 1)^3 = E x^3 E y^3 + 3 E x^2 E y^2 + 3 E x E y + 1."""

    def moments(mean: float, deviation: float) -> np.ndarray:
        return np.array([mean, mean**2 + deviation**2, mean**3 + 3 * mean * deviation**2])

    a, b = moments(0.0, 1.0), moments(0.5, 1.5)
    expected = float(np.array([3, 3, 1]) @ (a * a + b * b - 2 * a * b))
    draw = np.random.default_rng(0)
    x, y = draw.normal(0, 1, (2000, 1)), draw.normal(0.5, 1.5, (2000, 1))
    assert squared_mmd(x, y) == pytest.approx(expected, rel=0.3)
    # Unbiased: small subsets scatter around the same value.
    small = kernel_distance(x, y, subsets=2000, size=20)
    assert small.std is not None and abs(small.mean - squared_mmd(x, y)) < 4 * small.std / 2000**0.5


def test_two_samples_of_one_distribution_are_around_zero() -> None:
    means = [
        kernel_distance(features(200, seed=i) / 50, features(200, seed=i + 50) / 50, subsets=1).mean for i in range(20)
    ]
    assert min(means) < 0 < max(means)
    assert abs(np.mean(means)) < 3 * np.std(means) / 20**0.5


def test_as_clean_fid_has_it() -> None:
    from cleanfid.fid import kernel_distance as reference

    x, y = features(120, seed=3), features(120, seed=4) + 1
    # One subset of all samples: nothing is drawn.
    expected = reference(x.astype(np.float64), y.astype(np.float64), num_subsets=1, max_subset_size=1000)
    found = kernel_distance(x, y)
    assert found.mean == pytest.approx(expected, rel=1e-9) and found.std is None


def test_as_torch_fidelity_has_it() -> None:
    import torch
    from torch_fidelity.metric_kid import kid_features_to_metric

    x, y = features(300, seed=3) / 10, features(250, seed=4) / 10 + 0.1
    options = {"kid_subsets": 20, "kid_subset_size": 100, "rng_seed": 2020, "verbose": False}
    expected = kid_features_to_metric(*(torch.from_numpy(f.astype(np.float64)) for f in (x, y)), **options)
    found = kernel_distance(x, y, subsets=20, size=100, seed=2020)
    assert found.mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-6)
    assert found.std == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-6)


def test_draws_are_fixed_by_the_seed() -> None:
    x, y = features(60, seed=1), features(70, seed=2)
    assert kernel_distance(x, y, subsets=5, size=20) == kernel_distance(x, y, subsets=5, size=20)
    assert kernel_distance(x, y, subsets=5, size=20) != kernel_distance(x, y, subsets=5, size=20, seed=1)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="N, M >= 2"):
        squared_mmd(features(1), features(10))
    with pytest.raises(ValueError, match=r"\(10, 24\) and \(10, 3\)"):
        squared_mmd(features(10), features(10, 3))
