"""Real photographs laid out as the publishers of datasets lay theirs out."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.photographs import crops, png

#: Standard labels 0, 388 and 963; a devkit numbers them otherwise.
WNIDS = ("n01440764", "n02510455", "n07873807")
DEVKIT_IDS = {"n01440764": 3, "n02510455": 1, "n07873807": 2}


def jpegs(archive: str, count: int) -> list[bytes]:
    """Photographs out of one of ``IDM_DATA``'s archives, or, where there is none, crops of scikit-image's."""
    folder = os.environ.get("IDM_DATA")
    if folder:
        with zipfile.ZipFile(Path(folder) / f"{archive}.zip") as opened:
            names = sorted(n for n in opened.namelist() if n.lower().endswith((".jpg", ".jpeg")))
            return [opened.read(name) for name in names[:: len(names) // count][:count]]
    return [_jpeg(pixels) for pixels in crops(count)]


def pngs(archive: str, count: int) -> list[bytes]:
    """The same as PNG, at most 256 pixels wide: what is read is the layout, not the size."""
    found = []
    for data in jpegs(archive, count):
        with Image.open(io.BytesIO(data)) as image:
            image.thumbnail((256, 256))
            found.append(png(np.asarray(image.convert("RGB"))))
    return found


def write_ffhq(
    root: Path, indices: Sequence[int], *, folder: str = "images1024x1024", quad_side: float = 512.0
) -> dict[int, bytes]:
    """FFHQ with its JSON; the crop in the photograph is a turned square of ``quad_side`` pixels for even indices,
    twice the image's side for odd ones. Returns the files by index.
    """
    record, side = {"images1024x1024": ("image", 1024), "thumbnails128x128": ("thumbnail", 128)}[folder]
    files = dict(zip(indices, pngs("faces-1024", len(indices)), strict=True))
    table: dict[str, Any] = {}
    for index, data in files.items():
        place = root / folder / f"{index // 1000 * 1000:05d}" / f"{index:05d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        with Image.open(io.BytesIO(data)) as image:
            pixel_md5 = hashlib.md5(np.array(image).tobytes()).hexdigest()
        table[str(index)] = {
            "category": "training" if index < 60_000 else "validation",
            "metadata": {
                "photo_url": f"https://www.flickr.com/photos/someone/{index // 2}/",
                "author": "Žofia Ørsted",
                "license": "Attribution-NonCommercial License",
                "license_url": "https://creativecommons.org/licenses/by-nc/2.0/",
            },
            record: {"file_path": str(place.relative_to(root)), "pixel_md5": pixel_md5, "face_landmarks": [[1.5, 2.5]]},
            "in_the_wild": {
                "pixel_md5": "0" * 32,
                "face_landmarks": [[1.5, 2.5]] * 68,
                "face_quad": _turned_square(quad_side if index % 2 == 0 else 2.0 * side),
            },
        }
    (root / "ffhq-dataset-v2.json").write_text(json.dumps(table), encoding="utf-8")
    return files


def write_imagenet_folders(root: Path, count: int = 2) -> dict[str, bytes]:
    """``train/<wnid>/<wnid>_<n>.JPEG``, ``count`` images a class. Returns the files by their path below ``root``."""
    data = iter(jpegs("imagenet-sample", count * len(WNIDS)))
    files = {f"train/{wnid}/{wnid}_{i * 13}.JPEG": next(data) for wnid in WNIDS for i in range(count)}
    return _write(root, files)


def write_imagenet_train_tar(path: Path, count: int = 2) -> dict[str, bytes]:
    """``ILSVRC2012_img_train.tar``: a tar of class tars. Returns the files by ``<wnid>.tar/<wnid>_<n>.JPEG``."""
    data = iter(jpegs("imagenet-sample", count * len(WNIDS)))
    files: dict[str, bytes] = {}
    classes: dict[str, bytes] = {}
    for wnid in WNIDS:
        images = {f"{wnid}_{i * 13}.JPEG": next(data) for i in range(count)}
        files |= {f"{wnid}.tar/{name}": image for name, image in images.items()}
        classes[f"{wnid}.tar"] = tar_of(images)
    path.write_bytes(tar_of(classes))
    return files


def write_imagenet_validation(root: Path, wnids: Sequence[str] = WNIDS) -> dict[str, bytes]:
    """Validation images, flat, image ``n`` of class ``wnids[n - 1]``. Returns the files by name."""
    data = jpegs("imagenet-sample", len(wnids))
    return _write(root, {f"ILSVRC2012_val_{n:08d}.JPEG": image for n, image in enumerate(data, 1)})


def devkit(wnids: Sequence[str] = WNIDS) -> dict[str, bytes]:
    """The two files of the development kit that give the validation images their classes, by path in the kit."""
    from scipy.io import savemat

    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    synsets = np.array([(i, wnid, "a, b", 0) for wnid, i in DEVKIT_IDS.items()] + [(1001, "n00001740", "x", 3)], kinds)
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    truth = "".join(f"{DEVKIT_IDS[wnid]}\n" for wnid in wnids)
    folder = "ILSVRC2012_devkit_t12/data"
    return {f"{folder}/meta.mat": meta.getvalue(), f"{folder}/ILSVRC2012_validation_ground_truth.txt": truth.encode()}


def tar_of(files: dict[str, bytes], *, compressed: bool = False) -> bytes:
    """A tar of these files in the order given."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz" if compressed else "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _write(root: Path, files: dict[str, bytes]) -> dict[str, bytes]:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return files


def _turned_square(side: float) -> list[list[float]]:
    x = np.array([np.cos(0.3), np.sin(0.3)]) * side / 2
    y = np.array([-x[1], x[0]])
    centre = np.array([700.0, 600.0])
    return [list(centre + a * x + b * y) for a, b in ((-1, -1), (-1, 1), (1, 1), (1, -1))]


def _jpeg(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
