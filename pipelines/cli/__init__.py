"""The command line: each command parses, calls one function, prints. Imports nothing heavy before it must."""

from __future__ import annotations

import logging
import sys
from typing import Any

import click

from manifests.errors import ConfigError, CurateError
from pipelines.cli import inspection, machine, proof, stages, train


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


cli.add_command(stages.run)
cli.add_command(stages.ingest)
cli.add_command(train.train_idm)
cli.add_command(stages.restore)
cli.add_command(stages.select)
cli.add_command(stages.pack)
cli.add_command(proof.retrain)
cli.add_command(inspection.report)
cli.add_command(stages.export)
cli.add_command(inspection.query)
cli.add_command(inspection.audit)
cli.add_command(inspection.diff)
cli.add_command(proof.evaluate)
cli.add_command(inspection.status)
cli.add_command(inspection.verify)
cli.add_command(machine.doctor)
cli.add_command(machine.check_restorer)
cli.add_command(machine.submit)


def main() -> None:
    """Entry point."""
    cli()
