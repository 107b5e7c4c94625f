"""Which choices matter: the same small network trained in different ways, three seeds each, on the same budget.

    IDM_DATA=... IDM_WEIGHTS=... python -m tests.benchmarks.ablation train --out FOLDER
    IDM_DATA=... IDM_WEIGHTS=... python -m tests.benchmarks.ablation measure --out FOLDER [--json FILE]

Training takes hours, and may be killed and given again. Chains are compared from scratch; losses and mixtures of data
by training on from one start, plain L1, since what they differ in shows late. All arms of a seed see the same
photographs in the same order. Measured on the test split, in one evaluation where nothing else is said, on every image:
the threshold, which would hide what a network does to clean images, is off.
"""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import torch
from scipy.stats import t as student

from idm_core import Restorer, load_restorer
from idm_core.degradations import RECIPES
from idm_core.losses import Perceptual
from idm_core.presets import PRESETS
from idm_core.restorer import Photograph
from idm_core.training import Pristine, TrainConfig, train
from pipelines.photo_pool import PhotoPool, open_sources
from tests.benchmarks.figures import Apply, Lpips, psnrs
from tests.benchmarks.held_out import SETS, damaged, truths

SOURCES: Final = {"faces-sharp.zip": 0.5, "imagenet-sample.zip": 0.35, "faces-1024.zip": 0.15}
SEEDS: Final = (0, 1, 2)
SCRATCH: Final = TrainConfig(
    PRESETS["small-64"], 10_000, warmup_nimg=1_000, decay_share=0.5, ema_nimg=1_000, perceptual=0.0,
    perceptual_after=5_000, self_after=2_500, save_nimg=10_000,
)  # fmt: skip
ON: Final = replace(SCRATCH, nimg=4_000, lr=5e-4, warmup_nimg=500, perceptual_after=0, self_after=0)
#: The arm that those begin with which are trained on.
START: Final = "shift"


def _with(config: TrainConfig, **preset: Any) -> TrainConfig:
    return replace(config, preset=replace(config.preset, **preset))


#: What is trained from scratch: name => options.
CHAINS: Final = {
    "shift": SCRATCH,
    "shift + LPIPS": replace(SCRATCH, perceptual=0.1),
    "shift, correction not gated": _with(SCRATCH, gated=False),
    "shift, noise not gated": _with(SCRATCH, gate=0.0),
    "InDI": _with(SCRATCH, chain="indi"),
    "one-step L1": _with(replace(SCRATCH, self_share=0.0), chain="direct"),
    "EDM from noise": _with(replace(SCRATCH, self_share=0.0), chain="edm"),
}
#: What goes on from START with other losses or data.
OBJECTIVES: Final = {
    "on: L1": ON,
    "on: L2": replace(ON, loss="l2"),
    "on: L2 relative": replace(ON, loss="l2_relative"),
    "on: Charbonnier": replace(ON, loss="charbonnier"),
    "on: L1 + LPIPS": replace(ON, perceptual=0.1),
    "on: own restorations not seen": replace(ON, self_share=0.0),
    "on: no clean pairs": replace(ON, clean_share=0.0),
    "on: 40 % clean pairs": replace(ON, clean_share=0.4),
}
ARMS: Final = CHAINS | OBJECTIVES
#: Evaluations that an arm is measured at, where it is not one alone.
STEPS: Final = {
    "shift + LPIPS": (1, 2, 4, 8), "shift, noise not gated": (1, 4), "InDI": (1, 4), "EDM from noise": (8, 50),
}  # fmt: skip
#: Passes of one evaluation, each with the severity read again.
PASSES: Final = {"shift + LPIPS": (1, 2)}


def checkpoint_of(out: Path, arm: str, seed: int) -> Path:
    """Where an arm's network lies."""
    return out / f"{re.sub('[^A-Za-z0-9]+', '-', arm)}-s{seed}" / f"{SCRATCH.preset.name}.safetensors"


def remembered(pool: PhotoPool) -> Pristine:
    """The pool's patches, each made once for all arms of a seed."""
    patches: dict[int, torch.Tensor] = {}

    def pristine(index: int) -> torch.Tensor:
        if index not in patches:
            patches[index] = (pool.patch(index) * 255).round().byte()
        return patches[index].float() / 255

    return pristine


@click.group(help=(__doc__ or "").split("\n")[0])
def main() -> None:
    """Commands."""


@main.command("train")
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--seed", "seeds", type=int, multiple=True, default=SEEDS)
@click.option("--arm", "arms", multiple=True, default=tuple(ARMS))
def train_arms(out: Path, seeds: tuple[int, ...], arms: tuple[str, ...]) -> None:
    """Train the arms that are not there yet, one after the other."""
    torch.set_num_threads(1)
    folder = Path(os.environ["IDM_DATA"])
    urls, shares = [str(folder / name) for name in SOURCES], list(SOURCES.values())
    lpips = Perceptual(Path(os.environ["IDM_WEIGHTS"]) / "alexnet_features.safetensors")
    held_out = PhotoPool(open_sources(urls, shares, "validation"), SCRATCH.preset.resolution, seed=0)
    validation = torch.stack([held_out.patch(i) for i in range(32)])
    for seed in seeds:
        pristine = remembered(PhotoPool(open_sources(urls, shares, "train"), SCRATCH.preset.resolution, seed))
        for arm in arms:
            path = checkpoint_of(out, arm, seed)
            clock = time.monotonic()
            config = replace(ARMS[arm], seed=seed)
            start = checkpoint_of(out, START, seed) if arm in OBJECTIVES else None
            perceptual = lpips if config.perceptual else None
            train(pristine, validation, config, path.parent, start=start, perceptual=perceptual)
            click.echo(f"{arm}, seed {seed}: {time.monotonic() - clock:.0f} s")


def restore_all(
    restorer: Restorer, images: list[Photograph], keys: list[str], steps: int, passes: int = 1
) -> list[Photograph]:
    """Passes over every image, whatever its severity."""
    for number in range(passes):
        images = restorer.one_pass(images, [f"{key}/{number}" for key in keys], restorer.severity(images), steps)
    return images


def figures(restore: Apply, lpips: Lpips) -> dict[str, float]:
    """What one trained network does to the test split's faces."""
    truth = truths(SETS["faces"], "test")
    images, keys = [t.image for t in truth], [t.key for t in truth]
    found = {"psnr of clean": float(np.mean(psnrs(images, restore(images, keys))))}
    for recipe in ("mild", "heavy"):
        y = damaged(truth, RECIPES[recipe])
        restored = restore(y, keys)
        found[f"gain {recipe}"] = float(np.mean(psnrs(images, restored) - psnrs(images, y)))
        found[f"lpips {recipe}"] = float(lpips(restored, images).mean() / lpips(y, images).mean())
        if recipe == "mild":
            found["second application"] = float(np.mean(psnrs(restored, restore(restored, keys))))
    return found


@main.command("measure")
@click.option("--out", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path))
def measure(out: Path, json_path: Path | None) -> None:
    """Print a table: each arm's mean over seeds, and its difference to the reference of its kind with an interval."""
    torch.set_num_threads(1)
    lpips = Lpips(Path(os.environ["IDM_WEIGHTS"]) / "alexnet_features.safetensors")
    rows: dict[str, list[dict[str, float]]] = {}
    for arm in ARMS:
        for steps in STEPS.get(arm, (1,)):
            for passes in PASSES.get(arm, (1,)) if steps == 1 else (1,):
                name = arm + (f", {steps} evaluations" if steps > 1 else "") + (", two passes" if passes > 1 else "")
                for seed in SEEDS:
                    path = checkpoint_of(out, arm, seed)
                    if not path.exists():
                        continue
                    restorer = load_restorer(path)

                    def restore(
                        images: list[Photograph],
                        keys: list[str],
                        restorer: Restorer = restorer,
                        steps: int = steps,
                        passes: int = passes,
                    ) -> list[Photograph]:
                        return restore_all(restorer, images, keys, steps, passes)

                    rows.setdefault(name, []).append(figures(restore, lpips))
                if name in rows:
                    click.echo(json.dumps({name: rows[name]}))
    click.echo(table(rows))
    if json_path is not None:
        about = {
            "nimg": SCRATCH.nimg,
            "on": ON.nimg,
            "preset": SCRATCH.preset.name,
            "split": "test",
            "set": "faces-sharp.zip",
        }
        json_path.write_text(json.dumps(about | {"rows": rows}, indent=1))


def table(rows: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: means over seeds, and differences to "shift" or "on: L1", paired by seed, with 95 % intervals (t)."""
    names = list(next(iter(rows.values()))[0])
    lines = ["| trained with | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for arm, found in rows.items():
        reference = "on: L1" if arm.startswith("on: ") else START
        cells = []
        for name in names:
            values = np.array([row[name] for row in found])
            digits = 3 if name.startswith("lpips") else 2
            cell = f"{values.mean():.{digits}f}"
            if arm != reference and len(values) == len(rows.get(reference, ())) > 1:
                difference = values - np.array([row[name] for row in rows[reference]])
                half = student.ppf(0.975, len(values) - 1) * difference.std(ddof=1) / len(values) ** 0.5
                cell += f" ({difference.mean():+.{digits}f} ± {half:.{digits}f})"
            cells.append(cell)
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
