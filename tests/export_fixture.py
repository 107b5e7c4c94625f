"""Runs to export, and readers of exports that share no line with their writers."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow.parquet as pq

from tests.command_line import curate
from tests.photographs import crops, png

Row = dict[str, Any]


class ImageFolderDataset:
    """A zip as StyleGAN2-ADA, StyleGAN3 and EDM read it, after what NVlabs say of ``dataset_tool.py`` and
    ``training/dataset.py``: images are the members with an image's extension, sorted by name; all of one shape, square;
    ``dataset.json`` holds ``labels``: null, or pairs of name and class."""

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)
        PIL.Image.init()
        known = PIL.Image.EXTENSION
        self.names = sorted(n for n in set(self._zip.namelist()) if Path(n).suffix.lower() in known)
        shapes = {self[i].shape for i in range(len(self.names))}
        assert len(shapes) == 1, shapes
        (self.shape,) = shapes  # CHW
        assert self.shape[0] == 3 and self.shape[1] == self.shape[2]
        with self._zip.open("dataset.json") as f:
            labels = json.load(f)["labels"]
        self.labels = None
        if labels is not None:
            found = dict(labels)
            self.labels = np.array([found[name.replace("\\", "/")] for name in self.names])
            assert self.labels.dtype == np.int64 and len(found) == len(self.names)

    def __getitem__(self, index: int) -> np.ndarray[Any, Any]:
        with self._zip.open(self.names[index], "r") as f:
            image = np.array(PIL.Image.open(f))
        return image.transpose(2, 0, 1)  # HWC => CHW

    def close(self) -> None:
        self._zip.close()


def manifest_of(target: Path) -> list[Row]:
    """The rows of an export's manifest."""
    if target.is_dir():
        return pq.read_table(target / "manifest.parquet").to_pylist()
    with zipfile.ZipFile(target) as opened:
        return pq.read_table(io.BytesIO(opened.read("manifest.parquet"))).to_pylist()


def view_of(run: Path, name: str = "default") -> dict[str, Row]:
    """The samples of a view that are in the training set, by key."""
    rows = pq.read_table(run / "views" / f"{name}.parquet").to_pylist()
    return {row["key"]: row for row in rows if row["origin"] is not None}


def hashes(target: Path) -> dict[str, str]:
    """SHA-256 of an export: of its file, or of every file in its folder by name."""
    files = [target] if target.is_file() else sorted(p for p in target.rglob("*") if p.is_file())
    return {str(p.relative_to(target)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def write_mixed_folder(folder: Path) -> Path:
    """15 photographs in two classes: PNGs of 64 px, every third blurred; a wide JPEG, a small PNG, a broken one."""
    for i, pixels in enumerate(crops(12)):
        image = PIL.Image.fromarray(pixels)
        place = folder / ("ape", "bee")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        if i % 3 == 0:
            image = image.filter(PIL.ImageFilter.GaussianBlur(1.5))
        image.save(place / f"val test {i:02d}.v1.png")
    wide = crops(2, side=96)
    PIL.Image.fromarray(wide[0][:80]).save(folder / "ape" / "wide.jpg", quality=90)
    (folder / "bee" / "small.png").write_bytes(png(wide[1][:40, :40]))
    (folder / "bee" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    return folder


def write_squares(folder: Path, count: int = 6) -> Path:
    """Photographs of one size, 64 px, without classes."""
    folder.mkdir()
    for i, pixels in enumerate(crops(count)):
        (folder / f"{i}.png").write_bytes(png(pixels))
    return folder


def make_run(source: Path, root: Path, until: str, shard_size: int = 4) -> Path:
    """A run of these photographs as far as a stage."""
    options = ["--dataset", "folder", "--source", source, "--run", root, "--shard-size", shard_size, "--workers", 0]
    curate("run", *options, "--until", until)
    return root
