"""What a dataset is once it has been opened: a sorted list of entries, each one image with all that is known of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields

from pipelines.datasets.files import File, common_folder, stem_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry(File):
    """One image of a dataset: where its bytes are and what the dataset says about it. Picklable, no open files."""

    key: str  # proposed: the path without extension; neither unique nor fit for a tar yet
    label: int | None = None  # class index
    class_name: str | None = None  # folder name or wnid
    group: str | None = None  # entries of one group come from one photograph
    split: str | None = None  # train | validation
    upscale_factor: float | None = None  # above 1: the image was enlarged by this when the dataset was made
    pixel_md5: str | None = None  # MD5 that the decoded RGB pixels should have, hex
    metadata: str | None = None  # JSON object
    truth: File | None = None  # the pristine image, where it is known


@dataclass(frozen=True, slots=True)
class Dataset:
    """An opened dataset."""

    name: str
    source: str
    licence: str  # with its obligations
    homepage: str
    entries: list[Entry] = field(repr=False)  # sorted by source_name
    problems: tuple[str, ...] = ()  # sentences for the user: what was found that is no entry, or not as it should be


def entry_of(file: File, **known: object) -> Entry:
    """Make an entry of a listed file."""
    return Entry(**{f.name: getattr(file, f.name) for f in fields(File)}, **known)  # type: ignore[arg-type]


def keys_below(files: Iterable[File]) -> dict[str, str]:
    """Propose a key for each file: its path without extension, below the folder that all of them share."""
    names = [f.source_name for f in files]
    base = common_folder(names)
    return {name: stem_of(name.removeprefix(base)) for name in names}


def some(names: Iterable[str], limit: int = 3) -> str:
    """A few names of many, for a sentence."""
    listed = list(names)
    return ", ".join(listed[:limit]) + (", ..." if len(listed) > limit else "")
