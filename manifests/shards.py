"""One shard: ``x.tar``, ``x.parquet`` and then ``x.json``, the commit marker. Staged, then published in that order."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from manifests import schema, storage
from manifests.errors import ShardError

MARKER_VERSION = 1
_CHUNK = 1 << 20


class SampleWriter(Protocol):
    """What is used of ``webdataset.TarWriter``: one dict with ``__key__`` and bytes by extension, then close."""

    def write(self, obj: dict[str, Any], /) -> Any: ...
    def close(self) -> None: ...


def webdataset_writer(stream: IO[bytes]) -> SampleWriter:
    """A ``webdataset.TarWriter`` whose output depends on nothing but the samples."""
    from webdataset import TarWriter  # imports torch, which a reader of manifests must not pay for

    writer: SampleWriter = TarWriter(stream, user="root", group="root", mtime=0, encoder=False)
    return writer


class StagedTar:
    """A tar of samples being written under a temporary name; nobody sees it before it is published."""

    def __init__(self, path: Path, open_writer: Callable[[IO[bytes]], SampleWriter] = webdataset_writer) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._stream = path.open("wb")
        self._writer = open_writer(self._stream)
        self._last_key = ""

    def __enter__(self) -> StagedTar:
        return self

    def __exit__(self, *exception: object) -> None:
        """Let go of the file, finished or not; an unfinished one is rubbish in the staging folder."""
        self._writer.close()
        self._stream.close()

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Append one sample: bytes by extension (without a dot). Keys arrive sorted.

        Raises:
            ShardError: the key is out of order, repeated, or not safe as a tar member's name.
        """
        if key <= self._last_key:
            raise ShardError(
                f"{self.path.name}: key {key!r} after {self._last_key!r}; they must be sorted and distinct"
            )
        if "." in key or not key.isascii() or len(key) > 92:
            raise ShardError(f"{self.path.name}: key {key!r} is no safe WebDataset key")
        self._last_key = key
        self._writer.write({"__key__": key, **members})

    def close(self) -> dict[str, tuple[int, int]]:
        """Finish the tar and read its headers back: member name -> (offset of its data, length), bytes.

        Raises:
            ShardError: a member needed a tar extension, or the file does not read back.
        """
        self._writer.close()
        self._stream.close()
        return index_tar(self.path)


def members_of(row: dict[str, Any], image: bytes) -> dict[str, bytes]:
    """The tar members of one sample: the image, ``.json``, and ``.cls`` where it is labelled."""
    facts = ("key", "source_name", "label", "class_name", "width", "height", "status", "reason", "severity", "metadata")
    about = {name: row[name] for name in facts if row.get(name) is not None}
    members = {row["ext"]: image, "json": json.dumps(about, sort_keys=True, ensure_ascii=False).encode()}
    if row.get("label") is not None:
        members["cls"] = str(row["label"]).encode()
    return members


def locate(rows: Sequence[dict[str, Any]], index: dict[str, tuple[int, int]]) -> None:
    """Fill in where each image lies in the finished tar."""
    for row in rows:
        if row.get("ext") is not None:
            row["offset"], row["nbytes"] = index[f"{row['key']}.{row['ext']}"]


def index_tar(path: Path) -> dict[str, tuple[int, int]]:
    """Where each member's data lies: name -> (offset, length). Only plain USTAR files are expected.

    Raises:
        ShardError: the tar cannot be read, repeats a name, or holds anything but plain files.
    """
    index: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isreg() or member.pax_headers or member.name in index:
                    raise ShardError(f"{path}: member {member.name!r} is repeated or is no plain USTAR file")
                index[member.name] = (member.offset_data, member.size)
    except tarfile.TarError as error:
        raise ShardError(f"{path}: not a readable tar ({error})") from error
    return index


def sha256_of(stream: IO[bytes]) -> tuple[int, str]:
    """Length and SHA-256 of what is left in a stream."""
    digest, length = hashlib.sha256(), 0
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
        length += len(chunk)
    return length, digest.hexdigest()


def _describe(path: Path, name: str) -> dict[str, Any]:
    with path.open("rb") as f:
        length, digest = sha256_of(f)
    return {"name": name, "bytes": length, "sha256": digest}


def commit(
    folder: str,
    shard: str,
    fingerprint: str,
    tar: Path,
    rows: Sequence[dict[str, object]],
    columns: pa.Schema,
    *,
    rubbish: Path,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Publish a staged tar with its manifest: tar, then Parquet, then the marker. Returns the marker.

    Whoever commits first wins: if a valid marker with this fingerprint is there already, nothing is touched.
    A marker of another fingerprint, or of a damaged shard, is retired before anything is replaced, so that at no
    moment does a marker vouch for files that are not its own.
    """
    if why_not_done(folder, shard, fingerprint) is None:
        return storage.read_json(storage.join(folder, f"{shard}.json"))
    marker_url = storage.join(folder, f"{shard}.json")
    if storage.exists(marker_url):
        storage.retire(marker_url, rubbish)
    parquet = tar.with_suffix(".parquet")
    table = schema.table_from_rows(sorted(rows, key=lambda r: str(r["key"])), columns)
    pq.write_table(table, parquet, compression="zstd")
    marker = {
        "version": MARKER_VERSION,
        "shard": shard,
        "fingerprint": fingerprint,
        "rows": len(rows),
        "counts": dict(sorted(Counter(str(r["status"]) for r in rows).items())),
        "files": {"tar": _describe(tar, f"{shard}.tar"), "parquet": _describe(parquet, f"{shard}.parquet")},
        **(extra or {}),
    }
    storage.publish(tar, storage.join(folder, f"{shard}.tar"))
    storage.publish(parquet, storage.join(folder, f"{shard}.parquet"))
    storage.write_json(marker, marker_url)
    return marker


def why_not_done(folder: str, shard: str, fingerprint: str | None, *, hashes: bool = False) -> str | None:
    """None if the shard is done, else the reason why it is not, in words.

    A shard is done if its marker parses, carries this fingerprint (None: whichever it carries) and the sizes of its
    files agree; with ``hashes`` their SHA-256 too.
    """
    try:
        marker = storage.read_json(storage.join(folder, f"{shard}.json"))
        files = marker["files"]
        expected = {kind: (str(f["name"]), int(f["bytes"]), str(f["sha256"])) for kind, f in files.items()}
    except FileNotFoundError:
        return "no marker"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"the marker does not parse ({error})"
    if fingerprint is not None and marker.get("fingerprint") != fingerprint:
        return "made with another configuration"
    for name, nbytes, digest in expected.values():
        found = storage.size(storage.join(folder, name))
        if found is None:
            return f"{name} is missing"
        if found != nbytes:
            return f"{name} has {found} bytes, its marker says {nbytes}"
        if hashes:
            with storage.open_read(storage.join(folder, name)) as f:
                if sha256_of(f)[1] != digest:
                    return f"{name} has another SHA-256 than its marker says"
    return None


def read_parquet(stream: IO[bytes], columns: Sequence[str] | None = None) -> pa.Table:
    """A Parquet file, or some of its columns.

    Not by ``pq.read_table``, which imports pyarrow.dataset and pandas for it; and without threads, which Arrow may tear
    down before they have begun when the interpreter ends soon after (apache/arrow #34314, #50482: exit status 134).
    """
    return pq.ParquetFile(stream).read(columns=list(columns) if columns is not None else None, use_threads=False)


class ParquetOfShards:
    """A Parquet file that holds the rows of many shards, open: its footer, long in a large run, is read once."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._file = pq.ParquetFile(stream)
        metadata = self._file.metadata
        column = next(i for i in range(metadata.num_columns) if metadata.schema.column(i).path == "shard")
        statistics = [metadata.row_group(i).column(column).statistics for i in range(metadata.num_row_groups)]
        self._bounds = [(s.min, s.max) if s is not None and s.has_min_max else None for s in statistics]

    def read(self, shard: str) -> list[dict[str, Any]]:
        """The rows of one shard; of the row groups only those are read that can hold any."""
        found = []
        for i, bounds in enumerate(self._bounds):
            if bounds is None or bounds[0] <= shard <= bounds[1]:
                rows = self._file.read_row_group(i, use_threads=False).to_pylist()
                found += [r for r in rows if r["shard"] == shard]
        return found


def read_parquet_of(stream: IO[bytes], shard: str) -> list[dict[str, Any]]:
    """The rows of one shard in a Parquet file that holds many."""
    return ParquetOfShards(stream).read(shard)


def read_rows(folder: str, shard: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The shard's manifest, or some of its columns.

    Raises:
        ShardError: it is missing or no Parquet file.
    """
    url = storage.join(folder, f"{shard}.parquet")
    try:
        with storage.open_read(url) as f:
            return read_parquet(f, columns)
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise ShardError(f"{url}: {error}; run `verify`") from error


def read_samples(tar_url: str, ranges: Sequence[tuple[int, int]]) -> Iterator[bytes]:
    """Bytes of each (offset, length) in a tar, opened once.

    Raises:
        ShardError: the tar ends before a range does.
    """
    with storage.open_read(tar_url) as f:
        for offset, nbytes in ranges:
            f.seek(offset)
            data = f.read(nbytes)
            if len(data) != nbytes:
                raise ShardError(f"{tar_url}: {nbytes} bytes expected at {offset}, {len(data)} found; run `verify`")
            yield data
