"""Synthetic damage with its record: colour, blur, downsampling and back, noise, compression.

The order is that of GFPGAN, CodeFormer and DifFace: blur, downsample, noise, compress while it is small, resize back.
Strengths are written for a side of 512 pixels, as in those projects' option files, and scale with the resolution.
Each image is damaged on its own, by a generator seeded with (seed, key): its bytes do not depend on its batch.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

REFERENCE_SIDE: Final = 512
#: Rec. 601, what greying keeps.
LUMA: Final = torch.tensor([0.299, 0.587, 0.114])
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
        blur: standard deviation of the blur, pixels of an image of 512 pixels.
        downsample: factor at 512 pixels; what scales to under 1 is none.
        noise: standard deviation, in 1/255 of full scale; of Poisson noise, at mid grey.
        quality: of JPEG or WebP, 1-100.
        chance: probability of each of these four, drawn apart.
        again: probability that all of it is done a second time (second-order damage).
        anisotropic: share of Gaussian blurs whose two sigmas are drawn apart, with a random angle.
        motion: share of blurs that are along a straight line instead, of the same standard deviation.
        poisson: share of noises that are Poisson noise instead of Gaussian.
        webp: share of compressions by WebP instead of JPEG.
        cast: each channel is multiplied by a factor up to e to the power of plus or minus this.
        grey: probability that the colour is taken away.

    The last two are 0 in all recipes that ship: whether a tint is damage or the light, the skin or the wall cannot be
    told from the picture, and a restorer that "corrects" it shifts faces towards the average one.
    """

    name: str
    blur: tuple[float, float] = (0.0, 0.0)
    downsample: tuple[float, float] = (1.0, 1.0)
    noise: tuple[float, float] = (0.0, 0.0)
    quality: tuple[float, float] = (100.0, 100.0)
    chance: float = 1.0
    again: float = 0.0
    anisotropic: float = 0.5
    motion: float = 0.0
    poisson: float = 0.0
    webp: float = 0.0
    cast: float = 0.0
    grey: float = 0.0


#: Shares of the rarer kinds of blur, noise and compression, in the recipes that have them.
_KINDS: Final = {"motion": 0.25, "poisson": 0.3, "webp": 0.25}
# fmt: off
RECIPES: Final = {recipe.name: recipe for recipe in (
    #       name        blur sigma   downsample   noise    quality
    Recipe("clean",    chance=0.0),
    Recipe("light",    (0.8, 4.0),   (6.4, 10),   (0, 4),  (75, 100), chance=0.5, **_KINDS),   # only shows side by side
    Recipe("mild",     (2.4, 9.6),   (8, 16),     (0, 8),  (50, 100)),               # .3-1.2 and 1-2 at 64 pixels
    Recipe("heavy",    (0.8, 15.0),  (6.4, 32),   (0, 20), (30, 100)),               # DifFace's, PMRF's, ResShift's
    Recipe("partial",  (0.8, 15.0),  (6.4, 32),   (0, 20), (30, 100), chance=0.4, **_KINDS),   # one or two kinds alone
    Recipe("twice",    (0.8, 9.6),   (6.4, 16),   (0, 12), (40, 100), chance=0.7, again=1.0, **_KINDS),
)}
#: Training images by recipe: (share, recipe).
Mixture = tuple[tuple[float, str], ...]
MIXTURE: Final[Mixture] = (
    (0.15, "clean"), (0.12, "light"), (0.25, "mild"), (0.18, "heavy"), (0.24, "partial"), (0.06, "twice"),
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

    cast: tuple[float, float, float] | None = None
    grey: bool = False
    blur: Literal["gaussian", "motion"] | None = None
    blur_sigma: tuple[float, float] | None = None
    blur_angle: float | None = None
    downsample: float | None = None
    resizers: tuple[str, str] | None = None
    noise: Literal["gaussian", "poisson"] | None = None
    noise_sigma: float | None = None
    codec: Literal["JPEG", "WEBP"] | None = None
    quality: int | None = None


def sample_generator(seed: int, key: str) -> torch.Generator:
    """CPU generator that is a function of (seed, key) alone."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def mixture(clean: float) -> Mixture:
    """``MIXTURE`` with another share of clean images, the others in proportion."""
    rest = (1 - clean) / sum(share for share, name in MIXTURE if name != "clean")
    return tuple((clean if name == "clean" else rest * share, name) for share, name in MIXTURE)


def degrade(images: Tensor, recipe: Recipe | Mixture, keys: Sequence[str], seed: int) -> tuple[Tensor, list[Damage]]:
    """Damage each image of a batch.

    Args:
        images: N3HW in [0, 1], on the CPU.
        recipe: one recipe for all, or a mixture that each image's is drawn from.
        keys: N names; the same (seed, key) does the same damage to the same image.

    Returns:
        The damaged images, N3HW, quantised to 8 bits as an image file would be, and the record of each.
    """
    if len(images) != len(keys):
        raise ValueError(f"{len(images)} images but {len(keys)} keys")
    damaged, records = torch.empty_like(images, memory_format=torch.contiguous_format), []
    for i, key in enumerate(keys):
        generator = sample_generator(seed, key)
        chosen = recipe if isinstance(recipe, Recipe) else _draw_recipe(recipe, generator)
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


def _draw_recipe(mixture: Mixture, generator: torch.Generator) -> Recipe:
    u = torch.rand((), generator=generator).item()
    for share, name in mixture:
        u -= share
        if u < 0:
            return RECIPES[name]
    return RECIPES[mixture[-1][1]]


def _degrade_once(image: Tensor, recipe: Recipe, generator: torch.Generator) -> tuple[Tensor, Step]:
    height, width = image.shape[1:]
    scale = max(height, width) / REFERENCE_SIDE
    u = torch.rand(20, generator=generator).tolist()
    blurs, downsamples, noises, compresses = (x < recipe.chance for x in u[:4])
    step = Step()

    if recipe.cast > 0:
        r, g, b = (math.exp(recipe.cast * (2 * x - 1)) for x in u[16:19])
        step = replace(step, cast=(r, g, b))
        image = image * torch.tensor([r, g, b])[:, None, None]
    if u[19] < recipe.grey:
        step = replace(step, grey=True)
        image = torch.tensordot(LUMA, image, 1).expand(3, -1, -1)
    if blurs and recipe.blur[1] > 0:
        sigma, angle = scale * _between(recipe.blur, u[4]), math.pi * u[7]
        if u[13] < recipe.motion:
            kernel = _line(sigma, angle)
            step = replace(step, blur="motion", blur_sigma=(sigma, 0.0), blur_angle=angle)
        else:
            isotropic = u[5] >= recipe.anisotropic
            sigmas = (sigma, sigma if isotropic else scale * _between(recipe.blur, u[6]))
            angle = 0.0 if isotropic else angle
            kernel = _gaussian(sigmas, angle)
            step = replace(step, blur="gaussian", blur_sigma=sigmas, blur_angle=angle)
        image = _convolve(image, kernel)
    if downsamples and scale * recipe.downsample[1] > 1:
        factor = max(1.0, _between((scale * recipe.downsample[0], scale * recipe.downsample[1]), u[8]))
        down, up = list(RESIZERS)[int(u[9] * len(RESIZERS))], ("bilinear", "bicubic")[int(u[10] * 2)]
        step = replace(step, downsample=factor, resizers=(down, up))
        image = _resize(image, max(1, round(height / factor)), max(1, round(width / factor)), down)
    if noises and recipe.noise[1] > 0:
        sigma = _between(recipe.noise, u[11])
        step = replace(step, noise="poisson" if u[14] < recipe.poisson else "gaussian", noise_sigma=sigma)
        if step.noise == "gaussian":
            image = image + sigma / 255 * torch.randn(image.shape, generator=generator)
        else:
            photons = 0.5 / max(sigma / 255, 1e-4) ** 2  # at white; the variance at mid grey is then sigma squared
            image = torch.poisson(image.clamp(0, 1) * photons, generator=generator) / photons
    if compresses and recipe.quality[0] < 100:
        quality = round(_between(recipe.quality, u[12]))
        codec: Literal["JPEG", "WEBP"] = "WEBP" if u[15] < recipe.webp else "JPEG"
        step = replace(step, codec=codec, quality=quality)
        image = _compress(image, codec, quality)
    if step.resizers is not None:
        image = _resize(image, height, width, step.resizers[1])
    return image, step


def _between(bounds: tuple[float, float], u: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * u


def _grid(radius: int, angle: float) -> tuple[Tensor, Tensor]:
    """Coordinates along and across a direction, each (2 radius + 1) squared, pixels."""
    axis = torch.arange(-radius, radius + 1, dtype=torch.float32)
    dy, dx = torch.meshgrid(axis, axis, indexing="ij")
    return dx * math.cos(angle) + dy * math.sin(angle), dy * math.cos(angle) - dx * math.sin(angle)


def _gaussian(sigma: tuple[float, float], angle: float) -> Tensor:
    """Kernel with the two sigmas, in pixels, along axes turned by ``angle``."""
    along, across = _grid(math.ceil(3 * max(sigma)), angle)
    return torch.exp(-0.5 * ((along / max(sigma[0], 1e-3)) ** 2 + (across / max(sigma[1], 1e-3)) ** 2))


def _line(sigma: float, angle: float) -> Tensor:
    """Kernel of a straight movement: a line of that standard deviation, in pixels, softened to a pixel's width."""
    half = sigma * 3**0.5
    along, across = _grid(math.ceil(half), angle)
    return (half + 0.5 - along.abs()).clamp(0, 1) * torch.exp(-0.5 * (across / 0.4) ** 2)


def _convolve(image: Tensor, kernel: Tensor) -> Tensor:
    """3HW with a square kernel of odd side, scaled to a sum of one; reflected borders, which bound its radius."""
    spare = (kernel.shape[0] - 1) // 2 - (min(image.shape[1:]) - 1)
    if spare > 0:
        kernel = kernel[spare:-spare, spare:-spare]
    radius = (kernel.shape[0] - 1) // 2
    if radius < 1:
        return image
    weights = (kernel / kernel.sum()).expand(1, 1, -1, -1)
    return F.conv2d(F.pad(image[:, None], (radius,) * 4, mode="reflect"), weights)[:, 0]  # channels as a batch


def _resize(image: Tensor, height: int, width: int, resizer: str) -> Tensor:
    mode, antialias = RESIZERS[resizer]
    return F.interpolate(image[None], (height, width), mode=mode, antialias=antialias)[0]


def _compress(image: Tensor, codec: Literal["JPEG", "WEBP"], quality: int) -> Tensor:
    """Through a codec in memory; JPEG with the subsampling that encoders use at that quality, 4:2:0 under 90."""
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    options = {"subsampling": 2 if quality < 90 else 0} if codec == "JPEG" else {"method": 2}
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, codec, quality=quality, **options)
    with Image.open(buffer) as decoded:
        return torch.from_numpy(np.array(decoded)).permute(2, 0, 1).float() / 255
