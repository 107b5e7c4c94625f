"""Synthetic damage: the same for the same key, whatever the batch; of the strength that its record says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from idm_core.degradations import MIXTURE, RECIPES, Recipe, degrade, quantise
from idm_core.severity import true_severity


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Eight crops of the astronaut at 64 pixels, NCHW in [0, 1]."""
    from skimage import data

    photo = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None].float() / 255
    photo = torch.nn.functional.interpolate(photo, (256, 256), mode="area")
    return quantise(torch.cat([photo[..., y : y + 64, x : x + 64] for y in (0, 64) for x in (0, 64, 128, 192)]))


KEYS = [f"photo {i}" for i in range(8)]


@pytest.mark.parametrize("name", [*RECIPES, None])
def test_batch_and_order_do_not_matter(images: Tensor, name: str | None) -> None:
    recipe = RECIPES[name] if name else None
    together, records = degrade(images, recipe, KEYS, seed=3)
    for i in (5, 0, 7):
        alone, [record] = degrade(images[i : i + 1], recipe, [KEYS[i]], seed=3)
        assert torch.equal(alone[0], together[i])
        assert record == records[i]


def test_seed_and_key_both_count(images: Tensor) -> None:
    first, _ = degrade(images, RECIPES["heavy"], KEYS, seed=0)
    other_seed, _ = degrade(images, RECIPES["heavy"], KEYS, seed=1)
    other_keys, _ = degrade(images, RECIPES["heavy"], KEYS[::-1], seed=0)
    assert not torch.equal(first, other_seed)
    assert not torch.equal(first, other_keys)


def test_clean_is_untouched_and_the_rest_gets_worse(images: Tensor) -> None:
    severity = {n: true_severity(images, degrade(images, r, KEYS, 0)[0]).mean().item() for n, r in RECIPES.items()}
    assert severity["clean"] == 0
    assert 0 < severity["light"] < severity["mild"] < severity["heavy"]


def test_results_are_eight_bit_images(images: Tensor) -> None:
    damaged, _ = degrade(images, None, KEYS, 0)
    assert torch.equal(damaged, quantise(damaged))
    assert damaged.min() >= 0
    assert damaged.max() <= 1


@pytest.mark.parametrize(
    ("field", "low", "high"),
    [("blur", 5.0, 12.0), ("downsample", 10.0, 30.0), ("noise", 2.0, 15.0), ("jpeg", 90.0, 30.0)],
)
def test_each_kind_of_damage_grows_with_its_strength(images: Tensor, field: str, low: float, high: float) -> None:
    weak, strong = (degrade(images, replace(Recipe("one"), **{field: (r, r)}), KEYS, 0)[0] for r in (low, high))
    assert bool((true_severity(images, weak) > 0).all())
    assert bool((true_severity(images, strong) > true_severity(images, weak)).all())


def test_records_are_in_the_images_own_pixels(images: Tensor) -> None:
    recipe = Recipe(
        "one", blur=(8.0, 8.0), anisotropic=0.0, downsample=(16.0, 16.0), noise=(5.0, 5.0), jpeg=(70.0, 70.0)
    )
    _, [damage, *_] = degrade(images, recipe, KEYS, 0)
    [step] = damage.steps
    assert step.blur_sigma == (1.0, 1.0)  # 8 of 512 is 1 of 64
    assert step.downsample == 2.0
    assert (step.noise_sigma, step.jpeg_quality) == (5.0, 70)


def test_noise_has_the_strength_that_is_recorded() -> None:
    grey = torch.full((1, 3, 256, 256), 0.5)
    damaged, _ = degrade(grey, Recipe("one", noise=(10.0, 10.0)), ["k"], 0)
    assert (damaged - grey).std().item() * 255 == pytest.approx(10, rel=0.02)


def test_the_mixture_is_drawn_in_its_shares() -> None:
    _, records = degrade(torch.rand(400, 3, 8, 8), None, [str(i) for i in range(400)], 0)
    for share, name in MIXTURE:
        assert sum(r.recipe == name for r in records) / 400 == pytest.approx(share, abs=0.06)
    assert sum(share for share, _ in MIXTURE) == pytest.approx(1)


@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (17, 64)])
def test_odd_shapes(shape: tuple[int, int]) -> None:
    damaged, _ = degrade(torch.rand(1, 3, *shape), RECIPES["heavy"], ["k"], 0)
    assert damaged.shape == (1, 3, *shape)


def test_as_many_keys_as_images(images: Tensor) -> None:
    with pytest.raises(ValueError, match="8 images but 1 keys"):
        degrade(images, None, ["k"], 0)
