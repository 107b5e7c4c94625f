"""SQL over a run: all of it can be asked, only what is committed answers, nothing else is read, nothing written."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from manifests import rundir, schema, shards, storage
from manifests.errors import ConfigError
from manifests.verify import problems
from pipelines import query, tables
from pipelines.cli import cli
from pipelines.select import Policy, select
from tests.command_line import answer

Row = dict[str, Any]


def ask(root: Path, sql: str, view: str | None = None) -> list[Row]:
    with query.answered(rundir.read(str(root)), sql, view) as answer:
        rows: list[Row] = answer.rows.read_all().to_pylist()
    return rows


def hashes(root: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture
def root(curated_run: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(curated_run, tmp_path / "run")
    return tmp_path / "run"


def test_each_table_is_what_its_stage_wrote(curated_run: Path) -> None:
    run = rundir.read(str(curated_run))
    folders = {"source": "source", "restored": "restored/round1", "cleaned": "cleaned"}
    for table, folder in folders.items():
        written = pa.concat_tables(shards.read_rows(run.url(folder), s) for s in run.shards()).to_pylist()
        assert ask(curated_run, f"FROM {table} ORDER BY key") == sorted(written, key=lambda row: str(row["key"]))
    view = pq.ParquetFile(curated_run / "views/default.parquet").read().to_pylist()
    assert ask(curated_run, "SELECT * FROM views.default ORDER BY key") == sorted(view, key=lambda r: str(r["key"]))
    assert len(ask(curated_run, "FROM duplicates")) == 5


def test_samples_are_what_is_packed(curated_run: Path) -> None:
    places = {"offset"}  # of the same bytes, in another tar

    def without(rows: list[Row]) -> list[Row]:
        return [{name: value for name, value in row.items() if name not in places} for row in rows]

    samples = ask(curated_run, "FROM samples ORDER BY key")
    assert list(samples[0]) == schema.CLEANED.names
    assert without(samples) == without(ask(curated_run, "FROM cleaned ORDER BY key"))


def test_samples_of_a_run_that_is_not_done(root: Path) -> None:
    decided = ask(root, "SELECT key, status FROM restored ORDER BY key")
    for folder in ("cleaned", "views"):
        shutil.rmtree(root / folder)
    samples = ask(root, "SELECT key, status, gate, severity FROM samples ORDER BY key")
    assert [(r["key"], r["status"]) for r in samples] == [(r["key"], r["status"]) for r in decided]
    assert {row["gate"] for row in samples} == {None} and any(row["severity"] for row in samples)
    shutil.rmtree(root / "restored")
    samples = ask(root, "FROM samples ORDER BY key")
    assert {row["status"] for row in samples} == {"kept_original", "failed"} and len(samples) == len(decided)
    assert ask(root, "FROM restored") == ask(root, "FROM cleaned") == []


def test_only_committed_shards_answer(root: Path) -> None:
    everything = {row["key"]: row["shard"] for row in ask(root, "SELECT key, shard FROM source")}
    (root / "source/folder-000001.json").unlink()
    (root / "source/folder-000002.tar").write_bytes(b"")
    kept = [key for key, shard in everything.items() if shard not in ("folder-000001", "folder-000002")]
    assert sorted(kept) == [row["key"] for row in ask(root, "SELECT key FROM samples ORDER BY key")]
    assert len(ask(root, "FROM restored")) == len(everything)  # they were committed
    select(rundir.read(str(root)), Policy(name="default", min_severity=0.5))
    assert ask(root, "FROM cleaned") == []  # packed from a view that is no more
    (root / "views/default.parquet").write_bytes(b"")
    assert {row["margin"] for row in ask(root, "SELECT margin FROM samples")} == {None}


def test_samples_have_the_decisions_of_the_view_that_is_asked_for(root: Path) -> None:
    run = rundir.read(str(root))
    select(run, Policy(name="harsh", min_side=1000))
    with query.answered(run, "FROM samples") as answer:
        assert answer.decided_by == "default"  # packed by it
    assert ask(root, "SELECT DISTINCT origin FROM samples", "harsh") == [{"origin": None}]
    with pytest.raises(ConfigError, match="default, harsh"):
        ask(root, "FROM samples", "mild")


def test_every_format_has_the_same_rows(curated_run: Path, tmp_path: Path) -> None:
    sql = "SELECT key, severity, phash, notes, label FROM samples ORDER BY key"
    rows = ask(curated_run, sql)
    printed = answer("query", curated_run, sql, "--format", "json")
    assert json.loads(printed) == json.loads(
        json.dumps([r | {"phash": (r["phash"] or b"").hex() or None} for r in rows])
    )
    printed = answer("query", curated_run, sql, "--format", "csv")
    assert [r["key"] for r in csv.DictReader(io.StringIO(printed))] == [r["key"] for r in rows]
    answer("query", curated_run, sql, "--out", tmp_path / "deep" / "rows.parquet")
    assert pq.read_table(tmp_path / "deep/rows.parquet").to_pylist() == rows
    answer("query", curated_run, sql, "--out", tmp_path / "rows.json", "--limit", 3)
    assert [r["key"] for r in json.loads((tmp_path / "rows.json").read_text())] == [r["key"] for r in rows[:3]]
    assert json.loads(answer("query", curated_run, "FROM samples WHERE false", "--format", "json")) == []
    assert json.loads(answer("query", curated_run, "SELECT 'inf'::FLOAT a, ['nan'::FLOAT] b", "--format", "json")) == [
        {"a": None, "b": [None]}
    ]


def test_a_table_is_aligned_and_says_what_it_leaves_out(curated_run: Path) -> None:
    result = CliRunner().invoke(
        cli, ["query", str(curated_run), "SELECT key, width FROM samples WHERE width > 0", "--limit", "4"]
    )
    lines = result.stdout.splitlines()
    assert len(lines) == 6 and len({len(line) for line in lines}) == 1  # numbers to the right
    assert "20 more rows" in result.stderr and "view default" in result.stderr
    many = CliRunner().invoke(cli, ["query", str(curated_run), "SELECT unnest(range(100)) AS n"])
    assert len(many.stdout.splitlines()) == 2 + query.TABLE_ROWS and "60 more rows" in many.stderr


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_name_that_is_no_name_does_nothing_to_the_terminal(stream: type[io.StringIO], curated_run: Path) -> None:
    out = stream()
    sql = r"SELECT E'\x1b[2Jgone\nnext' AS name, '[red]plain[/red]' AS markup, 0.1::FLOAT AS x"
    with query.answered(rundir.read(str(curated_run)), sql) as answer:
        query.print_to(out, answer.rows, "table")
    assert "\x1b[2J" not in out.getvalue() and r"\x1b[2Jgone\nnext" in out.getvalue()
    assert "[red]plain[/red]" in out.getvalue()


@pytest.mark.parametrize("rows_before", [0, 2_000_000])  # DuckDB says it at once, or when rows have been read
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_what_fails_on_the_way_leaves_no_file(form: str, rows_before: int, curated_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / f"rows.{form}"
    out.parent.mkdir()
    sql = f"SELECT CASE WHEN n < {rows_before} THEN 1 ELSE key::INT END FROM samples, range({rows_before} + 1) AS r(n)"
    assert "INT32" in answer("query", curated_run, sql, "--out", out, code=2)
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELECT nope FROM samples", ["nope", "severity", "margin", "--schema"]),
        ("SELECT noise FROM source", ["noise_sigma", "Columns of source"]),
        ("FROM sample", ["samples", "restored", "views.default"]),
        ("SELEC 1", ["syntax error", "Tables: samples"]),
        ("SELECT key::INT FROM samples", ["INT32"]),
        ("SELECT 1; SELECT 2", ["one SELECT"]),
        ("", ["one SELECT"]),
    ],
)
def test_a_wrong_query_is_told_on_one_screen(sql: str, said: list[str], curated_run: Path) -> None:
    output = answer("query", curated_run, sql, code=2)
    assert all(words in output for words in said), output
    assert len(output.splitlines()) < 25 and max(map(len, output.splitlines())) <= 120 and "Traceback" not in output


@pytest.mark.parametrize(
    "sql",
    [
        "FROM '{file}'",
        "SELECT * FROM read_csv('{file}')",
        "SELECT * FROM read_parquet('{root}/cleaned/folder-000000.parquet')",
        "SELECT * FROM glob('/*')",
        "SELECT * FROM read_parquet('run://../run.json')",
        "FROM 'https://example.org/x.parquet'",
        "FROM 's3://bucket/x.parquet'",
        "ATTACH '{root}/x.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "COPY samples TO '{root}/x.csv'",
        "EXPORT DATABASE '{root}/x'",
        "CREATE TABLE x AS FROM samples",
        "WITH x AS (COPY (SELECT 1) TO '{root}/x.csv' (USE_TMP_FILE false)) SELECT 1 FROM x",
        "WITH x AS (COPY (SELECT 1) TO 'run://source/folder-000000.parquet' (USE_TMP_FILE false)) FROM x, source",
        "WITH x AS (COPY (SELECT 1) TO 'run://source/new.parquet' (USE_TMP_FILE false)) FROM x, source",
        "SELECT * FROM secret",
    ],
)
def test_nothing_outside_of_the_run_is_read_and_nothing_is_written(sql: str, root: Path, tmp_path: Path) -> None:
    file = tmp_path / "secret.csv"
    file.write_text("a\n1\n")
    secret = pa.table({"a": [1]})  # a variable of Python's is no table
    before = hashes(tmp_path)
    with pytest.raises(ConfigError):
        ask(root, sql.format(file=file, root=root))
    assert hashes(tmp_path) == before and len(secret) == 1


def test_no_extension_is_fetched(curated_run: Path) -> None:
    names = (
        "autoinstall_known_extensions",
        "autoload_known_extensions",
        "enable_external_access",
        "lock_configuration",
    )
    settings = "SELECT name, value FROM duckdb_settings() WHERE name IN " + str(names)
    values = {row["name"]: row["value"] for row in ask(curated_run, settings)}
    assert values == dict(zip(names, ("false", "false", "false", "true"), strict=True))


def test_a_run_on_an_object_store_answers_the_same(curated_run: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in curated_run.rglob("*"):
        if path.is_file():
            memory.pipe_file(f"/queried/{path.relative_to(curated_run)}", path.read_bytes())
    sql = "SELECT status, gate, count(*) AS n, avg(severity) AS severity FROM samples GROUP BY ALL ORDER BY ALL"
    with query.answered(rundir.read("memory://queried"), sql) as answer:
        assert answer.rows.read_all().to_pylist() == ask(curated_run, sql)


def test_reads_are_never_mixed_up(curated_run: Path) -> None:
    """Python's threads take turns here a thousand times as often as they would: a seek and its read stay together."""
    sql = "SELECT status, gate, count(*) AS n, avg(severity) AS severity FROM samples GROUP BY ALL ORDER BY ALL"
    expected = ask(curated_run, sql)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(30):
            with query.answered(rundir.read(str(curated_run)), sql) as answer:
                assert answer.rows.read_all().to_pylist() == expected
    finally:
        sys.setswitchinterval(interval)


def test_the_schema_documents_every_column(curated_run: Path) -> None:
    printed = answer("query", curated_run, "--schema")
    for name in tables.table_names(rundir.read(str(curated_run))):
        assert f"{name}: " in printed
    for columns in tables.SCHEMAS.values():
        for field in columns:
            assert field.metadata[b"doc"].decode() in printed, field.name
    assert "severity" in printed and "FLOAT" in printed and "25 rows" in printed


def test_columns_of_one_name_are_told_apart(curated_run: Path) -> None:
    (row,) = ask(curated_run, "SELECT 1 AS key, 2 AS key, 3 AS key_1, 4 AS key")
    assert row == {"key": 1, "key_1": 2, "key_1_1": 3, "key_2": 4}


def test_a_view_is_the_samples_of_a_query_with_a_policys_decisions(root: Path) -> None:
    run = rundir.read(str(root))
    before = {r["key"]: r for r in ask(root, "FROM views.default")}
    said = answer("query", root, "SELECT key FROM samples WHERE width = 64 AND origin IS NOT NULL", "--view", "small")
    after = {r["key"]: r for r in ask(root, "FROM views.small")}
    chosen = {k for k, r in before.items() if r["width"] == 64 and r["origin"] is not None}
    assert f"{len(chosen)} samples" in said and 0 < len(chosen) < len(before) and after.keys() == before.keys()
    for key, row in after.items():
        if key in chosen or before[key]["status"] == "failed":
            assert row == before[key]
        else:
            assert (row["status"], row["reason"], row["origin"]) == ("rejected", "not_in_query", None)
            assert row["offset"] is row["nbytes"] is row["output_sha256"] is None
    marker = json.loads((root / "views/small.json").read_text())
    assert marker["view"] == "default" and "width = 64" in marker["query"] and marker["chosen"] == len(chosen)

    answer("pack", root, "--view", "small", "--workers", 0)
    assert list(problems(run, hashes=True)) == []
    packed = ask(root, "SELECT key FROM cleaned WHERE origin IS NOT NULL")
    assert {row["key"] for row in packed} == chosen
    assert "width = 64" in (root / "cleaned/README.md").read_text()

    # The same name again narrows what it was made from, not itself; and the view, packed, decides on `samples`.
    answer("query", root, "SELECT key FROM samples WHERE width = 128", "--view", "small")
    assert [r["width"] for r in ask(root, "FROM views.small WHERE origin IS NOT NULL")] == [128]
    assert any(p.startswith("cleaned/") for p in problems(run))  # packed from the view as it was


@pytest.mark.parametrize(
    ("sql", "name", "said"),
    [
        ("SELECT 'nobody' AS key", "v", "'nobody'"),
        ("SELECT NULL AS key", "v", "1 keys are not of this run"),
        ("SELECT key FROM samples UNION ALL SELECT key FROM samples", "v", "2 times"),
        ("SELECT shard FROM samples", "v", "no column key"),
        ("SELECT key FROM samples", "default", "a policy's view"),
        ("SELECT key FROM samples", "../v", "letters"),
        ("SELECT nope FROM samples", "v", "nope"),
    ],
)
def test_a_view_that_cannot_be_is_refused(sql: str, name: str, said: str, root: Path) -> None:
    before = hashes(root)
    assert said in answer("query", root, sql, "--view", name, code=2)
    assert {p: h for p, h in hashes(root).items() if not p.endswith("run.lock")} == {
        p: h for p, h in before.items() if not p.endswith("run.lock")
    }


def test_a_policy_does_not_replace_a_querys_view(root: Path) -> None:
    answer("query", root, "SELECT key FROM samples", "--view", "mine")
    with pytest.raises(ConfigError, match="query"):
        select(rundir.read(str(root)), Policy(name="mine"))
    answer("pack", root, "--view", "mine", "--policy", "default", code=2)
    assert "default, mine" in answer("pack", root, "--view", "none", "--workers", 0, code=1)
    for name in ("default", "mine"):
        assert storage.exists(str(root / "views" / f"{name}.json"))


def test_without_a_policy_there_is_no_view_of_a_query(root: Path) -> None:
    shutil.rmtree(root / "views")
    assert "idm-curate select" in answer("query", root, "SELECT key FROM samples", "--view", "v", code=2)
