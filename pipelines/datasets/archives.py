"""Members of zips and tars as files: never unpacked, never followed out, each with the place of its bytes."""

from __future__ import annotations

import io
import os
import posixpath
import stat
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import IO, Final

from manifests.errors import SourceError
from pipelines.datasets.files import File, is_local, unsafe, utf8

_ZIP_ENCRYPTED: Final = 0x1


def open_container(url: str) -> IO[bytes]:
    """Open a local path or fsspec URL for reading at random.

    Raises:
        SourceError: it is not there, or may not be read.
    """
    try:
        if is_local(url):
            return Path(url).open("rb")
        import fsspec

        stream: IO[bytes] = fsspec.open(url, "rb").open()
        return stream
    except remote_errors() as error:
        raise SourceError(f"{url} cannot be opened: {type(error).__name__}: {error}") from error


def remote_errors() -> tuple[type[Exception], ...]:
    """What reaching for a URL raises. aiohttp's errors are no OSErrors, and it is loaded for http alone."""
    aiohttp = sys.modules.get("aiohttp")
    # ValueError: a protocol that fsspec does not know; ImportError: one whose package is not installed.
    return (OSError, ValueError, ImportError, *([aiohttp.ClientError] if aiohttp else []))


def zip_files(stream: IO[bytes], container: str) -> list[File]:
    """List a zip's members from its central directory.

    Raises:
        SourceError: it is no zip.
    """
    try:
        with zipfile.ZipFile(stream) as archive:
            return [_zip_file(info, container) for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise SourceError(f"{container} is not a readable zip: {error}") from error


def tar_files(
    stream: IO[bytes], container: str, problems: list[str], *, start: int = 0, nbytes: int | None = None
) -> list[File]:
    """List a tar's members in their order in the archive; links become members of the same tar or are refused.

    Args:
        problems: gets a sentence where the tar breaks off or is damaged, for what follows cannot be listed.
        start: where the tar begins in ``stream``, bytes: a tar inside a tar is read where it lies.
        nbytes: its length, where it is not the rest of the stream.

    Raises:
        SourceError: its first header is no tar header.
    """
    where = container if start == 0 else f"{container} at byte {start}"
    window = stream if nbytes is None else _Window(stream, start, nbytes)
    members: list[tarfile.TarInfo] = []
    try:
        # Not for "with": closing it would say nothing, and the stream is the caller's.
        archive = tarfile.open(fileobj=window, mode="r:")  # noqa: SIM115
    except (tarfile.TarError, OSError, ValueError) as error:
        raise SourceError(f"{where} is not a readable tar: {error}") from error
    while True:
        at = archive.offset
        try:
            info = archive.next()
        except (tarfile.TarError, OSError, EOFError, ValueError, RecursionError) as error:
            problems.append(f"{where} is damaged at byte {archive.offset}: what follows is lost ({error})")
            break
        if info is None:
            break
        if members and archive.offset <= at:  # a negative length, on which tarfile turns in a circle
            problems.append(f"{where} is damaged at byte {at}: what follows is lost (a length below zero)")
            break
        if not info.isdir():
            members.append(info)

    regular = {posixpath.normpath(m.name): m for m in members if m.isreg() and not m.issparse()}
    links = {posixpath.normpath(m.name): _target(m) for m in members if m.issym() or m.islnk()}
    return [_tar_file(m, container, start, regular, links) for m in members]


def _zip_file(info: zipfile.ZipInfo, container: str) -> File:
    refused = None
    if unsafe(info.orig_filename):
        refused = f"unsafe_path: {info.orig_filename!r}"
    elif stat.S_ISLNK(info.external_attr >> 16):
        refused = "link_in_archive: symbolic links in a zip are not followed"
    elif info.flag_bits & _ZIP_ENCRYPTED:
        refused = "encrypted: the zip member has a password"
    return File(
        source_name=_clean(info.filename),
        container=container,
        member=info.filename,
        offset=info.header_offset,
        nbytes=info.file_size,
        error=refused,
    )


def _tar_file(
    info: tarfile.TarInfo, container: str, start: int, regular: dict[str, tarfile.TarInfo], links: dict[str, str]
) -> File:
    data: tarfile.TarInfo | None = info
    refused = None
    if unsafe(info.name):
        refused = f"unsafe_path: {info.name!r}"
    elif info.issym() or info.islnk():
        target = _follow(posixpath.normpath(info.name), links)
        data = regular.get(target)
        if data is None:
            refused = f"{'link_outside_source' if unsafe(target) else 'broken_link'}: {info.linkname!r}"
    elif info.issparse():
        refused = "sparse_member: its data does not lie in one piece"
    elif not info.isreg():
        refused = f"not_a_file: tar entry of type {info.type!r}"
    name = _clean(info.name)
    if refused or data is None:
        return File(source_name=name, container=container, error=refused)
    return File(source_name=name, container=container, offset=start + data.offset_data, nbytes=data.size)


def _target(info: tarfile.TarInfo) -> str:
    """What a link leads to: a hard link counts from the top of the archive, a symbolic link from its own folder."""
    folder = posixpath.dirname(info.name) if info.issym() else ""
    return posixpath.normpath(posixpath.join(folder, info.linkname))


def _clean(name: str) -> str:
    return utf8(name.removeprefix("./"))


def _follow(name: str, links: dict[str, str]) -> str:
    """Follow links between tar members to their end; a cycle ends where it began."""
    seen: set[str] = set()
    while name in links and name not in seen:
        seen.add(name)
        name = links[name]
    return name


class _Window(io.RawIOBase):
    """A part of a stream as a stream of its own, as far as ``tarfile`` needs one."""

    def __init__(self, stream: IO[bytes], start: int, nbytes: int) -> None:
        self._stream, self._start, self._nbytes, self._at = stream, start, nbytes, 0

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._nbytes - self._at)
        self._stream.seek(self._start + self._at)
        data = self._stream.read(left if size < 0 else min(size, left))
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._nbytes}[whence]
        return self._at

    def tell(self) -> int:
        return self._at
