"""Figures of snapshots: the same however they are come by, each measured once, and nothing half-written counts."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from idm_core.generators import sample
from manifests import rundir, status, storage
from manifests.errors import RunError
from manifests.rundir import Run
from pipelines import feature_sets
from pipelines.config import Resources
from pipelines.evaluate import compare
from pipelines.feature_sets import Sampling, features_of
from pipelines.image_sets import open_images
from pipelines.proof import balance, drawn, influence, scores
from pipelines.proof.measuring import SAMPLING, looked_at, score_sets
from pipelines.proof.metrics import append_metrics, metrics_path, read_metrics
from pipelines.proof.plan import External, Proof
from pipelines.proof.samples import Left, Made, reference_rows, some_rows
from pipelines.training_images import TrainingImages
from tests import proof_fixture, tiny_generators
from tests.colour_detector import ColourDetector, DeadlyDetector
from tests.photographs import crops, png
from tests.proof_fixture import PROOF

HERE = Resources(workers=0)


@pytest.fixture(scope="module")
def trained_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trained")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, trained_in: Path) -> Run:
    """A proof that is measured. Tests that change it work on a copy."""
    run = proof_fixture.write_run(tmp_path_factory.mktemp("proof") / "run")
    proof_fixture.write_jobs(run, trained_in)
    assert score(run) == []
    return run


@pytest.fixture
def copy(finished: Run, tmp_path: Path) -> Run:
    return rundir.read(str(shutil.copytree(finished.root, tmp_path / "run")))


def score(run: Run, detector: Any = ColourDetector, resources: Resources = HERE) -> list[str]:
    references, scored = proof_fixture.everything(run)
    return score_sets(run, scored, references, [detector], resources)


def lines_of(run: Run) -> list[bytes]:
    return sorted(metrics_path(run).read_bytes().splitlines())


def forget(run: Run, job: bytes) -> None:
    """Take away the lines of some jobs."""
    lines = metrics_path(run).read_bytes().splitlines(keepends=True)
    kept = [x for x in lines if job not in x]
    assert 0 < len(kept) < len(lines)
    metrics_path(run).write_bytes(b"".join(kept))


# ---- The lines


def test_every_snapshot_and_data_set_has_a_line_for_each_reference(finished: Run) -> None:
    lines = read_metrics(finished)
    of_jobs = [x for x in lines if x["trainer"] != "data"]
    assert len(of_jobs) == 3 * 2 * 2 * 2 * 3  # arms, trainers, pairs, snapshots, references
    assert len(lines) - len(of_jobs) == 2 * 3
    assert {x["nimg"] for x in of_jobs} == {32, 64} and {x["samples"] for x in of_jobs} == {64}
    assert {(x["arm"], x["pair"]) for x in lines if x["trainer"] == "data"} == {("original", None), ("cleaned", None)}
    assert all(x["detector"] == "colours" and x["weights_sha256"] == "0" * 64 for x in lines)
    wanted = {"FD-colour", "KD-colour", "precision", "recall", "density", "coverage", "FD-colour_infinity"}
    assert wanted <= set(lines[-1]["figures"]) and "crop-FD-colour" in lines[-1]["left_out"]


def test_the_figures_are_those_of_the_images_that_the_snapshot_makes(finished: Run) -> None:
    line = next(
        x
        for x in read_metrics(finished)
        if (x["job"], x["nimg"], x["reference"]) == ("cleaned-tiny-ddm-s1", 64, "held-out")
    )
    path = Path(finished.root) / "jobs" / "cleaned-tiny-ddm-s1" / "snapshot-0000000064.safetensors"
    images = sample(path, 64, seed=1)
    held_out = tiny_generators.squares(160).pixels[:80]
    ours, theirs = (features_of(iter(i), len(i), [ColourDetector()], SAMPLING)[0] for i in (images, held_out))
    assert line["figures"] == compare(ours, theirs, ColourDetector(), SAMPLING)[0]
    with Image.open(path.with_name("samples-0000000064.png")) as grid:
        shown = np.asarray(grid)
    assert shown.shape == (64, 64, 3)
    assert (shown[:8, 8:16] == images[1]).all() and (shown[8:16, :8] == images[8]).all()


def test_a_set_is_nearer_to_itself_than_to_others(finished: Run) -> None:
    own = {
        (x["arm"], x["reference"]): x["figures"]["FD-colour"] for x in read_metrics(finished) if x["trainer"] == "data"
    }
    assert own["original", "original"] < 1e-9 and own["cleaned", "cleaned"] < 1e-9
    assert 0 < own["cleaned", "held-out"] < own["original", "held-out"]


def test_pairs_are_sampled_with_one_seed(finished: Run) -> None:
    of = {s.job: s.images for s in scores.trained(finished, PROOF, proof_fixture.SIDES) if s.nimg == 64}
    seeds = {arm: of[f"{arm}-tiny-gan-s1"].seed for arm in PROOF.arms}  # type: ignore[union-attr]
    assert set(seeds.values()) == {1}


# ---- Once and for all


def test_what_is_there_is_not_measured_again(copy: Run) -> None:
    before = metrics_path(copy).read_bytes()
    looked = []

    class Watched(ColourDetector):
        def __call__(self, images: Any) -> Any:
            looked.append(len(images))
            return super().__call__(images)

    assert score(copy, Watched) == [] and looked == [] and metrics_path(copy).read_bytes() == before
    lines = metrics_path(copy).read_bytes().splitlines(keepends=True)
    gone = [i for i, x in enumerate(lines) if b'"job": "null-tiny-gan-s0", "left' in x and b'"nimg": 32' in x]
    metrics_path(copy).write_bytes(b"".join(x for i, x in enumerate(lines) if i != gone[0]))
    assert score(copy, Watched) == [] and sum(looked) == 64, "one set of images, and no reference"
    assert lines_of(copy) == sorted(before.splitlines())


def test_what_the_gain_is_made_from_comes_first(copy: Run) -> None:
    """Of who has little time: last snapshots before earlier ones, and sets that nothing is known of before others."""
    lines = metrics_path(copy).read_bytes().splitlines(keepends=True)
    known = [i for i, x in enumerate(lines) if b'"job": "original-tiny-ddm-s0"' in x and b'"nimg": 64' in x]
    gone = [i for i, x in enumerate(lines) if b"-tiny-gan-s1" in x]
    metrics_path(copy).write_bytes(b"".join(x for i, x in enumerate(lines) if i not in (known[0], *gone)))
    before = len(lines) - 1 - len(gone)
    assert score(copy) == []
    measured = [json.loads(x) for x in metrics_path(copy).read_bytes().splitlines()[before:]]
    of = list(dict.fromkeys((x["job"], x["nimg"]) for x in measured))
    untouched = [(f"{arm}-tiny-gan-s1", nimg) for nimg in (64, 32) for arm in PROOF.arms]
    assert of == [*untouched, ("original-tiny-ddm-s0", 64)]
    assert lines_of(copy) == sorted(x.strip() for x in lines)


@pytest.mark.parametrize("cut", [1, 40, -1])
def test_a_torn_last_line_is_healed(copy: Run, cut: int) -> None:
    whole = metrics_path(copy).read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    metrics_path(copy).write_bytes(whole[: -len(last)] + last[:cut])
    assert len(read_metrics(copy)) == len(whole.splitlines()) - 1
    assert score(copy) == []
    assert lines_of(copy) == sorted(whole.splitlines())


def test_another_snapshot_of_the_name_is_measured_and_its_line_counts(copy: Run) -> None:
    folder = Path(copy.root) / "jobs"
    changed = folder / "original-tiny-gan-s0" / "snapshot-0000000064.safetensors"
    shutil.copy(folder / "original-tiny-gan-s1" / changed.name, changed)
    before = len(read_metrics(copy))
    assert score(copy) == []
    assert len(read_metrics(copy)) == before, "of two lines of one snapshot one counts"
    assert len(lines_of(copy)) == before + 3


def test_a_line_that_is_none_is_named(copy: Run) -> None:
    metrics_path(copy).write_bytes(b'{"job": 1}\n' + metrics_path(copy).read_bytes())
    with pytest.raises(RunError, match="line 1"):
        read_metrics(copy)
    append_metrics(copy, [])


@pytest.mark.usefixtures("local_ray")
def test_workers_and_their_deaths_change_nothing(copy: Run, tmp_path: Path) -> None:
    before = lines_of(copy)
    forget(copy, b"-tiny-gan-s0")
    shutil.rmtree(Path(copy.root) / "jobs" / "features")
    dies = partial(DeadlyDetector, said=tmp_path / "said")
    assert score(copy, dies, Resources(workers=2, gpus_per_worker=0)) == []
    assert lines_of(copy) == before and (tmp_path / "said").exists()


def test_blocks_and_detectors_beside_it_change_no_features() -> None:
    images = tiny_generators.squares(1100).pixels
    sampling = Sampling(crop=4, kept=300)
    alone = features_of(iter(images), 1100, [ColourDetector()], sampling)[0]
    beside = features_of((i for i in images.copy()), 1100, [ColourDetector(), ColourDetector()], sampling)[1]
    assert (alone.features == beside.features).all() and len(alone.features) == 300
    assert (alone.statistics.scatter == beside.statistics.scatter).all() and alone.crops.n == 1100
    all_at_once = feature_sets.statistics_of(ColourDetector()(images))
    assert alone.statistics.mean == pytest.approx(all_at_once.mean, rel=1e-6)
    assert alone.statistics.scatter == pytest.approx(all_at_once.scatter, rel=1e-5, abs=1e-6)


def test_features_of_whole_sets_are_kept_in_their_order_and_the_reference_is_what_was_scored_against(
    copy: Run,
) -> None:
    references, _ = proof_fixture.everything(copy)
    held_out = references[0].images
    sets = {reference.name: reference.images for reference in references}
    looked = []

    class Watched(ColourDetector):
        def __call__(self, images: Any) -> Any:
            looked.append(len(images))
            return super().__call__(images)

    _, found, statistics = looked_at(copy, sets, held_out, Watched, HERE)
    pixels = tiny_generators.squares(160).pixels[:80]
    assert found["held-out"] == pytest.approx(ColourDetector()(pixels), rel=1e-6)
    assert sum(looked) == 3 * 80, "the reference was there"
    (alone,) = features_of(iter(pixels), 80, [ColourDetector()], Sampling(kept=2**40, crops=0))
    assert (statistics.scatter == alone.statistics.scatter).all(), "as if every image of it were kept"

    class Blind(ColourDetector):
        def __call__(self, images: Any) -> Any:
            raise AssertionError("they are there")

    assert looked_at(copy, sets, held_out, Blind, HERE)[1].keys() == sets.keys()


# ---- What fails


def test_a_damaged_snapshot_is_named_and_the_others_are_measured(copy: Run) -> None:
    before = read_metrics(copy)
    forget(copy, b"-tiny-gan-s0")
    (Path(copy.root) / "jobs" / "null-tiny-gan-s0" / "snapshot-0000000032.safetensors").write_bytes(b"no tensors")
    (failure,) = score(copy)
    told = storage.read_json(failure)
    assert "snapshot-0000000032.safetensors" in told["error"] and "train it again" in told["error"]
    assert len(read_metrics(copy)) == len(before) - 3


@pytest.mark.parametrize(
    ("write", "told"),
    [(3, "holds 3 images, 5 are declared"), (0, "`sample` command"), (-5, "an image is 12 x 12 pixels")],
)
def test_samples_of_others_are_all_there_or_not_measured(tmp_path: Path, write: int, told: str) -> None:
    run = proof_fixture.write_run(tmp_path / "run")
    side = 8 if write >= 0 else 12
    other = External(train=("train",), sample=("sample",), resolution=8)
    proof = Proof(arms=("original",), trainers=("mine",), external={"mine": other}, seeds=1, samples=5)
    folder = tmp_path / "run" / "jobs" / "original-mine-s0"
    for i in range(abs(write)):
        storage.write_bytes(png(crops(8, side)[i]), str(folder / "samples" / f"{i}.png"))
    assert scores.trained(run, proof, {"mine": 8}) == [], "not done yet"
    storage.write_json({}, str(folder / "done.json"))
    (failure,) = score_sets(
        run, scores.trained(run, proof, {"mine": 8}), proof_fixture.write_sets(run)[0], [ColourDetector], HERE
    )
    assert told in storage.read_json(failure)["error"]
    shutil.rmtree(folder / "samples", ignore_errors=True)
    for i in range(6):
        storage.write_bytes(png(crops(8, 8)[i]), str(folder / "samples" / f"{i}.png"))
    (mine,) = scores.trained(run, proof, {"mine": 8})
    assert isinstance(mine.images, Left)
    assert score_sets(run, [mine], proof_fixture.write_sets(run)[0], [ColourDetector], HERE) == []
    assert not Path(failure).exists() and {x["samples"] for x in read_metrics(run)} == {5}


# ---- What is drawn and decoded


def test_arms_are_drawn_alike_by_their_keys() -> None:
    def arm(keys: list[str]) -> TrainingImages:
        nothing = np.zeros((len(keys), 8, 8, 3), np.uint8)
        return TrainingImages(nothing, keys, np.zeros(len(keys), np.int64), np.zeros(len(keys), np.float32), "f")

    keys = [f"{i:03d}" for i in range(100)]
    few, many = arm(keys[10:]), arm(keys)
    chosen = [{images.keys[i] for i in some_rows(images, Path("x.npy"), 40).rows or ()} for images in (few, many)]
    assert all(len(c) == 40 for c in chosen) and len(chosen[0] & chosen[1]) >= 34


def test_the_reference_is_brought_to_the_size_once_and_known_again_elsewhere(tmp_path: Path) -> None:
    for i, pixels in enumerate(crops(4, 40)):
        storage.write_bytes(png(pixels), str(tmp_path / "photos" / f"{i}.png"))
    storage.write_bytes(b"no image", str(tmp_path / "photos" / "x.png"))
    run = proof_fixture.write_run(tmp_path / "run")
    rows = reference_rows(run, open_images(str(tmp_path / "photos")), 16)
    assert rows.count == 4 and [i.shape for i in rows.images("cpu")] == [(16, 16, 3)] * 4
    stamp = rows.path.stat().st_mtime_ns
    assert reference_rows(run, open_images(str(tmp_path / "photos")), 16) == rows
    assert rows.path.stat().st_mtime_ns == stamp
    shutil.copytree(tmp_path / "photos", tmp_path / "moved")
    again = reference_rows(run, open_images(str(tmp_path / "moved")), 16)
    assert again.identity() == rows.identity(), "by its pixels"
    (tmp_path / "moved" / "0.png").unlink()
    assert reference_rows(run, open_images(str(tmp_path / "moved")), 16).identity() != rows.identity()


def test_what_is_made_is_known_by_the_snapshot_s_bytes_seed_and_number(finished: Run, tmp_path: Path) -> None:
    path = Path(finished.root) / "jobs" / "cleaned-tiny-ddm-s1" / "snapshot-0000000064.safetensors"
    same = Path(shutil.copy(path, tmp_path / "copy.safetensors"))
    of = {Made(path, 0, 9).identity(), Made(same, 0, 9).identity()}
    assert len(of) == 1 and not of & {Made(path, 1, 9).identity(), Made(path, 0, 10).identity()}


def test_the_arms_of_a_curated_run_are_measured_before_anything_is_trained(curated_run: Path, tmp_path: Path) -> None:
    for i, pixels in enumerate(crops(12, 40)):
        storage.write_bytes(png(pixels), str(tmp_path / "photos" / f"{i}.png"))
    run = rundir.read(str(shutil.copytree(curated_run, tmp_path / "run")))
    proof = Proof(arms=("original", "cleaned", "null"), trainers=("gan-32",), reference=str(tmp_path / "photos"))
    assert scores.score(run, proof, HERE, [ColourDetector]) == []
    lines = read_metrics(run)
    assert {x["job"] for x in lines} == {"original-data-32", "cleaned-data-32"}
    assert {x["reference"] for x in lines} == {str(tmp_path / "photos"), "original", "cleaned"} and len(lines) == 6
    assert len({x["samples"] for x in lines}) == 1, "as many images of each arm"
    told = influence.influence(run, proof, ["blur", "noise"], HERE, [ColourDetector])
    assert sorted(kind["kind"] for kind in told["kinds"]) == ["blur", "noise"]
    assert storage.read_json(run.url("influence.json")) == told
    assert balance.balance(run, proof, HERE, [ColourDetector]) is None
    both = proof.model_copy(update={"arms": ("original", "combined", "filter")})
    weighed = balance.balance(run, both, HERE, [ColourDetector])
    assert weighed is not None and weighed["images"] == weighed["of"] == 24
    assert weighed["dropping"]["images"] <= weighed["restoring"]["images"]
    assert storage.read_json(run.url("balance.json")) == weighed and "FD-colour" in balance.said(weighed)


def test_restoring_is_weighed_once_and_of_large_sets_a_part(
    curated_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i, pixels in enumerate(crops(12, 40)):
        storage.write_bytes(png(pixels), str(tmp_path / "photos" / f"{i}.png"))
    run = rundir.read(str(shutil.copytree(curated_run, tmp_path / "run")))
    arms = ("original", "combined", "filter")
    proof = Proof(arms=arms, trainers=("gan-32",), reference=str(tmp_path / "photos"))
    weighed = balance.balance(run, proof, HERE, [ColourDetector])
    before = status.digest(run)
    monkeypatch.setattr(balance, "weigh", None)
    assert balance.balance(run, proof, HERE, [ColourDetector]) == weighed
    monkeypatch.undo()
    monkeypatch.setattr(balance, "VERSION", 1)
    earlier = balance.balance(run, proof, HERE, [ColourDetector])
    monkeypatch.undo()
    assert earlier != weighed, "another version"
    assert balance.balance(run, proof, HERE, [ColourDetector]) == weighed, "what an earlier version wrote is made anew"
    monkeypatch.setattr(drawn, "MOST", 12)
    part = balance.balance(run, proof, HERE, [ColourDetector])
    assert part is not None and (part["images"], part["of"]) == (12, 24)
    assert balance.said(part).startswith("Of 12 images that were drawn: ")
    whole, some = influence.influence(run, proof, ["blur"], HERE, [ColourDetector]), drawn.draw(run, proof, arms)
    assert (whole["images"], whole["of"]) == (12, 24)
    chosen = set(some.keys["original"])
    assert influence._measurements(run, chosen).keys() == chosen
    assert len(chosen) == 12 and all(set(some.keys[arm]) <= chosen for arm in arms)
    assert status.digest(run) != before, "a report says what is there now"
    monkeypatch.setattr(balance, "LEAST", 100)
    assert balance.balance(run, proof, HERE, [ColourDetector]) is None


def test_lines_are_json_that_others_read(finished: Run) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for text in lines_of(finished):
        line = json.loads(text, parse_constant=refuse)
        assert {"job", "arm", "trainer", "pair", "nimg", "resolution", "figures", "left_out", "fingerprint"} <= set(
            line
        )
