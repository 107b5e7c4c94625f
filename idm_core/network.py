"""The denoiser: a convolutional U-Net that sees the degraded image at every resolution.

Nothing in it looks at the whole image at once (no group norm, no global pooling, no attention), so that a tile is
restored as it would be inside a larger image. Normalising each pixel over its channels is what NAFNet
(arXiv 2204.04676) does; modulation by an embedding is FiLM (arXiv 1709.07871).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idm_core.presets import Preset

if TYPE_CHECKING:
    from idm_core.generators.presets import DdmPreset


class PixelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel of an NCHW tensor; no copy where memory is channels_last."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def detail(image: Tensor, gain: float) -> Tensor:
    """What an image holds beside its 3 x 3 average, compressed: asinh(gain x), same shape.

    Damage shows in differences of a few levels, which the first convolution would have to subtract out of values a
    hundred times larger. Handed this, both networks learn much sooner.
    """
    # Rows, then columns: on CPUs a third of what pooling three channels costs.
    around = F.pad(image, (1, 1, 1, 1), mode="replicate")
    rows = around[:, :, :-2] + around[:, :, 1:-1] + around[:, :, 2:]
    average = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9
    return torch.asinh(gain * (image - average))


class Block(nn.Module):
    """Residual block: norm, conv, modulation by the embedding, SiLU, conv. The identity when it is new."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.norm = PixelNorm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        for layer in (self.film, self.conv2):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, dim=1)  # 2 x NC11
        h = self.conv1(self.norm(x))
        h = F.silu(torch.addcmul(shift, h, scale + 1))
        result: Tensor = x + self.conv2(h)
        return result


class Stage(nn.ModuleList):
    """Blocks in a row, at one resolution."""

    def __init__(self, blocks: int, channels: int, embedding: int) -> None:
        super().__init__(Block(channels, embedding) for _ in range(blocks))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for block in self:
            x = block(x, embedding)
        return x


class Embedding(nn.Module):
    """Fourier features of (noise level, severity), both in [0, 1], through two linear layers; and of a class, if any.

    Args:
        classes: number of classes that are told apart; 0 where there are none.
    """

    octaves: Tensor

    def __init__(self, width: int, frequencies: int = 8, classes: int = 0) -> None:
        super().__init__()
        # Wavelengths from 2 down to 2/2^7: fine enough to tell apart severities that differ by 1/64.
        octaves = math.pi * 2.0 ** torch.arange(frequencies)
        self.register_buffer("octaves", octaves, persistent=False)
        self.linear1 = nn.Linear(2 * 2 * frequencies, width)
        self.linear2 = nn.Linear(width, width)
        self.of_class = nn.Embedding(classes, width) if classes else None

    def forward(self, level: Tensor, severity: Tensor, label: Tensor | None = None) -> Tensor:
        angles = torch.stack([level, severity], dim=1)[:, :, None] * self.octaves  # N2F
        features = torch.cat([angles.sin(), angles.cos()], dim=2).flatten(1)
        x = self.linear2(F.silu(self.linear1(features)))
        if self.of_class is not None:
            if label is None:
                raise ValueError("this denoiser is class-conditional: it has to be told each image's class")
            x = x + self.of_class(label)
        return F.silu(x)


class Denoiser(nn.Module):
    """F(difference, y, level, severity): the scaled residual x0 - y, about unit variance.

    How its input is scaled and its output made an image is the chain's business (``idm_core.chain``); another chain
    may scale otherwise.

    Args:
        conditional: whether it sees a degraded image y; without one it is a denoiser of images as such.
        classes: of the images, where it is told them; 0 where it is not.
    """

    def __init__(self, preset: Preset | DdmPreset, *, conditional: bool = True, classes: int = 0) -> None:
        super().__init__()
        widths, self.stem = preset.widths, preset.stem
        self.embedding = Embedding(preset.embedding, classes=classes)
        # The state alone, or beside it y and y's detail.
        self.conv_in = nn.Conv2d((9 if conditional else 3) * self.stem**2, widths[0], 3, padding=1)
        # The degraded image again at every coarser resolution: unshuffled, so nothing of it is lost on the way.
        coarser = list(enumerate(widths))[1:] if conditional else []
        self.inject = nn.ModuleList(nn.Conv2d(3 * (self.stem * 2**i) ** 2, w, 1) for i, w in coarser)
        self.encoder = nn.ModuleList(Stage(n, w, preset.embedding) for w, n in zip(widths, preset.encoder, strict=True))
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        upward = widths[::-1]
        self.up = nn.ModuleList(nn.Conv2d(a, 4 * b, 1) for a, b in pairwise(upward))
        self.decoder = nn.ModuleList(
            Stage(n, w, preset.embedding) for w, n in zip(upward[1:], preset.decoder, strict=True)
        )
        self.norm_out = PixelNorm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3 * self.stem**2, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        if self.conv_out.bias is not None:
            nn.init.zeros_(self.conv_out.bias)

    def forward(
        self, difference: Tensor, y: Tensor | None, level: Tensor, severity: Tensor, label: Tensor | None = None
    ) -> Tensor:
        """One evaluation.

        Args:
            difference: N3HW, the chain's state relative to y, scaled to about unit variance; H and W multiples of
                stem * 2^(resolutions - 1).
            y: N3HW, the degraded image in [0, 1]; None where the network is not conditional.
            level: N, the chain's noise level in [0, 1].
            severity: N, in [0, 1].
            label: N, int64, where the network knows classes.
        """
        embedding = self.embedding(level, severity, label)
        x = difference
        if y is not None:
            fine, y = detail(y, gain=20), 2 * y - 1
            x = torch.cat([difference, y, fine], dim=1)
        x = self.conv_in(F.pixel_unshuffle(x, self.stem))
        skips: list[Tensor] = []
        for i, stage in enumerate(self.encoder):
            if i > 0:
                skips.append(x)
                x = self.down[i - 1](x)
                if y is not None:
                    x = x + self.inject[i - 1](F.pixel_unshuffle(y, self.stem * 2**i))
            x = stage(x, embedding)
        for i, stage in enumerate(self.decoder):
            x = F.pixel_shuffle(self.up[i](x), 2) + skips.pop()
            x = stage(x, embedding)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(x))), self.stem)
