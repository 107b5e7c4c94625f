"""What a restorer does to held-out photographs with known damage, and to clean ones.

    IDM_DATA=... python -m tests.benchmarks.restorer --restorer idm-64 [--split validation] [--sheet FILE.png]

Each photograph's central square is reduced to 64 pixels: that is the truth. Prints one JSON object for each set and
recipe. LPIPS needs IDM_WEIGHTS.
"""

from __future__ import annotations

import io
import json
import os
import time
import zipfile
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import torch
from PIL import Image, ImageFilter
from scipy.stats import spearmanr

from idm_core import Restorer, load_restorer
from idm_core.degradations import RECIPES, degrade
from idm_core.losses import Perceptual
from idm_core.restorer import Photograph
from idm_core.severity import true_severity
from pipelines.split import split_of

SIDE: Final = 64
SETS: Final = {"faces": "faces-sharp.zip", "photographs": "imagenet-sample.zip"}
SEED: Final = 20_000  # of the damage; no training seed


def truths(archive: Path, split: str, limit: int) -> list[Photograph]:
    """Central squares at 64 pixels of the photographs of one split, in name order."""
    found: list[Photograph] = []
    with zipfile.ZipFile(archive) as members:
        names = [n for n in sorted(members.namelist()) if not n.endswith("/") and split_of(n) == split]
        for name in names[:limit]:
            photo = Image.open(io.BytesIO(members.read(name))).convert("RGB")
            side = min(photo.size)
            left, top = (photo.width - side) / 2, (photo.height - side) / 2
            box = (left, top, left + side, top + side)
            found.append(np.asarray(photo.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=box)))
    return found


def to_tensor(images: list[Photograph]) -> torch.Tensor:
    """List of HWC uint8 => NCHW float in [0, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def to_images(batch: torch.Tensor) -> list[Photograph]:
    """Inverse of ``to_tensor``."""
    return list((batch * 255).round().byte().permute(0, 2, 3, 1).numpy())


def psnrs(a: list[Photograph], b: list[Photograph]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """PSNR of each pair, dB; 90 where they are equal."""
    error = (to_tensor(a).double() - to_tensor(b).double()).square().mean(dim=(1, 2, 3))
    return (-10 * error.clamp_min(1e-9).log10()).numpy()


def unsharp(image: Photograph) -> Photograph:
    """The control that any restorer has to beat: the best of radius .5-3 and 30-300 % on mild validation damage."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.UnsharpMask(radius=1.5, percent=60, threshold=0)))


def measure(
    restorer: Restorer, truth: list[Photograph], recipe: str, options: dict[str, Any], lpips: Perceptual | None
) -> dict[str, Any]:
    """Figures of one set under one recipe."""
    keys = [f"{recipe} {i}" for i in range(len(truth))]
    y = to_images(degrade(to_tensor(truth), RECIPES[recipe], keys, SEED)[0])
    clock = time.process_time()
    results = restorer.restore(y, keys, **options)
    milliseconds = 1000 * (time.process_time() - clock) / len(y)
    restored = [r.image for r in results]
    severity = np.array([r.severity for r in results])
    true = true_severity(to_tensor(truth), to_tensor(y)).numpy()
    line: dict[str, Any] = {
        "images": len(y),
        "untouched": np.mean([r.passes == 0 for r in results]),
        "severity": severity.mean(),
        "severity_error": np.abs(severity - true).mean(),
        "passes": np.mean([r.passes for r in results]),
        "milliseconds": milliseconds,
    }
    if recipe == "clean":
        return line | {"severity_p99": np.percentile(severity, 99), "psnr_p01": np.percentile(psnrs(y, restored), 1)}
    before, after = psnrs(truth, y), psnrs(truth, restored)
    again = [r.image for r in restorer.restore(restored, keys, **options)]
    settled = psnrs(restored, again)
    line |= {
        "psnr_before": before.mean(),
        "psnr_after": after.mean(),
        "psnr_unsharp": psnrs(truth, [unsharp(i) for i in y]).mean(),
        "worse": np.mean(after < before),
        "idempotence_mean": settled.mean(),
        "idempotence_p05": np.percentile(settled, 5),
    }
    if lpips is not None:
        with torch.no_grad():
            line["lpips_before"], line["lpips_after"] = (
                lpips(to_tensor(x), to_tensor(truth)).mean().item() for x in (y, restored)
            )
    return line


def detection(restorer: Restorer, truth: list[Photograph]) -> dict[str, Any]:
    """How well severity orders and parts the images of all recipes together, clean ones among them."""
    read, true = [], []
    for recipe in ("clean", "light", "mild", "heavy"):
        keys = [f"{recipe} {i}" for i in range(len(truth))]
        y = degrade(to_tensor(truth), RECIPES[recipe], keys, SEED)[0]
        read.append(np.array(restorer.severity(to_images(y))))
        true.append(true_severity(to_tensor(truth), y).numpy())
    severity, target = np.concatenate(read), np.concatenate(true)
    seen = target > (44 - 34) / 30  # under 34 dB
    return {
        "images": len(severity),
        "rank_correlation": float(spearmanr(severity, target).statistic),
        "severity_error": np.abs(severity - target).mean(),
        "false_alarms": np.mean(read[0] >= restorer.config.threshold),
        "recall_under_34_db": np.mean(severity[seen] >= restorer.config.threshold),
        "recall_at_1_percent": np.mean(severity[seen] > np.percentile(read[0], 99)),
    }


def show(set_name: str, split: str, recipe: str, line: dict[str, Any]) -> dict[str, Any]:
    """Print one JSON object a line."""
    line = {"set": set_name, "split": split, "recipe": recipe} | {k: round(float(v), 4) for k, v in line.items()}
    click.echo(json.dumps(line))
    return line


def write_card(card: Path, restorer: Restorer, lines: list[dict[str, Any]]) -> None:
    """Replace what lies between the markers in a model card by these figures."""
    damage = [row for row in lines if "psnr_after" in row]
    table = [
        "| set, damage | images | PSNR of input, unsharp mask, restored | LPIPS of input, restored | made worse "
        "| left alone | second application: mean, 5th percentile |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in damage:
        lpips = f"{row['lpips_before']:.3f}, {row['lpips_after']:.3f}" if "lpips_after" in row else "-"
        table.append(
            f"| {row['set']}, {row['recipe']} | {row['images']:.0f} "
            f"| {row['psnr_before']:.2f}, {row['psnr_unsharp']:.2f}, **{row['psnr_after']:.2f}** | {lpips} "
            f"| {row['worse']:.1%} | {row['untouched']:.1%} "
            f"| {row['idempotence_mean']:.1f}, {row['idempotence_p05']:.1f} |"
        )
    table += [
        "",
        "| set | clean images left as they are | recall of damage under 34 dB | the same at 1 % false alarms "
        "| rank correlation with the true severity | mean error |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    table += [
        f"| {row['set']} | {1 - row['false_alarms']:.1%} | {row['recall_under_34_db']:.1%} "
        f"| {row['recall_at_1_percent']:.1%} | {row['rank_correlation']:.3f} | {row['severity_error']:.3f} |"
        for row in lines
        if row["recipe"] == "all"
    ]
    config = restorer.config
    facts = [
        f"SHA-256 `{restorer.model_sha256}`; {config.trained['nimg']:,} images seen in "
        f"{config.trained['seconds'] / 60:.0f} minutes; threshold {config.threshold}, steps {config.steps}, "
        f"passes {config.passes}. Split: {lines[0]['split']}.",
        "",
    ]
    begin, end = "<!-- figures -->\n", "<!-- end of figures -->\n"
    before, _, rest = card.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    card.write_text(before + begin + "\n".join([*facts, *table, ""]) + end + after, encoding="utf-8")


def sheet(restorer: Restorer, truth: list[Photograph], options: dict[str, Any], path: Path) -> None:
    """Rows of input, restored, truth, for mild and heavy damage, four times enlarged."""
    rows = []
    for recipe in ("mild", "heavy"):
        keys = [f"{recipe} {i}" for i in range(len(truth))]
        y = to_images(degrade(to_tensor(truth), RECIPES[recipe], keys, SEED)[0])
        restored = [r.image for r in restorer.restore(y, keys, **options)]
        rows += [np.concatenate(row, axis=1) for row in (y, restored, truth)]
    image = Image.fromarray(np.concatenate(rows))
    image.resize((3 * image.width, 3 * image.height), Image.Resampling.NEAREST).save(path)


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--restorer", "name", default="idm-64")
@click.option("--split", type=click.Choice(["validation", "test"]), default="test")
@click.option("--limit", default=400, help="Photographs of each set.")
@click.option("--steps", type=int)
@click.option("--passes", type=int)
@click.option("--threshold", type=float)
@click.option("--card", type=click.Path(path_type=Path, exists=True), help="Model card to write the figures into.")
@click.option("--sheet", "sheet_path", type=click.Path(path_type=Path), help="Write a contact sheet here.")
def main(name: str, split: str, limit: int, sheet_path: Path | None, card: Path | None, **options: Any) -> None:
    """Print a line for each set and recipe, and one for detection over all recipes of a set."""
    restorer = load_restorer(name)
    trunk = Path(os.environ.get("IDM_WEIGHTS", "")) / "alexnet_features.safetensors"
    lpips = Perceptual(trunk) if trunk.is_file() else None
    lines = []
    for set_name, archive in SETS.items():
        truth = truths(Path(os.environ["IDM_DATA"]) / archive, split, limit)
        for recipe in ("clean", "light", "mild", "heavy"):
            lines.append(show(set_name, split, recipe, measure(restorer, truth, recipe, options, lpips)))
        lines.append(show(set_name, split, "all", detection(restorer, truth)))
        if sheet_path is not None:
            target = sheet_path.with_stem(f"{sheet_path.stem}-{set_name}")
            sheet(restorer, truth[:: max(1, len(truth) // 14)][:14], options, target)
    if card is not None:
        write_card(card, restorer, lines)


if __name__ == "__main__":
    main()
