"""Synthetic damage: the same for the same key, whatever the batch; of the strength that its record says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from idm_core.degradations import MIXTURE, RECIPES, Recipe, degrade, mixture, quantise
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
    recipe = RECIPES[name] if name else MIXTURE
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
    damaged, _ = degrade(images, MIXTURE, KEYS, 0)
    assert torch.equal(damaged, quantise(damaged))
    assert damaged.min() >= 0
    assert damaged.max() <= 1


@pytest.mark.parametrize(
    ("field", "low", "high", "kind"),
    [
        ("blur", 5.0, 12.0, {}),
        ("blur", 5.0, 12.0, {"motion": 1.0}),
        ("downsample", 10.0, 30.0, {}),
        ("noise", 2.0, 15.0, {}),
        ("noise", 2.0, 15.0, {"poisson": 1.0}),
        ("quality", 90.0, 30.0, {}),
        ("quality", 90.0, 30.0, {"webp": 1.0}),
    ],
)
def test_each_kind_of_damage_grows_with_its_strength(
    images: Tensor, field: str, low: float, high: float, kind: dict[str, float]
) -> None:
    recipe = Recipe("one", **kind)
    weak, strong = (degrade(images, replace(recipe, **{field: (r, r)}), KEYS, 0)[0] for r in (low, high))
    assert bool((true_severity(images, weak) > 0).all())
    assert bool((true_severity(images, strong) > true_severity(images, weak)).all())


def test_records_are_in_the_images_own_pixels(images: Tensor) -> None:
    recipe = Recipe(
        "one", blur=(8.0, 8.0), anisotropic=0.0, downsample=(16.0, 16.0), noise=(5.0, 5.0), quality=(70.0, 70.0)
    )
    _, [damage, *_] = degrade(images, recipe, KEYS, 0)
    [step] = damage.steps
    assert step.blur_sigma == (1.0, 1.0)  # 8 of 512 is 1 of 64
    assert step.downsample == 2.0
    assert (step.noise_sigma, step.quality) == (5.0, 70)


def test_noise_has_the_strength_that_is_recorded() -> None:
    grey = torch.full((1, 3, 256, 256), 0.5)
    damaged, _ = degrade(grey, Recipe("one", noise=(10.0, 10.0)), ["k"], 0)
    assert (damaged - grey).std().item() * 255 == pytest.approx(10, rel=0.02)


def test_poisson_noise_has_that_strength_at_mid_grey_and_less_in_the_dark() -> None:
    grey = torch.full((1, 3, 256, 256), 0.5)
    for level, sigma in ((0.5, 10), (0.125, 5)):
        damaged, _ = degrade(grey / 0.5 * level, Recipe("one", noise=(10.0, 10.0), poisson=1.0), ["k"], 0)
        assert (damaged - level).std().item() * 255 == pytest.approx(sigma, rel=0.03)
        assert damaged.mean().item() == pytest.approx(level, abs=0.002)


def test_motion_blurs_along_a_line_of_the_recorded_spread() -> None:
    point = torch.zeros(1, 3, 129, 129)
    point[..., 64, 64] = 1
    damaged, [damage] = degrade(point, Recipe("one", blur=(20.0, 20.0), motion=1.0), ["k"], 5)
    [step] = damage.steps
    assert step.blur == "motion" and step.blur_sigma is not None and step.blur_angle is not None
    weights = damaged[0, 0] / damaged[0, 0].sum()
    rows, columns = torch.meshgrid(torch.arange(129.0) - 64, torch.arange(129.0) - 64, indexing="ij")
    angle = torch.tensor(step.blur_angle)
    along = columns * angle.cos() + rows * angle.sin()
    across = rows * angle.cos() - columns * angle.sin()
    assert (weights * along.square()).sum().sqrt().item() == pytest.approx(step.blur_sigma[0], rel=0.1)
    assert (weights * across.square()).sum().sqrt().item() < 0.6


def test_colour_casts_and_greying_do_what_their_record_says(images: Tensor) -> None:
    dim = images * 0.5  # so that no channel is clipped
    damaged, records = degrade(dim, Recipe("one", cast=0.3), KEYS, 0)
    for image, before, record in zip(damaged, dim, records, strict=True):
        [step] = record.steps
        assert step.cast is not None and all(0.74 < gain < 1.35 for gain in step.cast)
        assert torch.allclose(image, before * torch.tensor(step.cast)[:, None, None], atol=0.6 / 255)
    grey, records = degrade(images, Recipe("one", grey=1.0), KEYS, 0)
    assert all(record.steps[0].grey for record in records)
    assert torch.equal(grey[:, 0], grey[:, 1]) and torch.equal(grey[:, 0], grey[:, 2])


def test_another_share_of_clean_images_leaves_the_others_in_proportion() -> None:
    shares = {name: share for share, name in mixture(0.4)}
    before = {name: share for share, name in MIXTURE}
    assert shares["clean"] == 0.4 and sum(shares.values()) == pytest.approx(1)
    assert shares["mild"] / shares["heavy"] == pytest.approx(before["mild"] / before["heavy"])


def test_the_mixture_is_drawn_in_its_shares() -> None:
    _, records = degrade(torch.rand(400, 3, 8, 8), MIXTURE, [str(i) for i in range(400)], 0)
    for share, name in MIXTURE:
        assert sum(r.recipe == name for r in records) / 400 == pytest.approx(share, abs=0.06)
    assert sum(share for share, _ in MIXTURE) == pytest.approx(1)


@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (17, 64)])
def test_odd_shapes(shape: tuple[int, int]) -> None:
    damaged, _ = degrade(torch.rand(1, 3, *shape), RECIPES["heavy"], ["k"], 0)
    assert damaged.shape == (1, 3, *shape)


def test_as_many_keys_as_images(images: Tensor) -> None:
    with pytest.raises(ValueError, match="8 images but 1 keys"):
        degrade(images, MIXTURE, ["k"], 0)
