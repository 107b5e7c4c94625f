"""The audit counts what the manifests hold, group by group, and lets no more into its SQL than a query does."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests import rundir, schema
from manifests.errors import ConfigError
from pipelines import audit as audits
from pipelines.audit import Audit, audit
from tests.command_line import answer
from tests.report_fixture import write_run

FOLDER = "split_part(source_name, '/', 2)"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 60 samples in five folders; nothing here changes it."""
    return write_run(tmp_path_factory.mktemp("audit") / "run", size=32)


def by(root: Path, expression: str, view: str | None = None) -> Audit:
    return audit(rundir.read(str(root)), expression, view)


def test_every_count_is_the_manifests(finished: Path) -> None:
    rows = pa.concat_tables(pq.read_table(p) for p in sorted((finished / "cleaned").glob("*.parquet"))).to_pylist()
    found = by(finished, FOLDER)
    assert found.view == "default" and found.unseen == 0
    assert [g.name for g in found.groups] == ["0", "1", "2", "3", "4"]
    for group in (*found.groups, found.whole):
        own = [r for r in rows if group is found.whole or r["source_name"].split("/")[1] == group.name]
        candidates = [r for r in own if r["severity_after"] is not None]
        assert group.n == len(own) and group.shares["candidate"].hits == len(candidates)
        statuses = Counter(r["status"] for r in own)
        assert {s: group.shares[s].hits for s in schema.STATUSES} == {s: statuses[s] for s in schema.STATUSES}
        refused = [r for r in candidates if r["status"] == "rejected"]
        assert (group.shares["refused"].hits, group.shares["refused"].of) == (len(refused), len(candidates))
        assert group.reasons == Counter(r["gate"] for r in refused)
        for share in group.shares.values():
            assert share.share is None or (share.low or 0) <= share.share <= (share.high or 1)
    assert found.whole.shares["rejected"].hits > 0 and found.whole.shares["failed"].hits > 0
    failed = next(c for c in found.comparisons if c.share == "failed")
    assert failed.widest is not None and failed.widest.more == "3", "every 20th sample fails, and lies there"


def test_a_column_may_be_named_like_a_word_of_sql_and_null_is_a_group_of_its_own(finished: Path) -> None:
    found = by(finished, "Group")
    assert [g.name for g in found.groups] == [None] and found.groups[0].n == 60
    assert {c.test for c in found.comparisons} == {None}
    numbers = by(finished, "CAST(substr(key, 2) AS INTEGER) // 20 * 20")
    assert [g.name for g in numbers.groups] == ["0", "20", "40"], "in the order of the values"
    assert by(finished, "status -- its own").groups[0].name == "failed"


def test_small_groups_are_listed_and_not_compared(finished: Path) -> None:
    found = by(finished, "CASE WHEN key < 's00003' THEN 'few' ELSE left(key, 5) END")
    assert "few" in [g.name for g in found.groups]
    named = {name for c in found.comparisons if c.widest for name in (c.widest.more, c.widest.less)}
    assert named and "few" not in named
    assert any("not compared" in line for line in audits.as_text(found))


def test_a_run_that_is_not_decided_or_not_looked_at_says_so(tmp_path: Path) -> None:
    looked = by(write_run(tmp_path / "a", count=20, size=16, until="restored"), FOLDER)
    assert looked.view is None and looked.whole.shares["refused"].hits == 0
    assert looked.whole.shares["restored"] == looked.whole.shares["candidate"]
    read = by(write_run(tmp_path / "b", count=20, size=16, until="source"), FOLDER)
    assert read.unseen == 20 and any("not been looked at" in line for line in audits.as_text(read))


@pytest.mark.parametrize(
    "expression, told",
    [
        ("nothing", "source_name"),
        ("", "empty"),
        ("unnest([1, 2])", "120 values for 60 samples"),
        ("count(*)", "GROUP BY"),
        ("1) FROM samples; COPY (SELECT 1) TO 'x.csv'; SELECT (1", "syntax"),
        ("1) AS a FROM (SELECT 1)); SELECT 1; --", "syntax|SELECT"),
        ("(SELECT content FROM read_text('/etc/passwd'))", "(?i)access|permission|disabled"),
    ],
)
def test_what_is_no_expression_over_the_samples_is_refused(finished: Path, expression: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        by(finished, expression)


def test_too_many_groups_are_refused(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audits, "MOST_GROUPS", 60)
    assert len(by(finished, "key").groups) == 60
    monkeypatch.setattr(audits, "MOST_GROUPS", 59)
    with pytest.raises(ConfigError, match="over 59 groups"):
        by(finished, "key")


def test_every_format_tells_the_same(finished: Path, tmp_path: Path) -> None:
    printed = answer("audit", finished, "--by", FOLDER)
    assert "(all)" in printed and "outcome: p = " in printed
    whole: dict[str, Any] = json.loads(answer("audit", finished, "--by", FOLDER, "--format", "json"))
    assert [g["name"] for g in whole["groups"]] == ["0", "1", "2", "3", "4"] and whole["by"] == FOLDER
    answer("audit", finished, "--by", FOLDER, "--out", tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == whole
    answer("audit", finished, "--by", FOLDER, "--out", tmp_path / "a.parquet", "--view", "default")
    table = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert [r["group"] for r in table] == ["0", "1", "2", "3", "4", None]
    for row, group in zip(table, [*whole["groups"], whole["whole"]], strict=True):
        assert row["n"] == group["n"] and row["whole"] is (group is whole["whole"])
        for name, share in group["shares"].items():
            assert (row[f"{name}_n"], row[name], row[f"{name}_low"]) == (share["hits"], share["share"], share["low"])
        assert {r["reason"]: r["n"] for r in row["reasons"]} == group["reasons"]
    assert answer("audit", finished, "--by", FOLDER, "--format", "csv").startswith("group,whole,n,severity")
    assert "no view 'mild'" in answer("audit", finished, "--by", FOLDER, "--view", "mild", code=2)
