"""The command line: each command parses, calls one function, prints. Imports nothing heavy before it must."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from manifests.errors import ConfigError, CurateError
from pipelines.proof import ARMS
from pipelines.stages import STAGES

if TYPE_CHECKING:
    from pipelines.config import Config
    from pipelines.run import Outcome

F = TypeVar("F", bound=Callable[..., Any])

FACES = ("auto", "facexlib", "mobilefacenet", "dlib", "off")
DATASETS = ("sample", "ffhq", "imagenet", "folder", "webdataset")
#: Of ``retrain``, under the names that the declaration has for them.
PROOF_OPTIONS = ("arms", "trainers", "seeds", "snapshots", "classes", "reference", "samples")


def _stack(*options: Callable[[F], F]) -> Callable[[F], F]:
    def apply(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return apply


source_options = _stack(
    click.option("--dataset", type=click.Choice(DATASETS), help="Which layout the source has.  [default: sample]"),
    click.option("--source", metavar="PATH", help="Folder, archive or fsspec URL of the raw dataset."),
    click.option("--truth", metavar="PATH", help="Pristine images under the same names, where damage was planted."),
    click.option("--limit", type=click.IntRange(min=1), help="Only the first N samples, in the order of their names."),
    click.option("--align", type=click.Choice(["ffhq"]), help="Cut faces out of photographs, aligned like FFHQ's."),
    click.option("--faces", type=click.Choice(FACES), help="Which face model looks.  [default: auto]"),
    click.option("--shard-size", type=click.IntRange(min=1), help="Samples per shard.  [default: by dataset]"),
    click.option("--run", "root", metavar="DIR", help="The run directory.  [default: runs/DATASET]"),
)
config_options = _stack(
    click.option("--config", "config_file", type=click.Path(path_type=Path, dir_okay=False), help="YAML file."),
    click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one value of the YAML."),
)
worker_options = _stack(
    click.option("--workers", type=click.IntRange(min=0), help="Ray actors; 0 works in this process, without Ray."),
    click.option("--gpus-per-worker", type=click.FloatRange(min=0), help="GPUs per restore actor; 0.5 packs two."),
    click.option("--address", metavar="URL", help="A running Ray cluster.  [default: $RAY_ADDRESS, else this machine]"),
    click.option("--retry-failed", is_flag=True, help="Try shards again that were given up."),
)
model_option = click.option(
    "--restorer", metavar="NAME", help="A shipped model, FILE.safetensors, spandrel:FILE or python:module:Class."
)
policy_option = _stack(
    click.option("--policy", metavar="NAME|FILE", help="A shipped policy or a YAML file."),
    click.option("--validation", type=click.FloatRange(0, 1, max_open=True), help="Share of the samples to hold out."),
)
dry_run_option = click.option("-n", "--dry-run", is_flag=True, help="Print the plan and touch nothing.")


class _Messages(click.Group):
    """Turns our own errors into messages: 2 for what the user asked, 1 for what went wrong, 130 for Ctrl-C."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except CurateError as error:
            click.echo(f"Error: {error}", err=True)
            context.exit(2 if isinstance(error, ConfigError) else 1)
        except KeyboardInterrupt:
            click.echo("Interrupted; nothing is lost: the same command again continues.", err=True)
            context.exit(130)


@click.group(cls=_Messages, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="idm-curate")
@click.option("-v", "--verbose", is_flag=True, help="Say more of what is going on.")
def cli(verbose: bool) -> None:
    """Curate an image dataset: shard, measure, restore what is damaged, decide on the evidence, pack, report.

    \b
    Examples:
      idm-curate run --dataset sample
      idm-curate run --dataset ffhq --source /data/ffhq/images1024x1024
      idm-curate status runs/ffhq

    The same command again continues where it was interrupted.
    """
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr
    )
    logging.getLogger("idm_curate").setLevel(logging.INFO)
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.INFO if verbose else logging.WARNING)


def _config(config_file: Path | None, overrides: tuple[str, ...], **options: Any) -> Config:
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


def _work(config: Config, root: str | None, stages: tuple[str, ...], dry_run: bool, retry_failed: bool) -> None:
    from pipelines import run as runs

    root = root or f"runs/{config.dataset.name}"
    config = runs.resolve(config, stages, root)
    if dry_run:
        click.echo(runs.plan(root, config, stages))
        return
    with runs.opened(root, Path(root).name, config) as run:
        _finish(runs.execute(run, config, stages, retry_failed=retry_failed))


def _continue(
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
    _work(config.load(config_file, overrides, stored | resources | decision), root, stages, dry_run, retry_failed)


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


@cli.command()
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
    _work(_config(**options), root, stages, dry_run, retry_failed)


@cli.command()
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
    _work(_config(**options), root, ("ingest",), dry_run, retry_failed)


@cli.command("train-idm")
@click.option("--source", "sources", multiple=True, required=True, metavar="PATH", help="Good photographs; repeatable.")
@click.option("--share", "shares", multiple=True, type=float, help="How often each source is drawn from.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of the training.")
@click.option("--preset", default="idm-64", show_default=True, help="Size of the model; see idm_core/presets.py.")
@click.option("--nimg", type=click.IntRange(min=1), default=300_000, show_default=True, help="Length, in images seen.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything random.")
@click.option(
    "--start",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Checkpoint to begin with the weights of.",
)
@click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True, help="Images at once.")
@click.option(
    "--accumulate",
    type=click.IntRange(min=1),
    help="Batches per step: a step is of batch x accumulate images.  [default: one a worker]",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Processes of Ray Train that share each step's batches; 0 trains in this process, without Ray.",
)
@click.option("--gpus-per-worker", type=click.IntRange(0, 1), help="[default: 1 where Ray has GPUs]")
@click.option("--address", metavar="URL", help="A running Ray cluster.  [default: $RAY_ADDRESS, else this machine]")
@click.option(
    "--data-processes",
    type=click.IntRange(min=0),
    help="That damage photographs ahead of each training process.  [default: 4 with a GPU, else 0]",
)
@click.option("--rounds", metavar="auto|N", help="Clean the one source with what was learnt from it, and train on.")
@click.option("--round-nimg", type=click.IntRange(min=1), help="Length of later rounds.  [default: a sixth of --nimg]")
@click.option("--precision", type=click.Choice(["auto", "bf16", "fp32"]), default="auto", help="Of the products.")
@click.option("--compile", "compiled", is_flag=True, help="torch.compile the networks: minutes, then faster on GPUs.")
@click.option("--lpips", is_flag=True, help="Add LPIPS to the loss; needs AlexNet's trunk, see `idm-curate doctor`.")
@click.option("--device", metavar="cpu|cuda", help="Without workers.  [default: cuda where there is one]")
@click.option(
    "--calibrate-to",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help=("Train nothing: choose the threshold of the newest checkpoint in --out and write the result to FILE."),
)
def train_idm(sources: tuple[str, ...], shares: tuple[float, ...], lpips: bool, compiled: bool, **options: Any) -> None:
    """Train a restorer on photographs of yours. The same command again goes on where it stopped.

    \b
    Examples:
      idm-curate train-idm --source photos.zip --source faces/ --out models/mine --nimg 300000
      idm-curate run --dataset folder --source raw/ --restorer models/mine/idm-64.safetensors
      idm-curate train-idm --source /mnt/photos.zip --out /mnt/models/big --preset idm-256 --batch 16 --workers 8
      idm-curate train-idm --source raw/ --out models/raw --rounds auto

    With --rounds the source may be dirty itself: each round cleans it with the model so far, trains on with that, and
    stops when damage planted in its best held-out photographs is no longer restored better.
    With workers on several nodes --source, --start and --out have to be on storage that all of them see.
    """
    import torch

    from idm_core.presets import preset_named
    from idm_core.training import TrainConfig
    from pipelines import weights
    from pipelines.train_idm import calibrate, train_idm

    device = options.pop("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    target, out, preset, start = (options.pop(name) for name in ("calibrate_to", "out", "preset", "start"))
    rounds, round_nimg = options.pop("rounds"), options.pop("round_nimg")
    spread = {name: options.pop(name) for name in ("workers", "gpus_per_worker", "address")}
    options["accumulate"] = options["accumulate"] or max(1, spread["workers"])
    if options["data_processes"] is None:
        options["data_processes"] = 4 if device.startswith("cuda") or spread["gpus_per_worker"] else 0
    if target is not None:
        click.echo(calibrate(out / f"{preset}.safetensors", sources, shares or None, to=target, device=device))
        return
    trunk = weights.required(weights.LPIPS_TRUNK) if lpips else None
    try:
        config = TrainConfig(preset_named(preset), perceptual=0.1 if lpips else 0.0, compile=compiled, **options)
    except ValueError as error:
        raise ConfigError(f"--preset: {error}") from error
    usage = {"shares": shares or None, "start": start, "lpips_trunk": trunk, "device": device}
    if rounds is None:
        click.echo(train_idm(sources, out, config, **usage, **spread))
        return
    if len(sources) != 1:
        raise ConfigError(f"--rounds: one --source, the raw set that is to be cleaned; there are {len(sources)}")
    if rounds != "auto" and not (rounds.isdecimal() and int(rounds)):
        raise ConfigError(f"--rounds {rounds}: it is auto, or the most rounds there may be")
    from pipelines.rounds import Rounds, train_rounds

    plan = Rounds(nimg=round_nimg or max(1, config.nimg // 6))
    if rounds != "auto":
        plan = replace(plan, most=int(rounds))
    del usage["shares"]
    click.echo(train_rounds(sources[0], out, config, plan, **usage, **spread))


@cli.command()
@click.argument("root", metavar="RUN")
@worker_options
@dry_run_option
def restore(root: str, dry_run: bool, retry_failed: bool, **options: Any) -> None:
    """Look at every sample of an ingested run and restore the damaged ones.

    \b
    Example:
      idm-curate restore runs/ffhq --workers 8 --gpus-per-worker 1
    """
    _continue(root, ("restore",), options, dry_run, retry_failed)


@cli.command()
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
    _continue(root, ("select",), options, dry_run, False)


@cli.command()
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
    _continue(root, ("pack",) if options["view"] else ("select", "pack"), options, dry_run, retry_failed)


@cli.command()
@click.argument("root", metavar="RUN")
@click.option("--arm", "arms", multiple=True, type=click.Choice(ARMS), help="Repeatable; original is one of them.")
@click.option(
    "--trainer", "trainers", multiple=True, metavar="NAME", help="A preset, or of proof.external; repeatable."
)
@click.option("--seeds", type=click.IntRange(min=1), help="Runs of each arm and trainer; may grow later.")
@click.option("--nimg", multiple=True, metavar="N|TRAINER=N", help="Images that a job sees, of all trainers or of one.")
@click.option("--snapshots", type=click.IntRange(min=1), help="Of each job, to be scored.")
@click.option("--classes", is_flag=True, default=None, help="Class-conditional, by the samples' labels.")
@click.option("--reference", metavar="held-out|SET", help="The images that samples should be like.")
@click.option("--samples", type=click.IntRange(min=2), help="Images that each snapshot makes.")
@config_options
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    help="Processes that share each batch of a job; 0: one job after the other in this process, without Ray.",
)
@click.option("--gpus-per-worker", type=click.FloatRange(min=0), help="[default: 1 where Ray has GPUs]; 0.5 packs two.")
@click.option("--jobs-at-once", type=click.IntRange(min=1), help="[default: as many as the cluster has room for]")
@click.option("--address", metavar="URL", help="A running Ray cluster.  [default: $RAY_ADDRESS, else this machine]")
@dry_run_option
def retrain(root: str, dry_run: bool, config_file: Path | None, overrides: tuple[str, ...], **options: Any) -> None:
    """Train generators on the arms of a run: a job for each arm, trainer and seed, side by side on Ray.

    What is going to be compared is declared first, in RUN/jobs/proof.json, and holds from then on; only --seeds may
    grow. What is not named is as declared, else the default. The section `proof` of the YAML file holds all of it.

    \b
    Examples:
      idm-curate retrain runs/ffhq -n
      idm-curate retrain runs/ffhq --arm original --arm cleaned --trainer ddm-64 --seeds 3 --nimg 50000000
      idm-curate retrain runs/ffhq --config proof.yaml --address auto

    The same command again, or `idm-curate retrain RUN` alone, goes on where it was interrupted.
    """
    workers = options.pop("workers")
    proof = {f"proof.{name}": options.pop(name) or None for name in PROOF_OPTIONS}
    proof |= {"proof.nimg": _nimg(options.pop("nimg")), "proof.workers": workers or None}
    options["workers"] = 0 if workers == 0 else None
    _continue(root, ("retrain",), proof | options, dry_run, False, config_file, overrides)


def _nimg(values: tuple[str, ...]) -> int | dict[str, int] | None:
    """One length, or one by trainer."""
    try:
        if len(values) == 1 and "=" not in values[0]:
            return int(values[0])
        lengths = {trainer: int(n) for trainer, _, n in (value.partition("=") for value in values)}
    except ValueError:
        raise ConfigError(f"--nimg {' '.join(values)}: expected one number, or TRAINER=N for each trainer") from None
    return lengths or None


@cli.command()
@click.argument("root", metavar="RUN")
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


@cli.command()
@click.argument("root", metavar="RUN")
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


@cli.command()
@click.argument("root", metavar="RUN")
@click.argument("sql", required=False)
@click.option("--schema", "show_schema", is_flag=True, help="Print all tables, with columns, types and units.")
@click.option("--policy", metavar="NAME", help="The view whose decisions `samples` has.  [default: the packed one]")
@click.option(
    "--format", type=click.Choice(["table", "json", "csv", "parquet"]), help="[default: by --out, else table]"
)
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
        if options["out"]:
            left_out = queries.write(answer.rows, options["out"], form, options["limit"])
        else:
            left_out = queries.print_to(sys.stdout, answer.rows, form, options["limit"])
    if left_out:
        click.echo(f"{left_out} more rows; --limit shows more of them, --out FILE keeps them all", err=True)
    if answer.decided_by:
        click.echo(f"samples: status, gate and margin are those of the view {answer.decided_by}", err=True)


@cli.command()
@click.argument("root", metavar="RUN")
@click.option("--by", required=True, metavar="COLUMN|SQL", help="What makes the groups: of the columns of `samples`.")
@click.option("--view", metavar="NAME", help="The view that decides.  [default: the packed one]")
@click.option(
    "--format", type=click.Choice(["table", "json", "csv", "parquet"]), help="[default: by --out, else table]"
)
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
    form: queries.Format = options["format"] or queries.format_of(out)
    if form == "json":
        text = json.dumps(audits.as_json(found), indent=2, ensure_ascii=False)
        if out:
            storage.write_bytes(text.encode() + b"\n", out)
        else:
            click.echo(text)
        return
    table = (audits.as_shown if form == "table" else audits.as_table)(found).to_reader()
    left_out = queries.write(table, out, form, limit) if out else queries.print_to(sys.stdout, table, form, limit)
    if left_out:
        click.echo(f"{left_out} more rows; --limit shows more of them, --out FILE keeps them all", err=True)
    for line in audits.as_text(found):
        click.echo(line, err=form != "table")


@cli.command()
@click.argument("root_a", metavar="RUN_A")
@click.argument("root_b", metavar="RUN_B")
@click.option("--policy", metavar="NAME", help="The view that decides in RUN_A.  [default: the packed one]")
@click.option("--policy-b", metavar="NAME", help="The same in RUN_B.  [default: the packed one of RUN_B]")
@click.option("--json", "as_json", is_flag=True, help="All of it, for programs.")
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


@cli.command()
@click.argument("samples", metavar="SAMPLES")
@click.option("--reference", metavar="REF", help="The images that SAMPLES should be like; not for a run.")
@click.option(
    "--detector",
    type=click.Choice(["auto", "inception", "effnet", "dinov2"]),
    default="auto",
    show_default=True,
    help="Whose features; auto is Inception where its file is, see `idm-curate doctor`, else EfficientNet-lite0.",
)
@click.option("--side", type=click.IntRange(min=32), default=224, show_default=True, help="Of effnet's input, pixels.")
@click.option("--kept", type=click.IntRange(min=2), default=10_000, show_default=True, help="Images for all but FD.")
@click.option("--crops", type=click.IntRange(min=0), default=1, show_default=True, help="Of each image.")
@click.option("--crop", type=click.IntRange(min=8), metavar="PX", help="Side of a crop.  [default: the detector's]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything that is drawn.")
@click.option("--cache", type=click.Path(path_type=Path, file_okay=False), help="Folder that features are kept in.")
@click.option("--workers", type=click.IntRange(min=0), default=0, show_default=True, help="Ray actors; 0: none.")
@click.option("--gpus-per-worker", type=click.FloatRange(min=0), help="[default: 1 where Ray has GPUs]")
@click.option("--address", metavar="URL", help="A running Ray cluster.  [default: $RAY_ADDRESS, else this machine]")
@click.option("--ablate", metavar="KINDS", help="Of a run: what each of blur,jpeg,noise,upscaled costs; no training.")
@click.option("--json", "as_json", is_flag=True, help="All of it, for programs.")
def evaluate(
    samples: str, reference: str | None, detector: str, side: int, ablate: str | None, as_json: bool, **options: Any
) -> None:
    """Measure how far a set of images is from a reference: FID or FD-EffNet, kernel distance, precision, recall ...

    Each is a folder, a .zip or .tar, WebDataset shards, or a view of a run, RUN/views/NAME.parquet. Of a run directory,
    without --reference, all snapshots of its jobs are scored, as it was declared.

    \b
    Examples:
      idm-curate evaluate samples/ --reference held-out.zip
      idm-curate evaluate "runs/ffhq/cleaned/ffhq-{000000..000139}.tar" --reference ffhq-test/ --json
      idm-curate evaluate runs/ffhq/views/strict.parquet --reference ffhq-test/ --workers 8 --gpus-per-worker 1
      idm-curate evaluate runs/ffhq
      idm-curate evaluate runs/ffhq --ablate blur,jpeg,noise,upscaled

    Features are kept on disk: what was looked at once is not looked at again, and an interrupted command continues.
    """
    import json
    from functools import partial

    from pipelines import evaluate as evaluation
    from pipelines.config import Resources
    from pipelines.detectors import open_detector, resolve_detector
    from pipelines.feature_sets import Sampling
    from pipelines.weights import weights_folder

    if reference is None:
        from manifests import storage

        if not storage.exists(storage.join(samples, "run.json")):
            raise ConfigError(f"--reference is missing, and {samples} is no run directory")
        resources = {name: options[name] for name in ("workers", "gpus_per_worker", "address")}
        if ablate is not None:
            from manifests import rundir
            from pipelines.proof import influence, plan

            run = rundir.read(samples)
            with rundir.lock(run.root):
                costs = influence.influence(run, plan.read(run), ablate.split(","), Resources(**resources))
            click.echo(json.dumps(costs, indent=1) if as_json else "\n".join(influence.as_text(costs)))
            return
        _continue(samples, ("evaluate",), resources, dry_run=False, retry_failed=False)
        return
    if ablate is not None:
        raise ConfigError("--ablate is of a run's own data: leave out --reference, the run's proof declares one")
    if side % 32:
        raise ConfigError(f"--side {side}: it is a multiple of 32")
    name, folder = resolve_detector(detector, weights_folder()), weights_folder()
    cache, seed = options.pop("cache"), options.pop("seed")
    sampling = Sampling(seed, options.pop("kept"), options.pop("crops"), options.pop("crop"))
    found = evaluation.evaluate(
        samples,
        reference,
        partial(open_detector, name, weights_folder=folder, side=side),
        sampling=sampling,
        resources=Resources(**options),
        cache=cache,
    )
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for line in evaluation.as_text(found):
        click.echo(line)


@cli.command()
@click.argument("root", metavar="RUN")
def status(root: str) -> None:
    """Say how far a run is: shards per stage, samples per status, failures.

    \b
    Example:
      idm-curate status runs/ffhq
    """
    from manifests import rundir, status

    click.echo(status.describe(rundir.read(root))[0])


@cli.command()
@click.argument("root", metavar="RUN")
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


@cli.command()
def doctor() -> None:
    """Say which devices, weights and optional parts are there, and how to get what is missing.

    \b
    Example:
      idm-curate doctor
    """
    from pipelines.doctor import examine

    for line in examine():
        click.echo(line)


@cli.command("check-restorer")
@click.argument("name", metavar="NAME")
@click.option("--device", metavar="cpu|cuda", default="cpu", show_default=True, help="Where it restores.")
def check_restorer(name: str, device: str) -> None:
    """Check a restorer against the contract, on photographs that are installed with this program. Exits 1 if it breaks.

    NAME is what --restorer takes: a shipped model, FILE.safetensors, spandrel:FILE, or python:module:Class, which runs
    your code.

    \b
    Examples:
      idm-curate check-restorer idm-64
      idm-curate check-restorer spandrel:weights/RealESRGAN_x2plus.pth
      PYTHONPATH=. idm-curate check-restorer python:mine:Mine
    """
    from pipelines.restorers import open_restorer
    from pipelines.restorers.contract import check, photographs
    from pipelines.workers import use_one_thread

    use_one_thread()  # as the stage does
    violated = 0
    for clause, violation in check(open_restorer(name, device), photographs()):
        click.echo(
            f"{'passed  ' if violation is None else 'VIOLATED'}  {clause}" + (f": {violation}" if violation else "")
        )
        violated += violation is not None
    if violated:
        sys.exit(1)


@cli.command(context_settings={"ignore_unknown_options": True})
@click.option("--address", required=True, metavar="URL", help="The cluster's dashboard, for example http://HEAD:8265.")
@click.option("--no-wait", is_flag=True, help="Return once the job is accepted.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def submit(address: str, no_wait: bool, command: tuple[str, ...]) -> None:
    """Run a command of this program on a Ray cluster that has it installed. Exits with the job's success.

    \b
    Example:
      idm-curate submit --address http://HEAD:8265 -- run --dataset ffhq --source /mnt/ffhq --run /mnt/runs/ffhq
    """
    from pipelines.submit import submit_job

    sys.exit(submit_job(address, command, wait=not no_wait, say=click.echo))


def main() -> None:
    """Entry point."""
    cli()
