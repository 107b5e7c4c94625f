"""ImageNet as downloaded: folders, tars in a tar, the devkit's and Kaggle's ground truth."""

from __future__ import annotations

import csv
import hashlib
import tarfile
from pathlib import Path

import pytest

from manifests.errors import SampleError, SourceError
from pipelines import images
from pipelines.datasets import Entry, open_dataset, read_entries
from pipelines.datasets.imagenet import wnids
from tests.bad_files import photograph, save
from tests.layouts import (
    WNIDS,
    devkit,
    tar_of,
    write_imagenet_folders,
    write_imagenet_train_tar,
    write_imagenet_validation,
)

LABELS = {"n01440764": 0, "n02510455": 388, "n07873807": 963}


def read(entries: list[Entry]) -> dict[str, object]:
    return {e.source_name: data for e, data in read_entries(entries)}


def test_the_classes_are_the_standard_ones_in_their_standard_order() -> None:
    names = wnids()
    assert len(set(names)) == 1000 and names == sorted(names)
    assert all(names[label] == wnid for wnid, label in LABELS.items())
    # One per line with a newline at the end: the list as timm, torchvision and Keras have it.
    assert hashlib.sha256("".join(f"{n}\n" for n in names).encode()).hexdigest().startswith("70002b0ff5de60a3")


def test_train_folders(tmp_path: Path) -> None:
    files = write_imagenet_folders(tmp_path)
    dataset = open_dataset("imagenet", str(tmp_path))
    assert read(dataset.entries) == files and dataset.problems == ()
    for entry in dataset.entries:
        assert entry.label == LABELS[entry.class_name or ""] and f"/{entry.class_name}/" in entry.source_name
        assert entry.split == "train" and entry.key == Path(entry.source_name).stem
    inner = open_dataset("imagenet", str(tmp_path / "train"))
    assert [(e.key, e.label, e.split) for e in inner.entries] == [(e.key, e.label, e.split) for e in dataset.entries]


def test_the_tar_of_class_tars_is_read_where_it_lies(tmp_path: Path) -> None:
    files = write_imagenet_train_tar(tmp_path / "ILSVRC2012_img_train.tar")
    dataset = open_dataset("imagenet", str(tmp_path / "ILSVRC2012_img_train.tar"))
    assert read(dataset.entries) == files and dataset.problems == ()
    assert {e.container for e in dataset.entries} == {str(tmp_path / "ILSVRC2012_img_train.tar")}
    assert all(e.label == LABELS[e.source_name[:9]] and e.split == "train" for e in dataset.entries)
    for entry, data in read_entries(dataset.entries):
        assert isinstance(data, bytes) and images.decode(data).rgb.ndim == 3, entry


def test_all_three_downloads_in_one_folder(tmp_path: Path) -> None:
    train = write_imagenet_train_tar(tmp_path / "ILSVRC2012_img_train.tar")
    (tmp_path / "files").mkdir()
    validation = write_imagenet_validation(tmp_path / "files")
    (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(tar_of(validation))
    for path in (tmp_path / "files").iterdir():
        path.unlink()
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(tar_of(devkit(), compressed=True))
    dataset = open_dataset("imagenet", str(tmp_path))
    assert read(dataset.entries) == {f"ILSVRC2012_img_train.tar/{n}": d for n, d in train.items()} | {
        f"ILSVRC2012_img_val.tar/{n}": d for n, d in validation.items()
    }
    found = [e.label for e in dataset.entries if e.split == "validation"]
    assert found == [LABELS[wnid] for wnid in WNIDS] and dataset.problems == ()


@pytest.mark.parametrize("place", ["inside", "beside", "unpacked"])
def test_flat_validation_gets_its_classes_from_the_devkit(place: str, tmp_path: Path) -> None:
    root = tmp_path / "imagenet"
    order = (*WNIDS[::-1], WNIDS[2])
    write_imagenet_validation(root / "val", order)
    if place == "unpacked":
        for name, data in devkit(order).items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)
    else:
        folder = root if place == "inside" else tmp_path
        (folder / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(tar_of(devkit(order), compressed=True))
    dataset = open_dataset("imagenet", str(root))
    assert [e.class_name for e in dataset.entries] == list(order)
    assert [e.label for e in dataset.entries] == [LABELS[wnid] for wnid in order]
    assert {e.split for e in dataset.entries} == {"validation"}
    assert not [p for p in dataset.problems if "no class" in p]


@pytest.mark.parametrize("source", ["", "ILSVRC", "ILSVRC/Data/CLS-LOC", "ILSVRC/Data/CLS-LOC/val"])
def test_kaggles_tree(source: str, tmp_path: Path) -> None:
    write_imagenet_validation(tmp_path / "ILSVRC/Data/CLS-LOC/val")
    write_imagenet_folders(tmp_path / "ILSVRC/Data/CLS-LOC")
    (tmp_path / "ILSVRC/Data/CLS-LOC/test").mkdir()
    (tmp_path / "ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_00000001.JPEG").write_bytes(b"")
    with (tmp_path / "LOC_val_solution.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["ImageId", "PredictionString"])
        for n, wnid in reversed(list(enumerate(WNIDS, 1))):
            writer.writerow([f"ILSVRC2012_val_{n:08d}", f"{wnid} 85 1 499 272 "])
    dataset = open_dataset("imagenet", str(tmp_path / source))
    validation = [e for e in dataset.entries if e.split == "validation"]
    assert [e.label for e in validation] == [LABELS[wnid] for wnid in WNIDS]
    train = [e for e in dataset.entries if e.split == "train"]
    assert len(train) == (0 if source.endswith("val") else 6)
    assert ("1 test images, which have no labels, were left out" in dataset.problems) != source.endswith("val")


def test_sorted_validation_needs_no_ground_truth(tmp_path: Path) -> None:
    for name, data in write_imagenet_validation(tmp_path / "flat").items():
        (tmp_path / "in/val" / WNIDS[1]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "in/val" / WNIDS[1] / name).write_bytes(data)
    entries = open_dataset("imagenet", str(tmp_path / "in")).entries
    assert {(e.label, e.split) for e in entries} == {(388, "validation")}


def test_validation_without_ground_truth_is_kept_without_labels_and_said(tmp_path: Path) -> None:
    write_imagenet_validation(tmp_path / "val")
    dataset = open_dataset("imagenet", str(tmp_path / "val"))
    assert [e.label for e in dataset.entries] == [None] * 3
    assert "3 images have no class" in dataset.problems[0] and "devkit" in dataset.problems[0]


def test_known_dirt_and_unknown_classes(tmp_path: Path) -> None:
    for wnid in ("n02105855", "n99999999"):
        (tmp_path / "train" / wnid).mkdir(parents=True)
    (tmp_path / "train/n02105855/n02105855_2933.JPEG").write_bytes(save(photograph(), "PNG"))
    (tmp_path / "train/n02105855/n02105855_1.JPEG").write_bytes(save(photograph().convert("CMYK"), "JPEG"))
    (tmp_path / "train/n99999999/n99999999_1.JPEG").write_bytes(b"")
    dataset = open_dataset("imagenet", str(tmp_path))
    assert [(e.class_name, e.label) for e in dataset.entries] == [("n02105855", 230)] * 2 + [("n99999999", None)]
    assert dataset.problems == ("1 images are of 1 classes not in ImageNet-1k: n99999999",)
    notes = {}
    for entry, data in read_entries(dataset.entries[:2]):
        assert isinstance(data, bytes)
        decoded = images.decode(data)
        notes[entry.key] = [*decoded.notes, *images.notes_for_name(entry.source_name, decoded.format)]
    assert notes == {"n02105855_1": ["cmyk"], "n02105855_2933": ["mislabelled"]}


def test_a_broken_class_tar_takes_no_other_with_it(tmp_path: Path) -> None:
    good = {f"{wnid}_1.JPEG": save(photograph(), "JPEG") for wnid in WNIDS}
    inner = {f"{name[:9]}.tar": tar_of({name: data}) for name, data in good.items()}
    inner["n02510455.tar"] = b"this is no tar" * 100
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(tar_of(inner))
    dataset = open_dataset("imagenet", str(tmp_path / "ILSVRC2012_img_train.tar"))
    assert [e.label for e in dataset.entries] == [0, 963]
    assert "n02510455.tar is lost" in dataset.problems[0]


def test_the_sample_is_labelled_by_its_file_names(data: Path) -> None:
    dataset = open_dataset("imagenet", str(data / "imagenet-sample.zip"))
    assert len(dataset.entries) == 250 and dataset.problems == ()
    assert all(e.label == wnids().index(e.source_name.partition("/")[2][:9]) for e in dataset.entries)
    assert not any(isinstance(d, SampleError) for _, d in read_entries(dataset.entries))


def test_what_is_no_imagenet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no ImageNet images"):
        open_dataset("imagenet", str(tmp_path))
    write_imagenet_validation(tmp_path / "val")
    with tarfile.open(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", "w:gz"):
        pass
    with pytest.raises(SourceError, match="holds no ILSVRC2012_validation_ground_truth"):
        open_dataset("imagenet", str(tmp_path))
