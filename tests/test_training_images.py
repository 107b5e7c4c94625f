"""An arm's training images: the pixels, labels and severities of its samples, made once and again where need be."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import yaml

from idm_core.checkpoint import CheckpointError
from idm_core.generators import train
from manifests import rundir, shards
from manifests.errors import ConfigError, RunError
from pipelines.exports import arm as arms
from pipelines.exports.arm import ArmName
from pipelines.training_images import Split, TrainingImages, open_images, prepare_images
from tests.command_line import curate
from tests.export_fixture import make_run, view_of, write_mixed_folder, write_squares
from tests.tiny_generators import DDM, config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as far as its view; two classes, a broken file. Tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("mixed")
    return make_run(write_mixed_folder(folder / "in"), folder / "run", "select")


def prepared(
    root: Path, path: Path, name: ArmName = "cleaned", side: int = 16, split: Split = "train", view: str | None = None
) -> TrainingImages:
    with arms.opened(rundir.read(str(root)), name, view) as arm:
        return prepare_images(arm, side, path, split=split)


def test_pixels_labels_and_severities_are_those_of_the_views_samples(run: Path, tmp_path: Path) -> None:
    images = prepared(run, tmp_path / "cleaned")
    view, opened = view_of(run), rundir.read(str(run))
    assert images.keys == sorted(view)
    assert images.labels.tolist() == [view[key]["label"] for key in images.keys]
    assert set(images.labels.tolist()) == {0, 1}
    read = {r["key"]: r for s in opened.shards() for r in shards.read_rows(str(run / "restored/round1"), s).to_pylist()}
    for key, severity, pixels in zip(images.keys, images.severities, images.pixels, strict=True):
        row = view[key]
        column = "severity_after" if row["origin"] == "restored" else "severity"
        assert severity == np.float32(read[key][column])
        tar = run / rundir.FOLDER_OF_ORIGIN[row["origin"]] / f"{row['shard']}.tar"
        data = tar.read_bytes()[row["offset"] : row["offset"] + row["nbytes"]]
        photo = PIL.Image.open(io.BytesIO(data)).convert("RGB")
        side = min(photo.size)
        left, top = (photo.width - side) // 2, (photo.height - side) // 2
        square = photo.crop((left, top, left + side, top + side)).resize((16, 16), PIL.Image.Resampling.LANCZOS)
        assert np.array_equal(pixels, np.asarray(square))
    assert {row["origin"] for row in view.values()} == {"source", "restored"}


def test_they_are_made_once_and_made_again_for_anything_else(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "images"
    first = prepared(run, path)
    stamp = path.with_name("images.npy").stat().st_mtime_ns
    again = prepared(run, path)
    assert path.with_name("images.npy").stat().st_mtime_ns == stamp
    assert np.array_equal(again.pixels, first.pixels) and again.fingerprint == first.fingerprint
    original = prepared(run, path, "original")
    assert original.fingerprint != first.fingerprint
    assert not np.array_equal(original.pixels, first.pixels)
    assert prepared(run, path, side=8).pixels.shape[1:] == (8, 8, 3)
    path.with_name("images.npy").write_bytes(b"cut off")
    with pytest.raises(RunError, match="not whole"):
        open_images(path)
    assert np.array_equal(prepared(run, path).pixels, first.pixels)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images.json", "images.npy", "images.parquet"]
    with pytest.raises(RunError, match="no training images"):
        open_images(tmp_path / "nothing")


def test_what_is_held_out_is_not_trained_on(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    policy = tmp_path / "held.yaml"
    policy.write_text(yaml.safe_dump({"name": "held", "validation": 0.4}))
    curate("select", copy, "--policy", policy)
    parts = [prepared(copy, tmp_path / s, split=s, view="held").keys for s in ("train", "validation")]  # type: ignore[arg-type]
    assert all(parts) and not set(parts[0]) & set(parts[1])
    assert sorted(parts[0] + parts[1]) == sorted(view_of(copy, "held"))
    with pytest.raises(RunError, match="validation split"):
        prepared(run, tmp_path / "none", split="validation")


def test_bad_images_get_a_noise_level(run: Path, tmp_path: Path) -> None:
    images = prepared(run, tmp_path / "original", "original")
    bad_from = float(images.severities.max())
    ready = images.for_training(classes=True, bad_from=bad_from, least_sigma=1.6)
    assert ready.least_sigma is not None and ready.labels is images.labels
    assert ((ready.least_sigma == np.float32(1.6)) == (images.severities >= bad_from)).all()
    assert set(ready.least_sigma.tolist()) == {0.0, float(np.float32(1.6))}
    assert images.for_training().least_sigma is None and images.for_training().labels is None
    assert images.for_training().fingerprint != ready.fingerprint
    with pytest.raises(ConfigError, match="belong together"):
        images.for_training(bad_from=0.5)


def test_what_is_not_known_is_not_made_up(tmp_path: Path) -> None:
    root = make_run(write_squares(tmp_path / "in"), tmp_path / "run", "ingest")
    images = prepared(root, tmp_path / "images", "original")
    assert len(images.keys) == 6
    with pytest.raises(ConfigError, match="has no label"):
        images.for_training(classes=True)
    with pytest.raises(ConfigError, match=r"severity of .* not known"):
        images.for_training(bad_from=0.1, least_sigma=1.0)


def test_a_generator_trains_on_them_and_on_no_others(run: Path, tmp_path: Path) -> None:
    images = prepared(run, tmp_path / "cleaned", side=8).for_training(classes=True)
    options = config(DDM, 32, classes=2)
    assert train(images, options, tmp_path / "job").is_file()
    others = prepared(run, tmp_path / "original", "original", side=8).for_training(classes=True)
    with pytest.raises(CheckpointError, match=r"other options \(images\)"):
        train(others, options, tmp_path / "job")
