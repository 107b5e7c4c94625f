"""Commands about where runs are worked on: this machine, the restorers that it has, and a cluster."""

from __future__ import annotations

import sys

import click


@click.command()
def doctor() -> None:
    """Say which devices, weights and optional parts are there, and how to get what is missing.

    \b
    Example:
      idm-curate doctor
    """
    from pipelines.doctor import examine

    for line in examine():
        click.echo(line)


@click.command("check-restorer")
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


@click.command(context_settings={"ignore_unknown_options": True})
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
