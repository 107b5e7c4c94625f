"""The report's proof: figures as metrics.jsonl has them, said with their intervals; nothing without jobs."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from manifests import rundir, status, storage
from manifests.rundir import Run
from pipelines import images as image_files
from pipelines import report_proof
from pipelines.proof.gain import GAIN, NOT_SHOWN
from pipelines.proof.measuring import grid_of
from pipelines.proof.metrics import append_metrics, metrics_path
from pipelines.proof.plan import Proof, declare, grown, jobs
from pipelines.report import write_report
from tests import tiny_generators
from tests.report_fixture import figures_of, write_run

PROOF = Proof(
    arms=("original", "cleaned", "combined", "filter", "null", "pristine", "placebo"),
    trainers=("ddm-32", "gan-32"),
    seeds=5,
    nimg=400_000,
    samples=1000,
)
LEVEL = {"original": 60, "cleaned": 48, "combined": 40, "filter": 44, "null": 60, "pristine": 32, "placebo": 61}
RESTS = {"held-out": 0.0, "original": 12.0, "cleaned": 5.0}


def lines(proof: Proof, spread: float = 1.5) -> Iterator[dict[str, Any]]:
    """Learning curves of every job that look like such, and the arms' own data."""
    draw = np.random.default_rng(5)
    for job in jobs(proof):
        own = draw.normal(0, spread)
        for nimg in (100_000, 200_000, 300_000, 400_000):
            for reference, rest in RESTS.items():
                fd = LEVEL[job.arm] * (1 + (0.6 if job.trainer == "gan-32" else 0.3) * (1e5 / nimg)) + own + rest
                figures = {"FD-EffNet": fd, "FD-EffNet_infinity": fd - 3, "KD-EffNet": fd / 1000, "recall": 20 / fd}
                yield line(job.name, job.arm, job.trainer, job.pair, nimg, reference, figures)
    for arm in proof.arms:
        for reference, rest in RESTS.items():
            if arm != "null":
                figures = {"FD-EffNet": LEVEL[arm] / 3 - 8 + rest, "precision": 0.8, "recall": 0.6}
                yield line(f"{arm}-data-32", arm, "data", None, 0, reference, figures)


def line(job: str, arm: str, trainer: str, pair: int | None, nimg: int, reference: str, figures: Any) -> dict[str, Any]:
    told = {"job": job, "arm": arm, "trainer": trainer, "pair": pair, "nimg": nimg, "reference": reference}
    told |= {"resolution": 32, "detector": "efficientnet-lite0-224", "frechet": "FD-EffNet", "samples": 1000}
    return told | {"figures": figures, "left_out": {}, "fingerprint": f"{job} {nimg} {reference}"}


def write_proof(root: Path, proof: Proof = PROOF, spread: float = 1.5) -> Run:
    """A run that is curated, and a proof of it that is measured."""
    run = rundir.read(str(write_run(root, count=14)))
    declare(run, proof)
    append_metrics(run, lines(proof, spread))
    squares = tiny_generators.squares(64).pixels.repeat(4, axis=1).repeat(4, axis=2)
    for arm in proof.arms:
        grid = image_files.encode_png(grid_of(list(squares // (1 + (arm == "original")))))
        for folder in (f"{arm}-{trainer}-s0" for trainer in proof.trainers):
            storage.write_bytes(grid, run.url("jobs", folder, "samples-0000400000.png"))
        storage.write_bytes(grid, run.url("jobs", "images", f"{arm}-data-32.png"))
    return run


@pytest.fixture(scope="module")
def proved(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_proof(tmp_path_factory.mktemp("proved") / "run")


@pytest.fixture
def copy(proved: Run, tmp_path: Path) -> Run:
    return rundir.read(str(shutil.copytree(proved.root, tmp_path / "run")))


def of(figures: dict[str, Any], arm: str, trainer: str | None) -> dict[str, Any]:
    (found,) = [g for g in figures["proof"]["gains"] if (g["arm"], g["trainer"]) == (arm, trainer)]
    return found  # type: ignore[no-any-return]


def test_without_jobs_there_is_no_section(tmp_path: Path) -> None:
    root = write_run(tmp_path / "run", count=3)
    assert figures_of(root)["proof"] is None
    assert 'id="proof"' not in (root / "report.html").read_text()


def test_the_gains_are_those_of_the_last_snapshots(proved: Run) -> None:
    figures = figures_of(Path(proved.root))
    assert figures["proof"]["headline"] == {
        "detector": "efficientnet-lite0-224", "figure": "FD-EffNet", "reference": "held-out",
    }  # fmt: skip
    wanted = {"original": [], "combined": []}
    for x in lines(PROOF):
        if (x["trainer"], x["nimg"], x["reference"]) == ("ddm-32", 400_000, "held-out") and x["arm"] in wanted:
            wanted[x["arm"]].append(x["figures"]["FD-EffNet"])
    ratio = np.exp(np.log(np.divide(wanted["combined"], wanted["original"])).mean())
    combined = of(figures, "combined", "ddm-32")
    assert combined["gain"]["value"] == pytest.approx(1 - ratio) and combined["pairs"] == 5
    assert combined["verdict"] == GAIN and combined["missing"] == [] and combined["bootstrap"] is not None
    assert 0.4 < combined["recovery"]["low"] < combined["recovery"]["value"] < combined["recovery"]["high"] < 1
    assert of(figures, "null", "gan-32")["verdict"] == NOT_SHOWN and of(figures, "null", "gan-32")["chance"] is None
    assert of(figures, "combined", None)["gain"]["low"] > 0.2 and of(figures, "combined", None)["base"] is None


def test_what_is_said_names_the_interval_and_the_verdict(proved: Run, tmp_path: Path) -> None:
    said = figures_of(Path(proved.root))["proof"]["said"]
    assert len(said) == 2 and said[1].startswith(
        "Trained on the combined arm instead of the original, FD-EffNet over all trainers changed by \N{MINUS SIGN}"
    )
    assert "95 % interval" in said[1] and said[1].endswith("10 pairs): gain.")
    noisy = write_proof(tmp_path / "noisy", PROOF.model_copy(update={"seeds": 2, "trainers": ("ddm-32",)}), spread=8)
    figures = figures_of(Path(noisy.root))
    assert figures["proof"]["said"] and all(x.endswith(f": {NOT_SHOWN}.") for x in figures["proof"]["said"])
    html = (Path(noisy.root) / "report.html").read_text()
    assert html.count(NOT_SHOWN) > 2 and figures["proof"]["said"][0] in html.replace("&#39;", "'")


def test_a_verdict_that_no_null_arm_weighs_says_so(proved: Run, tmp_path: Path) -> None:
    without = tuple(arm for arm in PROOF.arms if arm != "null")
    run = write_proof(tmp_path / "without", PROOF.model_copy(update={"arms": without}))
    said = figures_of(Path(run.root))["proof"]["said"]
    assert said[1].endswith("10 pairs): gain, not weighed against what seeds alone do: there is no null arm.")
    pages = [(Path(r.root) / "report.html").read_text() for r in (proved, run)]
    assert ["what seeds alone do is not known" in text for text in pages] == [False, True]


def test_restoring_is_told_beside_dropping(proved: Run) -> None:
    told = figures_of(Path(proved.root))["proof"]["over_filter"]["said"]
    assert len(told) == 3 and told[2].startswith(
        "Trained on the combined arm instead of the filter arm, FD-EffNet over all trainers changed by "
    )
    assert all("95 % interval" in sentence for sentence in told)
    assert (Path(proved.root) / "report.html").read_text().count("instead of the filter arm") == 3


def test_the_data_sets_own_distances_stand_beside_it(proved: Run) -> None:
    rows = {row["arm"]: row for row in figures_of(Path(proved.root))["proof"]["data"]}
    assert next(iter(rows)) == "original" and "null" not in rows
    assert rows["combined"]["distance"] == pytest.approx(40 / 3 - 8)
    assert rows["combined"]["recovery"] == pytest.approx(20 / 28) and rows["original"]["recovery"] is None
    assert rows["combined"]["to_others"] == {
        "original": pytest.approx(40 / 3 + 4),
        "cleaned": pytest.approx(40 / 3 - 3),
    }


def test_other_figures_and_references_are_there_too(proved: Run) -> None:
    others = figures_of(Path(proved.root))["proof"]["others"]
    assert {(o["figure"], o["reference"]) for o in others} == {
        ("FD-EffNet", "original"), ("FD-EffNet", "cleaned"), ("FD-EffNet_infinity", "held-out"),
        ("KD-EffNet", "held-out"), ("recall", "held-out"), ("precision", "held-out"),
    }  # fmt: skip
    recall = next(o for o in others if o["figure"] == "recall")
    assert next(g for g in recall["gains"] if g["arm"] == "combined")["gain"]["value"] > 0, "more is better"


@pytest.mark.parametrize("left", ["nothing", "an earlier snapshot"])
def test_missing_jobs_are_named_on_the_page(copy: Run, left: str) -> None:
    of_the_job = b'"combined-gan-32-s3"', b'"nimg": 400000' if left == "an earlier snapshot" else b""
    whole = metrics_path(copy).read_bytes().splitlines(keepends=True)
    metrics_path(copy).write_bytes(b"".join(x for x in whole if not all(part in x for part in of_the_job)))
    figures = figures_of(Path(copy.root))
    assert of(figures, "combined", "gan-32")["missing"] == ["combined-gan-32-s3"]
    assert of(figures, "combined", "gan-32")["pairs"] == 4 and figures["proof"]["scored"] == 69
    assert "9 of 10 pairs" in figures["proof"]["said"][1]
    html = (Path(copy.root) / "report.html").read_text()
    assert "This proof is not complete." in html and "combined-gan-32-s3" in html
    assert html.count(">of 5</small>") == 1 and html.count(">of 10</small>") == 1


def test_a_declared_proof_without_figures(copy: Run) -> None:
    metrics_path(copy).unlink()
    assert figures_of(Path(copy.root))["proof"]["headline"] is None
    assert "none has been measured yet" in (Path(copy.root) / "report.html").read_text()


def test_which_dirt_costs_most_is_told_where_it_was_measured(copy: Run) -> None:
    assert figures_of(Path(copy.root))["proof"]["influence"] is None
    before = status.digest(copy)
    cost = {"value": 2.5, "low": 1.5, "high": 3.5}
    kinds = [{"kind": "noise", "images": 30, "share": 0.3, "left_out": cost, "restored": None}]
    found = {"figure": "FD-EffNet", "reference": "held-out", "images": 100, "resolution": 32, "kinds": kinds}
    storage.write_json(found, copy.url("influence.json"))
    assert figures_of(Path(copy.root))["proof"]["influence"] == found and status.digest(copy) != before
    html = (Path(copy.root) / "report.html").read_text()
    assert "Which dirt costs most?" in html and "2.50 <small>1.50 to 3.50</small>" in html


def test_the_report_is_of_the_figures_that_are_there(copy: Run) -> None:
    before = status.digest(copy)
    append_metrics(copy, [next(lines(PROOF))])
    assert (after := status.digest(copy)) != before
    declare(copy, PROOF.model_copy(update={"seeds": 7}))
    assert status.digest(copy) != after, "more seeds make it incomplete"


def test_what_was_added_after_looking_is_told(copy: Run) -> None:
    more = PROOF.model_copy(update={"seeds": {"ddm-32": 5, "gan-32": 7}})
    declare(copy, more)
    proof = figures_of(Path(copy.root))["proof"]
    said = "Added after figures of 70 jobs had been measured: seeds (gan-32 had 5)."
    assert proof["grown"] == [said] and proof["scored"] == 70
    html = (Path(copy.root) / "report.html").read_text()
    assert said in html and "10 of 12 pairs" in proof["said"][1]
    declare(copy, more := more.model_copy(update={"arms": (*PROOF.arms, "weighted")}))
    proof = figures_of(Path(copy.root))["proof"]
    assert proof["grown"][1:] == ["Added after figures of 70 jobs had been measured: arm weighted."]
    metrics_path(copy).unlink()
    declare(copy, more.model_copy(update={"seeds": 8}))
    assert [step["measured"] for step in grown(copy)] == [70, 70, 0]
    assert figures_of(Path(copy.root))["proof"]["grown"] == proof["grown"], "nobody had looked"


def test_pictures_keep_to_their_budget(proved: Run) -> None:
    found = report_proof.proof_figures(proved)
    rows = report_proof.grids(proved, found, 10**7)
    assert [len(row) for row in rows] == [7, 7, 7]
    assert rows[1][0].title == "original, ddm-32 after 400k images" and rows[1][0].picture.height == 128
    size = sum(len(grid.picture.uri) for grid in rows[0])
    assert report_proof.grids(proved, found, size) == rows[:1] and report_proof.grids(proved, found, size - 1) == []


def test_a_plot_s_lines_lie_in_their_bands_and_better_is_lower(proved: Run) -> None:
    found = report_proof.proof_figures(proved)
    for plot in report_proof.plots(found):
        last = {s.arm: s.points[-1] for s in plot.series}
        assert last["combined"]["y"] > last["original"]["y"], "down is less"
        assert all(p["high"] <= p["y"] <= p["low"] for s in plot.series for p in s.points)
        assert all(0 <= p["x"] <= report_proof.WIDTH and 0 <= p["y"] <= report_proof.HEIGHT for p in last.values())
        assert [label for _, label in plot.x_ticks] == ["0", "100k", "200k", "300k", "400k"]


def test_the_section_in_a_browser(proved: Run) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    said: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1360, "height": 900})
        page.on("console", lambda message: said.append(message.text))
        page.goto(write_report(proved.root).as_uri())
        assert page.locator("#proof table.gains tbody tr").count() == 6 * 3
        bands = page.locator("#proof .plot .band")
        assert bands.count() == 14 and all(b.bounding_box()["height"] > 1 for b in bands.all())
        plot = page.locator("#proof .plot svg").first
        seen = np.asarray(Image.open(io.BytesIO(plot.screenshot())).convert("RGB")).reshape(-1, 3)
        for colour in ((0, 114, 178), (0, 158, 115), (230, 159, 0)):
            assert (np.abs(seen.astype(int) - colour).max(1) < 12).sum() > 50, "cleaned, combined and filter are lines"
        assert page.locator("#proof .made img").count() == 21
        page.set_viewport_size({"width": 360, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        browser.close()
    assert said == []


def test_figures_are_strict_json(proved: Run) -> None:
    json.dumps(report_proof.proof_figures(proved), allow_nan=False)
