"""Commands of the proof: train generators on the arms of a run, and score what they make, or any set of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from manifests.errors import ConfigError
from pipelines.cli.execution import resume
from pipelines.cli.options import address_option, config_options, dotted, dry_run_option, json_option, run_argument
from pipelines.proof import ARMS

#: Of ``retrain``, under the names that the declaration has for them.
PROOF_OPTIONS: Final = ("arms", "trainers", "snapshots", "classes", "reference", "samples")
_EACH: Final = "N|TRAINER=N"


@click.command()
@run_argument
@click.option("--arm", "arms", multiple=True, type=click.Choice(ARMS), help="Repeatable; original is one of them.")
@click.option(
    "--trainer", "trainers", multiple=True, metavar="NAME", help="A preset, or of proof.external; repeatable."
)
@click.option("--seeds", multiple=True, metavar=_EACH, help="Runs of each arm, with all trainers or one; may grow.")
@click.option("--nimg", multiple=True, metavar=_EACH, help="Images that a job sees, of all trainers or of one.")
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
@address_option
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
    proof |= {f"proof.{name}": _by_trainer(name, options.pop(name)) for name in ("seeds", "nimg")}
    proof["proof.workers"] = workers or None
    options["workers"] = 0 if workers == 0 else None
    resume(root, ("retrain",), proof | dotted(options), dry_run, False, config_file, overrides)


def _by_trainer(name: str, values: tuple[str, ...]) -> int | dict[str, int] | None:
    """One number, given again the last one, as of any option; or one by trainer."""
    try:
        if values and not any("=" in value for value in values):
            return int(values[-1])
        numbers = {trainer: int(n) for trainer, _, n in (value.partition("=") for value in values)}
    except ValueError:
        raise ConfigError(f"--{name} {' '.join(values)}: expected one number, or TRAINER=N for each trainer") from None
    return numbers or None


@click.command()
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
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    help="Ray actors; 0: none.  [default: of a run as many as there is room for, else 0]",
)
@click.option("--gpus-per-worker", type=click.FloatRange(min=0), help="[default: 1 where Ray has GPUs]")
@address_option
@click.option("--ablate", metavar="KINDS", help="Of a run: what each of blur,jpeg,noise,upscaled costs; no training.")
@json_option
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
    if reference is None:
        resources = {name: options[name] for name in ("workers", "gpus_per_worker", "address")}
        _evaluate_run(samples, ablate, as_json, resources)
        return
    if ablate is not None:
        raise ConfigError("--ablate is of a run's own data: leave out --reference, the run's proof declares one")
    if side % 32:
        raise ConfigError(f"--side {side}: it is a multiple of 32")
    options["workers"] = options["workers"] or 0
    _evaluate_sets(samples, reference, detector, side, as_json, **options)


def _evaluate_run(root: str, ablate: str | None, as_json: bool, resources: dict[str, Any]) -> None:
    """Score the snapshots of a run's proof, or say what each kind of damage costs by itself."""
    import json

    from manifests import rundir, storage

    if not storage.exists(storage.join(root, "run.json")):
        raise ConfigError(f"--reference is missing, and {root} is no run directory")
    if ablate is None:
        resume(root, ("evaluate",), dotted(resources), dry_run=False, retry_failed=False)
        return
    from pipelines.config import Resources
    from pipelines.proof import influence, plan

    run = rundir.read(root)
    with rundir.lock(run.root):
        costs = influence.influence(run, plan.read(run), ablate.split(","), Resources(**resources))
    click.echo(json.dumps(costs, indent=1) if as_json else "\n".join(influence.as_text(costs)))


def _evaluate_sets(
    samples: str,
    reference: str,
    detector: str,
    side: int,
    as_json: bool,
    *,
    seed: int,
    kept: int,
    crops: int,
    crop: int | None,
    cache: Path | None,
    **resources: Any,
) -> None:
    """Measure the distance of any two sets of images."""
    import json
    from functools import partial

    from pipelines import evaluate as evaluation
    from pipelines.config import Resources
    from pipelines.detectors import open_detector, resolve_detector
    from pipelines.feature_sets import Sampling
    from pipelines.weights import weights_folder

    folder = weights_folder()
    found = evaluation.evaluate(
        samples,
        reference,
        partial(open_detector, resolve_detector(detector, folder), weights_folder=folder, side=side),
        sampling=Sampling(seed, kept, crops, crop),
        resources=Resources(**resources),
        cache=cache,
    )
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for line in evaluation.as_text(found):
        click.echo(line)
