"""Folders of images: classes, Hugging Face metadata, and known truth."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from manifests.errors import SampleError, SourceError
from pipelines import images
from pipelines.datasets import open_dataset, read_entries
from tests.bad_files import photograph, save

PNG = save(photograph(), "PNG")


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(PNG)
    return root


def rows(root: Path, *rows: object) -> None:
    (root / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def test_each_folder_below_the_top_is_a_class(tmp_path: Path) -> None:
    entries = open_dataset("folder", str(write(tmp_path, "dog/2.png", "cat/deep/1.PNG", "cat/3.jpeg", "ape/x"))).entries
    found = {e.key: (e.label, e.class_name) for e in entries}
    assert found == {"ape/x": (0, "ape"), "cat/3": (1, "cat"), "cat/deep/1": (1, "cat"), "dog/2": (2, "dog")}


def test_a_folder_around_everything_is_no_class(tmp_path: Path) -> None:
    write(tmp_path, "release-1/images/dog/1.png", "release-1/images/cat/2.png")
    assert {e.key: e.label for e in open_dataset("folder", str(tmp_path)).entries} == {"cat/2": 0, "dog/1": 1}
    entries = open_dataset("folder", str(write(tmp_path / "flat", "release/1.png", "release/2.png"))).entries
    assert [(e.key, e.label, e.class_name) for e in entries] == [("1", None, None), ("2", None, None)]


def test_images_beside_the_folders_mean_that_folders_are_no_classes(tmp_path: Path) -> None:
    entries = open_dataset("folder", str(write(tmp_path, "cat/1.png", "dog/2.png", "3.png"))).entries
    assert {e.label for e in entries} == {None}


def test_an_unsafe_member_does_not_take_the_classes_from_the_others(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("cat/1.png", "dog/2.png", "../3.png", "/4.png"):
            archive.writestr(name, PNG)
    found = {e.source_name: (e.label, e.error is None) for e in open_dataset("folder", str(tmp_path / "x.zip")).entries}
    assert found == {
        "cat/1.png": (0, True), "dog/2.png": (1, True), "../3.png": (None, False), "/4.png": (None, False),
    }  # fmt: skip


def test_metadata_gives_labels_groups_and_everything_else(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "sub/b.png", "c.png")
    rows(
        tmp_path,
        {"file_name": "a.png", "label": "zebra", "group": "photo 1", "caption": "größe"},
        {"file_name": "./sub/b.png", "label": "ape"},
        {"file_name": "gone.png", "label": "zebra"},
    )
    dataset = open_dataset("folder", str(tmp_path))
    a, c, b = dataset.entries
    assert (a.label, a.class_name, a.group) == (1, "zebra", "photo 1") and (b.label, b.class_name) == (0, "ape")
    assert json.loads(a.metadata or "") == {"label": "zebra", "group": "photo 1", "caption": "größe"}
    assert (c.label, c.metadata) == (None, None)
    assert dataset.problems == (
        "1 images have no row in metadata.jsonl",
        "1 rows of metadata.jsonl name no image that is there: gone.png",
    )


def test_metadata_inside_a_zip_with_class_indices(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("set/train/1.png", PNG)
        archive.writestr("set/train/metadata.jsonl", '{"file_name": "1.png", "label": 7}\n\n')
    (entry,) = open_dataset("folder", str(tmp_path / "x.zip")).entries
    assert (entry.label, entry.class_name) == (7, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"file_name": "a.png"', "line 1 is no JSON"),
        ('{"name": "a.png"}', "no object with a 'file_name'"),
        ("[1]", "no object with a 'file_name'"),
        ('{"file_name": "a.png"}\n{"file_name": "./a.png"}', "line 2: a.png has a row already"),
    ],
)
def test_metadata_that_cannot_be_read_names_its_line(text: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text(text)
    with pytest.raises(SourceError, match=message):
        open_dataset("folder", str(tmp_path))


def test_truth_is_found_by_name_whatever_its_suffix_and_its_folder(tmp_path: Path) -> None:
    write(tmp_path / "damaged", "set/cat/1.jpg", "set/dog/1.jpg", "set/dog/2.jpg")
    with zipfile.ZipFile(tmp_path / "truth.zip", "w") as archive:
        for name in ("pristine/cat/1.png", "pristine/dog/1.webp"):
            archive.writestr(name, name)
    entries = open_dataset("folder", str(tmp_path / "damaged"), truth=str(tmp_path / "truth.zip")).entries
    truths = [e.truth for e in entries if e.truth is not None]
    assert [e.truth is not None for e in entries] == [True, True, False]
    assert [data for _, data in read_entries(truths)] == [b"pristine/cat/1.png", b"pristine/dog/1.webp"]


def test_truth_that_fits_nothing_or_twice_is_refused(tmp_path: Path) -> None:
    source = str(write(tmp_path / "in", "1.png"))
    with pytest.raises(SourceError, match="no image named like"):
        open_dataset("folder", source, truth=str(write(tmp_path / "other", "9.png")))
    with pytest.raises(SourceError, match="occur twice"):
        open_dataset("folder", source, truth=str(write(tmp_path / "twice", "1.png", "1.jpg")))


def test_real_faces_in_the_wild(data: Path) -> None:
    dataset = open_dataset("folder", str(data / "faces-wild.zip"))
    assert len(dataset.entries) == 10_000 and dataset.problems == ()
    assert {e.label for e in dataset.entries} == {None}
    for entry, found in read_entries(dataset.entries[::500]):
        assert not isinstance(found, SampleError)
        assert images.decode(found).rgb.shape == (200, 200, 3), entry.source_name


def test_real_folders_of_tiny_imagenet(data: Path) -> None:
    dataset = open_dataset("folder", str(data / "tiny-imagenet.zip"))
    assert len(dataset.entries) == 10_000
    assert len({(e.label, e.class_name) for e in dataset.entries}) == 200
    assert all(e.class_name is not None and f"/{e.class_name}/" in e.source_name for e in dataset.entries)
