"""The listing: which samples a run has, their keys and shards. Written once, read one row group a shard."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from manifests import schema, shards, storage
from manifests.rundir import SOURCE, Run


def write(path: Path, rows: Sequence[dict[str, Any]], shard_size: int) -> None:
    """Write rows by ``schema.LISTING`` with one row group a shard; containers are given as ``str``."""
    encoded = [_with_container(row, os.fsencode) for row in rows]
    pq.write_table(schema.table_from_rows(encoded, schema.LISTING), path, row_group_size=shard_size)


def read(run: Run, shard: str) -> list[dict[str, Any]]:
    """The shard's part of the listing: rows by ``schema.LISTING``, sorted by key, containers as ``str``."""
    with storage.open_read(run.url(SOURCE, "listing.parquet")) as f:
        rows = shards.read_parquet_of(f, shard)
    return sorted((_with_container(row, os.fsdecode) for row in rows), key=lambda row: str(row["key"]))


def _with_container(row: dict[str, Any], code: Any) -> dict[str, Any]:
    """The row with its file's and its truth's container en- or decoded: a name on disk is any bytes."""
    row = row | {"container": code(row["container"])}
    if row.get("truth") is not None:
        row["truth"] = row["truth"] | {"container": code(row["truth"]["container"])}
    return row
