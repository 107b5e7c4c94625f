"""Decoding: upright sRGB from every kind of file, one named reason for every other, and never anything else."""

from __future__ import annotations

import hashlib
import io
import random
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from manifests.errors import SampleError
from pipelines import images
from tests.bad_files import flip, photograph, rgb16_png, save, turned, wide_profile, write_bad_files

PHOTO = photograph()
PIXELS = np.asarray(PHOTO)


@pytest.fixture(scope="module")
def odd_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The odd files that can be opened at all, by name."""
    folder = tmp_path_factory.mktemp("odd")
    names = [n for n, outcome in write_bad_files(folder).items() if "link" not in n and "not_a_file" not in outcome]
    return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}


def test_every_kind_of_odd_file_ends_as_expected(tmp_path: Path) -> None:
    for name, outcome in write_bad_files(tmp_path).items():
        if not (tmp_path / name).is_file() or not (tmp_path / name).stat().st_mode & 0o400:
            continue
        verdict, _, detail = outcome.partition(":")
        try:
            decoded = images.decode((tmp_path / name).read_bytes())
        except SampleError as error:
            assert (verdict, detail) == ("failed", error.reason) or "link" in name, name
            continue
        assert verdict == "ok", name
        notes = [*decoded.notes, *images.notes_for_name(name, decoded.format)]
        assert detail in notes or not detail, (name, notes)


# Orientation => what must be done to an upright image for the tag to be true of the result (EXIF 2.3, 0x0112).
UPRIGHT_TO_STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[:, ::-1],
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT_TO_STORED)
def test_turned_images_come_out_upright(orientation: int, kind: str) -> None:
    upright = PIXELS[:40]  # 40 x 48: a swap of sides shows
    stored = Image.fromarray(np.ascontiguousarray(UPRIGHT_TO_STORED[orientation](upright)))
    if kind == "TIFF":
        data = save(stored, "TIFF", tiffinfo={0x0112: orientation})
    elif kind == "WEBP":
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = save(stored, "WEBP", lossless=True, exif=exif.tobytes())
    else:
        data = turned(stored, orientation, "PNG")
    decoded = images.decode(data)
    assert np.array_equal(decoded.rgb, upright)
    assert (decoded.height, decoded.width) == (40, 48)
    assert ("exif_rotated" in decoded.notes) == (orientation != 1)


def test_sixteen_bits_become_their_high_byte() -> None:
    grey = np.asarray(PHOTO.convert("L"))
    deep = grey.astype(np.uint16) * 256 + 255
    for kind in ("PNG", "TIFF"):
        decoded = images.decode(save(Image.fromarray(deep), kind))
        assert np.array_equal(decoded.rgb, np.repeat(grey[:, :, None], 3, axis=2)), kind
    colour = images.decode(rgb16_png(PHOTO))
    assert np.array_equal(colour.rgb, PIXELS) and colour.mode == "RGB;16"


def test_transparent_pixels_become_white_whatever_lies_under_them() -> None:
    hidden = PHOTO.copy()
    hidden.putalpha(Image.fromarray(np.tri(48, dtype=np.uint8) * 255))
    rgb = images.decode(save(hidden, "PNG")).rgb
    seen = np.tri(48, dtype=bool)
    assert (rgb[~seen] == 255).all() and np.array_equal(rgb[seen], PIXELS[seen])


@pytest.mark.parametrize("suffix", ["adobe", "no-marker"])
def test_cmyk_is_not_taken_for_its_negative(suffix: str, odd_files: dict[str, bytes]) -> None:
    decoded = images.decode(odd_files[f"cmyk-{suffix}.jpg"])
    error = np.abs(decoded.rgb.astype(int) - PIXELS).mean()
    assert error < 8 and decoded.mode == "CMYK"


def test_a_profile_is_converted_and_not_thrown_away() -> None:
    wide = ImageCms.getOpenProfile(io.BytesIO(wide_profile()))
    stored = ImageCms.profileToProfile(PHOTO, ImageCms.createProfile("sRGB"), wide, outputMode="RGB")
    assert stored is not None
    assert np.abs(np.asarray(stored).astype(int) - PIXELS).max() > 8  # or the test could not fail
    decoded = images.decode(save(stored, "PNG", icc_profile=wide_profile()))
    assert np.abs(decoded.rgb.astype(int) - PIXELS).mean() < 1.5


def test_an_srgb_profile_changes_nothing() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    decoded = images.decode(save(PHOTO, "PNG", icc_profile=srgb))
    assert np.array_equal(decoded.rgb, PIXELS) and decoded.notes == ()


def test_pixel_md5_is_of_the_pixels_before_any_conversion() -> None:
    data = save(PHOTO, "PNG", icc_profile=wide_profile())
    decoded = images.decode(data, with_md5=True)
    assert decoded.pixel_md5 == hashlib.md5(PIXELS.tobytes()).hexdigest()
    assert not np.array_equal(decoded.rgb, PIXELS)
    assert images.decode(data).pixel_md5 is None


def test_the_pixel_limit_is_read_from_the_header() -> None:
    with pytest.raises(SampleError) as refused:
        images.decode(save(PHOTO, "PNG")[:60], max_pixels=48 * 48 - 1)  # the pixels are not even there
    assert refused.value.reason == "too_large"
    assert images.decode(save(PHOTO, "PNG"), max_pixels=48 * 48).width == 48


def test_a_large_image_is_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # Pillow warns above this, and refuses twice as much
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert images.decode(save(PHOTO, "PNG")).notes == ()


def test_no_other_library_can_switch_truncated_files_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = save(PHOTO, "BMP")
    with pytest.raises(SampleError, match="truncated"):
        images.decode(data[:-1000])


def test_png_encoding_is_lossless_and_always_the_same() -> None:
    data = images.encode_png(PIXELS)
    assert np.array_equal(images.decode(data).rgb, PIXELS)
    assert data == images.encode_png(np.asfortranarray(PIXELS))
    assert images.decode(data).notes == ()


def test_extension_comes_from_the_bytes() -> None:
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"):
        decoded = images.decode(save(PHOTO, kind))
        assert decoded.format == kind
        assert images.notes_for_name(f"x.{images.extension(kind)}", kind) == ()
    assert images.notes_for_name("a/B.JPEG", "PNG") == ("mislabelled",)
    assert images.notes_for_name("a.b/none", "PNG") == ("no_extension",)


def test_nothing_but_sample_errors_comes_out_of_damaged_files(odd_files: dict[str, bytes]) -> None:
    rng = random.Random(20230717)
    small = sorted((n, d) for n, d in odd_files.items() if 32 < len(d) < 20_000)
    reasons = set()
    for _ in range(6000):
        _, data = rng.choice(small)
        for _ in range(rng.choice((1, 2, 8))):
            data = flip(data, rng.randrange(min(len(data), rng.choice((64, 1024, len(data))))))
        try:
            decoded = images.decode(data, max_pixels=1_000_000)
        except SampleError as error:
            reasons.add(error.reason)
            assert "0x" not in str(error) and "\n" not in str(error)  # manifests must not differ between runs
        else:
            assert decoded.rgb.shape == (decoded.height, decoded.width, 3)
            assert decoded.rgb.dtype == np.uint8 and decoded.rgb.flags.c_contiguous
    assert {"corrupt", "truncated", "not_an_image", "too_large"} <= reasons


def test_threads_do_not_get_each_others_warnings(odd_files: dict[str, bytes]) -> None:
    noisy, quiet = odd_files["broken-exif.jpg"], odd_files["progressive.jpg"]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(images.decode, [noisy, quiet] * 40))
    assert {d.notes for d in found[::2]} == {("decoder_warning",)} and {d.notes for d in found[1::2]} == {()}
