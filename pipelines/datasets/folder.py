"""Images in a folder, zip or tar: a class per sub-folder, or Hugging Face's ``metadata.jsonl``, or just images."""

from __future__ import annotations

import json
import posixpath
from typing import Final

from manifests.errors import SourceError
from pipelines.datasets.entry import Dataset, Entry, entry_of, keys_below, some
from pipelines.datasets.files import File, common_folder, split_images, unsafe
from pipelines.datasets.listing import list_files
from pipelines.datasets.reading import read_file

LICENCE: Final = "unknown: it is whatever the owner of these images allows"
METADATA: Final = "metadata.jsonl"


def open_folder(source: str) -> Dataset:
    """Open a folder, zip or tar of images.

    With a ``metadata.jsonl`` (one JSON object a line: ``file_name`` relative to it, ``label`` as class index or class
    name, ``group``, anything else) nothing is guessed from folders. Without one, where every image lies in a
    sub-folder, each sub-folder directly below the top is a class, indexed by its place among the sorted names.

    Raises:
        SourceError: no image candidates, or metadata that cannot be read.
    """
    listing = list_files(source)
    entries, problems = entries_of_files(listing.files)
    if not entries:
        found = "; ".join([*listing.problems, *problems]) or "it is empty"
        raise SourceError(f"{source} holds no images: {found}")
    return Dataset("folder", source, LICENCE, "", entries, (*listing.problems, *problems))


def entries_of_files(files: list[File]) -> tuple[list[Entry], list[str]]:
    """Make entries of listed files, and sentences of what is not as it should be."""
    tables = [f for f in files if posixpath.basename(f.source_name) == METADATA]
    images, problems = split_images(files, known=[f.source_name for f in tables])
    keys = keys_below(images)
    if not tables:
        return [
            entry_of(f, key=keys[f.source_name], **c) for f, c in zip(images, _classes(images), strict=True)
        ], problems

    rows: dict[str, dict[str, object]] = {}
    for table in tables:
        rows |= _read_rows(table)
    names = sorted({label for row in rows.values() if isinstance(label := row.get("label"), str)})
    entries = [entry_of(f, key=keys[f.source_name], **_known(rows.pop(f.source_name, {}), names)) for f in images]
    described = sum(entry.metadata is not None for entry in entries)
    if described < len(entries):
        problems.append(f"{len(entries) - described} images have no row in {METADATA}")
    if rows:
        problems.append(f"{len(rows)} rows of {METADATA} name no image that is there: {some(rows)}")
    return entries, problems


def _classes(images: list[File]) -> list[dict[str, object]]:
    """Give each image the class that its folder says; no classes where an image lies beside the folders."""
    base = common_folder(f.source_name for f in images)
    folders = [f.source_name.removeprefix(base).rpartition("/")[0].partition("/")[0] for f in images]
    sound = {folder for folder, f in zip(folders, images, strict=True) if not unsafe(f.source_name)}
    if "" in sound:
        return [{} for _ in images]
    index = {name: i for i, name in enumerate(sorted(sound))}
    return [{"label": index[name], "class_name": name} if name in index else {} for name in folders]


def _read_rows(table: File) -> dict[str, dict[str, object]]:
    """Read one metadata.jsonl: path inside the source => row."""
    folder = posixpath.dirname(table.source_name)
    rows: dict[str, dict[str, object]] = {}
    for number, line in enumerate(read_file(table).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise SourceError(f"{table.source_name} line {number} is no JSON: {error}") from error
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            raise SourceError(f"{table.source_name} line {number} is no object with a 'file_name'")
        name = posixpath.normpath(posixpath.join(folder, row.pop("file_name")))
        if name in rows:
            raise SourceError(f"{table.source_name} line {number}: {name} has a row already")
        rows[name] = row
    return rows


def _known(row: dict[str, object], class_names: list[str]) -> dict[str, object]:
    if not row:
        return {}
    label, group = row.get("label"), row.get("group")
    known: dict[str, object] = {"metadata": json.dumps(row, ensure_ascii=False, sort_keys=True)}
    if isinstance(label, str):
        known |= {"label": class_names.index(label), "class_name": label}
    elif isinstance(label, int):
        known["label"] = label
    if isinstance(group, str):
        known["group"] = group
    return known
