"""The truths that the restorer's benchmarks cut from an archive, and their damage."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from idm_core.degradations import RECIPES
from pipelines.faces import Face
from pipelines.split import split_of
from tests.benchmarks.held_out import PhotoSet, damaged, truths

PHOTOS = PhotoSet("photos.zip", 3)


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Photographs of 300 x 200 pixels and one of 50 x 50; the names of the large ones of the test split."""
    names = [f"folder/{i}.png" for i in range(30)]
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as z:
        for i, name in enumerate(names):
            buffer = io.BytesIO()
            Image.fromarray(data.coffee()[i : i + 200, i : i + 300]).save(buffer, "PNG")
            z.writestr(name, buffer.getvalue())
        small = next(f"small{i}.png" for i in range(100) if split_of(f"small{i}.png") == "test")
        buffer = io.BytesIO()
        Image.fromarray(data.coffee()[:50, :50]).save(buffer, "PNG")
        z.writestr(small, buffer.getvalue())
    monkeypatch.setenv("IDM_DATA", str(tmp_path))
    return sorted(n for n in names if split_of(n) == "test")


class OneFace:
    """Finds a face at the same place of every photograph."""

    name, same_person = "one face", 0.5
    landmarks = np.array([[120.0, 70], [180, 70], [150, 100], [125, 140], [175, 140]])

    def detect(self, image: np.ndarray) -> list[Face]:
        return [Face((100, 50, 200, 160), self.landmarks, 1.0)]

    def embed(self, image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        raise AssertionError("not asked for")


def test_only_the_split_every_view_and_no_enlargement(archive: list[str]) -> None:
    found = truths(PHOTOS, "test")
    assert [(t.name, t.view) for t in found] == [(Path(n).name, v) for n in archive for v in range(3)]
    assert {t.image.shape for t in found} == {(64, 64, 3)}
    assert [t.key for t in truths(PHOTOS, "test", 2)] == [t.key for t in found[:6]]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(found, truths(PHOTOS, "test"), strict=True))


def test_the_first_view_is_the_central_square(archive: list[str]) -> None:
    first = truths(PHOTOS, "test", 1)[0]
    i = int(Path(archive[0]).stem)
    square = Image.fromarray(data.coffee()[i : i + 200, i + 50 : i + 250])
    expected = np.asarray(square.resize((64, 64), Image.Resampling.LANCZOS))
    inner = slice(4, -4)  # at its sides the filter sees a little of what is beside the square
    assert np.array_equal(first.image[inner, inner], expected[inner, inner])


def test_landmarks_follow_the_crop(archive: list[str]) -> None:
    central, *others = truths(PHOTOS, "test", faces=OneFace())[:3]
    assert central.landmarks is not None
    # Middles of pixels: photograph's (149.5, 99.5) is the middle of the square, and of 64 pixels that is (31.5, 31.5).
    np.testing.assert_allclose(central.landmarks[2], [31.5 + 0.5 * 64 / 200, 31.5 + 0.5 * 64 / 200])
    for view in (central, *others):  # a view that does not hold all of the face has no landmarks
        assert view.landmarks is None or (view.landmarks.min() >= 0 and view.landmarks.max() <= 63)


def test_damage_is_the_same_whatever_is_damaged_with_it(archive: list[str]) -> None:
    found = truths(PHOTOS, "test", 2)
    together = damaged(found, RECIPES["mild"])
    assert np.array_equal(together[4], damaged(found[4:5], RECIPES["mild"])[0])
    assert not np.array_equal(together[4], found[4].image)
    assert all(np.array_equal(a, t.image) for a, t in zip(damaged(found, RECIPES["clean"]), found, strict=True))
