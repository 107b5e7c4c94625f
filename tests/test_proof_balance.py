"""Restore or drop: the lead is the difference of distances, its interval covers, and it turns with the set's size."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from pipelines.metrics.extrapolation import slope
from pipelines.metrics.frechet import distances_to, frechet_distance, statistics_of
from pipelines.proof.balance import Balance, said, weigh

D = 16
DAMAGED = 0.5
REFERENCE = statistics_of(np.random.default_rng(99).normal(0, 1, (200_000, D)))


def weighed(seed: int, number: int, remains: float = 0.25) -> Balance:
    """Half of a set is damaged; restored, its images are where they were but for a shift."""
    draw = np.random.default_rng(seed)
    images = draw.normal(0, 1, (number, D))
    damaged = draw.random(number) < DAMAGED
    restored = images + np.where(damaged[:, None], remains, 0)
    keys = [f"{i}" for i in range(number)]
    left = [key for key, gone in zip(keys, damaged, strict=True) if not gone]
    return weigh(restored, images[~damaged], (keys, left), number, REFERENCE)


def test_a_distance_falls_by_its_slope() -> None:
    features = np.random.default_rng(0).normal(0.1, 1, (4000, D))
    quarters = distances_to(REFERENCE, (statistics_of(part) for part in np.split(features, 4)))
    whole = frechet_distance(REFERENCE, statistics_of(features))
    assert np.mean(quarters) - whole == pytest.approx(3 * slope(features, REFERENCE) / 4000, rel=0.1)


def test_the_sides_are_the_two_sets_and_the_lead_their_difference() -> None:
    found = weighed(0, 2000)
    assert (found.images, found.restoring.images) == (2000, 2000)
    assert found.dropping.images == pytest.approx(1000, abs=80)
    assert found.ahead.value == found.dropping.distance - found.restoring.distance


def test_restoring_is_ahead_in_small_sets_and_dropping_in_large_ones_and_between_they_are_even() -> None:
    small, large = ([weighed(seed, number) for seed in range(20)] for number in (100, 20_000))
    assert all(found.ahead.value > 0 for found in small)
    assert all(found.ahead.high is not None and found.ahead.high < 0 for found in large)
    evens = [found.even_at for found in large]
    assert all(even is not None for even in evens)
    between = round(float(np.median([even for even in evens if even is not None])))
    assert 100 < between < 20_000
    lead = [weighed(seed, between).ahead.value for seed in range(200)]
    spread = np.std(lead) / np.sqrt(len(lead))
    assert abs(np.mean(lead)) < max(4 * spread, 0.15 * np.mean([found.ahead.value for found in small]))


def test_where_restoring_brings_everything_back_dropping_wins_at_no_size() -> None:
    assert sum(weighed(seed, 1000, remains=0).even_at is None for seed in range(20)) >= 10
    assert all(weighed(seed, 1000, remains=0).ahead.value > 0 for seed in range(20))


def test_intervals_cover_the_mean() -> None:
    found = [weighed(seed, 600).ahead for seed in range(400)]
    mean = np.mean([one.value for one in found])
    covered = [one.low <= mean <= one.high for one in found if one.low is not None and one.high is not None]
    assert len(covered) == 400
    assert np.mean(covered) == pytest.approx(0.95, abs=0.035)


def test_too_few_images_have_no_interval_and_the_order_of_the_keys_does_not_matter() -> None:
    draw = np.random.default_rng(0)
    images, keys = draw.normal(0, 1, (200, D)), [f"{i}" for i in range(200)]
    assert weigh(images[:30], images[:20], (keys[:30], keys[:20]), 30, REFERENCE).ahead.low is None
    turned = weigh(images[::-1], images[:100], (keys[::-1], keys[:100]), 200, REFERENCE).ahead
    straight = weigh(images, images[:100], (keys, keys[:100]), 200, REFERENCE).ahead
    assert turned.low == pytest.approx(straight.low, rel=1e-6)


def test_it_is_said_which_is_ahead() -> None:
    about = {"figure": "FD", "detector": "d", "reference": "held-out", "resolution": 32}
    dropping = said(about | asdict(weighed(0, 20_000)) | {"of": 20_000})
    assert (
        "FD" in dropping and "dropping (policy `filter`) is ahead by" in dropping and "this one has 20,000" in dropping
    )
    assert "restoring (policy `default`) is ahead by" in said(about | asdict(weighed(0, 400, remains=0)) | {"of": 400})
    even = (
        about
        | asdict(weighed(0, 100))
        | {"of": 100, "ahead": {"value": 0.1, "low": -1.0, "high": 1.2}, "even_at": None}
    )
    assert "neither is shown to be ahead (95 % interval of restoring's lead -1 to 1.2)" in said(even)
    assert said(even).endswith("restoring would be ahead at any size.")
