"""Commands that look at a run and change nothing of its samples: how far, how whole, what, why, and the report."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from manifests.errors import ConfigError
from pipelines.cli.options import json_option, run_argument

if TYPE_CHECKING:
    import pyarrow as pa

    from pipelines.query import Format

form_option = click.option(
    "--format", type=click.Choice(["table", "json", "csv", "parquet"]), help="[default: by --out, else table]"
)


@click.command()
@run_argument
def status(root: str) -> None:
    """Say how far a run is: shards per stage, samples per status, failures.

    \b
    Example:
      idm-curate status runs/ffhq
    """
    from manifests import rundir, status

    click.echo(status.describe(rundir.read(root))[0])


@click.command()
@run_argument
@click.option("--hashes", is_flag=True, help="Read everything and compare SHA-256 too.")
def verify(root: str, hashes: bool) -> None:
    """Audit a run: all planned shards there and whole, keys in equal keys out, counts add up. Exits 1 if not.

    \b
    Example:
      idm-curate verify runs/ffhq --hashes
    """
    from manifests import rundir
    from manifests.verify import problems

    run = rundir.read(root)
    found = list(problems(run, hashes=hashes))
    for problem in found:
        click.echo(problem)
    listing = run.listing()
    click.echo(f"{listing['rows']} samples in {len(run.shards())} shards: {len(found) or 'no'} problems found")
    if found:
        sys.exit(1)


@click.command()
@run_argument
@click.option("--audit-by", multiple=True, metavar="COLUMN|SQL", help="A further audit, as `audit --by`; repeatable.")
def report(root: str, audit_by: tuple[str, ...]) -> None:
    """Write report.html and report.json from whatever the run holds.

    \b
    Examples:
      idm-curate report runs/ffhq
      idm-curate report runs/faces --audit-by "split_part(parse_filename(source_name), '_', 2)"
    """
    from pipelines.report import write_report

    click.echo(write_report(root, audit_by=audit_by))


@click.command()
@run_argument
@click.argument("sql", required=False)
@click.option("--schema", "show_schema", is_flag=True, help="Print all tables, with columns, types and units.")
@click.option("--policy", metavar="NAME", help="The view whose decisions `samples` has.  [default: the packed one]")
@form_option
@click.option("--out", metavar="FILE", help="Write the answer there, a path or URL, whole or not at all.")
@click.option("--limit", type=click.IntRange(min=1), help="Rows at most.  [default: 40 in a table, else all]")
@click.option(
    "--view", metavar="NAME", help="Save the samples whose `key` is in the answer as a view, for pack --view."
)
def query(root: str, sql: str | None, show_schema: bool, **options: Any) -> None:
    """Ask a run's manifests, in SQL (DuckDB's). Nothing but the run is read, and nothing of it is written.

    Tables: `samples`, a row for every sample with all that is known of it, and `source`, `restored`, `cleaned`,
    `duplicates`, `views.NAME`, as the stages left them.

    \b
    Examples:
      idm-curate query runs/ffhq --schema
      idm-curate query runs/ffhq "SELECT status, gate, count(*) FROM samples GROUP BY ALL"
      idm-curate query runs/ffhq "FROM samples WHERE severity > 0.5" --out damaged.parquet
      idm-curate query runs/ffhq "SELECT key FROM samples WHERE sharpness > 0.8" --view sharp
      idm-curate pack runs/ffhq --view sharp
    """
    from manifests import rundir
    from pipelines import query as queries

    run = rundir.read(root)
    if show_schema or sql is None:
        if not show_schema:
            raise ConfigError('give a query, as "SELECT status, count(*) FROM samples GROUP BY ALL", or --schema')
        click.echo(queries.described(run))
        return
    if options["view"] is not None:
        if options["out"] or options["format"] or options["limit"]:
            raise ConfigError(
                "--view saves every key of the answer, in its own form: leave out --out, --format and --limit"
            )
        from pipelines.query_view import save_view

        marker = save_view(run, options["view"], sql, options["policy"])
        counts = ", ".join(f"{n} {name}" for name, n in marker["counts"].items())
        click.echo(
            f"view {options['view']}: {marker['chosen']} samples chosen, decided by view {marker['view']}; {counts}"
        )
        return
    form = options["format"] or queries.format_of(options["out"])
    with queries.answered(run, sql, options["policy"]) as answer:
        _tell_rows(answer.rows, options["out"], form, options["limit"])
    if answer.decided_by:
        click.echo(f"samples: status, gate and margin are those of the view {answer.decided_by}", err=True)


@click.command()
@run_argument
@click.option("--by", required=True, metavar="COLUMN|SQL", help="What makes the groups: of the columns of `samples`.")
@click.option("--view", metavar="NAME", help="The view that decides.  [default: the packed one]")
@form_option
@click.option("--out", metavar="FILE", help="Write it there, a path or URL, whole or not at all.")
@click.option("--limit", type=click.IntRange(min=1), help="Groups shown at most.  [default: 40 in a table, else all]")
def audit(root: str, by: str, view: str | None, out: str | None, limit: int | None, **options: Any) -> None:
    """Say whether cleaning treats groups alike: outcomes by class, or by anything that SQL finds in the manifests.

    For each group the shares with 95 % intervals, then whether the groups differ (chi-square) and which two most, with
    an interval that holds for all pairs at once.

    \b
    Examples:
      idm-curate audit runs/imagenet --by class_name
      idm-curate audit runs/ffhq --by "floor(5 * severity) / 5" --view strict
      idm-curate audit runs/faces --by "split_part(parse_filename(source_name), '_', 3)" --out race.json

    UTKFace names a file age_gender_race_date.jpg: split_part's last argument is 1, 2 or 3. Gender is 0 male, 1 female;
    race 0 White, 1 Black, 2 Asian, 3 Indian, 4 others.
    """
    import json

    from manifests import rundir, storage
    from pipelines import audit as audits
    from pipelines import query as queries

    found = audits.audit(rundir.read(root), by, view)
    form: Format = options["format"] or queries.format_of(out)
    if form == "json":
        text = json.dumps(audits.as_json(found), indent=2, ensure_ascii=False)
        if out:
            storage.write_bytes(text.encode() + b"\n", out)
        else:
            click.echo(text)
        return
    table = (audits.as_shown if form == "table" else audits.as_table)(found).to_reader()
    _tell_rows(table, out, form, limit)
    for line in audits.as_text(found):
        click.echo(line, err=form != "table")


def _tell_rows(rows: pa.RecordBatchReader, out: str | None, form: Format, limit: int | None) -> None:
    """Write an answer to a file, else print it, and say what the limit left out."""
    from pipelines import query as queries

    left_out = queries.write(rows, out, form, limit) if out else queries.print_to(sys.stdout, rows, form, limit)
    if left_out:
        click.echo(f"{left_out} more rows; --limit shows more of them, --out FILE keeps them all", err=True)


@click.command()
@click.argument("root_a", metavar="RUN_A")
@click.argument("root_b", metavar="RUN_B")
@click.option("--policy", metavar="NAME", help="The view that decides in RUN_A.  [default: the packed one]")
@click.option("--policy-b", metavar="NAME", help="The same in RUN_B.  [default: the packed one of RUN_B]")
@json_option
def diff(root_a: str, root_b: str, policy: str | None, policy_b: str | None, as_json: bool) -> None:
    """Say which samples changed status between two runs, or by two policies of one, and why.

    \b
    Examples:
      idm-curate diff runs/ffhq runs/ffhq-cautious
      idm-curate diff runs/ffhq runs/ffhq --policy default --policy-b strict
      idm-curate diff runs/ffhq runs/ffhq-cautious --json > diff.json
    """
    import json

    from manifests import rundir
    from pipelines import diff as diffs

    found = diffs.diff(rundir.read(root_a), rundir.read(root_b), policy, policy_b)
    if as_json:
        click.echo(json.dumps(diffs.as_json(found), indent=2, ensure_ascii=False))
        return
    for line in diffs.as_text(found):
        click.echo(line)
