"""Other tasks by the same model, each alone: deblurring, denoising, JPEG removal, super-resolution; and seams of tiles.

    IDM_DATA=... IDM_WEIGHTS=... python -m tests.benchmarks.tasks --restorer idm-64 [--json FILE] [--limit N]

Strengths are fixed, in each image's own pixels. The restorer is run as it ships: it is not told the task.
"""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import torch

from idm_core import Restorer, load_restorer
from idm_core.degradations import RECIPES, REFERENCE_SIDE, Recipe, degrade
from idm_core.restorer import Photograph
from idm_core.tiles import Axis, cut
from pipelines.weights import LPIPS_TRUNK, required
from tests.benchmarks.card import table
from tests.benchmarks.figures import Lpips, interval, plain, psnrs
from tests.benchmarks.held_out import (
    DAMAGE_SEED,
    SETS,
    SIDE,
    PhotoSet,
    Truth,
    damaged,
    to_images,
    to_tensor,
    truths,
)
from tests.benchmarks.methods import ungated

BLUR_SIGMA: Final = 1.0  # pixels
NOISE_SIGMA: Final = 10.0  # 1/255
JPEG_QUALITY: Final = 40.0
#: Photographs are also restored at this side, where ``idm_core.tiles`` cuts them into 2 x 2 tiles of 160 pixels.
TILED_SIDE: Final = 288
LARGE: Final = PhotoSet("faces-1024.zip", 1)
LARGE_SIDE: Final = 1024
#: Large photographs that are also restored in tiles without overlap, to see that the statistic sees a seam.
HARD_TILES: Final = 3


def tasks(side: int) -> list[Recipe]:
    """One kind of damage each. Recipes are written for 512 pixels; these are the same in pixels at every side."""
    scale = REFERENCE_SIDE / side
    blur, twice, four = BLUR_SIGMA * scale, 2 * scale, 4 * scale
    return [
        Recipe("deblurring", blur=(blur, blur), anisotropic=0.0),
        Recipe("denoising", noise=(NOISE_SIGMA, NOISE_SIGMA)),
        Recipe("JPEG removal", quality=(JPEG_QUALITY, JPEG_QUALITY)),
        Recipe("2x super-resolution", downsample=(twice, twice)),
        Recipe("4x super-resolution", downsample=(four, four)),
    ]


def measure(restorer: Restorer, truth: list[Truth], lpips: Lpips) -> dict[str, dict[str, Any]]:
    """Task => PSNR and LPIPS before and after, with 95 % intervals over photographs."""
    images, rows = [t.image for t in truth], {}
    for task in tasks(images[0].shape[0]):
        y = damaged(truth, task)
        results = restorer.restore(y, [t.key for t in truth])
        restored = [r.image for r in results]
        before, after = psnrs(images, y), psnrs(images, restored)
        distance = [lpips(x, images) for x in (y, restored)]
        rows[task.name] = {
            "psnr_before": before.mean(),
            "psnr": after.mean(),
            "psnr_gain": interval(truth, after - before),
            "lpips_before": distance[0].mean(),
            "lpips": distance[1].mean(),
            "lpips_ratio": interval(truth, distance[1], per=distance[0]),
            "worse": np.mean(after < before),
            "same": np.mean([r.passes == 0 for r in results]),
            "evaluations": np.mean([r.evaluations for r in results]),
        }
    return rows


def seam_ratio(image: np.ndarray[Any, Any], axis: Axis) -> float:
    """Mean absolute difference across the borders of tiles, over that 8, 16 and 24 pixels before and behind them.

    So near that both are of the same things in the picture, and at the same places of JPEG's blocks of 8.

    Args:
        image: a square, HxWxC, cut in the same way along both sides.
    """
    borders = {*axis.starts[1:], *(start + axis.side for start in axis.starts[:-1])}
    beside = {b + offset for b in borders for offset in (-24, -16, -8, 8, 16, 24)} - borders
    at, near = [], []
    for turned in (image, image.swapaxes(0, 1)):
        steps = np.abs(np.diff(turned.astype(np.float64), axis=0)).mean(axis=(1, 2))  # i is between rows i and i + 1
        at.append(steps[[b - 1 for b in sorted(borders)]])
        near.append(steps[[b - 1 for b in sorted(beside) if 0 < b < len(turned)]])
    return float(np.concatenate(at).mean() / np.concatenate(near).mean())


def seams(restorer: Restorer, truth: list[Truth]) -> dict[str, Any]:
    """Seams in large photographs that were damaged and restored in tiles: ratios, mean and 95 % interval.

    ``error`` is of the difference to the truth, in which a photograph's own edges cancel; ``restored`` and ``truth``
    are of the images. ``error_hard`` is of tiles that were restored one by one and laid side by side.
    """
    axis = cut(LARGE_SIDE)
    hard_axis = Axis(LARGE_SIDE, axis.side, tuple(range(0, LARGE_SIDE, axis.side)))
    scale = REFERENCE_SIDE / LARGE_SIDE
    mild = RECIPES["mild"]
    # Mild damage as it is at 64 pixels, in pixels.
    low, high = (b * SIDE / REFERENCE_SIDE * scale for b in mild.blur)
    recipe = Recipe("mild, in pixels", (low, high), (scale, 2 * scale), mild.noise, mild.quality)
    found: dict[str, list[float]] = {"truth": [], "restored": [], "error": [], "error_hard": []}
    for number, t in enumerate(truth):
        y = to_images(degrade(to_tensor([t.image]), recipe, [t.key], DAMAGE_SEED)[0])
        restored = ungated(restorer, y, [t.key], restorer.config.steps)[0]
        found["truth"].append(seam_ratio(t.image, axis))
        found["restored"].append(seam_ratio(restored, axis))
        found["error"].append(seam_ratio(restored.astype(int) - t.image, axis))
        hard = _in_hard_tiles(restorer, y[0], t.key, hard_axis) if number < HARD_TILES else None
        found["error_hard"].append(np.nan if hard is None else seam_ratio(hard.astype(int) - t.image, hard_axis))
    means = {name: interval(truth, np.array(ratios)) for name, ratios in found.items()}
    return {"photographs": len(truth), "tile": axis.side, "tiles": len(axis.starts) ** 2, "ratio": means}


def _in_hard_tiles(restorer: Restorer, y: Photograph, key: str, axis: Axis) -> Photograph:
    """The image's tiles restored one by one and laid side by side."""
    result = y.copy()
    for top in axis.starts:
        for left in axis.starts:
            place = slice(top, top + axis.side), slice(left, left + axis.side)
            tile = np.ascontiguousarray(y[place])
            result[place] = ungated(restorer, [tile], [f"{key} {top} {left}"], restorer.config.steps)[0]
    return result


def peak_bytes(restorer: Restorer, photo: Photograph) -> dict[str, int]:
    """Resident bytes of this process at their highest, after restoring ever larger images."""
    found = {}
    for side in (256, 512, 1024, 2048):
        times = -(-side // photo.shape[0])
        image = np.tile(photo, (times, times, 1))[:side, :side]
        ungated(restorer, [np.ascontiguousarray(image)], ["memory"], restorer.config.steps)
        found[f"{side} px"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return found


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--restorer", "name", default="idm-64", help="A shipped restorer's name, or a checkpoint.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write every figure here.")
@click.option("--split", type=click.Choice(["validation", "test"]), default="test")
@click.option("--limit", default=0, help="Photographs of each set; 0 is all.")
@click.option("--large", default=6, help="Photographs of 1024 pixels.")
def main(name: str, json_path: Path | None, split: str, limit: int, large: int) -> None:
    """Print a table for each set and size, then seams and memory."""
    torch.set_num_threads(1)
    restorer = load_restorer(name)
    photo = truths(LARGE, split, large, side=LARGE_SIDE)
    report: dict[str, Any] = {"restorer": name, "sha256": restorer.model_sha256, "split": split, "limit": limit}
    report["peak_bytes"] = peak_bytes(restorer, photo[0].image)
    lpips = Lpips(required(LPIPS_TRUNK))
    report["strengths"] = {"blur sigma, px": BLUR_SIGMA, "noise": NOISE_SIGMA, "JPEG quality": JPEG_QUALITY}
    report["tasks"] = {}
    one_view = PhotoSet(SETS["photographs"].archive, 1)
    for title, photos, side in (
        ("faces, 64 px", SETS["faces"], SIDE),
        ("photographs, 64 px", SETS["photographs"], SIDE),
        (f"photographs, {TILED_SIDE} px, in tiles", one_view, TILED_SIDE),
    ):
        truth = truths(photos, split, limit, side=side)
        report["tasks"][title] = plain(measure(restorer, truth, lpips)) | {"images": len(truth)}
        rows = {task: row for task, row in report["tasks"][title].items() if task != "images"}
        click.echo(f"\n{title}, {len(truth)} images\n{table(rows)}")
    report["seams"] = plain(seams(restorer, photo))
    click.echo(f"\nseams {json.dumps(report['seams'])}\npeak bytes {json.dumps(report['peak_bytes'])}")
    if json_path is not None:
        json_path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
