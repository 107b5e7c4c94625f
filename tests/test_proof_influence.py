"""Which dirt costs most: derivatives against finite differences, coverage, and a planted kind that comes out worst."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from manifests.errors import ConfigError
from pipelines.measure import measure
from pipelines.metrics.frechet import Statistics, distances_to, frechet_distance, statistics_of
from pipelines.metrics.influence_function import distance_and_influence
from pipelines.proof.influence import as_text, costs, kinds_of
from tests.photographs import Pixels, blurred, crops, png

D = 4


def drawn(seed: int, number: int, shift: float = 0.0, spread: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, spread, (number, D))


def mixture(seed: int, number: int) -> tuple[np.ndarray, list[str | None]]:
    """Half of it as the reference; kinds that cost much, a little, and nothing."""
    draw = np.random.default_rng(seed)
    kinds = draw.choice([None, "worst", "mild", "harmless"], number, p=[0.5, 0.1, 0.2, 0.2])
    shift = np.select([kinds == "worst", kinds == "mild"], [2.0, 0.5], 0.0)
    return draw.normal(0, 1, (number, D)) + shift[:, None], kinds.tolist()


def test_the_distance_is_the_distance_and_its_influence_the_derivative() -> None:
    features, reference = drawn(0, 400, 0.3, 1.3), statistics_of(drawn(1, 500))
    distance, influence = distance_and_influence(features, reference)
    assert distance == pytest.approx(frechet_distance(statistics_of(features), reference), rel=1e-9)
    assert influence is not None and abs(influence.mean()) < 1e-9
    ours, step = statistics_of(features), 1e-5
    for i in (0, 17, 230):
        x = features[i] - ours.mean
        covariance = (1 - step) * ours.covariance + step * (1 - step) * np.outer(x, x)
        heavier = Statistics(ours.n, ours.mean + step * x, covariance * (ours.n - 1))
        change = distances_to(reference, [heavier])[0] - distance
        assert influence[i] == pytest.approx(change / step, rel=1e-3, abs=0.01)


def test_a_planted_bad_kind_comes_out_worst_and_a_harmless_one_costs_nothing() -> None:
    features, kinds = mixture(3, 4000)
    found = costs(features, kinds, ["harmless", "mild", "worst"], statistics_of(drawn(4, 4000)))
    assert found[0].kind == "worst"
    by = {cost.kind: cost.left_out for cost in found}
    assert by["worst"] is not None and by["worst"].low is not None and by["worst"].low > 0
    assert by["mild"] is not None and by["mild"].high is not None and by["mild"].high < by["worst"].low
    # Without harmless images the bad ones are more of what is left: leaving them out does harm.
    assert by["harmless"] is not None and by["harmless"].value < 0
    assert sum(cost.images for cost in found) == sum(kind is not None for kind in kinds)
    assert found[0].share == pytest.approx(0.1, abs=0.02)


def test_restoring_a_kind_wins_back_what_it_costs() -> None:
    features, kinds = mixture(5, 3000)
    truth = drawn(6, 3000)
    restored = np.where((np.array(kinds, object) == "worst")[:, None], truth, features)
    (worst, mild) = costs(features, kinds, ["worst", "mild"], statistics_of(drawn(7, 3000)), restored)
    assert worst.restored is not None and worst.restored.low is not None and worst.restored.low > 0
    assert mild.restored is not None and (mild.restored.value, mild.restored.low) == (0, 0), "nothing was changed"


def test_intervals_cover_the_truth() -> None:
    reference = statistics_of(drawn(8, 200_000))
    features, kinds = mixture(9, 300_000)
    truth = {c.kind: c.left_out.value for c in costs(features, kinds, ["worst", "mild"], reference) if c.left_out}
    covered = []
    for seed in range(250):
        features, kinds = mixture(100 + seed, 800)
        for cost in costs(features, kinds, ["worst", "mild"], reference, seed=seed):
            assert cost.left_out is not None and cost.left_out.low is not None and cost.left_out.high is not None
            covered.append(cost.left_out.low <= truth[cost.kind] <= cost.left_out.high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.03)


def test_too_few_images_have_no_interval_and_an_empty_kind_no_cost() -> None:
    features = np.random.default_rng(0).normal(0, 1, (30, 20))
    kinds = ["a"] * 10 + [None] * 20
    a, b = costs(features, kinds, ["a", "b"], statistics_of(np.random.default_rng(1).normal(0, 1, (90, 20))))
    assert a.left_out is not None and a.left_out.low is None
    assert (b.images, b.left_out, b.restored) == (0, None, None)


def planted(pixels: Pixels, kind: str | None, draw: np.random.Generator) -> tuple[Pixels, bytes | None]:
    if kind == "blur":
        return blurred(pixels, 2.0), None
    if kind == "noise":
        return (pixels + draw.normal(0, 18, pixels.shape)).clip(0, 255).astype(np.uint8), None
    if kind == "jpeg":
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=8)
        return np.asarray(Image.open(buffer)), buffer.getvalue()
    return pixels, png(pixels)


def test_planted_damage_is_told_by_its_kind_from_what_was_measured() -> None:
    draw = np.random.default_rng(0)
    truth: list[str | None] = [[None, None, "blur", "noise", "jpeg"][i % 5] for i in range(150)]
    rows = []
    for pixels, kind in zip(crops(150, 64), truth, strict=True):
        rows.append({**measure(*planted(pixels, kind, draw)), "severity": 0.6 if kind else 0.05})
    found = kinds_of(rows, ["blur", "noise", "jpeg"], 0.2)
    for kind in ("blur", "noise", "jpeg"):
        right = [f == kind for f, t in zip(found, truth, strict=True) if t == kind]
        assert np.mean(right) > 0.75, kind
    assert np.mean([f is None for f, t in zip(found, truth, strict=True) if t is None]) > 0.7
    with pytest.raises(ConfigError, match="one of blur, noise, jpeg, upscaled"):
        kinds_of(rows, ["dust"], 0.2)


def test_as_text_says_what_would_change() -> None:
    cost = {"value": 2.0, "low": 1.0, "high": 3.0}
    kind = {"kind": "blur", "images": 30, "share": 0.3, "left_out": cost, "restored": None}
    found = {"figure": "FD", "reference": "held-out", "images": 100, "of": 100, "resolution": 32, "kinds": [kind]}
    assert as_text(found)[1] == "blur            30 images, 30.0 %; without it -2 (-3 to -1)"
    assert "100 images at 32 px" in as_text(found)[0]
    assert "100 images drawn of 200 at 32 px" in as_text(found | {"of": 200})[0]
