"""Does extrinsic iteration help? Rounds on naturally dirty faces, three seeds, against training on without cleaning.

    IDM_DATA=... IDM_WEIGHTS=... python -m tests.benchmarks.rounds train --out FOLDER
    IDM_DATA=... IDM_WEIGHTS=... python -m tests.benchmarks.rounds measure --out FOLDER [--json FILE]

The raw set is a seeded draw from faces-wild.zip, cut to 128 pixels without any reduction, so that its softness, noise
and JPEG artefacts are all there. The rounds are those of ``idm-curate train-idm --rounds``, which is never told what is
clean. What isolates the gain is trained on from the same round 1 for as many images: ``raw`` on the same raw set,
``filter`` on the samples alone that nothing was done to. Judged on other faces, of faces-sharp.zip: planted damage,
known truth.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import torch
from PIL import Image
from scipy.stats import t as student

from idm_core import load_restorer
from idm_core.degradations import RECIPES
from idm_core.presets import PRESETS
from idm_core.training import TrainConfig
from manifests import rundir
from pipelines.detectors import EfficientNetLite0
from pipelines.query_view import save_view
from pipelines.rounds import Rounds, train_rounds
from pipelines.train_idm import train_idm
from tests.benchmarks.figures import FrechetToTruth, Lpips, psnrs
from tests.benchmarks.held_out import SETS, damaged, truths

SEEDS: Final = (0, 1, 2)
PHOTOGRAPHS: Final = 1_500
SIDE: Final = 128
ROUNDS: Final = Rounds(nimg=6_000)
CONFIG: Final = TrainConfig(
    PRESETS["small-64"], 16_000, warmup_nimg=1_000, decay_share=0.5, ema_nimg=1_000,
    perceptual_after=8_000, self_after=4_000, save_nimg=8_000,
)  # fmt: skip
CONTROLS: Final = ("raw", "filter")


def write_raw(folder: Path, seed: int) -> Path:
    """The raw set of a seed: central squares, as they are, in PNG."""
    if folder.exists():
        return folder
    staged = folder.with_name(f".{folder.name}")
    staged.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(Path(os.environ["IDM_DATA"]) / "faces-wild.zip") as members:
        names = [n for n in members.namelist() if n.endswith(".jpg")]
        names.sort(key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
        for name in names[:PHOTOGRAPHS]:
            photo = Image.open(io.BytesIO(members.read(name))).convert("RGB")
            left, top = (photo.width - SIDE) // 2, (photo.height - SIDE) // 2
            photo.crop((left, top, left + SIDE, top + SIDE)).save(staged / f"{Path(name).name}.png", compress_level=1)
    staged.rename(folder)
    return folder


@click.group(help=(__doc__ or "").split("\n")[0])
def main() -> None:
    """Commands."""


@main.command("train")
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--seed", "seeds", type=int, multiple=True, default=SEEDS)
def train(out: Path, seeds: tuple[int, ...]) -> None:
    """Rounds and controls of each seed; what is there already is not done again."""
    torch.set_num_threads(1)
    trunk = Path(os.environ["IDM_WEIGHTS"]) / "alexnet_features.safetensors"
    for seed in seeds:
        raw, config = write_raw(out / f"raw{seed}", seed), replace(CONFIG, seed=seed)
        folder = out / f"s{seed}"
        train_rounds(str(raw), folder, config, ROUNDS, lpips_trunk=trunk)
        later = replace(config, nimg=ROUNDS.nimg * (len(history(folder)) - 1), perceptual_after=0, self_after=0)
        if not later.nimg:
            continue
        run = rundir.read(str(folder / "round1" / "cleaned"))
        save_view(run, "untouched", "SELECT key FROM samples WHERE status = 'kept_original'", ROUNDS.policy)
        sources = {"raw": str(raw), "filter": run.url("views", "untouched.parquet")}
        first = folder / "round1" / f"{config.preset.name}.safetensors"
        for control in CONTROLS:
            train_idm(
                [sources[control]], folder / control, later, start=first, lpips_trunk=trunk,
                least_reduction=ROUNDS.least_reduction,
            )  # fmt: skip


def history(folder: Path) -> list[dict[str, Any]]:
    """The rounds as ``train_rounds`` wrote them down."""
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


@main.command("measure")
@click.option("--out", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path))
def measure(out: Path, json_path: Path | None) -> None:
    """Print what every model does to mild and heavy damage, and the differences to round 1 and to the controls."""
    torch.set_num_threads(1)
    truth = truths(SETS["faces"], "test")
    lpips = Lpips(Path(os.environ["IDM_WEIGHTS"]) / "alexnet_features.safetensors")
    frechet = FrechetToTruth(EfficientNetLite0(side=96), truth)
    inputs = {recipe: damaged(truth, RECIPES[recipe]) for recipe in ("mild", "heavy")}
    images = [t.image for t in truth]
    rows: dict[str, dict[int, dict[str, float]]] = {}
    for seed in SEEDS:
        folder = out / f"s{seed}"
        if not (folder / "rounds.jsonl").exists():
            continue
        past = history(folder)
        models = {f"round {r['number']}": r["checkpoint"] for r in past}
        models["after the stop"] = min(past, key=lambda r: r["score"])["checkpoint"]
        models |= {name: f"{name}/{CONFIG.preset.name}.safetensors" for name in CONTROLS}
        for name, path in models.items():
            if not (folder / path).exists():
                continue
            restorer = load_restorer(folder / path)
            found = {}
            for recipe, y in inputs.items():
                keys = [t.key for t in truth]
                restored = restorer.one_pass(y, keys, restorer.severity(y), restorer.config.steps)
                found[f"psnr {recipe}"] = float(np.mean(psnrs(images, restored)))
                found[f"lpips {recipe}"] = float(np.mean(lpips(restored, images)))
                found[f"fd {recipe}"] = frechet(restored)
            rows.setdefault(name, {})[seed] = found
            click.echo(json.dumps({"seed": seed, "model": name, **{k: round(v, 4) for k, v in found.items()}}))
    differences = [("after the stop", other) for other in ("round 1", *CONTROLS)] + [("raw", "round 1")]
    compared = {f"{a} - {b}": compare(rows[a], rows[b]) for a, b in differences if a in rows and b in rows}
    for name, figures in compared.items():
        click.echo(f"{name}: " + ", ".join(f"{k} {mean:+.4f} +- {half:.4f}" for k, (mean, half) in figures.items()))
    if json_path is not None:
        stops = {seed: history(out / f"s{seed}") for seed in SEEDS if (out / f"s{seed}" / "rounds.jsonl").exists()}
        json_path.write_text(json.dumps({"models": rows, "differences": compared, "rounds": stops}, indent=1))


def compare(a: dict[int, dict[str, float]], b: dict[int, dict[str, float]]) -> dict[str, tuple[float, float]]:
    """Mean difference of each figure over the seeds that both have, and half of its 95 % interval (paired, t)."""
    seeds = sorted(a.keys() & b.keys())
    found = {}
    for name in a[seeds[0]]:
        difference = np.array([a[seed][name] - b[seed][name] for seed in seeds])
        half = (
            student.ppf(0.975, len(seeds) - 1) * difference.std(ddof=1) / len(seeds) ** 0.5
            if len(seeds) > 1
            else np.nan
        )
        found[name] = float(difference.mean()), float(half)
    return found


if __name__ == "__main__":
    main()
