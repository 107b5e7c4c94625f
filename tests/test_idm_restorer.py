"""The restorer: leaves alone what is good, improves what is not, and is the same whatever is restored beside it."""

from __future__ import annotations

import io
import math
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy.stats import spearmanr

from idm_core import Restorer, load_restorer
from idm_core.checkpoint import Config, Networks, find_checkpoint, load_checkpoint
from idm_core.degradations import RECIPES, degrade
from idm_core.restorer import SETTLED_SHARE, SEVERITY_ERROR, Photograph, consistency
from idm_core.tiles import LARGEST, OVERLAP, apply_tiled, cut, pad_reflected, tiles_of, tiles_per_batch
from pipelines.split import split_of


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    return load_restorer("idm-64")


@pytest.fixture(scope="module")
def photographs() -> list[Photograph]:
    """64-pixel crops of photographs that come with scikit-image, reduced threefold: sharp and free of artefacts."""
    from skimage import data

    crops = []
    for photo in (data.astronaut(), data.coffee(), data.chelsea(), data.rocket()):
        small = Image.fromarray(photo).reduce(3)
        pixels = np.asarray(small)
        for y in range(0, pixels.shape[0] - 63, 36):
            crops += [pixels[y : y + 64, x : x + 64].copy() for x in range(0, pixels.shape[1] - 63, 36)]
    return crops[:24]


@pytest.fixture(scope="module")
def faces(data: Path) -> list[Photograph]:
    """Central squares of held-out faces at 64 pixels."""
    found = []
    with zipfile.ZipFile(data / "faces-sharp.zip") as archive:
        held_out = [n for n in sorted(archive.namelist()) if not n.endswith("/") and split_of(n) == "test"]
        for name in held_out[:48]:
            photo = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
            side = min(photo.size)
            box = ((photo.width - side) // 2, (photo.height - side) // 2)
            square = photo.crop((*box, box[0] + side, box[1] + side))
            found.append(np.asarray(square.resize((64, 64), Image.Resampling.LANCZOS)))
    return found


def damaged(images: list[Photograph], recipe: str) -> list[Photograph]:
    keys = [str(i) for i in range(len(images))]
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    y = degrade(pixels, RECIPES[recipe], keys, seed=7)[0]
    return list((y * 255).round().byte().permute(0, 2, 3, 1).numpy())


def psnr(a: Photograph, b: Photograph) -> float:
    return float(-10 * np.log10(max(np.mean((a / 255.0 - b / 255.0) ** 2), 1e-9)))


def mean_psnr(truth: list[Photograph], images: list[Photograph]) -> float:
    return float(np.mean([psnr(a, b) for a, b in zip(truth, images, strict=True)]))


def names(count: int) -> list[str]:
    return [f"key{i}" for i in range(count)]


@pytest.mark.parametrize("recipe", ["mild", "heavy"])
def test_damaged_photographs_come_nearer_to_the_truth(
    restorer: Restorer, photographs: list[Photograph], recipe: str
) -> None:
    y = damaged(photographs, recipe)
    restored = [r.image for r in restorer.restore(y, names(len(y)))]
    assert mean_psnr(photographs, restored) > mean_psnr(photographs, y) + 0.3


@pytest.mark.parametrize("recipe", ["mild", "heavy"])
def test_held_out_damaged_faces_come_nearer_to_the_truth(
    restorer: Restorer, faces: list[Photograph], recipe: str
) -> None:
    y = damaged(faces, recipe)
    restored = [r.image for r in restorer.restore(y, names(len(y)))]
    assert mean_psnr(faces, restored) > mean_psnr(faces, y) + 0.8


def ranks_true_error(restorer: Restorer, truth: list[Photograph]) -> float:
    """Rank correlation of the severity that is read with the true one, over clean, light, mild and heavy damage."""
    images = [damaged(truth, recipe) for recipe in ("clean", "light", "mild", "heavy")]
    true = [44 - min(psnr(a, b), 44) for y in images for a, b in zip(truth, y, strict=True)]
    read = restorer.severity([image for y in images for image in y])
    return float(spearmanr(true, read).statistic)


def test_severity_ranks_the_true_error_of_photographs(restorer: Restorer, photographs: list[Photograph]) -> None:
    assert ranks_true_error(restorer, photographs) >= 0.9


def test_severity_ranks_the_true_error_of_held_out_faces(restorer: Restorer, faces: list[Photograph]) -> None:
    assert ranks_true_error(restorer, faces) >= 0.9


def test_severity_tells_damage_from_none(restorer: Restorer, photographs: list[Photograph]) -> None:
    clean, mild, heavy = (
        np.median(restorer.severity(x)) for x in (photographs, *(damaged(photographs, r) for r in ("mild", "heavy")))
    )
    assert clean < restorer.config.threshold < mild < heavy


def test_under_the_threshold_it_is_the_same_object(restorer: Restorer, photographs: list[Photograph]) -> None:
    for image, result in zip(photographs, restorer.restore(photographs, names(24), threshold=1.1), strict=True):
        assert result.image is image
        assert (result.passes, result.evaluations, result.stop) == (0, 0, "clean")
        assert result.severity_after == result.severity < 1.1


def test_clean_photographs_mostly_are_under_the_threshold(restorer: Restorer, photographs: list[Photograph]) -> None:
    untouched = [r.image is i for r, i in zip(restorer.restore(photographs, names(24)), photographs, strict=True)]
    assert np.mean(untouched) >= 0.9


@pytest.mark.parametrize(("steps", "passes"), [(1, 1), (2, 2)])
def test_neighbours_do_not_matter(restorer: Restorer, photographs: list[Photograph], steps: int, passes: int) -> None:
    """Mixed sizes, another order, alone: the same bits."""
    big = np.asarray(Image.fromarray(photographs[3]).resize((300, 80)))
    images = [*damaged(photographs[:5], "heavy"), photographs[10][:50, :40], big, photographs[11][:1, :1]]
    images += damaged(photographs[5:9], "mild")
    keys = names(len(images))
    options = {"steps": steps, "passes": passes, "threshold": 0.0}
    together = restorer.restore(images, keys, **options)  # type: ignore[arg-type]
    order = np.random.default_rng(0).permutation(len(images))
    shuffled = restorer.restore([images[i] for i in order], [keys[i] for i in order], **options)  # type: ignore[arg-type]
    for i, result in zip(order, shuffled, strict=True):
        assert np.array_equal(result.image, together[i].image)
        assert result.severity == together[i].severity
        assert result.severity_after == together[i].severity_after
    for i in (2, 5, 6, 7):
        [alone] = restorer.restore([images[i]], [keys[i]], **options)  # type: ignore[arg-type]
        assert np.array_equal(alone.image, together[i].image)
        assert alone.image.shape == images[i].shape


def test_the_key_seeds_the_noise(restorer: Restorer, photographs: list[Photograph]) -> None:
    [y] = damaged(photographs[:1], "heavy")
    a, b, c = (restorer.restore([y], [key], steps=4, threshold=0.0)[0].image for key in ("one", "two", "one"))
    assert np.array_equal(a, c)
    assert not np.array_equal(a, b)


def test_passes_stop_by_rule(restorer: Restorer, photographs: list[Photograph]) -> None:
    y = damaged(photographs, "heavy")
    results = restorer.restore(y, names(len(y)), passes=4, steps=2)
    for image, result in zip(y, results, strict=True):
        assert result.severity_after <= result.severity + result.passes * SEVERITY_ERROR
        assert result.passes <= 4
        if result.stop in ("settled", "severity_rose", "inconsistent"):
            assert result.evaluations == 2 * (result.passes + 1)
        else:
            assert result.evaluations == 2 * result.passes
        assert (result.image is image) == (result.passes == 0)
        if result.stop == "clean":
            assert result.severity_after < restorer.config.threshold
    assert restorer.severity([r.image for r in results]) == [r.severity_after for r in results]


def test_what_is_restored_is_a_fixed_point(restorer: Restorer, photographs: list[Photograph]) -> None:
    """A second application mostly changes not one byte; where it does, it corrects something."""
    y = damaged(photographs, "heavy") + damaged(photographs, "mild")
    once = [r.image for r in restorer.restore(y, names(len(y)))]
    changed = [i for i, (a, b) in enumerate(zip(y, once, strict=True)) if not np.array_equal(a, b)]
    assert len(changed) > 0.8 * len(y)
    twice = restorer.restore([once[i] for i in changed], [f"again {i}" for i in changed])
    settled = [r for i, r in zip(changed, twice, strict=True) if r.image is once[i]]
    assert len(settled) >= 0.9 * len(changed)
    assert {r.stop for r in settled} <= {"clean", "settled", "severity_rose"}
    for i, result in zip(changed, twice, strict=True):
        if result.passes:
            rms = 255 * (0.2 * 10 ** (-1.5 * (1 - result.severity)))
            assert np.sqrt(np.square(result.image.astype(float) - once[i]).mean()) >= SETTLED_SHARE * rms * 0.99


def test_a_floor_undoes_the_pass_that_breaks_it(restorer: Restorer, photographs: list[Photograph]) -> None:
    """Consistency and identity are with the photograph that was handed in; the image before that pass is kept."""
    y = damaged(photographs, "heavy")
    free = restorer.restore(y, names(len(y)), passes=2, threshold=0.0)
    for image, result in zip(y, free, strict=True):
        assert result.consistency == (consistency(image, result.image) if result.passes else math.inf)
    middle = float(np.median([r.consistency for r in free]))
    strict = Restorer(*_parts(replace(restorer.config, consistency=middle)))
    bound = strict.restore(y, names(len(y)), passes=2, threshold=0.0)
    assert {r.stop for r in bound} > {"inconsistent"}
    for image, before, result in zip(y, free, bound, strict=True):
        assert result.consistency >= middle
        if result.stop == "inconsistent" and result.passes == 0:
            assert result.image is image and result.evaluations == restorer.config.steps
        elif result.stop != "inconsistent":
            assert np.array_equal(result.image, before.image)

    other_person = Restorer(*_parts(restorer.config))
    other_person.identity = lambda a, b: None if np.array_equal(a, y[0]) else 0.4
    judged = other_person.restore(y, names(len(y)), passes=1, threshold=0.0)
    assert np.array_equal(judged[0].image, restorer.restore(y[:1], names(1), passes=1, threshold=0.0)[0].image)
    assert {r.stop for r in judged[1:]} <= {"identity", "severity_rose"}
    assert all(r.image is image for r, image in zip(judged[1:], y[1:], strict=True))


def _parts(config: Config) -> tuple[Networks, Config, str]:
    networks, _, sha256 = load_checkpoint(find_checkpoint("idm-64"))
    return networks, config, sha256


def test_consistency_sees_a_moved_picture_and_not_its_sharpness(photographs: list[Photograph]) -> None:
    for image in photographs[:6]:
        assert consistency(image, image) == math.inf
        blurred = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(0.8)))
        moved, tinted = np.roll(image, 6, axis=1), np.clip(image * [1.15, 1.0, 0.9], 0, 255).astype(np.uint8)
        assert consistency(image, blurred) > max(consistency(image, moved), consistency(image, tinted)) + 3
    assert consistency(photographs[0][:3, :2], photographs[1][:3, :2]) < 60  # less than one cell


def test_results_belong_to_whoever_asked(restorer: Restorer, photographs: list[Photograph]) -> None:
    [result] = restorer.restore(damaged(photographs[:1], "heavy"), ["k"], threshold=0.0)
    assert result.image.flags.owndata and result.image.flags.writeable
    result.image[:] = 0


@pytest.mark.parametrize(("shape", "kind"), [((8, 8), "u1"), ((8, 8, 4), "u1"), ((8, 8, 3), "f4"), ((0, 8, 3), "u1")])
def test_what_is_no_photograph_is_refused(restorer: Restorer, shape: tuple[int, ...], kind: str) -> None:
    image = np.zeros(shape, kind)
    with pytest.raises(ValueError, match="HxWx3 uint8"):
        restorer.restore([image], ["k"])


def test_options_out_of_range_are_refused(restorer: Restorer, photographs: list[Photograph]) -> None:
    with pytest.raises(ValueError, match="1 images but 2 keys"):
        restorer.restore(photographs[:1], ["a", "b"])
    with pytest.raises(ValueError, match="not 0 and 1"):
        restorer.restore(photographs[:1], ["a"], steps=0, passes=1)
    assert restorer.restore([], []) == []
    assert restorer.severity([]) == []


@pytest.mark.parametrize("length", [1, 63, 64, 65, 250, 256, 257, 480, 481, 1024, 5000])
def test_windows_add_up_to_one(length: int) -> None:
    axis = cut(length)
    total = torch.zeros(axis.padded)
    for start, window in zip(axis.starts, axis.windows(), strict=True):
        assert start >= 0
        assert start + axis.side <= axis.padded
        total[start : start + axis.side] += window
    torch.testing.assert_close(total, torch.ones(axis.padded))
    assert axis.side <= LARGEST
    assert axis.side % 32 == 0
    if len(axis.starts) > 1:
        assert min(a + axis.side - b for a, b in zip(axis.starts, axis.starts[1:], strict=False)) >= OVERLAP - 1


def test_tiles_put_an_image_back_together() -> None:
    image = torch.rand(1, 3, 300, 700)
    torch.testing.assert_close(apply_tiled(lambda x, s: x * s[:, None, None, None], (image,), (torch.ones(1),)), image)
    assert len(list(tiles_of(cut(300), cut(700)))) == 2 * 3


def test_no_batch_of_tiles_is_larger_than_allowed() -> None:
    sizes: list[tuple[int, ...]] = []

    def function(x: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(x.shape))
        return x

    apply_tiled(function, (torch.rand(1, 3, 1024, 1024),), ())
    assert set(sizes) == {(tiles_per_batch(256, 256, torch.device("cpu")), 3, 256, 256)}


def test_a_large_photograph_has_no_seams(restorer: Restorer) -> None:
    """Differences between neighbours are no larger where tiles end than elsewhere, relative to a whole-image pass."""
    from skimage import data

    photo = np.asarray(Image.fromarray(data.astronaut()).resize((320, 320), Image.Resampling.LANCZOS))
    generator = np.random.default_rng(0)
    y = np.clip(photo + generator.normal(0, 12, photo.shape), 0, 255).round().astype(np.uint8)
    [result] = restorer.restore([y], ["k"], threshold=0.0)
    change = np.abs(np.diff(result.image.astype(np.float64) - photo, axis=1)).mean(axis=(0, 2))
    starts = cut(320).starts
    borders = [start - 1 for start in starts[1:]] + [start + cut(320).side - 1 for start in starts[:-1]]
    elsewhere = np.delete(change, borders)
    assert max(change[borders]) < np.percentile(elsewhere, 99) * 1.1


def test_padding_is_reflection_however_much_it_takes() -> None:
    row = np.arange(4, dtype=np.uint8).reshape(1, 4, 1).repeat(3, axis=2)
    assert pad_reflected(row, 3, 12)[2, :, 0].tolist() == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1]
    assert pad_reflected(row[:, :1], 2, 3).shape == (2, 3, 3)


def test_the_shipped_model_is_small_and_documented(restorer: Restorer) -> None:
    from idm_core.checkpoint import find_checkpoint

    path = find_checkpoint("idm-64")
    assert path.stat().st_size < 20_000_000
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    assert restorer.model_sha256 in card
