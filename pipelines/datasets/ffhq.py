"""FFHQ as NVIDIA publishes it: 70,000 aligned PNGs numbered 00000-69999, and ffhq-dataset-v2.json beside them."""

from __future__ import annotations

import json
import math
import posixpath
import re
from typing import Any, Final

from manifests.errors import SourceError
from pipelines.datasets.entry import Dataset, Entry, entry_of, keys_below, some
from pipelines.datasets.files import File, is_hidden, split_images
from pipelines.datasets.listing import beside, list_files
from pipelines.datasets.reading import read_file

HOMEPAGE: Final = "https://github.com/NVlabs/ffhq-dataset"
LICENCE: Final = (
    "Dataset: CC BY-NC-SA 4.0, NVIDIA Corporation. Use and share for non-commercial purposes only; give credit by "
    "citing the paper (Karras, Laine, Aila: A Style-Based Generator Architecture for Generative Adversarial "
    "Networks, CVPR 2019); indicate changes; share what is derived under the same licence. The single photographs "
    "are under the licences their authors gave them on Flickr (CC BY 2.0, CC BY-NC 2.0, Public Domain Mark 1.0, "
    "CC0 1.0, U.S. Government Works), named with the author in each sample's metadata, and need their credit. "
    "Not for the development or improvement of facial recognition."
)
INDEX: Final = "ffhq-dataset-v2.json"
TRAINING_IMAGES: Final = 60_000  # the first; the last 10,000 are for validation

#: folder => (side of its images in pixels, their record in the JSON)
LAYOUTS: Final = {"images1024x1024": (1024, "image"), "thumbnails128x128": (128, "thumbnail")}

_NUMBERED: Final = re.compile(r"(?:^|/)(?:img)?(\d{5,8})\.[A-Za-z]+$")


def open_ffhq(source: str) -> Dataset:
    """Open ``images1024x1024`` or ``thumbnails128x128``, or the folder or zip that holds one of them.

    Where the JSON is inside or beside the source, it gives ``pixel_md5``, ``upscale_factor`` (side of the image over
    side of ``face_quad``, its crop in the photograph, where that was smaller), ``group`` (the photograph's URL),
    ``split``, and author and licence as metadata. Without it, split goes by number.

    Raises:
        SourceError: no image of the layout is there, or the JSON cannot be read.
    """
    listing = list_files(source)
    files = [f for f in listing.files if not is_hidden(f.source_name)]
    index = next((f for f in files if posixpath.basename(f.source_name) == INDEX), None) or beside(source, INDEX)
    images, problems = split_images(listing.files, known=[index.source_name] if index else [])
    images, side, record = _one_layout(source, images, problems)
    if not images:
        raise SourceError(f"{source} holds no FFHQ images (images1024x1024/00000/00000.png or 00000.png)")
    records = _read_index(index) if index else {}

    keys = keys_below(images)
    entries = []
    numbers: dict[int, str] = {}
    unnumbered: list[str] = []
    twice: list[str] = []
    for file in images:
        found = _NUMBERED.search(file.source_name)
        if found is None:
            unnumbered.append(file.source_name)
            entries.append(entry_of(file, key=keys[file.source_name]))
            continue
        number = int(found[1])
        if number in numbers:
            twice.append(file.source_name)
        numbers[number] = file.source_name
        entries.append(_entry(file, number, records.get(number), side, record))

    if unnumbered:
        problems.append(f"{len(unnumbered)} images have no FFHQ number in their names: {some(unnumbered)}")
    if twice:
        problems.append(f"{len(twice)} images have the number of another one: {some(twice)}")
    if missing := sorted((set(records) or set(range(max(numbers, default=-1) + 1))) - numbers.keys()):
        numbered = some(f"{number:05d}" for number in missing)
        problems.append(f"{len(missing)} numbers have no image: {numbered}")
    if records and (unknown := sorted(numbers.keys() - records.keys())):
        problems.append(f"{len(unknown)} images are not in {INDEX}: {some(numbers[n] for n in unknown)}")
    return Dataset("ffhq", source, LICENCE, HOMEPAGE, entries, (*listing.problems, *problems))


def upscale_factor(face_quad: list[list[float]], side: int) -> float:
    """How much a crop was enlarged when the dataset was made: 1 where it was not.

    Args:
        face_quad: four corners of the square crop in the photograph, pixels, in order around it.
        side: of the image in the dataset, pixels.
    """
    cropped = sum(math.dist(face_quad[i], face_quad[(i + 1) % 4]) for i in range(4)) / 4
    return max(1.0, side / cropped) if cropped > 0 else 1.0


def _one_layout(source: str, images: list[File], problems: list[str]) -> tuple[list[File], int, str]:
    """Choose one resolution: the large images where both are there. Also the side and the JSON's name for it."""
    for folder, (side, record) in LAYOUTS.items():
        chosen = [f for f in images if f"/{folder}/" in f"/{f.source_name}"]
        if chosen:
            if len(chosen) < len(images):
                problems.append(f"{len(images) - len(chosen)} images outside {folder}/ were left out")
            return chosen, side, record
    # A folder of numbers alone: its path or the first image's folder says which one.
    folder = next((f for f in LAYOUTS if f in source), "images1024x1024")
    return images, *LAYOUTS[folder]


def _read_index(index: File) -> dict[int, dict[str, Any]]:
    try:
        # The landmarks are nine tenths of the 255 MB: dropped as they are parsed, the rest fits in 0.5 GB.
        parsed = json.loads(read_file(index), object_hook=_without_landmarks)
        return {int(number): record for number, record in parsed.items()}
    except (ValueError, AttributeError) as error:
        raise SourceError(f"{index.container} is not FFHQ's {INDEX}: {error}") from error


def _without_landmarks(found: dict[str, Any]) -> dict[str, Any]:
    found.pop("face_landmarks", None)
    return found


def _entry(file: File, number: int, record: dict[str, Any] | None, side: int, resolution: str) -> Entry:
    split = "train" if number < TRAINING_IMAGES else "validation"
    if record is None:
        return entry_of(file, key=f"{number:05d}", split=split)
    about = record.get("metadata", {})
    quad = record.get("in_the_wild", {}).get("face_quad")
    return entry_of(
        file,
        key=f"{number:05d}",
        split={"training": "train", "validation": "validation"}.get(record.get("category", ""), split),
        group=about.get("photo_url"),
        upscale_factor=upscale_factor(quad, side) if quad else None,
        pixel_md5=record.get(resolution, {}).get("pixel_md5"),
        metadata=json.dumps(about, ensure_ascii=False, sort_keys=True),
    )
