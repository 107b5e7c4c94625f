"""Does cleaning treat faces of every gender, race and age alike? A real run over photographs as they came.

    IDM_DATA=... IDM_WEIGHTS=... python -m tests.benchmarks.parity [--limit 1000] [--run DIR] [--json FILE]

UTKFace (faces-wild.zip) names its files age_gender_race_date; the labels are its authors' estimates and not what
anybody said of themselves. The photographs are naturally dirty, the shipped restorer was trained on none of them, and
no truth is known: the audit says who is restored and who is refused, not who is restored rightly. They differ in
quality as they came, so what gates refuse is also shown within bands of the severity that the restorer reads.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Final

import click

from manifests import rundir
from manifests.rundir import Run
from pipelines import query
from pipelines.audit import LEAST, SHARES, Audit, as_json, audit, compared, percent
from pipelines.shares import share_of

ARCHIVE: Final = "faces-wild.zip"
_FIELD: Final = "split_part(parse_filename(source_name), '_', {})"
AGE: Final = f"TRY_CAST({_FIELD.format(1)} AS INTEGER)"
#: The groups, as `idm-curate audit --by` takes them.
GROUPS: Final = {
    "gender": f"CASE {_FIELD.format(2)} WHEN '0' THEN 'male' WHEN '1' THEN 'female' END",
    "race": (
        f"CASE {_FIELD.format(3)} WHEN '0' THEN 'White' WHEN '1' THEN 'Black' WHEN '2' THEN 'Asian' "
        "WHEN '3' THEN 'Indian' WHEN '4' THEN 'others' END"
    ),
    "age": (
        f"CASE WHEN {AGE} < 10 THEN '00-09' WHEN {AGE} < 20 THEN '10-19' WHEN {AGE} < 40 THEN '20-39' "
        f"WHEN {AGE} < 60 THEN '40-59' WHEN {AGE} >= 60 THEN '60 and over' END"
    ),
}
#: Bands of severity, of as many candidates each, within which groups are compared again.
BANDS: Final = 3


def choose(archive: Path, limit: int, target: Path) -> Path:
    """Write some photographs of an archive to another, drawn by a hash of their names, for these begin with the age."""
    part = target.with_suffix(".part")
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(part, "w") as chosen:
        names = [n for n in source.namelist() if not n.endswith("/")]
        drawn = sorted(names, key=lambda n: hashlib.sha256(f"parity:{n}".encode()).digest())[: limit or None]
        for name in sorted(drawn):
            chosen.writestr(zipfile.ZipInfo(name), source.read(name))
    return part.rename(target)


def curate(photographs: Path, root: Path, faces: str) -> Run:
    """An ordinary run, by the command line; the same call again continues."""
    options = ["--dataset", "folder", "--source", photographs, "--run", root, "--faces", faces]
    command = [sys.executable, "-m", "pipelines", "run", *options, "--workers", "0", "--shard-size", "100"]
    subprocess.run([str(part) for part in command], check=True)
    return rundir.read(str(root))


def table(found: Audit) -> str:
    """An audit in Markdown: shares in percent with their 95 % intervals, and how the groups compare."""
    head = ["group", "n", "severity", "identity", *SHARES, "rejected mostly by"]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for group in (*found.groups, found.whole):
        name = "all" if group is found.whole else str(group.name)
        numbers = ["" if v is None else f"{v:.2f}" for v in (group.severity, group.identity_cosine)]
        reasons = ", ".join(f"{reason} {n}" for reason, n in list(group.reasons.items())[:3])
        shares = [percent(share) or "" for share in group.shares.values()]
        lines.append(" | ".join([name, str(group.n), *numbers, *shares, reasons]))
    return "\n".join(f"| {line} |" for line in lines)


def at_like_severity(run: Run, by: str) -> list[dict[str, Any]]:
    """Of the candidates of each group, the share that a gate refused within each band of severity, and by which gates.

    A group whose photographs are worse has more to restore and more to refuse; like must be compared with like.
    """
    sql = f"""
        WITH candidates AS (
            SELECT ({by}) AS by_, status, gate, severity, ntile({BANDS}) OVER (ORDER BY severity, key) AS band
            FROM samples WHERE severity_after IS NOT NULL),
        banded AS (
            SELECT *, printf('%.2f to %.2f', min(severity) OVER (PARTITION BY band),
                max(severity) OVER (PARTITION BY band)) AS severities FROM candidates)
        SELECT severities, by_, count(*) AS candidates,
            count(*) FILTER (status = 'rejected' AND gate IS NOT NULL) AS refused,
            histogram(gate) FILTER (status = 'rejected') AS gates
        FROM banded WHERE by_ IS NOT NULL GROUP BY ALL ORDER BY ALL
    """
    with query.answered(run, sql) as answer:
        rows: list[dict[str, Any]] = answer.rows.read_all().to_pylist()
    return [row | {"gates": dict(row["gates"] or [])} for row in rows]


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--limit", default=1_000, show_default=True, help="Photographs; 0 is all of them.")
@click.option("--faces", default="mobilefacenet", show_default=True, help="The face model.")
@click.option("--run", "root", type=click.Path(path_type=Path), help="Keep the run there, or go on with it.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write every figure here.")
def main(limit: int, faces: str, root: Path | None, json_path: Path | None) -> None:
    """Print the audits."""
    with tempfile.TemporaryDirectory(prefix="parity-") as scratch:
        folder = root or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        photographs = folder / f"photographs-{limit}.zip"
        if not photographs.exists():
            choose(Path(os.environ["IDM_DATA"]) / ARCHIVE, limit, photographs)
        run = curate(photographs, folder / "run", faces)
        report: dict[str, Any] = {"limit": limit, "faces": faces, "groups": {}}
        for name, by in GROUPS.items():
            found = audit(run, by)
            click.echo(f"\n## By {name}: {found.whole.n} photographs, view {found.view}\n\n{table(found)}\n")
            for share, text in compared(found).items():
                click.echo(f"- {share}: {text}")
            like = at_like_severity(run, by)
            click.echo(f"\nCandidates by severity, groups of {LEAST} and more:\n")
            click.echo("| severity | group | candidates | refused | by |\n| --- | --- | --- | --- | --- |")
            for row in like:
                if row["candidates"] < LEAST:
                    continue
                gates = ", ".join(f"{g} {n}" for g, n in sorted(row["gates"].items(), key=lambda item: -item[1]))
                share = percent(share_of(row["refused"], row["candidates"]))
                click.echo(f"| {row['severities']} | {row['by_']} | {row['candidates']} | {share} | {gates} |")
            report["groups"][name] = {"audit": as_json(found), "at like severity": like}
        if json_path is not None:
            json_path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
