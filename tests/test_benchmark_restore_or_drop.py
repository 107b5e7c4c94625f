"""The map of restoring and dropping: which images are in which arm, and that what is won back is measured as such."""

from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks import restore_or_drop
from tests.benchmarks.restore_or_drop import cell, even_at, measured, parts, place_of_damage


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore_or_drop, "SIZES", {100: 2, 200: 1})


def test_sets_of_a_size_share_nothing_and_the_first_grow() -> None:
    places = {size: [set(range(*part.indices(200))) for part in parts(size)] for size in (100, 200)}
    assert not places[100][0] & places[100][1]
    assert places[100][0] < places[200][0]


def test_what_is_damaged_at_a_share_is_damaged_at_all_above() -> None:
    place = place_of_damage([f"face {i}" for i in range(4_000)])
    assert np.array_equal(place, place_of_damage([f"face {i}" for i in range(4_000)]))
    assert [abs((place < share).mean() - share) < 0.03 for share in restore_or_drop.SHARES] == [True] * 3


def test_each_arm_is_measured_with_its_own_images() -> None:
    draw = np.random.default_rng(0)
    clean, reference = (draw.normal(size=(n, 6)).astype(np.float32) for n in (200, 300))
    hit = np.arange(200) % 2 == 0
    found = np.arange(200) % 20 != 0  # of the damaged nine in ten are found
    accepted = found & (np.arange(200) % 4 == 0)  # and of these four in nine are restored, perfectly
    states = {
        "severity": np.where(found, 0.6, 0.1),
        "candidate": found,
        "accepted": accepted,
        "before": np.full(200, 20.0),
        "after": np.full(200, 30.0),
        "features": clean + 4,
        "cleaned": np.where(accepted[:, None], clean, clean + 4),
    }
    figures = cell(hit, clean, states, 0.4, reference)
    arms = figures["arms"]
    assert (figures["damaged"], figures["found"], figures["accepted"], figures["nearer"]) == (0.5, 0.9, 0.4, 1)
    assert arms["damaged"][200]["images"] == arms["cleaned"][200]["images"] == [200]
    assert arms["filter"][200]["images"] == [110] and arms["filter"][100]["images"] == [55, 55]
    assert arms["combined"][200]["images"] == [150]
    fd = {arm: arms[arm][200]["fd"][0] for arm in arms}
    assert fd["filter"] < fd["cleaned"] < fd["damaged"] and fd["combined"] < fd["cleaned"]
    undamaged = measured([clean], reference)["fd"][0]
    perfect = cell(hit, clean, states | {"cleaned": clean, "accepted": np.ones(200, bool)}, 0.0, reference)
    assert perfect["arms"]["combined"][200]["fd"] == perfect["arms"]["cleaned"][200]["fd"] == [pytest.approx(undamaged)]


def test_restoring_and_dropping_are_even_where_a_set_of_that_size_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore_or_drop, "SIZES", {1_000: 1, 4_000: 1})
    level, slope, remains, left = 20.0, 40_000.0, 8.0, 0.5

    def fd(images: float, more: float = 0.0) -> dict[str, list[float]]:
        return {"images": [images], "fd": [level + slope / images + more]}

    sizes = (1_000, 4_000)
    arms = {
        "filter": {str(size): fd(left * size) for size in sizes},
        "combined": {str(size): fd(size, remains) for size in sizes},
    }
    report = {"pristine": {str(size): fd(size) for size in sizes}, "cells": {"mild-50": {"arms": arms}}}
    even = even_at(report, "mild-50")
    assert even == pytest.approx(5_000)
    assert fd(left * even)["fd"] == pytest.approx(fd(even, remains)["fd"])
