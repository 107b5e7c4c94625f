"""What an arm gained over the original: differences between paired trainings, with intervals, verdicts and recovery.

Which snapshot: the last one that was declared. The best one by a test reference would be the luckiest one, and of an
arm with more snapshots luckier still. All intervals are of 95 %, each of one comparison alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipelines.proof.intervals import (
    Estimate,
    Numbers,
    Recovery,
    bootstrap_interval,
    chance_of_null,
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
        trainer: None: all of them pooled, each as heavy.
        pairs, planned: that both arms have, and that were declared, over all trainers.
        base, value: means of ``over`` and of the arm over these pairs, of a single trainer.
        gain: by how much the figure fell (or rose, where more is better): positive where the arm is better. The verdict
            goes by this interval.
        shares: whether ``gain``, ``bootstrap`` and ``chance`` are shares of the other's figure, from the mean of the
            logarithms. Distances spread as shares do, and those of trainers have no other common unit. False where a
            figure is not above zero, as kernel distances may be: then they are mean differences.
        bootstrap: percentile interval of ``gain``, from ``LEAST_BOOTSTRAP`` pairs on. With few pairs it is too narrow:
            the verdict goes by the t interval.
        chance: a gain of so many pairs is within plus and minus this in 95 % of all cases where nothing but seeds
            differs, as the null arm tells.
        recovery: of what pristine data gain over the original, both as differences.
        missing: jobs without this figure: their pairs are left out.
    """

    arm: str
    over: str
    trainer: str | None
    pairs: int
    planned: int
    base: float | None
    value: float | None
    gain: Estimate | None
    shares: bool
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
        found += [_gain_of(arm, over, [trainer], jobs, last, measure) for trainer in trained]
        if len(trained) > 1:
            found.append(_gain_of(arm, over, trained, jobs, last, measure))
    order = {trainer: i for i, trainer in enumerate(trainers)}
    return sorted(found, key=lambda g: order.get(g.trainer or "", len(order)))


def measured_to_the_end(lines: Iterable[Line], planned: Iterable[Job], measure: Measure) -> int:
    """Jobs of which there is the figure that a gain is made from."""
    return sum(map(len, _last_figures(lines, list(planned), measure).values()))


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


def _gain_of(arm: str, over: str, trainers: Sequence[str], jobs: Sequence[Job], last: _Last, measure: Measure) -> Gain:
    """With one trainer, or pooled over several: one without a pair makes that impossible, as the rest would be another
    question.
    """
    wanted = [j for j in jobs if j.trainer in trainers and j.arm in (over, arm)]
    missing = tuple(j.name for j in wanted if j.pair not in last.get((j.arm, j.trainer), {}))
    # One scale for all that is compared by this measure.
    shares = all(value > 0 for figures in last.values() for value in figures.values())
    groups = [_differences(last, arm, over, t, measure, logs=shares) for t in trainers]
    alone = trainers[0] if len(trainers) == 1 else None
    gain = Gain(
        arm=arm,
        over=over,
        trainer=alone,
        pairs=sum(map(len, groups)),
        planned=sum(j.arm == arm for j in wanted),
        base=_mean_of_pairs(last, over, arm, alone),
        value=_mean_of_pairs(last, arm, over, alone),
        gain=None,
        shares=shares,
        bootstrap=None,
        chance=None,
        recovery=_recovery(arm, alone, last, measure) if alone and over == "original" else None,
        verdict=NOT_SHOWN if any(map(len, groups)) else NOT_MEASURED,
        missing=missing,
    )
    if not all(map(len, groups)) or (alone is None and not shares):
        return gain
    estimate, spread = pooled_interval(groups), bootstrap_interval(groups)
    nulls = [_differences(last, "null", "original", t, measure, logs=shares) for t in trainers]
    chance = None if arm == "null" else chance_of_null(nulls, [len(group) for group in groups])
    verdict = verdict_of(estimate, chance)
    if shares:
        estimate, chance = _as_shares(estimate, measure), None if chance is None else _as_share(chance, measure)
        spread = None if spread is None else (_as_share(spread[0], measure), _as_share(spread[1], measure))
    return replace(gain, gain=estimate, bootstrap=spread, chance=chance, verdict=verdict)


def _pairs(last: _Last, one: str, other: str, trainer: str) -> list[int]:
    """That both arms have."""
    return sorted(last.get((one, trainer), {}).keys() & last.get((other, trainer), {}).keys())


def _mean_of_pairs(last: _Last, arm: str, other: str, trainer: str | None) -> float | None:
    """Of an arm, over the pairs that the other has too."""
    pairs = _pairs(last, arm, other, trainer) if trainer else ()
    return float(np.mean([last[arm, str(trainer)][p] for p in pairs])) if pairs else None


def _differences(
    last: _Last,
    arm: str,
    over: str,
    trainer: str,
    measure: Measure,
    pairs: Sequence[int] | None = None,
    *,
    logs: bool = False,
) -> Numbers:
    """Gains of the pairs that both arms have, positive where ``arm`` is better; of the logarithms if they are asked."""
    of_base, of_arm = last.get((over, trainer), {}), last.get((arm, trainer), {})
    pairs = _pairs(last, over, arm, trainer) if pairs is None else pairs
    sign = -1 if measure.more_is_better else 1
    base, value = (np.array([figures[p] for p in pairs], np.float64) for figures in (of_base, of_arm))
    return sign * (np.log(base / value) if logs else base - value)


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
