"""Source shards to candidates: every sample is looked at, the damaged ones are restored, all of it is measured."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from manifests import listing, rundir, schema, shards
from manifests.errors import ShardError
from manifests.rundir import Run
from pipelines import changes, datasets, faces, images, niqe, progress, restorers
from pipelines.changes import psnr
from pipelines.config import FEW, EvidenceConfig, FacesConfig, RestoreConfig
from pipelines.faces import FaceModel
from pipelines.measure import measure
from pipelines.niqe import Pristine
from pipelines.restorers import Restorer
from pipelines.weights import weights_folder

Pixels = np.ndarray[Any, np.dtype[np.uint8]]  # HxWx3

if TYPE_CHECKING:
    from idm_core import Restoration
    from idm_core.losses import Perceptual

ROUND = 1
# What is handed to the restorer at once: enough to fill its batches, little enough to hold in memory.
BATCH_PIXELS = 4_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Instruments:
    """What looks at a candidate beside the measurements that need no weights."""

    perceptual: Perceptual | None = None
    pristine: Pristine | None = None
    faces: FaceModel | None = None


def open_instruments(run: Run) -> Instruments:
    """Those that ``run.json`` names, on the CPU.

    Raises:
        ConfigError: a file or a package that they need is not on this machine; the message says what goes where.
    """
    evidence = EvidenceConfig.model_validate(run.config["evidence"])
    model = FacesConfig.model_validate(run.config["faces"]).model
    return Instruments(
        perceptual=changes.open_perceptual() if evidence.lpips else None,
        pristine=niqe.open_pristine() if evidence.niqe else None,
        faces=faces.open_faces(model, weights_folder()),
    )


def open_restore(run: Run, device: str) -> Callable[[str], dict[str, Any]]:
    """The stage's work: the restorer and the instruments, loaded once, over the samples of a shard."""
    from idm_core import Restorer as IDM

    config = RestoreConfig.model_validate(run.config["restore"])
    restorer = restorers.open_restorer(config.restorer, device, severity=config.severity)
    found = [(config.restorer, restorer.model_sha256, config.sha256)]
    if config.severity is not None:
        found.append((config.severity, restorers.digest(config.severity), config.severity_sha256))
    for name, here, wanted in found:
        if here != wanted:
            raise ShardError(
                f"restorer {name}: its SHA-256 here is {here}, the run was made with {wanted}; install the same on "
                "every node"
            )
    fingerprint = run.stage_fingerprint(rundir.restored(ROUND))
    instruments = open_instruments(run)
    if config.identity is not None and isinstance(restorer, IDM) and instruments.faces is not None:
        restorer.identity = partial(faces.identity_margin, instruments.faces)
        restorer.identity_floor = config.identity

    def work(shard: str) -> dict[str, Any]:
        with run.scratch() as scratch:
            return restore_shard(run, shard, restorer, instruments, config, fingerprint, scratch)

    return work


def restore_shard(
    run: Run,
    shard: str,
    restorer: Restorer,
    instruments: Instruments,
    config: RestoreConfig,
    fingerprint: str,
    scratch: Path,
) -> dict[str, Any]:
    """Write one shard of candidates and a measured row for every sample; returns its marker.

    Raises:
        ShardError: the restorer failed on more samples than ``config.max_failed``; nothing was written.
    """
    columns = ["key", "shard", "source_name", "status", "reason", "offset", "nbytes"]
    planned: list[dict[str, Any]] = shards.read_rows(run.url(rundir.SOURCE), shard, columns).to_pylist()
    rows = [r for r in planned if r["status"] == "failed"]
    good = [r for r in planned if r["status"] != "failed"]
    truths = _read_truths(run, shard, good)
    with shards.StagedTar(scratch / f"{shard}.tar") as tar:
        for batch, pixels in _batches(run.url(rundir.SOURCE, f"{shard}.tar"), good):
            for row, source, outcome in zip(batch, pixels, _restore(restorer, config, batch, pixels), strict=True):
                rows.append(_take_in(row, source, outcome, next(truths), instruments, tar))
        shards.locate(rows, tar.close())
    broken = sum(str(r["reason"]).startswith("restorer_error") for r in rows)
    if len(rows) >= FEW and broken > config.max_failed * len(rows):
        raise ShardError(f"{shard}: the restorer failed on {broken} of {len(rows)} samples: {_first_failure(rows)}")
    return shards.commit(
        run.url(rundir.restored(ROUND)), shard, fingerprint, tar.path, rows, schema.RESTORED, rubbish=run.staging,
        extra={"stage": rundir.restored(ROUND), "threshold": _threshold(restorer, config)},
    )  # fmt: skip


def _threshold(restorer: Restorer, config: RestoreConfig) -> float:
    return restorer.config.threshold if config.threshold is None else config.threshold


def _take_in(
    row: dict[str, Any],
    source: Pixels,
    outcome: Restoration | RuntimeError,
    truth: Pixels | None,
    instruments: Instruments,
    tar: shards.StagedTar,
) -> dict[str, Any]:
    """The row of one sample after the restorer saw it; a candidate goes into the tar."""
    progress.tick()
    row = row | {"offset": None, "nbytes": None}
    if isinstance(outcome, RuntimeError):
        return row | {"status": "failed", "reason": f"restorer_error: {outcome}"}
    if outcome.image.shape != source.shape or outcome.image.dtype != source.dtype:
        found = f"{outcome.image.dtype} {outcome.image.shape} for a source of {source.dtype} {source.shape}"
        return row | {"status": "failed", "reason": f"restorer_error: a candidate of {found}"}
    row |= {"severity": outcome.severity, "passes": outcome.passes, "evaluations": outcome.evaluations}
    row |= {"stop": outcome.stop}
    if truth is not None:
        row["truth_psnr_before"] = psnr(source, truth)
    if np.array_equal(outcome.image, source):
        return row | {"status": "kept_original", "reason": outcome.stop, **faces.compare(instruments.faces, source)}
    candidate = images.encode_png(outcome.image)
    tar.add(row["key"], {"png": candidate})
    if truth is not None:
        row["truth_psnr_after"] = psnr(outcome.image, truth)
    return row | {
        "status": "restored",
        "reason": None,
        "severity_after": outcome.severity_after,
        "ext": "png",
        "width": outcome.image.shape[1],
        "height": outcome.image.shape[0],
        "output_sha256": hashlib.sha256(candidate).hexdigest(),
        **measure_candidate(outcome.image, source, instruments),
    }


def _read_truths(run: Run, shard: str, rows: Sequence[dict[str, Any]]) -> Iterator[Pixels | None]:
    """The pristine image of each row, in order; None where there is none. SourceError: one cannot be read."""
    known = {r["key"]: datasets.File(**r["truth"]) for r in listing.read(run, shard) if r["truth"] is not None}
    read = datasets.read_truths([known[r["key"]] for r in rows if r["key"] in known], lambda d: images.decode(d).rgb)
    for row in rows:
        yield next(read) if row["key"] in known else None


def _batches(tar_url: str, rows: Sequence[dict[str, Any]]) -> Iterator[tuple[list[dict[str, Any]], list[Pixels]]]:
    """Rows with their decoded images (HxWx3 uint8), in order, at most ``BATCH_PIXELS`` at once (or one image)."""
    batch: list[dict[str, Any]] = []
    pixels: list[Pixels] = []
    for row, data in zip(rows, shards.read_samples(tar_url, [(r["offset"], r["nbytes"]) for r in rows]), strict=True):
        rgb = images.decode(data).rgb
        if batch and sum(p.size for p in pixels) + rgb.size > 3 * BATCH_PIXELS:
            yield batch, pixels
            batch, pixels = [], []
        batch.append(row)
        pixels.append(rgb)
    if batch:
        yield batch, pixels


def _restore(
    restorer: Restorer, config: RestoreConfig, rows: Sequence[dict[str, Any]], pixels: list[Pixels]
) -> list[Restoration | RuntimeError]:
    """Restore a batch; if it fails, each sample alone, so that one that breaks the restorer costs no neighbour."""

    def run(lo: int, hi: int) -> list[Restoration]:
        keys = [r["key"] for r in rows[lo:hi]]
        return restorer.restore(
            pixels[lo:hi], keys, threshold=config.threshold, steps=config.steps, passes=config.passes
        )

    try:
        return [*run(0, len(rows))]
    except RuntimeError:  # torch's own, out of memory among them, or a model's of others
        outcomes: list[Restoration | RuntimeError] = []
        for i in range(len(rows)):
            try:
                outcomes += run(i, i + 1)
            except RuntimeError as error:
                outcomes.append(error)
        return outcomes


def measure_candidate(candidate: Pixels, source: Pixels, instruments: Instruments) -> dict[str, Any]:
    """The evidence columns of one candidate: its measurements, how far it was changed, and what became of a face."""
    after = {f"after_{name}": value for name, value in measure(candidate).items()}
    changed = changes.compare(candidate, source, perceptual=instruments.perceptual)
    natural = instruments.pristine and {
        "niqe": niqe.niqe(source, instruments.pristine),
        "after_niqe": niqe.niqe(candidate, instruments.pristine),
    }
    return {**after, **changed, **(natural or {}), **faces.compare(instruments.faces, source, candidate)}


def _first_failure(rows: Sequence[dict[str, Any]]) -> str:
    return Counter(str(r["reason"]) for r in rows if r["status"] == "failed").most_common(1)[0][0]
