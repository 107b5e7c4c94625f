"""The generators' sizes and how each is trained, in two tables: one row is one model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final


@dataclass(frozen=True, slots=True)
class DdmPreset:
    """A diffusion model: the shape of its denoiser, as in ``idm_core.presets.Preset``, and its training.

    Attributes:
        name: what a configuration calls it.
        resolution: side of the images, pixels.
        stem, widths, encoder, decoder, embedding: of the denoiser; see ``Preset``.
        batch: images per forward and backward pass.
        lr: of Adam, after the warm-up.
        lr_end: what it falls to by the end of the run, along a cosine.
        ema_nimg: half-life of the averaged weights, images; shorter in the beginning.
    """

    name: str
    resolution: int
    stem: int
    widths: tuple[int, ...]
    encoder: tuple[int, ...]
    decoder: tuple[int, ...]
    embedding: int
    batch: int
    lr: float
    lr_end: float
    ema_nimg: int


@dataclass(frozen=True, slots=True)
class GanPreset:
    """A GAN: the shape that generator and discriminator share, and their training.

    Attributes:
        name: what a configuration calls it.
        resolution: side of the images, pixels: 4 times 2 to the number of widths less one, times the stem.
        latent: numbers that an image is made from.
        stem: side of the squares of pixels that are channels of one place, as a denoiser's; 1 for none.
        widths: channels at each resolution, from 4 x 4 pixels on.
        blocks: residual blocks at each resolution.
        expansion: channels inside a block by those outside it.
        group: channels of one group of the 3 x 3 convolutions; 0 for one group of all.
        batch, lr, lr_end, ema_nimg: as of a diffusion model.
        gamma: weight of the gradient penalties; the larger, the steadier and the slower.
        gamma_end: what it falls to by the end of the run, along a cosine.
        penalty_every: steps; at every so many the penalties are taken, so many times as heavy (lazy regularisation).
    """

    name: str
    resolution: int
    latent: int
    stem: int
    widths: tuple[int, ...]
    blocks: int
    expansion: int
    group: int
    batch: int
    lr: float
    lr_end: float
    ema_nimg: int
    gamma: float
    gamma_end: float
    penalty_every: int = 1

    def __post_init__(self) -> None:
        if self.resolution != 4 * 2 ** (len(self.widths) - 1) * self.stem:
            raise ValueError(f"preset {self.name}: {len(self.widths)} widths are not of {self.resolution} pixels")


GeneratorPreset = DdmPreset | GanPreset

_DDM_32: Final = DdmPreset("ddm-32", 32, 2, (64, 128, 160), (1, 1, 2), (1, 1), 128, 32, 1e-3, 1e-3, 20_000)
_GAN_32: Final = GanPreset("gan-32", 32, 64, 2, (128, 96, 64), 2, 1, 0, 32, 6e-4, 1e-4, 10_000, 0.5, 0.1, 8)
# What is quick takes smaller steps: for trainings of some ten thousand images, where steps are what is short.
# fmt: off
DDM_PRESETS: Final = {preset.name: preset for preset in (
    #         name       px   stem widths            encoder       decoder    emb  batch lr    end   ema
    _DDM_32,
    replace(_DDM_32, name="ddm-32-quick", batch=16, lr_end=5e-5, ema_nimg=5_000),
    DdmPreset("ddm-64",  64,  2, (128, 192, 256, 256), (2, 3, 3, 3), (3, 3, 3), 256, 256, 1e-3, 1e-3, 500_000),
    DdmPreset("ddm-256", 256, 4, (128, 256, 384, 512), (2, 3, 4, 4), (4, 3, 3), 512, 64,  2e-4, 2e-4, 500_000),
)}
GAN_PRESETS: Final = {preset.name: preset for preset in (
    # name, resolution, latent, stem, widths; blocks, expansion, group; batch, lr, its end, ema; gamma, its end, every
    _GAN_32,
    replace(_GAN_32, name="gan-32-quick", batch=8, ema_nimg=3_000),
    GanPreset("gan-64",  64,  64, 1, (512, 512, 512, 384, 256),           2, 2, 16, 128, 2e-4, 5e-5, 500_000, 2, 0.2),
    GanPreset("gan-256", 256, 64, 1, (512, 512, 512, 512, 384, 256, 128), 2, 2, 16, 32,  5e-5, 2e-5, 500_000, 150, 15),
)}
# fmt: on


def generator_preset(name: str) -> GeneratorPreset:
    """The preset of that name; ValueError lists the names there are."""
    presets: dict[str, GeneratorPreset] = {**DDM_PRESETS, **GAN_PRESETS}
    if name not in presets:
        raise ValueError(f"no generator preset is called {name!r}; there are {', '.join(presets)}")
    return presets[name]
