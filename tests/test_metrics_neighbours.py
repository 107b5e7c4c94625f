"""Precision, recall, density and coverage: closed forms, prdc and torch-fidelity."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest

from pipelines.metrics.neighbours import Neighbours, neighbours
from tests.test_metrics_frechet import features


def test_a_set_covers_itself() -> None:
    """Each ball holds its own centre and its five nearest, of which the fifth is on the rim."""
    x = features(100)
    assert neighbours(x, x) == Neighbours(precision=1, recall=1, density=6 / 5, coverage=1)


def test_sets_that_are_far_apart_share_nothing() -> None:
    assert neighbours(features(50), features(40) + 1e4) == Neighbours(0, 0, 0, 0)


def test_one_dimension_by_hand() -> None:
    """Reference 0 1 2 3 4 with k = 1 has balls of radius 1; the samples' nearest are 0.5 and 5 away."""
    reference, samples = np.arange(5.0)[:, None], np.array([[0.5], [1.0], [6.0], [5.5]])
    found = neighbours(samples, reference, manifold_k=1, density_k=1)
    assert found.precision == 0.5  # 0.5 and 1.0
    assert found.recall == 2 / 5  # 0 and 1 are in the ball of 0.5, none other is in any
    assert found.density == (2 + 3) / 4  # 0.5 is in those of 0, 1 and not of 2; 1.0 in those of 0, 1 and 2
    assert found.coverage == 3 / 5


def test_few_modes_are_precise_and_do_not_cover() -> None:
    draw = np.random.default_rng(1)
    reference = draw.normal(size=(400, 2))
    few = reference[:4].repeat(50, axis=0) + 1e-3 * draw.normal(size=(200, 2))
    found = neighbours(few, reference)
    assert found.precision > 0.95 and found.recall < 0.05 and found.coverage < 0.15


def test_an_outlier_in_the_reference_inflates_precision_and_not_density() -> None:
    draw = np.random.default_rng(2)
    reference = np.concatenate([draw.normal(size=(300, 2)), [[60.0, 0.0]]])
    away = draw.normal(loc=(30, 0), size=(200, 2))
    found = neighbours(away, reference)
    assert found.precision == 1 and found.density < 0.3 and found.coverage < 0.01


@pytest.mark.parametrize("block", [1, 7, 64])
def test_blocks_do_not_matter(block: int) -> None:
    samples, reference = features(60, seed=1), features(45, seed=2)
    assert neighbours(samples, reference, block=block) == neighbours(samples, reference)


def test_the_place_of_the_origin_does_not_matter() -> None:
    samples, reference = features(60, seed=1).astype(np.float64), features(45, seed=2).astype(np.float64)
    assert neighbours(samples + 1e6, reference + 1e6) == neighbours(samples, reference)


def test_images_that_are_all_the_same_are_in_their_own_balls() -> None:
    same = np.repeat(features(1), 30, axis=0)
    assert astuple(neighbours(same, same)) == (1, 1, 30 / 5, 1)


@pytest.mark.parametrize("scale", [0.8, 1.0, 1.5])
def test_as_prdc_and_torch_fidelity_have_it(scale: float, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from prdc import compute_prdc
    from torch_fidelity.metric_prc import prc_features_to_metric

    samples, reference = scale * features(300, 8, seed=3), features(250, 8, seed=4)
    samples += np.float32((1 - scale) * 5) * np.arange(8, dtype=np.float32)
    found = neighbours(samples, reference)
    manifold, density = (compute_prdc(reference, samples, k) for k in (3, 5))
    capsys.readouterr()  # it prints
    assert min(astuple(found)) > 0
    assert found.precision == pytest.approx(manifold["precision"], rel=1e-3)
    assert found.recall == pytest.approx(manifold["recall"], rel=1e-3)
    assert found.density == pytest.approx(density["density"], rel=1e-3)
    assert found.coverage == pytest.approx(density["coverage"], rel=1e-3)
    options = {"prc_neighborhood": 3, "prc_batch_size": 100, "save_cpu_ram": True, "verbose": False}
    expected = prc_features_to_metric(torch.from_numpy(samples), torch.from_numpy(reference), **options)
    assert found.precision == pytest.approx(expected["precision"], rel=1e-3)
    assert found.recall == pytest.approx(expected["recall"], rel=1e-3)


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="5 neighbours need 6 samples; there are 5 and 40"):
        neighbours(features(5), features(40))
    with pytest.raises(ValueError, match="N x D and M x D"):
        neighbours(features(10), features(10, 3))
