"""What a proof found, as pictures: distances while training with the gains beside them, and what was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from manifests.rundir import Run
from pipelines.report_proof import ACROSS, ORDER

ARMS: Final = ("original", *ORDER)
#: Colours that are told apart without red and green (Okabe and Ito), the controls grey.
COLOURS: Final = dict(
    zip(ARMS, ("#000000", "#56b4e9", "#0072b2", "#e69f00", "#cc79a7", "#009e73", "#999999", "#cccccc"), strict=True)
)
Pixels = npt.NDArray[np.uint8]  # H W 3

#: Rows of images of each sheet's cell.
DOWN: Final = 2
ENLARGED: Final = 2
#: Arms stand beside each other, so that their seeds are seen: share of the run's length.
_APART: Final = 0.008
_MARGIN: Final = 104  # pixels for the row's name
_GAP: Final = 8
_TOP: Final = 22


def draw_curves(found: Mapping[str, Any], path: Path) -> None:
    """A trainer a row: the headline's figure while training (means, lowest to highest seed), and the gains (95 %)."""
    trainers = [t for t in found["trainers"] if any(c["trainer"] == t for c in found["curves"])]
    if not trainers:
        return
    plt.rcParams["svg.hashsalt"] = "proof"  # the same figures make the same file
    figure, axes = plt.subplots(
        len(trainers), 2, figsize=(10, 3.4 * len(trainers)), squeeze=False, layout="constrained"
    )
    measure = found["headline"]["figure"]
    for (left, right), trainer in zip(axes, trainers, strict=True):
        drawn = sorted((c for c in found["curves"] if c["trainer"] == trainer), key=_order)
        end = max(p["nimg"] for curve in drawn for p in curve["points"]) / 1000
        for i, curve in enumerate(drawn):
            points, colour = curve["points"], COLOURS[curve["arm"]]
            aside = (i - (len(drawn) - 1) / 2) * _APART * end
            x = [p["nimg"] / 1000 + aside for p in points]
            low, high = ([p[side] for p in points] for side in ("low", "high"))
            left.plot(x, [p["mean"] for p in points], color=colour, marker=".", label=curve["arm"])
            left.fill_between(x, low, high, color=colour, alpha=0.1, linewidth=0)
            left.vlines(x, low, high, color=colour, linewidth=1)
        left.set(title=trainer, xlabel="thousand images trained on", ylabel=measure, xlim=(0, 1.1 * end))
        left.legend(fontsize=7)
        gains = sorted((g for g in found["gains"] if g["trainer"] == trainer and g["gain"]), key=_order, reverse=True)
        for i, gain in enumerate(gains):
            value, low, high = (gain["gain"][end] for end in ("value", "low", "high"))
            if low is not None:
                right.plot([100 * low, 100 * high], [i, i], color=COLOURS[gain["arm"]])
            right.plot(100 * value, i, "o", color=COLOURS[gain["arm"]])
        right.axvline(0, color="black", linewidth=0.5)
        right.set(title=f"gain over original, % of {measure}", yticks=range(len(gains)))
        right.set_yticklabels([f"{g['arm']} ({g['pairs']})" for g in gains])
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def draw_samples(run: Run, found: Mapping[str, Any], path: Path) -> None:
    """An arm a row: what the first pair of each trainer makes, from the same noise.

    What they were trained on is not shown: these photographs are others', and the report has them.
    """
    rows: dict[str, dict[str, list[Pixels]]] = {}
    for arm in ARMS:
        for trainer in found["trainers"]:
            if there := sorted((Path(run.root) / "jobs" / f"{arm}-{trainer}-s0").glob("samples-*.png")):
                rows.setdefault(arm, {})[trainer] = _images_of(there[-1])
    if rows:
        sheet_of(rows).save(path, optimize=True)


def sheet_of(rows: Mapping[str, Mapping[str, Sequence[Pixels]]]) -> Image.Image:
    """The first images, all of one size, of each row and column, enlarged without smoothing."""
    names = list(dict.fromkeys(name for columns in rows.values() for name in columns))
    side = ENLARGED * next(
        image.shape[0] for columns in rows.values() for images in columns.values() for image in images
    )
    width, height = ACROSS * side + _GAP, DOWN * side + _GAP
    sheet = Image.new("RGB", (_MARGIN + len(names) * width, _TOP + len(rows) * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for c, name in enumerate(names):
        draw.text((_MARGIN + c * width, 2), name, "black", font)
    for r, (row, columns) in enumerate(rows.items()):
        draw.text((4, _TOP + r * height + DOWN * side // 2 - 8), row, "black", font)
        for name, images in columns.items():
            left, top = _MARGIN + names.index(name) * width, _TOP + r * height
            for i, image in enumerate(images[: ACROSS * DOWN]):
                large = Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST)
                sheet.paste(large, (left + i % ACROSS * side, top + i // ACROSS * side))
    return sheet


def _images_of(path: Path) -> list[Pixels]:
    """Of a picture of samples, row by row."""
    with Image.open(path) as opened:
        grid = np.asarray(opened.convert("RGB"))
    side = grid.shape[1] // ACROSS
    return [
        grid[top : top + side, left : left + side]
        for top in range(0, grid.shape[0], side)
        for left in range(0, grid.shape[1], side)
    ]


def _order(row: Mapping[str, Any]) -> int:
    return ARMS.index(row["arm"])
