"""How far a candidate is from its source: honest changes are told from others, and the numbers repeat."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data as skimage_data
from skimage.color import lab2rgb, rgb2lab

from idm_core.losses import Perceptual
from manifests import schema
from manifests.errors import ConfigError
from pipelines import changes
from pipelines.changes import Bytes3, colour_drift, compare, open_perceptual, psnr, redegradation, ssim
from tests.photographs import blurred, crops

ASTRONAUT: Bytes3 = np.ascontiguousarray(skimage_data.astronaut()[:256, 100:356])
SHARP: list[Bytes3] = [np.ascontiguousarray(c) for c in crops(6, side=96)]


@pytest.fixture(scope="module")
def perceptual(weights: Path) -> Perceptual:
    return open_perceptual()


def noisy(image: Bytes3, sigma: float) -> Bytes3:
    noise = np.random.default_rng(0).standard_normal(image.shape)
    return np.clip(np.rint(image + sigma * noise), 0, 255).astype(np.uint8)


def tinted(image: Bytes3, a: float, b: float) -> Bytes3:
    lab = rgb2lab(image / 255)
    lab[..., 1:] += (a, b)
    return np.rint(255 * np.clip(lab2rgb(lab), 0, 1)).astype(np.uint8)


# -- the columns ------------------------------------------------------------------------------------------------------


def test_exactly_the_columns_and_a_source_is_itself() -> None:
    row = compare(ASTRONAUT, ASTRONAUT.copy())
    assert list(row) == schema.names(schema.CHANGES)
    assert row["psnr_source"] == row["consistency"] == row["redegradation"] == math.inf
    assert (row["ssim_source"], row["colour_drift"], row["lpips_source"]) == (1.0, 0.0, None)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (7, 9), (31, 40), (40, 700), (500, 20)])
def test_every_size_is_measured_as_far_as_it_can_be(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    row = compare(image // 2, image)
    assert (row["ssim_source"] is None) == (min(shape) < 11)
    known = [v for name, v in row.items() if name not in ("ssim_source", "lpips_source")]
    assert all(v is not None and math.isfinite(v) for v in known)


def test_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="size"):
        compare(ASTRONAUT[:-1], ASTRONAUT)


def test_the_numbers_do_not_depend_on_where_the_pixels_lie() -> None:
    candidate = blurred(ASTRONAUT, 1)
    row = compare(candidate, ASTRONAUT)
    for offset in (1, 3, 8):
        room = np.empty(ASTRONAUT.size + offset, np.uint8)
        moved = room[offset:].reshape(ASTRONAUT.shape)
        moved[...] = candidate
        assert compare(moved, np.asfortranarray(ASTRONAUT)) == row


# -- SSIM and PSNR ----------------------------------------------------------------------------------------------------


def test_ssim_of_flat_images_is_its_closed_form() -> None:
    a, b = (np.full((32, 32, 3), level, np.uint8) for level in (100, 120))
    c1 = (0.01 * 255) ** 2
    assert ssim(a, b) == pytest.approx((2 * 100 * 120 + c1) / (100**2 + 120**2 + c1), abs=1e-9)
    assert psnr(a, b) == pytest.approx(20 * math.log10(255 / 20))


def test_ssim_falls_with_the_blur() -> None:
    found = [ssim(blurred(ASTRONAUT, sigma), ASTRONAUT) or 0.0 for sigma in (0.5, 1, 2, 4)]
    assert found == sorted(found, reverse=True) and found[0] > 0.9 > found[-1]


# -- re-degradation ---------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 5), st.floats(0.3, 2.5), st.sampled_from([0, 4, 8]))
def test_the_truth_explains_its_damaged_copy(which: int, sigma: float, noise: int) -> None:
    """Not what it looks like, but what a blur can make of it: the truth lies far from the source, and passes."""
    source = noisy(blurred(SHARP[which], sigma), noise)
    assert redegradation(SHARP[which], source) > 30
    assert redegradation(SHARP[which], source) > (psnr(SHARP[which], source) or 0)


def test_anothers_eyes_are_not_explained_by_any_blur() -> None:
    face: Bytes3 = np.ascontiguousarray(skimage_data.astronaut()[60:188, 160:288])
    source = noisy(blurred(face, 1.5), 4)
    changed = face.copy()
    changed[36:56, 30:60] = np.ascontiguousarray(skimage_data.chelsea()[100:120, 150:180])
    assert redegradation(changed, source) < redegradation(face, source) - 10


def test_a_shifted_copy_is_found_and_less_of_it_less() -> None:
    source = blurred(ASTRONAUT, 1)
    found = [redegradation(np.roll(ASTRONAUT, by, (0, 1)), source) for by in (0, 1, 2, 4, 8)]
    assert found == sorted(found, reverse=True) and found[0] - found[2] > 6


def test_one_bad_place_counts_in_a_large_picture() -> None:
    """A mean over the image would forgive an eye in a landscape."""
    changed = ASTRONAUT.copy()
    changed[20:52, 20:52] = 255 - changed[20:52, 20:52]
    assert redegradation(changed, ASTRONAUT) < 12 < 20 < (psnr(changed, ASTRONAUT) or 0)


def test_a_large_image_is_judged_like_a_small_one() -> None:
    source = blurred(ASTRONAUT, 2)
    large = [np.asarray(Image.fromarray(i).resize((1024, 1024))) for i in (ASTRONAUT, source)]
    found, expected = compare(large[0], large[1]), compare(ASTRONAUT, source)
    assert found["redegradation"] == pytest.approx(expected["redegradation"], abs=2)
    assert found["colour_drift"] == pytest.approx(expected["colour_drift"], abs=0.1)


# -- colour drift -----------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.floats(-6, 6), st.floats(-6, 6))
def test_a_tint_is_read_in_cielab_s_own_units(a: float, b: float) -> None:
    grey = np.full((64, 64, 3), 128, np.uint8)
    assert colour_drift(tinted(grey, a, b), grey) == pytest.approx(math.hypot(a, b), abs=0.6)  # 8 bits


def test_blur_and_noise_hardly_move_colours_and_opposite_tints_do_not_cancel() -> None:
    assert colour_drift(ASTRONAUT, noisy(blurred(ASTRONAUT, 1.5), 8)) < 0.7
    halves = ASTRONAUT.copy()
    halves[:, :128], halves[:, 128:] = tinted(halves[:, :128], 6, 0), tinted(halves[:, 128:], -6, 0)
    assert colour_drift(halves, ASTRONAUT) > 4
    darker = (ASTRONAUT * 0.97).astype(np.uint8)
    assert colour_drift(darker, ASTRONAUT) < 1  # lightness is another gate's matter


# -- LPIPS ------------------------------------------------------------------------------------------------------------


def test_lpips_agrees_with_its_own_package_and_repeats(perceptual: Perceptual, weights: Path) -> None:
    import lpips
    import torch
    from safetensors.torch import load_file

    with warnings.catch_warnings(action="ignore"):  # it calls torchvision as torchvision was
        reference = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    trunk = load_file(weights / "alexnet_features.safetensors")
    convs = [m for m in reference.net.modules() if isinstance(m, torch.nn.Conv2d)]
    for conv, index in zip(convs, (0, 3, 6, 8, 10), strict=True):
        conv.load_state_dict({part: trunk[f"features.{index}.{part}"] for part in ("weight", "bias")})
    candidate = blurred(ASTRONAUT, 2)
    a, b = (torch.tensor(i).permute(2, 0, 1)[None].float() / 127.5 - 1 for i in (candidate, ASTRONAUT))
    with torch.no_grad():
        expected = float(reference(a, b))
    found = compare(candidate, ASTRONAUT, perceptual=perceptual)["lpips_source"]
    assert found == pytest.approx(expected, abs=1e-5)
    room = np.empty(candidate.size + 4, np.uint8)[4:].reshape(candidate.shape)
    room[...] = candidate
    assert compare(room, ASTRONAUT, perceptual=perceptual)["lpips_source"] == found
    assert compare(ASTRONAUT[:31, :64], ASTRONAUT[:31, :64], perceptual=perceptual)["lpips_source"] is None
    assert compare(ASTRONAUT[:32, :32], ASTRONAUT[:32, :32], perceptual=perceptual)["lpips_source"] == 0


def test_a_missing_or_other_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDM_WEIGHTS", str(tmp_path))
    with pytest.raises(ConfigError, match=r"alexnet_features\.safetensors is missing"):
        open_perceptual()
    (tmp_path / "alexnet_features.safetensors").write_bytes(b"other")
    with pytest.raises(ConfigError, match="not the file that is meant"):
        open_perceptual()


def test_no_size_costs_more_than_the_largest_that_is_looked_at() -> None:
    assert changes.reduced(ASTRONAUT) is ASTRONAUT
    assert changes.reduced(np.zeros((300, 3000, 3), np.uint8)).shape == (26, 256, 3)
    assert changes.reduced(np.zeros((4000, 1, 3), np.uint8)).shape == (256, 1, 3)
