"""The report's histograms: every value is counted once, and the axes are round."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines import histograms


@given(st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), max_size=80), st.lists(st.floats(-10, 10), max_size=40))
def test_histogram_keeps_every_value(before: list[float], after: list[float]) -> None:
    chart = histograms.histogram("m", "doc", "dataset", np.array(before, float), np.array(after, float))
    known = np.isfinite(before).sum()
    if chart is None:
        assert known == len(after) == 0
        return
    assert sum(chart.before) == known and sum(chart.after or []) == len(after)
    assert chart.edges == sorted(chart.edges) and len(chart.edges) == len(chart.before) + 1
    assert chart.ticks[0] == chart.edges[0] and chart.ticks[-1] == chart.edges[-1]
    assert len({chart.tick_label(t) for t in chart.ticks}) == len(chart.ticks)
    assert chart.outline(chart.before).count("H") == len(chart.before)


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9))
def test_ticks_enclose_their_range_in_round_steps(low: float, length: float) -> None:
    ticks = histograms.round_ticks(low, low + length)
    step = ticks[1] - ticks[0]
    assert 2 <= len(ticks) <= 6
    assert ticks[0] <= low + 1e-6 * step and ticks[-1] >= low + length - 1e-6 * step
    assert np.allclose(np.diff(ticks), step)


def test_one_wild_value_does_not_squeeze_the_others() -> None:
    values = np.concatenate([np.random.default_rng(0).uniform(0, 1, 1000), [1e6]])
    chart = histograms.histogram("m", "doc", "dataset", values)
    assert chart is not None and chart.edges[-1] <= 2 and sum(chart.before) == 1001
