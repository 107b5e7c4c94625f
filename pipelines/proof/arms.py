"""The arms of a proof: which samples each of them trains on, and with what pixels; and the reference that all meet.

All follow one view. Its validation split, and what any stage failed on, is in no arm; ``original``, ``null``,
``weighted``, ``placebo`` and ``pristine`` hold all other samples, so the same keys; ``cleaned`` those of them that the
view does not leave out whatever their quality, as duplicates; ``combined`` and ``filter`` fewer.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image, ImageFilter

from manifests import listing, rundir, schema, shards, storage
from manifests.errors import ConfigError
from manifests.rundir import Run
from pipelines.datasets import File, read_truths
from pipelines.exports import arm as exported
from pipelines.exports.arm import Row
from pipelines.exports.picture import Pixels, pixels_at
from pipelines.image_sets import ImageSet, open_images
from pipelines.proof.plan import HELD_OUT, SAME_IMAGES, ArmName, Proof, local_root
from pipelines.select import left_out
from pipelines.training_images import TrainingImages, prepare_images

if TYPE_CHECKING:
    from idm_core.generators import Images

#: Images under which a reference says little: Frechet distances want thousands, the neighbours' figures hundreds.
LEAST_HELD_OUT: Final = 50
_RESTORING: Final = ("cleaned", "combined")
_BY_SEVERITY: Final = ("combined", "filter", "weighted")
#: Arms whose images no one has read the severity of.
_UNREAD: Final = ("placebo", "pristine")


def check_arms(run: Run, proof: Proof) -> None:
    """See to it, before anything is trained, that every arm and the reference can be made.

    Raises:
        ConfigError: one cannot; the message says what to do.
        RunError: nothing is decided yet.
        SourceError: there is no such reference.
    """
    local_root(run)
    held_out(run, proof)
    labels: dict[ArmName, set[int]] = {}
    for name in proof.arms:
        with _opened(run, proof, name) as arm:
            count, labels[name] = 0, set()
            for shard in run.shards():
                rows = [row for row in arm.samples(shard) if row["split"] != "validation"]
                count += len(rows)
                if name in _BY_SEVERITY:
                    _severities(run, shard)
                if name in _RESTORING and any(row["reason"] == "damaged" for row in arm.view.decided(shard)):
                    raise ConfigError(
                        f"{run.root}: view {arm.view.view} restores nothing, so arm {name} would not either; decide by "
                        f"another policy (`idm-curate select {run.root}`), name it as `view`, or leave the arm out"
                    )
                if name == "pristine":
                    _truths(run, shard, rows)
                if proof.classes and (unlabelled := [row["key"] for row in rows if row["label"] is None]):
                    raise ConfigError(f"{unlabelled[0]} has no label; train without classes, or label it")
                labels[name] |= {row["label"] for row in rows}
        if not count:
            raise ConfigError(f"{run.root}: arm {name} would be empty; {_more_of(name)}, or leave it out")
    for name, there in labels.items():
        if proof.classes and (gone := sorted(labels["original"] - there)):
            raise ConfigError(
                f"{run.root}: arm {name} has no sample of {len(gone)} classes, {gone[0]} for one; {_more_of(name)}, "
                "leave it out, or train without classes"
            )


def with_view(run: Run, proof: Proof) -> Proof:
    """The declaration with its view by name: what is packed later changes no arm.

    Raises:
        ConfigError: there are several views, and none was packed or named.
        RunError: nothing is decided yet, or there is no such view.
    """
    with exported.opened(run, "cleaned", proof.view) as arm:
        return proof.model_copy(update={"view": arm.view})


def prepare_arm(run: Run, proof: Proof, arm: ArmName, resolution: int) -> TrainingImages:
    """Decode an arm's training samples into ``jobs/images/``, or map what was decoded before; any process may, at once.

    Raises:
        ConfigError, RunError: the arm cannot be made, or what lies in a tar is not what its manifest says.
        SourceError: a truth cannot be read.
    """
    name = SAME_IMAGES.get(arm, arm)
    with _opened(run, proof, name) as opened:
        return prepare_images(opened, resolution, local_root(run) / "jobs" / "images" / f"{name}-{resolution}")


def training_images(run: Run, proof: Proof, arm: ArmName, resolution: int) -> Images:
    """What a job of this arm trains on, as ``idm_core.generators.train`` takes it.

    Raises:
        ConfigError, RunError, SourceError: as ``prepare_arm``.
    """
    images = prepare_arm(run, proof, arm, resolution)
    if arm != "weighted":
        return images.for_training(classes=proof.classes)
    return images.for_training(classes=proof.classes, bad_from=severe_from(run, proof), least_sigma=proof.least_sigma)


def severe_from(run: Run, proof: Proof) -> float:
    """The severity from which on a sample is severe: the declared one, else the one that ``restore`` worked by.

    Raises:
        ConfigError: nothing is restored yet.
    """
    if proof.severe_from is not None:
        return proof.severe_from
    try:
        return float(storage.read_json(run.url(rundir.restored(1), f"{run.shards()[0]}.json"))["threshold"])
    except FileNotFoundError:
        raise ConfigError(f"{run.root}: no severities are known; run `idm-curate restore {run.root}` first") from None


def held_out(run: Run, proof: Proof) -> ImageSet:
    """The reference: untouched good images that no arm trains on, or the set that the declaration names.

    Of the validation split those that the view left alone and whose severity is below ``severe_from``; without those
    that have a duplicate, or another part of their photograph, outside of it, for a data set's own split may divide
    these.

    Raises:
        ConfigError: there are too few.
        SourceError: the set that is named holds no images.
    """
    if proof.reference != HELD_OUT:
        return open_images(proof.reference)
    from pipelines.photo_pool import entries_of_view

    severe = _as_stored(severe_from(run, proof))
    good: dict[str, set[tuple[str, str]]] = {}  # key -> what it shares with others
    outside: set[tuple[str, str]] = set()
    with exported.opened(run, "cleaned", proof.view) as view:
        for shard in run.shards():
            severity = _severities(run, shard)
            for row in view.decided(shard):
                shared = {(name, row[name]) for name in ("duplicate_group", "group") if row[name] is not None}
                if row["split"] != "validation":
                    outside |= shared
                elif row["status"] == "kept_original" and severity[row["key"]] < severe:
                    good[row["key"]] = shared
    chosen = {key for key, shared in good.items() if not shared & outside}
    if len(chosen) < LEAST_HELD_OUT:
        raise ConfigError(
            f"{run.root}: view {view.view} holds out {len(chosen)} good samples, and a reference needs "
            f"{LEAST_HELD_OUT} at least, thousands to be exact. Make a view that holds more out, by `validation: 0.1` "
            "in its policy, and name it as `view`; or name a set of images as `reference`"
        )
    entries = entries_of_view(run.url("views", f"{view.view}.parquet"))
    return ImageSet(f"held-out of {run.root}, view {view.view}", tuple(e for e in entries if e.key in chosen))


@dataclass(frozen=True, slots=True)
class _Arm:
    """An arm as ``prepare_images`` takes it."""

    view: exported.Arm  # what was decided
    name: ArmName
    fingerprint: str
    severe: tuple[float, str]  # from this severity and key on, samples are, as manifests hold them
    operation: str | None  # of ``PLACEBOS``

    @property
    def run(self) -> Run:
        return self.view.run

    def samples(self, shard: str) -> list[Row]:
        """The shard's samples, by key; split as the view says, and the bytes of the source's image or the view's."""
        rows = [row for row in self.view.decided(shard) if row["status"] != "failed"]
        if self.name == "cleaned":
            rows = [row for row in rows if not left_out(row)]
        elif self.name in ("combined", "filter"):
            severity = _severities(self.run, shard)
            good = {row["key"] for row in rows if (severity[row["key"]], row["key"]) < self.severe}
            if self.name == "combined":
                # The rejected are dropped whatever their severity: something was wrong, and could not be mended.
                good -= {row["key"] for row in rows if row["status"] == "rejected"}
                good |= {row["key"] for row in rows if row["status"] == "restored"}
            rows = [row for row in rows if row["key"] in good]
        columns = ["key", *schema.names(schema.LOCATION)]
        places = shards.read_rows(self.run.url(rundir.SOURCE), shard, columns).to_pylist()
        as_it_came = {row["key"]: row | {"origin": "source"} for row in places}
        unread = {"severity": None} if self.name in _UNREAD else {}
        mended = {row["key"] for row in rows if self.name in _RESTORING and row["status"] == "restored"}
        return [row if row["key"] in mended else row | as_it_came[row["key"]] | unread for row in rows]

    def check(self, shard: str, samples: Sequence[Row]) -> None:
        self.view.check(shard, samples)

    def described(self, shard: str, samples: Sequence[Row]) -> list[Row]:
        return self.view.described(shard, samples)

    def pixels(self, shard: str, samples: Sequence[Row], resolution: int) -> Iterator[Pixels]:
        if self.name == "pristine":
            return read_truths(_truths(self.run, shard, samples), lambda data: pixels_at(data, resolution, "center"))
        pixels = self.view.pixels(shard, samples, resolution)
        return map(PLACEBOS[self.operation], pixels) if self.operation is not None else pixels


@contextlib.contextmanager
def _opened(run: Run, proof: Proof, name: ArmName) -> Iterator[_Arm]:
    with exported.opened(run, "cleaned", proof.view) as view:
        severe = (math.inf, "")
        if name == "filter" and proof.drop is not None:
            severe = _worst(view, proof.drop)
        elif name in ("combined", "filter"):
            severe = (_as_stored(severe_from(run, proof)), "")
        operation = proof.placebo if name == "placebo" else None
        fingerprint = rundir.fingerprint(view.fingerprint, "proof", name, severe, operation)
        yield _Arm(view, name, fingerprint, severe, operation)


def _worst(view: exported.Arm, share: float) -> tuple[float, str]:
    """Severity and key of the least severe one of the worst ``share`` of the training samples."""
    ranked: list[tuple[float, str]] = []
    for shard in view.run.shards():
        severity = _severities(view.run, shard)
        rows = [row for row in view.decided(shard) if row["status"] != "failed" and row["split"] != "validation"]
        ranked += [(severity[row["key"]], row["key"]) for row in rows]
    worst = round(share * len(ranked))
    return sorted(ranked)[-worst] if worst else (math.inf, "")


def _severities(run: Run, shard: str) -> dict[str, float]:
    """Severity of each sample that the restorer did not fail on, by key.

    Raises:
        ConfigError: one is not known.
    """
    rows = shards.read_rows(run.url(rundir.restored(1)), shard, ["key", "status", "severity"]).to_pylist()
    rows = [row for row in rows if row["status"] != "failed"]
    if unknown := [row["key"] for row in rows if row["severity"] is None]:
        raise ConfigError(
            f"{run.root}: the severity of {len(unknown)} samples of {shard} is not known, {unknown[0]} for one: "
            f"neither a reference nor the arms {', '.join(_BY_SEVERITY)} can be made; restore with a restorer that "
            "reads it, name a set of images as `reference`, and leave these arms out"
        )
    return {row["key"]: row["severity"] for row in rows}


def _as_stored(severity: float) -> float:
    """Rounded as manifests hold severities: one that equals the threshold is not below it."""
    return float(np.float32(severity))


def _more_of(name: ArmName) -> str:
    return "declare a higher `severe_from` or a smaller `drop`" if name in _BY_SEVERITY else "look at its view"


def _truths(run: Run, shard: str, samples: Sequence[Row]) -> list[File]:
    """Where the pristine images of samples lie, in order.

    Raises:
        ConfigError: one is not known.
    """
    files = {row["key"]: row["truth"] for row in listing.read(run, shard)}
    if unknown := [row["key"] for row in samples if files.get(row["key"]) is None]:
        raise ConfigError(
            f"{run.root}: arm pristine needs the truth of every sample, and that of {unknown[0]} is not known; give "
            "it by --truth when the run is made, or leave the arm out"
        )
    return [File(**files[row["key"]]) for row in samples]


def _jpeg(pixels: Pixels) -> Pixels:
    """Through JPEG at quality 75, colours at half the resolution: what encoders do unless told otherwise."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=75, subsampling=2)
    with Image.open(buffer) as image:
        return np.asarray(image)


def _sharpen(pixels: Pixels) -> Pixels:
    """An unsharp mask: radius 1 pixel, 100 %, no threshold."""
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.UnsharpMask(1, 100, 0)))


#: Operations that know nothing of damage. They are done at the resolution that is trained at: done before, the
#: reduction would take most of it away again, and the control would be a second ``null``.
PLACEBOS: Final[dict[str, Callable[[Pixels], Pixels]]] = {"jpeg": _jpeg, "sharpen": _sharpen}
