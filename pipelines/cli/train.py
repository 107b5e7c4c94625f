"""The command that trains a restorer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from manifests.errors import ConfigError
from pipelines.cli.options import address_option

if TYPE_CHECKING:
    from pipelines.rounds import Rounds


@click.command("train-idm")
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
@address_option
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
    plan = _plan_of_rounds(sources, rounds, round_nimg or max(1, config.nimg // 6))
    from pipelines.rounds import train_rounds

    del usage["shares"]
    click.echo(train_rounds(sources[0], out, config, plan, **usage, **spread))


def _plan_of_rounds(sources: tuple[str, ...], rounds: str, nimg: int) -> Rounds:
    """What ``--rounds`` asks for: as many as help (``auto``), or at most so many, each of ``nimg`` images."""
    if len(sources) != 1:
        raise ConfigError(f"--rounds: one --source, the raw set that is to be cleaned; there are {len(sources)}")
    if rounds != "auto" and not (rounds.isdecimal() and int(rounds)):
        raise ConfigError(f"--rounds {rounds}: it is auto, or the most rounds there may be")
    from pipelines.rounds import Rounds

    plan = Rounds(nimg=nimg)
    return plan if rounds == "auto" else replace(plan, most=int(rounds))
