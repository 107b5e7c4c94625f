"""Intervals and tests of shares: published values, their own definitions, and how often they err."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipelines.shares import (
    difference_interval,
    independence,
    share_of,
    widest_difference,
    wilson,
)


@pytest.mark.parametrize("hits, of", [(0, 1), (1, 1), (0, 40), (3, 40), (40, 40), (812, 1000)])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.999])
def test_wilson_is_scipy_s(hits: int, of: int, level: float) -> None:
    expected = stats.binomtest(hits, of).proportion_ci(level, method="wilson")
    assert wilson(hits, of, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_share_of_none_is_unknown_and_the_ends_are_exact() -> None:
    assert share_of(0, 0).share is share_of(0, 0).low is None
    assert share_of(0, 7).low == 0.0 and share_of(7, 7).high == 1.0


@pytest.mark.parametrize(
    "a, b, interval",
    [((56, 70), (48, 80), (0.0524, 0.3339)), ((9, 10), (3, 10), (0.1705, 0.8090)), ((0, 10), (0, 10), None)],
)
def test_differences_are_newcombe_s(
    a: tuple[int, int], b: tuple[int, int], interval: tuple[float, float] | None
) -> None:
    """Table II of Newcombe, 1998, method 10; and of equal shares an interval that is symmetric."""
    low, high = difference_interval(a, b)
    if interval is not None:
        assert (low, high) == pytest.approx(interval, abs=5e-5)
    assert difference_interval(b, a) == pytest.approx((-high, -low))


def test_the_widest_difference_is_between_the_extremes_and_wider_for_having_been_picked() -> None:
    groups = {"a": (10, 100), "b": (50, 100), "c": (30, 100)}
    found = widest_difference(groups)
    assert found is not None and (found.more, found.less) == ("b", "a")
    assert found.difference == pytest.approx(0.4)
    alone = difference_interval((50, 100), (10, 100))
    assert found.low < alone[0] < alone[1] < found.high
    assert widest_difference({"a": (1, 2)}) is None


def test_groups_that_are_alike_are_seldom_called_different() -> None:
    rng = np.random.default_rng(0)
    draws, called, missed = 400, 0, 0
    for _ in range(draws):
        hits = rng.binomial(60, 0.3, 5)
        test = independence([[int(h), 60 - int(h)] for h in hits])
        widest = widest_difference({str(i): (int(h), 60) for i, h in enumerate(hits)})
        assert test is not None and widest is not None and not test.simulated
        called += test.p < 0.05
        missed += not widest.low <= 0 <= widest.high
    assert called / draws < 0.09 and missed / draws < 0.07


def test_groups_that_differ_are_called_different() -> None:
    test = independence([[90, 10], [60, 40]])
    assert test is not None and test.p < 1e-5 and test.degrees == 1 and not test.simulated
    statistic = 200 * (90 * 40 - 10 * 60) ** 2 / (100 * 100 * 150 * 50)  # of a table of two by two, in closed form
    assert test.statistic == pytest.approx(statistic) and test.smallest_expected == 25


def test_few_samples_are_judged_by_random_tables() -> None:
    table = [[3, 0], [0, 4]]
    test = independence(table)
    assert test is not None and test.simulated and test.smallest_expected < 5
    assert test.p == pytest.approx(stats.fisher_exact(table).pvalue, abs=0.015)
    assert independence(table) == test, "drawn alike every time"


@pytest.mark.parametrize("counts", [[], [[1, 2]], [[0, 0], [1, 2]], [[5, 0], [7, 0]], [[0, 0], [0, 0]]])
def test_one_group_or_one_outcome_cannot_differ(counts: list[list[int]]) -> None:
    assert independence(counts) is None
