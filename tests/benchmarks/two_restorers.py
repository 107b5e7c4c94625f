"""The same run with two restorers, IDM and one that is bad on purpose: whose candidates does a policy let pass?

    IDM_DATA=... IDM_WEIGHTS=... python -m tests.benchmarks.two_restorers [--limit N] [--policy default] [--json FILE]

The source is faces of faces-sharp.zip that are held out from training, at 128 pixels, each damaged once, by one of four
recipes in turn. The bad restorer blurs and sharpens; it comes as a user's would, by ``--restorer python:``. Nearer to
the truth is by PSNR, from the manifests.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from idm_core.restorer import Photograph
from manifests.errors import RunError
from pipelines import config as configuration
from pipelines import run as runs
from pipelines.evidence import read_evidence
from pipelines.images import encode_png
from tests.benchmarks.gates import FACES, HELD_OUT, SIDE, damaged_in_turn, share, told
from tests.benchmarks.held_out import truths
from tests.benchmarks.planted import bad_restorer

RESTORERS: Final = ("idm-64", "python:tests.benchmarks.two_restorers:BlurThenSharpen")
UNTIL_DECIDED: Final = ("ingest", "restore", "select")


class BlurThenSharpen:
    """A model that makes every image worse, and crisp at a glance."""

    def __init__(self, device: str) -> None:
        """The device is of no use to it."""

    def restore(self, images: Sequence[Photograph], keys: Sequence[str]) -> list[Photograph]:
        return [bad_restorer(image) for image in images]


def write_faces(folder: Path, limit: int) -> int:
    """``damaged/`` and ``truth/`` with the same names; returns how many."""
    faces = [truth for split in HELD_OUT for truth in truths(FACES, split, side=SIDE)]
    faces = [faces[i * len(faces) // limit] for i in range(limit)] if 0 < limit < len(faces) else faces
    for name in ("damaged", "truth"):
        (folder / name).mkdir(parents=True)
    for i, (truth, recipe, image) in enumerate(damaged_in_turn(faces)):
        (folder / "damaged" / f"{recipe}-{i:04d}.png").write_bytes(encode_png(image))
        (folder / "truth" / f"{recipe}-{i:04d}.png").write_bytes(encode_png(truth.image))
    return len(faces)


def outcome(folder: Path, root: Path, restorer: str, policy: str) -> dict[str, Any]:
    """Run the faces through a restorer and a policy; what became of them.

    Raises:
        RunError: the run could not be completed.
    """
    options = {
        "dataset.name": "folder",
        "dataset.source": str(folder / "damaged"),
        "dataset.truth": str(folder / "truth"),
        "dataset.shard_size": 64,
        "restore.restorer": restorer,
        "policy": policy,
        "resources.workers": 0,
    }
    settings = runs.resolve(configuration.load(None, (), options), UNTIL_DECIDED, str(root))
    with runs.opened(str(root), root.name, settings) as run:
        done = runs.execute(run, settings, UNTIL_DECIDED)
        if done.failures:
            raise RunError(f"{root}: {len(done.failures)} shards were given up; the first: {done.failures[0]}")
        evidence = read_evidence(run)
    accepted, refused = evidence.is_("status", "restored"), evidence.is_("status", "rejected")
    nearer = evidence.numbers("truth_psnr_after") > evidence.numbers("truth_psnr_before")
    gates = Counter(str(gate) for gate in evidence.table["gate"].filter(refused).to_pylist())
    return {
        "faces": len(evidence.table),
        "left alone": int(evidence.is_("status", "kept_original").sum()),
        "failed": int(evidence.is_("status", "failed").sum()),
        "candidates": int((accepted | refused).sum()),
        "refused": share(refused[accepted | refused]),
        "accepted": share(accepted[accepted | refused]),
        "nearer to the truth": share(nearer[accepted | refused]),
        "accepted and nearer": share(nearer[accepted]),
        "by gate": dict(gates.most_common()),
    }


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--limit", default=0, help="Faces; 0 is all that are held out.")
@click.option("--policy", default="default", help="A shipped policy or a YAML file.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write every figure here.")
def main(limit: int, policy: str, json_path: Path | None) -> None:
    """Print what became of the candidates of each restorer."""
    logging.basicConfig(level=logging.WARNING)
    report: dict[str, Any] = {"policy": policy}
    with tempfile.TemporaryDirectory() as folder:
        write_faces(Path(folder), limit)
        for i, restorer in enumerate(RESTORERS):
            report[restorer] = outcome(Path(folder), Path(folder) / f"run{i}", restorer, policy)
            click.echo(f"\n{restorer}, policy {policy}")
            for name, value in report[restorer].items():
                told_value = ", ".join(f"{g} {n}" for g, n in value.items()) if name == "by gate" else told(value)
                click.echo(f"  {name:<20} {told_value}")
    if json_path is not None:
        json_path.write_text(json.dumps(report, indent=1, default=float) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
