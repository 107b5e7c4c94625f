"""Where a file of a dataset lies, and what its name says."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from pipelines.formats import IMAGE_EXTENSIONS

#: Bytes; one file above this is not read into memory but fails with ``too_large_file``.
MAX_FILE_BYTES: Final = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """Where the bytes of one file are, in words that any process on any node understands.

    A plain file is its ``container``. A zip member has ``member`` set, and ``offset`` is its local header: the one
    thing that tells members of the same name apart. A tar member has ``offset`` and ``nbytes`` of its data.
    """

    source_name: str  # path inside the source, unique there, valid UTF-8
    container: str  # local path or fsspec URL of the file or archive to open
    member: str | None = None
    offset: int | None = None
    nbytes: int | None = None  # length of the data where the listing knows it
    error: str | None = None  # 'reason: detail' of the SampleError that reading yields


F = TypeVar("F", bound=File)


def is_hidden(name: str) -> bool:
    """Whether a path is a dot file, in a dot folder, or among the shadows that macOS puts into archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/") if part not in (".", ".."))


def suffix_of(name: str) -> str:
    """The extension of a path, in lower case and without the dot."""
    return posixpath.splitext(name)[1].lower().lstrip(".")


def stem_of(name: str) -> str:
    """The path without its last extension."""
    return posixpath.splitext(name)[0]


def split_images(files: Iterable[F], *, known: Iterable[str] = ()) -> tuple[list[F], list[str]]:
    """Part the image candidates from everything else, and account for everything else in one sentence.

    Candidates are files with an image's extension in any case, and files without one.

    Args:
        files: a listing.
        known: names of files that were read for what they are (metadata), and need no mention.
    """
    images: list[F] = []
    others: Counter[str] = Counter()
    known = set(known)
    for file in files:
        suffix = suffix_of(file.source_name)
        if is_hidden(file.source_name):
            others["hidden"] += 1
        elif suffix in IMAGE_EXTENSIONS or not suffix:
            images.append(file)
        elif file.source_name not in known:
            others[f".{suffix}"] += 1
    if not others:
        return images, []
    counts = ", ".join(f"{kind} {count}" for kind, count in sorted(others.items()))
    return images, [f"{sum(others.values())} files are not images by their names and were left out: {counts}"]


def common_folder(names: Iterable[str]) -> str:
    """The deepest folder that holds all of these paths, with a slash at its end; '' for none.

    Names that lead out of the source, which are never read, are not asked.
    """
    folders = [posixpath.dirname(name) + "/" for name in names if not unsafe(name)]
    prefix = os.path.commonprefix(folders)  # noqa: RUF071  by character, so cut at a slash
    return prefix[: prefix.rfind("/") + 1].removeprefix("/")


def unsafe(name: str) -> bool:
    """Whether an archive's member name is absolute, climbs out with '..', or hides something in a NUL or backslash."""
    parts = name.replace("\\", "/").split("/")
    return not parts[0] or parts[0].endswith(":") or ".." in parts or "\0" in name


def is_local(url: str) -> bool:
    """Whether this is a path of this machine; everything with a protocol is fsspec's."""
    return "://" not in url


def local_or_url(source: str) -> str:
    """Give a local path for ``file://`` URLs and relative paths, and leave every other URL as it is."""
    for prefix in ("file://", "local://"):
        source = source.removeprefix(prefix)
    return str(Path(source).expanduser().absolute()) if "://" not in source else source


def utf8(name: str) -> str:
    """Names need not be UTF-8 on disk, but must be in a manifest: a stray byte is written as ``\\xff``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
