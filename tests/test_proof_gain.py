"""Gains from paired trainings: closed forms, coverage of the intervals, and what is never dropped in silence."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pipelines.proof.gain import CHANCE, GAIN, LOSS, NOT_SHOWN, Gain, Measure, curves, data_recovery, gains, verdict_of
from pipelines.proof.intervals import (
    DRAWS,
    Estimate,
    bootstrap_interval,
    chance_of_null,
    pooled_interval,
    recovery_of,
)
from pipelines.proof.plan import Job

FD = Measure("net", "FD", "held-out")
NIMG = 1000


def plan(arms: dict[str, Any], trainers: tuple[str, ...], pairs: int) -> list[Job]:
    return [Job(arm, t, p, p, NIMG) for p in range(pairs) for t in trainers for arm in arms]  # type: ignore[arg-type]


def line(job: Job, value: float, nimg: int = NIMG, figure: str = "FD", **other: Any) -> dict[str, Any]:
    told = {"job": job.name, "arm": job.arm, "trainer": job.trainer, "pair": job.pair, "nimg": nimg}
    return told | {"detector": "net", "reference": "held-out", "figures": {figure: value}} | other


def lines_of(values: dict[str, dict[str, list[float]]]) -> tuple[list[dict[str, Any]], list[Job]]:
    """arm => trainer => a figure each pair; and the jobs that they are of."""
    trainers = tuple(next(iter(values.values())))
    jobs = plan(values, trainers, max(len(v) for by in values.values() for v in by.values()))
    return [line(j, v[j.pair]) for j in jobs if j.pair < len(v := values[j.arm].get(j.trainer, []))], jobs


def one(found: list[Gain], arm: str, trainer: str | None = "a") -> Gain:
    (only,) = [g for g in found if (g.arm, g.trainer) == (arm, trainer)]
    return only


# ---- Closed forms


def test_a_gain_is_the_mean_of_the_logarithms_with_student_s_interval() -> None:
    lines, jobs = lines_of({"original": {"a": [10, 12, 14]}, "cleaned": {"a": [9, 10, 11]}})
    found = one(gains(lines, jobs, FD), "cleaned")
    assert (found.base, found.value, found.pairs, found.planned, found.shares) == (12, 10, 3, 3, True)
    logs = np.log([10 / 9, 12 / 10, 14 / 11])
    half = 4.302652729749464 * logs.std(ddof=1) / math.sqrt(3)  # t of 2 degrees
    expected = [1 - math.exp(-v) for v in (logs.mean(), logs.mean() - half, logs.mean() + half)]
    assert found.gain == Estimate(*map(pytest.approx, expected))
    assert found.verdict == GAIN and found.bootstrap is None and found.recovery is None


def test_the_verdict_is_of_the_interval_that_is_told() -> None:
    # As differences these would exclude zero, and as shares they do not; and the other way round.
    for original, cleaned, verdict in (
        ([10, 12, 40], [9, 10.9, 38.6], NOT_SHOWN),
        ([100, 200, 400], [80, 160, 300], GAIN),
    ):
        lines, jobs = lines_of({"original": {"a": original}, "cleaned": {"a": cleaned}})
        found = one(gains(lines, jobs, FD), "cleaned")
        assert found.gain is not None and found.gain.low is not None and found.verdict == verdict
        assert (found.gain.low > 0) == (verdict == GAIN)


def test_an_arm_is_compared_with_any_other_and_judged_by_the_same_null() -> None:
    lines, jobs = lines_of({
        "original": {"a": [10, 12, 14]}, "combined": {"a": [9, 10, 11]}, "filter": {"a": [8, 8, 8]},
        "null": {"a": [14, 12, 10]}, "pristine": {"a": [5, 5, 5]},
    })  # fmt: skip
    over_original, over_filter = (one(gains(lines, jobs, FD, over), "combined") for over in ("original", "filter"))
    assert over_filter.gain is not None and over_original.gain is not None
    assert (over_filter.over, over_filter.base, over_filter.value) == ("filter", 8, 10)
    assert over_filter.gain.value == pytest.approx(1 - (9 * 10 * 11) ** (1 / 3) / 8)
    assert over_filter.chance == over_original.chance is not None
    assert over_filter.recovery is None and over_original.recovery is not None
    swapped = one(gains(lines, jobs, FD, "combined"), "filter").gain
    assert swapped is not None and swapped.low is not None and over_filter.gain.high is not None
    assert (1 - over_filter.gain.high) * (1 - swapped.low) == pytest.approx(1)
    assert {g.arm for g in gains(lines, jobs, FD, "filter")} == {"original", "combined", "null", "pristine"}


@pytest.mark.parametrize(
    ("low", "high", "chance", "verdict"),
    [
        (0.1, 3, None, GAIN),
        (-3, -0.1, None, LOSS),
        (-0.1, 3, None, NOT_SHOWN),
        (0, 3, None, NOT_SHOWN),
        (0.1, 3, 5, CHANCE),
        (-3, -0.1, 5, CHANCE),
        (0.1, 3, 0.5, GAIN),
        (-0.1, 3, 5, NOT_SHOWN),
        (None, None, None, NOT_SHOWN),
    ],
)
def test_verdicts(low: float | None, high: float | None, chance: float | None, verdict: str) -> None:
    value = 1.0 if low is None or high is None else (low + high) / 2
    assert verdict_of(Estimate(value, low, high), chance) == verdict


def test_of_precision_more_is_a_gain() -> None:
    jobs = plan({"original": 0, "cleaned": 0}, ("a",), 3)
    recall = Measure("net", "recall", "held-out")
    of = {"original": [0.50, 0.52, 0.48], "cleaned": [0.60, 0.63, 0.58]}
    found = one(gains([line(j, of[j.arm][j.pair], figure="recall") for j in jobs], jobs, recall), "cleaned")
    assert found.gain is not None and found.verdict == GAIN
    assert found.gain.value == pytest.approx((0.60 * 0.63 * 0.58 / (0.50 * 0.52 * 0.48)) ** (1 / 3) - 1)


def test_the_order_of_lines_and_lines_of_others_change_nothing() -> None:
    lines, jobs = lines_of({"original": {"a": [10, 12, 14]}, "cleaned": {"a": [9, 10, 11]}})
    others = [line(j, 1e6, detector="other") for j in jobs] + [line(j, 1e6, reference="original") for j in jobs]
    others += [line(j, 1e6, nimg=NIMG // 2) for j in jobs]  # an earlier snapshot, whatever its figure
    older = [line(jobs[0], 77.0)]
    assert gains([*older, *others, *reversed(lines)], jobs, FD) == gains(lines, jobs, FD)


def test_the_last_snapshot_counts_and_not_the_best() -> None:
    lines, jobs = lines_of({"original": {"a": [10, 12]}, "cleaned": {"a": [9, 10]}})
    lucky = [line(j, 0.1, nimg=NIMG - 10) for j in jobs if j.arm == "cleaned"]
    beyond = [line(j, 20.0, nimg=NIMG + 5) for j in jobs if j.arm == "cleaned"]  # a step may end a little later
    assert one(gains(lines + lucky, jobs, FD), "cleaned").value == 9.5
    assert one(gains(lines + beyond, jobs, FD), "cleaned").value == 20


# ---- Missing pairs


def test_missing_pairs_are_named_and_the_others_count() -> None:
    lines, jobs = lines_of({"original": {"a": [10, 12, 14]}, "cleaned": {"a": [9, 10, 11]}})
    left = [x for x in lines if x["job"] not in ("original-a-s0", "cleaned-a-s2")]
    found = one(gains(left, jobs, FD), "cleaned")
    assert found.missing == ("original-a-s0", "cleaned-a-s2")
    assert (found.pairs, found.planned) == (1, 3)
    assert found.gain == Estimate(pytest.approx(2 / 12), None, None) and found.verdict == NOT_SHOWN
    nothing = one(gains([], jobs, FD), "cleaned")
    assert nothing.pairs == 0 and nothing.gain is None and len(nothing.missing) == 6


def test_a_trainer_without_pairs_is_not_left_out_of_the_pooled_gain_in_silence() -> None:
    both = {"original": {"a": [10.0, 12], "b": [5.0, 6]}, "cleaned": {"a": [9.0, 10], "b": [4.0, 5]}}
    lines, jobs = lines_of(both)
    assert one(gains(lines, jobs, FD), "cleaned", None).gain is not None
    left = [x for x in lines if x["trainer"] == "a"]
    pooled = one(gains(left, jobs, FD), "cleaned", None)
    assert pooled.gain is None and (pooled.pairs, pooled.planned, pooled.verdict) == (2, 4, NOT_SHOWN)
    assert {"cleaned-b-s0", "original-b-s1"} < set(pooled.missing)


def test_kernel_distances_below_zero_have_no_ratio() -> None:
    lines, jobs = lines_of({"original": {"a": [0.1, 0.2, 0.1]}, "cleaned": {"a": [-0.01, 0.1, 0.0]}})
    found = one(gains(lines, jobs, FD), "cleaned")
    half = 4.302652729749464 * np.std([0.11, 0.1, 0.1], ddof=1) / math.sqrt(3)
    assert not found.shares and found.verdict == GAIN
    assert found.gain == Estimate(*map(pytest.approx, (0.31 / 3, 0.31 / 3 - half, 0.31 / 3 + half)))


# ---- Pooling, chance, recovery


def test_pooling_weighs_trainers_alike_and_by_ratios() -> None:
    values = {"original": {"a": [100.0] * 4, "b": [1.0] * 2}, "cleaned": {"a": [50.0] * 4, "b": [0.5] * 2}}
    lines, jobs = lines_of(values)
    pooled = one(gains(lines, jobs, FD), "cleaned", None)
    assert pooled.gain == Estimate(pytest.approx(0.5), pytest.approx(0.5), pytest.approx(0.5))
    assert pooled.pairs == 6 and pooled.verdict == GAIN
    a, b = np.array([1.0, 2, 3]), np.array([10.0, 12])
    estimate = pooled_interval([a, b])
    variance = (1 / 3 + 2 / 2) / 4  # variances 1 of three, 2 of two
    degrees = (4 * variance) ** 2 / ((1 / 3) ** 2 / 2 + 1)
    half = 5.1657 * math.sqrt(variance)  # t of 1.684 degrees
    assert degrees == pytest.approx(1.6842, abs=1e-4)
    assert estimate.value == 6.5 and estimate.high == pytest.approx(6.5 + half, rel=2e-2)


def test_what_the_null_arm_does_too_is_no_gain() -> None:
    quiet = {"original": {"a": [10, 10.5, 11]}, "cleaned": {"a": [9, 9.4, 9.95]}}
    lines, jobs = lines_of(quiet | {"null": {"a": [10.05, 10.4, 11.02]}})
    assert one(gains(lines, jobs, FD), "cleaned").verdict == GAIN
    lines, jobs = lines_of(quiet | {"null": {"a": [12, 8, 12.5]}})
    found = one(gains(lines, jobs, FD), "cleaned")
    assert found.verdict == CHANCE and found.gain is not None and found.chance is not None
    assert found.chance > found.gain.value
    assert one(gains(lines, jobs, FD), "null").chance is None, "it is not judged by itself"


def test_chance_of_a_known_spread() -> None:
    nulls = np.array([1.0, -1, 1, -1])
    assert chance_of_null([nulls], [4]) == pytest.approx(2.7764451 / 2)  # t of 4 degrees, root mean square 1
    assert chance_of_null([], []) is None


def test_recovery_is_the_share_of_what_pristine_data_gain() -> None:
    values = {"original": {"a": [20, 21, 22]}, "cleaned": {"a": [14.0, 15, 16.1]}, "pristine": {"a": [10.0, 11, 11.9]}}
    lines, jobs = lines_of(values)
    found = gains(lines, jobs, FD)
    recovery = one(found, "cleaned").recovery
    assert recovery is not None and recovery.value == pytest.approx(17.9 / 30.1) and recovery.why is None
    assert recovery.low is not None and recovery.high is not None and recovery.low < 17.9 / 30.1 < recovery.high
    assert one(found, "pristine").recovery is None
    assert data_recovery({"original": 20, "cleaned": 15, "pristine": 10}, "cleaned") == 0.5
    assert data_recovery({"original": 20, "cleaned": 15}, "cleaned") is None


def test_fieller_solves_its_own_equation_and_says_when_it_cannot() -> None:
    x, y = np.array([3.0, 4.2, 3.6, 4.4]), np.array([8.0, 9.1, 7.9, 9.9])
    found = recovery_of(x, y)
    for end in (found.low, found.high):
        assert end is not None
        z = x - end * y  # at each end its mean is just the t quantile of 3 degrees from zero
        assert abs(z.mean()) / (z.std(ddof=1) / 2) == pytest.approx(3.18244630, rel=1e-6)
    exact = recovery_of(y / 2, y)
    assert (exact.value, exact.low, exact.high) == pytest.approx((0.5, 0.5, 0.5))
    assert "not shown" in str(recovery_of(x, np.array([-3.0, 9, -4, 8])).why)
    assert recovery_of(x, -y).value is None
    # Where the set has no ends it still leaves out what the differences rule out: at its borders they just do.
    unsure = np.array([1.0, 9, 4, 16])
    ruled_out = recovery_of(unsure * 0.5 + x, unsure).ruled_out
    assert ruled_out is not None and ruled_out[0] < 0 < 0.5 < ruled_out[1]
    for border in ruled_out:
        z = unsure * 0.5 + x - border * unsure
        assert abs(z.mean()) / (z.std(ddof=1) / 2) == pytest.approx(3.18244630, rel=1e-6)
    assert recovery_of(np.array([-3.0, 4, -1, 2]), unsure).ruled_out is None
    assert recovery_of(x[:1], y[:1]).why == "a single pair has no interval"


# ---- Coverage, by simulation


def trials(count: int, pairs: int, effect: float, seed: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Figures of original, arm and pristine: pairs share half of their variance."""
    draw = np.random.default_rng(seed)
    for _ in range(count):
        shared = draw.normal(0, 1, pairs)
        own = draw.normal(0, 1, (3, pairs))
        yield tuple(base + shared + own[i] for i, base in enumerate((40.0, 40.0 - effect, 30.0)))


def test_without_an_effect_no_gain_is_shown_19_times_of_20() -> None:
    verdicts = []
    for original, arm, _ in trials(1500, 5, 0.0, seed=1):
        lines, jobs = lines_of({"original": {"a": original.tolist()}, "cleaned": {"a": arm.tolist()}})
        verdicts.append(one(gains(lines, jobs, FD), "cleaned").verdict)
    assert np.mean([v == NOT_SHOWN for v in verdicts]) == pytest.approx(0.95, abs=0.018)  # three standard errors


@pytest.mark.parametrize("spreads", [(1.0,), (1.0, 1.0), (1.0, 5.0), (0.02, 0.2)])
def test_a_null_arm_s_spread_is_rarely_exceeded_by_chance(spreads: tuple[float, ...]) -> None:
    draw, beyond = np.random.default_rng(4), []
    for _ in range(4000):
        nulls, gained = ([draw.normal(0, spread, 3) for spread in spreads] for _ in range(2))
        chance = chance_of_null(nulls, [3] * len(spreads))
        assert chance is not None
        beyond.append(abs(np.mean([g.mean() for g in gained])) > chance)
    assert np.mean(beyond) == pytest.approx(0.05, abs=0.018)


@pytest.mark.parametrize("pairs", [3, 5])
def test_intervals_cover_the_truth_19_times_of_20(pairs: int) -> None:
    covered, recovered, bounded = [], [], 0
    for original, arm, pristine in trials(2000, pairs, 6.0, seed=2):
        estimate = pooled_interval([original - arm])
        assert estimate.low is not None and estimate.high is not None
        covered.append(estimate.low <= 6 <= estimate.high)
        recovery = recovery_of(original - arm, original - pristine)
        bounded += recovery.low is not None
        # An unbounded set holds the truth, or is at least no claim.
        recovered.append(recovery.low is None or recovery.high is None or recovery.low <= 0.6 <= recovery.high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)
    assert np.mean(recovered) == pytest.approx(0.95, abs=0.015) and bounded > 1900


def test_the_pooled_interval_covers_the_mean_of_unequal_trainers() -> None:
    draw, covered = np.random.default_rng(3), []
    for _ in range(2000):
        found = pooled_interval([draw.normal(1, 1, 3), draw.normal(5, 4, 5)])
        assert found.low is not None and found.high is not None
        covered.append(found.low <= 3 <= found.high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.018)


def test_the_bootstrap_is_deterministic_and_near_the_t_interval_for_many_pairs() -> None:
    d = np.random.default_rng(0).normal(3, 1, 60)
    found, t = bootstrap_interval([d]), pooled_interval([d])
    assert found == bootstrap_interval([d]) and found is not None and DRAWS >= 1000
    assert found == (pytest.approx(t.low, abs=0.05), pytest.approx(t.high, abs=0.05))
    assert bootstrap_interval([d[:4]]) is None


# ---- Curves


def test_curves_have_every_snapshot_and_the_seeds_range() -> None:
    jobs = plan({"original": 0, "cleaned": 0}, ("a",), 2)
    lines = [line(j, 10.0 + j.pair + 1000 / n, nimg=n) for j in jobs for n in (500, 1000)]
    lines = [x for x in lines if (x["job"], x["nimg"]) != ("cleaned-a-s1", 1000)]
    original, cleaned = curves(lines, jobs, FD)
    assert [(p.nimg, p.mean, p.low, p.high, p.seeds) for p in original.points] == [
        (500, 12.5, 12, 13, 2),
        (1000, 11.5, 11, 12, 2),
    ]
    assert cleaned.points[-1].seeds == 1 and cleaned.arm == "cleaned"
    assert curves([], jobs, FD) == []
