"""A small dataset with known damage, cut from the photographs that scikit-image and matplotlib install.

Written once into a run directory: ``raw/images/`` is the dataset, ``raw/truth/`` the same crops before any damage,
``raw/metadata.jsonl`` the record of what was done to which, with what seed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

from manifests.errors import SourceError
from pipelines import images
from pipelines.datasets.entry import Dataset
from pipelines.datasets.folder import METADATA, entries_of_files
from pipelines.datasets.listing import list_files
from pipelines.datasets.truth import with_truth

if TYPE_CHECKING:
    from idm_core.degradations import Recipe

Pixels = np.ndarray[Any, np.dtype[np.uint8]]  # HW3

HOMEPAGE: Final = "https://scikit-image.org/docs/stable/api/skimage.data.html"
LICENCE: Final = (
    "Free photographs, cropped, scaled and in part damaged on purpose. astronaut, hubble_deep_field: NASA, public "
    "domain. coffee (Rachel Michetti), chelsea (Stefan van der Walt), camera (Lav Varshney), brick, grass, gravel "
    "(CC0 Textures): CC0. rocket: SpaceX, public domain. ihc, coins: no known copyright "
    "restrictions. grace_hopper: U.S. Navy, public domain. motorcycle_left: Middlebury 2014 stereo benchmark; cite "
    "Scharstein et al., High-resolution stereo datasets with subpixel-accurate ground truth, GCPR 2014."
)

CROPS: Final = 270
EXACT_DUPLICATES: Final = 4
NEAR_DUPLICATES: Final = 4
#: Images in the dataset.
COUNT: Final = CROPS + EXACT_DUPLICATES + NEAR_DUPLICATES
#: Of the crops, how many are damaged, in tenths.
DAMAGED_TENTHS: Final = 4
SEED: Final = 20230717

#: package, file, factor by which it is reduced (so that crops are sharp, and JPEG artefacts gone), crop side in pixels
PHOTOGRAPHS: Final = (
    ("skimage", "data/astronaut.png", 1.75, 64),
    ("skimage", "data/astronaut.png", 2.65, 64),
    ("skimage", "data/coffee.png", 1.75, 64),
    ("skimage", "data/chelsea.png", 1.75, 64),
    ("skimage", "data/motorcycle_left.png", 1.75, 64),
    ("skimage", "data/motorcycle_left.png", 2.50, 96),
    ("skimage", "data/rocket.jpg", 2.00, 64),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg", 1.75, 64),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg", 3.00, 64),
    ("skimage", "data/hubble_deep_field.jpg", 2.00, 64),
    ("skimage", "data/ihc.png", 1.75, 64),
    ("skimage", "data/ihc.png", 2.65, 64),
    ("skimage", "data/camera.png", 1.75, 64),
    ("skimage", "data/camera.png", 2.65, 64),
    ("skimage", "data/coins.png", 1.75, 64),
    ("skimage", "data/brick.png", 1.75, 64),
    ("skimage", "data/brick.png", 2.65, 64),
    ("skimage", "data/grass.png", 1.75, 64),
    ("skimage", "data/grass.png", 2.65, 64),
    ("skimage", "data/gravel.png", 1.75, 64),
    ("skimage", "data/gravel.png", 2.65, 64),
)
#: 90th percentile of the absolute Laplacian of the luma, in 1/255: below, a crop has nothing to lose by damage.
LEAST_DETAIL: Final = 12.0


def open_sample(run_dir: Path) -> Dataset:
    """Open the sample of a run directory, and build it there first if it is not there yet.

    Raises:
        SourceError: a photograph is missing from the installed packages.
    """
    raw = run_dir / "raw"
    if not raw.is_dir():
        build_sample(raw, run_dir / ".staging" / "raw")
    files = [f for f in list_files(str(raw)).files if f.source_name.startswith(("images/", METADATA))]
    entries, problems = entries_of_files(files)
    return Dataset("sample", str(raw), LICENCE, HOMEPAGE, with_truth(entries, str(raw / "truth")), tuple(problems))


def build_sample(target: Path, staging: Path) -> None:
    """Write the sample to ``target``, which appears complete or not at all.

    Args:
        target: a folder that is not there yet.
        staging: a folder on the same file system; what an interrupted build left there is removed.
    """
    if staging.exists():
        shutil.rmtree(staging)
    (staging / "images").mkdir(parents=True)
    (staging / "truth").mkdir()
    with (staging / METADATA).open("w", encoding="utf-8") as table:
        for suffix, data, truth, row in _samples():
            name = f"{row['name']}.{suffix}"
            (staging / "images" / name).write_bytes(data)
            (staging / "truth" / f"{row['name']}.png").write_bytes(truth)
            row = {"file_name": f"images/{name}", "truth": f"truth/{row.pop('name')}.png"} | row
            table.write(json.dumps(row, sort_keys=True) + "\n")
        table.flush()
        os.fsync(table.fileno())
    os.replace(staging, target)


def _samples() -> Iterator[tuple[str, bytes, bytes, dict[str, Any]]]:
    """Yield suffix, file, truth as PNG, and metadata of each sample."""
    crops = list(_crops())
    if len(crops) < CROPS:
        raise SourceError(f"the installed photographs give {len(crops)} crops with detail, {CROPS} are needed")
    crops = [crops[i * len(crops) // CROPS] for i in range(CROPS)]
    by_lot = sorted(range(CROPS), key=lambda i: _digest(crops[i][0]))
    damaged = {i: rank for rank, i in enumerate(by_lot[: CROPS * DAMAGED_TENTHS // 10])}
    copied = by_lot[-EXACT_DUPLICATES - NEAR_DUPLICATES :]

    for i, (name, photograph, crop) in enumerate(crops):
        truth = images.encode_png(crop)
        about = {"name": name, "group": photograph, "damage": None, "duplicate_of": None}
        if i in damaged:
            data, suffix, record = _damage(crop, name, damaged[i])
            yield suffix, data, truth, about | {"damage": record}
        else:
            yield "png", truth, truth, about
        if i in copied[:EXACT_DUPLICATES]:
            duplicate = {"of": name, "kind": "exact"}
            yield "png", truth, truth, about | {"name": f"{name}-copy", "duplicate_of": duplicate}
        elif i in copied:
            record = {"kind": "jpeg", "seed": SEED, "parameters": {"codec": "JPEG", "quality": 90}}
            duplicate = {"of": name, "kind": "near"}
            near = about | {"name": f"{name}-resaved", "damage": record, "duplicate_of": duplicate}
            yield "jpg", _jpeg(crop, 90), truth, near


def _crops() -> Iterator[tuple[str, str, Pixels]]:
    """Yield name, photograph and pixels of every crop that has detail; crops at one scale do not overlap."""
    for package, path, factor, side in PHOTOGRAPHS:
        found = importlib.util.find_spec(package)
        file = Path(*(found.submodule_search_locations or ["?"]) if found else ["?"]) / path
        if not file.is_file():
            raise SourceError(f"{package} has no {path}: the sample is cut from the photographs it installs")
        photograph = Path(path).stem
        pixels = images.decode(file.read_bytes()).rgb
        size = (round(pixels.shape[1] / factor), round(pixels.shape[0] / factor))
        reduced = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
        for row in range(reduced.shape[0] // side):
            for column in range(reduced.shape[1] // side):
                crop = reduced[row * side : (row + 1) * side, column * side : (column + 1) * side]
                if _detail(crop) >= LEAST_DETAIL:
                    yield f"{photograph}-{size[0]}-{row:02d}-{column:02d}", photograph, crop


def _detail(crop: Pixels) -> float:
    luma = crop.astype(np.float64).mean(axis=2)
    centre = luma[1:-1, 1:-1]
    laplacian = 4 * centre - luma[:-2, 1:-1] - luma[2:, 1:-1] - luma[1:-1, :-2] - luma[1:-1, 2:]
    return float(np.percentile(np.abs(laplacian), 90))


def _recipes() -> tuple[tuple[str, Recipe, tuple[int, int] | None], ...]:
    """Kinds of damage, mild to medium: its name, its recipe, and the JPEG quality of the file where it is one."""
    from idm_core.degradations import Recipe

    # Strengths are for a side of 512 pixels: at 64 pixels an eighth of these.
    return (
        ("blur", Recipe("blur", blur=(4.8, 12.0)), None),
        ("noise", Recipe("noise", noise=(4.0, 14.0)), None),
        ("downsample", Recipe("downsample", downsample=(12.0, 20.0)), None),
        ("jpeg", Recipe("jpeg"), (25, 70)),
        ("mixture", Recipe("mixture", blur=(3.2, 8.0), downsample=(8.0, 14.0), noise=(2.0, 8.0)), (40, 85)),
    )


def _damage(crop: Pixels, name: str, rank: int) -> tuple[bytes, str, dict[str, Any]]:
    """Damage one crop; gives the file, its suffix, and the record of what was done."""
    import torch

    from idm_core.degradations import degrade_one, sample_generator

    recipes = _recipes()
    kind, recipe, qualities = recipes[rank % len(recipes)]
    generator = sample_generator(SEED, name)
    image = torch.from_numpy(crop.copy()).permute(2, 0, 1).float() / 255  # HW3, uint8 => 3HW
    image, done = degrade_one(image, recipe, generator)
    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    parameters = asdict(done.steps[0])
    if qualities is None:
        data, suffix = images.encode_png(pixels), "png"
    else:
        quality = int(torch.randint(qualities[0], qualities[1] + 1, (), generator=generator))
        parameters |= {"codec": "JPEG", "quality": quality}
        data, suffix = _jpeg(pixels, quality), "jpg"
    return data, suffix, {"kind": kind, "seed": SEED, "parameters": parameters}


def _jpeg(pixels: Pixels, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=2 if quality < 90 else 0)
    return buffer.getvalue()


def _digest(name: str) -> bytes:
    return hashlib.sha256(f"{SEED}:{name}".encode()).digest()
