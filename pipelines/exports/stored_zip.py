"""A zip archive of stored members, written front to back, that can be cut back to any member and carried on.

PKWARE's APPNOTE.TXT 6.3.10, sections 4.3.7, 4.3.12, 4.3.14 to 4.3.16 and 4.5.3. The standard library's ``zipfile``
holds the whole directory in memory, about a kilobyte a member, and an archive that was cut short has none.
"""

from __future__ import annotations

import shutil
import struct
import zlib
from pathlib import Path
from typing import IO, Final

_LOCAL: Final = struct.Struct("<4s5H3L2H")
_CENTRAL: Final = struct.Struct("<4s6H3L5H2L")
_END64: Final = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64: Final = struct.Struct("<4sLQL")
_END: Final = struct.Struct("<4s4H2LH")

_VERSION: Final = 45  # 4.5, which is the first with Zip64
_MADE_ON_UNIX: Final = 3 << 8 | _VERSION
_MODE: Final = 0o100644 << 16  # what Unix tools unpack a member with
_TIME: Final = 0
_DATE: Final = 0x21  # 1980-01-01, the earliest there is: equal members are equal bytes
_CHUNK: Final = 1 << 20
# What 16 and 32 bits cannot hold is written as all ones there, and in full in the Zip64 fields.
MAX16, MAX32 = 0xFFFF, 0xFFFFFFFF
#: Bytes that the comment of an archive can hold.
MAX_COMMENT: Final = 0xFFFF


class StoredZip:
    """Appends members to ``archive`` and their directory entries to ``directory``.

    Both are open for reading and writing at their ends, and hold nothing but what this class wrote: cut both back to
    where they were after some member, with the number of members then, and writing goes on from there.
    """

    def __init__(self, archive: IO[bytes], directory: IO[bytes], members: int = 0) -> None:
        self._archive, self._directory = archive, directory
        self.members = members

    def add(self, name: str, data: bytes) -> None:
        """Append one member."""
        self._begin(name, zlib.crc32(data), len(data))
        self._archive.write(data)

    def add_file(self, name: str, path: Path) -> None:
        """Append one member from a file of any size."""
        crc = 0
        with path.open("rb") as f:
            while chunk := f.read(_CHUNK):
                crc = zlib.crc32(chunk, crc)
            self._begin(name, crc, f.tell())
            f.seek(0)
            shutil.copyfileobj(f, self._archive, _CHUNK)

    def _begin(self, name: str, crc: int, size: int) -> None:
        encoded, offset = name.encode("ascii"), self._archive.tell()
        sizes, size32 = ([size, size], 0xFFFFFFFF) if size >= MAX32 else ([], size)
        extra = _zip64(sizes)
        about = (0, 0, _TIME, _DATE, crc, size32, size32, len(encoded))  # no flags; method 0: stored
        self._archive.write(_LOCAL.pack(b"PK\3\4", _VERSION, *about, len(extra)) + encoded + extra)
        far, offset32 = ([offset], 0xFFFFFFFF) if offset >= MAX32 else ([], offset)
        extra = _zip64(sizes + far)
        where = (0, 0, 0, _MODE, offset32)  # no comment, first disk, no internal attributes
        central = _CENTRAL.pack(b"PK\1\2", _MADE_ON_UNIX, _VERSION, *about, len(extra), *where)
        self._directory.write(central + encoded + extra)
        self.members += 1

    def close(self, comment: bytes) -> None:
        """Append the directory and the end record: now it is a zip archive. Both files stay open.

        Raises:
            ValueError: the comment is longer than ``MAX_COMMENT``.
        """
        if len(comment) > MAX_COMMENT:
            raise ValueError(f"a zip archive's comment holds {MAX_COMMENT} bytes, not {len(comment)}")
        start = self._archive.tell()
        self._directory.seek(0)
        shutil.copyfileobj(self._directory, self._archive, _CHUNK)
        end = self._archive.tell()
        size = end - start
        if self.members >= MAX16 or start >= MAX32 or size >= MAX32:
            counts = (self.members, self.members, size, start)
            # The record's length is told without the 12 bytes that lead it.
            self._archive.write(_END64.pack(b"PK\6\6", _END64.size - 12, _MADE_ON_UNIX, _VERSION, 0, 0, *counts))
            self._archive.write(_LOCATOR64.pack(b"PK\6\7", 0, end, 1))
        members = self.members if self.members < MAX16 else 0xFFFF
        size, start = size if size < MAX32 else 0xFFFFFFFF, start if start < MAX32 else 0xFFFFFFFF
        self._archive.write(_END.pack(b"PK\5\6", 0, 0, members, members, size, start, len(comment)) + comment)


def _zip64(values: list[int]) -> bytes:
    """The Zip64 extra field of the values that 32 bits do not hold; empty for none."""
    return struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values) if values else b""


def read_comment(path: Path) -> bytes | None:
    """The archive's comment, or None where the file does not end as a zip archive does."""
    with path.open("rb") as f:
        f.seek(0, 2)
        f.seek(-min(f.tell(), _END.size + MAX_COMMENT), 1)
        tail = f.read()
    at = len(tail)
    while (at := tail.rfind(b"PK\5\6", 0, at)) >= 0:
        if at + _END.size <= len(tail) and _END.unpack_from(tail, at)[-1] == len(tail) - at - _END.size:
            return tail[at + _END.size :]
    return None
