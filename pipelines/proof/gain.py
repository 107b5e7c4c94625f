"""What an arm gained over the original: differences between paired trainings, with intervals, verdicts and recovery.

Which snapshot: the last one that was declared. The best one by a test reference would be the luckiest one, and of an
arm with more snapshots luckier still. All intervals are of 95 %, each of one comparison alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipelines.proof.intervals import (
    Estimate,
    Numbers,
    Recovery,
    bootstrap_interval,
    chance_of_null,
    mean_interval,
    pooled_interval,
    recovery_of,
)

if TYPE_CHECKING:
    from pipelines.proof.plan import Job

#: A line of metrics.jsonl.
Line = Mapping[str, Any]

#: Of these more is better; of distances less is.
MORE_IS_BETTER: Final = frozenset({"precision", "recall", "density", "coverage"})

GAIN: Final = "gain"
LOSS: Final = "loss"
NOT_SHOWN: Final = "no gain shown"
NOT_MEASURED: Final = "not measured"
CHANCE: Final = "not more than chance"


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure of one detector against one reference: lines of another are never compared with it."""

    detector: str
    figure: str
    reference: str

    @property
    def more_is_better(self) -> bool:
        return self.figure in MORE_IS_BETTER


@dataclass(frozen=True, slots=True)
class Gain:
    """An arm against the original, or against another arm.

    Attributes:
        over: the arm that it is compared with.
        trainer: None: all of them pooled, in ``relative`` alone, for their distances have no common unit.
        pairs: that both arms have, over all trainers.
        base, value: means of ``over`` and of the arm over these pairs.
        gain: mean difference, positive where the arm is better.
        relative: by how much the figure fell (or rose, where more is better), as a share of the other's: from the
            mean of the logarithms. None where a figure is not above zero.
        bootstrap: percentile interval of ``gain``, or of ``relative`` where pooled; from ``LEAST_BOOTSTRAP`` pairs on.
            With few pairs it is too narrow: the verdict goes by the t interval.
        chance: a gain of so many pairs is within plus and minus this in 95 % of all cases where nothing but seeds
            differs, as the null arm tells; in the unit that ``bootstrap`` is in.
        recovery: of what pristine data gain over the original.
        missing: jobs without this figure: their pairs are left out.
    """

    arm: str
    over: str
    trainer: str | None
    pairs: int
    base: float | None
    value: float | None
    gain: Estimate | None
    relative: Estimate | None
    bootstrap: tuple[float, float] | None
    chance: float | None
    recovery: Recovery | None
    verdict: str
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """A figure after so many images: mean, lowest and highest over the seeds that are there."""

    nimg: int
    mean: float
    low: float
    high: float
    seeds: int


@dataclass(frozen=True, slots=True)
class Curve:
    """A figure against the images trained on."""

    arm: str
    trainer: str
    points: tuple[Point, ...]


def verdict_of(estimate: Estimate, chance: float | None) -> str:
    """In words. ``CHANCE``: the interval excludes zero, but seeds alone do as much, by the null arm."""
    if estimate.low is None or estimate.high is None or estimate.low <= 0 <= estimate.high:
        return NOT_SHOWN
    if chance is not None and abs(estimate.value) <= chance:
        return CHANCE
    return GAIN if estimate.value > 0 else LOSS


# ---- From the lines of metrics.jsonl


def gains(lines: Iterable[Line], planned: Iterable[Job], measure: Measure, over: str = "original") -> list[Gain]:
    """Every other arm's gain over one: for each trainer in the plan's order, then pooled if there are several.

    Args:
        lines: of metrics.jsonl; of several of one snapshot the last one counts.
        planned: all jobs of the proof.
        measure: which figure.
        over: the arm that the others are compared with.
    """
    jobs = list(planned)
    last = _last_figures(lines, jobs, measure)
    trainers, arms = list(dict.fromkeys(j.trainer for j in jobs)), list(dict.fromkeys(j.arm for j in jobs))
    found: list[Gain] = []
    for arm in arms:
        if arm == over:
            continue
        trained = [t for t in trainers if any(j.arm == arm and j.trainer == t for j in jobs)]
        each = [_gain_of(arm, over, trainer, jobs, last, measure) for trainer in trained]
        found += each
        if len(trained) > 1:
            found.append(_pooled(arm, over, each, last, measure))
    order = {trainer: i for i, trainer in enumerate(trainers)}
    return sorted(found, key=lambda g: order.get(g.trainer or "", len(order)))


def curves(lines: Iterable[Line], planned: Iterable[Job], measure: Measure) -> list[Curve]:
    """The figure at every snapshot, of each arm and trainer that has one, in the plan's order."""
    jobs = {job.name: job for job in planned}
    values: dict[tuple[str, str], dict[int, list[float]]] = {(j.arm, j.trainer): {} for j in jobs.values()}
    for (name, nimg), value in _figures(lines, measure).items():
        if name in jobs:
            values[jobs[name].arm, jobs[name].trainer].setdefault(nimg, []).append(value)
    return [
        Curve(arm, trainer, tuple(Point(n, float(np.mean(v)), min(v), max(v), len(v)) for n, v in sorted(by.items())))
        for (arm, trainer), by in values.items()
        if by
    ]


def data_recovery(own: Mapping[str, float], arm: str) -> float | None:
    """How much of the way to the pristine data set the arm's own data set is, by distances; None where unknown."""
    if not {"original", "pristine", arm} <= own.keys() or own["original"] <= own["pristine"]:
        return None
    return (own["original"] - own[arm]) / (own["original"] - own["pristine"])


def _figures(lines: Iterable[Line], measure: Measure) -> dict[tuple[str, int], float]:
    """(job, nimg) => figure."""
    found = {}
    for line in lines:
        if (line["detector"], line["reference"]) == (measure.detector, measure.reference):
            value = line["figures"].get(measure.figure)
            if value is not None:
                found[str(line["job"]), int(line["nimg"])] = float(value)
    return found


#: (arm, trainer) => pair => figure of its last snapshot.
_Last = dict[tuple[str, str], dict[int, float]]


def _last_figures(lines: Iterable[Line], jobs: Sequence[Job], measure: Measure) -> _Last:
    """Of jobs that have trained for as long as was declared: a step may go a little beyond it."""
    by_job: dict[str, dict[int, float]] = defaultdict(dict)
    for (name, nimg), value in _figures(lines, measure).items():
        by_job[name][nimg] = value
    last: _Last = defaultdict(dict)
    for job in jobs:
        reached = [nimg for nimg in by_job[job.name] if nimg >= job.nimg]
        if reached:
            last[job.arm, job.trainer][job.pair] = by_job[job.name][max(reached)]
    return last


def _gain_of(arm: str, over: str, trainer: str, jobs: Sequence[Job], last: _Last, measure: Measure) -> Gain:
    of_base, of_arm = last.get((over, trainer), {}), last.get((arm, trainer), {})
    wanted = [j for j in jobs if j.trainer == trainer and j.arm in (over, arm)]
    missing = tuple(j.name for j in wanted if j.pair not in last.get((j.arm, trainer), {}))
    pairs = sorted(of_base.keys() & of_arm.keys())
    if not pairs:
        return Gain(arm, over, trainer, 0, None, None, None, None, None, None, None, NOT_MEASURED, missing)
    d = _differences(last, arm, over, trainer, measure, pairs)
    logs = _log_ratios(last, arm, over, trainer, measure)
    nulls = _differences(last, "null", "original", trainer, measure)
    chance = None if arm == "null" else chance_of_null([nulls] if len(nulls) else [], [len(pairs)])
    estimate = mean_interval(d)
    return Gain(
        arm=arm,
        over=over,
        trainer=trainer,
        pairs=len(pairs),
        base=float(np.mean([of_base[p] for p in pairs])),
        value=float(np.mean([of_arm[p] for p in pairs])),
        gain=estimate,
        relative=None if logs is None else _as_shares(mean_interval(logs), measure),
        bootstrap=bootstrap_interval([d]),
        chance=chance,
        recovery=_recovery(arm, trainer, last, measure) if over == "original" else None,
        verdict=verdict_of(estimate, chance),
        missing=missing,
    )


def _pooled(arm: str, over: str, each: Sequence[Gain], last: _Last, measure: Measure) -> Gain:
    """Over trainers, as ratios. A trainer without a pair makes it impossible: the rest would be another question."""
    missing = tuple(name for gain in each for name in gain.missing)
    pairs = sum(gain.pairs for gain in each)
    trainers = [str(gain.trainer) for gain in each]
    logs = [logs for t in trainers if (logs := _log_ratios(last, arm, over, t, measure)) is not None and len(logs)]
    if len(logs) < len(each):
        verdict = NOT_SHOWN if pairs else NOT_MEASURED
        return Gain(arm, over, None, pairs, None, None, None, None, None, None, None, verdict, missing)
    nulls = [n for t in trainers if (n := _log_ratios(last, "null", "original", t, measure)) is not None and len(n)]
    chance = None
    if arm != "null" and len(nulls) == len(logs):
        chance = chance_of_null(nulls, [len(group) for group in logs])
    estimate, spread = pooled_interval(logs), bootstrap_interval(logs)
    shares = None if spread is None else (_as_share(spread[0], measure), _as_share(spread[1], measure))
    return Gain(
        arm=arm,
        over=over,
        trainer=None,
        pairs=pairs,
        base=None,
        value=None,
        gain=None,
        relative=_as_shares(estimate, measure),
        bootstrap=shares,
        chance=None if chance is None else _as_share(chance, measure),
        recovery=None,
        verdict=verdict_of(estimate, chance),
        missing=missing,
    )


def _differences(
    last: _Last, arm: str, over: str, trainer: str, measure: Measure, pairs: Sequence[int] | None = None
) -> Numbers:
    """Gains of the pairs that both arms have, positive where ``arm`` is better."""
    of_base, of_arm = last.get((over, trainer), {}), last.get((arm, trainer), {})
    pairs = sorted(of_base.keys() & of_arm.keys()) if pairs is None else pairs
    sign = -1 if measure.more_is_better else 1
    return np.array([sign * (of_base[p] - of_arm[p]) for p in pairs], np.float64)


def _log_ratios(last: _Last, arm: str, over: str, trainer: str, measure: Measure) -> Numbers | None:
    """The same of logarithms; None where a figure has none (kernel distances may be negative)."""
    of_base, of_arm = last.get((over, trainer), {}), last.get((arm, trainer), {})
    pairs = sorted(of_base.keys() & of_arm.keys())
    if any(of_base[p] <= 0 or of_arm[p] <= 0 for p in pairs):
        return None
    sign = -1 if measure.more_is_better else 1
    return np.array([sign * math.log(of_base[p] / of_arm[p]) for p in pairs], np.float64)


def _recovery(arm: str, trainer: str, last: _Last, measure: Measure) -> Recovery | None:
    """Over the pairs that original, arm and pristine have; None where no truth is known, or for the two ends."""
    shared = [last.get((name, trainer), {}).keys() for name in ("original", arm, "pristine")]
    pairs = sorted(set.intersection(*map(set, shared)))
    if arm == "pristine" or not pairs:
        return None
    of_arm, of_pristine = (_differences(last, name, "original", trainer, measure, pairs) for name in (arm, "pristine"))
    return recovery_of(of_arm, of_pristine)


def _as_share(log_ratio: float, measure: Measure) -> float:
    """What a log ratio means: the share of the original's figure that is gone, or that came on top."""
    return math.expm1(log_ratio) if measure.more_is_better else -math.expm1(-log_ratio)


def _as_shares(estimate: Estimate, measure: Measure) -> Estimate:
    low, high = (None if v is None else _as_share(v, measure) for v in (estimate.low, estimate.high))
    return Estimate(_as_share(estimate.value, measure), low, high)
