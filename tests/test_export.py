"""Exports: what goes in comes out, each format is opened by its consumer, and equal exports are equal bytes."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest

from manifests import rundir, schema, storage
from manifests.errors import ConfigError, RunError
from pipelines import datasets, images
from pipelines.export import export
from pipelines.exports.plan import Request
from tests.command_line import curate
from tests.export_fixture import (
    ImageFolderDataset,
    hashes,
    make_run,
    manifest_of,
    view_of,
    write_mixed_folder,
    write_squares,
)  # fmt: skip

FORMATS = ["stylegan", "hf", "folder"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mixed_folder(tmp_path_factory.mktemp("photos") / "in")


@pytest.fixture(scope="module")
def run(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as far as its view. Tests that change it work on a copy."""
    return make_run(source, tmp_path_factory.mktemp("runs") / "run", "select")


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run, tmp_path / "run")


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is ingested and no more: images of one size, no classes."""
    folder = tmp_path_factory.mktemp("squares")
    return make_run(write_squares(folder / "in"), folder / "run", "ingest")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out"


def export_to(run: Path, target: Path, format: str, **options: Any) -> list[str]:
    """Export; what it said."""
    said: list[str] = []
    workers = options.pop("workers", 0)
    request = Request(format, **options)  # type: ignore[arg-type]
    export(rundir.read(str(run)), str(target), request, workers=workers, say=said.append)
    return said


def with_splits(run: Path, **changed: Any) -> Path:
    """Give the view of a run a split, every fourth sample validation, and whatever else is to be changed there."""
    path = run / "views" / "default.parquet"
    rows = pq.read_table(path).to_pylist()
    for i, row in enumerate(rows):
        row |= {"split": "validation" if i % 4 == 1 else "train"}
    with pq.ParquetWriter(path, schema.VIEW) as writer:
        for shard in sorted({row["shard"] for row in rows}):
            writer.write_table(schema.table_from_rows([r for r in rows if r["shard"] == shard], schema.VIEW))
    url = str(run / "views" / "default.json")
    storage.write_json(storage.read_json(url) | {"fingerprint": "another"}, url)
    return run


# ---- StyleGAN


def expected_pixels(data: bytes, side: int) -> np.ndarray[Any, Any]:
    """Centre square, Lanczos: by hand."""
    image = PIL.Image.fromarray(images.decode(data).rgb)
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    return np.asarray(
        image.crop((left, top, left + short, top + short)).resize((side, side), PIL.Image.Resampling.LANCZOS)
    )


def tar_bytes(run: Path, row: dict[str, Any]) -> bytes:
    folder = {"source": "source", "restored": "restored/round1"}[row["origin"]]
    with (run / folder / f"{row['shard']}.tar").open("rb") as f:
        f.seek(row["offset"])
        return f.read(row["nbytes"])


def test_stylegan_s_reader_finds_every_sample_with_its_pixels_and_label(run: Path, tmp_path: Path) -> None:
    target, view = tmp_path / "faces.zip", view_of(run)
    said = export_to(run, target, "stylegan", resolution=32)
    dataset, rows = ImageFolderDataset(target), manifest_of(target)
    assert len(dataset.names) == len(rows) == len(view) == 14
    assert [r["file_name"] for r in rows] == dataset.names
    assert dataset.names == [f"00000/img{i:08d}.png" for i in range(14)]
    assert {r["key"] for r in rows} == view.keys() and {r["origin"] for r in rows} == {"source", "restored"}
    assert dataset.labels is not None
    for i, row in enumerate(rows):
        pixels = expected_pixels(tar_bytes(run, view[row["key"]]), 32)
        assert (dataset[i].transpose(1, 2, 0) == pixels).all(), row["key"]
        assert dataset.labels[i] == view[row["key"]]["label"]
    dataset.close()
    with zipfile.ZipFile(target) as opened:
        assert {m.compress_type for m in opened.infolist()} == {zipfile.ZIP_STORED}
        for row in rows:
            data = opened.read(row["file_name"])
            assert (len(data), hashlib.sha256(data).hexdigest()) == (row["nbytes"], row["output_sha256"])
            assert (row["ext"], row["width"], row["height"]) == ("png", 32, 32)
    assert any("14 images" in line for line in said)


def test_images_of_one_size_keep_their_pixels_and_one_missing_label_nulls_all(squares: Path, tmp_path: Path) -> None:
    target = tmp_path / "squares.zip"
    said = export_to(squares, target, "stylegan", arm="original")
    dataset = ImageFolderDataset(target)
    assert dataset.shape == (3, 64, 64) and dataset.labels is None
    for i, row in enumerate(manifest_of(target)):
        published = np.asarray(PIL.Image.open(squares.parent / "in" / row["source_name"]))
        assert (dataset[i].transpose(1, 2, 0) == published).all()
    dataset.close()
    assert any("no labels" in line for line in said)


def test_small_images_are_left_out_and_told_or_enlarged(run: Path, tmp_path: Path) -> None:
    said = export_to(run, tmp_path / "a.zip", "stylegan", resolution=60)
    assert len(manifest_of(tmp_path / "a.zip")) == 13
    assert any("1 images are smaller than 60 px and left out" in line for line in said)
    assert any("no power of two" in line for line in said)
    said = export_to(run, tmp_path / "b.zip", "stylegan", resolution=64, enlarge=True)
    assert len(manifest_of(tmp_path / "b.zip")) == 14
    assert any("1 images are smaller than 64 px and enlarged" in line for line in said)
    assert not any("power of two" in line for line in said)
    ImageFolderDataset(tmp_path / "b.zip").close()


@pytest.mark.parametrize("options", [{}, {"resolution": 32, "crop": "none"}])
def test_a_zip_of_different_sizes_is_refused(run: Path, target: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"--resolution|--crop none"):
        export_to(run, target.with_suffix(".zip"), "stylegan", **options)
    assert not list(target.parent.iterdir())


# ---- Hugging Face


def load(target: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from datasets import Image, load_dataset

    loaded = load_dataset("imagefolder", data_dir=str(target), cache_dir=str(cache))
    return {name: part.cast_column("image", Image(decode=False)) for name, part in loaded.items()}


def test_hugging_face_finds_every_sample_with_its_bytes(
    copy: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = view_of(with_splits(copy))
    export_to(copy, target, "hf")
    parts = load(target, tmp_path / "cache", monkeypatch)
    assert set(parts) == {"train", "validation"}
    assert sum(len(part) for part in parts.values()) == len(view)
    for split, part in parts.items():
        for row in part:
            sample = view[row["key"]]
            image = row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes()
            assert image == tar_bytes(copy, sample), "original bytes, PNG and JPEG alike"
            assert sample["split"] == split and sample["label"] == row["label"]
            assert (row["status"], row["gate"]) == (sample["status"], sample["gate"] or "")
            assert row["class_name"] == ("ape", "bee")[row["label"]]
            assert 0 <= row["severity_after"] <= 1
    assert {r["image"]["path"].rsplit(".")[-1] for p in parts.values() for r in p} == {"png", "jpg"}


def test_metadata_is_of_the_image_that_lies_there(run: Path, target: Path) -> None:
    export_to(run, target, "hf")
    lines = [json.loads(line) for line in (target / "train" / "metadata.jsonl").read_text().splitlines()]
    rows = {r["key"]: r for r in manifest_of(target)}
    assert len(lines) == len(rows) and not (target / "validation").exists()
    assert len({tuple(line) for line in lines}) == 1, "the same columns in every row"
    for line in lines:
        row = rows[line["key"]]
        assert (target / "train" / line["file_name"]).read_bytes() == (target / row["file_name"]).read_bytes()
        restored = row["origin"] == "restored"
        assert line["sharpness"] == row["after_sharpness" if restored else "sharpness"]
        assert line["severity_after"] == row["severity_after" if restored else "severity"]
        assert line["severity"] == row["severity"]


def test_what_is_not_known_of_every_image_does_not_keep_the_splits_from_loading(
    copy: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``datasets`` refuses splits whose columns differ in type, and a column without a value has none."""
    with_splits(copy)
    path = copy / "views" / "default.parquet"
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        if row["split"] == "validation":
            row |= {"label": None, "gate": None}
        else:
            row["gate"] = "psnr_source"
    pq.write_table(schema.table_from_rows(rows, schema.VIEW), path)
    said = export_to(copy, target, "hf")
    parts = load(target, tmp_path / "cache", monkeypatch)
    assert {frozenset(part.column_names) for part in parts.values()} == {frozenset(parts["train"].column_names)}
    assert "label" not in parts["train"].column_names and any("no labels" in line for line in said)
    assert set(parts["validation"]["gate"]) == {""} and set(parts["train"]["gate"]) == {"psnr_source"}


def test_resized_images_are_lossless_pngs(run: Path, target: Path) -> None:
    view = view_of(run)
    export_to(run, target, "hf", resolution=40)
    for row in manifest_of(target):
        pixels = np.asarray(PIL.Image.open(target / row["file_name"]))
        assert (pixels == expected_pixels(tar_bytes(run, view[row["key"]]), 40)).all()
        assert row["file_name"].endswith(".png")


def test_without_a_crop_the_shape_stays(run: Path, target: Path) -> None:
    export_to(run, target, "folder", resolution=32, crop="none")
    sizes = {r["source_name"]: (r["width"], r["height"]) for r in manifest_of(target)}
    for row in manifest_of(target):
        assert PIL.Image.open(target / row["file_name"]).size == sizes[row["source_name"]]
    assert sizes["ape/wide.jpg"] == (38, 32) and sizes["bee/small.png"] == (32, 32)


# ---- Folder


def test_a_folder_has_the_files_by_key_and_every_column(run: Path, target: Path) -> None:
    view = view_of(run)
    export_to(run, target, "folder")
    rows = manifest_of(target)
    assert {r["key"] for r in rows} == view.keys()
    files = {str(p.relative_to(target)) for p in target.rglob("*") if p.suffix in (".png", ".jpg")}
    assert files == {r["file_name"] for r in rows}
    for row in rows:
        assert Path(row["file_name"]).stem == row["key"]
        data = (target / row["file_name"]).read_bytes()
        assert data == tar_bytes(run, view[row["key"]]) and hashlib.sha256(data).hexdigest() == row["output_sha256"]
    known = set(schema.CLEANED.names) - {"offset"}
    assert known <= rows[0].keys() and all(r["severity"] is not None and r["phash"] for r in rows)


def test_an_export_can_be_ingested_with_its_labels(run: Path, target: Path) -> None:
    export_to(run, target, "folder")
    entries = datasets.open_dataset("folder", str(target)).entries
    labels = {r["file_name"]: r["label"] for r in manifest_of(target)}
    assert {e.source_name: e.label for e in entries} == labels


# ---- Which samples


def test_the_original_arm_is_the_source_as_it_came(run: Path, source: Path, target: Path) -> None:
    export_to(run, target, "folder", arm="original")
    rows = manifest_of(target)
    assert len(rows) == 14 and "bee/broken.png" not in {r["source_name"] for r in rows}
    for row in rows:
        assert (target / row["file_name"]).read_bytes() == (source / row["source_name"]).read_bytes()
    assert all(r["severity"] is not None for r in rows), "what is known of them is told"


def test_what_a_policy_dropped_is_not_exported(copy: Path, target: Path, tmp_path: Path) -> None:
    policy = tmp_path / "harsh.yaml"
    policy.write_text("name: harsh\ngates: [{quantity: severity_drop, min: 0.99}]\ndamaged: restore_or_drop\n")
    curate("select", copy, "--policy", policy)
    export_to(copy, target, "folder", view="harsh")
    kept = {key for key, row in view_of(copy).items() if row["status"] != "restored"}
    assert {r["key"] for r in manifest_of(target)} == kept and 0 < len(kept) < 14
    with pytest.raises(ConfigError, match=r"default, harsh.*--view"):
        export_to(copy, tmp_path / "other", "folder")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("limit", [1, 4, 5, 99])
def test_a_limit_takes_the_first(run: Path, tmp_path: Path, format: str, limit: int) -> None:
    target = tmp_path / "out.zip" if format == "stylegan" else tmp_path / "out"
    export_to(run, target, format, limit=limit, resolution=32)
    assert [r["key"] for r in manifest_of(target)] == list(view_of(run))[:limit]


def test_one_split_alone(copy: Path, target: Path) -> None:
    view = view_of(with_splits(copy))
    said = export_to(copy, target, "folder", split="validation")
    assert {r["key"] for r in manifest_of(target)} == {k for k, r in view.items() if r["split"] == "validation"}
    assert not any("put together" in line for line in said)
    assert any("put together" in line for line in export_to(copy, target.with_name("all"), "folder"))


def test_a_view_that_points_at_a_shard_that_is_gone_says_what_makes_it_again(copy: Path, target: Path) -> None:
    gone = next(row["shard"] for row in view_of(copy).values() if row["origin"] == "restored")
    (copy / "restored" / "round1" / f"{gone}.tar").unlink()
    with pytest.raises(RunError, match=rf"restored/round1/{gone}: .*is missing; .*`idm-curate restore {copy}`"):
        export_to(copy, target, "folder")
    assert not target.exists()


# ---- Bytes, and what is there already


@pytest.mark.parametrize("format", FORMATS)
def test_equal_exports_are_equal_bytes_whoever_encodes(run: Path, tmp_path: Path, format: str) -> None:
    suffix = ".zip" if format == "stylegan" else ""
    found = []
    for i, workers in enumerate((0, 2 if format == "stylegan" else 0)):
        target = tmp_path / f"{i}{suffix}"
        export_to(run, target, format, resolution=32, workers=workers)
        found.append(hashes(target))
    assert found[0] == found[1]
    assert {p.name for p in tmp_path.iterdir()} == {f"0{suffix}", f"1{suffix}"}, "nothing else is left"


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_again_does_nothing_and_other_options_are_refused(run: Path, tmp_path: Path, format: str) -> None:
    target = tmp_path / ("out.zip" if format == "stylegan" else "out")
    export_to(run, target, format, resolution=32)
    before = hashes(target), target.stat().st_mtime_ns
    assert "nothing to do" in export_to(run, target, format, resolution=32)[-1]
    for options, named in (({"resolution": 40}, r"resolution \(32 there, 40 now\)"), ({"limit": 3}, "limit")):
        with pytest.raises(RunError, match=named):
            export_to(run, target, format, **{"resolution": 32, **options})
    assert (hashes(target), target.stat().st_mtime_ns) == before
    assert [p.name for p in tmp_path.iterdir()] == [target.name]


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_no_export_is_not_touched(run: Path, tmp_path: Path, format: str) -> None:
    target = tmp_path / ("out.zip" if format == "stylegan" else "out")
    if format == "stylegan":
        with zipfile.ZipFile(target, "w") as other:
            other.writestr("thesis.txt", "years of work")
    else:
        target.mkdir()
        (target / "thesis.txt").write_text("years of work")
    before = hashes(target)
    with pytest.raises(RunError, match="no export"):
        export_to(run, target, format, resolution=32)
    assert hashes(target) == before and [p.name for p in tmp_path.iterdir()] == [target.name]


def test_an_empty_folder_may_be_there(run: Path, target: Path) -> None:
    target.mkdir()
    export_to(run, target, "folder")
    assert len(manifest_of(target)) == 14


# ---- The command


def test_the_command_says_what_it_did_and_what_it_would_do(run: Path, tmp_path: Path) -> None:
    options = ["export", run, "--to", tmp_path / "o.zip", "--format", "stylegan", "--resolution", 32, "--workers", 0]
    planned = curate(*options, "-n")
    assert "14 images" in planned and "GB needed" in planned and not list(tmp_path.iterdir())
    assert "14 images" in curate(*options)
    assert "nothing to do" in curate(*options)


@pytest.mark.parametrize(
    ("options", "code", "named"),
    [
        (["--to", "out", "--format", "stylegan"], 2, ".zip"),
        (["--to", "out.zip", "--format", "hf"], 2, "folders"),
        (["--to", "s3://bucket/out", "--format", "hf"], 2, "local"),
        (["--to", "out", "--format", "hf", "--arm", "original", "--view", "default"], 2, "--view"),
        (["--to", "out", "--format", "hf", "--view", "mine"], 1, "no view 'mine' (there are: default)"),
        (["--to", "out", "--format", "hf", "--resolution", "5000"], 1, "14 are smaller"),
        (["--to", "out", "--format", "hf", "--split", "validation"], 1, "no image to export"),
    ],
)
def test_a_wrong_request_is_an_error_and_writes_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], code: int, named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert named in curate("export", run, *options, code=code)
    assert not list(tmp_path.iterdir())


def test_nothing_is_decided_yet(squares: Path, target: Path) -> None:
    with pytest.raises(RunError, match="idm-curate select"):
        export_to(squares, target, "folder")


def test_what_is_no_run_is_an_error(tmp_path: Path) -> None:
    assert "run.json" in curate("export", tmp_path, "--to", tmp_path / "out", "--format", "hf", code=1)


def test_a_saved_query_is_exported_as_any_view(copy: Path, target: Path) -> None:
    curate("query", copy, "SELECT key FROM samples WHERE label = 1", "--view", "bees")
    export_to(copy, target, "hf", view="bees")
    bees = {key for key, row in view_of(copy).items() if row["label"] == 1}
    assert {r["key"] for r in manifest_of(target)} == bees and 0 < len(bees) < 14


def test_no_export_loads_torch_or_ray(run: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    program = (
        "import sys; from pipelines.cli import cli; "
        f"cli(['export', {str(run)!r}, '--to', {str(tmp_path / 'o')!r}, '--format', 'hf'], standalone_mode=False); "
        "print(sorted({'torch', 'ray', 'webdataset', 'skimage'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
