"""What an export will hold, read off the manifests before anything is written: which images, their size, the space."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from manifests.errors import ConfigError, RunError
from pipelines.exports import picture, stylegan, tree
from pipelines.exports.arm import Arm, ArmName

VERSION = 1
FormatName = Literal["stylegan", "hf", "folder"]
Row = dict[str, Any]

# How many images are encoded to learn what an image takes at another size, and what is added to their mean.
_TRIALS, _MARGIN = 32, 1.1
# A row of the manifest, about, with its label or metadata.
_ROW_BYTES = 1000


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for; all that the bytes of an export depend on, beside the run."""

    format: FormatName
    arm: ArmName = "cleaned"
    view: str | None = None  # None: the one that the product was packed from
    split: str | None = None  # None: all of them
    resolution: int | None = None  # pixels; None: as they are
    crop: picture.Crop = "center"
    enlarge: bool = False  # whether images smaller than the resolution are enlarged, and not left out
    limit: int | None = None  # the first N images


@dataclass(slots=True)
class Survey:
    """What an export will hold, as the manifests tell it; no image is read."""

    shards: int = 0  # how many of the run's, from the first, have to be looked at
    images: int = 0
    nbytes: int = 0  # of their files in the run
    too_small: int = 0  # left out
    enlarged: int = 0
    unlabelled: int = 0
    splits: Counter[str] = field(default_factory=Counter)
    sizes: set[tuple[int, int]] = field(default_factory=set)  # (width, height), pixels; two of them are enough to know
    trials: list[tuple[str, Row]] = field(default_factory=list)  # a few samples of each shard


@dataclass(frozen=True, slots=True)
class Plan:
    """A request made definite against what the run holds."""

    request: Request
    survey: Survey
    resolution: int | None  # None: the files are copied, byte for byte
    parameters: dict[str, Any]
    needed: int  # bytes on the disk, an estimate

    @property
    def about(self) -> dict[str, Any]:
        """What the finished export says of itself."""
        return {
            "parameters": self.parameters,
            "images": self.survey.images,
            "left_out_too_small": self.survey.too_small,
            "enlarged": self.survey.enlarged,
            "labels": self.survey.images > 0 and not self.survey.unlabelled,
        }


def describe(plan: Plan) -> Iterator[str]:
    """What an export will hold and what it will not, and why."""
    survey, request = plan.survey, plan.request
    size = "their own size, original bytes" if plan.resolution is None else f"{plan.resolution} px, lossless PNG"
    yield f"{request.arm}: {survey.images} images from {survey.shards} shards; {size}"
    if survey.too_small:
        yield f"{survey.too_small} images are smaller than {plan.resolution} px and left out; --enlarge takes them in"
    if survey.enlarged:
        yield f"{survey.enlarged} images are smaller than {plan.resolution} px and enlarged: they show no more detail"
    if survey.unlabelled:
        yield f"no labels: {survey.unlabelled} of the images have none, and a class for each or none is the rule"
    if len(survey.splits) > 1 and request.format != "hf":
        there = ", ".join(f"{n} {split}" for split, n in sorted(survey.splits.items()))
        yield f"the splits are put together: {there}; --split chooses one"
    if request.format == "stylegan" and plan.resolution and plan.resolution & (plan.resolution - 1):
        yield f"{plan.resolution} px is no power of two, which StyleGAN2 and StyleGAN3 ask for (EDM does not)"


def parameters_of(opened: Arm, request: Request) -> dict[str, Any]:
    """All that the bytes depend on; what has no effect is left as None, so that it makes no difference either."""
    copied = request.format != "stylegan" and request.resolution is None
    return {
        "version": VERSION,
        "run": opened.run.fingerprint,
        "arm": opened.name,
        "view": opened.view,
        "samples": opened.fingerprint,
        "format": request.format,
        "split": request.split,
        "resolution": request.resolution,
        "crop": None if copied else request.crop,
        "enlarge": None if request.resolution is None else request.enlarge,
        "limit": request.limit,
    }


def wanted(opened: Arm, request: Request, shard: str) -> tuple[list[Row], int]:
    """The shard's samples that belong into the export, and how many are too small for it."""
    rows = [row for row in opened.samples(shard) if request.split in (None, tree.split_of(row))]
    if request.resolution is None or request.enlarge:
        return rows, 0
    large = [row for row in rows if min(row["width"], row["height"]) >= request.resolution]
    return large, len(rows) - len(large)


def make_plan(opened: Arm, request: Request, parameters: dict[str, Any]) -> Plan:
    """Look through the manifests of an arm, and at a few images if they are to be encoded.

    Raises:
        ConfigError: the request does not fit the images.
        RunError: there is nothing to export, or a shard is missing or not whole.
    """
    survey = _survey(opened, request)
    if not survey.images:
        small = f"; {survey.too_small} are smaller than --resolution {request.resolution}" if survey.too_small else ""
        raise RunError(f"{opened.run.root}: there is no image to export{small}")
    resolution = request.resolution
    if request.format == "stylegan":
        resolution = _common_resolution(survey, request)
    entry = stylegan.MEMBER_BYTES if request.format == "stylegan" else tree.BLOCK_BYTES
    nbytes = survey.nbytes if resolution is None else _trial_bytes(opened, survey, resolution, request.crop)
    return Plan(request, survey, resolution, parameters, nbytes + survey.images * (entry + _ROW_BYTES))


def _survey(opened: Arm, request: Request) -> Survey:
    survey, planned = Survey(), opened.run.shards()
    for shard in planned:
        rows, too_small = wanted(opened, request, shard)
        if request.limit is not None:
            rows = rows[: request.limit - survey.images]
        opened.check(shard, rows)
        survey.shards += 1
        survey.images += len(rows)
        survey.too_small += too_small
        for row in rows:
            width, height = row["width"], row["height"]
            survey.nbytes += row["nbytes"]
            survey.unlabelled += row["label"] is None
            survey.splits[tree.split_of(row)] += 1
            survey.enlarged += request.resolution is not None and min(width, height) < request.resolution
            if len(survey.sizes) < 2:
                survey.sizes.add((width, height))
        survey.trials += [(shard, row) for row in rows[: -(-_TRIALS // len(planned))]]
        if survey.images == request.limit:
            break
    return survey


def _common_resolution(survey: Survey, request: Request) -> int:
    """The side that all images of a zip have, pixels."""
    square = all(width == height for width, height in survey.sizes)
    if request.crop == "none" and (len(survey.sizes) > 1 or not square):
        raise ConfigError("the images differ in size or are not square: --crop none cannot make a stylegan export")
    if request.resolution is not None:
        return request.resolution
    if len(survey.sizes) > 1:
        some = " and ".join(f"{width} x {height}" for width, height in sorted(survey.sizes))
        raise ConfigError(f"the images differ in size ({some}, ...): give --resolution, the side that all shall have")
    return min(next(iter(survey.sizes)))


def _trial_bytes(opened: Arm, survey: Survey, resolution: int, crop: picture.Crop) -> int:
    """What all images take up once they are encoded, bytes, from a few of them spread over the shards."""
    step = -(-len(survey.trials) // _TRIALS)
    trials = [data for shard, row in survey.trials[::step] for data in opened.images(shard, [row])]
    sizes = [len(picture.at_resolution(data, resolution, crop)) for data in trials]
    return int(sum(sizes) / len(sizes) * _MARGIN * survey.images)
