"""Any place that holds images is a set; and its fingerprint is another as soon as one of them is."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import pytest

from manifests.errors import SourceError
from pipelines.image_sets import open_images
from tests.photographs import crops, png, write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "in", 6)


def zipped(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, str(path.relative_to(folder)))
    return target


def test_a_folder_and_a_zip_of_it_have_the_same_names(folder: Path, tmp_path: Path) -> None:
    (folder / "notes.md").write_text("no image")
    plain, packed = open_images(str(folder)), open_images(str(zipped(folder, tmp_path / "x.zip")))
    assert [e.source_name for e in plain.entries] == [e.source_name for e in packed.entries]
    assert len(plain.entries) == 6 and "notes" not in str(plain.entries)
    assert any("1 files are not images" in problem for problem in plain.problems)


def test_shards_and_views_of_a_run(curated_run: Path) -> None:
    by_folder = open_images(str(curated_run / "cleaned"))
    by_glob = open_images(str(curated_run / "cleaned" / "*.tar"))
    by_view = open_images(str(curated_run / "views" / "default.parquet"))
    assert by_folder.entries == by_glob.entries
    assert 0 < len(by_view.entries) == len(by_folder.entries)
    # The view has the names of the raw dataset, by which crops of two arms are at the same places.
    assert "bee/photo 001.v1.png" in {e.source_name for e in by_view.entries}


def test_the_fingerprint_is_of_names_sizes_and_times(folder: Path) -> None:
    first = open_images(str(folder)).fingerprint()
    assert open_images(str(folder)).fingerprint() == first
    moved = folder.with_name("moved")
    shutil.move(folder, moved)
    assert open_images(str(moved)).fingerprint() == first
    some = next(moved.rglob("*.png"))
    os.utime(some, ns=(0, some.stat().st_mtime_ns + 1))
    touched = open_images(str(moved)).fingerprint()
    (moved / "ape" / "more.png").write_bytes(png(crops(1)[0]))
    assert len({first, touched, open_images(str(moved)).fingerprint()}) == 3


def test_the_fingerprint_of_an_archive_changes_with_it(folder: Path, tmp_path: Path) -> None:
    archive = zipped(folder, tmp_path / "x.zip")
    first = open_images(str(archive)).fingerprint()
    os.utime(archive, ns=(0, 1))
    assert open_images(str(archive)).fingerprint() != first


@pytest.mark.parametrize("name", ["nowhere", "nowhere.zip", "nowhere-{0..3}.tar", "views/nowhere.parquet", "empty"])
def test_where_there_are_no_images_is_an_error_that_names_it(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"nowhere|empty"):
        open_images(str(tmp_path / name))
