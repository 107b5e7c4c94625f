"""Pristine images that are known for a dataset, found by name: only ever measured against, never read by a decision."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

from manifests.errors import SampleError, SourceError
from pipelines.datasets.entry import Entry
from pipelines.datasets.files import File, common_folder, split_images, stem_of
from pipelines.datasets.listing import list_files
from pipelines.datasets.reading import read_entries

T = TypeVar("T")


def with_truth(entries: list[Entry], source: str) -> list[Entry]:
    """Give each entry its pristine image out of a folder, zip or tar with the same names; suffixes may differ.

    Names count below the folder that all of one side share, so ``a/x.jpg`` in ``damaged.zip`` finds ``b/x.png``.

    Raises:
        SourceError: not one entry finds its truth, or two files there have the same name but for their suffix.
    """
    images, _ = split_images(list_files(source).files)
    there = common_folder(f.source_name for f in images)
    truths = {stem_of(f.source_name.removeprefix(there)): f for f in images}
    if len(truths) < len(images):
        raise SourceError(f"{source}: {len(images) - len(truths)} names occur twice but for their suffix")
    here = common_folder(e.source_name for e in entries)
    matched = [replace(e, truth=truths.get(stem_of(e.source_name.removeprefix(here)))) for e in entries]
    if not any(e.truth for e in matched):
        raise SourceError(f"{source} holds no image named like those of the dataset, such as {entries[0].source_name}")
    return matched


def read_truths(files: Iterable[File], decoded: Callable[[bytes], T]) -> Iterator[T]:
    """Pristine images in the order of their files; each archive is opened once.

    Raises:
        SourceError: one was announced and cannot be read, or ``decoded`` raises a SampleError.
    """
    for file, data in read_entries(files):
        try:
            if isinstance(data, SampleError):
                raise data
            yield decoded(data)
        except SampleError as error:
            raise SourceError(f"--truth: {file.source_name} in {file.container}: {error}") from error
