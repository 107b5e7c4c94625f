"""What became of the same samples in two runs, or by two policies: who changed status, why, and by how much."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from manifests import rundir, schema, storage
from manifests.rundir import Run
from pipelines import tables

#: Samples listed in each part of the text; the JSON has all of them.
LISTED: Final = 20
_COMPARED: Final = ("status", "reason", "gate", "margin", "severity", "severity_after")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two. ``view`` is what decided in it; None: no policy has, and the statuses are provisional."""

    run: str
    view: str | None
    samples: int


@dataclass(frozen=True, slots=True)
class Difference:
    """Two runs, compared by key. In a row every column has an ``_a`` and a ``_b``; units are the schema's."""

    a: Side
    b: Side
    configuration: list[str]  # keys that differ, each "section.key (value in a, value in b)"
    policy: list[str]
    only_in_a: list[str]  # keys
    only_in_b: list[str]
    other_source: list[str]  # keys whose source files are not the same bytes
    transitions: dict[str, dict[str, int]]  # status in a -> status in b -> samples
    why: list[Row]  # of those whose status changed: reasons in a and b, samples, median margins
    changed: list[Row]  # samples whose status changed, by key
    severity: list[Row]  # samples by how far their severity moved, at most LISTED


def diff(run_a: Run, run_b: Run, view_a: str | None = None, view_b: str | None = None) -> Difference:
    """Compare two runs, or two views of one. DuckDB joins them by key, so their shards need not be the same.

    Args:
        run_a: the one before.
        run_b: the one after.
        view_a: the view that decides in ``run_a``; none: see ``tables.deciding_view``.
        view_b: the same of ``run_b``.

    Raises:
        ConfigError: there is no such view.
    """
    views = [tables.deciding_view(run, view) for run, view in ((run_a, view_a), (run_b, view_b))]
    with tables.database() as opened:
        connection = opened.connection
        for name, run, view in (("a", run_a, views[0]), ("b", run_b, views[1])):
            samples = tables.relations(run, opened.files, ["samples"], view, prefix=f"{name}/")["samples"]
            connection.execute(f"CREATE VIEW {name} AS {samples}")
        both = ", ".join(f"a.{c} AS {c}_a, b.{c} AS {c}_b" for c in _COMPARED)
        connection.execute(
            f"CREATE TABLE pairs AS SELECT key, {both}, a.key IS NOT NULL AS in_a, b.key IS NOT NULL AS in_b, "
            "in_a AND in_b AND a.source_sha256 IS DISTINCT FROM b.source_sha256 AS other_source "
            "FROM a FULL JOIN b USING (key)"
        )

        def rows(sql: str) -> list[Row]:
            result = connection.execute(sql)
            names = [column[0] for column in result.description or ()]
            return [dict(zip(names, row, strict=True)) for row in result.fetchall()]

        def keys(where: str) -> list[str]:
            return [row["key"] for row in rows(f"SELECT key FROM pairs WHERE {where} ORDER BY key")]

        (sizes,) = rows("SELECT count(*) FILTER (in_a) AS a, count(*) FILTER (in_b) AS b FROM pairs")
        transitions = {status: dict.fromkeys(schema.STATUSES, 0) for status in schema.STATUSES}
        for row in rows("SELECT status_a, status_b, count(*) AS samples FROM pairs WHERE in_a AND in_b GROUP BY ALL"):
            transitions[row["status_a"]][row["status_b"]] = row["samples"]
        return Difference(
            a=Side(run_a.root, views[0], sizes["a"]),
            b=Side(run_b.root, views[1], sizes["b"]),
            configuration=rundir.differing_keys(run_a.config, run_b.config),
            policy=rundir.differing_keys(_policy(run_a, views[0]), _policy(run_b, views[1])),
            only_in_a=keys("NOT in_b"),
            only_in_b=keys("NOT in_a"),
            other_source=keys("other_source"),
            transitions=transitions,
            # A reason is a token, or a token and a detail that is the sample's own.
            why=rows(
                "SELECT status_a, status_b, split_part(reason_a, ':', 1) AS reason_a, split_part(reason_b, ':', 1) AS "
                "reason_b, count(*) AS samples, median(margin_a) AS margin_a, median(margin_b) AS margin_b FROM pairs "
                "WHERE in_a AND in_b AND status_a <> status_b GROUP BY ALL ORDER BY samples DESC, 1, 2, 3, 4"
            ),
            changed=rows(
                "SELECT * EXCLUDE (in_a, in_b) FROM pairs WHERE in_a AND in_b AND status_a <> status_b ORDER BY key"
            ),
            severity=rows(
                "SELECT * EXCLUDE (in_a, in_b) FROM pairs WHERE severity_a <> severity_b "
                f"ORDER BY abs(severity_b - severity_a) DESC, key LIMIT {LISTED}"
            ),
        )


def _policy(run: Run, view: str | None) -> Any:
    if view is None:
        return {}
    marker = storage.read_json(run.url("views", f"{view}.json"))
    return marker["policy"] | {k: marker[k] for k in ("view", "query") if k in marker}


def as_json(difference: Difference) -> Row:
    """All of it, in plain values."""
    from pipelines.query import jsonable

    plain: Row = jsonable(asdict(difference))
    return plain


def as_text(difference: Difference) -> Iterator[str]:
    """The same for people, line by line; of long lists the first ``LISTED``."""
    d = difference
    for name, side in (("A", d.a), ("B", d.b)):
        yield f"{name}  {side.run}: {side.samples} samples, {f'view {side.view}' if side.view else 'not decided yet'}"
    for name, keys in (("configuration", d.configuration), ("policy", d.policy)):
        if keys:
            yield f"{name} (there: A, now: B): {'; '.join(keys)}"
    for name, keys in (("only in A", d.only_in_a), ("only in B", d.only_in_b), ("other source bytes", d.other_source)):
        more = f", and {len(keys) - LISTED} more" if len(keys) > LISTED else ""
        yield f"{name}: {len(keys)}{': ' + ', '.join(keys[:LISTED]) + more if keys else ''}"
    yield from ["", "A | B".ljust(16) + "".join(f"{status:>15}" for status in schema.STATUSES)]
    for status, to in d.transitions.items():
        yield f"{status:<16}" + "".join(f"{n or '.':>15}" for n in to.values())
    yield from ["", f"{len(d.changed)} samples changed status"]
    for row in d.why:
        before, after = (f"{row[f'status_{s}']} ({row[f'reason_{s}'] or '-'})" for s in "ab")
        margins = f", median margin {_number(row['margin_a'])} -> {_number(row['margin_b'])}"
        yield f"  {row['samples']:>6}  {before} -> {after}{margins}"
    if d.changed:
        yield from ["", *_listed(d.changed[:LISTED])]
    if len(d.changed) > LISTED:
        yield f"  {len(d.changed) - LISTED} more; --json lists all"
    if d.severity:
        yield from ["", "severity moved most", *_listed(d.severity)]


def _listed(rows: list[Row]) -> Iterator[str]:
    width = max(len(row["key"]) for row in rows)
    for row in rows:
        status = row["status_a"] if row["status_a"] == row["status_b"] else f"{row['status_a']} -> {row['status_b']}"
        facts = [
            f"{name} {_number(row[f'{name}_a'])} -> {_number(row[f'{name}_b'])}"
            for name in ("severity", "gate", "margin")
            if row[f"{name}_a"] is not None or row[f"{name}_b"] is not None
        ]
        changed = ", other source bytes" if row["other_source"] else ""
        yield f"  {row['key']:<{width}}  {status}; {', '.join(facts)}{changed}"


def _number(value: float | str | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:.3g}"
