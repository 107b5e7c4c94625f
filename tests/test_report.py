"""The report's figures: that they add up, agree with the manifests, and survive runs that are cut short or strange."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests import attempts, rundir, schema, storage
from manifests.errors import RunError
from pipelines import evidence, gallery, histograms, page, report
from pipelines.report import write_report
from tests.report_fixture import HOSTILE, POLICY, png, write_run


def figures_of(root: Path) -> dict[str, Any]:
    """Write the report and read its JSON back, strictly."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    write_report(root)
    figures: dict[str, Any] = json.loads((root / "report.json").read_text(), parse_constant=refuse)
    return figures


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run. Tests that change it work on a copy."""
    return write_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    # The listing names the truth by its absolute path, so that the copy reads the same pictures as the original.
    return shutil.copytree(finished, tmp_path / "run")


class Tags(HTMLParser):
    """Every start tag of a page, with its attributes; and the text of each script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_script = tag == "script"
        if self._in_script:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data


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


# ---- The page


def test_the_page_is_complete_in_itself(finished: Path) -> None:
    tags = Tags(write_report(finished).read_text())
    for tag, attributes in tags.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "video", "audio")
        for name in ("src", "srcset", "href", "action", "poster", "background"):
            assert attributes.get(name, "data:").startswith(("data:image/", "#", "data:")), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")]
    images = [a["src"] for tag, a in tags.tags if tag == "img"]
    assert len(images) > 60 and all(src.startswith("data:image/webp;base64,") for src in images if src)
    policy = next(a["content"] for tag, a in tags.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy and "default-src 'none'" in policy and page.csp_hash(tags.scripts[1]) in policy


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    root = write_run(tmp_path / "run", count=14, hostile=HOSTILE)
    figures = figures_of(root)
    assert figures["name"] == HOSTILE
    html = (root / "report.html").read_text()
    tags = Tags(html)
    assert [tag for tag, _ in tags.tags].count("script") == 2 == len(tags.scripts)
    assert not [a for tag, a in tags.tags if tag == "img" and not (a["src"] or "").startswith("data:")]
    assert "alert(" in html and "<script>alert" not in html, "it is there, escaped"
    json.loads(tags.scripts[0])


@pytest.mark.parametrize(
    "metadata", ["[1]", "null", "no json", "[" * 100_000, '{"damage": 3}', None, '{"damage": null}']
)
def test_metadata_is_not_trusted(metadata: str | None) -> None:
    assert gallery._damage(metadata) in (None, "3")


def test_planted_damage_is_told_in_words() -> None:
    parameters = {"blur_sigma": [1.2345, 0.5], "jpeg_quality": None, "noise_sigma": 5.678}
    metadata = json.dumps({"damage": {"kind": "mixture", "parameters": parameters, "seed": 3}})
    assert gallery._damage(metadata) == "mixture: blur sigma 1.23 × 0.5, noise sigma 5.68"  # noqa: RUF001
    assert gallery._damage('{"damage": {"jpeg": 30}}') == "jpeg 30"


def test_the_page_keeps_to_its_bound_and_says_what_it_left_out(tmp_path: Path) -> None:
    root = write_run(tmp_path / "run", count=40, size=256, damaged=1.0, shard_size=40)
    bound = 700_000
    unbounded = write_report(root).stat().st_size
    path = write_report(root, max_bytes=bound)
    assert unbounded > bound >= path.stat().st_size
    shown = json.loads((root / "report.json").read_text())["gallery"]
    assert 0 < len(shown["samples"]) < shown["chosen"]
    assert f"{len(shown['samples'])} of the {shown['chosen']} chosen" in path.read_text()
    assert "data:image/jpeg;base64," in path.read_text(), "large pictures are not sent losslessly"


def test_long_strings_are_cut() -> None:
    cut = report._bounded({"name": "x" * 10_000, "list": [float("nan"), "y"], "error": "z" * 3000})
    assert len(cut["name"]) < 500 and "10,000 characters" in cut["name"]
    assert cut["list"] == [None, "y"] and len(cut["error"]) == 3000
    assert report._bounded(json.loads('"half a pair: \\ud800"')) == "half a pair: ?", "JSON can hold what UTF-8 cannot"


def test_the_command_line_can_load_it_without_torch_or_ray() -> None:
    code = "import sys, pipelines.report; print(sorted({'torch', 'ray', 'webdataset'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- Which samples are shown


def test_chosen_samples_are_the_extremes_and_every_list_has_its_turn(finished: Path) -> None:
    found = evidence.read_evidence(rundir.read(str(finished)))
    chosen = gallery.choose(found, seed=1)
    severity, change = found.numbers("severity"), found.numbers("psnr_source")
    gain = found.numbers("truth_psnr_after") - found.numbers("truth_psnr_before")
    assert "most severe" in chosen[int(np.nanargmax(severity))]
    assert "most changed" in chosen[int(np.nanargmin(change))]
    assert "largest loss" in chosen[int(np.nanargmin(gain))] and "largest gain" in chosen[int(np.nanargmax(gain))]
    assert all(gain[i] < 0 for i, why in chosen.items() if "largest loss" in why)
    few = gallery.choose(found, seed=1, most=7)
    assert len(few) == 7 and len({name for why in few.values() for name in why}) == 7
    assert gallery.choose(found, seed=1) == chosen != gallery.choose(found, seed=2)


def test_small_pictures_are_shown_without_loss(tmp_path: Path) -> None:
    import base64
    import io

    from PIL import Image

    rgb = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    picture = gallery._pictures({"original": rgb}, gallery.MAX_SIDE)["original"]
    assert (picture.width, picture.height) == (48, 64)
    decoded = Image.open(io.BytesIO(base64.b64decode(picture.uri.split(",")[1])))
    assert (np.asarray(decoded.convert("RGB")) == rgb).all()
    both = gallery._pictures({"original": np.zeros((300, 200, 3), np.uint8), "restored": rgb}, gallery.MAX_SIDE)
    assert {p.uri[:16] for p in both.values()} == {"data:image/jpeg;"}, "a pair is encoded in one way"
    assert max(both["original"].width, both["original"].height) == gallery.MAX_SIDE


def test_fixture_pictures_are_the_manifests_bytes(finished: Path) -> None:
    """The pictures on the page are those that offset and length in the manifests point to."""
    run = rundir.read(str(finished))
    found = evidence.read_evidence(run)
    (shown,) = gallery.load(run, found, {7: []}, 10**6)
    truth = (finished / "raw" / "truth" / f"{shown.row['key']}.png").read_bytes()
    from pipelines import images

    pixels = {"truth": images.decode(truth).rgb}
    assert gallery._pictures(pixels, 256)["truth"] == shown.pictures["truth"]
    assert png(pixels["truth"]) == truth


# ---- Histograms and numbers


@given(st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), max_size=80), st.lists(st.floats(-10, 10), max_size=40))
def test_histogram_keeps_every_value(before: list[float], after: list[float]) -> None:
    chart = histograms.histogram("m", "doc", "dataset", np.array(before, float), np.array(after, float))
    known = np.isfinite(before).sum()
    if chart is None:
        assert known == len(after) == 0
        return
    assert sum(chart.before) == known and sum(chart.after or []) == len(after)
    assert chart.edges == sorted(chart.edges) and len(chart.edges) == len(chart.before) + 1
    assert chart.ticks[0] == chart.edges[0] and chart.ticks[-1] == chart.edges[-1]
    assert len({chart.tick_label(t) for t in chart.ticks}) == len(chart.ticks)
    assert chart.outline(chart.before).count("H") == len(chart.before)


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9))
def test_ticks_enclose_their_range_in_round_steps(low: float, length: float) -> None:
    ticks = histograms.round_ticks(low, low + length)
    step = ticks[1] - ticks[0]
    assert 2 <= len(ticks) <= 6
    assert ticks[0] <= low + 1e-6 * step and ticks[-1] >= low + length - 1e-6 * step
    assert np.allclose(np.diff(ticks), step)


def test_one_wild_value_does_not_squeeze_the_others() -> None:
    values = np.concatenate([np.random.default_rng(0).uniform(0, 1, 1000), [1e6]])
    chart = histograms.histogram("m", "doc", "dataset", values)
    assert chart is not None and chart.edges[-1] <= 2 and sum(chart.before) == 1001


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (None, None, page.DASH),
        (0, None, "0"),
        (0.0, 2, "0"),
        (1281167, None, "1,281,167"),
        (0.05, None, "0.0500"),
        (123.456, None, "123"),
        (-4.084, 2, "−4.08"),  # noqa: RUF001
        (-1e-9, None, "0"),
        (0.004, 2, "0"),
        (100.0, 0, "100"),
    ],
)
def test_number(value: float | None, decimals: int | None, text: str) -> None:
    assert page.number(value, decimals) == text


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(None, page.DASH), (999, "999 B"), (1000, "1.0 kB"), (999_999, "1.0 MB"), (8.91e10, "89.1 GB")],
)
def test_size(nbytes: int | None, text: str) -> None:
    assert page.size(nbytes) == text
