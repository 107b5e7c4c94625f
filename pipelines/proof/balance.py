"""Restore or drop? The arms ``combined`` and ``filter`` as training sets, each with all of its images; no training.

A Frechet distance of N images is about a + c / N. Dropping leaves fewer images and no damage, restoring more images and
what is left of the damage: so restoring is ahead in small sets and dropping in large ones, and there is a size between
at which they are even. Where restoring leaves no damage there is no such size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from manifests import rundir, storage
from manifests.rundir import Run
from pipelines.config import Resources
from pipelines.detectors import Features, OpenDetector
from pipelines.metrics.extrapolation import slope
from pipelines.metrics.frechet import Statistics
from pipelines.metrics.influence_function import distance_and_influence
from pipelines.proof.intervals import Estimate, delta_interval
from pipelines.proof.plan import ArmName, Proof

RESTORING: Final[ArmName] = "combined"
DROPPING: Final[ArmName] = "filter"
FILE: Final = "balance.json"
#: Of the file; another one makes it be made anew.
VERSION: Final = 2
#: Images that an arm has to be left with: its slope is that of its halves.
LEAST: Final = 4


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two: how many images it leaves, and their distance."""

    images: int
    distance: float


@dataclass(frozen=True, slots=True)
class Even:
    """Between which sizes both are the same, in images before either.

    Attributes:
        low: None where restoring is ahead at any size.
        high: None where the sizes have no end: it may be that restoring is ahead at any.
    """

    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Balance:
    """Restoring against dropping.

    Attributes:
        images: of the set before either.
        ahead: distance when dropping less that when restoring; above zero restoring is ahead.
        even: sizes of sets that are as dirty as this one, from the two ends of ``ahead``; None where it has no
            interval, or where fewer images cost dropping nothing, as where both leave as many.
    """

    images: int
    restoring: Side
    dropping: Side
    ahead: Estimate
    even: Even | None


def weigh(
    restoring: Features,
    dropping: Features,
    keys: tuple[Sequence[str], Sequence[str]],
    images: int,
    reference: Statistics,
) -> Balance:
    """Compare two training sets by their distances to a reference, each with as many images as it has.

    The interval is of 95 %, by the delta method: what an image does to both distances counts once. It is unknown where
    a set has fewer images than two for each feature.

    Args:
        restoring, dropping: features, N x D each.
        keys: of the images of both, in their order.
        images: of the set that both come from.
    """
    with_all, of_restoring = distance_and_influence(restoring, reference)
    with_fewer, of_dropping = distance_and_influence(dropping, reference)
    both = None
    if of_restoring is not None and of_dropping is not None:
        place = {key: i for i, key in enumerate(dict.fromkeys([*keys[0], *keys[1]]))}
        both = np.zeros(len(place))
        both[[place[key] for key in keys[1]]] += of_dropping * (len(place) / len(of_dropping))
        both[[place[key] for key in keys[0]]] -= of_restoring * (len(place) / len(of_restoring))
    ahead = delta_interval(with_fewer - with_all, both)
    even = None
    fewer = slope(restoring, reference) * (1 / len(dropping) - 1 / len(restoring))
    if ahead.low is not None and ahead.high is not None and fewer > 0:
        even = Even(_even_at(images, fewer, ahead.low), _even_at(images, fewer, ahead.high))
    return Balance(images, Side(len(restoring), with_all), Side(len(dropping), with_fewer), ahead, even)


def _even_at(images: int, fewer: float, ahead: float) -> float | None:
    """Images of a set for which both are the same if the lead is this; None where restoring is ahead at any size.

    Having fewer images costs dropping ``fewer``, the less the larger the set. The lead is that less what restoring
    leaves of the damage, which does not depend on the size. ``fewer`` counts as known: it scatters far less, with the
    draw of its halves, than the lead does.
    """
    remains = fewer - ahead
    return images * fewer / remains if remains > 0 else None


def balance(
    run: Run, proof: Proof, resources: Resources, detectors: Sequence[OpenDetector] | None = None
) -> dict[str, Any] | None:
    """Weigh a run's arms, by the first detector at the first trainer's resolution; also written to ``balance.json``.

    Of a large set a part, as ``draw`` draws it.

    Returns:
        what is in ``balance.json``, which is not made again of the same images; None where the proof does not declare
        both arms, or one of them is left with fewer than ``LEAST`` images.

    Raises:
        ConfigError, RunError, SourceError: as ``score``; features could not be had.
    """
    if not {RESTORING, DROPPING} <= set(proof.arms):
        return None
    from pipelines.proof.detectors import detectors_of
    from pipelines.proof.drawn import draw
    from pipelines.proof.measuring import looked_at

    url, drawn = run.url(FILE), draw(run, proof, [RESTORING, DROPPING])
    keys = drawn.keys[RESTORING], drawn.keys[DROPPING]
    if min(map(len, keys)) < LEAST:
        return None
    open_one = (detectors or detectors_of(proof))[0]
    detector = open_one("cpu")
    looked = [rows.identity() for rows in (drawn.reference, *drawn.sets.values())]
    made_of = rundir.fingerprint(VERSION, detector.name, detector.sha256, *looked)
    if storage.exists(url) and (there := storage.read_json(url)).get("fingerprint") == made_of:
        return dict(there)
    _, features, reference = looked_at(run, drawn.sets, drawn.reference, open_one, resources)
    weighed = weigh(features[RESTORING], features[DROPPING], keys, drawn.images, reference)
    result = {
        "fingerprint": made_of,
        "figure": detector.frechet,
        "detector": detector.name,
        **drawn.described(proof),
        **asdict(weighed),
    }
    storage.write_json(result, url)
    return result


def said(found: Mapping[str, Any]) -> str:
    """What ``balance.json`` says, in words."""
    restoring, dropping, ahead = found["restoring"], found["dropping"], found["ahead"]
    text = "" if found["images"] == found["of"] else f"Of {found['images']:,} images that were drawn: "
    text += (
        f"Restoring leaves {restoring['images']:,} images at {found['figure']} {restoring['distance']:.4g}, dropping "
        f"{dropping['images']:,} at {dropping['distance']:.4g}: "
    )
    if ahead["low"] is not None and ahead["low"] <= 0 <= ahead["high"]:
        text += "neither is shown to be ahead"
    else:
        winner, policy = ("restoring", "default") if ahead["value"] > 0 else ("dropping", "filter")
        text += f"{winner} (policy `{policy}`) is ahead by {abs(ahead['value']):.3g}"
    if ahead["low"] is None:
        return f"{text} (too few images for an interval)."
    text += f" (95 % interval of restoring's lead {ahead['low']:.3g} to {ahead['high']:.3g})."
    even = found.get("even")  # a file of an earlier version has none
    if even is None:
        return text
    if even["low"] is None:
        return f"{text} In a set as dirty as this one restoring would be ahead at any size."
    if even["high"] is None:
        sizes = f"at about {_rounded(even['low'])} images or more, if at any"
    else:
        sizes = f"between about {_rounded(even['low'])} and {_rounded(even['high'])} images"
    return f"{text} In sets as dirty as this one they would be even {sizes}; this one has {found['of']:,}."


def _rounded(images: float) -> str:
    """To three digits: the size is not known better."""
    return f"{float(f'{images:.3g}'):,.0f}"
