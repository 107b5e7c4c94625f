"""NIQE: the reference's numbers, a model's own statistics, and what damage does to them."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data as skimage_data

from manifests.errors import ConfigError
from pipelines import niqe
from pipelines.niqe import Bytes3, Pristine, load_pristine, open_pristine
from tests.photographs import blurred


@pytest.fixture(scope="module")
def pristine(weights: Path) -> Pristine:
    return open_pristine()


def photographs(data: Path, count: int) -> list[Bytes3]:
    """ImageNet's, of 150,000 to 250,000 pixels, which costs little time."""
    found: list[Bytes3] = []
    with zipfile.ZipFile(data / "imagenet-sample.zip") as archive:
        for name in (n for n in archive.namelist() if n.endswith(".JPEG")):
            photo = Image.open(io.BytesIO(archive.read(name)))
            if photo.mode == "RGB" and 150_000 < photo.width * photo.height < 250_000:
                found.append(np.asarray(photo))
            if len(found) == count:
                break
    return found


@pytest.mark.parametrize(
    ("name", "expected"),
    [("astronaut", 3.067256), ("camera", 3.096391), ("coffee", 4.058458), ("chelsea", 2.572089), ("rocket", 7.036032)],
)
def test_it_is_the_number_of_basicsr(pristine: Pristine, name: str, expected: float) -> None:
    """What BasicSR 1.4.2 gives of the same luma; it reduces in single precision, this in double."""
    image = getattr(skimage_data, name)()
    rgb = image if image.ndim == 3 else np.stack([image] * 3, -1)
    assert niqe.niqe(rgb, pristine) == pytest.approx(expected, rel=5e-4)


def test_damage_makes_it_worse(pristine: Pristine, data: Path) -> None:
    rng = np.random.default_rng(0)
    natural = 0
    for photo in photographs(data, 8):
        found = niqe.niqe(photo, pristine)
        if found is None or found > 6:  # ImageNet has posters and cut-outs too
            continue
        natural += 1
        noisy = np.clip(photo + rng.normal(0, 25, photo.shape), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(photo).save(buffer, "JPEG", quality=5)
        compressed = np.asarray(Image.open(buffer))
        for damaged in (blurred(photo, 3), noisy, compressed):
            worse = niqe.niqe(damaged, pristine)
            assert worse is not None and worse > found + 0.3
    assert natural >= 5


def test_pixels_alone_count(pristine: Pristine) -> None:
    image = np.ascontiguousarray(skimage_data.astronaut()[:192, :288])
    found = niqe.niqe(image, pristine)
    assert found is not None
    assert niqe.niqe(np.asfortranarray(image), pristine) == found
    room = np.empty(image.size + 3, np.uint8)
    moved = room[3:].reshape(image.shape)
    moved[...] = image
    assert niqe.niqe(moved, pristine) == found
    wider = np.random.default_rng(0).integers(0, 256, (192 + 95, 288 + 95, 3), dtype=np.uint8)
    wider[:192, :288] = image
    assert niqe.niqe(wider, pristine) == found  # no block is whole there


@pytest.mark.parametrize("shape", [(1, 1), (95, 960), (96, 191), (191, 96)])
def test_under_two_blocks_there_is_no_number(pristine: Pristine, shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert niqe.niqe(noise, pristine) is None


def test_flat_blocks_have_no_say(pristine: Pristine) -> None:
    assert niqe.niqe(np.full((192, 192, 3), 200, np.uint8), pristine) is None
    image = skimage_data.astronaut()[:192, :192]
    below = np.concatenate([image, np.full_like(image, 255)])
    assert niqe.niqe(below, pristine) is not None


@pytest.mark.parametrize("shape", [0.5, 1.0, 2.0, 4.0])
def test_the_shape_of_a_generalised_gaussian_is_found(shape: float) -> None:
    """|x|^shape of such a variable is gamma distributed; shape 2 is the normal, 1 the Laplace distribution. Twice as
    wide on the left it holds twice as much there, for its density is one at 0."""
    rng = np.random.default_rng(1)
    values = rng.gamma(1 / shape, 1.0, 400_000) ** (1 / shape) * rng.choice([-1.0, -1.0, 1.0], 400_000)
    values[values < 0] *= 2
    found, left, right = niqe._asymmetric_gaussian(values)
    assert found == pytest.approx(shape, rel=0.05)
    assert (left / right, right) == (pytest.approx(2, rel=0.02), pytest.approx(1, rel=0.1))


def test_an_image_of_the_models_own_statistics_is_near(pristine: Pristine) -> None:
    """With a model that was fitted to the image itself only its smaller covariance is left of the distance."""
    image = skimage_data.astronaut()
    own = Pristine(*niqe.statistics(image, pristine.window), pristine.window)
    found, other = niqe.niqe(image, own), niqe.niqe(blurred(image, 2), own)
    assert found == pytest.approx(0, abs=1e-6) and other is not None and other > 1


def test_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDM_WEIGHTS", str(tmp_path))
    with pytest.raises(ConfigError, match=r"niqe_pris_params\.npz is missing"):
        open_pristine()
    path = tmp_path / "niqe_pris_params.npz"
    np.savez(path, mu_pris_param=np.zeros(35), cov_pris_param=np.eye(36), gaussian_window=np.ones((7, 7)) / 49)
    with pytest.raises(ConfigError, match="not the file that is meant"):
        open_pristine()
    with pytest.raises(ValueError, match="36 features"):
        load_pristine(path)
