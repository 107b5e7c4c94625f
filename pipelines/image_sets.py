"""Two sets of images are compared: what a set is, and how any place that holds images becomes one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from manifests.errors import SourceError
from pipelines.datasets import Entry, open_dataset
from pipelines.datasets.archives import remote_errors
from pipelines.datasets.files import is_local, local_or_url, split_images, suffix_of
from pipelines.datasets.folder import entries_of_files
from pipelines.datasets.listing import list_files


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images of one place, or some of them: whoever wants a split or a number of them leaves entries out."""

    source: str  # how it was named; for people
    entries: tuple[Entry, ...] = field(repr=False)
    problems: tuple[str, ...] = ()  # sentences: what was found that is no image

    def fingerprint(self) -> str:
        """SHA-256 over names and places of all images, and sizes and times of the files that hold them.

        A copy of a folder is another set if its times are; bytes are not read.

        Raises:
            SourceError: a file that holds some is not there any more.
        """
        digest, stamps = hashlib.sha256(), dict[str, str]()
        for e in self.entries:
            if e.error is None and e.container not in stamps:
                stamps[e.container] = _stamp(e.container)
            place = [e.source_name, e.member, e.offset, e.nbytes, e.error, stamps.get(e.container)]
            digest.update(json.dumps(place).encode() + b"\n")
        return digest.hexdigest()


def open_images(source: str) -> ImageSet:
    """List the images of a folder, a zip, a tar, WebDataset shards, or a view of a run.

    Args:
        source: path or fsspec URL of a folder of images, or of shards; of a ``.zip`` or ``.tar``; shards in brace
            notation (``x-{000000..000012}.tar``) or as a glob; or ``RUN/views/NAME.parquet``: the samples that the
            view keeps, each restored or as it was.

    Raises:
        SourceError: there are no images there.
    """
    place = local_or_url(source)
    there = is_local(place) and Path(place).exists()
    if place.endswith(".parquet"):
        from pipelines.photo_pool import entries_of_view

        return _image_set(source, entries_of_view(place), [])
    if not there and any(character in source for character in "{*["):
        return _image_set(source, *_shards(source))
    listing = list_files(place)
    images, _ = split_images(listing.files)
    if not images and any(suffix_of(f.source_name) == "tar" for f in listing.files):
        return _image_set(source, *_shards(place))
    entries, problems = entries_of_files(listing.files)
    return _image_set(source, entries, [*listing.problems, *problems])


def _shards(source: str) -> tuple[list[Entry], list[str]]:
    dataset = open_dataset("webdataset", source)
    return dataset.entries, list(dataset.problems)


def _image_set(source: str, entries: list[Entry], problems: list[str]) -> ImageSet:
    if not entries:
        raise SourceError(f"{source} holds no images: {'; '.join(problems) or 'it is empty'}")
    return ImageSet(source, tuple(entries), tuple(problems))


def _stamp(container: str) -> str:
    """What is another as soon as the file is."""
    try:
        if is_local(container):
            status = Path(container).stat()
            return f"{status.st_size} {status.st_mtime_ns}"
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(container)
        return str(filesystem.ukey(path))
    except remote_errors() as error:
        raise SourceError(f"{container} cannot be read: {type(error).__name__}: {error}") from error
