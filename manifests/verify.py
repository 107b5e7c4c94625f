"""Audit a run directory: is everything that was planned there, whole, and does it add up? Needs no torch and no Ray."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator

from manifests import attempts, listing, rundir, schema, shards, status, storage
from manifests.errors import ShardError
from manifests.keys import photograph_key
from manifests.rundir import Run


def problems(run: Run, *, hashes: bool = False) -> Iterator[str]:
    """Every contradiction found, one sentence each; none if all is well.

    Checked: each planned shard of each stage is done (marker, fingerprint, sizes; with ``hashes`` SHA-256 of every file
    and of every sample at its recorded offset); keys in equal keys out; statuses are known and add up to the
    marker's counts; each view has one row for each key; nothing foreign lies among the shards; no shard was given up.
    """
    yield from _listing(run, hashes)
    planned = run.shards()
    listed = {shard: [row["key"] for row in listing.read(run, shard)] for shard in planned}
    keys = _faces_of(run, listed) if run.config["ingest"]["align"] else listed
    for folder, fingerprint in status.shard_stages(run):
        url = run.url(folder)
        for shard in planned:
            why = shards.why_not_done(url, shard, fingerprint, hashes=hashes)
            if why is not None:
                yield f"{folder}/{shard}: {why}"
                continue
            if folder == rundir.SOURCE and {photograph_key(k) for k in keys[shard]} != set(listed[shard]):
                yield f"{folder}/{shard}: its faces are not of the photographs of the listing"
            yield from (f"{folder}/{shard}: {problem}" for problem in _shard(url, shard, keys[shard], hashes))
        yield from (f"{folder}/{name}: no shard of this run" for name in _foreign(url, planned))
    for name in storage.list_names(run.url("views"), ".json"):
        yield from _view(run, name.removesuffix(".json"), [k for shard in planned for k in keys[shard]], hashes)
    for failure in attempts.given_up(run):
        yield f"{failure['stage']}/{failure['shard']}: given up after {failure['attempts']} attempts"


def _faces_of(run: Run, listed: dict[str, list[str]]) -> dict[str, list[str]]:
    """Where faces were cut out of photographs: the keys that ingest made of the listing's, for the stages after it."""
    fingerprint = run.stage_fingerprint(rundir.SOURCE)
    url = run.url(rundir.SOURCE)
    done = [s for s in listed if shards.why_not_done(url, s, fingerprint) is None]
    return listed | {s: shards.read_rows(url, s, ["key"])["key"].to_pylist() for s in done}


def _listing(run: Run, hashes: bool) -> Iterator[str]:
    marker, url = run.listing(), run.url(rundir.SOURCE, "listing.parquet")
    if storage.size(url) != marker["bytes"]:
        yield f"source/listing.parquet: {storage.size(url)} bytes, its marker says {marker['bytes']}"
    elif hashes:
        with storage.open_read(url) as f:
            if shards.sha256_of(f)[1] != marker["sha256"]:
                yield "source/listing.parquet: another SHA-256 than its marker says"


def _shard(url: str, shard: str, keys: list[str], hashes: bool) -> Iterator[str]:
    table = shards.read_rows(url, shard, ["key", "status", "ext", "offset", "nbytes", "output_sha256"])
    found = table["key"].to_pylist()
    if found != keys:
        lost, extra = set(keys) - set(found), set(found) - set(keys)
        yield f"keys are not those of the listing: {len(lost)} lost, {len(extra)} foreign, {len(found)} rows"
    counts = Counter(table["status"].to_pylist())
    marker = storage.read_json(storage.join(url, f"{shard}.json"))
    if dict(counts) != marker["counts"] or sum(counts.values()) != marker["rows"]:
        yield f"statuses {dict(counts)} do not add up to the marker's {marker['counts']}"
    if unknown := counts.keys() - set(schema.STATUSES):
        yield f"unknown statuses {sorted(unknown)}"
    if not hashes:
        return
    rows = [r for r in table.to_pylist() if r["offset"] is not None]
    try:
        samples = shards.read_samples(storage.join(url, f"{shard}.tar"), [(r["offset"], r["nbytes"]) for r in rows])
        for row, data in zip(rows, samples, strict=True):
            if hashlib.sha256(data).hexdigest() != row["output_sha256"]:
                yield f"{row['key']}: its bytes in the tar have another SHA-256 than its row says"
    except ShardError as error:
        yield str(error)


def _foreign(url: str, planned: list[str]) -> list[str]:
    stems = {*planned, "listing", "duplicates", "index", "README"}
    return [n for n in storage.list_names(url) if n.rsplit(".", 1)[0] not in stems]


def _view(run: Run, name: str, keys: list[str], hashes: bool) -> Iterator[str]:
    marker = storage.read_json(run.url("views", f"{name}.json"))
    url = run.url("views", f"{name}.parquet")
    recorded = marker["files"]["parquet"]
    if storage.size(url) != recorded["bytes"]:
        yield f"views/{name}.parquet: {storage.size(url)} bytes, its marker says {recorded['bytes']}"
        return
    with storage.open_read(url) as f:
        if hashes and shards.sha256_of(f)[1] != recorded["sha256"]:
            yield f"views/{name}.parquet: another SHA-256 than its marker says"
        table = shards.read_parquet(f, ["key", "status"])
    if table["key"].to_pylist() != keys:
        yield f"views/{name}: its keys are not those of the listing"
    if dict(Counter(table["status"].to_pylist())) != marker["counts"]:
        yield f"views/{name}: statuses do not add up to the marker's counts"
