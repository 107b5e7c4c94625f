"""Rounds: each cleans the raw set with the model before, trains on with an anchor, and stops by rule."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from idm_core import load_restorer
from idm_core.checkpoint import find_checkpoint
from idm_core.presets import PRESETS
from idm_core.training import TrainConfig
from manifests import rundir, shards, storage
from manifests.errors import SourceError
from pipelines import rounds as module
from pipelines.datasets import read_entries
from pipelines.photo_pool import PhotoPool, cut_patch, open_sources
from pipelines.rounds import Rounds, clean, gain, train_rounds
from tests.photographs import blurred, crops

CONFIG = TrainConfig(
    PRESETS["small-64"], 8, batch=4, warmup_nimg=0, perceptual=0.0, precision="fp32", save_nimg=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 crops of 80 pixels; every third one blurred."""
    folder = tmp_path_factory.mktemp("raw")
    for i, pixels in enumerate(crops(60, side=80)):
        Image.fromarray(blurred(pixels, 1.5) if i % 3 == 0 else pixels).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"VALIDATION_PATCHES": 2, "CALIBRATION_PATCHES": 100}.items():
        monkeypatch.setattr(f"pipelines.train_idm.{name}", value)
    monkeypatch.setattr(module, "SCORED_PATCHES", 16)
    monkeypatch.setattr(module, "GUARD_PATCHES", 32)


def lines(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("few")
def test_a_run_cleaned_by_a_good_model_feeds_the_next_round(raw: Path, tmp_path: Path) -> None:
    """The view holds restored candidates where they passed, under the raw names; the anchor is the untouched best."""
    options = Rounds(policy="default", anchor=0.5)
    counts = clean(str(raw), tmp_path / "cleaned", find_checkpoint("idm-64"), options, {"workers": 0})
    assert counts["restored"] >= 10 and counts["kept_original"] >= 20
    views = [str(tmp_path / "cleaned" / "views" / f"{name}.parquet") for name in ("default", "anchor")]
    splits = [open_sources(views, None, split) for split in ("train", "validation", "test")]
    everything, anchor = ({e.source_name for s in splits for e in s[i].entries} for i in (0, 1))
    assert everything <= {path.name for path in raw.iterdir()}
    assert len(everything) == counts["restored"] + counts["kept_original"] == 60 - counts["rejected"]
    run = rundir.read(str(tmp_path / "cleaned"))
    rows = {r["key"]: r for s in run.shards() for r in shards.read_rows(run.url("restored/round1"), s).to_pylist()}
    severity = {f"{key}.png": row["severity"] for key, row in rows.items()}
    assert anchor and max(severity[n] for n in anchor) <= np.median(list(severity.values()))
    assert all(rows[n.removesuffix(".png")]["status"] == "kept_original" for n in anchor)
    # What is read is the candidate where there is one, and the raw file where there is none.
    entries = [e for s in splits for e in s[0].entries]
    candidates = 0
    for entry, data in read_entries(entries):
        row = rows[entry.key]
        raw_bytes = (raw / entry.source_name).read_bytes()
        if "restored/round1" in entry.container:
            candidates += 1
            assert isinstance(data, bytes) and hashlib.sha256(data).hexdigest() == row["output_sha256"]
            assert data != raw_bytes
        else:
            assert data == raw_bytes
    assert candidates == counts["restored"]
    assert PhotoPool(splits[0][:1], 64, seed=0, least=1.0).patch(0).shape == (3, 64, 64)
    with pytest.raises(SourceError, match=r"RUN/views/NAME\.parquet"):
        open_sources([str(tmp_path / "cleaned" / "views" / "no.parquet")], None, "train")
    (tmp_path / "cleaned" / "views" / "anchor.json").unlink()  # as if a kill had come before the marker
    with pytest.raises(SourceError, match="make the view again"):
        open_sources(views, None, "train")


@pytest.mark.usefixtures("few")
def test_rounds_go_on_while_they_gain_and_the_best_one_is_kept(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores as planted: round 2 is better, round 3 is not; the model is round 2's, and the same call does nothing."""
    planted = {"round1": 0.3, "round2": 0.2, "round3": 0.25}
    noise = np.random.default_rng(0).normal(0, 0.01, 16)
    monkeypatch.setattr(module, "score", lambda path, *_: planted[path.parent.name] + noise)
    options = Rounds(nimg=4, policy="default", clean_above=1.0, anchor=0.9, least_diversity=0.0)
    path = train_rounds(str(raw), tmp_path / "out", CONFIG, options, start=find_small(tmp_path))
    history = lines(tmp_path / "out")
    assert [r["stop"] for r in history] == [None, None, "no_gain"]
    assert [r["score"] for r in history] == pytest.approx([0.3 + noise.mean(), 0.2 + noise.mean(), 0.25 + noise.mean()])
    assert history[1]["better_by"] == pytest.approx(0.1) and history[0]["better_by"] is None
    best, second = load_restorer(path), load_restorer(tmp_path / "out/round2/small-64.safetensors")
    for a, b in zip(best._networks.parameters(), second._networks.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not (tmp_path / "out/round3/cleaned").exists()  # nothing is cleaned that nobody is trained on
    run = rundir.read(str(tmp_path / "out/round1/cleaned"))
    assert storage.exists(run.url("views", "anchor.parquet"))

    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("training-state.safetensors")}
    assert len(before) == 3
    assert train_rounds(str(raw), tmp_path / "out", CONFIG, options, start=find_small(tmp_path)) == path
    assert lines(tmp_path / "out") == history
    assert {p: p.stat().st_mtime_ns for p in before} == before


def find_small(tmp_path: Path) -> Path:
    """A checkpoint of the small preset that already reads severity: tests of rounds are not tests of training."""
    from pipelines.train_idm import _train

    out = tmp_path / "start"
    source = tmp_path / "start-photographs"
    if not source.exists():
        source.mkdir()
        for i, pixels in enumerate(crops(30, side=120)):
            Image.fromarray(pixels).save(source / f"{i:02d}.png")
        _train([str(source)], out, replace(CONFIG, nimg=64), None, None, None, 1.0, "cpu")
    return out / "small-64.safetensors"


@pytest.mark.usefixtures("few")
def test_a_cleaning_that_makes_all_alike_ends_the_rounds(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "diversity_kept", lambda *_: 0.5)
    options = Rounds(nimg=4, policy="default", clean_above=1.0, anchor=0.9)
    train_rounds(str(raw), tmp_path / "out", CONFIG, options, start=find_small(tmp_path))
    assert [r["stop"] for r in lines(tmp_path / "out")] == ["diversity"]


@pytest.mark.usefixtures("few")
def test_diversity_is_one_for_the_raw_set_and_less_where_all_is_blurred(raw: Path, tmp_path: Path) -> None:
    """Both measured by the guard itself, on runs whose candidates are planted."""
    options = Rounds(policy="default")
    clean(str(raw), tmp_path / "same", find_checkpoint("idm-64"), replace(options, clean_above=1.0), {"workers": 0})
    assert module.diversity_kept(str(raw), tmp_path / "same", 64, options, "cpu") == pytest.approx(1, abs=1e-6)
    grey = tmp_path / "grey"
    grey.mkdir()
    for path in raw.iterdir():
        image = Image.open(path).convert("L").resize((6, 6)).resize((80, 80)).convert("RGB")
        image.save(grey / path.name)
    assert module.diversity_kept(str(grey), tmp_path / "same", 64, options, "cpu") > 1.2


def test_a_gain_has_an_interval() -> None:
    before = np.full(100, 0.5)
    noise = np.random.default_rng(0).normal(0, 0.1, 100)
    noise -= noise.mean()
    mean, half = gain(before, before - 0.02 + noise, 0.95)
    assert mean == pytest.approx(0.02)
    assert half == pytest.approx(1.66 * noise.std(ddof=1) / 10, rel=0.01)


def test_patches_of_photographs_that_are_good_as_they_are_keep_their_size() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (80, 64, 3), np.uint8)
    whole = {photo[top : top + 64].tobytes() for top in range(17)} | {
        photo[top : top + 64, ::-1].tobytes() for top in range(17)
    }
    for u in np.random.default_rng(1).random((20, 6)):
        assert np.ascontiguousarray(cut_patch(photo, 64, list(u), 1.0)).tobytes() in whole
