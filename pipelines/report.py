"""A run as one page: ``report.html``, complete in itself, and the same figures as ``report.json``."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from manifests import attempts, rundir, schema, status, storage
from manifests.rundir import Run
from pipelines import gallery, histograms, page, report_proof
from pipelines.audit import LEAST, SHARES
from pipelines.evidence import Evidence, Stage, read_evidence
from pipelines.report_audit import audits
from pipelines.report_samples import order_values, orders, sample_figures

REPORT_VERSION = 1
MAX_BYTES = 12_000_000
# Shares of the page's bytes that pictures may use; text, at most a few hundred kB, has the rest.
GALLERY_SHARE, DUPLICATES_SHARE, PROOF_SHARE = 0.75, 0.12, 0.25
MOST_GROUPS, MOST_IN_GROUP, MOST_FAILED, MOST_REASONS, MOST_SHARDS = 24, 6, 200, 100, 50
MOST_TEXT = 400  # characters of any one string from the dataset or the configuration


def write_report(
    run_dir: Path | str, *, view: str | None = None, audit_by: Sequence[str] = (), max_bytes: int = MAX_BYTES
) -> Path:
    """Write ``report.html`` and ``report.json`` into a run directory, finished or not, and return the page's path.

    The same run gives the same bytes. Samples are read from the tars only for the few that are shown.

    Args:
        run_dir: path or URL of the run.
        view: name of the policy to report on; by default the one that ``cleaned/`` was packed by.
        audit_by: columns or SQL expressions, as ``pipelines.audit.audit`` takes them, beside the classes.
        max_bytes: bound of the page; the gallery is cut to fit, and says so.

    Raises:
        RunError: this is no run directory, or nothing has been ingested.
        ConfigError: an expression of ``audit_by`` is wrong.
    """
    root = str(run_dir)
    run = rundir.read(root)
    name = str(storage.read_json(run.url("run.json")).get("name", ""))
    evidence = read_evidence(run, view)
    chosen = gallery.choose(evidence, seed=int(run.fingerprint[:8], 16))
    proof = report_proof.proof_figures(run)
    made = report_proof.grids(run, proof, int(max_bytes * PROOF_SHARE))  # the samples give way to them
    for_proof = sum(len(grid.picture.uri) for row in made for grid in row)
    shown = gallery.load(run, evidence, chosen, int(max_bytes * GALLERY_SHARE) - for_proof)
    groups = _duplicate_groups(run, evidence, int(max_bytes * DUPLICATES_SHARE))
    charts = list(_charts(run, evidence))
    figures = _bounded(
        {
            "version": REPORT_VERSION,
            "evidence": status.digest(run),
            "name": name,
            "dataset": run.config.get("dataset", {}).get("name"),
            "fingerprint": run.fingerprint,
            "model": _model(run),
            "view": evidence.view,
            "decided": evidence.view is not None,
            "headline": _headline(run, evidence),
            "proof": proof,
            "counts": _counts(evidence),
            "histograms": [dataclasses.asdict(chart) for chart in charts],
            "gallery": {"chosen": len(chosen), "samples": [sample_figures(s, evidence) for s in shown]},
            "audits": audits(run, evidence, audit_by),
            "duplicates": _duplicates(run, evidence, groups),
            "failures": _failures(run, evidence),
            "provenance": _provenance(run, evidence),
        }
    )
    html = page.render(
        figures=figures,
        charts=charts,
        pictures=[_by_role(s) for s in shown],
        group_pictures=[[_by_role(s) for s in members] for members in groups],
        proof_plots=report_proof.plots(proof),
        proof_grids=made,
        proof_scale=report_proof.scale(proof),
        sort_values=order_values(figures["gallery"]["samples"]),
        orders=orders(figures["gallery"]["samples"]),
        shares=SHARES,
        least=LEAST,
        statuses=schema.STATUSES,
        measures=[*schema.names(schema.MEASUREMENTS), "niqe"],
        changes=schema.names(schema.CHANGES),
    )
    text = json.dumps(figures, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    storage.write_bytes(text.encode(), run.url("report.json"))
    storage.write_bytes(html.encode(), run.url("report.html"))
    return Path(run.url("report.html"))


def _model(run: Run) -> dict[str, Any]:
    config = run.config.get("restore", {})
    return {"name": config.get("restorer"), "sha256": config.get("sha256")}


def _headline(run: Run, evidence: Evidence) -> dict[str, Any]:
    """The figures of the tiles: counts, bytes, and what restoration did to the samples with status restored."""
    restored = evidence.is_("status", "restored")
    severity, after = evidence.numbers("severity")[restored], evidence.numbers("severity_after")[restored]
    in_group = pc.is_valid(evidence.table["duplicate_group"])
    return {
        "planned": int(run.listing()["rows"]),
        "samples": len(evidence.table),
        **{status: int(evidence.is_("status", status).sum()) for status in schema.STATUSES},
        "in_cleaned": int(pc.count(evidence.table["origin"]).as_py()),
        "duplicates": int(pc.sum(in_group).as_py() or 0),
        "duplicate_groups": int(pc.count_distinct(evidence.table["duplicate_group"]).as_py()),
        "source_bytes": int(pc.sum(evidence.table["source_bytes"]).as_py() or 0),
        "cleaned_tar_bytes": evidence.cleaned.tar_bytes if evidence.cleaned.done else None,
        "severity_before": histograms.summarise(severity).median,
        "severity_after": histograms.summarise(after).median,
        "truth": _truth(evidence, restored),
    }


def _truth(evidence: Evidence, restored: np.ndarray[Any, Any]) -> dict[str, Any] | None:
    """How much nearer to the known truth restoration came, over restored samples; None where no truth is known.

    A source that equals its truth has no PSNR (it is infinite). If it was restored all the
    same, it can only have become worse: it counts among those that did not come nearer.
    """
    before = evidence.numbers("truth_psnr_before")[restored]
    after = evidence.numbers("truth_psnr_after")[restored]
    known = np.isfinite(after)
    both = known & np.isfinite(before)
    if not known.any():
        return None
    nearer = int((after[both] > before[both]).sum())
    return {
        "samples": int(known.sum()),
        "were_equal": int(known.sum() - both.sum()),
        "psnr_before": float(before[both].mean()) if both.any() else None,
        "psnr_after": float(after[both].mean()) if both.any() else None,
        "nearer": nearer,
        "nearer_share": nearer / int(known.sum()),
    }


def _counts(evidence: Evidence) -> list[dict[str, Any]]:
    """Samples by status and reason (without the reason's detail), most first."""
    token = pc.replace_substring_regex(evidence.table["reason"], r"(?s):.*", "")
    table = pa.table({"status": evidence.table["status"].cast(pa.string()), "reason": token})
    rows = table.group_by(["status", "reason"], use_threads=False).aggregate([([], "count_all")]).to_pylist()
    rows.sort(key=lambda r: (-r["count_all"], r["status"], r["reason"] or ""))
    total = max(1, len(evidence.table))
    counts = [
        {"status": r["status"], "reason": r["reason"], "samples": r["count_all"], "share": r["count_all"] / total}
        for r in rows[:MOST_REASONS]
    ]
    rest = sum(r["count_all"] for r in rows[MOST_REASONS:])
    if rest:
        reason = f"{len(rows) - MOST_REASONS} further reasons"
        counts.append({"status": "various", "reason": reason, "samples": rest, "share": rest / total})
    return counts


def _charts(run: Run, evidence: Evidence) -> Iterator[histograms.Histogram]:
    """Every histogram of the page: restoration first, then each measurement, of two sets of samples."""
    doc = {f.name: f.metadata[b"doc"].decode() for f in schema.CLEANED}
    restored = evidence.is_("status", "restored")
    origin_known = pc.count(evidence.table["origin"]).as_py() > 0
    kept = evidence.is_("origin", "source") if origin_known else evidence.is_("status", "kept_original")

    def of_dataset(before: str, after: str) -> histograms.Numbers:
        """The measure of what is in the product: of the candidate, of the source, or of nothing where it left."""
        unchanged = np.where(kept, evidence.numbers(before), np.nan)
        return np.where(restored, evidence.numbers(after), unchanged)

    psnr_before, psnr_after = evidence.numbers("truth_psnr_before"), evidence.numbers("truth_psnr_after")
    candidates = [
        histograms.histogram(
            "severity", doc["severity"], "severity", evidence.numbers("severity"),
            of_dataset("severity", "severity_after"), _threshold(run, evidence),
        ),
        histograms.histogram("psnr_source", doc["psnr_source"], "change", evidence.numbers("psnr_source")),
        histograms.histogram(
            "truth_gain", "PSNR to the truth, candidate minus source, dB: right of 0 it came nearer", "truth",
            psnr_after - psnr_before, mark=0.0,
        ),
    ]  # fmt: skip
    for name in schema.names(schema.MEASUREMENTS):
        before, after = evidence.numbers(name), evidence.numbers(f"after_{name}")
        pair = np.where(restored, before, np.nan), np.where(restored, after, np.nan)
        candidates.append(histograms.histogram(name, doc[name], "restored", *pair))
        candidates.append(histograms.histogram(name, doc[name], "dataset", before, of_dataset(name, f"after_{name}")))
    yield from (h for h in candidates if h is not None)


def _threshold(run: Run, evidence: Evidence) -> float | None:
    """The severity from which samples were run: as configured, else as the restored shards' markers say."""
    configured = run.config.get("restore", {}).get("threshold")
    if configured is not None:
        return float(configured)
    for shard in run.shards():
        url = run.url(evidence.restored.name, f"{shard}.json")
        if storage.exists(url):
            threshold = storage.read_json(url).get("threshold")
            return None if threshold is None else float(threshold)
    return None


def _by_role(shown: gallery.Shown) -> dict[str, gallery.Picture | None]:
    return {role: shown.pictures.get(role) for role in gallery.ROLES}


def _duplicate_groups(run: Run, evidence: Evidence, budget: int) -> list[list[gallery.Shown]]:
    """Groups to show: first the near duplicates furthest apart, for they are the doubtful ones; then the largest."""
    groups = evidence.table["duplicate_group"]
    rows = np.flatnonzero(pc.is_valid(groups).to_numpy())
    names = groups.take(rows).to_pylist()
    distance = evidence.numbers("duplicate_distance")
    members: dict[str, list[int]] = {}
    for name, row in zip(names, rows, strict=True):
        members.setdefault(name, []).append(int(row))
    furthest = {name: np.nanmax([0.0, *distance[found]]) for name, found in members.items()}
    doubtful = sorted(members, key=lambda g: (-furthest[g], g))[: MOST_GROUPS // 2]
    largest = sorted(members, key=lambda g: (-len(members[g]), g))
    picked = list(dict.fromkeys([*(g for g in doubtful if furthest[g] > 0), *largest]))[:MOST_GROUPS]
    order = {row: [g] for g in picked for row in members[g][:MOST_IN_GROUP]}
    shown = gallery.load(run, evidence, order, budget, max_side=96, pairs=False)
    by_group: dict[str, list[gallery.Shown]] = {}
    for sample in shown:
        by_group.setdefault(sample.row["duplicate_group"], []).append(sample)
    return list(by_group.values())


def _duplicates(run: Run, evidence: Evidence, groups: list[list[gallery.Shown]]) -> dict[str, Any]:
    kinds = {k: int(evidence.is_("duplicate_kind", k).sum()) for k in ("exact", "near", "mirrored")}
    sizes = pc.value_counts(evidence.table["duplicate_group"].drop_null())
    size_of = {s["values"]: s["counts"] for s in sizes.to_pylist()}
    columns = ("key", "source_name", "status", "duplicate_kind", "duplicate_distance")
    return {
        "searched": storage.exists(run.url(rundir.SOURCE, "duplicates.parquet")),
        "groups": len(size_of),
        "samples": sum(size_of.values()),
        **kinds,
        "shown": [
            {
                "group": (name := members[0].row["duplicate_group"]),
                "samples": size_of[name],
                "members": [{c: m.row[c] for c in columns} for m in members],
            }
            for members in groups
        ],
    }


def _failures(run: Run, evidence: Evidence) -> dict[str, Any]:
    """Failed samples, the first of them by name; and the shards that were given up."""
    rows = np.flatnonzero(evidence.is_("status", "failed"))
    columns = ("key", "shard", "source_name", "source_bytes", "reason")
    given_up = attempts.given_up(run)
    return {
        "samples": len(rows),
        "shown": [{c: row[c] for c in columns} for row in gallery.rows(run, evidence, rows[:MOST_FAILED].tolist())],
        "kept_aside": len(storage.list_names(run.url("failures"), ".tar")),
        "shards_given_up": len(given_up),
        "shards": given_up[:MOST_SHARDS],
    }


def _provenance(run: Run, evidence: Evidence) -> dict[str, Any]:
    listed, marker = run.listing(), evidence.view_marker
    card = run.url(rundir.CLEANED, "README.md")
    has_card = bool(evidence.cleaned.done) and storage.exists(card)
    view = None
    if evidence.view:
        counts = marker.get("counts", {})
        view = _stage(Stage(f"views/{evidence.view}", 0, (), {}, sum(counts.values()), counts, 0))
        view |= {"planned": None, "tar_bytes": None}
    return {
        "stages": [_stage(s) for s in (evidence.source, evidence.restored, evidence.cleaned)],
        "view": view,
        "view_fingerprint": marker.get("fingerprint"),
        "policy": marker.get("policy"),
        "policy_yaml": yaml.safe_dump(_known(marker["policy"]), sort_keys=False, default_flow_style=None)
        if marker.get("policy")
        else None,
        "config": dict(_flat(run.config)),
        "licence": listed.get("licence"),
        "homepage": listed.get("homepage"),
        "problems": listed.get("problems", [])[:MOST_SHARDS],
        "card": storage.read_bytes(card).decode("utf-8", "replace") if has_card else None,
    }


def _stage(stage: Stage) -> dict[str, Any]:
    return {
        "name": stage.name,
        "planned": stage.planned,
        "done": len(stage.done),
        "rows": stage.rows,
        "counts": stage.counts,
        "tar_bytes": stage.tar_bytes,
        "missing": dict(list(stage.missing.items())[:20]),
    }


def _known(tree: Any) -> Any:
    """Nested dicts and lists without the keys whose value is null."""
    if isinstance(tree, dict):
        return {key: _known(value) for key, value in tree.items() if value is not None}
    return [_known(value) for value in tree] if isinstance(tree, list) else tree


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested dicts under dotted names."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _flat(value, f"{prefix}{key}.")
    else:
        yield prefix.rstrip("."), tree


def _bounded(value: Any, most: int = MOST_TEXT) -> Any:
    """Plain JSON values: long strings cut, lone surrogates replaced, NaN and infinities null."""
    if isinstance(value, dict):
        longer = {"error": 10 * most, "licence": 10 * most, "card": 50 * most, "policy_yaml": 50 * most}
        return {str(k)[:most]: _bounded(v, longer.get(k, most)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_bounded(v, most) for v in value]
    if isinstance(value, str):
        value = value.encode("utf-8", "replace").decode()
        return value if len(value) <= most else f"{value[:most]}… ({len(value):,} characters)"
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
