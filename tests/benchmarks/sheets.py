"""Contact sheets: one row a method, one column a photograph."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from idm_core.restorer import Photograph

ENLARGED: Final = 3
COLUMNS: Final = 10
_MARGIN: Final = 190  # pixels for the row's name
_GAP: Final = 4


def contact_sheet(rows: dict[str, list[Photograph]], path: Path) -> None:
    """Write the rows, by name, as a PNG: ``COLUMNS`` of the images, evenly spaced, enlarged without smoothing.

    Args:
        rows: the same number of images of one size in each.
    """
    count = len(next(iter(rows.values())))
    chosen = np.unique(np.linspace(0, count - 1, min(COLUMNS, count)).round().astype(int))
    height, width = (ENLARGED * n for n in next(iter(rows.values()))[0].shape[:2])
    size = _MARGIN + len(chosen) * (width + _GAP), len(rows) * (height + _GAP)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for r, (name, images) in enumerate(rows.items()):
        top = r * (height + _GAP)
        draw.multiline_text((6, top + height // 2 - 16), name.replace(", ", ",\n"), "black", font)
        for c, index in enumerate(chosen):
            image = Image.fromarray(images[index]).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(image, (_MARGIN + c * (width + _GAP), top))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
