"""Means, ratios and what chance does, from few pairs: Student, Welch and Satterthwaite, Fieller, a bootstrap; and, from
many images, the delta method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

LEVEL: Final = 0.95
#: Pairs that a bootstrap interval needs: fewer have too few distinct resamples.
LEAST_BOOTSTRAP: Final = 5
DRAWS: Final = 9_999


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its interval; without one where there is a single pair."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Recovery:
    """The share of what the pristine arm gains that this arm gains: 0 as the original, 1 as the pristine arm.

    Attributes:
        value: None where pristine data did not gain anything.
        low, high: Fieller's interval; None if ``why`` says that there is none.
        ruled_out: where his set has no ends, the values that it still leaves out: all between these two.
    """

    value: float | None
    low: float | None
    high: float | None
    why: str | None = None
    ruled_out: tuple[float, float] | None = None


def delta_interval(value: float, influence: Numbers | None, more: float = 0.0) -> Estimate:
    """A value and its 95 % interval by the delta method: of the images' influences, N; without these there is none.

    Args:
        more: variance that comes on top.
    """
    if influence is None:
        return Estimate(value, None, None)
    half = 1.959964 * math.sqrt(float((influence**2).sum()) / len(influence) ** 2 + more)
    return Estimate(value, value - half, value + half)


def pooled_interval(groups: Sequence[Numbers]) -> Estimate:
    """Mean of the groups' means, each group as heavy, with Welch's and Satterthwaite's t interval: of one, Student's.

    Without an interval where a group has a single difference. It is of these groups: trainers are not a sample of all
    trainers there could be.
    """
    value = float(np.mean([g.mean() for g in groups]))
    if any(len(g) < 2 for g in groups):
        return Estimate(value, None, None)
    parts = np.array([g.var(ddof=1) / len(g) for g in groups]) / len(groups) ** 2
    if not parts.sum():
        return Estimate(value, value, value)
    degrees = float(parts.sum() ** 2 / sum(p**2 / (len(g) - 1) for p, g in zip(parts, groups, strict=True)))
    half = _quantile(degrees) * math.sqrt(parts.sum())
    return Estimate(value, value - half, value + half)


def bootstrap_interval(groups: Sequence[Numbers]) -> tuple[float, float] | None:
    """Percentiles of the mean of the groups' means over resampled pairs; None of fewer than ``LEAST_BOOTSTRAP``."""
    if any(len(g) < LEAST_BOOTSTRAP for g in groups):
        return None
    draw = np.random.default_rng(0)
    means = [g[draw.integers(0, len(g), (DRAWS, len(g)))].mean(axis=1) for g in groups]
    low, high = np.quantile(np.mean(means, axis=0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def chance_of_null(nulls: Sequence[Numbers], pairs: Sequence[int]) -> float | None:
    """How far from zero the mean gain of so many pairs comes in ``LEVEL`` of all cases, if nothing differs but seeds.

    The null arm's expected gain is zero and known to be: its mean square around zero has as many degrees of freedom as
    it has pairs; of several trainers Satterthwaite's. The null's seeds are not shared with the original, so its pairs
    vary at least as much as others'.

    Args:
        nulls: the null arm's gains, of each trainer.
        pairs: of the arm that is judged, of each trainer.
    """
    if not nulls or any(len(n) == 0 for n in nulls):
        return None
    parts = np.array([(n**2).mean() / k for n, k in zip(nulls, pairs, strict=True)]) / len(nulls) ** 2
    if not parts.sum():
        return 0.0
    degrees = float(parts.sum() ** 2 / sum(p**2 / len(n) for p, n in zip(parts, nulls, strict=True)))
    return _quantile(degrees) * math.sqrt(parts.sum())


def recovery_of(gains: Sequence[float] | Numbers, pristine: Sequence[float] | Numbers) -> Recovery:
    """The ratio of two mean gains over the same pairs, with Fieller's interval (1954).

    Numerator and denominator share the original's figure, so they are correlated, and the ratio of two noisy means is
    skewed: Fieller's set is exact for normal pairs where the delta method and a bootstrap of three or five pairs are
    not. It is bounded only where the denominator is clearly above zero, which is as it should be.

    Args:
        gains: of the arm, a pair after the other.
        pristine: gains of the pristine arm in the same pairs.
    """
    x, y = np.asarray(gains, np.float64), np.asarray(pristine, np.float64)
    top, bottom = float(x.mean()), float(y.mean())
    if bottom <= 0:
        return Recovery(None, None, None, "the pristine arm is no better than the original")
    ratio = top / bottom
    if len(x) < 2:
        return Recovery(ratio, None, None, "a single pair has no interval")
    (v11, v12), (_, v22) = np.cov(x, y) / len(x)
    t = _quantile(len(x) - 1)
    g = t**2 * v22 / bottom**2
    if g >= 1:
        # His set is then all values, or all but those between the roots of a ratio^2 - 2 b ratio + c.
        a, b, c = bottom**2 - t**2 * v22, top * bottom - t**2 * v12, top**2 - t**2 * v11
        root = math.sqrt(max(b**2 - a * c, 0.0))
        ruled_out = ((b + root) / a, (b - root) / a) if root and a < 0 else None
        return Recovery(ratio, None, None, "the pristine arm is not shown to be better than the original", ruled_out)
    covariance = t**2 * v12 / bottom**2
    inside = v11 - 2 * ratio * v12 + ratio**2 * v22 - g * v11 + t**2 * v12**2 / bottom**2
    half = t / bottom * math.sqrt(max(inside, 0.0))
    return Recovery(ratio, float((ratio - covariance - half) / (1 - g)), float((ratio - covariance + half) / (1 - g)))


def _quantile(degrees: float) -> float:
    """Of Student's t, two-sided at ``LEVEL``."""
    from scipy import special

    return float(special.stdtrit(degrees, (1 + LEVEL) / 2))
