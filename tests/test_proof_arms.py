"""A proof's arms: whose samples each of them has, with what pixels; what is held out of all; what cannot be made."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
import yaml

from manifests import listing, rundir, shards
from manifests.errors import ConfigError, CurateError, RunError
from manifests.rundir import Run
from pipelines.datasets import read_entries
from pipelines.photo_pool import open_sources
from pipelines.proof import arms
from pipelines.proof.arms import check_arms, held_out, prepare_arm, severe_from, training_images
from pipelines.proof.plan import ArmName, Proof
from pipelines.split import split_of
from pipelines.training_images import TrainingImages
from tests.command_line import curate
from tests.photographs import blurred, crops, png

COUNT = 36
SIDE = 16
#: Arms that hold every training sample, and so the same ones.
WHOLE: tuple[ArmName, ...] = ("original", "null", "weighted", "placebo", "pristine")
# Severity of these blurs is read as .4 to .7; the second gate refuses those that were changed most.
GATES = [{"quantity": "severity_drop", "min": 0.015}, {"quantity": "psnr_source", "min": 31}]
Row = dict[str, Any]


def write_source(folder: Path) -> Path:
    """``raw`` and ``truth``: photographs of two classes, every other one blurred; two copies, and a broken file."""
    for i, pixels in enumerate(crops(COUNT)):
        name = Path(("ape", "bee")[i // 2 % 2]) / f"photo {i:02d}.png"
        for side, image in (("raw", blurred(pixels, 0.6 + i / 24) if i % 2 else pixels), ("truth", pixels)):
            (folder / side / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / side / name).write_bytes(png(image))
            if i in (0, 4):
                shutil.copyfile(folder / side / name, folder / side / name.with_stem(f"copy of {i:02d}"))
    (folder / "raw" / "bee" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a truth and two views: ``held`` out a third, ``dropping`` copies and what was not restored too."""
    folder = write_source(tmp_path_factory.mktemp("proof"))
    run = folder / "run"
    options = ["--dataset", "folder", "--source", folder / "raw", "--truth", folder / "truth", "--run", run]
    curate("run", *options, "--shard-size", 7, "--workers", 0, "--until", "restore")
    held = {"gates": GATES, "validation": 0.35, "damaged": "restore_or_keep"}
    for policy in (
        held | {"name": "held"},
        held | {"name": "dropping", "duplicates": "drop_exact", "damaged": "restore_or_drop"},
    ):
        (folder / "policy.yaml").write_text(yaml.safe_dump(policy))
        curate("select", run, "--policy", folder / "policy.yaml")
    curate("select", run)
    curate("select", run, "--policy", "filter")
    return run


@pytest.fixture
def run(root: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(arms, "LEAST_HELD_OUT", 2)
    return rundir.read(str(root))


def rows_of(run: Run, view: str) -> dict[str, Row]:
    """Every sample, with what the view says of it, and its severity."""
    rows = {row["key"]: row for row in pq.read_table(f"{run.root}/views/{view}.parquet").to_pylist()}
    restored = run.url(rundir.restored(1))
    for row in (r for s in run.shards() for r in shards.read_rows(restored, s, ["key", "severity"]).to_pylist()):
        rows[row["key"]] |= row
    return rows


def made(run: Run, proof: Proof) -> dict[ArmName, TrainingImages]:
    return {name: prepare_arm(run, proof, name, SIDE) for name in get_args(ArmName)}


def pixels_by_key(images: TrainingImages) -> dict[str, bytes]:
    return {key: pixels.tobytes() for key, pixels in zip(images.keys, images.pixels, strict=True)}


@pytest.mark.parametrize("view", ["held", "dropping"])
def test_each_arm_has_the_samples_that_it_should(run: Run, view: str) -> None:
    rows, proof = rows_of(run, view), Proof(view=view)
    usable = {key: row for key, row in rows.items() if row["status"] != "failed" and row["split"] == "train"}
    threshold = severe_from(run, proof)
    good = {key for key, row in usable.items() if np.float32(row["severity"]) < np.float32(threshold)}
    status = {name: {k for k, row in usable.items() if row["status"] == name} for name in ("restored", "kept_original")}
    assert good and status["restored"] and len(good) < len(usable)
    assert any(row["status"] == "rejected" for row in usable.values())
    keys = {name: set(images.keys) for name, images in made(run, proof).items()}
    for name in WHOLE:
        assert keys[name] == set(usable), name
    assert keys["cleaned"] == {k for k, row in usable.items() if not str(row["reason"]).startswith("duplicate_of")}
    assert (keys["cleaned"] == set(usable)) == (view == "held")
    assert keys["filter"] == good
    assert keys["combined"] == status["restored"] | (status["kept_original"] & good)
    assert keys["combined"] < keys["original"] and keys["filter"] < keys["original"]


def test_what_is_held_out_is_in_no_arm_and_no_training_of_a_restorer(run: Run) -> None:
    proof = Proof(view="held")
    rows = rows_of(run, "held")
    withheld = {key for key, row in rows.items() if row["split"] == "validation"}
    assert len(withheld) > 5
    for name, images in made(run, proof).items():
        assert withheld.isdisjoint(images.keys), name
    reference = held_out(run, proof)
    threshold = np.float32(severe_from(run, proof))
    assert {entry.key for entry in reference.entries} == {
        key
        for key in withheld
        if rows[key]["status"] == "kept_original" and np.float32(rows[key]["severity"]) < threshold
    }
    for entry, data in read_entries(reference.entries):
        (shard,) = {rows[entry.key]["shard"]}
        source = {r["key"]: r for r in shards.read_rows(run.url("source"), shard, ["key", "output_sha256"]).to_pylist()}
        assert isinstance(data, bytes) and rows[entry.key]["origin"] == "source"
        assert source[entry.key]["output_sha256"] == rows[entry.key]["output_sha256"]
    [trained] = open_sources([run.url("views", "held.parquet")], None, "train")
    names = {rows[key]["source_name"] for key in withheld}
    assert names.isdisjoint(entry.source_name for entry in trained.entries)
    assert any(split_of(name) == "train" for name in names)


def test_a_copy_of_a_training_sample_is_no_reference(run: Run, root: Path, tmp_path: Path) -> None:
    """A data set's own split may divide copies; here one of two copies is moved by hand."""
    copied = rundir.read(str(shutil.copytree(root, tmp_path / "run")))
    path = Path(copied.root) / "views" / "held.parquet"
    table, marker = pq.read_table(path), json.loads(path.with_suffix(".json").read_text())
    rows = table.to_pylist()
    pair = [row for row in rows if str(row["duplicate_group"]).startswith("ape-copy_of_00")]
    assert [row["status"] for row in pair] == ["kept_original"] * 2
    for splits in (("validation", "validation"), ("validation", "train"), ("train", "validation")):
        for row, split in zip(pair, splits, strict=True):
            row["split"] = split
        pq.write_table(table.from_pylist(rows, table.schema), path, row_group_size=7)
        marker["files"]["parquet"]["bytes"] = path.stat().st_size
        path.with_suffix(".json").write_text(json.dumps(marker))
        chosen = {entry.key for entry in held_out(copied, Proof(view="held")).entries}
        assert [row["key"] in chosen for row in pair] == [splits == ("validation", "validation")] * 2


def test_pixels_are_the_sources_the_candidates_or_the_truths(run: Run) -> None:
    proof, rows = Proof(view="held"), rows_of(run, "held")
    pixels = {name: pixels_by_key(images) for name, images in made(run, proof).items()}
    truths = {r["key"]: r["truth"]["container"] for s in run.shards() for r in listing.read(run, s) if r["truth"]}
    for key, found in pixels["pristine"].items():
        small = PIL.Image.open(truths[key]).resize((SIDE, SIDE), PIL.Image.Resampling.LANCZOS)
        assert found == np.asarray(small).tobytes()
    changed = {key for key in pixels["original"] if pixels["original"][key] != pixels["cleaned"][key]}
    assert changed == {key for key in pixels["original"] if rows[key]["status"] == "restored"}
    assert all(pixels["cleaned"][key] == found for key, found in pixels["combined"].items())
    assert all(pixels["original"][key] == found for key, found in pixels["filter"].items())
    nearer = [key for key in changed if distance(pixels, key, "cleaned") < distance(pixels, key, "original")]
    assert len(nearer) > len(changed) / 2


def distance(pixels: dict[ArmName, dict[str, bytes]], key: str, arm: ArmName) -> float:
    a, b = (np.frombuffer(pixels[name][key], np.uint8).astype(float) for name in (arm, "pristine"))
    return float(np.square(a - b).mean())


def test_a_placebo_changes_every_image_and_nothing_else(run: Run) -> None:
    original = prepare_arm(run, Proof(view="held"), "original", SIDE)
    found = {}
    for operation in ("jpeg", "sharpen"):
        placebo = prepare_arm(run, Proof(view="held", placebo=operation), "placebo", SIDE)
        assert placebo.keys == original.keys and (placebo.labels == original.labels).all()
        assert (placebo.pixels != original.pixels).any(axis=(1, 2, 3)).all()
        assert np.isnan(placebo.severities).all()  # nobody has read it
        found[operation] = np.array(placebo.pixels)
    assert not np.array_equal(found["jpeg"], found["sharpen"])
    buffer = io.BytesIO()
    PIL.Image.fromarray(original.pixels[0]).save(buffer, "JPEG", quality=75)
    assert np.array_equal(found["jpeg"][0], np.asarray(PIL.Image.open(buffer)))


def test_null_is_the_original_and_weighted_too_but_for_what_it_learns_of_the_severe(run: Run) -> None:
    proof = Proof(view="held", classes=True, least_sigma=0.9)
    original = training_images(run, proof, "original", SIDE)
    null, weighted = training_images(run, proof, "null", SIDE), training_images(run, proof, "weighted", SIDE)
    assert null.fingerprint == original.fingerprint and np.array_equal(null.pixels, original.pixels)
    assert null.labels is not None and set(null.labels.tolist()) == {0, 1}
    assert np.array_equal(weighted.pixels, original.pixels) and weighted.fingerprint != original.fingerprint
    assert original.least_sigma is None and weighted.least_sigma is not None
    rows = rows_of(run, "held")
    severe = [
        np.float32(rows[key]["severity"]) >= np.float32(severe_from(run, proof))
        for key in prepare_arm(run, proof, "original", SIDE).keys
    ]
    assert weighted.least_sigma.tolist() == [np.float32(0.9 if s else 0) for s in severe]
    folder = Path(run.root) / "jobs" / "images"
    assert not list(folder.glob("null-*")) and not list(folder.glob("weighted-*"))
    with pytest.raises(ConfigError, match="none is left to learn from"):
        training_images(run, proof.model_copy(update={"severe_from": 0.0}), "weighted", SIDE)


def test_severe_is_what_the_restorer_worked_by_or_what_was_declared(run: Run) -> None:
    marker = json.loads((Path(run.root) / rundir.restored(1) / f"{run.shards()[0]}.json").read_text())
    assert severe_from(run, Proof()) == marker["threshold"]
    rows = rows_of(run, "held")
    train = sorted(float(r["severity"]) for r in rows.values() if r["status"] != "failed" and r["split"] == "train")
    bound = train[-3]
    by_severity = prepare_arm(run, Proof(view="held", severe_from=bound), "filter", SIDE)
    assert {rows[key]["severity"] < bound for key in by_severity.keys} == {True}
    assert len(by_severity.keys) == sum(severity < bound for severity in train)
    by_share = prepare_arm(run, Proof(view="held", drop=0.25), "filter", SIDE)
    assert len(by_share.keys) == len(train) - round(0.25 * len(train))
    assert max(rows[key]["severity"] for key in by_share.keys) <= train[len(by_share.keys)]
    assert by_share.fingerprint != by_severity.fingerprint


def test_images_are_decoded_once(run: Run) -> None:
    first = prepare_arm(run, Proof(view="held"), "combined", SIDE)
    path = Path(run.root) / "jobs" / "images" / f"combined-{SIDE}.npy"
    stamp = path.stat().st_mtime_ns
    assert prepare_arm(run, Proof(view="held", seeds=9), "combined", SIDE).fingerprint == first.fingerprint
    assert path.stat().st_mtime_ns == stamp
    assert prepare_arm(run, Proof(view="dropping"), "combined", SIDE).fingerprint != first.fingerprint


def test_what_can_be_made_passes(run: Run) -> None:
    check_arms(run, Proof(arms=get_args(ArmName), view="held", classes=True))
    check_arms(run, Proof(arms=("original", "pristine"), view="default", reference=run.url("views", "held.parquet")))


@pytest.mark.parametrize(
    ("proof", "message"),
    [
        (Proof(view="default"), "view default holds out 0 good samples, and a reference needs .*`validation: 0.1`"),
        (Proof(), "has several views: default, dropping, filter, held"),
        (Proof(view="none"), "no view 'none'"),
        (Proof(view="held", arms=("original", "filter"), severe_from=0.0, reference="x"), "x does not exist"),
    ],
)
def test_what_cannot_be_made_is_said_before_anything_is_trained(run: Run, proof: Proof, message: str) -> None:
    with pytest.raises(CurateError, match=message):
        check_arms(run, proof)


@pytest.mark.parametrize("arm", ["cleaned", "combined"])
def test_a_view_that_restores_nothing_makes_no_arm_that_does(run: Run, arm: ArmName) -> None:
    proof = Proof(arms=("original", arm), view="filter", reference=run.url("views", "held.parquet"))
    with pytest.raises(ConfigError, match=f"view filter restores nothing, so arm {arm} would not either"):
        check_arms(run, proof)
    check_arms(run, proof.model_copy(update={"arms": ("original", "filter")}))


def test_an_arm_without_samples_or_without_a_class_is_refused(run: Run) -> None:
    proof = Proof(view="held", arms=("original", "filter"), reference=run.url("views", "held.parquet"))
    with pytest.raises(ConfigError, match="arm filter would be empty; declare a higher"):
        check_arms(run, proof.model_copy(update={"severe_from": 0.0}))
    count = len(prepare_arm(run, proof, "original", SIDE).keys)
    one_left = proof.model_copy(update={"drop": (count - 1) / count})
    check_arms(run, one_left)
    with pytest.raises(ConfigError, match="arm filter has no sample of 1 classes"):
        check_arms(run, one_left.model_copy(update={"classes": True}))


def test_without_truth_severity_or_decision(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for i, pixels in enumerate(crops(4)):
        (source / f"{i}.png").write_bytes(png(pixels))
    root = tmp_path / "run"
    curate("run", "--dataset", "folder", "--source", source, "--run", root, "--workers", 0, "--until", "ingest")
    run = rundir.read(str(root))
    proof = Proof(arms=("original", "pristine"), reference=str(source))
    with pytest.raises(RunError, match="nothing is decided yet"):
        check_arms(run, proof)
    with pytest.raises(ConfigError, match="no severities are known; run `idm-curate restore"):
        severe_from(run, proof)
    curate("restore", root)
    curate("select", root)
    with pytest.raises(ConfigError, match=r"arm pristine needs the truth of every sample, .* give it by --truth"):
        check_arms(run, proof)
    check_arms(run, proof.model_copy(update={"arms": ("original", "cleaned", "filter")}))
    with pytest.raises(ConfigError, match="has no label"):
        check_arms(run, proof.model_copy(update={"arms": ("original",), "classes": True}))
