"""Existing WebDataset tars: samples are groups of consecutive members that share the name up to the first dot."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO, Final

from manifests.errors import SourceError
from pipelines.datasets.archives import open_container, tar_files
from pipelines.datasets.entry import Dataset, Entry, entry_of, some
from pipelines.datasets.files import File, common_folder, is_local, local_or_url, suffix_of
from pipelines.datasets.folder import LICENCE
from pipelines.datasets.listing import list_files, unique_names
from pipelines.formats import IMAGE_EXTENSIONS

HOMEPAGE: Final = "https://github.com/webdataset/webdataset"
#: Bytes; a .cls, .json or .txt above this is no label, metadata or caption.
MAX_TEXT_BYTES: Final = 1 << 20

# webdataset's own rule: the folder and the name up to the first dot are the key, all after it the extension.
_KEY_AND_EXTENSION: Final = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)$")
_META: Final = re.compile(r"__[^/]*__($|/)")


def open_webdataset(source: str) -> Dataset:
    """Open WebDataset tars and keep their keys: the image, ``.cls`` as label, ``.json`` and ``.txt`` as metadata.

    Args:
        source: tars as a path or URL, with brace notation (``x-{000000..000012}.tar``), a glob, a folder of tars, or
            several of these joined by ``::`` or commas.

    Raises:
        SourceError: no tar is there, one cannot be opened, or none holds a sample.
    """
    urls = expand(source)
    names = _short_names(urls)
    entries: list[Entry] = []
    problems: list[str] = []
    left_out: Counter[str] = Counter()
    for url in urls:
        with open_container(url) as stream:
            members = tar_files(stream, url, problems)
            for sample in _samples(members):
                entries.append(_entry(sample, names[url], stream, problems, left_out))
            left_out["without a key"] += sum(_key(m) is None for m in members)
    if not entries:
        raise SourceError(f"{source}: {len(urls)} tars, and no sample in them")
    if left_out := +left_out:
        counts = ", ".join(f"{kind} {count}" for kind, count in sorted(left_out.items()))
        problems.append(f"{left_out.total()} members of the tars are not carried over: {counts}")
    repeated = sum(count - 1 for count in Counter(e.key for e in entries).values())
    if repeated:
        problems.append(f"{repeated} samples have the key of another one")
    return Dataset("webdataset", source, LICENCE, HOMEPAGE, unique_names(entries), tuple(problems))


def expand(source: str) -> list[str]:
    """Expand lists, braces, globs and folders to the tars they name, each once, in order.

    Raises:
        SourceError: a part of it names no tar.
    """
    from braceexpand import braceexpand

    urls: list[str] = []
    for part in (p for chunk in source.split("::") for p in _split_commas(chunk) if p):
        try:
            patterns = list(braceexpand(part))
        except ValueError as error:  # unbalanced braces
            raise SourceError(f"{part}: {error}") from error
        for pattern in patterns:
            if (found := _expand_one(local_or_url(pattern))) == []:
                raise SourceError(f"{pattern}: no tar is there")
            urls += found
    if not urls:
        raise SourceError(f"{source!r} names no tars")
    return list(dict.fromkeys(urls))


@dataclass(slots=True)
class _Sample:
    key: str
    members: dict[str, File] = field(default_factory=dict)  # by extension, lower case, in the tar's order


def _samples(members: list[File]) -> Iterator[_Sample]:
    """Group as webdataset does: a new sample begins with each new key, and with an extension that is there already."""
    sample: _Sample | None = None
    for member in members:
        if (key_and_extension := _key(member)) is None:
            continue
        key, extension = key_and_extension
        if sample is None or sample.key != key or extension in sample.members:
            if sample is not None:
                yield sample
            sample = _Sample(key)
        sample.members[extension] = member
    if sample is not None:
        yield sample


def _key(member: File) -> tuple[str, str] | None:
    found = _KEY_AND_EXTENSION.match(member.source_name)
    if found is None or _META.match(member.source_name):
        return None
    return found[1], found[2].lower()


def _entry(sample: _Sample, tar: str, stream: IO[bytes], problems: list[str], left_out: Counter[str]) -> Entry:
    extensions = list(sample.members)
    image = next((e for e in extensions if e in IMAGE_EXTENSIONS), None)
    image = image or next((e for e in extensions if suffix_of(f".{e}") in IMAGE_EXTENSIONS), None)
    label: int | None = None
    metadata: dict[str, object] = {}
    for extension in extensions:
        if extension not in ("cls", "json", "txt"):
            left_out[f".{extension}"] += extension != image
            continue
        member = sample.members[extension]
        try:
            text = _read_text(member, stream)
            if extension == "cls":
                label = int(text)
            elif extension == "txt":
                metadata["txt"] = text
            else:
                parsed = json.loads(text)
                metadata |= parsed if isinstance(parsed, dict) else {"json": parsed}
        except ValueError as error:
            problems.append(f"{tar}/{member.source_name} is not what its extension says: {error}")

    if image is None:
        first = sample.members[extensions[0]]
        file = File(
            source_name=f"{tar}/{sample.key}",
            container=first.container,
            error=f"no_image_member: it has {some(f'.{e}' for e in extensions)}",
        )
    else:
        found = sample.members[image]
        file = File(
            source_name=f"{tar}/{found.source_name}",
            container=found.container,
            offset=found.offset,
            nbytes=found.nbytes,
            error=found.error,
        )
    about = json.dumps(metadata, ensure_ascii=False, sort_keys=True) if metadata else None
    return entry_of(file, key=sample.key, label=label, metadata=about)


def _read_text(member: File, stream: IO[bytes]) -> str:
    if member.error is not None or member.offset is None or member.nbytes is None:
        raise ValueError(member.error)
    if member.nbytes > MAX_TEXT_BYTES:
        raise ValueError(f"{member.nbytes} bytes")
    stream.seek(member.offset)
    return stream.read(member.nbytes).decode("utf-8").strip()


def _split_commas(text: str) -> list[str]:
    """Split at commas outside braces."""
    cuts, depth = [-1], 0
    for at, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if character == "," and depth == 0:
            cuts.append(at)
    return [text[a + 1 : b] for a, b in pairwise([*cuts, len(text)])]


def _expand_one(url: str) -> list[str]:
    if any(character in url for character in "*?[") and "?" not in url.partition("://")[2]:
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(url)
        found = sorted(filesystem.glob(path))
        return [str(f) if is_local(url) else filesystem.unstrip_protocol(f) for f in found]
    if url.endswith(".tar") and not (is_local(url) and Path(url).is_dir()):
        return [url]
    return [f.container for f in list_files(url).files if suffix_of(f.source_name) == "tar" and f.error is None]


def _short_names(urls: list[str]) -> dict[str, str]:
    """Name each tar by its path below the folder that all share; one alone by its file name."""
    paths = {url: url.rpartition("://")[2].lstrip("/") for url in urls}
    base = common_folder(paths.values())
    return {url: path.removeprefix(base) for url, path in paths.items()}
