"""Commands that execute the stages of curating, one or all, and export what comes of them."""

from __future__ import annotations

import os
from typing import Any

import click

from manifests.errors import ConfigError
from pipelines.cli.execution import execute, resume
from pipelines.cli.options import (
    config_options,
    configured,
    dotted,
    dry_run_option,
    model_option,
    policy_option,
    run_argument,
    source_options,
    worker_options,
)
from pipelines.stages import STAGES


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
    execute(configured(**options), root, stages, dry_run, retry_failed)


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
    execute(configured(**options), root, ("ingest",), dry_run, retry_failed)


@click.command()
@run_argument
@worker_options
@dry_run_option
def restore(root: str, dry_run: bool, retry_failed: bool, **options: Any) -> None:
    """Look at every sample of an ingested run and restore the damaged ones.

    \b
    Example:
      idm-curate restore runs/ffhq --workers 8 --gpus-per-worker 1
    """
    resume(root, ("restore",), dotted(options), dry_run, retry_failed)


@click.command()
@run_argument
@policy_option
@dry_run_option
def select(root: str, dry_run: bool, **options: Any) -> None:
    """Decide on the evidence, by a policy; writes a view. Costs seconds: no image is touched.

    \b
    Examples:
      idm-curate select runs/ffhq --policy strict
      idm-curate select runs/ffhq --validation 0.1
    """
    resume(root, ("select",), dotted(options), dry_run, False)


@click.command()
@run_argument
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
    resume(root, ("pack",) if options["view"] else ("select", "pack"), dotted(options), dry_run, retry_failed)


@click.command()
@run_argument
@click.option("--to", "target", required=True, metavar="PATH", help="The .zip file or the folder.")
@click.option("--format", required=True, type=click.Choice(["stylegan", "hf", "folder"]), help="For whom it is.")
@click.option("--arm", type=click.Choice(["cleaned", "original"]), default="cleaned", show_default=True, help="Which.")
@click.option("--view", metavar="NAME", help="The view that decides on the cleaned arm.  [default: the packed one]")
@click.option("--split", type=click.Choice(["train", "validation"]), help="Only these samples.  [default: all]")
@click.option("--resolution", type=click.IntRange(min=8), metavar="PX", help="Side of all images; Lanczos, PNG.")
@click.option("--crop", type=click.Choice(["center", "none"]), default="center", show_default=True, help="To a square.")
@click.option("--enlarge", is_flag=True, help="Enlarge images that are smaller; they are left out without it.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N images.")
@click.option("--workers", type=click.IntRange(min=0), help="Processes that resize.  [default: one a core; 0: none]")
@dry_run_option
def export(root: str, target: str, workers: int | None, dry_run: bool, **options: Any) -> None:
    """Write curated samples for other trainers: a StyleGAN/EDM zip, a Hugging Face imagefolder, or plain files.

    \b
    Examples:
      idm-curate export runs/ffhq --to ffhq-256.zip --format stylegan --resolution 256
      idm-curate export runs/ffhq --to ffhq-hf --format hf
      idm-curate export runs/ffhq --to originals --format folder --arm original -n

    Image files keep their bytes unless they are resized. The same command again continues, or does nothing.
    """
    from manifests import rundir
    from pipelines.export import export
    from pipelines.exports.plan import Request

    workers = os.cpu_count() or 1 if workers is None else workers
    export(rundir.read(root), target, Request(**options), workers=workers, dry_run=dry_run, say=click.echo)
