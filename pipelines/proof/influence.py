"""Which dirt costs most? The data set's own distance without one kind of damage, or with one kind restored, at a time.

An image is of the kind that stands out most in what was measured of it, by the spread of the good images; no training.
A blur lowers the effective resolution too: asked for together, ``blur`` and ``upscaled`` are not told apart well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from manifests import rundir, shards, storage
from manifests.errors import ConfigError
from manifests.rundir import Run
from pipelines.config import Resources
from pipelines.detectors import Features, OpenDetector
from pipelines.metrics.frechet import Statistics, distances_to, statistics_of
from pipelines.metrics.influence_function import distance_and_influence
from pipelines.proof.intervals import Estimate, delta_interval
from pipelines.proof.plan import Proof

#: Kind => the measures of the manifests that show it, each with 1 where more is worse, -1 where less is.
KINDS: Final[dict[str, tuple[tuple[str, int], ...]]] = {
    "blur": (("sharpness", -1),),
    "noise": (("noise_sigma", 1),),
    "jpeg": (("blockiness", 1), ("jpeg_quality", -1)),
    "upscaled": (("effective_resolution", -1),),
}
#: Robust standard deviations of the good images from which a measure stands out; 2.3 % of a normal set's do.
STANDS_OUT: Final = 2.0
#: Random subsets that leaving a kind out is compared with.
CONTROLS: Final = 5


@dataclass(frozen=True, slots=True)
class Cost:
    """What one kind of damage costs, in the figure's units; more is worse.

    Attributes:
        images: of the kind.
        share: of all.
        left_out: distance of as many images drawn blindly less the distance of all that are not of the kind.
        restored: distance of all less the distance with this kind's images restored; None without a restored arm.
    """

    kind: str
    images: int
    share: float
    left_out: Estimate | None
    restored: Estimate | None


def costs(
    features: Features,
    kinds: Sequence[str | None],
    names: Iterable[str],
    reference: Statistics,
    restored: Features | None = None,
    *,
    seed: int = 0,
) -> list[Cost]:
    """The cost of each kind, the worst first; ``left_out`` is None where nothing would be left or nothing is of it.

    The intervals are of 95 %, by the delta method: each image's influence on a difference of distances is that of its
    derivative. The reference counts as given.

    Args:
        features: N x D.
        kinds: N; None where nothing stands out.
        names: of the kinds that are asked for.
        reference: what distances are to.
        restored: N x D, of the same images after restoration.
    """
    kind_of, number = np.array(kinds, dtype=object), len(features)
    whole, of_whole = distance_and_influence(features, reference)
    found = []
    for name in names:
        chosen = kind_of == name
        count = int(chosen.sum())
        left_out = after = None
        if count and number - count > 1:
            left_out = _left_out(features, chosen, of_whole, reference, seed)
        if count and restored is not None:
            mixed, of_mixed = distance_and_influence(np.where(chosen[:, None], restored, features), reference)
            after = delta_interval(whole - mixed, None if of_whole is None or of_mixed is None else of_whole - of_mixed)
        found.append(Cost(name, count, count / number, left_out, after))
    return sorted(found, key=lambda cost: -(cost.left_out.value if cost.left_out else -math.inf))


def _left_out(
    features: Features,
    chosen: npt.NDArray[np.bool_],
    of_whole: npt.NDArray[np.float64] | None,
    reference: Statistics,
    seed: int,
) -> Estimate:
    """A distance grows as images become fewer: so it is compared with as many images, drawn blindly."""
    number, rest = len(features), int((~chosen).sum())
    draw = np.random.default_rng(seed)
    drawn = (statistics_of(features[draw.permutation(number)[:rest]]) for _ in range(CONTROLS))
    controls = np.array(distances_to(reference, drawn))
    without, of_rest = distance_and_influence(features[~chosen], reference)
    influence = None
    if of_whole is not None and of_rest is not None:
        influence = of_whole.copy()
        influence[~chosen] -= of_rest * (number / rest)
    return delta_interval(float(controls.mean()) - without, influence, float(controls.var(ddof=1)) / CONTROLS)


# ---- Kinds, from the manifests


def kinds_of(rows: Sequence[Mapping[str, Any]], names: Iterable[str], severe_from: float | None) -> list[str | None]:
    """Of which kind each image is: the one whose measure is furthest from the good images'; None if none stands out.

    Args:
        rows: the measurements, and ``severity`` where it is known.
        names: the kinds that are looked for; see ``KINDS``.
        severe_from: images below it are the good ones; with None, or without severities, all of them are.

    Raises:
        ConfigError: there is no such kind.
    """
    names = list(names)
    if unknown := sorted(set(names) - set(KINDS)):
        raise ConfigError(f"--ablate {unknown[0]}: unknown, it is one of {', '.join(KINDS)}")
    severity = _column(rows, "severity")
    good = severity < severe_from if severe_from is not None else np.zeros(len(rows), bool)
    if not good.any():
        good = np.ones(len(rows), bool)
    scores = np.stack(
        [
            np.max([sign * _scaled(_column(rows, measure), good) for measure, sign in KINDS[name]], axis=0)
            for name in names
        ]
    )  # K N
    furthest = scores.argmax(axis=0)
    return [names[k] if scores[k, i] >= STANDS_OUT else None for i, k in enumerate(furthest)]


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> npt.NDArray[np.float64]:
    return np.array([math.nan if row.get(name) is None else row[name] for row in rows], np.float64)


def _scaled(values: npt.NDArray[np.float64], good: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """In robust standard deviations from the good ones' median; 0, nothing to see, where it is not known."""
    known = values[good & np.isfinite(values)]
    if not known.size:
        return np.zeros_like(values)
    middle = float(np.median(known))
    spread = 1.4826 * float(np.median(np.abs(known - middle))) or float(known.std())
    return np.nan_to_num((values - middle) / spread) if spread else np.zeros_like(values)


# ---- Of a run


def influence(
    run: Run,
    proof: Proof,
    ablate: Sequence[str],
    resources: Resources,
    detectors: Sequence[OpenDetector] | None = None,
) -> dict[str, Any]:
    """Measure what each kind of damage in a run costs; also written to ``influence.json``.

    By the first detector, at the first trainer's resolution, of the arms ``original`` and ``cleaned``, to the declared
    reference. Of a large set a part, as ``draw`` draws it.

    Raises:
        ConfigError, RunError, SourceError: as ``score``; an unknown kind; features could not be had.
    """
    from pipelines.proof.arms import severe_from
    from pipelines.proof.detectors import detectors_of
    from pipelines.proof.drawn import draw
    from pipelines.proof.measuring import looked_at

    severe = severe_from(run, proof)
    drawn = draw(run, proof, ["original", "cleaned"])
    measured = _measurements(run, drawn.keys["original"])
    kinds = kinds_of([measured[key] for key in drawn.keys["original"]], ablate, severe)
    open_one = (detectors or detectors_of(proof))[0]
    detector, found, reference = looked_at(run, drawn.sets, drawn.reference, open_one, resources)
    features = found["original"]
    place = {key: i for i, key in enumerate(drawn.keys["cleaned"])}
    restored = features.copy()
    for i, key in enumerate(drawn.keys["original"]):
        if key in place:
            restored[i] = found["cleaned"][place[key]]
    told = costs(features, kinds, ablate, reference, restored)
    result = {"figure": detector.frechet, "detector": detector.name, **drawn.described(proof)}
    result["kinds"] = [asdict(cost) for cost in told]
    storage.write_json(result, run.url("influence.json"))
    return result


def _measurements(run: Run, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Key => measures of the source's image, and its severity; of these keys, for a run may have many more."""
    wanted = set(keys)
    columns = sorted({measure for kind in KINDS.values() for measure, _ in kind})
    found: dict[str, dict[str, Any]] = {}
    for shard in run.shards():
        rows = shards.read_rows(run.url(rundir.SOURCE), shard, ["key", *columns]).to_pylist()
        found |= {row["key"]: row for row in rows if row["key"] in wanted}
        for row in shards.read_rows(run.url(rundir.restored(1)), shard, ["key", "severity"]).to_pylist():
            if row["key"] in wanted:
                found[row["key"]]["severity"] = row["severity"]
    return found


def as_text(found: Mapping[str, Any]) -> list[str]:
    """Lines for people."""
    images = f"{found['images']} images" + (f" drawn of {found['of']}" if found["images"] < found["of"] else "")
    lines = [f"{found['figure']} to {found['reference']}, {images} at {found['resolution']} px"]
    for kind in found["kinds"]:
        told = [f"{kind['kind']:<10} {kind['images']:>7} images, {100 * kind['share']:.1f} %"]
        for what, name in (("left_out", "without it"), ("restored", "restored")):
            cost = kind[what]
            if cost is not None:
                ends = "" if cost["low"] is None else f" ({-cost['high']:+.3g} to {-cost['low']:+.3g})"
                told.append(f"{name} {-cost['value']:+.3g}{ends}")
        lines.append("; ".join(told))
    return lines
