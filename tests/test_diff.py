"""Two runs compared: every sample is accounted for, whatever their shards, and each change has its reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from manifests import rundir, schema
from manifests.errors import ConfigError
from pipelines.cli import cli
from pipelines.diff import Difference, as_text, diff
from pipelines.select import Gate, Policy, select
from tests.report_fixture import write_run


def compared(a: Path, b: Path, *views: str) -> Difference:
    return diff(rundir.read(str(a)), rundir.read(str(b)), *views)


def total(difference: Difference) -> int:
    return sum(sum(to.values()) for to in difference.transitions.values())


def test_a_run_does_not_differ_from_itself(curated_run: Path) -> None:
    same = compared(curated_run, curated_run)
    assert same.a == same.b and same.a.view == "default" and total(same) == same.a.samples == 25
    assert not (same.only_in_a or same.only_in_b or same.other_source or same.changed or same.why or same.severity)
    assert not (same.configuration or same.policy)
    assert all(n == 0 or before == after for before, to in same.transitions.items() for after, n in to.items())


def test_two_policies_differ_in_what_they_reject(curated_run: Path, tmp_path: Path) -> None:
    shutil.copytree(curated_run, tmp_path / "run")
    run = rundir.read(str(tmp_path / "run"))
    select(run, Policy(name="harsh", gates=(Gate(quantity="severity_drop", min=2),)))
    found = diff(run, run, "default", "harsh")
    assert found.transitions["restored"]["rejected"] == len(found.changed) > 0
    assert any(text.startswith("name") for text in found.policy) and any("gates" in text for text in found.policy)
    for row in found.changed:
        assert (row["status_a"], row["status_b"], row["gate_b"]) == ("restored", "rejected", "severity_drop")
        assert row["margin_a"] >= 0 > row["margin_b"] and row["severity_a"] == row["severity_b"]
    (why,) = [row for row in found.why if row["reason_b"] == "gate_severity_drop"]
    assert why["samples"] == len(found.changed) and why["reason_a"] == "passed"
    text = "\n".join(as_text(found))
    assert f"{len(found.changed)} samples changed status" in text and "gate - -> severity_drop" in text
    with pytest.raises(ConfigError, match="no view 'mild'"):
        diff(run, run, "mild")


def test_runs_of_other_shards_are_compared_by_key(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", count=40, size=16, shard_size=7, until="restored")
    b = write_run(tmp_path / "b", count=33, size=16, shard_size=20, until="restored", damaged=0.9)
    found = compared(a, b)
    assert (found.a.samples, found.b.samples) == (40, 33)
    assert found.only_in_a == [f"s{i:05d}" for i in range(33, 40)] and found.only_in_b == []
    assert total(found) == 33 and any("shard_size (7 there, 20 now)" in text for text in found.configuration)
    assert found.transitions["kept_original"]["restored"] > 0
    changed = [row["key"] for row in found.changed]
    assert changed == sorted(changed) and set(changed) <= set(found.other_source)  # it is the damage that differs
    moved = [abs(row["severity_b"] - row["severity_a"]) for row in found.severity]
    assert moved == sorted(moved, reverse=True) and moved[0] > 0.2
    mirrored = compared(b, a)
    assert (mirrored.only_in_b, mirrored.only_in_a) == (found.only_in_a, found.only_in_b)
    for before in schema.STATUSES:
        for after in schema.STATUSES:
            assert mirrored.transitions[after][before] == found.transitions[before][after]


def test_the_command_prints_text_and_json_and_succeeds(tmp_path: Path, curated_run: Path) -> None:
    other = write_run(tmp_path / "b", count=12, size=16, until="restored")
    result = CliRunner().invoke(cli, ["diff", str(curated_run), str(other)], catch_exceptions=False)
    assert result.exit_code == 0
    assert "only in A: 25" in result.output and "only in B: 12" in result.output and "not decided yet" in result.output
    result = CliRunner().invoke(cli, ["diff", str(curated_run), str(other), "--json"], catch_exceptions=False)
    figures = json.loads(result.output)
    assert len(figures["only_in_a"]) == 25 and figures["a"]["view"] == "default" and figures["changed"] == []
