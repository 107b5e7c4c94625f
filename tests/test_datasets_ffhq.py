"""FFHQ in its official layout, with its JSON and without."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path

import pytest

from manifests.errors import SampleError, SourceError
from pipelines import images
from pipelines.datasets import open_dataset, read_entries
from pipelines.datasets.ffhq import upscale_factor
from tests.layouts import write_ffhq

INDICES = (0, 1, 7, 59_999, 60_000, 69_999)


@pytest.fixture(scope="module")
def ffhq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ffhq")
    write_ffhq(root, INDICES)
    return root


@pytest.mark.parametrize("inside", ["", "images1024x1024"])
def test_the_json_inside_or_beside_the_source_is_used(ffhq: Path, inside: str) -> None:
    dataset = open_dataset("ffhq", str(ffhq / inside))
    assert [e.key for e in dataset.entries] == [f"{i:05d}" for i in INDICES]
    assert [e.split for e in dataset.entries] == ["train"] * 4 + ["validation"] * 2
    assert [e.upscale_factor for e in dataset.entries] == pytest.approx([2, 1, 1, 1, 2, 1])
    assert [e.group for e in dataset.entries][:2] == ["https://www.flickr.com/photos/someone/0/"] * 2
    about = json.loads(dataset.entries[0].metadata or "")
    assert about["author"] == "Žofia Ørsted" and about["license"].startswith("Attribution")
    assert dataset.problems == () and "CC BY-NC-SA" in dataset.licence


def test_pixel_md5_agrees_with_the_decoded_pixels(ffhq: Path) -> None:
    for entry, data in read_entries(open_dataset("ffhq", str(ffhq)).entries):
        assert not isinstance(data, SampleError)
        assert images.decode(data, with_md5=True).pixel_md5 == entry.pixel_md5


def test_a_zip_of_it_is_the_same_dataset(ffhq: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "ffhq.zip", "w") as archive:
        for path in sorted(ffhq.rglob("*"), reverse=True):
            archive.write(path, f"ffhq/{path.relative_to(ffhq)}")
    folder, zipped = open_dataset("ffhq", str(ffhq)), open_dataset("ffhq", str(tmp_path / "ffhq.zip"))
    assert [(e.key, e.group, e.pixel_md5, e.upscale_factor) for e in folder.entries] == [
        (e.key, e.group, e.pixel_md5, e.upscale_factor) for e in zipped.entries
    ]
    assert [d for _, d in read_entries(folder.entries)] == [d for _, d in read_entries(zipped.entries)]


def test_thumbnails_have_their_own_checksums_and_scale(tmp_path: Path) -> None:
    write_ffhq(tmp_path, (0, 1), folder="thumbnails128x128", quad_side=64)
    entries = open_dataset("ffhq", str(tmp_path / "thumbnails128x128")).entries
    assert [e.upscale_factor for e in entries] == pytest.approx([2, 1])
    assert all(e.pixel_md5 for e in entries)


def test_without_the_json_the_split_goes_by_number_and_gaps_are_named(tmp_path: Path) -> None:
    for name in ("00000.png", "00002.png", "60001.png", "img00000003.png", "extra/00002.png", "cover.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    dataset = open_dataset("ffhq", str(tmp_path))
    found = {e.source_name: (e.key, e.split) for e in dataset.entries}
    assert found["00000.png"] == ("00000", "train") and found["60001.png"] == ("60001", "validation")
    assert found["img00000003.png"] == ("00003", "train") and found["cover.png"] == ("cover", None)
    assert len(found) == 6
    assert dataset.problems == (
        "1 images have no FFHQ number in their names: cover.png",
        "1 images have the number of another one: extra/00002.png",
        "59998 numbers have no image: 00001, 00004, 00005, ...",
    )


def test_what_the_json_and_the_folder_disagree_on_is_named(tmp_path: Path) -> None:
    write_ffhq(tmp_path, (0, 1, 2))
    (tmp_path / "images1024x1024/00000/00001.png").rename(tmp_path / "images1024x1024/00000/00009.png")
    (tmp_path / "in-the-wild-images").mkdir()
    (tmp_path / "in-the-wild-images/00000.png").write_bytes(b"")
    problems = open_dataset("ffhq", str(tmp_path)).problems
    assert problems == (
        "1 images outside images1024x1024/ were left out",
        "1 numbers have no image: 00001",
        "1 images are not in ffhq-dataset-v2.json: images1024x1024/00000/00009.png",
    )


def test_a_json_that_is_another_is_refused(ffhq: Path, tmp_path: Path) -> None:
    (tmp_path / "00000.png").write_bytes(b"")
    for text in ("[1, 2]", '{"0": ', '{"zero": {}}'):
        (tmp_path / "ffhq-dataset-v2.json").write_text(text)
        with pytest.raises(SourceError, match=r"is not FFHQ's ffhq-dataset-v2\.json"):
            open_dataset("ffhq", str(tmp_path))


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no FFHQ images"):
        open_dataset("ffhq", str(tmp_path))


@pytest.mark.parametrize("angle", [0.0, 0.5, 2.0])
@pytest.mark.parametrize(("side", "factor"), [(256.0, 4.0), (1024.0, 1.0), (3000.0, 1.0)])
def test_upscale_factor_does_not_depend_on_the_turn_of_the_face(angle: float, side: float, factor: float) -> None:
    corners = [math.pi / 4 + i * math.pi / 2 + angle for i in range(4)]
    quad = [[side / math.sqrt(2) * math.cos(a), side / math.sqrt(2) * math.sin(a)] for a in corners]
    assert upscale_factor(quad, 1024) == pytest.approx(factor)
