"""The listing: which samples a run has, their keys and shards. Written once, read one row group a shard."""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq

from manifests import storage
from manifests.rundir import SOURCE, Run


def read(run: Run, shard: str) -> list[dict[str, Any]]:
    """The shard's part of the listing: rows by ``schema.LISTING``, sorted by key."""
    with storage.open_read(run.url(SOURCE, "listing.parquet")) as f:
        table = pq.ParquetFile(f).read_row_group(int(shard.rsplit("-", 1)[1]))
    rows: list[dict[str, Any]] = table.sort_by("key").to_pylist()
    return rows
