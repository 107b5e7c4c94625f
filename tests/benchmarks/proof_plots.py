"""What a proof found, as pictures: distances while training with the gains beside them, and what was made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from PIL import Image, ImageDraw, ImageFont

from manifests.rundir import Run
from pipelines.report_proof import ACROSS, ORDER

ARMS: Final = ("original", *ORDER)
#: Colours that are told apart without red and green (Okabe and Ito), the controls grey.
COLOURS: Final = dict(
    zip(ARMS, ("#000000", "#56b4e9", "#0072b2", "#e69f00", "#cc79a7", "#009e73", "#999999", "#cccccc"), strict=True)
)
#: Images of each sheet's cell.
DOWN: Final = 2
ENLARGED: Final = 2
_MARGIN: Final = 84  # pixels for the row's name
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
        for curve in sorted((c for c in found["curves"] if c["trainer"] == trainer), key=_order):
            points, colour = curve["points"], COLOURS[curve["arm"]]
            x = [p["nimg"] / 1000 for p in points]
            left.plot(x, [p["mean"] for p in points], color=colour, marker=".", label=curve["arm"])
            left.fill_between(x, [p["low"] for p in points], [p["high"] for p in points], color=colour, alpha=0.15)
        left.set(title=trainer, xlabel="thousand images trained on", ylabel=measure)
        left.legend(fontsize=7)
        gains = sorted((g for g in found["gains"] if g["trainer"] == trainer and g["gain"]), key=_order, reverse=True)
        for i, gain in enumerate(gains):
            value, low, high = (gain["gain"][end] for end in ("value", "low", "high"))
            if low is not None:
                right.plot([low, high], [i, i], color=COLOURS[gain["arm"]])
            right.plot(value, i, "o", color=COLOURS[gain["arm"]])
        right.axvline(0, color="black", linewidth=0.5)
        right.set(title=f"gain over original, {measure}", yticks=range(len(gains)))
        right.set_yticklabels([f"{g['arm']} ({g['pairs']})" for g in gains])
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def draw_samples(run: Run, found: Mapping[str, Any], path: Path) -> None:
    """An arm a row: its own data, and what the first pair of each trainer makes, from the same noise."""
    folder = Path(run.root) / "jobs"
    columns = {"its data": {arm: sorted((folder / "images").glob(f"{arm}-data-*.png")) for arm in ARMS}}
    for trainer in found["trainers"]:
        columns[trainer] = {arm: sorted((folder / f"{arm}-{trainer}-s0").glob("samples-*.png")) for arm in ARMS}
    arms = [arm for arm in ARMS if any(column[arm] for column in columns.values())]
    if not arms:
        return
    cells = {(name, arm): _cell(column[arm][-1]) for name, column in columns.items() for arm in arms if column[arm]}
    width, height = next(iter(cells.values())).size
    sheet = Image.new("RGB", (_MARGIN + len(columns) * (width + _GAP), _TOP + len(arms) * (height + _GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for column, name in enumerate(columns):
        draw.text((_MARGIN + column * (width + _GAP), 2), name, "black", font)
        for row, arm in enumerate(arms):
            top = _TOP + row * (height + _GAP)
            draw.text((4, top + height // 2 - 8), arm, "black", font)
            if (name, arm) in cells:
                sheet.paste(cells[name, arm], (_MARGIN + column * (width + _GAP), top))
    sheet.save(path, optimize=True)


def _cell(path: Path) -> Image.Image:
    with Image.open(path) as grid:
        side = grid.width // ACROSS
        top = grid.convert("RGB").crop((0, 0, grid.width, min(grid.height, DOWN * side)))
    return top.resize((ENLARGED * top.width, ENLARGED * top.height), Image.Resampling.NEAREST)


def _order(row: Mapping[str, Any]) -> int:
    return ARMS.index(row["arm"])
