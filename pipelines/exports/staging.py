"""The staging folder of one export: what is committed in it survives a kill, and whatever came after is cut away."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import IO, Any

from manifests import rundir, storage
from manifests.errors import RunError

_BUFFER = 1 << 20


def folder_of(target: Path) -> Path:
    """The staging folder of a target: beside it, so that the finished export gets its name by a rename."""
    return target.with_name(f".{target.name}.export")


class Staging:
    """An unfinished export: files, streams that only grow, and a journal that says how much of both counts.

    A commit makes the streams durable and then replaces the journal. Opened again, the streams are cut back to the
    lengths of the last commit; files are written again with the same bytes. Close it (``with``) to close the streams.

    Raises:
        RunError: it was begun with other parameters (which are named), or has lost what was committed.
    """

    def __init__(self, folder: Path, parameters: dict[str, Any]) -> None:
        self.folder = folder
        self._journal = str(folder / "journal.json")
        self._streams: dict[str, IO[bytes]] = {}
        self._open = contextlib.ExitStack()
        self._state: dict[str, Any] = {"parameters": parameters, "shards": 0, "images": 0, "bytes": 0, "lengths": {}}
        if not storage.exists(self._journal):
            return
        self._state = storage.read_json(self._journal)
        different = rundir.differing_keys(self._state["parameters"], parameters)
        if different:
            raise RunError(
                f"{folder} holds an unfinished export with other options: {'; '.join(different)}. Use the same options "
                "to continue it, give another --to, or remove that folder to begin anew."
            )

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    @property
    def shards(self) -> int:
        """How many shards are committed, counted from the first."""
        return int(self._state["shards"])

    @property
    def images(self) -> int:
        """How many images are committed."""
        return int(self._state["images"])

    @property
    def nbytes(self) -> int:
        """What the committed images take up, bytes."""
        return int(self._state["bytes"])

    def stream(self, name: str) -> IO[bytes]:
        """A file in the folder, open for reading and writing at the end of what is committed of it."""
        path, length = self.folder / name, int(self._state["lengths"].get(name, 0))
        there = path.stat().st_size if path.exists() else 0
        if there < length:
            raise RunError(f"{path} has {there} bytes, {length} were committed; remove {self.folder} and begin anew")
        stream = self._open.enter_context(path.open("r+b" if path.exists() else "w+b", buffering=_BUFFER))
        stream.truncate(length)
        stream.seek(length)
        self._streams[name] = stream
        return stream

    def commit(self, *, images: int, nbytes: int) -> None:
        """Count one shard more, with its images and their bytes; whatever was written so far is there to stay."""
        self.flush()
        self._state |= {
            "shards": self.shards + 1,
            "images": self.images + images,
            "bytes": self.nbytes + nbytes,
            "lengths": {name: stream.tell() for name, stream in self._streams.items()},
        }
        storage.write_json(self._state, self._journal)

    def flush(self) -> None:
        """Bring all that was written to the disk: one ``sync`` a shard, where an ``fsync`` a file costs minutes."""
        for stream in self._streams.values():
            stream.flush()
        os.sync()
