"""Features of sets: looked at once, in parts that merge to the whole, kept under a hash of all that makes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from manifests.errors import RunError, SourceError
from pipelines import feature_sets
from pipelines.config import Resources
from pipelines.feature_sets import FeatureSet, Part, Sampling, crops_of, feature_set
from pipelines.feature_workers import here, on_ray
from pipelines.image_sets import ImageSet, open_images
from pipelines.metrics.frechet import statistics_of
from tests.colour_detector import ColourDetector, DeadlyDetector
from tests.photographs import crops, png


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """23 images of three sizes, and one that is none."""
    folder = tmp_path / "in"
    folder.mkdir()
    for i, pixels in enumerate(crops(23)):
        (folder / f"{i:02d}.png").write_bytes(png(pixels[: 64 - i % 3 * 4]))
    (folder / "11a.png").write_bytes(b"no image")
    return folder


def measured(folder: Path, cache: Path, sampling: Sampling | None = None) -> tuple[FeatureSet, int]:
    """The features of a folder's images, and how many were looked at for them."""
    detector = ColourDetector()
    sampling = sampling or Sampling(crops=0)
    work = partial(here, detector)
    found = feature_set(open_images(str(folder)), detector, sampling, work=work, device="cpu", cache=cache)
    return found, detector.looked_at


def directly(folder: Path) -> np.ndarray:
    images = [np.asarray(Image.open(p)) for p in sorted(folder.glob("*.png")) if p.name != "11a.png"]
    return np.concatenate([ColourDetector()(image[None]) for image in images])


@pytest.mark.parametrize("part", [1, 7, 500])
def test_parts_and_batches_merge_to_one_pass(
    folder: Path, tmp_path: Path, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_sets, "PART", part)
    monkeypatch.setattr(feature_sets, "BATCH", 3)
    found, _ = measured(folder, tmp_path / "cache")
    expected = directly(folder)
    assert np.allclose(found.features, expected, atol=1e-6)
    assert (found.images, found.failed, found.crops.n) == (23, 1, 0)
    assert found.first_failure is not None and found.first_failure.startswith("11a.png: not_an_image")
    whole = statistics_of(expected)
    assert np.allclose(found.statistics.mean, whole.mean, rtol=1e-6)
    assert np.allclose(found.statistics.scatter, whole.scatter, rtol=1e-4, atol=1e-6)


def test_what_was_looked_at_is_not_looked_at_again(folder: Path, tmp_path: Path) -> None:
    first, looked = measured(folder, tmp_path / "cache")
    again, none = measured(folder, tmp_path / "cache")
    assert (looked, none) == (23, 0)
    assert np.array_equal(first.features, again.features) and first.first_failure == again.first_failure
    assert np.array_equal(first.statistics.scatter, again.statistics.scatter)
    assert [p.suffix for p in (tmp_path / "cache").iterdir() if p.is_file()] == [".safetensors"]
    assert list((tmp_path / "cache" / ".staging").iterdir()) == []


@pytest.mark.parametrize(
    "other", [Sampling(crops=0, seed=1), Sampling(crops=0, kept=9), Sampling(crops=1, crop=9)], ids=str
)
def test_another_sampling_is_another_set(folder: Path, tmp_path: Path, other: Sampling) -> None:
    measured(folder, tmp_path / "cache")
    assert measured(folder, tmp_path / "cache", other)[1] >= 23


def test_another_detector_or_device_is_another_set(folder: Path, tmp_path: Path) -> None:
    images = open_images(str(folder))
    for name, sha256, device in (("a", "0", "cpu"), ("b", "0", "cpu"), ("a", "1", "cpu"), ("a", "0", "cuda")):
        detector = ColourDetector()
        detector.name, detector.sha256 = name, sha256  # type: ignore[misc]
        work = partial(here, detector)
        feature_set(images, detector, Sampling(crops=0), work=work, device=device, cache=tmp_path / "cache")
        assert detector.looked_at == 23, (name, sha256, device)


def test_an_interrupted_set_continues(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_sets, "PART", 5)
    detector = ColourDetector()

    def interrupted(todo: Sequence[Part], sampling: Sampling, crop: int) -> Iterator[Part]:
        yield from here(detector, todo[:3], sampling, crop)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        feature_set(
            open_images(str(folder)), detector, Sampling(crops=0),
            work=interrupted, device="cpu", cache=tmp_path / "cache",
        )  # fmt: skip
    found, looked = measured(folder, tmp_path / "cache")
    assert looked == 23 - detector.looked_at == 9
    assert np.allclose(found.features, directly(folder), atol=1e-6)


def test_kept_features_are_some_whatever_the_order_and_the_statistics_are_of_all(folder: Path, tmp_path: Path) -> None:
    found, _ = measured(folder, tmp_path / "cache", Sampling(crops=0, kept=9))
    assert len(found.features) in (8, 9) and found.statistics.n == 23  # the broken one may be among the nine
    images = open_images(str(folder))
    turned = replace(images, entries=images.entries[::-1])
    detector = ColourDetector()
    other = feature_set(
        turned, detector, Sampling(crops=0, kept=9), work=partial(here, detector), device="cpu", cache=tmp_path / "2"
    )
    assert np.allclose(found.features, other.features[::-1], atol=1e-6)


def test_crops_are_at_native_resolution_at_places_of_their_name() -> None:
    image = np.arange(40 * 30 * 3, dtype=np.uint8).reshape(40, 30, 3)
    both = crops_of(image, 16, 2, 0, "a")
    assert [c.shape for c in both] == [(16, 16, 3)] * 2
    for crop in both:
        places = [(t, s) for t in range(25) for s in range(15) if np.array_equal(image[t : t + 16, s : s + 16], crop)]
        assert places
    assert np.array_equal(both, crops_of(image, 16, 2, 0, "a"))
    assert any(not np.array_equal(both, crops_of(image, 16, 2, *other)) for other in ((1, "a"), (0, "b")))
    assert np.array_equal(crops_of(image[:16, :16], 16, 1, 0, "a")[0], image[:16, :16])
    assert crops_of(image, 31, 2, 0, "a") == []
    # Every place can be drawn.
    tops = {int(crops_of(image[:18, :16], 16, 1, 0, str(i))[0][0, 0, 0]) for i in range(60)}
    assert tops == {0, 90, 180}


def test_images_that_are_smaller_than_a_crop_are_counted(folder: Path, tmp_path: Path) -> None:
    found, looked = measured(folder, tmp_path / "cache", Sampling(crops=2, crop=60))
    small = sum(i % 3 == 2 for i in range(23))
    assert (found.small, found.crops.n, looked) == (small, 2 * (23 - small), 23 + 2 * (23 - small))


def test_a_set_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(SourceError, match=r"0 of 3 images can be read; 0\.png: not_an_image"):
        measured(tmp_path, tmp_path / "cache")


def test_a_damaged_file_in_the_cache_is_named(folder: Path, tmp_path: Path) -> None:
    measured(folder, tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RunError, match=rf"{file.name} is damaged .*; remove it"):
        measured(folder, tmp_path / "cache")


@pytest.mark.usefixtures("local_ray")
def test_workers_make_the_same_set_and_one_that_dies_is_replaced(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_sets, "PART", 5)
    images = open_images(str(folder))
    alone, _ = measured(folder, tmp_path / "alone")
    opened = partial(DeadlyDetector, said=tmp_path / "died")
    together = _on_two(images, opened, tmp_path / "together")
    assert (tmp_path / "died").exists()
    for a, b in ((alone.statistics, together.statistics), (alone.crops, together.crops)):
        assert a.n == b.n and np.array_equal(a.mean, b.mean) and np.array_equal(a.scatter, b.scatter)
    assert np.array_equal(alone.features, together.features) and alone.first_failure == together.first_failure


@pytest.mark.usefixtures("local_ray")
def test_a_worker_without_memory_is_an_error_that_names_the_part(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray.exceptions import OutOfMemoryError

    def killed(ref: object) -> None:
        raise OutOfMemoryError("its node ran low on memory")

    monkeypatch.setattr(ray, "get", killed)
    with pytest.raises(RunError, match="on: its node ran low on memory"):
        _on_two(open_images(str(folder)), partial(ColourDetector), tmp_path / "cache")


def _on_two(images: ImageSet, opened: partial[ColourDetector], cache: Path) -> FeatureSet:
    work = partial(on_ray, opened, Resources(workers=2, gpus_per_worker=0))
    return feature_set(images, ColourDetector(), Sampling(crops=0), work=work, device="cpu", cache=cache)
