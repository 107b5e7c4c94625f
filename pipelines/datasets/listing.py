"""All files of a source: a folder, a zip or a tar, local or behind any fsspec URL.

Listing opens no image and follows nothing out of the source. A file that must not or cannot be read is listed all the
same, with the reason in ``File.error``, so that it gets its row like every other.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from manifests.errors import SourceError
from pipelines.datasets.archives import open_container, remote_errors, tar_files, zip_files
from pipelines.datasets.files import F, File, is_local, local_or_url, suffix_of, utf8
from pipelines.formats import IMAGE_EXTENSIONS


@dataclass(frozen=True, slots=True)
class Listing:
    """All files of a source, sorted by name, and what was found that is not a file."""

    files: list[File]
    problems: tuple[str, ...]


def list_files(source: str) -> Listing:
    """List a folder recursively, or the members of a ``.zip`` or ``.tar``.

    Raises:
        SourceError: there is nothing of the kind at ``source``, or it cannot be listed.
    """
    source = local_or_url(source)
    problems: list[str] = []
    suffix = PurePosixPath(source.rpartition("::")[2].partition("?")[0]).suffix.lower()
    if suffix in (".gz", ".tgz", ".bz2", ".xz", ".zst"):
        raise SourceError(f"{source}: a compressed archive cannot be read at random; unpack it to a .tar or a folder")
    if suffix in (".zip", ".tar") and not (is_local(source) and Path(source).is_dir()):
        with open_container(source) as stream:
            files = zip_files(stream, source) if suffix == ".zip" else tar_files(stream, source, problems)
    elif is_local(source):
        files = list(_local_files(Path(source), problems))
    else:
        files = list(_remote_files(source))
    return Listing(unique_names(files), tuple(problems))


def unique_names(files: Iterable[F]) -> list[F]:
    """Sort by name; members that share a name become ``x#2.png``, ``x#3.png``, ... in their order in the archive."""
    files = sorted(files, key=lambda f: (f.source_name, f.offset or 0))
    taken = {f.source_name for f in files}
    if len(taken) == len(files):
        return files
    unique = []
    for previous, file in zip([None, *files], files, strict=False):
        if previous is None or previous.source_name != file.source_name:
            count = 1
            unique.append(file)
            continue
        path = PurePosixPath(file.source_name)
        name = file.source_name
        while name in taken:
            count += 1
            name = str(path.with_name(f"{path.stem}#{count}{path.suffix}"))
        taken.add(name)
        unique.append(replace(file, source_name=name))
    return sorted(unique, key=lambda f: f.source_name)


def _local_files(root: Path, problems: list[str]) -> Iterator[File]:
    if not root.is_dir():
        found = "is a file, and neither a .zip nor a .tar" if root.is_file() else "does not exist"
        raise SourceError(f"{root} {found}; --source takes a folder, a .zip, a .tar, or a URL of one")
    real_root = os.path.realpath(root)
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(root / folder) as listed:
                found_here = list(listed)
        except OSError as error:
            problems.append(f"folder {folder or root} cannot be listed and is lost: {error.strerror}")
            continue
        for item in found_here:
            name = f"{folder}{item.name}"
            if item.is_dir(follow_symlinks=False):
                folders.append(f"{name}/")
            elif _is_linked_folder(item) and suffix_of(name) not in IMAGE_EXTENSIONS:
                problems.append(
                    f"linked folder {utf8(name)} -> {utf8(str(Path(item.path).readlink()))} is not followed"
                )
            else:
                nbytes, refused = _check_local(item, real_root)
                yield File(source_name=utf8(name), container=item.path, nbytes=nbytes, error=refused)


def _is_linked_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_symlink() and item.is_dir()
    except OSError:  # a loop
        return False


def _check_local(item: os.DirEntry[str], real_root: str) -> tuple[int | None, str | None]:
    """Give size and error of one directory entry without opening it: a FIFO would wait for ever."""
    try:
        if item.is_symlink():
            target = os.path.realpath(item.path, strict=True)
            if os.path.commonpath([target, real_root]) != real_root:
                return None, f"link_outside_source: {utf8(str(Path(item.path).readlink()))!r}"
        status = item.stat()
    except OSError as error:
        kind = "broken_link" if item.is_symlink() else "unreadable"
        return None, f"{kind}: {error.strerror}"
    if not stat.S_ISREG(status.st_mode):
        return None, f"not_a_file: {stat.filemode(status.st_mode)[0]}"
    return status.st_size, None


def _remote_files(url: str) -> Iterator[File]:
    import fsspec

    if "::" in url:
        raise SourceError(f"{url}: chained URLs are read for archives, not for folders")
    try:
        filesystem, root = fsspec.core.url_to_fs(url)
        found: dict[str, dict[str, Any]] = filesystem.find(root, detail=True)
    except remote_errors() as error:
        raise SourceError(f"{url} cannot be listed: {type(error).__name__}: {error}") from error
    if not found or list(found) == [root]:
        raise SourceError(f"{url} holds no files; --source takes a folder, a .zip, a .tar, or a URL of one")
    base = root.rstrip("/") + "/"
    for path, info in found.items():
        if path.startswith(base):
            name = path[len(base) :]
            name = unquote(name) if path.startswith("http") else name
            yield File(source_name=utf8(name), container=filesystem.unstrip_protocol(path), nbytes=info.get("size"))


def beside(source: str, name: str) -> File | None:
    """Find a file in the folder that holds the source; None when it is not there."""
    parent, _, _ = source.rstrip("/").rpartition("/")
    if is_local(source):
        path = Path(parent) / name
        return File(source_name=name, container=str(path)) if path.is_file() else None
    if "::" in source or parent.endswith("/"):  # the parent of a bucket is no place
        return None
    import fsspec

    filesystem, path_there = fsspec.core.url_to_fs(f"{parent}/{name}")
    try:
        there = filesystem.exists(path_there)
    except PermissionError:  # who may read the source need not be allowed to look beside it
        return None
    return File(source_name=name, container=f"{parent}/{name}") if there else None
