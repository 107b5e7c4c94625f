"""The report's proof: gains of each arm with their intervals, figures against images trained, and what was made."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from PIL import Image

from manifests import storage
from manifests.rundir import Run
from pipelines import page
from pipelines.gallery import Picture
from pipelines.histograms import round_ticks
from pipelines.proof import balance
from pipelines.proof.gain import GAIN, LOSS, Gain, Measure, curves, data_recovery, gains, measured_to_the_end
from pipelines.proof.metrics import DATA, read_metrics
from pipelines.proof.plan import ARMS, Job, Proof, grown, is_declared, jobs, read

#: In the order of the page: what is proved, its rival, what is to be won, and the controls.
ORDER: Final = ("cleaned", "combined", "filter", "weighted", "pristine", "placebo", "null")
WIDTH, HEIGHT = 420.0, 190.0  # of a plotting area, SVG user units
#: Images of a picture of samples, and the resolution up to which they are shown without loss.
ACROSS, DOWN, LOSSLESS = 8, 4, 32
#: Figures of the second table, beside the Frechet distance of each detector and reference.
_OTHERS: Final = ("precision", "recall", "density", "coverage")

Lines = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Series:
    """One arm in a plot: paths of its line and of the band between its lowest and highest seed, and its points."""

    arm: str
    line: str
    band: str
    points: list[dict[str, Any]]  # x, y, and what the point says


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure against the images that were trained on, an arm a line."""

    trainer: str
    figure: str
    series: list[Series]
    x_ticks: list[tuple[float, str]]  # position, label
    y_ticks: list[tuple[float, str]]


@dataclass(frozen=True, slots=True)
class Grid:
    """What one snapshot, or an arm's own data, looks like."""

    title: str
    arm: str
    picture: Picture


def proof_figures(run: Run) -> dict[str, Any] | None:
    """All figures of the section; None of a run that proves nothing."""
    if storage.is_remote(run.root) or not is_declared(run):
        return None
    proof, lines = read(run), read_metrics(run)
    planned = list(jobs(proof))
    measures = _measures(lines, proof)
    figures: dict[str, Any] = {
        "arms": {arm: ARMS[arm] for arm in proof.arms},
        "trainers": list(proof.trainers),
        "grown": [_added(step) for step in grown(run) if step["measured"]],
        "seeds": {trainer: proof.seeds_of(trainer) for trainer in proof.trainers},
        "samples": proof.samples,
        "reference": proof.reference,
        "jobs": len(planned),
        "scored": measured_to_the_end(lines, planned, measures[0]) if measures else 0,
        "headline": None,
        "said": [],
        "over_filter": {"said": [], "gains": []},
        "gains": [],
        "others": [],
        "data": [],
        "curves": [],
        "balance": balance.said(found) if (found := _read(run, "balance.json")) else None,
        "influence": _read(run, "influence.json"),
    }
    if not measures:
        return figures
    headline = measures[0]
    headline_gains = _in_order(gains(lines, planned, headline))
    over_filter = [
        gain
        for gain in gains(lines, planned, headline, over=balance.DROPPING)
        if gain.arm == balance.RESTORING and gain.pairs
    ]
    drawn = curves(lines, planned, headline)
    return figures | {
        "headline": asdict(headline),
        "said": [said(gain, headline) for gain in _worth_saying(headline_gains)],
        "over_filter": {
            "said": [said(gain, headline) for gain in over_filter],
            "gains": [asdict(gain) for gain in over_filter],
        },
        "gains": [asdict(gain) for gain in headline_gains],
        "others": [_other(lines, planned, measure) for measure in measures[1:]],
        "data": _own_data(lines, headline, [m for m in measures[1:] if m.figure == headline.figure]),
        "curves": [asdict(curve) for curve in drawn],
    }


def _read(run: Run, name: str) -> dict[str, Any] | None:
    url = run.url(name)
    return storage.read_json(url) if storage.exists(url) else None


def _added(step: Mapping[str, Any]) -> str:
    """What was added to a declaration after looking, as a sentence."""
    parts = []
    if step["seeds"]:
        had = (f"{trainer} had {page.number(count)}" for trainer, count in step["seeds"].items())
        parts.append(f"seeds ({', '.join(had)})")
    if arms := step.get("arms"):  # older ones know of seeds alone
        parts.append(f"{'arm' if len(arms) == 1 else 'arms'} {', '.join(arms)}")
    added = " and ".join(parts)
    return f"Added after figures of {page.number(step['measured'])} jobs had been measured: {added}."


def said(gain: Gain, measure: Measure) -> str:
    """A gain as a sentence."""
    of = f"of {gain.trainer}" if gain.trainer else "over all trainers"
    over = "the original" if gain.over == "original" else f"the {gain.over} arm"
    what = f"Trained on the {gain.arm} arm instead of {over}, {measure.figure} {of}"
    if gain.gain is None or not gain.shares:
        why = f"{len(gain.missing)} jobs are missing" if gain.missing else "figures have no ratio"
        return f"{what}: {gain.verdict} ({why})."
    sign = 1 if measure.more_is_better else -1
    text = f"{what} changed by {page.number(sign * 100 * gain.gain.value, 1)} %"
    if gain.gain.low is None or gain.gain.high is None:
        return f"{text}; a single pair has no interval: {gain.verdict}."
    ends = sorted(sign * 100 * v for v in (gain.gain.low, gain.gain.high))
    interval = f"95 % interval {page.number(ends[0], 1)} to {page.number(ends[1], 1)}"
    pairs = f"{gain.pairs} of {gain.planned} pairs" if gain.pairs < gain.planned else f"{gain.pairs} pairs"
    alone = gain.arm != "null" and gain.chance is None and gain.verdict in (GAIN, LOSS)
    weighed = ", not weighed against what seeds alone do: there is no null arm" if alone else ""
    return f"{text} ({interval}; {pairs}): {gain.verdict}{weighed}."


def scale(found: Mapping[str, Any] | None) -> float:
    """The largest share that an interval of the table reaches, for its whiskers.

    At most 1, so that an interval of two pairs does not make points of all others.
    """
    changes = [g["gain"] for g in (found["gains"] if found else ()) if g["shares"] and g["gain"] is not None]
    return min(1.0, max([0.01, *(abs(float(v)) for c in changes for v in c.values() if v is not None)]))


def plots(found: Mapping[str, Any] | None) -> list[Plot]:
    """A plot for each trainer, of the curves among the figures."""
    if not found or not found["headline"]:
        return []
    return [
        _plot(trainer, found["headline"]["figure"], [c for c in found["curves"] if c["trainer"] == trainer])
        for trainer in found["trainers"]
        if any(c["trainer"] == trainer for c in found["curves"])
    ]


def grids(run: Run, found: Mapping[str, Any] | None, budget: int) -> list[list[Grid]]:
    """Pictures in rows: the arms' own data, then what each trainer's first pair makes; as far as ``budget`` bytes go.

    All arms of a pair are sampled with the same noise, so that the same place shows the same draw.
    """
    if not found:
        return []
    folder = Path(storage.local_path(run.root)) / "jobs"
    arms = ["original", *(arm for arm in ORDER if arm in found["arms"])]
    rows: list[list[tuple[str, str, Path]]] = []
    for side in sorted({row["resolution"] for row in found["data"]}):
        rows.append([(f"{arm}, {side} px", arm, folder / "images" / f"{arm}-{DATA}-{side}.png") for arm in arms])
    for trainer in found["trainers"]:
        row = []
        for arm in arms:
            there = sorted((folder / f"{arm}-{trainer}-s0").glob("samples-*.png"))
            if there:
                nimg = int(there[-1].stem.removeprefix("samples-"))
                row.append((f"{arm}, {trainer} after {_short(nimg)} images", arm, there[-1]))
        rows.append(row)
    shown = []
    for row in rows:
        pictures = [Grid(title, arm, _picture(path)) for title, arm, path in row if path.exists()]
        budget -= sum(len(g.picture.uri) for g in pictures)
        if budget < 0:
            break
        if pictures:
            shown.append(pictures)
    return shown


# ---- Figures


def _measures(lines: Lines, proof: Proof) -> list[Measure]:
    """The headline first: Inception's distance where it was measured, else the first detector's; to the reference that
    was declared. Then the other references and detectors, then figures of other kinds.
    """
    named = {line["detector"]: line["frechet"] for line in lines}
    detectors = sorted(named, key=lambda name: named[name] != "FID")  # stable: as they were declared
    references = dict.fromkeys([proof.reference, *(line["reference"] for line in lines)])
    there = {(line["detector"], line["reference"]) for line in lines}
    distances = [Measure(d, named[d], r) for d in detectors for r in references if (d, r) in there]
    to_the_headline = [m for m in distances if m.reference == proof.reference]
    figures = list(dict.fromkeys(f for line in lines for f in line["figures"]))
    others = [
        Measure(m.detector, figure, m.reference)
        for m in to_the_headline
        for figure in (
            f"{m.figure}_infinity",
            f"crop-{m.figure}",
            m.figure.replace("FID", "KID").replace("FD", "KD"),
            *_OTHERS,
        )
        if figure in figures
    ]
    return [*distances, *others] if to_the_headline else []


def _in_order(found: Iterable[Gain]) -> list[Gain]:
    """By arm, as ``ORDER`` has them; trainers stay in the plan's order, the pooled gain last."""
    return sorted(found, key=lambda gain: ORDER.index(gain.arm))


def _worth_saying(found: Sequence[Gain]) -> list[Gain]:
    """Of what is proved, over all trainers, or over the only one; not where nothing is there yet."""
    several = any(gain.trainer is None for gain in found)
    return [g for g in found if g.arm in ("cleaned", "combined") and g.pairs and (g.trainer is None or not several)]


def _other(lines: Lines, planned: Sequence[Job], measure: Measure) -> dict[str, Any]:
    """One further measure, a line: the gain of each arm and trainer."""
    found = _in_order(gains(lines, planned, measure))
    return asdict(measure) | {"gains": [asdict(gain) for gain in found if gain.trainer is not None and gain.pairs]}


def _own_data(lines: Lines, headline: Measure, others: Sequence[Measure]) -> list[dict[str, Any]]:
    """The arms' own data, by their distances: no training."""
    own: dict[tuple[int, str], Lines] = {}
    for line in lines:
        if line["trainer"] == DATA and line["detector"] == headline.detector:
            own.setdefault((line["resolution"], line["arm"]), []).append(line)
    return [
        _data_row(own, side, arm, headline, others)
        for side in sorted({side for side, _ in own})
        for arm in ("original", *ORDER)
        if (side, arm) in own
    ]


def _data_row(
    own: Mapping[tuple[int, str], Lines], side: int, arm: str, headline: Measure, others: Sequence[Measure]
) -> dict[str, Any]:
    def to(name: str, reference: str) -> dict[str, Any]:
        """The figures of an arm's data to a reference; none where they were not measured yet."""
        return next((x["figures"] for x in own[side, name] if x["reference"] == reference), {})

    distances = {
        name: float(figures[headline.figure])
        for at, name in own
        if at == side and headline.figure in (figures := to(name, headline.reference))
    }
    known = to(arm, headline.reference)
    return {
        "arm": arm,
        "resolution": side,
        "samples": own[side, arm][0]["samples"],
        "distance": distances.get(arm),
        "recovery": None if arm in ("original", "pristine") else data_recovery(distances, arm),
        "to_others": {
            m.reference: to(arm, m.reference).get(m.figure) for m in others if m.detector == headline.detector
        },
        **{name: known.get(name) for name in _OTHERS},
    }


# ---- Drawing


def _plot(trainer: str, figure: str, found: Sequence[Mapping[str, Any]]) -> Plot:
    points = [point for curve in found for point in curve["points"]]
    x_ticks = round_ticks(0.0, float(max(point["nimg"] for point in points)))
    y_ticks = round_ticks(min(point["low"] for point in points), max(point["high"] for point in points))

    def x(nimg: float) -> float:
        return round(WIDTH * nimg / x_ticks[-1], 2)

    def y(value: float) -> float:
        return round(HEIGHT * (1 - (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])), 2)

    def path(corners: Iterable[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{a} {b}" for a, b in corners)

    series = []
    for curve in sorted(found, key=lambda c: ("original", *ORDER).index(c["arm"])):
        along = curve["points"]
        upper = [(x(p["nimg"]), y(p["high"])) for p in along]
        lower = [(x(p["nimg"]), y(p["low"])) for p in reversed(along)]
        told: list[dict[str, Any]] = [
            {
                "x": x(p["nimg"]),
                "y": y(p["mean"]),
                "low": y(p["low"]),
                "high": y(p["high"]),
                "says": f"{curve['arm']}, {p['nimg']:,} images: {page.number(p['mean'])} "
                f"({page.number(p['low'])} to {page.number(p['high'])}, {p['seeds']} seeds)",
            }
            for p in along
        ]
        line = path((t["x"], t["y"]) for t in told)
        series.append(Series(curve["arm"], line, path([*upper, *lower]) + "Z", told))
    digits = max(0, -_exponent(y_ticks[1] - y_ticks[0]))
    return Plot(
        trainer,
        figure,
        series,
        [(x(tick), _short(tick)) for tick in x_ticks],
        [(y(tick), f"{tick:,.{digits}f}") for tick in y_ticks],
    )


def _exponent(step: float) -> int:
    from math import floor, log10

    return floor(log10(step) + 1e-9)


def _short(images: float) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if images >= size:
            return f"{images / size:g}{unit}" if images % (size / 100) == 0 else f"{images / size:.1f}{unit}"
    return f"{images:g}"


def _picture(path: Path) -> Picture:
    """The first rows of a grid of 8 x 8, as a data URI."""
    with Image.open(path) as opened:
        side = opened.width // ACROSS
        image = opened.convert("RGB").crop((0, 0, opened.width, min(opened.height, DOWN * side)))
    out = io.BytesIO()
    if side <= LOSSLESS:
        image.save(out, "WEBP", lossless=True)
        kind = "webp"
    else:
        image.thumbnail((64 * ACROSS, 64 * DOWN), Image.Resampling.LANCZOS)
        image.save(out, "JPEG", quality=90, subsampling=0)
        kind = "jpeg"
    return Picture(f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}", image.width, image.height)
