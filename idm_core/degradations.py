"""Synthetic damage with its record: blur, downsampling and back, Gaussian noise, JPEG.

The order is that of GFPGAN, CodeFormer and DifFace: blur, downsample, noise, JPEG at the low resolution, resize back.
Strengths are written for a side of 512 pixels, as in those projects' option files, and scale with the resolution.
Each image is damaged on its own, by a generator seeded with (seed, key): its bytes do not depend on its batch.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

REFERENCE_SIDE: Final = 512
#: name => (mode, antialias) of torch.nn.functional.interpolate.
RESIZERS: Final = {
    "bilinear": ("bilinear", False),
    "triangle": ("bilinear", True),
    "bicubic": ("bicubic", True),
    "area": ("area", False),
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """Uniform ranges of one kind of damage.

    Attributes:
        blur: sigma of the Gaussian blur, pixels of an image of 512 pixels.
        anisotropic: share of blurs whose two sigmas are drawn apart, with a random angle.
        downsample: factor at 512 pixels; what scales to under 1 is none.
        noise: standard deviation, in 1/255 of full scale.
        jpeg: quality, 1-100.
        chance: probability of each of the four steps, drawn apart.
        again: probability that all of it is done a second time (second-order damage).
    """

    name: str
    blur: tuple[float, float] = (0.0, 0.0)
    downsample: tuple[float, float] = (1.0, 1.0)
    noise: tuple[float, float] = (0.0, 0.0)
    jpeg: tuple[float, float] = (100.0, 100.0)
    anisotropic: float = 0.5
    chance: float = 1.0
    again: float = 0.0


# fmt: off
RECIPES: Final = {recipe.name: recipe for recipe in (
    #       name        blur sigma   downsample   noise    JPEG
    Recipe("clean",    chance=0.0),
    Recipe("light",    (0.8, 4.0),   (6.4, 10),   (0, 4),  (75, 100), chance=0.5),   # what only shows side by side
    Recipe("mild",     (2.4, 9.6),   (8, 16),     (0, 8),  (50, 100)),               # .3-1.2 and 1-2 at 64 pixels
    Recipe("heavy",    (0.8, 15.0),  (6.4, 32),   (0, 20), (30, 100)),               # DifFace's, PMRF's, ResShift's
    Recipe("partial",  (0.8, 15.0),  (6.4, 32),   (0, 20), (30, 100), chance=0.4),   # one or two kinds of damage alone
    Recipe("twice",    (0.8, 9.6),   (6.4, 16),   (0, 12), (40, 100), chance=0.7, again=1.0),
)}
#: What the restorer is trained on: (share, recipe).
MIXTURE: Final = (
    (0.15, "clean"), (0.15, "light"), (0.25, "mild"), (0.15, "heavy"), (0.25, "partial"), (0.05, "twice"),
)
# fmt: on


@dataclass(frozen=True, slots=True)
class Damage:
    """What was done to one image, in its own pixels; what was not done is None."""

    recipe: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One round of damage."""

    blur_sigma: tuple[float, float] | None
    blur_angle: float | None
    downsample: float | None
    resizers: tuple[str, str] | None
    noise_sigma: float | None
    jpeg_quality: int | None


def sample_generator(seed: int, key: str) -> torch.Generator:
    """CPU generator that is a function of (seed, key) alone."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def degrade(images: Tensor, recipe: Recipe | None, keys: Sequence[str], seed: int) -> tuple[Tensor, list[Damage]]:
    """Damage each image of a batch.

    Args:
        images: N3HW in [0, 1], on the CPU.
        recipe: one recipe for all, or None for the training mixture, drawn for each image.
        keys: N names; the same (seed, key) does the same damage to the same image.

    Returns:
        The damaged images, N3HW, quantised to 8 bits as an image file would be, and the record of each.
    """
    if len(images) != len(keys):
        raise ValueError(f"{len(images)} images but {len(keys)} keys")
    damaged, records = torch.empty_like(images, memory_format=torch.contiguous_format), []
    for i, key in enumerate(keys):
        generator = sample_generator(seed, key)
        chosen = recipe or _draw_recipe(generator)
        damaged[i], record = degrade_one(images[i], chosen, generator)
        records.append(record)
    return damaged, records


def degrade_one(image: Tensor, recipe: Recipe, generator: torch.Generator) -> tuple[Tensor, Damage]:
    """Damage one image, 3HW in [0, 1]. The same draws are made whatever the outcome of earlier ones."""
    steps = []
    rounds = 1 + int(torch.rand((), generator=generator).item() < recipe.again)
    for _ in range(rounds):
        image, step = _degrade_once(image, recipe, generator)
        steps.append(step)
    return quantise(image), Damage(recipe.name, tuple(steps))


def quantise(image: Tensor) -> Tensor:
    """Any image in or near [0, 1] => the nearest 8-bit levels, still float."""
    return (image.clamp(0, 1) * 255).round() / 255


def _draw_recipe(generator: torch.Generator) -> Recipe:
    u = torch.rand((), generator=generator).item()
    for share, name in MIXTURE:
        u -= share
        if u < 0:
            return RECIPES[name]
    return RECIPES[MIXTURE[-1][1]]


def _degrade_once(image: Tensor, recipe: Recipe, generator: torch.Generator) -> tuple[Tensor, Step]:
    height, width = image.shape[1:]
    scale = max(height, width) / REFERENCE_SIDE
    u = torch.rand(13, generator=generator).tolist()
    blurs, downsamples, noises, compresses = (x < recipe.chance for x in u[:4])
    sigma = angle = factor = resizers = noise = quality = None

    if blurs and recipe.blur[1] > 0:
        first = scale * _between(recipe.blur, u[4])
        isotropic = u[5] >= recipe.anisotropic
        sigma = (first, first if isotropic else scale * _between(recipe.blur, u[6]))
        angle = 0.0 if isotropic else math.pi * u[7]
        image = _blur(image, sigma, angle)
    if downsamples and scale * recipe.downsample[1] > 1:
        factor = max(1.0, _between((scale * recipe.downsample[0], scale * recipe.downsample[1]), u[8]))
        names = list(RESIZERS)
        resizers = (names[int(u[9] * len(names))], ("bilinear", "bicubic")[int(u[10] * 2)])
        image = _resize(image, max(1, round(height / factor)), max(1, round(width / factor)), resizers[0])
    if noises and recipe.noise[1] > 0:
        noise = _between(recipe.noise, u[11])
        image = image + noise / 255 * torch.randn(image.shape, generator=generator)
    if compresses and recipe.jpeg[0] < 100:
        quality = round(_between(recipe.jpeg, u[12]))
        image = _jpeg(image, quality)
    if resizers is not None:
        image = _resize(image, height, width, resizers[1])
    return image, Step(sigma, angle, factor, resizers, noise, quality)


def _between(bounds: tuple[float, float], u: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * u


def _blur(image: Tensor, sigma: tuple[float, float], angle: float) -> Tensor:
    """Gaussian blur of 3HW with the two sigmas, in pixels, along axes turned by ``angle``; reflected borders."""
    radius = min(math.ceil(3 * max(sigma)), min(image.shape[1:]) - 1)
    if radius < 1:
        return image
    axis = torch.arange(-radius, radius + 1, dtype=torch.float32)
    dy, dx = torch.meshgrid(axis, axis, indexing="ij")
    along, across = dx * math.cos(angle) + dy * math.sin(angle), dy * math.cos(angle) - dx * math.sin(angle)
    kernel = torch.exp(-0.5 * ((along / max(sigma[0], 1e-3)) ** 2 + (across / max(sigma[1], 1e-3)) ** 2))
    kernel = (kernel / kernel.sum()).expand(1, 1, -1, -1)
    return F.conv2d(F.pad(image[:, None], (radius,) * 4, mode="reflect"), kernel)[:, 0]  # channels as a batch


def _resize(image: Tensor, height: int, width: int, resizer: str) -> Tensor:
    mode, antialias = RESIZERS[resizer]
    return F.interpolate(image[None], (height, width), mode=mode, antialias=antialias)[0]


def _jpeg(image: Tensor, quality: int) -> Tensor:
    """Through libjpeg in memory, with the subsampling that encoders use at that quality: 4:2:0 under 90."""
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=2 if quality < 90 else 0)
    with Image.open(buffer) as decoded:
        return torch.from_numpy(np.array(decoded)).permute(2, 0, 1).float() / 255
