"""The manifest of an export: one part for each shard while it is made, one Parquet file in the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests import schema, shards

#: ``schema.CLEANED`` as far as it is about the exported file: a name in the export takes the place of one in a tar.
SCHEMA = pa.schema(
    [
        pa.field("file_name", pa.string(), nullable=False, metadata={"doc": "path of the image in the export"}),
        *[schema.CLEANED.field(name) for name in schema.CLEANED.names if name != "offset"],
    ],
    metadata={**schema.CLEANED.metadata, "idm_table": "export"},
)


class Parts:
    """The parts that were written so far, in a folder; each holds the rows of one shard's exported images."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def write(self, shard: str, rows: Sequence[dict[str, Any]]) -> None:
        """Write a shard's part, or write it again."""
        table = schema.table_from_rows(list(rows), SCHEMA)
        pq.write_table(table, self._folder / f"{shard}.parquet", compression="zstd")

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Every part in the order of the shards, or some of its columns."""
        for path in sorted(self._folder.glob("*.parquet")):
            with path.open("rb") as f:
                yield shards.read_parquet(f, columns)

    def rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Every row in order, some of its columns."""
        for table in self.tables(columns):
            yield from table.to_pylist()

    def merge(self, path: Path) -> None:
        """Write all parts to one file, one row group a shard."""
        with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
            for table in self.tables():
                writer.write_table(table)
