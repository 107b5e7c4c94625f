"""Stages of a run executed from the command line: a new run, one that is there, and what is said in the end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pipelines.config import Config
    from pipelines.run import Outcome


def execute(config: Config, root: str | None, stages: tuple[str, ...], dry_run: bool, retry_failed: bool) -> None:
    """Execute stages of a run, which is made where it is not there, and tell how it ended; exits 1 on failures."""
    from pipelines import run as runs

    root = root or f"runs/{config.dataset.name}"
    config = runs.resolve(config, stages, root)
    if dry_run:
        click.echo(runs.plan(root, config, stages))
        return
    with runs.opened(root, Path(root).name, config) as run:
        _tell(runs.execute(run, config, stages, retry_failed=retry_failed))


def resume(
    root: str,
    stages: tuple[str, ...],
    options: dict[str, Any],
    dry_run: bool,
    retry_failed: bool,
    config_file: Path | None = None,
    overrides: tuple[str, ...] = (),
) -> None:
    """Execute stages of an existing run: what its bytes depend on comes from its own ``run.json``.

    Args:
        options: by the configuration's dotted keys; None is an option that was not given.
    """
    from manifests import rundir
    from pipelines import config

    stored = {f"{section}.{k}": v for section, part in rundir.read(root).config.items() for k, v in part.items()}
    execute(config.load(config_file, overrides, stored | options), root, stages, dry_run, retry_failed)


def _tell(outcome: Outcome) -> None:
    """How far the run is now; where something failed, what to do, and exit code 1."""
    from manifests import rundir, status, storage

    text, _ = status.describe(rundir.read(outcome.root))
    click.echo(text)
    if storage.exists(report := storage.join(outcome.root, "report.html")):
        click.echo(f"  report           {report}")
    if outcome.failures and outcome.stage in ("retrain", "evaluate"):
        what = "jobs failed" if outcome.stage == "retrain" else "sets of images could not be scored"
        click.echo(f"{len(outcome.failures)} {what}; the first: {outcome.failures[0]}", err=True)
        click.echo("Mend the cause and run the same command again: it goes on with what is not done.", err=True)
        sys.exit(1)
    if outcome.failures:
        click.echo(f"{len(outcome.failures)} shards were given up; the first: {outcome.failures[0]}", err=True)
        click.echo("Mend the cause and run the same command with --retry-failed.", err=True)
        sys.exit(1)
