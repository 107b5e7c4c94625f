"""Sets of images against references: each set is made, looked at and forgotten on one worker.

What stays is a line of metrics.jsonl for each detector and reference, and a picture of the first images. jobs/features/
keeps what is known of the references.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from manifests import attempts, rundir, storage
from manifests.errors import RunError
from manifests.rundir import Run
from pipelines import feature_sets, progress
from pipelines import images as image_files
from pipelines.config import Resources
from pipelines.detectors import Detector, Features, OpenDetector
from pipelines.evaluate import compare
from pipelines.feature_sets import FeatureSet, Sampling
from pipelines.metrics.frechet import Statistics
from pipelines.proof.metrics import append_metrics, read_metrics
from pipelines.proof.plan import local_root
from pipelines.proof.samples import Images, Pixels, Rows
from pipelines.workers import GivenUp, map_shards

STAGE: Final = "evaluate"
#: Of a line; another one makes all figures be measured anew.
VERSION: Final = 1
SAMPLING: Final = Sampling()
#: Of sets whose images are weighed one by one.
EVERY: Final = Sampling(kept=2**40, crops=0)
#: Images of the picture beside a snapshot: the first ones, not the best ones.
GRID_SIDE: Final = 8


@dataclass(frozen=True, slots=True)
class Reference:
    """What images are compared with."""

    name: str
    resolution: int
    images: Rows


@dataclass(frozen=True, slots=True)
class Scored:
    """Images that are measured: what a line says of them, and where they come from."""

    job: str
    arm: str
    trainer: str
    pair: int | None  # of an arm's own data there is none
    nimg: int
    resolution: int
    images: Images = field(repr=False)
    grid: Path

    @property
    def name(self) -> str:
        return f"{self.job}-{self.nimg:010d}"


@dataclass(frozen=True, slots=True)
class _Measured:
    """One detector and reference of a set of images: the key of a line."""

    detector: int  # position
    reference: Path  # its features
    name: str
    fingerprint: str


def score_sets(
    run: Run,
    scored: Sequence[Scored],
    references: Sequence[Reference],
    detectors: Sequence[OpenDetector],
    resources: Resources,
) -> list[str]:
    """Measure sets of images against all references of their size; what is there under the same fingerprint stays.

    Returns:
        paths of what says why a set could not be measured. The others are measured all the same; only where a reference
        fails nothing is.
    """
    opened = [open_one("cpu") for open_one in detectors]  # for their names and hashes: workers open their own
    there = {line["fingerprint"] for line in read_metrics(run)}
    wanted = {one.name: (one, _lines_of(run, one, references, opened)) for one in scored}
    left = {name: [m for m in measured if m.fingerprint not in there] for name, (_, measured) in wanted.items()}
    # Who is interrupted has something of every set before all of any.
    untouched_first = sorted(wanted, key=lambda name: len(left[name]) < len(wanted[name][1]))
    todo = {name: (wanted[name][0], left[name]) for name in untouched_first if left[name]}
    if not todo:
        return []
    here = resources.workers == 0
    missing = _references_to_do(run, references, opened, todo.values())
    sizes = {name: rows.count for name, (rows, _) in missing.items()}
    look = partial(_open_looking, detectors, missing, SAMPLING, here)
    failures = _mapped(run, sizes, look, resources, "references")
    if failures:
        return failures
    sizes = {name: one.images.count for name, (one, _) in todo.items()}
    opener, done = partial(_open_scoring, detectors, todo, here), len(wanted) - len(todo)
    return _mapped(run, sizes, opener, resources, "sets of images", done)


def _mapped(
    run: Run,
    sizes: Mapping[str, int],
    opener: Callable[[Run, str], Callable[[str], dict[str, Any]]],
    resources: Resources,
    unit: str,
    done: int = 0,
) -> list[str]:
    """Do work by its names, on whoever there is, and write down the lines that come of it; the paths of failures.

    Args:
        sizes: name => images.
        done: of such units, before.
    """
    if not sizes:
        return []
    failures, images = [], max(sizes.values())
    for name in sizes:
        attempts.forgive(run, STAGE, name)  # the same command tries again what failed before
    with progress.bar(STAGE, done + len(sizes), done, unit) as bar:
        for name, outcome in map_shards(
            run, STAGE, list(sizes), opener, resources, uses_gpu=True, watch=lambda seen: bar.within(seen / images)
        ):
            if isinstance(outcome, GivenUp):
                failures.append(outcome.path)
            else:
                append_metrics(run, outcome["lines"])
            bar.advance(name)
    return failures


def _lines_of(run: Run, one: Scored, references: Sequence[Reference], detectors: Sequence[Detector]) -> list[_Measured]:
    """What is to be known of a set of images. Workers and devices are not in the fingerprints."""
    identity = one.images.identity()
    found = []
    for reference in references:
        if reference.resolution != one.resolution:
            continue
        for i, detector in enumerate(detectors):
            made_of = [VERSION, identity, reference.images.identity(), reference.name, *_looks(detector)]
            line = rundir.fingerprint(one.job, one.nimg, *made_of)[:32]
            found.append(_Measured(i, _features_path(run, reference.images, detector), reference.name, line))
    return found


def looked_at(
    run: Run, sets: Mapping[str, Rows], reference: Rows, open_one: OpenDetector, resources: Resources
) -> tuple[Detector, dict[str, Features], Statistics]:
    """The detector, the features of all images of some sets, in their order, and the statistics of a reference.

    They are kept in jobs/features/. The reference is looked at as ``score_sets`` does: after that it is there.

    Raises:
        RunError: a set could not be looked at.
    """
    detector = open_one("cpu")
    known = _features_path(run, reference, detector)
    paths = {name: _features_path(run, rows, detector, EVERY) for name, rows in sets.items()}
    _look(run, {"reference": (reference, known)}, open_one, SAMPLING, resources)
    _look(run, {name: (rows, paths[name]) for name, rows in sets.items()}, open_one, EVERY, resources)
    features = {name: feature_sets.load(path).features for name, path in paths.items()}
    return detector, features, feature_sets.load(known).statistics


def _look(
    run: Run,
    sets: Mapping[str, tuple[Rows, Path]],
    open_one: OpenDetector,
    sampling: Sampling,
    resources: Resources,
) -> None:
    """Make the features of sets whose files are not there yet."""
    missing = {f"features-{name}": (rows, [(0, path)]) for name, (rows, path) in sets.items() if not path.exists()}
    sizes = {name: rows.count for name, (rows, _) in missing.items()}
    look = partial(_open_looking, [open_one], missing, sampling, resources.workers == 0)
    if failures := _mapped(run, sizes, look, resources, "sets of images"):
        raise RunError(f"{failures[0]}: not every image could be looked at")


def _looks(detector: Detector, sampling: Sampling = SAMPLING) -> list[Any]:
    return [detector.name, detector.sha256, asdict(sampling), feature_sets.VERSION]


def _features_path(run: Run, images: Rows, detector: Detector, sampling: Sampling = SAMPLING) -> Path:
    fingerprint = rundir.fingerprint(VERSION, images.identity(), *_looks(detector, sampling))[:32]
    return local_root(run) / "jobs" / "features" / f"{fingerprint}.safetensors"


def _references_to_do(
    run: Run,
    references: Sequence[Reference],
    detectors: Sequence[Detector],
    todo: Iterable[tuple[Scored, list[_Measured]]],
) -> dict[str, tuple[Rows, list[tuple[int, Path]]]]:
    """Name => images, and for each detector whose features are not kept yet their place."""
    needed = {m.reference for _, measured in todo for m in measured}
    found = {}
    for number, reference in enumerate(references):
        places = [(i, _features_path(run, reference.images, d)) for i, d in enumerate(detectors)]
        places = [(i, path) for i, path in places if path in needed and not path.exists()]
        if places:
            found[f"reference-{number}-{reference.resolution}"] = (reference.images, places)
    return found


def _open_looking(
    detectors: Sequence[OpenDetector],
    todo: Mapping[str, tuple[Rows, list[tuple[int, Path]]]],
    sampling: Sampling,
    here: bool,
    run: Run,
    device: str,
) -> Callable[[str], dict[str, Any]]:
    device = _device(device, here)
    opened = [open_one(device) for open_one in detectors]

    def work(name: str) -> dict[str, Any]:
        rows, places = todo[name]
        looking = [opened[i] for i, _ in places]
        found = feature_sets.features_of(rows.images(device), rows.count, looking, sampling)
        for (_, path), features in zip(places, found, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            feature_sets.save(path, features)
        return {"lines": []}

    return work


def _open_scoring(
    detectors: Sequence[OpenDetector],
    todo: Mapping[str, tuple[Scored, list[_Measured]]],
    here: bool,
    run: Run,
    device: str,
) -> Callable[[str], dict[str, Any]]:
    device = _device(device, here)
    opened = [open_one(device) for open_one in detectors]
    known: dict[Path, FeatureSet] = {}

    def work(name: str) -> dict[str, Any]:
        one, measured = todo[name]
        looking = sorted({m.detector for m in measured})
        first: list[Pixels] = []
        images = _checked(one, one.images.images(device), first)
        features = feature_sets.features_of(images, one.images.count, [opened[i] for i in looking], SAMPLING)
        found = dict(zip(looking, features, strict=True))
        storage.write_bytes(image_files.encode_png(grid_of(first)), str(one.grid))
        lines = []
        for m in measured:
            if m.reference not in known:
                known[m.reference] = feature_sets.load(m.reference)
            figures, left_out = compare(found[m.detector], known[m.reference], opened[m.detector], SAMPLING)
            lines.append(_line(one, m, opened[m.detector], figures, left_out))
        return {"lines": lines}

    return work


def _checked(one: Scored, images: Iterator[Pixels], first: list[Pixels]) -> Iterator[Pixels]:
    """The same images, all of the right size; those of the picture are kept."""
    for image in images:
        if image.shape != (one.resolution, one.resolution, 3):
            size = f"{image.shape[1]} x {image.shape[0]}"
            raise RunError(f"{one.name}: an image is {size} pixels, {one.resolution} x {one.resolution} is declared")
        if len(first) < GRID_SIDE**2:
            first.append(image)
        yield image


def grid_of(images: Sequence[Pixels]) -> Pixels:
    """Images of one size side by side, ``GRID_SIDE`` a row; black where there are too few."""
    height, width = images[0].shape[:2]
    rows = -(-len(images) // GRID_SIDE)
    grid = np.zeros((rows * height, GRID_SIDE * width, 3), np.uint8)
    for (row, column), image in zip(itertools.product(range(rows), range(GRID_SIDE)), images, strict=False):
        grid[row * height : (row + 1) * height, column * width : (column + 1) * width] = image
    return grid


def _line(
    one: Scored, measured: _Measured, detector: Detector, figures: dict[str, float], left_out: dict[str, str]
) -> dict[str, Any]:
    return {
        "job": one.job,
        "arm": one.arm,
        "trainer": one.trainer,
        "pair": one.pair,
        "nimg": one.nimg,
        "resolution": one.resolution,
        "detector": detector.name,
        "weights_sha256": detector.sha256,
        "frechet": detector.frechet,
        "reference": measured.name,
        "samples": one.images.count,
        "figures": figures,
        "left_out": left_out,
        "fingerprint": measured.fingerprint,
    }


def _device(device: str, here: bool) -> str:
    """A worker's device is Ray's to give; this process takes a GPU where there is one."""
    import torch

    return "cuda" if here and torch.cuda.is_available() else device
