"""A run's manifests as DuckDB tables: committed shards alone, read only, and nothing that lies outside of the run."""

from __future__ import annotations

import contextlib
import datetime
import io
import re
import tempfile
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import IO, Any, Final

import duckdb
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from manifests import rundir, schema, shards, status, storage
from manifests.errors import ConfigError
from manifests.rundir import Run

#: The columns of each table, with their documentation; of a view and of a further round those of its kind.
SCHEMAS: Final[dict[str, pa.Schema]] = {
    "samples": schema.CLEANED,
    "source": schema.SOURCE,
    "restored": schema.RESTORED,
    "cleaned": schema.CLEANED,
    "duplicates": pa.schema([schema.IDENTITY[0], *schema.DUPLICATES]),
    "views": schema.VIEW,
}
VIEW_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class RunFiles(fsspec.AbstractFileSystem):  # type: ignore[misc]  # fsspec ships no types
    """``run://NAME`` for each manifest that was let in and for nothing else, opened for reading and never for writing.

    DuckDB opens local files faster itself, but what it may read it may also overwrite, and ``WITH x AS (COPY ... TO
    'file') SELECT ...`` is a SELECT. Read through here, a manifest is safe whatever the SQL says, and one on an object
    store needs no extension of DuckDB's.
    """

    protocol = "run"
    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, str | bytes] = {}  # name -> path or URL; or the file itself
        self._locks: dict[int, threading.Lock] = {}

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        file = self._file(path)
        size = len(file) if isinstance(file, bytes) else storage.size(file)
        return {"name": path, "size": size, "type": "file"}

    def glob(self, path: str, **options: Any) -> list[str]:
        return [path] if self._strip_protocol(path) in self.files else []

    def modified(self, path: str) -> datetime.datetime:
        return datetime.datetime(2000, 1, 1)  # what is committed does not change while it is read

    def _open(self, path: str, mode: str = "rb", **options: Any) -> io.RawIOBase:
        if mode != "rb":
            raise PermissionError(f"{path}: a query only reads")
        file = self._file(path)
        stream = io.BytesIO(file) if isinstance(file, bytes) else storage.open_read(file)
        # By the stream: a file system may hand out one stream for several opens, as fsspec's memory does.
        return _Positions(stream, self._locks.setdefault(id(stream), threading.Lock()))

    def _file(self, path: str) -> str | bytes:
        name = self._strip_protocol(path)
        if name not in self.files:
            raise FileNotFoundError(f"{path} is no manifest of this run")
        return self.files[name]


class _Positions(io.RawIOBase):
    """A stream in which every thread has a position of its own.

    DuckDB 2 reads one handle from many threads, each by a seek and then a read. With one position for all, a thread
    gets what lies at another's: broken Parquet (12 of 150 queries with a switch interval of a microsecond).
    """

    def __init__(self, stream: IO[bytes], lock: threading.Lock) -> None:
        self._stream, self._lock, self._at = stream, lock, threading.local()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(getattr(self._at, "position", 0))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_CUR:
            offset += self.tell()
        elif whence == io.SEEK_END:
            with self._lock:
                offset = self._stream.seek(offset, io.SEEK_END)
        self._at.position = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        with self._lock:
            self._stream.seek(self.tell())
            data = self._stream.read(size)
        self._at.position = self.tell() + len(data)
        return data

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


@dataclass(frozen=True, slots=True)
class Database:
    """A DuckDB in memory that reads what ``relations`` lets in, and nothing else."""

    connection: duckdb.DuckDBPyConnection
    files: RunFiles


@contextlib.contextmanager
def database() -> Iterator[Database]:
    """An empty database: no file of the machine can be named in it, no extension loaded, and no setting changed."""
    files = RunFiles()
    with tempfile.TemporaryDirectory(prefix="idm-curate-query-") as spill:  # for what does not fit into memory
        connection = duckdb.connect(
            ":memory:",
            config={
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
                "python_enable_replacements": "false",  # a table's name is no variable of this program
                "temp_directory": spill,
            },
        )
        with connection:
            connection.register_filesystem(files)
            connection.execute("SET allowed_directories = ['run://']")
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            yield Database(connection, files)


def table_names(run: Run) -> list[str]:
    """All tables of a run, as SQL names them."""
    return ["samples", *_rounds(run), "source", "cleaned", "duplicates", *(f"views.{name}" for name in views(run))]


def _rounds(run: Run) -> dict[str, str]:
    """Tables of restoration rounds -> their folders. The first is what policies decide on, and is just ``restored``."""
    names = storage.list_names(run.url("restored"))
    later = sorted(int(n.removeprefix("round")) for n in names if re.fullmatch(r"round[1-9][0-9]*", n))
    return {"restored": rundir.restored(1)} | {f"restored_round{n}": rundir.restored(n) for n in later if n > 1}


def views(run: Run) -> list[str]:
    """Names of the views that are complete, sorted."""
    names = [n.removesuffix(".json") for n in storage.list_names(run.url("views"), ".json")]
    whole = (n for n in names if VIEW_NAME.fullmatch(n) and shards.why_not_done(run.url("views"), n, None) is None)
    return list(whole)


def deciding_view(run: Run, view: str | None = None) -> str | None:
    """The view that ``samples`` takes its decisions from.

    That is the one asked for, else, as in the report, the one that ``cleaned/`` was packed by, else ``default``, else
    the first by name; None before any policy decided.

    Raises:
        ConfigError: there is no such view.
    """
    there = views(run)
    if view is not None and view not in there:
        raise ConfigError(f"{run.root}: there is no view {view!r}; there are: {', '.join(there) or 'none'}")
    chosen = (view, status.packed_view(run), "default", *there)
    return next((name for name in chosen if name in there), None)


def relations(
    run: Run, files: RunFiles, wanted: Collection[str], view: str | None = None, prefix: str = ""
) -> dict[str, str]:
    """What the tables of a run read, as SELECT statements by name, and the files that they read let in.

    A shard counts if its marker does: it parses, carries the run's fingerprint, and the sizes agree. Finding that out
    takes three requests a shard on an object store, so only for the tables that are wanted.

    Args:
        run: the run.
        files: where its manifests are let in.
        wanted: names as in ``table_names``.
        view: the view that ``samples`` takes its decisions from.
        prefix: tells the files of two runs apart.
    """

    def scan(name: str, urls: dict[str, str], columns: pa.Schema) -> str:
        let_in: dict[str, str | bytes] = {f"{prefix}{name}/{stem}.parquet": url for stem, url in urls.items()}
        let_in = let_in or {f"{prefix}{name}/none.parquet": _empty(columns)}
        files.files |= let_in
        paths = ", ".join("'run://" + path.replace("'", "''") + "'" for path in let_in)
        return f"SELECT * FROM read_parquet([{paths}], hive_partitioning = false)"

    def shards_of(folder: str, fingerprint: str | None) -> dict[str, str]:
        url = run.url(folder)
        planned = run.shards() if fingerprint is not None else []
        return {s: storage.join(url, f"{s}.parquet") for s in planned if not shards.why_not_done(url, s, fingerprint)}

    inputs = {"source", "restored", "duplicates"} if "samples" in wanted else set()
    found: dict[str, str] = {}
    if "source" in {*wanted, *inputs}:
        found["source"] = scan("source", shards_of(rundir.SOURCE, run.stage_fingerprint(rundir.SOURCE)), schema.SOURCE)
    for name, folder in _rounds(run).items():
        if name in {*wanted, *inputs}:
            found[name] = scan(name, shards_of(folder, run.stage_fingerprint(folder)), schema.RESTORED)
    if "duplicates" in {*wanted, *inputs}:
        found["duplicates"] = scan("duplicates", _duplicates(run), SCHEMAS["duplicates"])
    if "cleaned" in wanted:
        packed = dict(status.shard_stages(run))[rundir.CLEANED]
        found["cleaned"] = scan("cleaned", shards_of(rundir.CLEANED, packed), schema.CLEANED)
    for name in views(run):
        if f"views.{name}" in wanted:
            found[f"views.{name}"] = scan("views", {name: run.url("views", f"{name}.parquet")}, schema.VIEW)
    if "samples" in wanted:
        decided = scan("decided", {view: run.url("views", f"{view}.parquet")} if view else {}, schema.VIEW)
        found["samples"] = _samples(found["source"], found["restored"], found["duplicates"], decided)
    return found


def _samples(source: str, restored: str, duplicates: str, decided: str) -> str:
    """One row for each sample of ``source``, in the columns of ``cleaned``: what packing would write of it.

    Where no policy has decided yet the status is the restorer's, and where that has not looked yet, the source's.
    """
    columns = []
    for name in schema.CLEANED.names:
        if name in ("status", "reason"):
            before = f"CASE WHEN r.key IS NULL THEN s.{name} ELSE r.{name} END"
        elif name in schema.names(schema.DUPLICATES):
            before = f"d.{name}"
        elif name in schema.SOURCE.names:
            before = f"s.{name}"
        else:
            before = f"r.{name}" if name in schema.RESTORED.names else "NULL"
        if name in schema.VIEW.names and name != "key":
            before = f"CASE WHEN v.key IS NULL THEN {before} ELSE v.{name} END"
        columns.append(f"{before} AS {name}")
    return (
        f"SELECT {', '.join(columns)} FROM ({source}) s LEFT JOIN ({restored}) r USING (key) "
        f"LEFT JOIN ({duplicates}) d USING (key) LEFT JOIN ({decided}) v USING (key)"
    )


def _duplicates(run: Run) -> dict[str, str]:
    try:
        marker = storage.read_json(run.url(rundir.SOURCE, "duplicates.json"))
    except FileNotFoundError:
        return {}
    current = marker["fingerprint"] == run.stage_fingerprint(rundir.SOURCE, "duplicates")
    return {"duplicates": run.url(rundir.SOURCE, "duplicates.parquet")} if current else {}


def _empty(columns: pa.Schema) -> bytes:
    """A Parquet file without rows: a table that no shard has been written of has its columns all the same."""
    buffer = io.BytesIO()
    pq.write_table(columns.empty_table(), buffer)
    return buffer.getvalue()
