"""SQL over a run's manifests: ask, and print or write the answer."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import re
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal, get_args

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from manifests import storage
from manifests.errors import ConfigError
from manifests.rundir import Run
from pipelines import tables

Format = Literal["table", "json", "csv", "parquet"]
FORMATS: Final[tuple[str, ...]] = get_args(Format)
#: Rows that a table shows where no limit is given: about a screen.
TABLE_ROWS: Final = 40
#: DuckDB points at what is wrong, a line under the line: spaces count.
_AS_IT_IS: Final[dict[str, Any]] = {"replace_whitespace": False, "drop_whitespace": False}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a statement gives: its rows, once, and the view that decides on ``samples`` where that was asked."""

    rows: pa.RecordBatchReader
    decided_by: str | None


@contextlib.contextmanager
def answered(run: Run, sql: str, view: str | None = None) -> Iterator[Answer]:
    """Ask one SELECT (or DESCRIBE, SUMMARIZE, EXPLAIN); the rows are to be had while the context lasts.

    Args:
        run: the run.
        sql: over the tables that ``tables.table_names`` names.
        view: the view that ``samples`` takes its decisions from; none: see ``tables.deciding_view``.

    Raises:
        ConfigError: there is no such view, or the SQL is wrong; the message has the columns that there are.
    """
    asked = _tables_of(run, sql)
    deciding = tables.deciding_view(run, view) if "samples" in asked else None
    with tables.database() as opened:
        try:
            _create(opened, tables.relations(run, opened.files, asked, deciding))
            statements = opened.connection.extract_statements(sql)
            if [s.type for s in statements] not in ([duckdb.StatementType.SELECT], [duckdb.StatementType.EXPLAIN]):
                raise ConfigError("give one SELECT: a query reads a run, and nothing more")
            rows = pa.RecordBatchReader.from_stream(opened.connection.sql(sql))
            yield Answer(_renamed(rows), deciding)
        except duckdb.Error as error:
            raise ConfigError(_explained(run, opened, str(error), asked)) from error


def _tables_of(run: Run, sql: str) -> list[str]:
    """The run's tables whose names are in a statement, or a few more: opening one costs time and nothing else.

    All of them where it names none, as ``SHOW TABLES``. (``get_table_names`` would bind the statement, to tables that
    are not there yet.)
    """
    there = tables.table_names(run)
    words = set(re.findall(r"[a-z0-9_-]+", sql.casefold()))
    return [name for name in there if name.removeprefix("views.").casefold() in words] or there


def _create(opened: tables.Database, relations: dict[str, str]) -> None:
    opened.connection.execute("CREATE SCHEMA views")
    for name, select in relations.items():
        opened.connection.execute(f"CREATE VIEW {_quoted(name)} AS {select}")


def _quoted(name: str) -> str:
    return ".".join(f'"{part}"' for part in name.split("."))


def _renamed(rows: pa.RecordBatchReader) -> pa.RecordBatchReader:
    """The same rows with distinct column names: ``SELECT a.key, b.key`` gives ``key`` and ``key_1``."""
    names: list[str] = []
    for name in rows.schema.names:
        n = 0
        while (distinct := f"{name}_{n}" if n else name) in names:
            n += 1
        names.append(distinct)
    fields = [field.with_name(name) for field, name in zip(rows.schema, names, strict=True)]

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            for batch in rows:
                yield batch.rename_columns(names)
        except (OSError, pa.ArrowException) as error:
            # A statement may fail only when some rows are out: Arrow hands that on as if a file could not be read.
            raise duckdb.Error(str(error)) from error

    return pa.RecordBatchReader.from_batches(pa.schema(fields), batches())


def _explained(run: Run, opened: tables.Database, message: str, asked: list[str]) -> str:
    """DuckDB's message, what tables there are, and the columns of those that were asked."""
    said = [part for line in message.strip().splitlines()[:8] for part in textwrap.wrap(line, 110, **_AS_IT_IS) or [""]]
    lines = [*said, "", f"Tables: {', '.join(tables.table_names(run))}"]
    columns: dict[str, list[str]] = {}  # tables with the same columns share a line
    for name in asked if len(asked) <= 3 else asked[:1]:
        with contextlib.suppress(duckdb.Error):  # a table that does not open is what the message is about
            described = opened.connection.execute(f"DESCRIBE {_quoted(name)}").fetchall()
            columns.setdefault(", ".join(str(row[0]) for row in described), []).append(name)
    for text, names in columns.items():
        lines += textwrap.wrap(f"Columns of {', '.join(names)}: {text}", 110, subsequent_indent="  ")
    return "\n".join([*lines, "`idm-curate query RUN --schema` says what each one means."])


def described(run: Run) -> str:
    """Every table of a run: rows, and each column's type and meaning, with its unit."""
    names = tables.table_names(run)
    deciding = tables.deciding_view(run)
    lines = []
    with tables.database() as opened:
        _create(opened, tables.relations(run, opened.files, names, deciding))
        told: dict[tuple[str, ...], str] = {}
        for name in names:
            kind = "views" if name.startswith("views.") else "restored" if name.startswith("restored") else name
            docs = {field.name: (field.metadata or {}).get(b"doc", b"").decode() for field in tables.SCHEMAS[kind]}
            columns = opened.connection.execute(f"DESCRIBE {_quoted(name)}").fetchall()
            same = told.setdefault(tuple(column for column, *_ in columns), name)
            ((count,),) = opened.connection.execute(f"SELECT count(*) FROM {_quoted(name)}").fetchall()
            note = f", decided by the view {deciding}" if name == "samples" and deciding else ""
            lines.append(f"{name}: {count} rows{note}{f', columns of {same}' if same != name else ''}")
            if same == name:
                width = max(len(column) for column, *_ in columns)
                lines += [f"  {column:<{width}}  {kind_:<9}  {docs.get(column, '')}" for column, kind_, *_ in columns]
            lines.append("")
    return "\n".join(lines).rstrip()


def format_of(out: str | None) -> Format:
    """The format that a file's suffix names; a table where it names none."""
    suffix = (out or "").rsplit(".", 1)[-1]
    found: dict[str, Format] = {"json": "json", "csv": "csv", "parquet": "parquet"}
    return found.get(suffix, "table")


def write(rows: pa.RecordBatchReader, out: str, format_: Format, limit: int | None = None) -> int:
    """Write the answer to a path or URL, whole or not at all; returns how many rows the limit left out."""
    folder = None if storage.is_remote(out) else storage.local_path(out).absolute().parent
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".query-", dir=folder) as beside:
        staged = Path(beside) / "answer"
        if format_ == "parquet":
            left_out = _write_parquet(rows, staged, limit)
        else:
            with staged.open("w", encoding="utf-8", newline="") as stream:
                left_out = print_to(stream, rows, format_, limit)
        storage.publish(staged, out)
    return left_out


def _write_parquet(rows: pa.RecordBatchReader, path: Path, limit: int | None) -> int:
    limited = _Limited(rows, limit)
    with pq.ParquetWriter(path, rows.schema, compression="zstd") as writer:
        for batch in limited:
            writer.write_batch(batch)
    return limited.left_out


class _Limited:
    """Batches up to a number of rows; the rest is counted and let go."""

    def __init__(self, rows: pa.RecordBatchReader, limit: int | None) -> None:
        self.rows, self.limit, self.left_out = rows, limit, 0

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        room = self.limit
        for batch in self.rows:
            taken = batch if room is None else batch.slice(0, room)
            self.left_out += len(batch) - len(taken)
            room = None if room is None else room - len(taken)
            if len(taken):
                yield taken


def print_to(stream: IO[str], rows: pa.RecordBatchReader, format_: Format, limit: int | None = None) -> int:
    """Print the answer as a table, JSON (an array of objects) or CSV; returns how many rows the limit left out.

    Bytes are printed in hex. JSON knows neither infinity nor NaN: there they are null.
    """
    if format_ == "parquet":
        raise ConfigError("--format parquet: Parquet is no text; name a file with --out")
    limited = _Limited(rows, TABLE_ROWS if limit is None and format_ == "table" else limit)
    if format_ == "table":
        _print_table(stream, rows.schema.names, [row for batch in limited for row in _values(batch)])
    elif format_ == "csv":
        writer = csv.writer(stream)
        writer.writerow(rows.schema.names)
        for batch in limited:
            writer.writerows(_values(batch))
    else:
        opening = "["
        for batch in limited:
            for values in _values(batch):
                row = dict(zip(rows.schema.names, values, strict=True))
                stream.write(f"{opening}\n{json.dumps(jsonable(row), ensure_ascii=False, default=str)}")
                opening = ","
        stream.write("[]\n" if opening == "[" else "\n]\n")
    return limited.left_out


def _values(batch: pa.RecordBatch) -> Iterator[tuple[Any, ...]]:
    for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
        yield tuple(v.hex() if isinstance(v, bytes) else v for v in row)


def jsonable(value: Any) -> Any:
    """The same value, with bytes in hex, and infinity and NaN, which JSON does not know, as None."""
    if isinstance(value, dict):
        return {name: jsonable(v) for name, v in value.items()}
    if isinstance(value, list):
        return [jsonable(v) for v in value]
    if isinstance(value, bytes):
        return value.hex()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print_table(stream: IO[str], names: list[str], rows: list[tuple[Any, ...]]) -> None:
    numeric = [all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(names))]
    cells = [[_cell(value) for value in row] for row in rows]
    if stream.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(pad_edge=False)
        for name, right in zip(names, numeric, strict=True):
            table.add_column(Text(name), justify="right" if right else "left", overflow="fold")
        for line in cells:
            table.add_row(*map(Text, line))  # Text: a file's name is no markup
        Console(file=stream).print(table)
        return
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    for line in (names, ["-" * width for width in widths], *cells):
        aligned = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, numeric, strict=True))
        stream.write("  ".join(aligned).rstrip() + "\n")


def _cell(value: Any) -> str:
    """One value on one line; a file's name may hold anything, so nothing that a terminal would obey is printed."""
    if value is None:
        return ""
    text = f"{value:.6g}" if isinstance(value, float) else value if isinstance(value, str) else str(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
