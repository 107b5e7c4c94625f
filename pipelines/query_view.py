"""A query's result as a view: the samples that it chooses, with a policy's decisions, as ``pack`` takes it."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from manifests import rundir, schema, shards, storage
from manifests.errors import ConfigError
from manifests.rundir import Run
from pipelines import tables
from pipelines.query import answered
from pipelines.select import NOT_IN_QUERY


def save_view(run: Run, name: str, sql: str, view: str | None = None) -> dict[str, Any]:
    """Save the samples that a query chooses as ``views/<name>.parquet``, with its marker; returns the marker.

    A view has one row for every source key, and so has this: each chosen sample has the decision of another view; the
    rest are ``rejected``, ``not_in_query``, and leave the training set. So a query narrows a training set down, and
    what a policy dropped it cannot bring back.

    Args:
        run: the run; it is locked meanwhile.
        name: of the new view. A query's view of that name is replaced, a policy's is not.
        sql: a query whose result has a column ``key``, each key once.
        view: what decides on the chosen samples, and on those of the table ``samples``; none: what the view of that
            name was made from if there is one already, else see ``tables.deciding_view``.

    Raises:
        ConfigError: the name is not free, no policy has decided yet, or the keys are not the run's, or not distinct.
        RunError: another driver is at work.
    """
    if not tables.VIEW_NAME.fullmatch(name):
        raise ConfigError(f"--view {name}: a view's name is 1 to 64 letters, digits, _ and -")
    url = run.url("views", f"{name}.json")
    with rundir.lock(run.root):
        there = storage.read_json(url) if storage.exists(url) else None
        if there is not None and "query" not in there:
            raise ConfigError(f"--view {name}: a policy's view has that name; choose another")
        base = tables.deciding_view(run, view or (there or {}).get("view"))
        if base is None:
            raise ConfigError(f"{run.root}: no policy has decided yet; run `idm-curate select` first")
        if base == name:
            raise ConfigError(f"--view {name}: it cannot be made from itself; choose another name, or another --policy")
        keys = _keys(run, sql, base)
        decided = storage.read_json(run.url("views", f"{base}.json"))
        chosen = hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()
        fingerprint = rundir.fingerprint(decided["fingerprint"], "query", sql, chosen)
        if there is not None and there["fingerprint"] == fingerprint:
            return there
        with run.scratch() as scratch:
            staged = scratch / "view.parquet"
            counts, splits, unknown = _narrow(run.url("views", f"{base}.parquet"), keys, staged)
            if unknown:
                raise ConfigError(f"--view {name}: {len(unknown)} keys are not of this run, {min(unknown)!r} for one")
            with staged.open("rb") as f:
                nbytes, digest = shards.sha256_of(f)
            if there is not None:
                storage.retire(url, run.staging)
            storage.publish(staged, run.url("views", f"{name}.parquet"))
        marker = {
            "fingerprint": fingerprint,
            "policy": decided["policy"],
            "view": base,
            "query": sql,
            "chosen": len(keys),
            "rows": counts.total(),
            "counts": dict(sorted(counts.items())),
            "files": {"parquet": {"name": f"{name}.parquet", "bytes": nbytes, "sha256": digest}},
        }
        if "splits" in decided:
            marker["splits"] = {"train": splits["train"], "validation": splits["validation"]}
        storage.write_json(marker, url)
    return marker


def _keys(run: Run, sql: str, view: str) -> set[str]:
    with answered(run, sql, view) as answer:
        if "key" not in answer.rows.schema.names:
            raise ConfigError(f"--view: the result has no column key; it has {', '.join(answer.rows.schema.names)}")
        count = Counter(str(key) for batch in answer.rows for key in batch["key"].to_pylist())  # null: no sample's name
    repeated = [key for key, n in count.items() if n > 1]
    if repeated:
        raise ConfigError(
            f"--view: {len(repeated)} keys are in the result more than once, {min(repeated)!r} "
            f"{count[min(repeated)]} times; SELECT DISTINCT, or GROUP BY key"
        )
    return set(count)


def _narrow(url: str, keys: set[str], staged: Path) -> tuple[Counter[str], Counter[str], set[str]]:
    """Copy a view, with everything but these keys left out; statuses, splits of what stays, and keys not found."""
    counts, splits, unknown = Counter[str](), Counter[str](), set(keys)
    with storage.open_read(url) as f, pq.ParquetWriter(staged, schema.VIEW, compression="zstd") as writer:
        decided = pq.ParquetFile(f)
        for i in range(decided.num_row_groups):  # one a shard
            rows = decided.read_row_group(i, use_threads=False).to_pylist()
            for row in rows:
                if row["key"] in keys:
                    unknown.discard(row["key"])
                elif row["status"] != "failed":
                    row |= {"status": "rejected", "reason": NOT_IN_QUERY, "origin": None}
                    row |= {"offset": None, "nbytes": None, "output_sha256": None}
            writer.write_table(schema.table_from_rows(rows, schema.VIEW))
            counts.update(row["status"] for row in rows)
            splits.update(row["split"] for row in rows if row["origin"] is not None)
    return counts, splits, unknown
