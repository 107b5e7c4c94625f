"""Does the ablation name the dirt that costs most? One planted kind is bad, in turn; the others are light.

    IDM_DATA=... python -m tests.benchmarks.influence --out FOLDER

Faces of 64 pixels that IDM reads as clean; a tenth is blurred, a tenth noisy, a tenth compressed, a tenth enlarged from
fewer pixels. Which image is of which kind is told by its measurements, as ``evaluate RUN --ablate`` does it. A blur and
an enlargement look the same in these: each is also asked for without the other.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click
import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFilter

from idm_core import load_restorer
from pipelines.detectors import EfficientNetLite0
from pipelines.measure import measure
from pipelines.metrics.frechet import statistics_of
from pipelines.proof.influence import KINDS, costs, kinds_of
from tests.benchmarks.figures import features_by, plain
from tests.benchmarks.proof import RESULTS
from tests.benchmarks.restore_or_drop import FEATURE_SIDE, read_truths

IMAGES: Final = 4_000  # as many again are the reference
SHARE: Final = 0.1  # of each kind
ALIKE: Final = {"blur": "upscaled", "upscaled": "blur"}

Pixels = npt.NDArray[np.uint8]  # H W 3
#: Kind => strength of the light and of the bad one.
STRENGTHS: Final[Mapping[str, tuple[float, float]]] = {
    "blur": (0.8, 2.5),  # sigma, pixels
    "noise": (6, 30),  # sigma, of 255
    "jpeg": (40, 6),  # quality
    "upscaled": (1.5, 4),  # times
}


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(out: Path) -> None:
    """Plant, look, rank; print the table and write the figures beside this benchmark."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    out.mkdir(parents=True, exist_ok=True)
    restorer, detector = load_restorer("idm-64"), EfficientNetLite0(side=FEATURE_SIDE)
    names, images = read_truths(out / "truths.npz", restorer)

    reference = statistics_of(features_by(detector, images[IMAGES : 2 * IMAGES]))
    place = [int.from_bytes(hashlib.sha256(f"kind {name}".encode()).digest()[:8], "big") / 2**64 for name in names]
    truth = [list(KINDS)[int(p / SHARE)] if p < SHARE * len(KINDS) else None for p in place[:IMAGES]]
    found: dict[str, Any] = {}
    for bad in KINDS:
        damaged = [plant(images[i], kind, str(names[i]), bad=kind == bad) for i, kind in enumerate(truth)]
        pixels = np.stack([p for p, _ in damaged])
        severity = restorer.severity(list(pixels))
        rows = [{**measure(p, data), "severity": s} for (p, data), s in zip(damaged, severity, strict=True)]
        looked_at = features_by(detector, pixels)
        for without in dict.fromkeys((None, ALIKE.get(bad))):
            asked = [kind for kind in KINDS if kind != without]
            kinds = kinds_of(rows, asked, restorer.config.threshold)
            told = {cost.kind: asdict(cost) for cost in costs(looked_at, kinds, asked, reference)}
            for kind in asked:
                there = [t == kind for t in truth]
                right = sum(k == kind and t for k, t in zip(kinds, there, strict=True))
                told[kind] |= {"planted": sum(there), "found of these": right / sum(there)}
            name = bad if without is None else f"{bad}, {without} not asked for"
            found[name] = told
            click.echo(row_of(name, told))
        (RESULTS / "influence.json").write_text(json.dumps(plain(found), indent=1) + "\n", encoding="utf-8")


def plant(image: Pixels, kind: str | None, name: str, *, bad: bool) -> tuple[Pixels, bytes | None]:
    """The image with that damage, and its file where that tells something."""
    if kind is None:
        return image, None
    strength, photo = STRENGTHS[kind][bad], Image.fromarray(image)
    if kind == "noise":
        draw = np.random.default_rng(list(hashlib.sha256(f"noise {name}".encode()).digest()))
        return (image + draw.normal(0, strength, image.shape)).round().clip(0, 255).astype(np.uint8), None
    if kind == "jpeg":
        buffer = io.BytesIO()
        photo.save(buffer, "JPEG", quality=int(strength))
        return np.asarray(Image.open(buffer)), buffer.getvalue()
    if kind == "blur":
        return np.asarray(photo.filter(ImageFilter.GaussianBlur(strength))), None
    few = tuple(round(side / strength) for side in photo.size)
    reduced = photo.resize((few[0], few[1]), Image.Resampling.BOX)
    return np.asarray(reduced.resize(photo.size, Image.Resampling.BICUBIC)), None


def row_of(name: str, told: Mapping[str, Any]) -> str:
    """One turn as a line of a table: what leaving each kind out would gain, in the order of ``told``: worst first."""

    def cell(kind: str) -> str:
        left, share = told[kind]["left_out"], told[kind]["found of these"]
        gain = "-" if left is None else f"{left['value']:.1f} ({left['low']:.1f} to {left['high']:.1f})"
        return f"{kind} {gain}, {100 * share:.0f} % found"

    return f"| {name} | " + "; ".join(map(cell, told)) + " |"


if __name__ == "__main__":
    main()
