"""Held-out photographs as small truths, and the same damaged with fixed seeds: what the restorer is measured on."""

from __future__ import annotations

import hashlib
import os
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from idm_core.degradations import Recipe, degrade
from idm_core.restorer import Photograph, to_images, to_tensor
from pipelines.faces import FaceModel
from pipelines.faces.face import Points
from pipelines.images import decode
from pipelines.photo_pool import LEAST_REDUCTION
from pipelines.split import split_of

SIDE: Final = 64
DAMAGE_SEED: Final = 20_000  # no training seed


@dataclass(frozen=True, slots=True)
class PhotoSet:
    """An archive in ``IDM_DATA``, and how many truths are cut from each of its photographs."""

    archive: str
    views: int


#: Of the test split: 252 faces, and 18 photographs, each of them looked at in several places.
SETS: Final = {"faces": PhotoSet("faces-sharp.zip", 1), "photographs": PhotoSet("imagenet-sample.zip", 7)}


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """A square of a photograph, reduced.

    Attributes:
        name: of the photograph's file.
        view: 0 is the central square; the others lie anywhere and are smaller.
        image: HxWx3 uint8.
        landmarks: five points of the largest face, pixels of ``image``, as ``pipelines.faces`` has them; None without.
    """

    name: str
    view: int
    image: Photograph
    landmarks: Points | None = None

    @property
    def key(self) -> str:
        """Seeds the damage and the restorer's noise."""
        return f"{self.name} {self.view}"


def truths(
    photos: PhotoSet, split: str, limit: int = 0, *, side: int = SIDE, faces: FaceModel | None = None
) -> list[Truth]:
    """Squares of the photographs of one split, in name order, view by view; reduced by Lanczos.

    Args:
        limit: most photographs; 0 is all.
        side: pixels of a truth. A photograph whose short side is less is left out.
        faces: finds landmarks, once, on the whole photograph, where they are surest.
    """
    found: list[Truth] = []
    with zipfile.ZipFile(Path(os.environ["IDM_DATA"]) / photos.archive) as members:
        names = [n for n in sorted(members.namelist()) if not n.endswith("/") and split_of(n) == split]
        for name in names[: limit or None]:
            photo = decode(members.read(name)).rgb
            if min(photo.shape[:2]) < side:
                continue
            points = next((face.landmarks for face in faces.detect(photo)), None) if faces is not None else None
            for view in range(photos.views):
                left, top, size = _square(photo.shape[1], photo.shape[0], Path(name).name, view, side)
                image = Image.fromarray(photo).resize(
                    (side, side), Image.Resampling.LANCZOS, box=(left, top, left + size, top + size)
                )
                truth = Truth(Path(name).name, view, np.asarray(image))
                if points is not None:
                    inside = (points + 0.5 - (left, top)) * side / size - 0.5
                    if (inside >= 0).all() and (inside <= side - 1).all():
                        truth = replace(truth, landmarks=inside)
                found.append(truth)
    return found


def _square(width: int, height: int, name: str, view: int, side: int) -> tuple[float, float, float]:
    """Left, top and side of a view, pixels of the photograph; a function of its name and the view's number."""
    short = min(width, height)
    if view == 0:
        return (width - short) / 2, (height - short) / 2, short
    draw = np.random.default_rng(list(hashlib.sha256(f"{name} {view}".encode()).digest()))
    size = draw.uniform(min(short, max(LEAST_REDUCTION * side, short / 2)), short)
    return draw.uniform(0, width - size), draw.uniform(0, height - size), size


def damaged(truth: list[Truth], recipe: Recipe) -> list[Photograph]:
    """The truths, each damaged in its own way, the same at every call."""
    keys = [f"{recipe.name} {t.key}" for t in truth]
    return to_images(degrade(to_tensor([t.image for t in truth]), recipe, keys, DAMAGE_SEED)[0])
