"""Restore or drop: the lead is the difference of distances, its interval covers, and it turns with the set's size."""

from __future__ import annotations

from dataclasses import asdict
from math import inf, sqrt
from typing import Any

import numpy as np
import pytest

from pipelines.metrics.extrapolation import slope
from pipelines.metrics.frechet import distances_to, frechet_distance, statistics_of
from pipelines.proof.balance import Balance, Even, said, weigh

D = 16
DAMAGED = 0.5
#: What restoring leaves of the damage: a shift of this many standard deviations.
REMAINS = 0.25
REFERENCE = statistics_of(np.random.default_rng(99).normal(0, 1, (200_000, D)))


def even_of_all() -> float:
    """The size at which both are the same, in closed form.

    Of N normal images like the reference's E d^2 = (D + D (D + 1) / 4) / N, and dropping leaves half of them; the
    shift of the other half moves the mean and stretches one axis.
    """
    per_image = D + D * (D + 1) / 4
    shift = REMAINS**2 * D
    left = DAMAGED**2 * shift + (sqrt(1 + DAMAGED * (1 - DAMAGED) * shift) - 1) ** 2
    return per_image * (1 / (1 - DAMAGED) - 1) / left


def ends(even: Even | None) -> tuple[float, float]:
    assert even is not None
    return inf if even.low is None else even.low, inf if even.high is None else even.high


def weighed(seed: int, number: int, remains: float = REMAINS) -> Balance:
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
    between = round(even_of_all())
    assert 100 < between < 20_000
    lead = [weighed(seed, between).ahead.value for seed in range(200)]
    spread = np.std(lead) / np.sqrt(len(lead))
    assert abs(np.mean(lead)) < max(4 * spread, 0.15 * np.mean([found.ahead.value for found in small]))


@pytest.mark.parametrize("number", [100, 300, 1000])
def test_where_there_is_a_size_at_which_they_are_even_it_is_between_those_that_are_told(number: int) -> None:
    found = [ends(weighed(seed, number).even) for seed in range(300)]
    assert np.mean([low <= even_of_all() <= high for low, high in found]) > 0.92


@pytest.mark.parametrize("number", [100, 1000])
def test_where_restoring_brings_everything_back_no_end_of_the_sizes_is_told_more_often_than_chance_does(
    number: int,
) -> None:
    found = [weighed(seed, number, remains=0) for seed in range(400)]
    assert np.mean([ends(one.even)[1] < inf for one in found]) <= 0.05
    assert np.mean([one.ahead.value > 0 for one in found]) > 0.97


def test_a_size_is_told_exactly_where_neither_is_shown_to_be_ahead_in_a_set_of_it() -> None:
    for found in (weighed(seed, number) for seed in range(50) for number in (100, 400, 1600)):
        low, high = ends(found.even)
        assert found.ahead.low is not None and found.ahead.high is not None
        assert (low <= found.images <= high) == (found.ahead.low <= 0 <= found.ahead.high)


def test_where_what_is_dropped_would_be_missing_restoring_is_ahead_at_any_size() -> None:
    images = np.random.default_rng(0).normal(0, 1, (1000, D))
    keys = [f"{i}" for i in range(1000)]
    damaged = images[:, 0] > 0  # all that is on one side
    left = [key for key, gone in zip(keys, damaged, strict=True) if not gone]
    found = weigh(images, images[~damaged], (keys, left), 1000, REFERENCE)
    assert found.even == Even(None, None)
    assert said(of(found)).endswith("In a set as dirty as this one restoring would be ahead at any size.")


def test_where_both_leave_as_many_images_no_size_is_told() -> None:
    images, keys = np.random.default_rng(0).normal(0, 1, (200, D)), [f"{i}" for i in range(200)]
    assert weigh(images + 0.5, images, (keys, keys), 200, REFERENCE).even is None


def test_intervals_cover_the_mean() -> None:
    found = [weighed(seed, 600).ahead for seed in range(400)]
    mean = np.mean([one.value for one in found])
    covered = [one.low <= mean <= one.high for one in found if one.low is not None and one.high is not None]
    assert len(covered) == 400
    assert np.mean(covered) == pytest.approx(0.95, abs=0.035)


def test_too_few_images_have_no_interval_and_the_order_of_the_keys_does_not_matter() -> None:
    draw = np.random.default_rng(0)
    images, keys = draw.normal(0, 1, (200, D)), [f"{i}" for i in range(200)]
    few = weigh(images[:30], images[:20], (keys[:30], keys[:20]), 30, REFERENCE)
    assert few.ahead.low is None and few.even is None
    assert said(of(few)).endswith("(too few images for an interval).")
    turned = weigh(images[::-1], images[:100], (keys[::-1], keys[:100]), 200, REFERENCE).ahead
    straight = weigh(images, images[:100], (keys, keys[:100]), 200, REFERENCE).ahead
    assert turned.low == pytest.approx(straight.low, rel=1e-6)


def of(found: Balance) -> dict[str, Any]:
    """As ``balance.json`` has it."""
    return {"figure": "FD", "detector": "d", "reference": "held-out", "resolution": 32, "of": found.images} | asdict(
        found
    )


def test_it_is_said_which_is_ahead() -> None:
    dropping = said(of(weighed(0, 20_000)))
    assert "FD" in dropping and "dropping (policy `filter`) is ahead by" in dropping
    assert dropping.endswith(" images; this one has 20,000.")
    assert "restoring (policy `default`) is ahead by" in said(of(weighed(0, 400, remains=0)))


def test_sizes_are_said_as_a_range_and_no_size_where_there_is_no_interval() -> None:
    even = of(weighed(0, 100)) | {
        "ahead": {"value": 0.1, "low": -1.0, "high": 1.2},
        "even": {"low": 61.4, "high": None},
    }
    told = said(even)
    assert "neither is shown to be ahead (95 % interval of restoring's lead -1 to 1.2)." in told
    assert told.endswith("they would be even at about 61 images or more, if at any; this one has 100.")
    bounded = said(even | {"even": {"low": 61.4, "high": 12_345.0}})
    assert bounded.endswith("they would be even between about 61 and 12,300 images; this one has 100.")


def test_a_file_of_an_earlier_version_says_no_size() -> None:
    old = of(weighed(0, 100)) | {"even_at": None}
    del old["even"]
    assert "would be" not in said(old) and said(old).endswith(").")
