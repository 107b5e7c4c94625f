"""Read the bytes of listed files: each archive opened once, each failure kept to its own file."""

from __future__ import annotations

import os
import stat
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import IO, Final

from manifests.errors import SampleError, SourceError
from pipelines.datasets.archives import open_container, remote_errors
from pipelines.datasets.files import MAX_FILE_BYTES, F, File

#: A connection that breaks is tried again; what fails this often is a failed sample.
REMOTE_ATTEMPTS: Final = 3

_MEMBER_ERRORS: Final = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,  # zipfile: a password is needed
    NotImplementedError,  # zipfile: unknown compression
    zipfile.BadZipFile,
    zlib.error,
)


def read_entries(entries: Iterable[F]) -> Iterator[tuple[F, bytes | SampleError]]:
    """Yield each entry with its bytes, or with the error that keeps it from being read, in the order given.

    An archive stays open while consecutive entries lie in it, so entries in a dataset's order open each archive once.

    Raises:
        SourceError: an archive itself cannot be opened: not one sample's fault, and no row should say so.
    """
    with _Archive() as archive:
        for entry in entries:
            result: bytes | SampleError
            try:
                result = _read(entry, archive)
            except SampleError as error:
                result = error
            yield entry, result


def read_file(file: File) -> bytes:
    """Read one file, for metadata.

    Raises:
        SourceError: it cannot be read.
    """
    for _, data in read_entries([file]):
        if isinstance(data, SampleError):
            raise SourceError(f"{file.source_name} in {file.container}: {data}") from data
        return data
    raise AssertionError("one file in, one file out")


def _read(file: File, archive: _Archive) -> bytes:
    if file.error is not None:
        reason, _, detail = file.error.partition(": ")
        raise SampleError(reason, detail)
    if (file.nbytes or 0) > MAX_FILE_BYTES:
        raise SampleError("too_large_file", f"{file.nbytes} bytes, the limit is {MAX_FILE_BYTES}")
    if file.offset is None:
        return _read_local(file.container) if "://" not in file.container else _read_remote(file.container)
    stream = archive.open(file.container)
    try:
        data = archive.read_member(file) if file.member is not None else _read_range(stream, file)
    except _MEMBER_ERRORS as error:
        raise SampleError("unreadable_member", f"{type(error).__name__}: {error}") from error
    if file.nbytes is not None and len(data) != file.nbytes:
        raise SampleError("truncated_member", f"{len(data)} of {file.nbytes} bytes")
    return data


def _read_range(stream: IO[bytes], file: File) -> bytes:
    assert file.offset is not None and file.nbytes is not None
    stream.seek(file.offset)
    return stream.read(file.nbytes)


def _read_local(path: str) -> bytes:
    try:
        # The file may have become something else since it was listed: a FIFO opened this way does not wait.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as stream:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise SampleError("not_a_file", stat.filemode(status.st_mode)[0])
            return _limited(stream)
    except OSError as error:
        raise SampleError("unreadable", f"{type(error).__name__}: {error.strerror}") from error


def _read_remote(url: str) -> bytes:
    import fsspec

    for attempt in range(1, REMOTE_ATTEMPTS + 1):
        try:
            with fsspec.open(url, "rb") as stream:
                return _limited(stream)
        except remote_errors() as error:
            gone = isinstance(error, FileNotFoundError | PermissionError)
            if gone or attempt == REMOTE_ATTEMPTS:
                raise SampleError("unreadable", f"{type(error).__name__}: {error}") from error
            time.sleep(0.5 * 2**attempt)
    raise AssertionError("unreachable")


def _limited(stream: IO[bytes]) -> bytes:
    data = stream.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise SampleError("too_large_file", f"more than {MAX_FILE_BYTES} bytes")
    return data


class _Archive:
    """The one archive that is open now."""

    def __init__(self) -> None:
        self._url: str | None = None
        self._stream: IO[bytes] | None = None
        self._zip: zipfile.ZipFile | None = None
        self._members: dict[int, zipfile.ZipInfo] = {}

    def __enter__(self) -> _Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self, url: str) -> IO[bytes]:
        if self._stream is None or self._url != url:
            self.close()
            self._stream, self._url = open_container(url), url
        return self._stream

    def read_member(self, file: File) -> bytes:
        assert self._stream is not None and file.offset is not None
        if self._zip is None:
            self._zip = zipfile.ZipFile(self._stream)
            self._members = {info.header_offset: info for info in self._zip.infolist()}
        info = self._members.get(file.offset)
        if info is None or info.filename != file.member:
            raise ValueError(f"{file.member} is no longer at byte {file.offset}: the zip has changed")
        with self._zip.open(info) as member:
            return _limited(member)

    def close(self) -> None:
        if self._zip is not None:
            self._zip.close()
        if self._stream is not None:
            self._stream.close()
        self._url, self._stream, self._zip, self._members = None, None, None, {}
