"""The contract of a restorer, clause by clause, checked on photographs. Run it on yours:

    idm-curate check-restorer python:mine:Mine

or, in a test, ``dict(check(open_restorer("python:mine:Mine"), photographs()))``. The restorer is handed everything,
whatever its severity: so a clause speaks of the restorer itself, and not of the severity that in a run keeps good
photographs from it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np

from pipelines.changes import psnr
from pipelines.restorers import Photograph, Restorer

if TYPE_CHECKING:
    from idm_core import Restoration

#: dB to a clean photograph from which on a change is hardly seen, and the share of them that have to reach it.
CLEAN_PSNR: Final = 40.0
CLEAN_SHARE: Final = 0.9
#: How much of the first application's change the second may make, by root mean square; the median photograph.
SETTLING: Final = 0.5
SIDE: Final = 64
DAMAGE_SEED: Final = 30_000  # no training seed, nor one of the benchmarks'


@dataclass(frozen=True, slots=True, eq=False)
class Photographs:
    """What a restorer is checked on: undamaged ones of several sizes, HxWx3 uint8, and the same damaged."""

    clean: list[Photograph]
    damaged: list[Photograph]


class Trial:
    """A restorer and what one pass of it makes of some photographs; restored when that is first asked for."""

    def __init__(self, restorer: Restorer, photos: Photographs) -> None:
        self.restorer, self.photos = restorer, photos

    @cached_property
    def damaged(self) -> list[Restoration]:
        return self.all(self.photos.damaged)

    @cached_property
    def clean(self) -> list[Restoration]:
        return self.all(self.photos.clean)

    def all(
        self,
        images: Sequence[Photograph],
        *,
        order: Sequence[int] | None = None,
        steps: int | None = None,
        passes: int = 1,
        threshold: float = 0.0,
    ) -> list[Restoration]:
        """Each image restored, by default whatever its severity; handed over in that order, returned so too."""
        order = range(len(images)) if order is None else order
        handed = [images[i].copy() for i in order]  # it may write to them
        keys = [f"contract-{i}" for i in order]
        results = self.restorer.restore(handed, keys, steps=steps, passes=passes, threshold=threshold)
        if len(results) != len(order):
            raise ValueError(f"{len(results)} results for {len(order)} images")
        return results


#: A violation in words, or None.
Clause = Callable[[Trial], str | None]


def photographs() -> Photographs:
    """Of scikit-image's: squares, an odd size, and one of several tiles; after mild and heavy damage in turns."""
    from PIL import Image
    from skimage import data

    from idm_core.degradations import RECIPES, degrade
    from idm_core.restorer import to_images, to_tensor

    photos = [data.astronaut(), data.coffee(), data.chelsea()]  # type: ignore[no-untyped-call]
    astronaut, coffee, chelsea = (np.asarray(Image.fromarray(p).reduce(2)) for p in photos)  # sharp, free of artefacts
    places = [(astronaut, 0, 96), (astronaut, 64, 64), (coffee, 32, 64), (coffee, 64, 192), (chelsea, 40, 64)]
    clean = [photo[y : y + SIDE, x : x + SIDE].copy() for photo, y, x in places]
    clean += [astronaut[16:66, 88:129].copy(), coffee[24:88, 8:280].copy()]
    damaged: list[Photograph] = []
    for i, image in enumerate(clean):
        recipe = RECIPES[("mild", "heavy")[i % 2]]
        damaged += to_images(degrade(to_tensor([image]), recipe, [f"contract {i}"], DAMAGE_SEED)[0])
    return Photographs(clean, damaged)


def check(restorer: Restorer, photos: Photographs) -> Iterator[tuple[str, str | None]]:
    """Each clause with what violates it, or None; one that raises is violated by that."""
    trial = Trial(restorer, photos)
    for name, clause in CLAUSES.items():
        try:
            yield name, clause(trial)
        except Exception as error:  # the boundary to code of others: whatever it raises is a finding
            yield name, f"{type(error).__name__}: {error}"


def repeats(trial: Trial) -> str | None:
    """The same image with the same key is the same bytes."""
    again = trial.all(trial.photos.damaged)
    return _count("came out otherwise when restored again", _different(trial.damaged, again))


def stands_alone(trial: Trial) -> str | None:
    """The images beside it, and their order, change no byte of an image."""
    count = len(trial.damaged)
    otherwise = _different(trial.damaged, trial.all(trial.photos.damaged, order=range(count)[::-1])[::-1])
    for i in range(0, count, 3):
        otherwise[i] |= any(_different([trial.damaged[i]], trial.all(trial.photos.damaged, order=[i])))
    if any(otherwise):  # even with the same beside them? Then another clause says so
        unsteady = _different(trial.damaged, trial.all(trial.photos.damaged))
        otherwise = [o and not u for o, u in zip(otherwise, unsteady, strict=True)]
    return _count("came out otherwise alone, or in another order", otherwise)


def keeps_size(trial: Trial) -> str | None:
    """An image of the same height and width comes back, uint8."""
    for image, r in zip(trial.photos.damaged, trial.damaged, strict=True):
        if not _fits(r, image):
            return f"for uint8 {image.shape} it returned {r.image.dtype} {r.image.shape}"
    return None


def leaves_clean(trial: Trial) -> str | None:
    """An undamaged photograph comes back so that no difference is seen, though it was handed over."""
    distances = [
        psnr(r.image, image) or 0.0
        for image, r in zip(trial.photos.clean, trial.clean, strict=True)
        if _fits(r, image)  # else another clause says so
    ]
    changed = sum(d < CLEAN_PSNR for d in distances)
    if changed <= (1 - CLEAN_SHARE) * len(distances):
        return None
    return (
        f"{changed} of {len(distances)} undamaged photographs came back changed, below {CLEAN_PSNR:.0f} dB; the worst "
        f"at {min(distances):.1f} dB"
    )


def settles(trial: Trial) -> str | None:
    """What it has restored it finds in order: a second application changes much less than the first."""
    first = [
        (image, r.image)
        for image, r in zip(trial.photos.damaged, trial.damaged, strict=True)
        if _fits(r, image)  # else another clause says so
    ]
    second = trial.all([once for _, once in first])
    changes = [
        (_rms(twice.image, once), _rms(once, image))
        for (image, once), twice in zip(first, second, strict=True)
        if _fits(twice, once)
    ]
    shares = [again / before if before else (math.inf if again else 0.0) for again, before in changes]
    if not shares or (median := float(np.median(shares))) <= SETTLING:
        return None
    return (
        f"applied again it changes {median:.2f} times as much as at first (the median); settled is {SETTLING} at most"
    )


def reports_truly(trial: Trial) -> str | None:
    """What is reported as restored differs from the input, and what is reported as left alone does not.

    An image may come back as it was if the report says so: no passes, ``settled`` or ``declined``.
    """
    images, results = [*trial.photos.damaged, *trial.photos.clean], [*trial.damaged, *trial.clean]
    same = [np.array_equal(r.image, image) for image, r in zip(images, results, strict=True)]
    claimed = [s and r.passes > 0 and r.stop not in ("settled", "declined") for r, s in zip(results, same, strict=True)]
    silent = [not s and r.passes == 0 for r, s in zip(results, same, strict=True)]
    return _count("were reported as restored and are their input", claimed) or _count(
        "were reported as left alone and are changed", silent
    )


def heeds_knobs(trial: Trial) -> str | None:
    """``threshold``, ``steps`` and ``passes`` each change something, or are refused with a ValueError."""
    images = trial.photos.damaged
    spared = trial.all(images, threshold=1.0)
    changed = [r.severity < 1 and not np.array_equal(r.image, image) for image, r in zip(images, spared, strict=True)]
    if any(changed):
        return f"threshold=1 is above every severity, and {sum(changed)} of {len(images)} images are changed"
    if not any(r.passes for r in trial.damaged):
        return "threshold=0 is under every severity, and no image is restored"
    base = _outcome(trial.damaged)
    with contextlib.suppress(ValueError):  # refused
        if _outcome(trial.all(images, steps=(more := trial.restorer.config.steps + 3))) == base:
            return f"steps={more} is accepted, and nothing comes out otherwise than without"
    with contextlib.suppress(ValueError):
        if _outcome(trial.all(images, passes=3)) == base:
            return "passes=3 is accepted, and nothing comes out otherwise than by one pass"
    return None


#: Every clause by its name, in the order in which they are checked.
CLAUSES: Final[dict[str, Clause]] = {
    "deterministic per key": repeats,
    "independent of the batch": stands_alone,
    "same size out": keeps_size,
    "clean in, clean out": leaves_clean,
    "second application close to the first": settles,
    "its input is no success": reports_truly,
    "knobs have an effect": heeds_knobs,
}


def _fits(result: Restoration, image: Photograph) -> bool:
    return result.image.shape == image.shape and result.image.dtype == np.uint8


def _outcome(results: Sequence[Restoration]) -> list[tuple[bytes, int]]:
    return [(r.image.tobytes(), r.evaluations) for r in results]


def _different(a: Sequence[Restoration], b: Sequence[Restoration]) -> list[bool]:
    return [not np.array_equal(x.image, y.image) for x, y in zip(a, b, strict=True)]


def _count(what: str, found: Sequence[bool]) -> str | None:
    return f"{sum(found)} of {len(found)} images {what}" if any(found) else None


def _rms(a: Photograph, b: Photograph) -> float:
    return float(np.sqrt(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)))
