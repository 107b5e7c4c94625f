"""The options that commands share, and how they become a configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from manifests.errors import ConfigError

if TYPE_CHECKING:
    from pipelines.config import Config

F = TypeVar("F", bound=Callable[..., Any])

FACES: Final = ("auto", "facexlib", "mobilefacenet", "dlib", "off")
DATASETS: Final = ("sample", "ffhq", "imagenet", "folder", "webdataset")
#: Where the configuration has what an option says.
_KEYS: Final = {
    "dataset": "dataset.name",
    "source": "dataset.source",
    "truth": "dataset.truth",
    "limit": "dataset.limit",
    "shard_size": "dataset.shard_size",
    "align": "ingest.align",
    "faces": "faces.model",
    "restorer": "restore.restorer",
    "policy": "policy",
    "validation": "validation",
    "view": "view",
    "workers": "resources.workers",
    "gpus_per_worker": "resources.gpus_per_worker",
    "jobs_at_once": "resources.jobs_at_once",
    "address": "resources.address",
}


def _stack(*options: Callable[[F], F]) -> Callable[[F], F]:
    def apply(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return apply


run_argument = click.argument("root", metavar="RUN")
address_option = click.option(
    "--address", metavar="URL", help="A running Ray cluster.  [default: $RAY_ADDRESS, else this machine]"
)
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
    address_option,
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
json_option = click.option("--json", "as_json", is_flag=True, help="All of it, for programs.")


def dotted(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options under the configuration's keys; None is an option that was not given."""
    return {_KEYS[name]: value for name, value in options.items()}


def configured(config_file: Path | None, overrides: tuple[str, ...], **options: Any) -> Config:
    """The configuration of a run that may be new.

    Raises:
        ConfigError: a key or a value is wrong, or the dataset has to be fetched first; the message says from where.
    """
    from pipelines import config, datasets

    loaded = config.load(config_file, overrides, dotted(options))
    if loaded.dataset.source is None and loaded.dataset.name != "sample":
        raise ConfigError(datasets.how_to_get(loaded.dataset.name))
    return loaded
