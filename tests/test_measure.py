"""Each measurement follows its own degradation on real photographs, and none breaks on an image that is odd."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from manifests import schema
from pipelines import measure
from pipelines.measure import Bytes3
from tests.benchmarks import measurements
from tests.benchmarks.measurements import Planted, enlarge, jpeg, noise, pooled, readings, reduced

COLUMNS = schema.names(schema.MEASUREMENTS)


@pytest.fixture(scope="module")
def photographs() -> list[Bytes3]:
    return [reduced(rgb) for _, rgb in measurements.shipped_photographs()]


@pytest.fixture(scope="module")
def many_photographs(data: Path) -> list[Bytes3]:
    """Those that the estimators were not chosen on, all that the benchmark uses."""
    shipped = [reduced(rgb) for name, rgb in measurements.shipped_photographs() if measurements.held_out(name)]
    return shipped + [reduced(rgb) for _, rgb in measurements.data_photographs(data, measurements.HELD_OUT)]


@pytest.mark.parametrize("planted", measurements.OWN, ids=lambda p: p.measurement)
def test_it_ranks_its_own_degradation(planted: Planted, photographs: list[Bytes3]) -> None:
    assert pooled(readings(planted, photographs), planted.strengths) >= 0.9


@pytest.mark.parametrize("planted", measurements.OWN, ids=lambda p: p.measurement)
def test_it_ranks_its_own_degradation_on_more_photographs(planted: Planted, many_photographs: list[Bytes3]) -> None:
    # Exposure, clipping and colour are statistics of the picture: what they come to is only settled by many pictures.
    every = 1 if planted.measurement in ("exposure", "clipped", "saturation") else 4
    assert pooled(readings(planted, many_photographs[::every]), planted.strengths) >= 0.9


def test_every_measurement_has_a_degradation_and_a_column(photographs: list[Bytes3]) -> None:
    assert {p.measurement for p in measurements.OWN} == set(COLUMNS)
    assert list(measure.measure(photographs[0])) == COLUMNS


@pytest.mark.parametrize("quality", range(1, 101))
def test_jpeg_quality_is_that_of_the_encoder(quality: int) -> None:
    _, data = jpeg(np.zeros((16, 16, 3), np.uint8), quality)
    assert data is not None and measure.jpeg_quality(data) == quality


def test_jpeg_quality_of_foreign_tables_lies_between_those_of_finer_and_coarser_ones() -> None:
    def encoded(table: list[int]) -> float:
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16)).save(buffer, "JPEG", qtables=[table, table])
        quality = measure.jpeg_quality(buffer.getvalue())
        assert quality is not None
        return quality

    flat = [encoded([step] * 64) for step in (1, 4, 16, 64, 255)]
    assert flat == sorted(flat, reverse=True) and flat[0] == 100 and flat[-1] == 1 and 50 < flat[2] < 90


def test_jpeg_quality_needs_a_jpeg() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "PNG")
    _, data = jpeg(np.zeros((64, 64, 3), np.uint8), 50)
    assert data is not None
    for unreadable in (buffer.getvalue(), b"", b"\xff\xd8", data[:30], b"\xff\xd8" + bytes(200)):
        assert measure.jpeg_quality(unreadable) is None


def test_noise_is_measured_in_its_unit(photographs: list[Bytes3]) -> None:
    for sigma in (5, 10, 20):
        found = [measure.noise_sigma(noise(rgb, sigma)) for rgb in photographs]
        assert np.median(np.array(found, float)) == pytest.approx(sigma, rel=0.1)
    grey = np.full((256, 256, 3), 128, np.uint8)
    assert measure.noise_sigma(noise(grey, 10)) == pytest.approx(10, rel=0.05)


def test_padding_does_not_hide_what_the_picture_is_like(photographs: list[Bytes3]) -> None:
    def padded(rgb: Bytes3) -> Bytes3:  # as aligning a face leaves it: black outside a rectangle that stands askew
        height, width = rgb.shape[:2]
        y, x = np.mgrid[:height, :width]
        across, down = x / width + 0.1 * y / height, y / height - 0.1 * x / width
        outside = (across < 0.2) | (across > 0.95) | (down < 0.05) | (down > 0.8)
        return np.where(outside[..., None], 0, rgb).astype(np.uint8)

    soft = [enlarge(rgb, 4) for rgb in photographs]
    # In each one's unit: noise is next to nothing here, and its change is to be small in grey levels, not in itself.
    for name, tolerance in (("sharpness", 0.08), ("noise_sigma", 0.1), ("effective_resolution", 0.04)):
        plain = np.array([measure.measure(rgb)[name] for rgb in soft], float)
        cut = np.array([measure.measure(padded(rgb))[name] for rgb in soft], float)
        assert np.median(np.abs(cut - plain)) < tolerance, name


def test_noise_is_not_taken_for_detail(photographs: list[Bytes3]) -> None:
    for sigma in (0, 3, 8):
        found = [measure.measure(noise(enlarge(rgb, 4), sigma))["effective_resolution"] for rgb in photographs]
        assert 0.25 < np.median(np.array(found, float)) < 0.4


def test_a_crop_keeps_its_blocks_and_a_photograph_has_none(photographs: list[Bytes3]) -> None:
    for rgb in photographs:
        blocked, cropped, never = (
            measure.measure(image)["blockiness"] for image in (jpeg(rgb, 30)[0], jpeg(rgb, 30)[0][3:, 5:], rgb)
        )
        assert blocked is not None and cropped == pytest.approx(blocked, rel=0.1)
        assert never is not None and never < 0.25 * blocked


def is_sound(found: dict[str, float | None]) -> bool:
    limits = {"jpeg_quality": (1, 100), "noise_sigma": (0, 255)} | dict.fromkeys(
        ("effective_resolution", "exposure", "clipped", "saturation"), (0, 1)
    )
    return list(found) == COLUMNS and all(
        value is None or (math.isfinite(value) and low <= value <= high)
        for name, value in found.items()
        for low, high in (limits.get(name, (0, math.inf)),)
    )


@settings(max_examples=60, deadline=None)
@given(
    rgb=st.one_of(
        hnp.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3))),
        st.builds(
            lambda h, w, low, high, seed: (
                np.random.default_rng(seed).integers(min(low, high), max(low, high) + 1, (h, w, 3)).astype(np.uint8)
            ),
            *[st.integers(1, 140)] * 2,
            *[st.integers(0, 255)] * 2,
            st.integers(0, 9),
        ),
    )
)
def test_any_pixels_give_sound_values(rgb: Bytes3) -> None:
    assert is_sound(measure.measure(rgb))
    hashed = measure.perceptual_hash(rgb)
    assert hashed is None or len(hashed) == 32


@pytest.mark.parametrize("side", [1, 2, 7, 8, 9, 31, 32, 33, 64, 100])
@pytest.mark.parametrize("level", [0, 128, 255])
def test_flat_images(side: int, level: int) -> None:
    flat = np.full((side, side, 3), level, np.uint8)
    found = measure.measure(flat)
    assert is_sound(found)
    assert found["sharpness"] is None and found["effective_resolution"] is None
    assert found["noise_sigma"] in (0, None) and found["blockiness"] in (0, None)
    assert found["exposure"] == pytest.approx(level / 255) and found["saturation"] == 0
    assert found["clipped"] == (level != 128)
    assert measure.perceptual_hash(flat) is None


def test_images_without_structure_have_no_hash() -> None:
    y, x = np.mgrid[:200, :300]
    for plane in (x / 2, y / 2 + x / 4, 255.0 * (x > 150), 200 - np.hypot(x - 150, y - 100) / 2):
        rgb = np.repeat(plane[..., None], 3, axis=2).astype(np.uint8)
        assert measure.perceptual_hash(rgb) is None
        assert measure.perceptual_hash(jpeg(rgb, 75)[0]) is None


def test_a_huge_image_is_measured_like_its_middle(photographs: list[Bytes3]) -> None:
    rgb = np.tile(photographs[0], (6, 13, 1))
    assert rgb.shape[0] * rgb.shape[1] > measure.MAX_PIXELS
    window = measure.central_window(rgb)
    assert window.shape[0] * window.shape[1] <= measure.MAX_PIXELS
    whole, middle = measure.measure(rgb), measure.measure(np.ascontiguousarray(window))
    for name in ("sharpness", "noise_sigma", "blockiness", "effective_resolution"):
        assert whole[name] == middle[name]
    assert whole["exposure"] == pytest.approx(middle["exposure"], abs=0.05)
    panorama = measure.central_window(np.zeros((300, 40_000, 3), np.uint8))
    assert panorama.shape == (300, measure.MAX_PIXELS // 300, 3)


@pytest.mark.parametrize("transform", [np.asfortranarray, lambda a: a[:, ::-1], lambda a: a[::2, ::2]])
def test_memory_layout_does_not_matter(transform: Callable[[Bytes3], Bytes3], photographs: list[Bytes3]) -> None:
    view = transform(photographs[1])
    assert measure.measure(view) == measure.measure(np.ascontiguousarray(view))
    assert measure.perceptual_hash(view) == measure.perceptual_hash(np.ascontiguousarray(view))


def test_a_read_only_image_is_left_alone(photographs: list[Bytes3]) -> None:
    rgb = photographs[2].copy()
    rgb.flags.writeable = False
    assert measure.measure(rgb) == measure.measure(photographs[2])


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 4), (0, 8, 3)])
def test_wrong_arrays_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="H x W x 3"):
        measure.measure(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="float64"):
        measure.measure(np.zeros((8, 8, 3)))  # type: ignore[arg-type]
