"""Statistics of features: merging equals one pass; the distance equals closed forms and another implementation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.metrics.frechet import (
    Statistics,
    distances_to,
    frechet_distance,
    merge,
    no_statistics,
    statistics_of,
    streamed,
)


def features(n: int, dimension: int = 24, seed: int = 0) -> np.ndarray:
    """Correlated, with means of different sizes, as features are."""
    draw = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(dimension, dimension))
    return (draw.normal(size=(n, dimension)) @ mixing + 5 * np.arange(dimension)).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 300), max_size=6), seed=st.integers(0, 5))
def test_parts_merge_to_the_whole(cuts: list[int], seed: int) -> None:
    x = features(300, seed=seed)
    merged = no_statistics(x.shape[1])
    for part in np.split(x, sorted(cuts)):
        merged = merge(merged, statistics_of(part))
    assert merged.n == 300
    np.testing.assert_allclose(merged.mean, x.astype(np.float64).mean(axis=0), rtol=1e-10)
    expected = np.cov(x.astype(np.float64), rowvar=False)
    assert np.abs(merged.covariance - expected).max() <= 1e-10 * np.abs(expected).max()


def test_merging_is_the_same_in_any_grouping() -> None:
    a, b, c = (statistics_of(features(n, seed=n)) for n in (3, 50, 200))
    left, right = merge(merge(a, b), c), merge(a, merge(b, c))
    assert left.n == right.n == 253
    assert np.abs(left.scatter - right.scatter).max() <= 1e-10 * np.abs(left.scatter).max()


def test_a_large_common_offset_does_not_cancel() -> None:
    x = features(400).astype(np.float64)
    near, far = statistics_of(x), merge(statistics_of(x[:150] + 1e6), statistics_of(x[150:] + 1e6))
    assert np.abs(near.covariance - far.covariance).max() <= 1e-8 * np.abs(near.covariance).max()


def test_shift_of_a_gaussian() -> None:
    s = statistics_of(features(500))
    shift = np.linspace(-1, 2, len(s.mean))
    moved = Statistics(s.n, s.mean + shift, s.scatter)
    assert frechet_distance(s, moved) == pytest.approx(shift @ shift, rel=1e-9)


def test_scale_of_a_gaussian() -> None:
    s = statistics_of(features(500))
    wider = Statistics(s.n, s.mean, 9 * s.scatter)  # of three times the deviation
    assert frechet_distance(s, wider) == pytest.approx((3 - 1) ** 2 * np.trace(s.covariance), rel=1e-9)


def test_commuting_covariances() -> None:
    first, second = np.diag([1.0, 4.0, 0.0]), np.diag([9.0, 1.0, 2.0])
    a, b = Statistics(2, np.zeros(3), first), Statistics(2, np.zeros(3), second)
    assert frechet_distance(a, b) == pytest.approx((1 - 3) ** 2 + (2 - 1) ** 2 + 2, rel=1e-12)


def test_the_distance_is_symmetric_and_zero_to_itself() -> None:
    a, b = statistics_of(features(300, seed=1)), statistics_of(1.3 * features(200, seed=2))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a, a) <= 1e-9 * np.trace(a.covariance)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # clean-fid's call of scipy.linalg.sqrtm
def test_as_clean_fid_has_it() -> None:
    from cleanfid.fid import frechet_distance as reference

    a, b = statistics_of(features(200, seed=3)), statistics_of(features(150, seed=4) + 1)
    assert frechet_distance(a, b) == pytest.approx(reference(a.mean, a.covariance, b.mean, b.covariance), rel=1e-7)


def test_as_torch_fidelity_has_it() -> None:
    import torch
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    x, y = features(200, seed=3), features(150, seed=4) + 1
    theirs = [fid_features_to_statistics(torch.from_numpy(f.astype(np.float64))) for f in (x, y)]
    expected = fid_statistics_to_metric(*theirs, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(statistics_of(x), statistics_of(y)) == pytest.approx(expected, rel=1e-7)


def test_several_distances_are_those_of_each() -> None:
    reference, others = statistics_of(features(100)), [statistics_of(features(50, seed=i)) for i in (1, 2)]
    assert distances_to(reference, others) == [frechet_distance(reference, other) for other in others]


def test_a_stream_of_batches_is_the_whole() -> None:
    x = features(90)
    found = streamed((x[i : i + 40] for i in range(0, 90, 40)), x.shape[1])
    assert found.n == 90 and np.allclose(found.scatter, statistics_of(x).scatter, rtol=1e-10)
    assert streamed([], 3).n == 0


def test_fewer_samples_than_dimensions() -> None:
    """On a flat set in a high dimension it is the distance within the plane that the set spans."""
    plane = np.linalg.qr(np.random.default_rng(5).normal(size=(300, 6)))[0].T
    a, b = (np.random.default_rng(seed).normal(size=(40, 6)) * (1 + seed) for seed in (0, 1))
    inside = frechet_distance(statistics_of(a), statistics_of(b))
    assert frechet_distance(statistics_of(a @ plane), statistics_of(b @ plane)) == pytest.approx(inside, rel=1e-6)


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_samples_are_refused(n: int) -> None:
    enough, few = statistics_of(features(10)), statistics_of(features(n))
    with pytest.raises(ValueError, match=f"at least 2 samples, not {n}"):
        frechet_distance(enough, few)


def test_what_cannot_be_measured_is_refused() -> None:
    x = features(10)
    x[3, 2] = np.nan
    with pytest.raises(ValueError, match="1 of 10 samples are not finite"):
        statistics_of(x)
    with pytest.raises(ValueError, match="N x D"):
        statistics_of(np.zeros(3))
    with pytest.raises(ValueError, match="24 and of 3 dimensions"):
        frechet_distance(statistics_of(features(10)), statistics_of(np.zeros((10, 3))))
    with pytest.raises(ValueError, match="24 and of 3 dimensions"):
        merge(statistics_of(features(10)), no_statistics(3))
