"""How far a set of images is from a reference: every figure by the name that its detector gives it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.config import Resources
from pipelines.detectors import Detector, OpenDetector
from pipelines.feature_sets import FeatureSet, Sampling, default_cache, feature_set
from pipelines.feature_workers import crew
from pipelines.image_sets import ImageSet, open_images
from pipelines.metrics.extrapolation import at_infinity, least_samples
from pipelines.metrics.frechet import frechet_distance
from pipelines.metrics.kernel import kernel_distance
from pipelines.metrics.neighbours import neighbours

#: Neighbours that density and coverage ask for: fewer samples have no such figure.
_LEAST_NEIGHBOURS = 6


def evaluate(
    samples: ImageSet | str,
    reference: ImageSet | str,
    open_detector: OpenDetector,
    *,
    sampling: Sampling | None = None,
    resources: Resources | None = None,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Measure samples against a reference. What was looked at once is in the cache; the rest takes seconds.

    Args:
        samples: a set, or where one is, as ``open_images`` takes it.
        reference: the same. Sets of different sources are compared as they are: the same crop and size, without lossy
            compression in between, are the caller's to see to.
        open_detector: gives the detector on a device, as ``EfficientNetLite0`` itself does.
        sampling: what is drawn of both sets.
        resources: Ray actors; by default this process does the work.
        cache: folder; ``default_cache()`` by default.

    Returns:
        ``detector``; ``figures``, name => number, where FD stands for what the detector calls its Frechet distance
        (FID of Inception alone) and KD for its kernel distance: ``FD``, ``FD_infinity``, ``crop-FD``, ``KD``,
        ``KD_std`` (over subsets), ``precision``, ``recall``, ``density``, ``coverage``; ``left_out``, name => why;
        ``samples`` and ``reference``: source, number of images, of failed ones, and of those too small for a crop;
        ``sampling``. All of it JSON.

    Raises:
        ConfigError, SourceError, RunError: as ``open_images`` and ``feature_set``.
    """
    sampling, resources = sampling or Sampling(), resources or Resources(workers=0)
    cache = cache or default_cache()
    # Both are listed before either is looked at: a name that is wrong costs no work.
    sets = [open_images(s) if isinstance(s, str) else s for s in (samples, reference)]
    detector, work, device = crew(open_detector, resources)
    ours, theirs = (feature_set(images, detector, sampling, work=work, device=device, cache=cache) for images in sets)
    figures, left_out = compare(ours, theirs, detector, sampling)
    return {
        "detector": detector.name,
        "figures": figures,
        "left_out": left_out,
        "samples": _described(sets[0], ours),
        "reference": _described(sets[1], theirs),
        "sampling": asdict(sampling),
    }


def compare(
    samples: FeatureSet, reference: FeatureSet, detector: Detector, sampling: Sampling
) -> tuple[dict[str, float], dict[str, str]]:
    """All figures of two sets of features, and why a figure is left out."""
    fd, kd = detector.frechet, detector.kernel
    figures = {fd: frechet_distance(reference.statistics, samples.statistics)}
    left_out: dict[str, str] = {}

    least = least_samples(detector.dimension)
    if len(samples.features) < least:
        left_out[f"{fd}_infinity"] = f"a line needs {least} samples, there are {len(samples.features)}"
    else:
        figures[f"{fd}_infinity"] = at_infinity(samples.features, reference.statistics, seed=sampling.seed).value

    if min(samples.crops.n, reference.crops.n) < 2:
        side = sampling.crop or detector.side
        small = samples.small + reference.small
        why = f"{small} of {samples.images + reference.images} images are smaller than a crop of {side} px"
        left_out[f"crop-{fd}"] = why if small else "no crops were asked for"
    else:
        figures[f"crop-{fd}"] = frechet_distance(reference.crops, samples.crops)

    kernel = kernel_distance(samples.features, reference.features, seed=sampling.seed)
    figures[kd] = kernel.mean
    if kernel.std is None:
        left_out[f"{kd}_std"] = "its subsets would be all samples"
    else:
        figures[f"{kd}_std"] = kernel.std
    few = min(len(samples.features), len(reference.features))
    if few < _LEAST_NEIGHBOURS:
        why = f"neighbours need {_LEAST_NEIGHBOURS} images, there are {few}"
        left_out |= dict.fromkeys(("precision", "recall", "density", "coverage"), why)
    else:
        figures |= asdict(neighbours(samples.features, reference.features))
    return figures, left_out


def _described(images: ImageSet, found: FeatureSet) -> dict[str, Any]:
    return {
        "source": images.source,
        "images": found.images,
        "failed": found.failed,
        "first_failure": found.first_failure,
        "without_crop": found.small,
        "features_kept": len(found.features),
    }


def as_text(found: dict[str, Any]) -> list[str]:
    """Lines for people."""
    lines = []
    for role in ("samples", "reference"):
        of = found[role]
        lines.append(f"{role:<22} {of['images']} images, {of['source']}")
        if of["failed"]:
            lines.append(f"{'':<22} {of['failed']} more cannot be read; the first: {of['first_failure']}")
        if of["without_crop"] and any(name.startswith("crop-") for name in found["figures"]):
            lines.append(f"{'':<22} {of['without_crop']} are too small for a crop, and not in the distance of crops")
    lines.append(f"{'detector':<22} {found['detector']}")
    lines += [f"{name:<22} {value:.6g}" for name, value in found["figures"].items()]
    return lines + [f"{name:<22} left out: {why}" for name, why in found["left_out"].items()]
