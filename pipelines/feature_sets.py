"""Features of a set of images: read once, part by part, and kept on disk under a hash of everything that makes them.

A part is so many images, whoever works on it; its features are a file. What is done stays done if the driver is ended,
and the parts are merged in their order, so that the result does not depend on the number of workers.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from manifests import rundir, storage
from manifests.errors import RunError, SampleError, SourceError
from pipelines import images as image_files
from pipelines import progress
from pipelines.datasets import Entry, read_entries
from pipelines.detectors import Detector, Features
from pipelines.image_sets import ImageSet
from pipelines.metrics.frechet import Statistics, merge, no_statistics, statistics_of

Pixels = npt.NDArray[np.uint8]  # H W 3

#: Another one makes all that is kept be made anew: raise it when decoding, resizing or cropping changes.
VERSION: Final = 1
#: Images of a part.
PART: Final = 500
#: Images of one size that a detector is given at once, and their bytes at most.
BATCH: Final = 32
BATCH_BYTES: Final = 2**28
#: Packages whose releases may change the last bits of features, or what a decoder makes of a file.
_PACKAGES: Final = ("torch", "numpy", "pillow", "clean-fid")


@dataclass(frozen=True, slots=True)
class Sampling:
    """What is drawn from a set; by the names of its images, so that two sets of the same names are drawn alike."""

    seed: int = 0
    kept: int = 10_000  # images whose features are kept, by their hash; statistics are of all images
    crops: int = 1  # of each image, at native resolution
    crop: int | None = None  # pixels of a crop's side; None: the detector's own, where nothing is resized


@dataclass(frozen=True, slots=True, eq=False)
class FeatureSet:
    """What is known of a set of images."""

    images: int  # that were measured
    failed: int  # that cannot be read
    first_failure: str | None
    small: int  # that have no crop: a side is shorter
    statistics: Statistics  # of all images
    crops: Statistics  # of all crops
    features: Features  # of the kept images, in the set's order


def default_cache() -> Path:
    """``$IDM_CACHE``, else ``~/.cache/idm-curate/features``."""
    return Path(os.environ.get("IDM_CACHE", "~/.cache/idm-curate/features")).expanduser()


@dataclass(frozen=True, slots=True)
class Part:
    """Some images of a set, and the file that their features go to."""

    entries: Sequence[Entry]
    path: Path


#: Does parts, with this sampling and side of a crop; yields each one that is done.
Work = Callable[[Sequence[Part], Sampling, int], Iterator[Part]]


def feature_set(
    images: ImageSet, detector: Detector, sampling: Sampling, *, work: Work, device: str, cache: Path
) -> FeatureSet:
    """The features of a set, from the cache or by looking at every image. The same call again goes on where it stopped.

    Args:
        images: the set.
        detector: says what the features are; it need not be the one that looks.
        sampling: what is drawn.
        work: does parts, here or on workers.
        device: "cpu" or "cuda", on which it does; their last bits differ.
        cache: folder, on storage that all workers see. Inception's statistics are 67 MB a set, kept features 8 kB
            an image.

    Raises:
        SourceError: fewer than two images can be read.
        RunError: the set is being worked on by another process, or a file in the cache is damaged.
    """
    crop = sampling.crop or detector.side
    made_of = {
        "version": VERSION,
        "images": images.fingerprint(),
        "detector": detector.name,
        "weights": detector.sha256,
        "device": device,
        "sampling": asdict(sampling) | {"crop": crop},
        "packages": {name: metadata.version(name) for name in _PACKAGES},
    }
    fingerprint = rundir.fingerprint(made_of)[:32]
    target = cache / f"{fingerprint}.safetensors"
    if not target.exists():
        staging = cache / ".staging" / fingerprint
        with rundir.lock(str(staging)):
            if not target.exists():  # the one that held the lock before may have made it
                slices = [images.entries[i : i + PART] for i in range(0, len(images.entries), PART)]
                parts = [Part(s, staging / f"part-{i:06d}.safetensors") for i, s in enumerate(slices)]
                _measure(images.source, parts, lambda todo: work(todo, sampling, crop))
                save(staging / "merged", _merged(images, parts, sampling, detector.dimension))
                storage.publish(staging / "merged", str(target))
            shutil.rmtree(staging, ignore_errors=True)
    return load(target)


def _measure(source: str, parts: Sequence[Part], work: Callable[[Sequence[Part]], Iterator[Part]]) -> None:
    """Do the parts that are not there yet, and say how far it is."""
    todo = [part for part in parts if not part.path.exists()]
    images = 0

    def count() -> None:
        nonlocal images
        images += 1
        bar.within(images / PART)

    done = len(parts) - len(todo)
    with progress.bar(f"features of {source}", len(parts), done, "parts") as bar, progress.ticking(count):
        for part in work(todo):
            images = 0
            bar.within(0)
            bar.advance(part.path.stem)


def features_of(
    images: Iterable[Pixels], count: int, detectors: Sequence[Detector], sampling: Sampling
) -> list[FeatureSet]:
    """The features of images that are held as arrays, by each detector. An image's name is its number.

    Args:
        images: H x W x 3, uint8.
        count: how many there are.
        detectors: any number of them; every image is asked for once.
        sampling: what is drawn.

    Raises:
        SourceError: there are fewer than two.
    """
    if count < 2:
        raise SourceError(f"{count} images; a distance needs two at least")
    kept = _kept(map(str, range(count)), sampling)
    found = [
        FeatureSet(0, 0, None, 0, nothing, nothing, np.empty((0, detector.dimension), np.float32))
        for detector in detectors
        for nothing in [no_statistics(detector.dimension)]
    ]
    stream = enumerate(images)
    for first in range(0, count, PART):
        part = list(itertools.islice(stream, min(PART, count - first)))
        of_part = kept[first : first + len(part)]
        found = [_added(so_far, part, of_part, d, sampling) for so_far, d in zip(found, detectors, strict=True)]
    return found


def _added(
    found: FeatureSet,
    part: Sequence[tuple[int, Pixels]],
    kept: npt.NDArray[np.bool_],
    detector: Detector,
    sampling: Sampling,
) -> FeatureSet:
    """A set with some more images in it."""
    whole, cropped = _Batches(detector), _Batches(detector)
    small = 0
    for number, image in part:
        progress.tick()
        whole.add(image)
        cut = crops_of(image, sampling.crop or detector.side, sampling.crops, sampling.seed, str(number))
        small += len(cut) < sampling.crops
        for square in cut:
            cropped.add(square)
    features = whole.features()
    return FeatureSet(
        found.images + len(features),
        0,
        None,
        found.small + small,
        merge(found.statistics, statistics_of(features)),
        merge(found.crops, statistics_of(cropped.features())),
        np.concatenate([found.features, features[kept]]),
    )


def crops_of(image: Pixels, side: int, count: int, seed: int, name: str) -> list[Pixels]:
    """Squares of an image as they are, at places that follow from (seed, name) alone; none if it is smaller.

    Two images of one name and size, before and after, are cropped at the same places.
    """
    height, width = image.shape[:2]
    if min(height, width) < side:
        return []
    found = []
    for i in range(count):
        drawn = hashlib.sha256(f"{seed}:{i}:{name}".encode()).digest()
        top = int.from_bytes(drawn[:8], "little") % (height - side + 1)
        left = int.from_bytes(drawn[8:16], "little") % (width - side + 1)
        found.append(image[top : top + side, left : left + side])
    return found


def write_part(part: Part, detector: Detector, sampling: Sampling, crop: int) -> None:
    """Look at some images and write their features: a file that is whole or not there."""
    whole, cropped = _Batches(detector), _Batches(detector)
    measured: list[int] = []
    failures: list[str] = []
    small = 0
    for i, (entry, data) in enumerate(read_entries(part.entries)):
        progress.tick()
        try:
            if isinstance(data, SampleError):
                raise data
            pixels = image_files.decode(data).rgb
        except SampleError as error:
            failures.append(f"{entry.source_name}: {error}")
            continue
        measured.append(i)
        whole.add(pixels)
        cut = crops_of(pixels, crop, sampling.crops, sampling.seed, entry.source_name)
        small += len(cut) < sampling.crops
        for square in cut:
            cropped.add(square)
    arrays: dict[str, npt.NDArray[Any]] = {
        "features": whole.features(),
        "crops": cropped.features(),
        "measured": np.array(measured, np.int64),
    }
    _write(
        part.path, arrays, {"failed": len(failures), "first_failure": failures[0] if failures else None, "small": small}
    )


class _Batches:
    """Images on their way into a detector: neighbours of one size go in together."""

    def __init__(self, detector: Detector) -> None:
        self._detector, self._held, self._nbytes = detector, list[Pixels](), 0
        self._found: list[Features] = [np.empty((0, detector.dimension), np.float32)]

    def add(self, image: Pixels) -> None:
        if self._held and self._held[0].shape != image.shape:
            self._flush()
        self._held.append(image)
        self._nbytes += image.nbytes
        if len(self._held) == BATCH or self._nbytes >= BATCH_BYTES:
            self._flush()

    def features(self) -> Features:
        """Of all images, N x D, in their order."""
        self._flush()
        return np.concatenate(self._found)

    def _flush(self) -> None:
        if self._held:
            self._found.append(self._detector(np.stack(self._held)))
        self._held, self._nbytes = [], 0


def _merged(images: ImageSet, parts: Sequence[Part], sampling: Sampling, dimension: int) -> FeatureSet:
    kept = _kept((entry.source_name for entry in images.entries), sampling)
    whole, crops = no_statistics(dimension), no_statistics(dimension)
    features: list[Features] = []
    failed, small, first_failure = 0, 0, None
    for i, part in enumerate(parts):
        arrays, counts = _read(part.path)
        whole, crops = merge(whole, statistics_of(arrays["features"])), merge(crops, statistics_of(arrays["crops"]))
        features.append(arrays["features"][kept[i * PART + arrays["measured"]]])
        failed, small = failed + counts["failed"], small + counts["small"]
        first_failure = first_failure or counts["first_failure"]
    if whole.n < 2:
        raise SourceError(f"{images.source}: {whole.n} of {len(kept)} images can be read; {first_failure}")
    return FeatureSet(whole.n, failed, first_failure, small, whole, crops, np.concatenate(features))


def _kept(names: Iterable[str], sampling: Sampling) -> npt.NDArray[np.bool_]:
    """Which images' features are kept."""
    ranks = [hashlib.sha256(f"{sampling.seed}:{name}".encode()).digest() for name in names]
    kept = np.zeros(len(ranks), bool)
    kept[heapq.nsmallest(sampling.kept, range(len(ranks)), key=ranks.__getitem__)] = True
    return kept


def save(path: Path, found: FeatureSet) -> None:
    """Write a set of features: a file that is whole or not there."""
    _write(path, *_stored(found))


def _stored(found: FeatureSet) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    arrays: dict[str, npt.NDArray[Any]] = {"features": found.features}
    for name, statistics in (("whole", found.statistics), ("crops", found.crops)):
        arrays |= {f"{name}_mean": statistics.mean, f"{name}_scatter": statistics.scatter}
    about = {"images": found.images, "crops": found.crops.n, "failed": found.failed, "small": found.small}
    return arrays, about | {"first_failure": found.first_failure}


def load(path: Path) -> FeatureSet:
    """Read what ``save`` has written.

    Raises:
        RunError: it is not there, or damaged.
    """
    arrays, about = _read(path)
    return FeatureSet(
        images=about["images"],
        failed=about["failed"],
        first_failure=about["first_failure"],
        small=about["small"],
        statistics=Statistics(about["images"], arrays["whole_mean"], arrays["whole_scatter"]),
        crops=Statistics(about["crops"], arrays["crops_mean"], arrays["crops_scatter"]),
        features=arrays["features"],
    )


def _write(path: Path, arrays: dict[str, npt.NDArray[Any]], about: dict[str, Any]) -> None:
    from safetensors.numpy import save

    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    storage.write_bytes(save(contiguous, {"about": storage.json_bytes(about).decode()}), str(path))


def _read(path: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as f:
            return {name: f.get_tensor(name) for name in f.keys()}, json.loads(f.metadata()["about"])  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
        raise RunError(f"{path} is damaged ({error}); remove it and run the same command again") from error
