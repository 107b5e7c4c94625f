"""The report's figures: they add up and agree with the manifests, also of runs that are cut short or strange."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests import attempts, rundir, schema, storage
from manifests.errors import ConfigError, RunError
from pipelines import evidence, report, report_audit, report_samples
from pipelines.report import write_report
from tests.report_fixture import POLICY, figures_of, write_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run. Tests that change it work on a copy."""
    return write_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    # The listing names the truth by its absolute path, so that the copy reads the same pictures as the original.
    return shutil.copytree(finished, tmp_path / "run")


# ---- Figures


def test_figures_agree_with_the_product_s_manifests(finished: Path) -> None:
    figures = figures_of(finished)
    rows = pa.concat_tables(pq.read_table(p) for p in sorted((finished / "cleaned").glob("*.parquet"))).to_pylist()
    head = figures["headline"]
    assert head["samples"] == head["planned"] == len(rows)
    assert {s: head[s] for s in schema.STATUSES} == {s: sum(r["status"] == s for r in rows) for s in schema.STATUSES}
    assert min(head[s] for s in schema.STATUSES) > 0, "the run of these tests must have every status"
    expected = Counter((r["status"], r["reason"] and r["reason"].split(":")[0]) for r in rows)
    assert {(c["status"], c["reason"]): c["samples"] for c in figures["counts"]} == expected
    samples = [c["samples"] for c in figures["counts"]]
    assert samples == sorted(samples, reverse=True) and sum(samples) == len(rows)
    assert head["source_bytes"] == sum(r["source_bytes"] for r in rows)
    assert head["cleaned_tar_bytes"] == sum(p.stat().st_size for p in (finished / "cleaned").glob("*.tar"))
    restored = [r for r in rows if r["status"] == "restored"]
    assert head["truth"]["nearer"] == sum(r["truth_psnr_after"] > r["truth_psnr_before"] for r in restored)
    assert head["truth"]["psnr_after"] == pytest.approx(np.mean([r["truth_psnr_after"] for r in restored]))
    assert head["severity_before"] == pytest.approx(np.median([r["severity"] for r in restored]))
    assert head["duplicates"] == sum(r["duplicate_group"] is not None for r in rows) == figures["duplicates"]["samples"]


def test_histograms_count_every_known_value_once(finished: Path) -> None:
    rows = pa.concat_tables(pq.read_table(p) for p in sorted((finished / "cleaned").glob("*.parquet"))).to_pylist()
    figures = figures_of(finished)
    charts = {(h["name"], h["scope"]): h for h in figures["histograms"]}
    assert {name for name, scope in charts if scope == "restored"} == set(schema.names(schema.MEASUREMENTS))
    for (name, scope), chart in charts.items():
        if scope not in ("restored", "dataset"):
            continue
        counted = [r for r in rows if scope == "dataset" or r["status"] == "restored"]
        assert sum(chart["before"]) == sum(r[name] is not None for r in counted)
        product = {"restored": f"after_{name}", "source": name}
        kept = [r for r in counted if r["origin"] is not None]
        assert sum(chart["after"]) == sum(r[product[r["origin"]]] is not None for r in kept)
    severity = charts["severity", "severity"]
    assert severity["mark"] == 0.2 and sum(severity["before"]) == sum(r["severity"] is not None for r in rows)


@pytest.mark.parametrize("left", [("source", "restored", "views"), ("cleaned",)])
def test_product_and_stages_give_the_same_figures(finished: Path, copy: Path, left: tuple[str, ...]) -> None:
    """Read from cleaned/ alone, or joined from the stages before it: the same samples, the same figures."""
    whole = figures_of(finished)
    if "cleaned" not in left:
        for path in (copy / "cleaned").iterdir():
            path.unlink()
    else:  # nothing but the source's own rows and the product's
        for path in (copy / "restored" / "round1").glob("*.json"):
            path.unlink()
    part = figures_of(copy)
    same = ["counts", "histograms", "duplicates", "failures"]
    assert {k: part[k] for k in same} == {k: whole[k] for k in same}
    assert part["gallery"]["samples"] == whole["gallery"]["samples"]
    assert part["headline"] | {"cleaned_tar_bytes": 0} == whole["headline"] | {"cleaned_tar_bytes": 0}


def test_the_same_run_gives_the_same_bytes(finished: Path, copy: Path) -> None:
    first = write_report(finished).read_bytes()
    again = write_report(str(finished))
    assert again == finished / "report.html" and again.read_bytes() == first
    write_report(copy)
    assert (copy / "report.json").read_bytes() == (finished / "report.json").read_bytes()
    assert [p.name for p in finished.iterdir() if p.name.startswith(".")] == [".staging"], (
        "nothing half-written is left"
    )


def test_a_source_that_equals_its_truth_cannot_come_nearer() -> None:
    """Its PSNR before is infinite, null in the manifest. A change to it is a loss, and must not vanish as unknown."""
    rows: list[dict[str, object]] = [
        {"truth_psnr_before": 20.0, "truth_psnr_after": 25.0},
        {"truth_psnr_before": 30.0, "truth_psnr_after": 29.0},
        {"truth_psnr_before": None, "truth_psnr_after": 45.0},
        {"truth_psnr_before": None, "truth_psnr_after": None},
    ]
    for i, row in enumerate(rows):
        row |= {"key": f"k{i}", "shard": "s-000000", "source_name": "n", "status": "restored"}
    table = schema.table_from_rows(rows, schema.CLEANED).select(evidence.COLUMNS)
    stage = evidence.Stage("source", 1, ("s-000000",), {}, 4, {}, 0)
    truth = report._truth(evidence.Evidence(table, stage, stage, stage, None, {}), np.ones(4, dtype=bool))
    assert truth == {
        "samples": 3, "were_equal": 1, "psnr_before": 25.0, "psnr_after": 27.0, "nearer": 1, "nearer_share": 1 / 3,
    }  # fmt: skip


def test_why_a_candidate_was_refused_is_told_in_numbers(finished: Path) -> None:
    samples = figures_of(finished)["gallery"]["samples"]
    refused = [s for s in samples if s["status"] == "rejected"]
    bounds = {gate["quantity"]: gate.get("max", gate.get("min")) for gate in POLICY["gates"]}
    assert {s["gate"] for s in refused} <= set(bounds) and refused
    for s in refused:
        assert s["asked"]["bound"] == bounds[s["gate"]]
        assert s["asked"]["value"] == pytest.approx(s[s["gate"]], abs=1e-4), "the margin leads back to what was found"
        assert (s["asked"]["value"] > s["asked"]["bound"]) is (s["asked"]["side"] == "max")
    assert all(s["asked"] is None for s in samples if s["status"] != "rejected")


def test_of_two_bounds_of_one_quantity_none_is_named() -> None:
    row = {"gate": "severity_after", "margin": -0.25}
    gates = [{"quantity": "severity_after", "max": 0.5}, {"quantity": "psnr_source", "min": 24.0}]
    assert report_samples._asked(row, {"gates": gates}) == {"value": 0.75, "side": "max", "bound": 0.5}
    assert report_samples._asked(row, {"gates": [*gates, {"quantity": "severity_after", "min": 0.1}]}) is None
    assert report_samples._asked({"gate": None, "margin": 0.1}, {"gates": gates}) is None
    kept = {"gate": "min_severity", "margin": -0.25}
    assert report_samples._asked(kept, {"min_severity": 0.5}) == {"value": 0.25, "side": "min", "bound": 0.5}


def test_audits_are_of_the_classes_and_of_what_was_asked(tmp_path: Path) -> None:
    root = write_run(tmp_path / "run", size=32, classes=True)
    folder = "split_part(source_name, '/', 2)"
    html = write_report(root, audit_by=[folder, "class_name"]).read_text()
    audits = json.loads((root / "report.json").read_text())["audits"]
    assert [a["by"] for a in audits] == ["class_name", folder]
    for found in audits:
        assert sum(g["n"] for g in found["shown_groups"]) == found["whole"]["n"] == 60
        assert found["groups"] == len(found["shown_groups"]) and found["view"] == "default"
        assert f'<td class="wide">{found["shown_groups"][0]["name"]}</td>' in html
    with pytest.raises(ConfigError, match="nothing"):
        write_report(root, audit_by=["nothing"])


def test_without_classes_or_candidates_there_is_no_audit(finished: Path, tmp_path: Path) -> None:
    assert figures_of(finished)["audits"] == []
    assert figures_of(write_run(tmp_path / "run", count=12, until="source", classes=True))["audits"] == []


def test_of_many_groups_the_most_unlike_are_shown(finished: Path) -> None:
    write_report(finished, audit_by=["key"])
    (found,) = json.loads((finished / "report.json").read_text())["audits"]
    assert found["groups"] == 60 and len(found["shown_groups"]) == report_audit.MOST_SHOWN
    assert {g["name"] for g in found["shown_groups"]} >= {"s00013", "s00033", "s00053"}, "those that failed are few"


# ---- Runs that are not finished, or strange


@pytest.mark.parametrize("until", ["source", "restored", "view"])
def test_unfinished_runs_are_reported_as_far_as_they_are(tmp_path: Path, until: str) -> None:
    root = write_run(tmp_path / "run", count=30, until=until)
    figures = figures_of(root)
    head = figures["headline"]
    assert sum(head[s] for s in schema.STATUSES) == head["samples"] == 30
    assert figures["decided"] is (until == "view")
    assert (head["restored"] > 0) is (until != "source")
    assert head["cleaned_tar_bytes"] is None
    assert {h["scope"] for h in figures["histograms"]} >= {"dataset"}
    assert "This run is not complete" in (root / "report.html").read_text()
    assert figures["gallery"]["samples"]


def test_a_finished_run_is_not_called_incomplete(finished: Path) -> None:
    assert "This run is not complete" not in write_report(finished).read_text()


def test_a_shard_that_was_given_up_is_named_and_the_rest_counted(copy: Path) -> None:
    for path in [
        *copy.glob("cleaned/sample-000002.*"),
        *copy.glob("restored/*/sample-000002.*"),
        *copy.glob("views/*"),
    ]:
        path.unlink()
    attempts.give_up(rundir.read(str(copy)), "restored/round1", "sample-000002", "MemoryError: <i>x</i> & more")
    figures = figures_of(copy)
    assert figures["failures"]["shards"][0]["shard"] == "sample-000002"
    assert [s["done"] for s in figures["provenance"]["stages"]] == [3, 2, 0]
    assert figures["headline"]["samples"] == 60, "the source's rows of that shard still count"
    html = (copy / "report.html").read_text()
    assert "MemoryError: &lt;i&gt;x&lt;/i&gt; &amp; more" in html and "1 shard given up" in html


def test_shards_packed_by_another_policy_are_not_believed(copy: Path) -> None:
    run = rundir.read(str(copy))
    stricter = POLICY | {"gates": []}
    marker = storage.read_json(run.url("views", "default.json"))
    view = pq.read_table(copy / "views" / "default.parquet")
    rejected = [r | {"status": "rejected", "origin": None} for r in view.to_pylist()]
    pq.write_table(schema.table_from_rows(rejected, schema.VIEW), copy / "views" / "default.parquet")
    changed = marker | {"policy": stricter, "fingerprint": run.view_fingerprint(stricter)}
    storage.write_json(changed, run.url("views", "default.json"))
    figures = figures_of(copy)
    assert figures["headline"]["rejected"] == 60
    assert set(figures["provenance"]["stages"][2]["missing"].values()) == {"made with another configuration"}


@pytest.mark.parametrize("options", [{"nulls": True}, {"damaged": 0.0}, {"damaged": 1.0, "truth": False}])
@pytest.mark.parametrize("count", [1, 14])
def test_strange_runs(tmp_path: Path, options: dict[str, Any], count: int) -> None:
    figures = figures_of(write_run(tmp_path / "run", count=count, **options))
    assert sum(c["samples"] for c in figures["counts"]) == count
    if options.get("nulls"):
        assert figures["histograms"] == [] and figures["headline"]["severity_before"] is None
    if options.get("damaged") == 0:
        assert figures["headline"]["restored"] == 0
        assert {h["scope"] for h in figures["histograms"]} == {"severity", "dataset"}
    if not options.get("truth", True):
        assert figures["headline"]["truth"] is None


def test_no_shard_is_done_yet(tmp_path: Path) -> None:
    root = write_run(tmp_path / "run", count=5, until="source")
    for marker in (root / "source").glob("sample-*.json"):
        marker.unlink()
    (root / "source" / "duplicates.parquet").unlink()
    figures = figures_of(root)
    assert figures["headline"]["samples"] == 0 and figures["headline"]["planned"] == 5
    assert figures["counts"] == figures["histograms"] == figures["gallery"]["samples"] == []


def test_no_run_no_report(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"run\.json"):
        write_report(tmp_path)
    rundir.create_or_open(str(tmp_path / "new"), "new", {"dataset": {"name": "sample"}})
    with pytest.raises(RunError, match="ingest"):
        write_report(tmp_path / "new")
    assert not (tmp_path / "new" / "report.html").exists()


def test_an_unknown_view_is_refused(finished: Path) -> None:
    with pytest.raises(RunError, match=r"no view 'strict'.*default"):
        write_report(finished, view="strict")


def test_pixels_that_cannot_be_read_are_told_and_cost_nothing_else(copy: Path) -> None:
    tar = copy / "source" / "sample-000001.tar"
    tar.write_bytes(b"\xff" * tar.stat().st_size)  # the size agrees, so the shard still counts as done
    restored = copy / "restored" / "round1" / "sample-000000.tar"
    restored.write_bytes(b"\xff" * restored.stat().st_size)
    samples = figures_of(copy)["gallery"]["samples"]
    problems = {s["key"]: s["problem"] for s in samples if s["problem"]}
    assert any("original image cannot be read: not_an_image" in p for p in problems.values())
    assert any("restored image cannot be read" in p for p in problems.values())
    assert any(s["shard"] == "sample-000002" and s["problem"] is None for s in samples)
    html = (copy / "report.html").read_text()
    assert html.count('class="problem"') == len(problems)
