"""Decide, on the evidence in the manifests and a small YAML policy. Needs no image, no model and no Ray."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from manifests import rundir, schema, shards, storage
from manifests.errors import ConfigError
from manifests.rundir import Run

Column = np.ndarray[Any, np.dtype[np.float64]]
Row = dict[str, Any]
Split = Callable[[str, str | None], str | None]  # key, the dataset's own split -> split

#: Reasons of what a view leaves out whatever its quality; the key that stays follows the first.
DUPLICATE_OF, TOO_SMALL, NOT_IN_QUERY = LEFT_OUT = ("duplicate_of", "too_small", "not_in_query")

#: What a gate can ask of a candidate, from the columns of its row: name -> (columns, formula). Units are the columns'.
QUANTITIES: dict[str, tuple[tuple[str, ...], Callable[..., Column]]] = {
    # 1 the very same face, 0 as alike as the face model asks of one person, below 0 another: for every model alike.
    "identity_margin": (("identity_cosine", "same_person"), lambda cosine, least: (cosine - least) / (1 - least)),
    "landmark_error": (("landmark_error",), lambda error: error),
    "faces_lost": (("faces", "faces_after"), lambda before, after: before - after),
    "redegradation": (("redegradation",), lambda psnr: psnr),
    "consistency": (("consistency",), lambda psnr: psnr),
    "colour_drift": (("colour_drift",), lambda drift: drift),
    "lpips_source": (("lpips_source",), lambda distance: distance),
    "ssim_source": (("ssim_source",), lambda similarity: similarity),
    "niqe_drop": (("niqe", "after_niqe"), lambda before, after: before - after),
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
    damaged: Literal["restore_or_drop", "restore_or_keep", "drop"] = Field(
        default="restore_or_drop",
        description="what a damaged sample becomes: its candidate; if none passes, nothing or what it was. Or nothing",
    )
    duplicates: Literal["keep", "drop_exact", "drop_near", "keep_best"] = Field(
        default="keep", description="drop_*: all but the first of each group leave; keep_best: all but the best"
    )
    min_side: int = Field(default=0, ge=0, description="samples with a shorter side in pixels are dropped")
    validation: float = Field(default=0, ge=0, lt=1, description="share of the samples that is held out")


def load_policy(name_or_path: str, *, validation: float | None = None) -> Policy:
    """A policy that ships with the package, by name, or a YAML file, by path; ``validation`` overrides its own.

    Raises:
        ConfigError: there is no such policy, or a key or value in it is wrong.
    """
    shipped = Path(__file__).parent / "policies"
    path = Path(name_or_path)
    if not path.suffix:
        path = shipped / f"{name_or_path}.yaml"
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        policy = Policy.model_validate(loaded)
        return policy if validation is None else policy.model_copy(update={"validation": validation})
    except (OSError, UnicodeDecodeError) as error:
        names = ", ".join(sorted(p.stem for p in shipped.glob("*.yaml")))
        raise ConfigError(f"policy {name_or_path}: {error}; give a YAML file or one of: {names}") from error
    except (yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"policy {path}: {error}") from error


def select(run: Run, policy: Policy) -> dict[str, Any]:
    """Write ``views/<policy>.parquet`` and its marker; returns the marker. Does nothing if it is there already.

    Raises:
        ConfigError: a query's view has the policy's name.
    """
    dumped = policy.model_dump(mode="json")
    fingerprint = run.view_fingerprint(dumped)
    url = run.url("views", f"{policy.name}.json")
    there = storage.read_json(url) if storage.exists(url) else None
    if there is not None and "query" in there:
        raise ConfigError(f"{url}: that view was saved by `idm-curate query`; give the policy another name")
    if there is not None and there["fingerprint"] == fingerprint:
        return there
    with storage.open_read(run.url(rundir.SOURCE, "duplicates.parquet")) as f:
        duplicates = {row["key"]: row for row in shards.read_parquet(f).to_pylist()}
    if there is not None:
        storage.retire(url, run.staging)
    best = best_of_groups(run, duplicates, policy) if policy.duplicates == "keep_best" else {}
    columns = ["key", "group", "split"]
    samples = (r for s in run.shards() for r in shards.read_rows(run.url(rundir.SOURCE), s, columns).to_pylist())
    split = splitter(samples, duplicates, policy.validation)
    counts: Counter[str] = Counter()
    unasked: Counter[str] = Counter({gate.quantity: 0 for gate in policy.gates})
    splits: Counter[str] = Counter()
    with run.scratch() as scratch:
        staged = scratch / "view.parquet"
        with pq.ParquetWriter(staged, schema.VIEW, compression="zstd") as writer:
            for shard in run.shards():  # one row group a shard: a reader of one shard reads nothing else
                source = shards.read_rows(run.url(rundir.SOURCE), shard)
                restored = shards.read_rows(run.url(rundir.restored(1)), shard)
                table = decide(source, restored, duplicates, policy, best, split)
                writer.write_table(table)
                counts.update(table["status"].to_pylist())
                unasked.update(could_not_ask(source, restored, policy))
                splits.update(r["split"] for r in table.select(["split", "origin"]).to_pylist() if r["origin"])
        with staged.open("rb") as f:
            nbytes, digest = shards.sha256_of(f)
        storage.publish(staged, run.url("views", f"{policy.name}.parquet"))
    marker = {
        "fingerprint": fingerprint,
        "policy": dumped,
        "rows": counts.total(),
        "counts": dict(sorted(counts.items())),
        "unasked": dict(unasked),  # candidates that a gate let pass because its quantity could not be measured
        "files": {"parquet": {"name": f"{policy.name}.parquet", "bytes": nbytes, "sha256": digest}},
    }
    if policy.validation:  # of the training set alone
        marker["splits"] = {"train": splits["train"], "validation": splits["validation"]}
    storage.write_json(marker, url)
    return marker


def best_of_groups(run: Run, duplicates: Mapping[str, Row], policy: Policy) -> dict[str, str]:
    """The best sample of each group of duplicates, by ``quality_rank``: group -> key.

    Only samples that the policy would keep otherwise are asked; a group in which it keeps none is missing.
    """
    alone = policy.model_copy(update={"duplicates": "keep"})
    ranked: dict[str, tuple[float, float, float, str]] = {}
    for shard in run.shards():
        source = shards.read_rows(run.url(rundir.SOURCE), shard)
        restored = shards.read_rows(run.url(rundir.restored(1)), shard)
        grouped = np.flatnonzero([key in duplicates for key in source["key"].to_pylist()])
        source, restored = source.take(grouped), restored.take(grouped)
        kept = decide(source, restored, duplicates, alone)["origin"].to_pylist()
        for before, after, origin in zip(source.to_pylist(), restored.to_pylist(), kept, strict=True):
            if origin is not None:
                group, rank = duplicates[before["key"]]["duplicate_group"], quality_rank(before, after)
                ranked[group] = min(rank, ranked.get(group, rank))
    return {group: rank[-1] for group, rank in ranked.items()}


def quality_rank(source: Row, restored: Row) -> tuple[float, float, float, str]:
    """Orders copies of one image, the best first: least severity, most effective pixels, greatest sharpness, least key.

    The severity counts in steps of 0.05: finer differences between good images mean nothing. Effective pixels are width
    x height x effective resolution squared, so that an enlarged copy gains nothing. What could not be measured ranks
    last.
    """
    severity = float("inf") if restored["severity"] is None else float(round(20 * restored["severity"]))
    pixels = source["width"] * source["height"] * (source["effective_resolution"] or 0.0) ** 2
    return severity, -pixels, -(source["sharpness"] or 0.0), source["key"]


def splitter(samples: Iterable[Row], duplicates: Mapping[str, Row], share: float) -> Split:
    """Which samples are held out: a function of a key and of what the dataset itself says.

    Samples hang together if they are in one group of duplicates or come from one photograph, and so on from one to the
    next. All that hang together are held out or none: those of which the dataset holds out any, and of the others those
    whose smallest key has a hash under ``share``. So a sample's side depends on no other that it does not hang together
    with, and stays when the dataset grows.

    Args:
        samples: ``key``, ``group`` (a photograph's) and ``split`` (the dataset's own) of every sample; read once.
        duplicates: rows of ``duplicates.parquet`` by key.
        share: of the samples that are held out, 0-1; 0 leaves every sample what the dataset says.
    """
    if not share:
        return lambda key, own: own
    parent: dict[str, str] = {}

    def first_of(name: str) -> str:
        while (above := parent.get(name, name)) != name:
            parent[name] = parent.get(above, above)  # halves the way for the next
            name = above
        return name

    def join(a: str, b: str) -> None:
        low, high = sorted((first_of(a), first_of(b)))
        if low != high:
            parent[high] = low

    for key, row in duplicates.items():
        join(key, row["duplicate_group"])
    photographs: dict[str, str] = {}
    held_out_by_dataset = []
    for row in samples:
        if row["group"] is not None:
            join(row["key"], photographs.setdefault(row["group"], row["key"]))
        if row["split"] == "validation":
            held_out_by_dataset.append(row["key"])
    held_out = {first_of(key) for key in held_out_by_dataset}

    def split(key: str, own: str | None) -> str:
        first = first_of(key)
        number = int.from_bytes(hashlib.sha256(f"validation:{first}".encode()).digest()[:8], "big")
        return "validation" if first in held_out or number < share * 2**64 else "train"

    return split


def decide(
    source: pa.Table,
    restored: pa.Table,
    duplicates: Mapping[str, Row],
    policy: Policy,
    best: Mapping[str, str] | None = None,
    split: Split = lambda key, own: own,
) -> pa.Table:
    """One shard's part of the view: source and restored rows (same keys, same order) under a policy.

    Args:
        source: rows by ``schema.SOURCE``.
        restored: rows by ``schema.RESTORED``.
        duplicates: rows of ``duplicates.parquet`` by key.
        policy: what decides.
        best: group of duplicates -> the key that stays, for ``keep_best``.
        split: what ``splitter`` returns.
    """
    if source["key"].to_pylist() != restored["key"].to_pylist():
        raise ConfigError("the source and restored manifests of a shard hold different keys; run `verify`")
    verdicts = judge(source, restored, policy)
    rows = []
    for before, after, (gate, margin) in zip(source.to_pylist(), restored.to_pylist(), verdicts, strict=True):
        row = {name: before[name] for name in schema.VIEW.names if name in before}
        row |= {name: duplicates.get(before["key"], {}).get(name) for name in schema.names(schema.DUPLICATES)}
        row |= {"status": after["status"], "reason": after["reason"], "gate": gate, "margin": margin}
        row["split"] = split(row["key"], row["split"])
        row["origin"] = None if row["status"] == "failed" else "source"
        if after["status"] == "failed":
            rows.append(row)
            continue
        row |= _outcome(after, gate, policy)
        dropped = _dropped(row, policy, best or {})
        if dropped is not None:
            row |= {"status": "rejected", "reason": dropped, "origin": None}
        if row["origin"] is None:
            row |= {"offset": None, "nbytes": None, "output_sha256": None}
        rows.append(row)
    return schema.table_from_rows(rows, schema.VIEW)


def judge(source: pa.Table, restored: pa.Table, policy: Policy) -> list[tuple[str | None, float | None]]:
    """For every row the first gate that its candidate fails and by how much; (None, its smallest margin) if it passes
    all of them; (None, None) where there is no candidate."""
    severity, *margins = _columns(source, restored, policy)
    verdicts: list[tuple[str | None, float | None]] = [(None, None)] * len(severity)
    for i in _candidates(restored):
        if severity[i] < policy.min_severity:
            verdicts[i] = ("min_severity", float(severity[i] - policy.min_severity))
            continue
        known = [(g.quantity, float(m[i])) for g, m in zip(policy.gates, margins, strict=True) if np.isfinite(m[i])]
        failed = next(((name, margin) for name, margin in known if margin < 0), None)
        verdicts[i] = failed or (None, min((m for _, m in known), default=None))
    return verdicts


def could_not_ask(source: pa.Table, restored: pa.Table, policy: Policy) -> dict[str, int]:
    """For every gate, how many candidates have no value of its quantity: they passed it unasked."""
    _, *margins = _columns(source, restored, policy)
    there = _candidates(restored)
    return {g.quantity: int(np.isnan(m[there]).sum()) for g, m in zip(policy.gates, margins, strict=True)}


def _candidates(restored: pa.Table) -> npt.NDArray[np.intp]:
    """Numbers of the rows that have a candidate."""
    return np.flatnonzero([status == "restored" for status in restored["status"].to_pylist()])


def _columns(source: pa.Table, restored: pa.Table, policy: Policy) -> list[Column]:
    """The severity of every row, and its margin at every gate; NaN where that could not be measured."""

    def column(name: str) -> Column:
        table = restored if name in restored.column_names else source
        values: Column = table[name].to_numpy(zero_copy_only=False).astype(np.float64)  # null => nan
        return values

    asked = [(gate, *QUANTITIES[gate.quantity]) for gate in policy.gates]
    margins = [gate.margin(formula(*(column(n) for n in names))) for gate, names, formula in asked]
    return [column("severity"), *margins]


def _outcome(after: Row, gate: str | None, policy: Policy) -> Row:
    """What the quality of a sample that did not fail makes of it: the view's columns that it decides on.

    Args:
        after: its row by ``schema.RESTORED``.
        gate: the first that its candidate fails, as ``judge`` says.
    """
    if after["status"] == "kept_original" and after["reason"] == "clean":
        return {}
    if gate == "min_severity":
        return {"status": "kept_original", "reason": "below_min_severity"}
    if policy.damaged == "drop":
        return {"status": "rejected", "reason": "damaged", "origin": None}
    if after["status"] == "restored" and gate is None:
        return {n: after[n] for n in schema.names(schema.LOCATION)} | {"origin": "restored", "reason": "passed"}
    refused = {"status": "rejected", "reason": f"gate_{gate}"} if gate is not None else {}
    leaves = {"status": "rejected", "origin": None} if policy.damaged == "restore_or_drop" else {}
    return refused | leaves


def left_out(row: Mapping[str, Any]) -> bool:
    """Whether a view leaves a row out whatever its quality."""
    return str(row["reason"]).split(":")[0] in LEFT_OUT


def _dropped(row: Row, policy: Policy, best: Mapping[str, str]) -> str | None:
    """The reason why the policy drops a sample from the training set, whatever its quality, or None."""
    stays = row["duplicate_group"]
    if policy.duplicates == "keep_best":
        stays = best.get(stays)
    leaves = policy.duplicates in ("drop_near", "keep_best")
    leaves |= policy.duplicates == "drop_exact" and row["duplicate_kind"] == "exact"
    if leaves and stays not in (None, row["key"]):
        return f"{DUPLICATE_OF}: {stays}"
    if min(row["width"], row["height"]) < policy.min_side:
        return TOO_SMALL
    return None
