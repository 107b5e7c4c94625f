"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

FACES = ("auto", "facexlib", "mobilefacenet", "dlib", "off")
DATASETS = ("sample", "ffhq", "imagenet", "folder", "webdataset")


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
