"""The arithmetic of the restorer's benchmarks: intervals, contraction, Frechet patches, conditions."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from skimage import data

from idm_core.degradations import degrade
from idm_core.tiles import Axis, cut
from tests.benchmarks.card import BEGIN, END, table, write_card
from tests.benchmarks.figures import EQUAL_PSNR, FrechetToTruth, contraction, interval, psnrs, ssims
from tests.benchmarks.held_out import Truth
from tests.benchmarks.targets import targets
from tests.benchmarks.tasks import LARGE_SIDE, TILED_SIDE, seam_ratio, tasks


def truth_of(count: int, views: int = 1) -> list[Truth]:
    """Pieces of 64 x 64 pixels of a photograph."""
    photo = data.astronaut()
    return [
        Truth(f"{i}.jpg", v, photo[16 * i : 16 * i + 64, 40 * v : 40 * v + 64])
        for i in range(count)
        for v in range(views)
    ]


class MeanColour:
    """A detector that sees mean colour and contrast."""

    name, dimension = "mean colour", 4

    def __call__(self, images: np.ndarray) -> np.ndarray:
        pixels = images.astype(np.float32)
        return np.concatenate([pixels.mean(axis=(1, 2)), pixels.std(axis=(1, 2, 3))[:, None]], axis=1)


def test_psnr_and_ssim() -> None:
    a = [t.image for t in truth_of(2)]
    b = [a[0].copy(), np.clip(a[1].astype(int) // 2 * 2 + 1, 0, 255).astype(np.uint8)]
    found = psnrs(a, b)
    assert found[0] == EQUAL_PSNR
    assert found[1] == pytest.approx(20 * np.log10(255 / np.sqrt(np.mean((a[1].astype(float) - b[1]) ** 2))))
    assert ssims(a, b)[0] == pytest.approx(1)


def test_an_interval_draws_photographs_not_their_views() -> None:
    draw = np.random.default_rng(1)
    few = truth_of(12, views=8)
    values = np.repeat(draw.normal(size=12), 8)  # all views of a photograph agree: 12 values, not 96
    mean, low, high = interval(few, values)
    assert mean == pytest.approx(values.mean())
    half = 1.96 * values[::8].std() / np.sqrt(12)
    assert (high - low) / 2 == pytest.approx(half, rel=0.2)


def test_an_interval_of_a_ratio() -> None:
    truth = truth_of(20)
    base = np.linspace(1, 3, 20)
    assert interval(truth, base / 2, per=base) == pytest.approx((0.5, 0.5, 0.5))
    values = np.where(np.arange(20) < 10, np.nan, 7.0)
    assert interval(truth, values) == (7, 7, 7)
    assert np.isnan(interval(truth, np.full(20, np.nan))).all()


def test_contraction_of_a_map_that_halves() -> None:
    images = [np.full((8, 8, 3), 128, np.uint8), np.full((8, 8, 3), 64, np.uint8)]
    found = contraction(lambda some, keys: [x // 2 for x in some], images, ["a", "b"], times=4)
    assert found["change"] == [48, 24, 12, 6]
    assert found["ratio"] == [0.5, 0.5, 0.5]
    settled = contraction(lambda some, keys: some, images, ["a", "b"])
    assert settled["ratio"] == [0, 0, 0, 0]


def test_frechet_of_patches_is_zero_for_the_truth_and_grows_with_damage() -> None:
    truth = truth_of(16)
    judge = FrechetToTruth(MeanColour(), truth, patches=100)
    assert judge.patches == 7 * 16
    images = [t.image for t in truth]
    assert judge(images) < 1e-6
    distances = [judge([np.clip(x.astype(int) + shift, 0, 255).astype(np.uint8) for x in images]) for shift in (4, 16)]
    assert 0 < distances[0] < distances[1]
    assert judge([x.copy() for x in images]) < 1e-6  # known ones, and in any order of asking


def test_patches_are_windows_of_the_image_some_mirrored() -> None:
    seen: list[np.ndarray] = []

    class Recorder(MeanColour):
        def __call__(self, images: np.ndarray) -> np.ndarray:
            seen.extend(images)
            return super().__call__(images)

    ramp = np.zeros((64, 64, 3), np.uint8)
    ramp[..., 0], ramp[..., 1], ramp[..., 2] = np.arange(64), 100, 200  # red grows to the right
    FrechetToTruth(Recorder(), [Truth("a.jpg", 0, ramp), Truth("b.jpg", 0, ramp)], patches=80)
    assert len(seen) == 80 and {patch.shape for patch in seen} == {(s, s, 3) for s in (32, 48, 64)}
    assert all((patch[..., 1] == 100).all() and (patch[..., 2] == 200).all() for patch in seen)
    slopes = [int(patch[0, 1, 0]) - int(patch[0, 0, 0]) for patch in seen]
    assert set(slopes) == {-1, 1} and 20 < slopes.count(-1) < 60


def report() -> dict[str, Any]:
    """Everything reached, by a good margin."""
    clean = {"same": 0.995, "psnr_p01": 40.0, "identity_changed": 0.999, "milliseconds": 1.0}
    mine = {"psnr": 27.0, "ssim": 0.9, "lpips": 0.04, "fd_effnet": 30.0, "identity": 0.9, "evaluations": 2.0}
    mine |= {"milliseconds": 20.0, "idempotence_mean": 45.0, "idempotence_p05": 37.0}
    mine |= {"contraction": {"ratio": [0.3, 0.2], "identity": [0.9, 0.9]}}
    worse = {"psnr": 24.0, "ssim": 0.8, "lpips": 0.2, "fd_effnet": 100.0, "identity": 0.7}
    rows = {"mine": mine, "input": worse, "unsharp mask": worse, "l1": worse, "edm": worse}
    detection = {"recall_mild_at_1_percent": 0.99, "rank_correlation": 0.95}
    figures = {
        "recipes": {"clean": {"mine": clean}, "mild": rows, "heavy": copy.deepcopy(rows)},
        "detection": detection,
    }
    return {"default": "mine", "direct": "l1", "edm": "edm", "sets": {"faces": figures}}


def test_all_targets_can_be_reached() -> None:
    found = targets(report())
    assert len(found) == 34
    assert all(target["passed"] for target in found), [t for t in found if not t["passed"]]


@pytest.mark.parametrize(
    ("recipe", "figure", "value", "missed"),
    [
        ("clean", "same", 0.98, ["clean: share"]),
        ("clean", "psnr_p01", 37.9, ["clean: 1st percentile"]),
        ("mild", "psnr", 25.7, ["mild: PSNR over the input"]),
        ("mild", "idempotence_p05", 35.0, ["mild, second application: 5th"]),
        (
            "mild",
            "contraction",
            {"ratio": [0.3, 0.6], "identity": [0.9, 0.89]},
            ["largest ratio", "identity of the last"],
        ),
        ("heavy", "lpips", 0.1, ["heavy: LPIPS <= 0.45"]),
        ("heavy", "evaluations", 5.0, ["heavy: evaluations"]),
        (
            "heavy",
            "identity",
            0.6,
            ["heavy: identity over", "heavy: better than the EDM chain at 50 evaluations in identity"],
        ),
    ],
)
def test_each_target_can_be_missed(recipe: str, figure: str, value: Any, missed: list[str]) -> None:
    changed = report()
    changed["sets"]["faces"]["recipes"][recipe]["mine"][figure] = value
    found = [t["condition"] for t in targets(changed) if t["passed"] is False]
    assert len(found) == len(missed)
    assert all(any(part in condition for condition in found) for part in missed), found


def test_what_was_not_measured_is_neither_reached_nor_missed() -> None:
    changed = report() | {"direct": None, "edm": None}
    figures = changed["sets"]["faces"]
    figures["detection"] = {}
    figures["recipes"]["clean"]["mine"] = {"same": 1.0, "milliseconds": 1.0, "identity_changed": float("nan")}
    found = targets(changed)
    assert sum(t["passed"] is None for t in found) == 3 + 2 * 5 + 2 + 2
    assert all(t["passed"] is not False for t in found)


def test_the_printed_table_is_aligned() -> None:
    lines = table(
        {"input": {"psnr": 20.0, "fd_effnet": None}, "a longer name": {"psnr": 7.5, "psnr_gain": (1, 0.5, 2)}}
    )
    assert len({len(line) for line in lines.splitlines()}) == 1
    assert "+1.00 (+0.50 +2.00)" in lines


def test_a_card_without_markers_is_refused(tmp_path: Any) -> None:
    card = tmp_path / "card.md"
    card.write_text(f"before\n{BEGIN}old\n")
    with pytest.raises(ValueError, match=END.strip()):
        write_card(card, report())
    assert card.read_text().endswith("old\n")


def test_a_seam_shows_and_none_does_not() -> None:
    draw = np.random.default_rng(0)
    axis = Axis(256, 96, (0, 80, 160))
    smooth = draw.normal(size=(256, 256, 3))
    assert seam_ratio(smooth, axis) == pytest.approx(1, abs=0.02)
    steps = smooth.copy()
    steps[80:] += 3
    assert seam_ratio(steps, axis) > 1.1  # one border of four, along one side
    beside = smooth.copy()
    beside[88:] += 3
    assert seam_ratio(beside, axis) < 0.99


def test_the_tiled_sizes_are_tiled() -> None:
    assert len(cut(TILED_SIDE).starts) == 2
    assert LARGE_SIDE % cut(LARGE_SIDE).side == 0  # so that tiles laid side by side cover it


@pytest.mark.parametrize("side", [64, 288])
def test_each_task_is_one_kind_of_damage_of_the_same_strength(side: int) -> None:
    image = torch.from_numpy(data.astronaut()[:side, :side].copy()).permute(2, 0, 1)[None].float() / 255
    steps = [degrade(image, task, ["key"], 0)[1][0].steps[0] for task in tasks(side)]
    blur, noise, jpeg, twice, four = steps
    assert blur.blur_sigma == pytest.approx((1, 1)) and blur.noise_sigma is blur.downsample is blur.quality is None
    assert noise.noise_sigma == 10 and noise.blur_sigma is noise.downsample is noise.quality is None
    assert jpeg.quality == 40 and jpeg.blur_sigma is jpeg.downsample is jpeg.noise_sigma is None
    assert (twice.downsample, four.downsample) == pytest.approx((2, 4))
    assert twice.blur_sigma is twice.noise_sigma is twice.quality is None
