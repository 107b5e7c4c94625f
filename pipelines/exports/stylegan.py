"""The zip archive that NVlabs' StyleGAN2-ADA, StyleGAN3, EDM and EDM2 train from, as ``dataset_tool.py`` documents it.

``00000/img00000000.png``, ...: square RGB PNGs of one size; ``dataset.json``: ``{"labels": [[name, class], ...]}`` or
``{"labels": null}``. Members are stored, never deflated. ``manifest.parquet`` is ours: those readers take images alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from manifests import storage
from pipelines.exports.manifest import Parts
from pipelines.exports.staging import Staging
from pipelines.exports.stored_zip import StoredZip, read_comment

_PER_FOLDER = 1000
# Headers and directory entry of one member with its name.
MEMBER_BYTES = 200


class StyleGanZip:
    """Writes the archive; what was written since the last commit is lost with a kill, and nothing else."""

    def __init__(self, staging: Staging) -> None:
        self._staging = staging
        self._archive = staging.folder / "archive.zip"
        self._zip = StoredZip(staging.stream(self._archive.name), staging.stream("directory"), staging.images)

    def add(self, row: dict[str, Any], data: bytes) -> str:
        """Append the next image, a PNG; returns its name."""
        name = member_name(self._zip.members)
        self._zip.add(name, data)
        return name

    def finish(self, parts: Parts, about: dict[str, Any]) -> Path:
        """Add labels and manifest and close the archive; ``about`` becomes its comment. Returns the file."""
        labels = self._staging.folder / "dataset.json"
        with labels.open("w", encoding="ascii") as f:
            f.write('{"labels": ')
            if about["labels"]:
                separator = "["
                for row in parts.rows(["file_name", "label"]):
                    f.write(f"{separator}\n{json.dumps([row['file_name'], row['label']])}")
                    separator = ","
                f.write("\n]}\n")
            else:
                f.write("null}\n")
        manifest = self._staging.folder / "manifest.parquet"
        parts.merge(manifest)
        self._zip.add_file(manifest.name, manifest)
        self._zip.add_file(labels.name, labels)
        self._zip.close(storage.json_bytes(about))
        self._staging.flush()
        return self._archive


def member_name(number: int) -> str:
    """What the archive calls its image of that number."""
    return f"{number // _PER_FOLDER:05d}/img{number:08d}.png"


def read_about(target: Path) -> dict[str, Any] | None:
    """What a finished archive says of itself, or None if it is none of ours."""
    comment = read_comment(target) if target.is_file() else None
    try:
        found = json.loads(comment or b"null")
    except ValueError:  # another program's comment
        return None
    return found if isinstance(found, dict) else None
