"""Restore or drop? The arms ``combined`` and ``filter`` as training sets, each with all of its images; no training.

A Frechet distance of N images is about a + c / N. Dropping leaves fewer images and no damage, restoring more images and
what is left of the damage: so restoring is ahead in small sets and dropping in large ones, and there is a size between
at which they are even.
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
#: Images that an arm has to be left with: its slope is that of its halves.
LEAST: Final = 4


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two: how many images it leaves, and their distance."""

    images: int
    distance: float


@dataclass(frozen=True, slots=True)
class Balance:
    """Restoring against dropping.

    Attributes:
        images: of the set before either.
        ahead: distance when dropping less that when restoring; above zero restoring is ahead.
        even_at: images of a set that is as dirty as this one, before either, for which both would be the same; None
            where dropping would not win at any size.
    """

    images: int
    restoring: Side
    dropping: Side
    ahead: Estimate
    even_at: float | None


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
    # What the distances say of numbers alone, and of the damage that restoring leaves.
    fewer = slope(restoring, reference) * (1 / len(dropping) - 1 / len(restoring))
    remains = fewer - ahead.value
    return Balance(
        images,
        Side(len(restoring), with_all),
        Side(len(dropping), with_fewer),
        ahead,
        images * fewer / remains if remains > 0 and fewer > 0 else None,
    )


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
    from pipelines.proof.drawn import REFERENCE, draw
    from pipelines.proof.measuring import looked_at

    url, drawn = run.url(FILE), draw(run, proof, [RESTORING, DROPPING])
    keys = drawn.keys[RESTORING], drawn.keys[DROPPING]
    if min(map(len, keys)) < LEAST:
        return None
    open_one = (detectors or detectors_of(proof))[0]
    detector = open_one("cpu")
    made_of = rundir.fingerprint(detector.name, detector.sha256, *(rows.identity() for rows in drawn.sets.values()))
    if storage.exists(url) and (there := storage.read_json(url)).get("fingerprint") == made_of:
        return dict(there)
    _, found = looked_at(run, drawn.sets, open_one, resources)
    reference = found[REFERENCE].statistics
    weighed = weigh(found[RESTORING].features, found[DROPPING].features, keys, drawn.images, reference)
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
        text += " (too few images for an interval)"
    else:
        text += f" (95 % interval of restoring's lead {ahead['low']:.3g} to {ahead['high']:.3g})"
    if found["even_at"] is None:
        return f"{text}. In a set as dirty as this one restoring would be ahead at any size."
    even, images = f"{found['even_at']:,.0f}", f"{found['of']:,}"
    return f"{text}. In sets as dirty as this one they would be even at about {even} images; this one has {images}."
