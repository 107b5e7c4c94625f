"""What a restorer does to held-out photographs: does it leave good ones alone, bring damaged ones back, and settle?

    IDM_DATA=... IDM_WEIGHTS=... python -m tests.benchmarks.authenticity --restorer idm-64 --json FILE
        [--with l1=CHECKPOINT --with edm=CHECKPOINT] [--split train|validation] [--limit N]
        [--sheet FOLDER] [--card FILE]

Truths are squares of photographs at 64 pixels (held_out.py), damaged by the recipes of idm_core/degradations.py with
fixed seeds. LPIPS may be part of a restorer's own training; FD-EffNet and identity are not. Times are CPU time of one
thread.
"""

from __future__ import annotations

import json
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import torch
from scipy.stats import spearmanr

from idm_core import Restorer, load_restorer
from idm_core.degradations import RECIPES
from idm_core.restorer import Photograph
from idm_core.severity import CLEAN_PSNR, RANGE_DB, true_severity
from pipelines.detectors import EfficientNetLite0
from pipelines.faces import FaceModel, open_faces
from pipelines.weights import LPIPS_TRUNK, required, weights_folder
from tests.benchmarks.card import table, write_card
from tests.benchmarks.figures import FrechetToTruth, Identity, Lpips, contraction, interval, plain, psnrs, ssims
from tests.benchmarks.held_out import DAMAGE_SEED, SETS, SIDE, Truth, damaged, to_tensor, truths
from tests.benchmarks.methods import Method, baseline_name, default_name, methods, ungated
from tests.benchmarks.sheets import contact_sheet
from tests.benchmarks.targets import targets

MEASURED: Final = ("clean", "light", "mild", "heavy")
#: All methods and all figures; the others get the methods that are ``brief`` and no Frechet distance.
FULL: Final = ("mild", "heavy")
#: Patches of 32 to 64 pixels, enlarged as little as that. On mild damage the restored share of the distance is .319 at
#: 96 pixels, .318 at 128 (and .337 at 64); 224 costs six times as much.
DETECTOR_SIDE: Final = 96
NOTES: Final = (
    "LPIPS (AlexNet) is part of the training loss of restorers that are trained with --lpips: no independent judge.",
    "FD-EffNet: EfficientNet-lite0 features of patches at 96 px, to the same patches of the pristine truths of the "
    "same split; comparable between methods under one recipe of one set, with nothing else, and no FID.",
    "SSIM: Gaussian window, sigma 1.5, over the three channels.",
    "Filters (unsharp mask, non-local means, bilateral) were tuned on the validation split for each set and recipe.",
    "Intervals: 95 %, bootstrap over photographs.",
)


class Judge:
    """The measures of one set, with everything that they need of its truths ready."""

    def __init__(self, truth: list[Truth], lpips: Lpips, faces: FaceModel, detector: EfficientNetLite0) -> None:
        self.truth = truth
        self.images = [t.image for t in truth]
        self.lpips = lpips
        self.identity = Identity(faces, truth) if any(t.landmarks is not None for t in truth) else None
        self.frechet = FrechetToTruth(detector, truth)


def run_method(method: Method, y: list[Photograph], keys: list[str]) -> tuple[list[Photograph], dict[str, Any]]:
    """What a method makes of the images, with its evaluations and CPU milliseconds an image."""
    method.run(y[:1], keys[:1])  # whatever is set up at the first call
    clock = time.process_time()
    output = method.run(y, keys)
    milliseconds = 1000 * (time.process_time() - clock) / len(y)
    return output.images, {"evaluations": output.evaluations, "milliseconds": milliseconds}


def on_clean(judge: Judge, restored: list[Photograph]) -> dict[str, Any]:
    """Figures of what comes back for images that nothing is wrong with."""
    changed = np.array([not np.array_equal(a, b) for a, b in zip(judge.images, restored, strict=True)])
    row: dict[str, Any] = {"same": 1 - changed.mean()}
    if changed.any():
        row["psnr_p01"] = np.percentile(psnrs(judge.images, restored)[changed], 1)
    if judge.identity is not None:
        cosines = judge.identity(restored)
        row["identity"] = np.nanmean(cosines)
        row["identity_changed"] = np.nanmean(cosines[changed]) if np.isfinite(cosines[changed]).any() else np.nan
    return row


class Comparison:
    """Rows of one set under one damaging recipe, measured one after the other; the input comes first."""

    def __init__(self, judge: Judge, y: list[Photograph], with_frechet: bool) -> None:
        self.judge = judge
        self.with_frechet = with_frechet
        self.y = y
        self.psnr_before = psnrs(judge.images, y)
        self.lpips_before = judge.lpips(y, judge.images)
        self.rows: dict[str, dict[str, Any]] = {}
        self._values: dict[str, tuple[Any, Any]] = {}

    def add(self, name: str, restored: list[Photograph]) -> None:
        """Measure one method's images."""
        judge, truth = self.judge, self.judge.truth
        psnr, lpips = psnrs(judge.images, restored), judge.lpips(restored, judge.images)
        self._values[name] = psnr, lpips
        row: dict[str, Any] = {
            "psnr": psnr.mean(),
            "psnr_gain": interval(truth, psnr - self.psnr_before),
            "ssim": ssims(judge.images, restored).mean(),
            "lpips": lpips.mean(),
            "lpips_ratio": interval(truth, lpips, per=self.lpips_before),
            "worse": np.mean(psnr < self.psnr_before),
            "same": np.mean([np.array_equal(a, b) for a, b in zip(self.y, restored, strict=True)]),
        }
        if judge.identity is not None:
            cosines = judge.identity(restored)
            row["identity"], *row["identity_interval"] = interval(truth, cosines)
        if self.with_frechet:
            row["fd_effnet"] = judge.frechet(restored)
        self.rows[name] = row

    def against(self, name: str) -> None:
        """In every other row, how much more PSNR and LPIPS the method of that name has, with intervals."""
        psnr, lpips = self._values[name]
        for other, row in self.rows.items():
            if other != name:
                row[f"psnr_of_{name}_over_this"] = interval(self.judge.truth, psnr - self._values[other][0])
                row[f"lpips_of_{name}_over_this"] = interval(self.judge.truth, lpips - self._values[other][1])


def detection(restorer: Restorer, truth: list[Truth]) -> dict[str, Any]:
    """How well severity orders and parts the images of all recipes together, clean ones among them."""
    pristine = to_tensor([t.image for t in truth])
    read, true = {}, {}
    for recipe in MEASURED:
        y = damaged(truth, RECIPES[recipe])
        read[recipe] = np.array(restorer.severity(y))
        true[recipe] = true_severity(pristine, to_tensor(y)).numpy()
    severity, target = np.concatenate(list(read.values())), np.concatenate(list(true.values()))
    visible = (CLEAN_PSNR - 34) / RANGE_DB  # severity of 34 dB
    false_alarm = np.percentile(read["clean"], 99)
    return {
        "images": len(severity),
        "rank_correlation": spearmanr(severity, target).statistic,
        "severity_error": np.abs(severity - target).mean(),
        "false_alarms": np.mean(read["clean"] >= restorer.config.threshold),
        "recall": np.mean(severity[target > visible] >= restorer.config.threshold),
        "recall_at_1_percent": np.mean(severity[target > visible] > false_alarm),
        "recall_mild_at_1_percent": np.mean(read["mild"][true["mild"] > visible] > false_alarm),
    }


def again(restorer: Restorer, judge: Judge, y: list[Photograph], restored: list[Photograph]) -> dict[str, Any]:
    """What the restorer does to its own results: a second time, five times, and five times under no rule."""
    keys = [t.key for t in judge.truth]

    def shipped(images: list[Photograph], keys: list[str]) -> list[Photograph]:
        return [r.image for r in restorer.restore(images, keys)]

    def no_rule(images: list[Photograph], keys: list[str]) -> list[Photograph]:
        return ungated(restorer, images, keys, restorer.config.steps)

    settled = psnrs(restored, shipped(restored, keys))
    return {
        "idempotence_mean": settled.mean(),
        "idempotence_p05": np.percentile(settled, 5),
        "contraction": contraction(shipped, y, keys, judge.identity),
        "contraction_ungated": contraction(no_rule, y, keys),
    }


def measure_set(
    name: str, judge: Judge, restorer: Restorer, beside: dict[str, Restorer], sheet: Path | None
) -> dict[str, Any]:
    """All recipes, all rows of one set; prints each table as it is there."""
    shipped, keys = default_name(restorer), [t.key for t in judge.truth]
    recipes: dict[str, dict[str, Any]] = {}
    for recipe in MEASURED:
        y = damaged(judge.truth, RECIPES[recipe])
        comparison = Comparison(judge, y, recipe in FULL)
        shown: dict[str, list[Photograph]] = {}
        rows = comparison.rows
        for method in methods(restorer, beside, name, recipe):
            if recipe not in FULL and not method.brief:
                continue
            restored, cost = run_method(method, y, keys)
            if recipe == "clean":
                rows[method.name] = on_clean(judge, restored)
            else:
                comparison.add(method.name, restored)
            rows[method.name] |= cost
            shown[method.name] = restored
            if method.name == shipped and recipe in FULL:
                rows[method.name] |= again(restorer, judge, y, restored)
        if recipe != "clean":
            comparison.against(shipped)
        recipes[recipe] = rows
        click.echo(f"\n{name}, {recipe} damage, {len(y)} images\n{table(rows)}")
        if sheet is not None:
            contact_sheet(shown | {"truth": judge.images}, sheet / f"{name}-{recipe}.png")
    faces = sum(t.landmarks is not None for t in judge.truth)
    about = {"photographs": len({t.name for t in judge.truth}), "images": len(judge.truth), "faces": faces}
    found = detection(restorer, judge.truth)
    click.echo(f"\n{name}, detection\n" + "\n".join(f"{k:26} {v:.3f}" for k, v in found.items()))
    return about | {"fd_patches": judge.frechet.patches, "recipes": recipes, "detection": found}


def about(restorer: Restorer) -> dict[str, Any]:
    """Which restorer it was."""
    config = restorer.config
    settings = {name: getattr(config, name) for name in ("threshold", "steps", "passes")}
    return {"sha256": restorer.model_sha256, "chain": config.preset.chain, "preset": config.preset.name} | settings | {
        "trained": config.trained
    }  # fmt: skip


def _beside(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Restorer]:
    found = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not (name and equals and path):
            raise click.BadParameter(f"{value!r} is not NAME=CHECKPOINT")
        found[name] = load_restorer(path)
    return found


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--restorer", "name", default="idm-64", help="A shipped restorer's name, or a checkpoint.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write every figure here.")
@click.option("--with", "beside", multiple=True, callback=_beside, help="NAME=CHECKPOINT of a baseline; repeatable.")
@click.option("--split", type=click.Choice(["train", "validation", "test"]), default="test")
@click.option("--limit", default=0, help="Photographs of each set; 0 is all.")
@click.option("--sheet", type=click.Path(path_type=Path), help="Write contact sheets into this folder.")
@click.option("--card", type=click.Path(path_type=Path, exists=True), help="Model card to write the figures into.")
def main(
    name: str,
    json_path: Path | None,
    beside: dict[str, Restorer],
    split: str,
    limit: int,
    sheet: Path | None,
    card: Path | None,
) -> None:
    """Print a table for each set and recipe, then which of the targets are reached."""
    import cv2

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    started = time.process_time()
    restorer, lpips = load_restorer(name), Lpips(required(LPIPS_TRUNK))
    faces, detector = open_faces("mobilefacenet", weights_folder()), EfficientNetLite0(side=DETECTOR_SIDE)
    assert faces is not None
    by_chain = {other.config.preset.chain: key for key, other in beside.items()}
    report: dict[str, Any] = {
        "split": split,
        "limit": limit,
        "side": SIDE,
        "damage_seed": DAMAGE_SEED,
        "restorer": about(restorer) | {"name": name},
        "beside": {key: about(other) for key, other in beside.items()},
        "default": default_name(restorer),
        "direct": baseline_name(by_chain["direct"], 1) if "direct" in by_chain else None,
        "edm": baseline_name(by_chain["edm"], 50) if "edm" in by_chain else None,
        "detector": detector.name,
        "face_model": faces.name,
        "versions": {p: version(p) for p in ("torch", "numpy", "pillow", "scikit-image", "opencv-python", "lpips")}
        | {"python": platform.python_version()},
        "notes": list(NOTES),
        "sets": {},
    }
    for set_name, photos in SETS.items():
        truth = truths(photos, split, limit, faces=faces if set_name == "faces" else None)
        judge = Judge(truth, lpips, faces, detector)
        report["sets"][set_name] = plain(measure_set(set_name, judge, restorer, beside, sheet))
    report["targets"] = plain(targets(report))
    report["cpu_seconds"] = round(time.process_time() - started)
    click.echo("\n" + "\n".join(report["notes"]) + "\n")
    for target in report["targets"]:
        verdict = {True: "reached", False: "MISSED", None: "-"}[target["passed"]]
        value = "-" if target["value"] is None else f"{target['value']:.3f}"
        click.echo(f"{target['set']:12} {target['condition']:70} {value:>9}  {verdict}")
    click.echo(f"\n{report['cpu_seconds']} CPU seconds")
    if json_path is not None:
        json_path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if card is not None:
        write_card(card, report)


if __name__ == "__main__":
    main()
