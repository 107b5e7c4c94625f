"""Do the reference generators learn? And do lazy penalties hurt the GAN? Good faces alone, 32 pixels, no proof.

    IDM_DATA=... python -m tests.benchmarks.generators --out FOLDER [--variant NAME]...

8,000 faces are learnt from, 2,000 others are the reference. Beside each generator's distance stand those of the
training set itself, and of copies of it that are blurred: a training that failed is further away than the worst of
these. It may be killed and given again; the figures are written beside this benchmark, as far as they are there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import click
import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter

from idm_core.generators import DdmPreset, GanPreset, Images, TrainConfig, generator_preset, sample, train
from pipelines.detectors import EfficientNetLite0
from pipelines.metrics.frechet import frechet_distance, statistics_of
from tests.benchmarks.figures import features_by
from tests.benchmarks.proof import RESULTS, STUDIES, read_images
from tests.benchmarks.proof_plots import sheet_of
from tests.benchmarks.restore_or_drop import FEATURE_SIDE

SAMPLES: Final = 2_000
SIGMAS: Final = (0.5, 1.0, 2.0)  # pixels
#: Name => preset and images seen. ``eager``: R3GAN's penalties at every step.
VARIANTS: Final[Mapping[str, tuple[DdmPreset | GanPreset, int]]] = {
    "ddm-32": (generator_preset("ddm-32"), 150_000),
    "gan-32": (generator_preset("gan-32"), 100_000),
    "gan-32-eager": (replace(generator_preset("gan-32"), penalty_every=1), 100_000),  # type: ignore[call-arg]
}

Pixels = npt.NDArray[np.uint8]  # N H W 3


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--variant", "variants", type=click.Choice(list(VARIANTS)), multiple=True, default=list(VARIANTS))
def main(out: Path, variants: tuple[str, ...]) -> None:
    """Train what is not trained yet, measure, write."""
    torch.set_num_threads(1)
    study = STUDIES["faces"]
    images = np.stack([image for _, image in read_images(study)])
    learnt, held_out = images[: study.images], images[study.images :]
    detector = EfficientNetLite0(side=FEATURE_SIDE)

    reference = statistics_of(features_by(detector, held_out))

    def distance(some: Pixels) -> float:
        return round(frechet_distance(reference, statistics_of(features_by(detector, some))), 1)

    path = RESULTS / "generators.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    if "training set" not in found:
        real = learnt[:SAMPLES]
        found["training set"] = {"FD-EffNet": distance(real)}
        for sigma in SIGMAS:
            found[f"training set, blurred by {sigma} px"] = {"FD-EffNet": distance(_blurred(real, sigma))}
    shown: dict[str, Pixels] = {}
    for name in variants:
        preset, nimg = VARIANTS[name]
        config = TrainConfig(preset, nimg, save_nimg=nimg // 100, snapshot_nimg=-(-nimg // 4))
        train(Images(learnt, fingerprint="faces"), config, out / name)
        curve = {}
        for snapshot in sorted((out / name).glob("snapshot-*.safetensors")):
            shown[name] = sample(snapshot, SAMPLES, 0)
            curve[int(snapshot.stem.removeprefix("snapshot-"))] = distance(shown[name])
        last = json.loads((out / name / "stats.jsonl").read_text().splitlines()[-1])
        found[name] = {"FD-EffNet": curve[max(curve)], "seconds": last["seconds"], "by images seen": curve}
        click.echo(f"{name}: {found[name]}")
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sheet_of({name: {"": list(some)} for name, some in shown.items()}).save(path.with_suffix(".png"), optimize=True)


def _blurred(images: Pixels, sigma: float) -> Pixels:
    blurred = [gaussian_filter(image.astype(np.float64), (sigma, sigma, 0)) for image in images]
    return np.stack(blurred).round().astype(np.uint8)


if __name__ == "__main__":
    main()
