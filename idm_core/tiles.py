"""Images of any size through a network that wants moderate, even sizes: padding, overlapping tiles, smooth windows.

Along each axis up to 256 pixels are one tile, longer ones are cut into equal overlapping tiles. Windows fall off
smoothly towards a tile's edge and are normalised, so that they add up to one at every pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from idm_core.presets import Preset

LARGEST: Final = 256
OVERLAP: Final = 32
#: Sides are multiples of this, so that few shapes occur; and at least SMALLEST, below which little context is left.
MULTIPLE: Final = 32
SMALLEST: Final = 64


@dataclass(frozen=True, slots=True)
class Axis:
    """How one side of an image is cut.

    Attributes:
        length: pixels of the image.
        side: pixels of a tile; above ``length`` where one padded tile holds the image.
        starts: first pixel of each tile.
    """

    length: int
    side: int
    starts: tuple[int, ...]

    @property
    def padded(self) -> int:
        """Pixels that have to be there: ``length``, or ``side`` where that is more."""
        return max(self.length, self.side)

    def windows(self) -> Tensor:
        """Weight of each tile at each of its pixels, (tiles, side), float32; over all tiles 1 at every pixel."""
        ramp = torch.sin(math.pi * (torch.arange(self.side, dtype=torch.float64) + 0.5) / self.side).square()
        total = torch.zeros(self.padded, dtype=torch.float64)
        for start in self.starts:
            total[start : start + self.side] += ramp
        return torch.stack([ramp / total[start : start + self.side] for start in self.starts]).float()


def cut(length: int) -> Axis:
    """Tiles along a side of ``length`` pixels."""
    if length < 1:
        raise ValueError(f"an image has at least one pixel a side, not {length}")
    count = 1 if length <= LARGEST else math.ceil((length - OVERLAP) / (LARGEST - OVERLAP))
    side = max(SMALLEST, MULTIPLE * math.ceil((length + (count - 1) * OVERLAP) / count / MULTIPLE))
    gaps = max(count - 1, 1)
    return Axis(length, side, tuple(round(i * max(length - side, 0) / gaps) for i in range(count)))


def tiles_per_batch(height: int, width: int, device: torch.device) -> int:
    """Tiles that go through a network at once: a function of their shape and the kind of device, nothing else.

    The same kernel then sees a tile whatever else is restored with it, and the result is the same to the last bit.
    """
    budget = 8 if device.type == "cpu" else 256
    return max(1, budget * (SMALLEST * SMALLEST) // (height * width))


def pad_reflected(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """HxWx3 grown to (height, width) at the bottom and the right by reflection, as often as it takes."""
    h, w = image.shape[:2]
    if (h, w) == (height, width):
        return image
    return image[_reflected(h, height)][:, _reflected(w, width)]


def _reflected(length: int, wanted: int) -> NDArray[np.intp]:
    """Indices 0 1 2 3 2 1 0 1 ... for length 4."""
    period = max(2 * length - 2, 1)
    index = np.arange(wanted) % period
    return np.minimum(index, period - index) if length > 1 else np.zeros(wanted, np.intp)


def fixed_batches(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], size: int) -> Tensor:
    """``function(*inputs)`` over the first dimension in batches of exactly ``size``, the last filled up with zeros."""
    count, outputs = len(inputs[0]), []
    for first in range(0, count, size):
        batch = [x[first : first + size] for x in inputs]
        missing = size - len(batch[0])
        if missing:
            batch = [torch.cat([x, x.new_zeros(missing, *x.shape[1:])]) for x in batch]
        batch = [x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in batch]
        outputs.append(function(*batch)[: size - missing])
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def tiles_of(rows: Axis, columns: Axis) -> Iterator[tuple[slice, slice, Tensor]]:
    """Each tile's rows, columns and window (side, side), in reading order."""
    across = columns.windows()
    for top, down in zip(rows.starts, rows.windows(), strict=True):
        for left, weights in zip(columns.starts, across, strict=True):
            yield slice(top, top + rows.side), slice(left, left + columns.side), down[:, None] * weights


def apply_tiled(function: Callable[..., Tensor], images: tuple[Tensor, ...], scalars: tuple[Tensor, ...]) -> Tensor:
    """``function(*images, *scalars)`` blended over tiles.

    Holds one batch of tiles beside the images themselves, however large they are.

    Args:
        function: tiles, each n3hw, and scalars, each n => n3hw.
        images: each N3HW, sides as ``Axis.padded`` of their ``cut``.
        scalars: each N.
    """
    height, width = images[0].shape[2:]
    rows, columns = cut(height), cut(width)
    size = tiles_per_batch(rows.side, columns.side, images[0].device)
    places = list(tiles_of(rows, columns))
    if len(places) == 1:
        return fixed_batches(function, images + scalars, size)
    blended = torch.zeros_like(images[0])
    for n in range(len(images[0])):
        for first in range(0, len(places), size):
            some = places[first : first + size]
            inputs = tuple(torch.stack([x[n, :, r, c] for r, c, _ in some]) for x in images)
            inputs += tuple(x[n].expand(len(some)) for x in scalars)
            for (r, c, window), tile in zip(some, fixed_batches(function, inputs, size), strict=True):
                blended[n, :, r, c] += window.to(tile.device) * tile
    return blended


def multiple_of(preset: Preset) -> int:
    """What a tile's sides have to be divisible by for this preset's networks."""
    return int(max(8, preset.stem * 2 ** (len(preset.widths) - 1)))
