"""The contract's clauses: IDM keeps all of them, and each planted offence is found by the clause that it breaks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from idm_core import Restoration
from idm_core.checkpoint import Config
from idm_core.presets import preset_named
from pipelines.changes import psnr
from pipelines.cli import cli
from pipelines.restorers import Photograph, open_restorer
from pipelines.restorers.contract import CLAUSES, Photographs, check, photographs


@pytest.fixture(scope="module")
def photos() -> Photographs:
    return photographs()


def severity_of(image: Photograph, truth: Photograph) -> float:
    return min(max((44 - (psnr(image, truth) or 44.0)) / 30, 0.0), 1.0)


class Oracle:
    """Knows the truth behind every key, and goes four fifths of the way to it in a step: it keeps every clause."""

    model_sha256 = "0" * 64

    def __init__(self, photos: Photographs) -> None:
        self.config = Config(preset_named("idm-64"), threshold=0.1, steps=1, passes=1)
        self.truth = {f"contract-{i}": image for i, image in enumerate(photos.clean)}

    def restore(
        self,
        images: Sequence[Photograph],
        keys: Sequence[str],
        *,
        steps: int | None = None,
        passes: int | None = None,
        threshold: float | None = None,
    ) -> list[Restoration]:
        least = self.config.threshold if threshold is None else threshold
        results = []
        for place, (image, key) in enumerate(zip(images, keys, strict=True)):
            before = severity_of(image, self.truth[key])
            if before < least:
                results.append(Restoration(image, before, before, 0, 0, "clean", math.inf))
                continue
            made = image
            for _ in range(passes or 1):
                made = self.once(made, self.truth[key], steps or 1, place)
            results.append(Restoration(made, before, 0.0, passes or 1, passes or 1, "passes", math.inf))
            if np.array_equal(made, image):
                results[-1] = replace(results[-1], stop="settled")
        return results

    def once(self, image: Photograph, truth: Photograph, steps: int, place: int) -> Photograph:
        return levels(image + (truth.astype(float) - image) * (1 - 0.2**steps))


def levels(values: object) -> Photograph:
    return np.clip(np.rint(np.asarray(values)), 0, 255).astype(np.uint8)


def grain(image: Photograph, seed: int | None) -> Photograph:
    return levels(image + np.random.default_rng(seed).integers(-1, 2, image.shape))


class DrawsAnew(Oracle):
    def once(self, image: Photograph, truth: Photograph, steps: int, place: int) -> Photograph:
        return grain(super().once(image, truth, steps, place), seed=None)


class DrawsByPlace(Oracle):
    def once(self, image: Photograph, truth: Photograph, steps: int, place: int) -> Photograph:
        return grain(super().once(image, truth, steps, place), seed=place)


class Enlarges(Oracle):
    def once(self, image: Photograph, truth: Photograph, steps: int, place: int) -> Photograph:
        return super().once(image, truth, steps, place).repeat(2, axis=0) if image.shape == truth.shape else image


class ReturnsFloats(Oracle):
    def once(self, image: Photograph, truth: Photograph, steps: int, place: int) -> Photograph:
        return super().once(image, truth, steps, place).astype(np.float32)  # type: ignore[return-value]


class ImprovesGoodOnes(Oracle):
    def once(self, image: Photograph, truth: Photograph, steps: int, place: int) -> Photograph:
        good = severity_of(image, truth) < self.config.threshold
        return levels(image + 6.0) if good else super().once(image, truth, steps, place)


class GoesOnAndOn(Oracle):
    def once(self, image: Photograph, truth: Photograph, steps: int, place: int) -> Photograph:
        good = severity_of(image, truth) < self.config.threshold
        return image if good else levels(image * (1 - 0.03 * steps))


class BoastsOfItsInput(Oracle):
    def restore(self, images: Sequence[Photograph], *args: object, **options: object) -> list[Restoration]:
        results = super().restore(images, *args, **options)  # type: ignore[arg-type]
        return [
            replace(r, image=image, stop="passes") if r.passes and image.shape[1] == 41 else r
            for image, r in zip(images, results, strict=True)
        ]


class ChangesInSilence(Oracle):
    def restore(self, *args: object, **options: object) -> list[Restoration]:
        results = super().restore(*args, **options)  # type: ignore[arg-type]
        return [replace(r, passes=0, stop="clean") if r.image.shape[1] == 41 else r for r in results]


class HeedsNoThreshold(Oracle):
    def restore(self, *args: object, **options: object) -> list[Restoration]:
        return super().restore(*args, **options | {"threshold": 0.0})  # type: ignore[arg-type]


class HeedsNoSteps(Oracle):
    def restore(self, *args: object, **options: object) -> list[Restoration]:
        return super().restore(*args, **options | {"steps": 1})  # type: ignore[arg-type]


class HeedsNoPasses(Oracle):
    def restore(self, *args: object, **options: object) -> list[Restoration]:
        return super().restore(*args, **options | {"passes": 1})  # type: ignore[arg-type]


class RefusesSteps(Oracle):
    def restore(self, *args: object, **options: object) -> list[Restoration]:
        if options["steps"] is not None:
            raise ValueError("it has no steps")
        return super().restore(*args, **options)  # type: ignore[arg-type]


def broken(restorer: Oracle, photos: Photographs) -> dict[str, str]:
    return {name: violation for name, violation in check(restorer, photos) if violation is not None}


@pytest.mark.parametrize("kind", [Oracle, RefusesSteps])
def test_a_good_restorer_keeps_every_clause(kind: type[Oracle], photos: Photographs) -> None:
    assert broken(kind(photos), photos) == {}


def test_the_shipped_restorer_keeps_every_clause(photos: Photographs) -> None:
    assert dict(check(open_restorer("idm-64"), photos)) == dict.fromkeys(CLAUSES)


@pytest.mark.parametrize(
    ("kind", "clause"),
    [
        (DrawsAnew, "deterministic per key"),
        (DrawsByPlace, "independent of the batch"),
        (Enlarges, "same size out"),
        (ReturnsFloats, "same size out"),
        (ImprovesGoodOnes, "clean in, clean out"),
        (GoesOnAndOn, "second application close to the first"),
        (BoastsOfItsInput, "its input is no success"),
        (ChangesInSilence, "its input is no success"),
        (HeedsNoThreshold, "knobs have an effect"),
        (HeedsNoSteps, "knobs have an effect"),
        (HeedsNoPasses, "knobs have an effect"),
    ],
)
def test_each_offence_is_found_by_its_clause_and_by_no_other(
    kind: type[Oracle], clause: str, photos: Photographs
) -> None:
    assert list(broken(kind(photos), photos)) == [clause]


def test_one_that_raises_breaks_what_could_not_be_checked(photos: Photographs) -> None:
    class Breaks(Oracle):
        def once(self, image: Photograph, truth: Photograph, steps: int, place: int) -> Photograph:
            raise KeyError("weights")

    found = broken(Breaks(photos), photos)
    assert found.keys() == CLAUSES.keys() and set(found.values()) == {"KeyError: 'weights'"}


def test_the_command_names_each_clause_and_exits_1_for_a_broken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "a_model_of_mine.py").write_text(
        "import numpy as np\n"
        "class Restless:\n"
        "    def __init__(self, device): pass\n"
        "    def restore(self, images, keys):\n"
        "        grain = [np.random.default_rng().integers(0, 2, i.shape, np.uint8) for i in images]\n"
        "        return [i // 2 * 2 + g for i, g in zip(images, grain)]\n"
    )
    result = CliRunner().invoke(cli, ["check-restorer", "python:a_model_of_mine:Restless"])
    assert result.exit_code == 1, result.output
    lines = result.output.splitlines()
    assert [line.split("  ")[-1].split(":")[0] for line in lines] == list(CLAUSES)
    assert "VIOLATED  deterministic per key: 7 of 7 images came out otherwise when restored again" in lines
    assert "passed    same size out" in lines and "passed    clean in, clean out" in lines
    wrong = CliRunner().invoke(cli, ["check-restorer", "idm-9000"])
    assert wrong.exit_code == 2 and "idm-9000" in wrong.output
