"""The restorer's sizes in one table: one row is one model.

After each row: millions of parameters, denoiser + severity network; GFLOP of one evaluation of one image; and what a
training in bf16 takes of a GPU, GB whatever its batch and MB an image of it (`python -m tests.benchmarks.presets`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final


@dataclass(frozen=True, slots=True)
class Preset:
    """Everything that fixes the networks' shapes and the chain they are trained on.

    Attributes:
        name: what ``load_restorer`` and the checkpoint call it.
        resolution: side of the training images, pixels.
        stem: space-to-depth factor in front of the first convolution; the finest features live at resolution / stem.
        widths: channels at each resolution, finest first; each further one halves the side.
        encoder: residual blocks at each resolution on the way down.
        decoder: residual blocks on the way up, coarsest first; one entry less than ``encoder``.
        embedding: width of the embedding of (noise level, severity).
        severity_widths: channels of the severity network at 1/2, 1/4 and 1/8 of the image's side.
        chain: what the networks are trained on and sampled with, a name from ``idm_core.chains``.
        kappa: noise of the chain at severity ``gate`` and above, in units of the pixel range 0-1.
        gate: severity below which the noise shrinks in proportion, down to none for a clean image; 0 is never.
        gated: whether the correction shrinks with the severity too.
    """

    name: str
    resolution: int
    stem: int
    widths: tuple[int, ...]
    encoder: tuple[int, ...]
    decoder: tuple[int, ...]
    embedding: int
    severity_widths: tuple[int, int, int]
    chain: str = "shift"
    kappa: float = 0.03
    gate: float = 0.5
    gated: bool = True


_64: Final = Preset("idm-64", 64, 2, (64, 128, 256), (1, 1, 2), (1, 2), 128, (32, 64, 96))
_SMALL: Final = Preset("small-64", 64, 2, (32, 64, 128), (1, 1, 2), (1, 2), 128, (16, 32, 48))
# fmt: off
PRESETS: Final = {preset.name: preset for preset in (
    #      name       px  stem widths               encoder       decoder    emb  severity          M  GFLOP  GB  MB
    _64,                                                                                        # 4+.5  1.2   .1   6
    Preset("idm-256", 256, 4, (128, 256, 384, 512), (2, 3, 3, 3), (3, 3, 2), 256, (32, 64, 128)), # 46+1   38  1.0  90
    Preset("idm-512", 512, 4, (128, 256, 512, 768), (2, 3, 4, 4), (4, 3, 2), 256, (48, 96, 192)), # 101+2 211  2.3 439
    # idm-64's networks on other chains, to compare with
    replace(_64, name="indi-64", chain="indi"),
    replace(_64, name="edm-64", chain="edm"),
    replace(_64, name="direct-64", chain="direct"),
    # half as wide, for experiments with many runs; and for sets of 32 pixels
    _SMALL,                                                                                     # 1+.1   .3   .0   3
    replace(_SMALL, name="small-32", resolution=32),                                            # 1+.1   .1   .0   1
)}
# fmt: on


def preset_named(name: str) -> Preset:
    """The preset of that name; ValueError lists the names there are."""
    if name not in PRESETS:
        raise ValueError(f"no preset is called {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
