"""Raw photographs to source shards: every source image becomes a row, the good ones with their original bytes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests import keys, listing, rundir, schema, shards, storage
from manifests.errors import ConfigError, SampleError, ShardError, SourceError
from manifests.rundir import Run
from pipelines import datasets, images, progress
from pipelines.config import FEW, IngestConfig

#: One source image to the samples that come of it; raises SampleError where none does.
Cut = Callable[[datasets.Entry, bytes], list[tuple[datasets.Entry, bytes]]]


def write_listing(run: Run, dataset: datasets.Dataset) -> dict[str, Any]:
    """Fix, once, which samples there are, their keys and their shards: ``source/listing.parquet``, then its marker.

    The listing has one row group per shard, so that a worker reads its own part alone.

    Raises:
        SourceError: the source holds no image at all.
    """
    config = run.config["dataset"]
    entries = dataset.entries[: config["limit"]]
    if not entries:
        raise SourceError(f"{dataset.source}: no images found. {datasets.how_to_get(dataset.name)}")
    shard_size, prefix = config["shard_size"], dataset.name
    stems = [keys.photograph_stem(e.key) if run.config["ingest"]["align"] else e.key for e in entries]
    sample_keys = keys.unique_keys(stems, [e.source_name for e in entries])
    rows = [
        asdict(entry) | {"key": key, "shard": f"{prefix}-{i // shard_size:06d}"}
        for i, (key, entry) in enumerate(zip(sample_keys, entries, strict=True))
    ]
    with run.scratch() as scratch:
        staged = scratch / "listing.parquet"
        listing.write(staged, rows, shard_size)
        with staged.open("rb") as f:
            nbytes, digest = shards.sha256_of(f)
        storage.publish(staged, run.url(rundir.SOURCE, "listing.parquet"))
    marker = {
        "rows": len(rows),
        "shard_size": shard_size,
        "prefix": prefix,
        "bytes": nbytes,
        "sha256": digest,
        "source_bytes": source_bytes(entries),
        "licence": dataset.licence,
        "homepage": dataset.homepage,
        "problems": list(dataset.problems),
    }
    storage.write_json(marker, run.url(rundir.SOURCE, "listing.json"))
    return marker


def source_bytes(entries: Sequence[datasets.Entry]) -> int | None:
    """What the images take up together, bytes; None where the listing of a remote source does not say."""
    total = 0
    for entry in entries:
        nbytes = entry.nbytes
        if nbytes is None and entry.error is None:
            nbytes = storage.size(entry.container) if not storage.is_remote(entry.container) else None
        if nbytes is None and entry.error is None:
            return None
        total += nbytes or 0
    return total


def open_ingest(run: Run, device: str) -> Callable[[str], dict[str, Any]]:
    """The stage's work: read, decode, measure and hash each image of a shard; commit tar, manifest and marker."""
    config = IngestConfig.model_validate(run.config["ingest"])
    fingerprint = run.stage_fingerprint(rundir.SOURCE)
    cut = _open_cut(config, run.config["faces"]["model"]) if config.align else _whole

    def work(shard: str) -> dict[str, Any]:
        with run.scratch() as scratch:
            return ingest_shard(run, shard, fingerprint, config, cut, scratch)

    return work


def _whole(entry: datasets.Entry, data: bytes) -> list[tuple[datasets.Entry, bytes]]:
    return [(entry, data)]


def _open_cut(config: IngestConfig, face_model: str) -> Cut:
    """``ingest.align``: each face of a photograph becomes a sample of its own.

    Raises:
        ConfigError: the face model cannot be had on this machine.
    """
    from pipelines.align import cut_faces
    from pipelines.faces import open_faces
    from pipelines.weights import weights_folder

    model = open_faces(face_model, weights_folder())
    if model is None:
        raise ConfigError(f"ingest.align={config.align} needs a face model, and faces.model is {face_model}")
    return lambda entry, data: cut_faces(
        entry, data, model, config.align_size, config.align_min_side, config.max_pixels
    )


def ingest_shard(
    run: Run, shard: str, fingerprint: str, config: IngestConfig, cut: Cut, scratch: Path
) -> dict[str, Any]:
    """Write one source shard, by way of the ``scratch`` folder; returns its marker.

    ``cut`` makes one sample or several of a source image.

    Raises:
        ShardError: more samples than ``config.max_failed`` could not be used; nothing was written.
    """
    # The truth is no business of this stage: whatever it decides must be decided without it.
    planned = [{k: v for k, v in row.items() if k not in ("shard", "truth")} for row in listing.read(run, shard)]
    entries = [datasets.Entry(**row) for row in planned]
    with shards.StagedTar(scratch / f"{shard}.tar") as tar, shards.StagedTar(scratch / "aside.tar") as aside:
        rows = [
            row
            for entry, data in datasets.read_entries(entries)
            for row in _take_in(shard, entry, data, config.max_pixels, cut, tar, aside)
        ]
        shards.locate(rows, tar.close())
        kept_aside = len(aside.close())
    counts = Counter(r["status"] for r in rows)
    if len(rows) >= FEW and counts["failed"] > config.max_failed * len(rows):
        reasons = Counter(str(r["reason"]).split(":")[0] for r in rows if r["status"] == "failed").most_common(3)
        raise ShardError(
            f"{shard}: {counts['failed']} of {len(rows)} samples failed, more than "
            f"ingest.max_failed={config.max_failed:g} allows: {', '.join(f'{n} x {r}' for r, n in reasons)}"
        )
    if kept_aside:
        storage.publish(scratch / "aside.tar", run.url("failures", f"source-{shard}.tar"))
    return shards.commit(
        run.url(rundir.SOURCE), shard, fingerprint, tar.path, rows, schema.SOURCE, rubbish=run.staging,
        extra={"stage": rundir.SOURCE, "kept_aside": kept_aside},
    )  # fmt: skip


def _take_in(
    shard: str,
    entry: datasets.Entry,
    data: bytes | SampleError,
    max_pixels: int,
    cut: Cut,
    tar: shards.StagedTar,
    aside: shards.StagedTar,
) -> list[dict[str, Any]]:
    """The rows of one source image; its bytes go into the shard, or aside if they cannot be used."""
    progress.tick()
    if isinstance(data, SampleError):
        return [_known(shard, entry) | {"status": "failed", "reason": str(data)}]
    try:
        parts = cut(entry, data)
    except SampleError as error:
        return [_put_aside(shard, entry, data, error, aside)]
    rows = []
    for part, part_data in parts:
        try:
            found = describe(part, part_data, max_pixels)
        except SampleError as error:
            rows.append(_put_aside(shard, part, part_data, error, aside))
            continue
        row = _known(shard, part, part_data) | found
        tar.add(part.key, shards.members_of(row, part_data))
        rows.append(row | {"status": "kept_original", "output_sha256": row["source_sha256"]})
    return rows


def _put_aside(
    shard: str, entry: datasets.Entry, data: bytes, error: SampleError, aside: shards.StagedTar
) -> dict[str, Any]:
    aside.add(entry.key, {"bin": data})
    return _known(shard, entry, data) | {"status": "failed", "reason": str(error)}


def _known(shard: str, entry: datasets.Entry, data: bytes | None = None) -> dict[str, Any]:
    """The columns that need no decoding."""
    names = ("key", "source_name", "label", "class_name", "group", "split", "upscale_factor", "metadata")
    row: dict[str, Any] = {"shard": shard} | {n: getattr(entry, n) for n in names}
    if data is not None:
        row |= {"source_bytes": len(data), "source_sha256": hashlib.sha256(data).hexdigest()}
    return row


def describe(entry: datasets.Entry, data: bytes, max_pixels: int) -> dict[str, Any]:
    """Columns that are read off one image: what it is, and every measurement that needs no reference.

    Raises:
        SampleError: it cannot be decoded, or its pixels are not those that the publisher states.
    """
    from pipelines.measure import measure, perceptual_hash

    decoded = images.decode(data, max_pixels=max_pixels, with_md5=entry.pixel_md5 is not None)
    if decoded.pixel_md5 != entry.pixel_md5:
        raise SampleError("pixel_md5_mismatch", f"published {entry.pixel_md5}, found {decoded.pixel_md5}")
    return {
        "ext": images.extension(decoded.format),
        "format": decoded.format,
        "mode": decoded.mode,
        "width": decoded.width,
        "height": decoded.height,
        "notes": [*decoded.notes, *images.notes_for_name(entry.source_name, decoded.format)],
        "phash": perceptual_hash(decoded.rgb),
        **measure(decoded.rgb, data),
    }


def write_duplicates(run: Run) -> dict[str, Any]:
    """Group exact and near duplicates across the whole dataset: ``source/duplicates.parquet``, then its marker."""
    from pipelines.duplicates import group_duplicates

    fingerprint = run.stage_fingerprint(rundir.SOURCE, "duplicates")
    url = run.url(rundir.SOURCE, "duplicates.json")
    if storage.exists(url) and storage.read_json(url)["fingerprint"] == fingerprint:
        return storage.read_json(url)
    columns = ["key", "source_sha256", "phash"]
    table = pa.concat_tables(shards.read_rows(run.url(rundir.SOURCE), s, columns) for s in run.shards())
    groups = group_duplicates(
        *(table[c].to_pylist() for c in columns), max_distance=run.config["ingest"]["duplicate_distance"]
    )
    with run.scratch() as scratch:
        pq.write_table(groups, scratch / "duplicates.parquet")
        storage.publish(scratch / "duplicates.parquet", run.url(rundir.SOURCE, "duplicates.parquet"))
    counts = Counter(groups["duplicate_kind"].to_pylist())
    marker = {"fingerprint": fingerprint, "rows": len(groups), "counts": dict(sorted(counts.items()))}
    storage.write_json(marker, url)
    return marker
