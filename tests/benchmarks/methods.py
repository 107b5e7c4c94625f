"""What is compared: the input itself, filters, this restorer at several steps and passes, and checkpoints beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from idm_core import Restorer
from idm_core.restorer import Photograph
from tests.benchmarks.controls import controls

STEPS: Final = (1, 2, 4)
PASSES: Final = (1, 2, 3)
#: Evaluations that a checkpoint of another chain is run at: it has no gate and no passes.
EVALUATIONS: Final = {"direct": (1,), "edm": (8, 50)}


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """What a method made of some images, and the mean number of denoiser evaluations an image."""

    images: list[Photograph]
    evaluations: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Method:
    """A row of the benchmark.

    Attributes:
        run: images and their keys => images.
        brief: whether it is also run on clean and lightly damaged images; the others differ little there, or are slow.
    """

    name: str
    run: Callable[[list[Photograph], list[str]], Output]
    brief: bool = True


def default_name(restorer: Restorer) -> str:
    """The row of the restorer as its checkpoint says it is to be used."""
    return restorer_name(restorer.config.steps, restorer.config.passes)


def restorer_name(steps: int, passes: int) -> str:
    """Row of the restorer at some steps and passes."""
    return f"steps {steps}, passes {passes}"


def methods(restorer: Restorer, beside: dict[str, Restorer], set_name: str, recipe: str) -> list[Method]:
    """All rows for a set and a recipe; the restorer as it ships is the first of its own."""
    rows = [Method("input", lambda images, keys: Output(images))]
    rows += [_filter(name, function) for name, function in controls(set_name, recipe).items()]
    shipped = restorer.config.steps, restorer.config.passes
    grid = [shipped] + [pair for pair in ((s, p) for s in STEPS for p in PASSES) if pair != shipped]
    rows += [_restorer(restorer, steps, passes, brief=(steps, passes) == shipped) for steps, passes in grid]
    for name, other in beside.items():
        counts = EVALUATIONS.get(other.config.preset.chain)
        if counts is None:
            rows.append(_restorer(other, other.config.steps, other.config.passes, name=name))
        else:
            rows += [_ungated(other, name, count) for count in counts]
    return rows


def ungated(restorer: Restorer, images: list[Photograph], keys: list[str], steps: int) -> list[Photograph]:
    """One pass over every image at the severity that the restorer's own network reads in it, under no rule."""
    return restorer.one_pass(images, [f"{key}/1" for key in keys], restorer.severity(images), steps)


def _filter(name: str, function: Callable[[Photograph], Photograph]) -> Method:
    return Method(name, lambda images, keys: Output([function(image) for image in images]))


def _restorer(restorer: Restorer, steps: int, passes: int, *, name: str = "", brief: bool = True) -> Method:
    def run(images: list[Photograph], keys: list[str]) -> Output:
        results = restorer.restore(images, keys, steps=steps, passes=passes)
        return Output([r.image for r in results], float(np.mean([r.evaluations for r in results])))

    return Method(name or restorer_name(steps, passes), run, brief)


def _ungated(restorer: Restorer, name: str, evaluations: int) -> Method:
    def run(images: list[Photograph], keys: list[str]) -> Output:
        return Output(ungated(restorer, images, keys, evaluations), evaluations)

    return Method(baseline_name(name, evaluations), run, brief=evaluations <= 8)


def baseline_name(name: str, evaluations: int) -> str:
    """Row of a checkpoint without a gate."""
    return f"{name}, {evaluations} evaluation{'s' if evaluations > 1 else ''}"
