"""Histograms of a measure before and after, as numbers and as the two paths that draw them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

FEWEST_BINS, MOST_BINS = 12, 40
# Of the values, this share may fall into the outermost bins from beyond the axis, at each end: one wild value must
# not squeeze all the others into a single bin.
TAIL = 0.005
WIDTH, HEIGHT = 280.0, 96.0  # of the plotting area, SVG user units


@dataclass(frozen=True, slots=True)
class Summary:
    """Where the values of one measure lie; None where there is none."""

    n: int
    missing: int
    p05: float | None
    median: float | None
    p95: float | None
    mean: float | None


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of two sets of values over the same bins. The first and last bin also hold what lies beyond them."""

    name: str
    doc: str
    scope: str
    edges: list[float]
    before: list[int]
    after: list[int] | None
    before_summary: Summary
    after_summary: Summary | None
    ticks: list[float]
    mark: float | None  # a threshold, drawn as a vertical line

    @property
    def peak(self) -> int:
        """The largest count, at least 1."""
        return max([1, *self.before, *(self.after or [])])

    def x(self, value: float) -> float:
        """Horizontal position of a value in the plotting area, SVG user units."""
        return round(WIDTH * (value - self.edges[0]) / (self.edges[-1] - self.edges[0]), 2)

    def outline(self, counts: list[int]) -> str:
        """The SVG path of a step line over the bins, from the baseline and back to it."""
        width, peak = WIDTH / len(counts), self.peak
        steps = "".join(f"V{HEIGHT * (1 - n / peak):.1f}H{(i + 1) * width:.1f}" for i, n in enumerate(counts))
        return f"M0 {HEIGHT:g}{steps}V{HEIGHT:g}"

    @property
    def decimals(self) -> int:
        """Decimals that tell values apart which lie a hundredth of the axis apart."""
        return max(0, math.ceil(-math.log10((self.edges[-1] - self.edges[0]) / 100) - 1e-9))

    def tick_label(self, value: float) -> str:
        """A tick's value with as many decimals as the distance between ticks needs, and no more."""
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else abs(value) or 1.0
        return f"{value + 0.0:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def summarise(values: Numbers) -> Summary:
    """Quantiles and mean of the values that are not NaN."""
    known = values[np.isfinite(values)]
    if not known.size:
        return Summary(0, int(values.size), None, None, None, None)
    low, middle, high = (float(q) for q in np.quantile(known, [0.05, 0.5, 0.95]))
    return Summary(int(known.size), int(values.size - known.size), low, middle, high, float(known.mean()))


def histogram(
    name: str, doc: str, scope: str, before: Numbers, after: Numbers | None = None, mark: float | None = None
) -> Histogram | None:
    """Count both sets (NaN: unknown) over common bins that end at round numbers; None if no value is known.

    Args:
        name: the measure.
        doc: what it is, with its unit.
        scope: which samples were counted.
        before: values, any number of them.
        after: values to lay over them, if there is an after.
        mark: a threshold on the axis.
    """
    sets = [values[np.isfinite(values)] for values in (before, after) if values is not None]
    if not any(values.size for values in sets):
        return None
    bounds = [q for values in sets if values.size for q in np.quantile(values, [TAIL, 1 - TAIL])]
    ticks = round_ticks(float(min(bounds)), float(max(bounds)))
    bins = int(np.clip(2 * math.sqrt(max(values.size for values in sets)), FEWEST_BINS, MOST_BINS))
    edges = np.linspace(ticks[0], ticks[-1], bins + 1)
    counts = [np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0].tolist() for values in sets]
    return Histogram(
        name,
        doc,
        scope,
        [float(edge) for edge in edges],
        counts[0],
        counts[1] if after is not None else None,
        summarise(before),
        summarise(after) if after is not None else None,
        ticks,
        mark if mark is not None and edges[0] <= mark <= edges[-1] else None,
    )


def round_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Between 2 and ``most`` round numbers, equally spaced, that enclose [low, high]; the step is 1, 2 or 5 x 10^k."""
    size = max(abs(low), abs(high))
    if high - low <= max(1e-6 * size, 1e-12):  # one value only: give it room
        room = 0.1 * size if size > 1e-9 else 0.5
        low, high = low - room, high + room
    exponent = math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5, 10, 20, 50):
        step = factor * 10.0**exponent
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first < most:
            break
    return [round(i * step, max(0, 1 - exponent)) for i in range(first, last + 1)]
