"""What any restorer has to beat: three filters from textbooks, at the strengths that suit this damage best.

IDM_DATA=... python -m tests.benchmarks.controls        (tunes them again, on the validation split)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Final

import click
import numpy as np
from PIL import Image, ImageFilter

from idm_core.degradations import RECIPES
from idm_core.restorer import Photograph
from tests.benchmarks.figures import psnrs
from tests.benchmarks.held_out import SETS, damaged, truths


def unsharp(image: Photograph, radius: float, percent: int) -> Photograph:
    """Unsharp mask, Pillow's."""
    mask = ImageFilter.UnsharpMask(radius=radius, percent=percent, threshold=0)
    return np.asarray(Image.fromarray(image).filter(mask))


def non_local_means(image: Photograph, h: float, h_colour: float, template: int) -> Photograph:
    """OpenCV's fastNlMeansDenoisingColored, with its usual search window of 21 pixels."""
    import cv2

    bgr = np.ascontiguousarray(image[..., ::-1])
    return np.ascontiguousarray(cv2.fastNlMeansDenoisingColored(bgr, None, h, h_colour, template, 21)[..., ::-1])


def bilateral(image: Photograph, diameter: int, colour: float, space: float) -> Photograph:
    """OpenCV's bilateral filter."""
    import cv2

    return np.asarray(cv2.bilateralFilter(np.ascontiguousarray(image), diameter, colour, space))


FILTERS: Final[dict[str, Callable[..., Photograph]]] = {
    "unsharp mask": unsharp,
    "non-local means": non_local_means,
    "bilateral": bilateral,
}
GRIDS: Final[dict[str, dict[str, tuple[float, ...]]]] = {
    "unsharp mask": {"radius": (0.5, 1, 1.5, 2, 3), "percent": (15, 30, 60, 100, 150, 200, 300)},
    "non-local means": {"h": (1, 2, 3, 5, 8), "h_colour": (1, 3, 6, 10), "template": (3, 5, 7)},
    "bilateral": {"diameter": (3, 5, 7, 9), "colour": (6, 12, 25, 50, 100), "space": (0.5, 1, 2, 4)},
}
#: The best mean PSNR over the grid, for each recipe and set, on 100 photographs of the validation split: a control may
#: know what it is up against, the restorer may not. Behind each, what it gained there.
# fmt: off
TUNED: Final[dict[tuple[str, str, str], dict[str, Any]]] = {
    ("unsharp mask", "faces", "mild"): {"radius": 1.5, "percent": 60},  # +0.65 dB
    ("non-local means", "faces", "mild"): {"h": 1, "h_colour": 3, "template": 3},  # +0.03 dB
    ("bilateral", "faces", "mild"): {"diameter": 9, "colour": 25, "space": 2},  # +0.10 dB
    ("unsharp mask", "faces", "heavy"): {"radius": 3, "percent": 30},  # +0.24 dB
    ("non-local means", "faces", "heavy"): {"h": 3, "h_colour": 3, "template": 3},  # +0.08 dB
    ("bilateral", "faces", "heavy"): {"diameter": 9, "colour": 25, "space": 4},  # +0.16 dB
    ("unsharp mask", "photographs", "mild"): {"radius": 1.5, "percent": 60},  # +0.52 dB
    ("non-local means", "photographs", "mild"): {"h": 1, "h_colour": 3, "template": 3},  # +0.02 dB
    ("bilateral", "photographs", "mild"): {"diameter": 9, "colour": 12, "space": 4},  # +0.05 dB
    ("unsharp mask", "photographs", "heavy"): {"radius": 3, "percent": 15},  # +0.06 dB
    ("non-local means", "photographs", "heavy"): {"h": 3, "h_colour": 3, "template": 3},  # +0.09 dB
    ("bilateral", "photographs", "heavy"): {"diameter": 9, "colour": 25, "space": 4},  # +0.15 dB
}
# fmt: on


def controls(set_name: str, recipe: str) -> dict[str, Callable[[Photograph], Photograph]]:
    """The filters by name, as tuned for a set and a recipe; those without one of their own take mild damage's."""
    damage = recipe if recipe in ("mild", "heavy") else "mild"

    def filled(name: str) -> Callable[[Photograph], Photograph]:
        return lambda image: FILTERS[name](image, **TUNED[name, set_name, damage])

    return {name: filled(name) for name in FILTERS}


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--limit", default=100, help="Photographs of each set.")
def main(limit: int) -> None:
    """Print ``TUNED``, with the gain in dB of each."""
    import cv2

    cv2.setNumThreads(1)
    for set_name, recipe in itertools.product(SETS, ("mild", "heavy")):
        truth = truths(SETS[set_name], "validation", limit)
        images, y = [t.image for t in truth], damaged(truth, RECIPES[recipe])
        before = psnrs(images, y).mean()
        for name, grid in GRIDS.items():
            gains = {}
            for values in itertools.product(*grid.values()):
                options = dict(zip(grid, values, strict=True))
                restored = [FILTERS[name](image, **options) for image in y]
                gains[values] = psnrs(images, restored).mean() - before
            best = max(gains, key=lambda values: gains[values])
            options = dict(zip(grid, best, strict=True))
            click.echo(f'    ("{name}", "{set_name}", "{recipe}"): {options},  # {gains[best]:+.2f} dB')


if __name__ == "__main__":
    main()
