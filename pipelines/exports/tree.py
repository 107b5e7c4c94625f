"""Folders of image files with their metadata, plain or by split, as Hugging Face's ``imagefolder`` reads them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Literal

from manifests import schema, storage
from manifests.errors import RunError
from pipelines.exports.manifest import Parts
from pipelines.exports.staging import Staging
from pipelines.formats import IMAGE_EXTENSIONS

ABOUT = "export.json"
# A file takes whole blocks of its file system, and an inode.
BLOCK_BYTES = 4096

_TEXTS = ["key", "source_name", "class_name", "status", "reason", "gate", "origin"]
# Measured after the restoration too: told of the image that lies there. JPEG quality is not: a PNG has none.
_MEASURED = ["severity", *(name for name in schema.names(schema.MEASUREMENTS) if name != "jpeg_quality")]
_AFTER = {"severity": "severity_after", **{name: f"after_{name}" for name in _MEASURED[1:]}}


class Tree:
    """Writes the files: ``SHARD/KEY.EXT``, and in the ``hf`` layout ``SPLIT/SHARD/KEY.EXT``.

    One folder a shard, for a million files in one folder are slow everywhere. Its name is never one that
    ``imagefolder`` would take for a split.
    """

    def __init__(self, staging: Staging, layout: Literal["hf", "folder"]) -> None:
        self._staging = staging
        self._root = staging.folder / "tree"
        self._layout = layout
        self._root.mkdir(exist_ok=True)

    def add(self, row: dict[str, Any], data: bytes) -> str:
        """Write an image file, or write it again; returns its name."""
        name = _name(row, self._layout)
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return name

    def finish(self, parts: Parts, about: dict[str, Any]) -> Path:
        """Add ``manifest.parquet``, ``metadata.jsonl`` (one a split) and ``export.json``; returns the folder."""
        parts.merge(self._root / "manifest.parquet")
        _write_metadata(self._root, parts, 1 if self._layout == "hf" else 0)
        storage.write_json(about, str(self._root / ABOUT))
        self._staging.flush()
        return self._root


def split_of(row: dict[str, Any]) -> str:
    """The split of a sample; ``train`` where nothing says so."""
    return row.get("split") or "train"


def _name(row: dict[str, Any], layout: str) -> str:
    parts = [split_of(row)] if layout == "hf" else []
    for part in (*parts, row["shard"], row["key"]):
        if not part.isascii() or not part.replace("-", "").replace("_", "").isalnum():
            raise RunError(f"{part!r} of sample {row['key']!r} cannot be part of a file's name; run `verify`")
    if row["ext"] not in IMAGE_EXTENSIONS:
        raise RunError(f"sample {row['key']!r} has extension {row['ext']!r}, which is no image's; run `verify`")
    return "/".join([*parts, row["shard"], f"{row['key']}.{row['ext']}"])


def _write_metadata(root: Path, parts: Parts, depth: int) -> None:
    """A ``metadata.jsonl`` in every folder of this depth, 0 or 1; the same columns in every row of all of them.

    ``datasets`` takes the columns' types from the first rows of each split and refuses splits that differ. So a
    number is told only if it is known of every image, and an unknown text is empty.
    """
    numbers = ["label", "width", "height", *_MEASURED, "severity_after"]
    for row in _metadata(parts):
        numbers = [name for name in numbers if row[name] is not None]
    with ExitStack() as opened:
        files: dict[Path, IO[str]] = {}
        for row in _metadata(parts):
            *folder, name = row["file_name"].split("/", depth)
            path = root.joinpath(*folder, "metadata.jsonl")
            if path not in files:
                files[path] = opened.enter_context(path.open("w", encoding="ascii"))
            told = {"file_name": name} | {t: row[t] or "" for t in _TEXTS} | {n: row[n] for n in numbers}
            files[path].write(json.dumps(told) + "\n")


def _metadata(parts: Parts) -> Iterator[dict[str, Any]]:
    """One row an image, measurements as they are of the exported one; ``severity`` stays what it was at first."""
    stored = ["file_name", *_TEXTS, "label", "width", "height", *_MEASURED, *_AFTER.values()]
    for row in parts.rows(stored):
        restored = row["origin"] == "restored"
        now = {name: row[_AFTER[name] if restored else name] for name in _MEASURED}
        now |= {"severity_after": now["severity"], "severity": row["severity"]}
        now = {n: v if v is not None and math.isfinite(v) else None for n, v in now.items()}
        yield {name: row[name] for name in ("file_name", *_TEXTS, "label", "width", "height")} | now


def read_about(target: Path) -> dict[str, Any] | None:
    """What a finished folder says of itself, or None if it is none of ours."""
    try:
        return storage.read_json(str(target / ABOUT))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
