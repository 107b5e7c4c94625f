"""Commands that take a run through its stages, and how options become its configuration."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from manifests.errors import ConfigError
from pipelines.cli.options import (
    config_options,
    dry_run_option,
    model_option,
    policy_option,
    source_options,
    worker_options,
)
from pipelines.stages import STAGES

if TYPE_CHECKING:
    from pipelines.config import Config
    from pipelines.run import Outcome


@click.command()
@source_options
@model_option
@policy_option
@click.option(
    "--until",
    type=click.Choice(STAGES),
    default="pack",
    show_default=True,
    help="Stop after this stage; pack and report end with a report.",
)
@worker_options
@config_options
@dry_run_option
def run(root: str | None, until: str, dry_run: bool, retry_failed: bool, **options: Any) -> None:
    """Ingest, restore, select, pack and report; with --until report, retrain and evaluate before it: the proof.

    The same command again continues, or does nothing.

    \b
    Examples:
      idm-curate run --dataset sample
      idm-curate run --dataset ffhq --source /data/ffhq -n
      idm-curate run --dataset ffhq --source /data/ffhq --until report --set proof.seeds=3
      idm-curate run --dataset folder --source s3://bucket/photos --workers 8 --gpus-per-worker 1
      idm-curate run --dataset sample --set restore.threshold=0.3 --run runs/cautious
    """
    stages = STAGES[: STAGES.index(until) + 1]
    if until == "pack":  # of what there is: what comes between takes hours
        stages = (*stages, "report")
    work(configured(**options), root, stages, dry_run, retry_failed)


@click.command()
@source_options
@worker_options
@config_options
@model_option
@dry_run_option
def ingest(root: str | None, dry_run: bool, retry_failed: bool, **options: Any) -> None:
    """Shard and measure a raw dataset; find duplicates.

    \b
    Example:
      idm-curate ingest --dataset imagenet --source /data/ILSVRC2012_img_train.tar
      idm-curate ingest --dataset folder --source /data/photos --align ffhq --set ingest.align_size=512
    """
    work(configured(**options), root, ("ingest",), dry_run, retry_failed)


@click.command()
@click.argument("root", metavar="RUN")
@worker_options
@dry_run_option
def restore(root: str, dry_run: bool, retry_failed: bool, **options: Any) -> None:
    """Look at every sample of an ingested run and restore the damaged ones.

    \b
    Example:
      idm-curate restore runs/ffhq --workers 8 --gpus-per-worker 1
    """
    go_on(root, ("restore",), options, dry_run, retry_failed)


@click.command()
@click.argument("root", metavar="RUN")
@policy_option
@dry_run_option
def select(root: str, dry_run: bool, **options: Any) -> None:
    """Decide on the evidence, by a policy; writes a view. Costs seconds: no image is touched.

    \b
    Examples:
      idm-curate select runs/ffhq --policy strict
      idm-curate select runs/ffhq --validation 0.1
    """
    go_on(root, ("select",), options, dry_run, False)


@click.command()
@click.argument("root", metavar="RUN")
@policy_option
@click.option("--view", metavar="NAME", help="A view that is there, of a policy or a query, instead of a policy.")
@worker_options
@dry_run_option
def pack(root: str, dry_run: bool, retry_failed: bool, **options: Any) -> None:
    """Write the cleaned shards that a policy's view decided on.

    \b
    Examples:
      idm-curate pack runs/ffhq --policy strict
      idm-curate pack runs/ffhq --view sharp
    """
    if options["view"] and (options["policy"] or options["validation"] is not None):
        raise ConfigError("--view is a view that is there; --policy and --validation decide anew: give either")
    go_on(root, ("pack",) if options["view"] else ("select", "pack"), options, dry_run, retry_failed)


def configured(config_file: Path | None, overrides: tuple[str, ...], **options: Any) -> Config:
    from pipelines import config, datasets

    names = {"dataset": "dataset.name", "restorer": "restore.restorer", "policy": "policy", "validation": "validation"}
    names |= {"align": "ingest.align", "faces": "faces.model"}
    sections = {"source": "dataset", "truth": "dataset", "limit": "dataset", "shard_size": "dataset"}
    resources = ("workers", "gpus_per_worker", "jobs_at_once", "address")
    dotted = {names[k]: v for k, v in options.items() if k in names}
    dotted |= {f"{sections[k]}.{k}": v for k, v in options.items() if k in sections}
    dotted |= {f"resources.{k}": options.get(k) for k in resources}
    loaded = config.load(config_file, overrides, dotted)
    if loaded.dataset.source is None and loaded.dataset.name != "sample":
        raise ConfigError(datasets.how_to_get(loaded.dataset.name))
    return loaded


def work(config: Config, root: str | None, stages: tuple[str, ...], dry_run: bool, retry_failed: bool) -> None:
    from pipelines import run as runs

    root = root or f"runs/{config.dataset.name}"
    config = runs.resolve(config, stages, root)
    if dry_run:
        click.echo(runs.plan(root, config, stages))
        return
    with runs.opened(root, Path(root).name, config) as run:
        _finish(runs.execute(run, config, stages, retry_failed=retry_failed))


def go_on(
    root: str,
    stages: tuple[str, ...],
    options: dict[str, Any],
    dry_run: bool,
    retry_failed: bool,
    config_file: Path | None = None,
    overrides: tuple[str, ...] = (),
) -> None:
    """Work on an existing run: what its bytes depend on comes from its own ``run.json``."""
    from manifests import rundir
    from pipelines import config

    stored = {f"{section}.{k}": v for section, part in rundir.read(root).config.items() for k, v in part.items()}
    decision = {k: options.pop(k) for k in list(options) if k in ("policy", "validation", "view") or "." in k}
    resources = {f"resources.{k}": v for k, v in options.items()}
    work(config.load(config_file, overrides, stored | resources | decision), root, stages, dry_run, retry_failed)


def _finish(outcome: Outcome) -> None:
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
