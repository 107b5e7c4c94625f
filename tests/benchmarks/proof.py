"""Does cleaning a set of faces make generators that are trained on it better? With truth, controls and paired seeds.

    IDM_DATA=... IDM_WEIGHTS=... python -m tests.benchmarks.proof prepare --out FOLDER
    IDM_DATA=... IDM_WEIGHTS=... python -m tests.benchmarks.proof train   --out FOLDER [--restorer NAME] [--workers 0]

Faces of faces-wild.zip brought down from 200 to 32 pixels are near enough to pristine. 8,000 are the training set, 40 %
of them damaged with recorded seeds; the other 2,000 are the reference. Two restorers, neither of which sees truths: one
is trained on other photographs (faces-sharp.zip), one on the damaged set alone, by rounds. All of it is the product's
own: ``run``, ``train-idm``, ``retrain``, ``evaluate``, ``report``; here are the data and the declaration. It takes
hours, and may be killed and given again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import torch
from PIL import Image

from idm_core.degradations import RECIPES, degrade
from idm_core.presets import PRESETS
from idm_core.restorer import to_images, to_tensor
from idm_core.training import TrainConfig
from pipelines import config as configuration
from pipelines.rounds import Rounds, train_rounds
from pipelines.run import Outcome, execute, opened, resolve
from pipelines.train_idm import train_idm

SIDE: Final = 32
TRAINING: Final = 8_000
DAMAGED: Final = 0.4
#: Half of the damaged ones each.
RECIPES_USED: Final = ("mild", "heavy")
SEED: Final = 31_000  # no training seed
CONFIG: Final = TrainConfig(PRESETS["small-32"], 120_000, perceptual_after=60_000, self_after=20_000)
ROUNDS: Final = Rounds(nimg=20_000)
RESTORERS: Final = ("disjoint", "extrinsic")
DECLARED: Final[dict[str, Any]] = {
    "arms": ["original", "cleaned", "combined", "filter", "weighted", "placebo", "null", "pristine"],
    "trainers": ["ddm-32", "gan-32"], "seeds": 3, "nimg": 150_000,
    "snapshots": 2, "samples": 2_000, "detectors": ["effnet-96"],
}  # fmt: skip


def write_faces(out: Path) -> None:
    """``raw/``, with damage planted; ``truth/``, the same without; ``held-out/``; and ``damage.json``."""
    if (out / "damage.json").exists():
        return
    with zipfile.ZipFile(Path(os.environ["IDM_DATA"]) / "faces-wild.zip") as members:
        names = [n for n in members.namelist() if n.endswith(".jpg")]
        names.sort(key=lambda name: hashlib.sha256(name.encode()).digest())
        faces = [_reduced(members.read(name)) for name in names]
    keys = [Path(name).name.replace(".", "_") for name in names]
    done = {}
    for number, (key, face) in enumerate(zip(keys, faces, strict=True)):
        held_out = number >= TRAINING
        _write(out / ("held-out" if held_out else "truth") / f"{key}.png", face)
        if held_out:
            continue
        image = face
        draw = np.random.default_rng(list(hashlib.sha256(f"{SEED} {key}".encode()).digest()))
        if draw.random() < DAMAGED:
            recipe = RECIPES[RECIPES_USED[int(draw.random() < 0.5)]]
            tensor, (damage,) = degrade(to_tensor([face]), recipe, [key], SEED)
            (image,), done[key] = to_images(tensor), asdict(damage)
        _write(out / "raw" / f"{key}.png", image)
    (out / "damage.json").write_text(json.dumps({"seed": SEED, "damage": done}, indent=1))


def _reduced(data: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    photo = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(photo.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def _write(path: Path, image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


@click.group(help=(__doc__ or "").split("\n")[0])
def main() -> None:
    """Commands."""


@main.command("prepare")
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--restorer", "restorers", type=click.Choice(RESTORERS), multiple=True, default=RESTORERS)
def prepare(out: Path, restorers: tuple[str, ...]) -> None:
    """Data and restorers, and the set cleaned by each of them."""
    torch.set_num_threads(1)
    write_faces(out)
    trunk = Path(os.environ["IDM_WEIGHTS"]) / "alexnet_features.safetensors"
    others = str(Path(os.environ["IDM_DATA"]) / "faces-sharp.zip")
    for name in restorers:
        folder = out / "restorers" / name
        if name == "disjoint":
            train_idm([others], folder, CONFIG, lpips_trunk=trunk)
        else:
            train_rounds(str(out / "raw"), folder, CONFIG, ROUNDS, lpips_trunk=trunk)
        curated(out, name, ("ingest", "restore", "select", "pack"))


def curated(out: Path, restorer: str, stages: tuple[str, ...], **resources: Any) -> Outcome:
    """The run of a restorer, as far as these stages."""
    config = configuration.load(None, (), {
        "dataset.name": "folder", "dataset.source": str(out / "raw"), "dataset.truth": str(out / "truth"),
        "restore.restorer": str(out / "restorers" / restorer / f"{CONFIG.preset.name}.safetensors"),
        "faces.model": "off", "proof": DECLARED | {"reference": str(out / "held-out")},
        "resources": {"workers": 0} | resources,
    })  # fmt: skip
    root = str(out / "runs" / restorer)
    config = resolve(config, stages, root)
    with opened(root, restorer, config) as run:
        return execute(run, config, stages)


@main.command("train")
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--restorer", type=click.Choice(RESTORERS), default="disjoint")
@click.option("--workers", type=int, help="0: one job after the other, here; else on Ray, side by side.")
def train(out: Path, restorer: str, workers: int | None) -> None:
    """Train, measure and report; what is there already is not done again."""
    outcome = curated(out, restorer, ("retrain", "evaluate", "report"), workers=workers)
    for failure in outcome.failures:
        click.echo(failure, err=True)
    if outcome.failures:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
