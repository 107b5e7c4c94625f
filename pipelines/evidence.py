"""Everything that a run knows of every sample, as one table, as far as its stages have come."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from manifests import rundir, schema, shards, storage
from manifests.errors import RunError
from manifests.rundir import Run

Numbers = npt.NDArray[np.float64]

_PLACES = {"face_box", "face_landmarks"}
_FROM_SOURCE = ["key", "shard", "status", "reason", "source_bytes", *schema.names(schema.MEASUREMENTS)]
# Where a face lies is fourteen numbers a row that no figure needs.
_FROM_RESTORED = ["status", "reason", *(n for n in schema.names(schema.RESTORATION) if n not in _PLACES)]
_FROM_VIEW = ["status", "reason", *schema.names(schema.DUPLICATES), *schema.names(schema.DECISION)]
#: The columns of the table, in order; names and units are the manifests'.
COLUMNS = list(dict.fromkeys([*_FROM_SOURCE, *_FROM_RESTORED, *_FROM_VIEW]))
# Few distinct values over a million rows: kept as dictionaries, which costs 4 bytes a row.
_REPEATED = {"shard", "status", "face_model", "duplicate_kind", "gate", "origin"}


@dataclass(frozen=True, slots=True)
class Stage:
    """How far a stage has come: its valid shards, and why the others are not."""

    name: str  # its folder in the run
    planned: int
    done: tuple[str, ...]
    missing: dict[str, str]  # shard -> the reason in words
    rows: int
    counts: dict[str, int]  # rows by status
    tar_bytes: int

    @property
    def complete(self) -> bool:
        return len(self.done) == self.planned


@dataclass(frozen=True, slots=True)
class Evidence:
    """One row for each sample of every ingested shard (``table``, columns ``COLUMNS``), and where the rows are from."""

    table: pa.Table
    source: Stage
    restored: Stage
    cleaned: Stage
    view: str | None  # the policy that decided; None: the statuses are provisional
    view_marker: dict[str, Any]

    def numbers(self, column: str) -> Numbers:
        """A column as float64, null as NaN."""
        return np.asarray(self.table[column].cast(pa.float64()).to_numpy(), dtype=np.float64)

    def is_(self, column: str, value: str) -> npt.NDArray[np.bool_]:
        """Where a text column has this value; False where it is null."""
        equal = pc.fill_null(pc.equal(self.table[column].cast(pa.string()), value), False)
        return np.asarray(equal.to_numpy(), dtype=bool)


def read_stage(run: Run, folder: str, fingerprint: str | None) -> Stage:
    """The state of a stage's shards. ``fingerprint`` None: its input is not there, so nothing of it can be valid."""
    planned = run.shards()
    done: list[str] = []
    missing: dict[str, str] = {}
    rows, tar_bytes, counts = 0, 0, Counter[str]()
    there = set(storage.list_names(run.url(folder), ".json"))
    for shard in planned:
        if f"{shard}.json" not in there:
            missing[shard] = "no marker"
            continue
        why = "its input is gone" if fingerprint is None else shards.why_not_done(run.url(folder), shard, fingerprint)
        if why is not None:
            missing[shard] = why
            continue
        marker = storage.read_json(run.url(folder, f"{shard}.json"))
        done.append(shard)
        rows += marker["rows"]
        counts.update(marker["counts"])
        tar_bytes += marker["files"]["tar"]["bytes"]
    return Stage(folder, len(planned), tuple(done), missing, rows, dict(sorted(counts.items())), tar_bytes)


def latest_round(run: Run) -> int:
    """Number of the last restoration round that has begun; 1 if none has."""
    names = storage.list_names(run.url("restored"))
    return max((int(n.removeprefix("round")) for n in names if n.removeprefix("round").isdecimal()), default=1)


def read_evidence(run: Run, view: str | None = None) -> Evidence:
    """Read what the run holds; ``view`` names the policy, by default the one that ``cleaned/`` was packed by.

    Raises:
        RunError: nothing has been ingested yet, or there is no such view.
    """
    if view is not None and view not in _views(run):
        raise RunError(f"{run.root}: there is no view {view!r}; there are: {', '.join(_views(run)) or 'none'}")
    listed = run.shards()
    restored_folder = rundir.restored(latest_round(run))
    source = read_stage(run, rundir.SOURCE, run.stage_fingerprint(rundir.SOURCE))
    restored = read_stage(run, restored_folder, run.stage_fingerprint(restored_folder))
    view = view or _packed_view(run, listed) or _first_view(run)
    marker = storage.read_json(run.url("views", f"{view}.json")) if view else {}
    packed = rundir.cleaned_fingerprint(marker) if view else None
    cleaned = read_stage(run, rundir.CLEANED, packed)
    tables = list(_shard_tables(run, source, restored, cleaned, view))
    table = pa.concat_tables(tables) if tables else schema.CLEANED.empty_table().select(COLUMNS)
    return Evidence(table.unify_dictionaries(), source, restored, cleaned, view, marker)


def _packed_view(run: Run, listed: list[str]) -> str | None:
    """The view that ``cleaned/`` says it was packed by, if that view is still there."""
    there = set(storage.list_names(run.url(rundir.CLEANED), ".json"))
    for shard in listed:
        if f"{shard}.json" not in there:
            continue
        with contextlib.suppress(ValueError):  # a marker that does not parse is told by read_stage
            name = storage.read_json(run.url(rundir.CLEANED, f"{shard}.json")).get("view")
            return name if name in _views(run) else None
    return None


def _first_view(run: Run) -> str | None:
    names = _views(run)
    return "default" if "default" in names else next(iter(names), None)


def _views(run: Run) -> list[str]:
    """Names of the complete views, sorted."""
    return [name.removesuffix(".json") for name in storage.list_names(run.url("views"), ".json")]


def _shard_tables(run: Run, source: Stage, restored: Stage, cleaned: Stage, view: str | None) -> Iterator[pa.Table]:
    """One table a shard: read from the product where that is done, else joined from the stages before it."""
    packed, candidates = set(cleaned.done), set(restored.done)
    joined = [shard for shard in source.done if shard not in packed]
    decisions = _decisions(run, view) if view and joined else {}
    duplicates = _duplicates(run) if joined else None
    for shard in source.done:
        if shard in packed:
            yield _encoded(shards.read_rows(run.url(cleaned.name), shard, COLUMNS))
            continue
        table = shards.read_rows(run.url(source.name), shard, _FROM_SOURCE)
        if duplicates is not None:
            table = _joined(table, duplicates)
        if shard in candidates:
            columns = ["key", *_FROM_RESTORED]
            table = _joined(table, shards.read_rows(run.url(restored.name), shard, columns))
        if shard in decisions:
            table = _joined(table, decisions[shard])
        for name in COLUMNS:
            if name not in table.column_names:
                table = table.append_column(name, pa.nulls(len(table), schema.CLEANED.field(name).type))
        yield _encoded(table.select(COLUMNS))


def _joined(table: pa.Table, later: pa.Table) -> pa.Table:
    """``table`` with the columns of ``later``, matched by key; where a later stage has the row, its columns win."""
    match = pc.index_in(table["key"].combine_chunks(), value_set=later["key"].combine_chunks())
    known = pc.is_valid(match)
    for name in later.column_names:
        if name == "key":
            continue
        values = later[name].combine_chunks().take(match)
        if name in table.column_names:
            values = pc.if_else(known, values, table[name].combine_chunks())
            table = table.set_column(table.column_names.index(name), name, values)
        else:
            table = table.append_column(name, values)
    return table


def _decisions(run: Run, view: str) -> dict[str, pa.Table]:
    """The view, cut into shards; its rows lie shard by shard."""
    with storage.open_read(run.url("views", f"{view}.parquet")) as f:
        table = shards.read_parquet(f, ["key", "shard", *_FROM_VIEW])
    runs = pc.run_end_encode(table["shard"].combine_chunks())
    ends = runs.run_ends.to_pylist()
    starts = [0, *ends[:-1]]
    names = runs.values.to_pylist()
    table = table.drop_columns("shard")
    return {name: table.slice(lo, hi - lo) for name, lo, hi in zip(names, starts, ends, strict=True)}


def _duplicates(run: Run) -> pa.Table | None:
    """The duplicates found at ingest, or None while they have not been looked for."""
    if not storage.exists(run.url(rundir.SOURCE, "duplicates.parquet")):
        return None
    with storage.open_read(run.url(rundir.SOURCE, "duplicates.parquet")) as f:
        return shards.read_parquet(f, ["key", *schema.names(schema.DUPLICATES)])


def _encoded(table: pa.Table) -> pa.Table:
    for i, name in enumerate(table.column_names):
        if name in _REPEATED:
            table = table.set_column(i, name, table[name].dictionary_encode())
    return table.replace_schema_metadata(None)
