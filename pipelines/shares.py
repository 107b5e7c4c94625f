"""Shares of samples with their uncertainty: Wilson's interval, Newcombe's for a difference, and a test of equality."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

LEVEL: Final = 0.95
#: Below an expected count of this the chi-square distribution is no good approximation (Cochran, 1954).
FEW_EXPECTED: Final = 5.0
#: Tables drawn where it is not; the smallest p-value that they can show is one in so many and one.
DRAWS: Final = 1_999


@dataclass(frozen=True, slots=True)
class Share:
    """So many of so many, and the 95 % interval of the share; all three None of none."""

    hits: int
    of: int
    share: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Difference:
    """The share of one group less that of another, 0-1, with an interval that holds for all pairs of groups at once."""

    more: str
    less: str
    difference: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Independence:
    """Whether groups differ: Pearson's chi-square test of a table of counts.

    Attributes:
        p: of the chi-square distribution; if ``simulated`` of random tables with the same margins, because an
            expected count is under ``FEW_EXPECTED``.
    """

    statistic: float
    degrees: int
    p: float
    smallest_expected: float
    simulated: bool


def share_of(hits: int, of: int) -> Share:
    """A share with its 95 % interval, each sample taken to be independent of the others."""
    if not of:
        return Share(hits, of, None, None, None)
    low, high = wilson(hits, of)
    return Share(hits, of, hits / of, low, high)


def wilson(hits: int, of: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a share (1927); sensible at 0 and 1 and for few samples, unlike the textbook's."""
    z = _quantile(level)
    p = hits / of
    middle = (p + z**2 / (2 * of)) / (1 + z**2 / of)
    half = z / (1 + z**2 / of) * math.sqrt(p * (1 - p) / of + z**2 / (4 * of**2))
    # At the ends the bounds are exact, and rounding must not move them.
    return (middle - half if hits else 0.0), (middle + half if hits < of else 1.0)


def difference_interval(a: tuple[int, int], b: tuple[int, int], level: float = LEVEL) -> tuple[float, float]:
    """Interval of share a less share b, each (hits, of): Newcombe's hybrid score, his method 10 (1998)."""
    (p, q), (low_p, high_p), (low_q, high_q) = (a[0] / a[1], b[0] / b[1]), wilson(*a, level), wilson(*b, level)
    return p - q - math.hypot(p - low_p, high_q - q), p - q + math.hypot(high_p - p, q - low_q)


def widest_difference(groups: Mapping[str, tuple[int, int]]) -> Difference | None:
    """The two groups, each (hits, of), whose shares differ most; None of fewer than two.

    It was picked as the largest of many, so the interval is Bonferroni's for all pairs.
    """
    if len(groups) < 2:
        return None
    by_share = sorted(groups, key=lambda name: groups[name][0] / groups[name][1])
    less, more = by_share[0], by_share[-1]
    pairs = len(groups) * (len(groups) - 1) // 2
    low, high = difference_interval(groups[more], groups[less], 1 - (1 - LEVEL) / pairs)
    return Difference(more, less, groups[more][0] / groups[more][1] - groups[less][0] / groups[less][1], low, high)


def independence(counts: Sequence[Sequence[int]]) -> Independence | None:
    """Test counts, a row a group and a column an outcome; None where fewer than two of either occur."""
    from scipy import stats

    if len(counts) < 2:
        return None
    table = np.asarray(counts, np.int64)
    table = table[table.any(1)][:, table.any(0)]
    if min(table.shape) < 2:
        return None
    found = stats.chi2_contingency(table, correction=False)
    smallest = float(found.expected_freq.min())
    simulated = smallest < FEW_EXPECTED
    p = _simulated_p(table, found.expected_freq, float(found.statistic)) if simulated else float(found.pvalue)
    return Independence(float(found.statistic), int(found.dof), p, smallest, simulated)


def _simulated_p(table: npt.NDArray[np.int64], expected: npt.NDArray[np.float64], statistic: float) -> float:
    """How often a random table with these margins is as far from what is expected; the same every time."""
    from scipy import stats

    random = stats.random_table(table.sum(1), table.sum(0), seed=np.random.default_rng(0))
    further = 0
    for first in range(0, DRAWS, 100):  # some at a time: a table of a thousand classes is large
        drawn = random.rvs(min(100, DRAWS - first))
        further += int((((drawn - expected) ** 2 / expected).sum((1, 2)) >= statistic * (1 - 1e-12)).sum())
    return (further + 1) / (DRAWS + 1)


def _quantile(level: float) -> float:
    """Of the standard normal distribution, two-sided."""
    from statistics import NormalDist

    return NormalDist().inv_cdf((1 + level) / 2)
