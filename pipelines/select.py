"""Decide, on the evidence in the manifests and a small YAML policy. Needs no image, no model and no Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from manifests import rundir, schema, shards, storage
from manifests.errors import ConfigError
from manifests.rundir import Run

Column = np.ndarray[Any, np.dtype[np.float64]]

#: What a gate can ask of a candidate, from the columns of its row: name -> (columns, formula). Units are the columns'.
QUANTITIES: dict[str, tuple[tuple[str, ...], Callable[..., Column]]] = {
    "severity_drop": (("severity", "severity_after"), lambda before, after: before - after),
    "severity_after": (("severity_after",), lambda after: after),
    "psnr_source": (("psnr_source",), lambda psnr: psnr),
    "sharpness_gain": (("sharpness", "after_sharpness"), lambda before, after: after - before),
    "noise_rise": (("noise_sigma", "after_noise_sigma"), lambda before, after: after - before),
    "blockiness_rise": (("blockiness", "after_blockiness"), lambda before, after: after - before),
    "exposure_shift": (("exposure", "after_exposure"), lambda before, after: np.abs(after - before)),
    "saturation_shift": (("saturation", "after_saturation"), lambda before, after: np.abs(after - before)),
}


class Gate(BaseModel, frozen=True, extra="forbid"):
    """A candidate passes if its quantity lies within the bounds. A quantity that could not be measured passes."""

    quantity: str
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _check(self) -> Gate:
        if self.quantity not in QUANTITIES:
            raise ValueError(f"unknown quantity {self.quantity!r}; there are {', '.join(QUANTITIES)}")
        if (self.min is None) == (self.max is None):
            raise ValueError(f"gate {self.quantity}: give either min or max")
        return self

    def margin(self, values: Column) -> Column:
        """Distance to the bound, positive inside, in the quantity's unit."""
        return values - self.min if self.min is not None else float(self.max or 0.0) - values


class Policy(BaseModel, frozen=True, extra="forbid"):
    """What becomes of each sample. Gates are asked in order; the first that a candidate fails names the reason."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    min_severity: float = Field(default=0, ge=0, le=1, description="candidates of lower severity are not used")
    gates: tuple[Gate, ...] = ()
    rejected: Literal["keep", "drop"] = Field(default="keep", description="the original of a rejected candidate")
    duplicates: Literal["keep", "drop_exact", "drop_near"] = "keep"
    min_side: int = Field(default=0, ge=0, description="samples with a shorter side in pixels are dropped")


def load_policy(name_or_path: str) -> Policy:
    """A policy that ships with the package, by name, or a YAML file, by path.

    Raises:
        ConfigError: there is no such policy, or a key or value in it is wrong.
    """
    shipped = Path(__file__).parent / "policies"
    path = Path(name_or_path)
    if not path.suffix:
        path = shipped / f"{name_or_path}.yaml"
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Policy.model_validate(loaded)
    except (OSError, UnicodeDecodeError) as error:
        names = ", ".join(sorted(p.stem for p in shipped.glob("*.yaml")))
        raise ConfigError(f"policy {name_or_path}: {error}; give a YAML file or one of: {names}") from error
    except (yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"policy {path}: {error}") from error


def select(run: Run, policy: Policy) -> dict[str, Any]:
    """Write ``views/<policy>.parquet`` and its marker; returns the marker. Does nothing if it is there already."""
    dumped = policy.model_dump(mode="json")
    fingerprint = run.view_fingerprint(dumped)
    url = run.url("views", f"{policy.name}.json")
    if storage.exists(url) and storage.read_json(url)["fingerprint"] == fingerprint:
        return storage.read_json(url)
    with storage.open_read(run.url(rundir.SOURCE, "duplicates.parquet")) as f:
        duplicates = {row["key"]: row for row in shards.read_parquet(f).to_pylist()}
    if storage.exists(url):
        storage.retire(url, run.staging)
    counts: Counter[str] = Counter()
    with run.scratch() as scratch:
        staged = scratch / "view.parquet"
        with pq.ParquetWriter(staged, schema.VIEW, compression="zstd") as writer:
            for shard in run.shards():  # one row group a shard: a reader of one shard reads nothing else
                source = shards.read_rows(run.url(rundir.SOURCE), shard)
                restored = shards.read_rows(run.url(rundir.restored(1)), shard)
                table = decide(source, restored, duplicates, policy)
                writer.write_table(table)
                counts.update(table["status"].to_pylist())
        with staged.open("rb") as f:
            nbytes, digest = shards.sha256_of(f)
        storage.publish(staged, run.url("views", f"{policy.name}.parquet"))
    marker = {
        "fingerprint": fingerprint,
        "policy": dumped,
        "rows": counts.total(),
        "counts": dict(sorted(counts.items())),
        "files": {"parquet": {"name": f"{policy.name}.parquet", "bytes": nbytes, "sha256": digest}},
    }
    storage.write_json(marker, url)
    return marker


def decide(source: pa.Table, restored: pa.Table, duplicates: dict[str, dict[str, Any]], policy: Policy) -> pa.Table:
    """One shard's part of the view: source and restored rows (same keys, same order) under a policy."""
    if source["key"].to_pylist() != restored["key"].to_pylist():
        raise ConfigError("the source and restored manifests of a shard hold different keys; run `verify`")
    verdicts = judge(source, restored, policy)
    rows = []
    for before, after, (gate, margin) in zip(source.to_pylist(), restored.to_pylist(), verdicts, strict=True):
        row = {name: before[name] for name in schema.VIEW.names if name in before}
        row |= {name: duplicates.get(before["key"], {}).get(name) for name in schema.names(schema.DUPLICATES)}
        row |= {"status": after["status"], "reason": after["reason"], "gate": gate, "margin": margin}
        row["origin"] = None if row["status"] == "failed" else "source"
        if after["status"] == "failed":
            rows.append(row)
            continue
        if after["status"] == "restored":
            if gate is None:
                row |= {n: after[n] for n in schema.names(schema.LOCATION)} | {"origin": "restored", "reason": "passed"}
            elif gate == "min_severity":
                row |= {"status": "kept_original", "reason": "below_min_severity"}
            else:
                row |= {"status": "rejected", "reason": f"gate_{gate}"}
                if policy.rejected == "drop":
                    row["origin"] = None
        dropped = _dropped(row, policy)
        if dropped is not None:
            row |= {"status": "rejected", "reason": dropped, "origin": None}
        if row["origin"] is None:
            row |= {"offset": None, "nbytes": None, "output_sha256": None}
        rows.append(row)
    return schema.table_from_rows(rows, schema.VIEW)


def judge(source: pa.Table, restored: pa.Table, policy: Policy) -> list[tuple[str | None, float | None]]:
    """For every row the first gate that its candidate fails and by how much; (None, its smallest margin) if it passes
    all of them; (None, None) where there is no candidate."""

    def column(name: str) -> Column:
        table = restored if name in restored.column_names else source
        values: Column = table[name].to_numpy(zero_copy_only=False).astype(np.float64)  # null => nan
        return values

    severity = column("severity")
    has_candidate = np.array([s == "restored" for s in restored["status"].to_pylist()], dtype=bool)
    verdicts: list[tuple[str | None, float | None]] = [(None, None)] * len(has_candidate)
    margins = []
    for gate in policy.gates:
        names, formula = QUANTITIES[gate.quantity]
        margins.append(gate.margin(formula(*(column(n) for n in names))))
    for i in np.flatnonzero(has_candidate):
        if severity[i] < policy.min_severity:
            verdicts[i] = ("min_severity", float(severity[i] - policy.min_severity))
            continue
        known = [(g.quantity, float(m[i])) for g, m in zip(policy.gates, margins, strict=True) if np.isfinite(m[i])]
        failed = next(((name, margin) for name, margin in known if margin < 0), None)
        verdicts[i] = failed or (None, min((m for _, m in known), default=None))
    return verdicts


def _dropped(row: dict[str, Any], policy: Policy) -> str | None:
    """The reason why the policy drops a sample from the training set, whatever its quality, or None."""
    first = row["duplicate_group"] in (None, row["key"])
    if not first and policy.duplicates == "drop_exact" and row["duplicate_kind"] == "exact":
        return f"duplicate_of: {row['duplicate_group']}"
    if not first and policy.duplicates == "drop_near":
        return f"duplicate_of: {row['duplicate_group']}"
    if min(row["width"], row["height"]) < policy.min_side:
        return "too_small"
    return None
