"""Does cleaning treat groups alike? What became of the samples of each group, by any column or expression of SQL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

import pyarrow as pa

from manifests import schema
from manifests.errors import ConfigError
from manifests.rundir import Run
from pipelines import query
from pipelines.shares import Difference, Independence, Share, independence, share_of, widest_difference

#: The shares that are compared => what each is, and of what.
SHARES: Final = {
    "candidate": "restoration gave a candidate, of all samples",
    "restored": "the candidate took the source's place, of all samples",
    "kept_original": "the original stays: it was clean, or restoration did not help, of all samples",
    "rejected": "a gate refused the candidate, or the policy the sample, of all samples",
    "failed": "it could not be used, of all samples",
    "refused": "a gate refused the candidate, of the candidates",
}
#: Groups of fewer samples (for ``refused``: candidates) are listed and take no part in the comparison.
LEAST: Final = 10
#: More groups than this are no audit: somebody asked by a measurement or by a key.
MOST_GROUPS: Final = 2_000


@dataclass(frozen=True, slots=True)
class Group:
    """What became of the samples of one group. ``name`` None: what it is asked by is null for them.

    Attributes:
        severity: median damage of the sources as the restorer reads it, 0-1.
        identity_cosine: median over the candidates with a face.
        reasons: of the rejected ones, most first; of a gate, its name.
    """

    name: str | None
    n: int
    severity: float | None
    identity_cosine: float | None
    shares: dict[str, Share]
    reasons: dict[str, int]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Whether groups differ in one share (``outcome``: in the four statuses together), and which two most."""

    share: str
    groups: int  # that took part
    test: Independence | None  # None: they cannot differ, there is one group or one outcome
    widest: Difference | None


@dataclass(frozen=True, slots=True)
class Audit:
    """The outcomes of a run by group. Samples count as independent: copies and faces of one photograph are not."""

    by: str
    view: str | None  # what decided; None: no policy has yet, and the statuses are the restorer's
    unseen: int  # samples that the restorer has not looked at yet
    groups: list[Group]
    whole: Group  # all of them together
    comparisons: list[Comparison]


def audit(run: Run, by: str, view: str | None = None) -> Audit:
    """Count what became of the samples, group by group.

    Args:
        run: the run.
        by: a column of the table ``samples``, or an expression of SQL over its columns.
        view: the view that decides; none: see ``tables.deciding_view``.

    Raises:
        ConfigError: there is no such view or column, the SQL is wrong, or it does not put each
            sample into one group, or there are more than ``MOST_GROUPS`` of them.
    """
    if not by.strip():
        raise ConfigError("--by is empty; name a column of the table samples, or an expression over its columns")
    with query.answered(run, _sql(by), view) as answer:
        rows = answer.rows.read_all().to_pylist()
        decided_by = answer.decided_by
    if rows[0]["n"] != rows[0]["samples"]:
        raise ConfigError(f"--by {by}: {rows[0]['n']} values for {rows[0]['samples']} samples; give one for each")
    whole, *groups = (_group(row) for row in rows)
    if len(groups) > MOST_GROUPS:
        raise ConfigError(
            f"--by {by}: over {MOST_GROUPS} groups; put values together, as in 'floor(10 * severity) / 10' or "
            "'left(source_name, 1)'"
        )
    return Audit(by, decided_by, rows[0]["unseen"], groups, whole, _compare(groups))


def _sql(by: str) -> str:
    columns = {name.casefold(): name for name in schema.CLEANED.names}
    # A column's name may be a word of SQL's own, as group is.
    expression = f'"{columns[by.casefold()]}"' if by.casefold() in columns else by
    statuses = ", ".join(f"count(*) FILTER (status = '{status}') AS {status}" for status in schema.STATUSES)
    return f"""
        WITH audited AS (
            SELECT ({expression}
            ) AS by_, status, severity, identity_cosine, split_part(reason, ':', 1) AS token,
            key IN (SELECT key FROM restored WHERE status = 'restored') AS candidate,
            key NOT IN (SELECT key FROM restored) AS unseen FROM samples)
        SELECT CAST(by_ AS VARCHAR) AS name, count(*) AS n, {statuses}, count(*) FILTER (candidate) AS candidate,
            count(*) FILTER (candidate AND status = 'rejected' AND starts_with(token, 'gate_')) AS refused,
            count(*) FILTER (unseen) AS unseen, (SELECT count(*) FROM samples) AS samples, median(severity) AS severity,
            median(identity_cosine) FILTER (candidate) AS identity_cosine,
            histogram(token) FILTER (status = 'rejected') AS reasons, grouping(by_) = 1 AS is_whole
        FROM audited GROUP BY GROUPING SETS ((by_), ()) ORDER BY is_whole DESC, by_ NULLS LAST LIMIT {MOST_GROUPS + 2}
    """


def _group(row: dict[str, Any]) -> Group:
    shares = {name: share_of(row[name], row["n"]) for name in SHARES if name != "refused"}
    reasons = sorted(row["reasons"] or [], key=lambda found: (-found[1], found[0]))
    return Group(
        name=row["name"],
        n=row["n"],
        severity=row["severity"],
        identity_cosine=row["identity_cosine"],
        shares=shares | {"refused": share_of(row["refused"], row["candidate"])},
        reasons={reason.removeprefix("gate_"): n for reason, n in reasons},
    )


def _compare(groups: list[Group]) -> list[Comparison]:
    large = [g for g in groups if g.name is not None and g.n >= LEAST]
    outcomes = independence([[g.shares[status].hits for status in schema.STATUSES] for g in large])
    found = [Comparison("outcome", len(large), outcomes, None)]
    for name in SHARES:
        counts = {str(g.name): (g.shares[name].hits, g.shares[name].of) for g in large if g.shares[name].of >= LEAST}
        test = independence([[hits, of - hits] for hits, of in counts.values()])
        found.append(Comparison(name, len(counts), test, widest_difference(counts) if test else None))
    return found


def as_json(found: Audit) -> dict[str, Any]:
    """All of it, in plain values."""
    plain: dict[str, Any] = query.jsonable(asdict(found))
    return plain


def as_table(found: Audit) -> pa.Table:
    """A row a group and one of all together (``whole``), with the counts and the bounds of every share."""
    rows = []
    for group in (*found.groups, found.whole):
        row = {"group": group.name, "whole": group is found.whole, "n": group.n, "severity": group.severity}
        row |= {"identity_cosine": group.identity_cosine}
        for name, share in group.shares.items():
            row |= {f"{name}_n": share.hits, name: share.share, f"{name}_low": share.low, f"{name}_high": share.high}
        rows.append(row | {"reasons": [{"reason": reason, "n": n} for reason, n in group.reasons.items()]})
    fields = [pa.field("group", pa.string()), pa.field("whole", pa.bool_()), pa.field("n", pa.int64())]
    fields += [pa.field(name, pa.float64()) for name in ("severity", "identity_cosine")]
    for name in SHARES:
        fields += [pa.field(f"{name}_n", pa.int64())]
        fields += [pa.field(f"{name}{end}", pa.float64()) for end in ("", "_low", "_high")]
    reasons = pa.list_(pa.struct([("reason", pa.string()), ("n", pa.int64())]))
    return pa.Table.from_pylist(rows, schema=pa.schema([*fields, pa.field("reasons", reasons)]))


def as_shown(found: Audit) -> pa.Table:
    """The same for people: shares in percent with their intervals, and the most common reason of a rejection."""
    rows = []
    for group in (*found.groups, found.whole):
        name = "(all)" if group is found.whole else "(null)" if group.name is None else group.name
        row: dict[str, Any] = {"group": name, "n": group.n, "severity": _rounded(group.severity)}
        row |= {name: percent(share) for name, share in group.shares.items()}
        reason = next(iter(group.reasons), None)
        rows.append(row | {"mostly": reason and f"{reason} {group.reasons[reason]}"})
    names = ["group", "n", "severity", *SHARES, "mostly"]
    return pa.table({name: [row[name] for row in rows] for name in names})


def as_text(found: Audit) -> Iterator[str]:
    """What the comparison says, a line each."""
    decided = f"decided by the view {found.view}" if found.view else "no policy has decided yet"
    yield f"{found.whole.n} samples by {found.by}; {decided}; percent (95 %), refused: of the candidates"
    if found.unseen:
        yield f"{found.unseen} samples have not been looked at by the restorer yet: their shares are not final"
    left_out = sum(g.name is None or g.n < LEAST for g in found.groups)
    if left_out:
        yield f"{left_out} groups of under {LEAST} samples, or without a name, are not compared"
    yield from (f"{name}: {text}" for name, text in compared(found).items())


def compared(found: Audit) -> dict[str, str]:
    """What each comparison says, in a sentence, by the share that it is of."""
    return {c.share: _told(c.test, c.widest) if c.test else "nothing to compare" for c in found.comparisons}


def _told(test: Independence, widest: Difference | None) -> str:
    p = f"p = {test.p:.2g}{', by random tables' if test.simulated else ''}"
    text = f"{p} (chi-square {test.statistic:.1f}, df {test.degrees}, smallest expected {test.smallest_expected:.1f})"
    if widest is None or not widest.difference:
        return text
    return (
        f"{text}; most: {widest.more} over {widest.less} by {100 * widest.difference:.1f} points "
        f"({100 * widest.low:.1f} to {100 * widest.high:.1f})"
    )


def percent(share: Share) -> str | None:
    """A share with its interval, in percent."""
    if share.share is None or share.low is None or share.high is None:
        return None
    return f"{100 * share.share:.1f} ({100 * share.low:.1f}-{100 * share.high:.1f})"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
