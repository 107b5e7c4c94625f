"""The GAN's networks: two mirrored ResNets, without any normalisation, as R3GAN argues for (arXiv 2501.05441).

block    x + conv 1x1 (act (conv 3x3 (act (conv 1x1 x)))), the 3x3 in groups (ResNeXt, arXiv 1611.05431)
init     Fixup (arXiv 1901.09321): the last convolution of a block is zero, the others are scaled by L^(-1/4)
resample bilinear, between the blocks of one resolution and those of the next
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idm_core.generators.presets import GanPreset

SLOPE = 0.2
#: He's gain for leaky ReLU: variance is kept from layer to layer.
GAIN = math.sqrt(2 / (1 + SLOPE**2))


class Block(nn.Module):
    """Residual bottleneck block at one resolution; the identity when it is new.

    Args:
        depth: blocks of the whole network, L of Fixup.
    """

    def __init__(self, channels: int, preset: GanPreset, depth: int) -> None:
        super().__init__()
        inner = channels * preset.expansion
        groups = inner // preset.group if preset.group else 1
        self.conv1 = nn.Conv2d(channels, inner, 1)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, groups=groups)
        self.conv3 = nn.Conv2d(inner, channels, 1, bias=False)
        for conv in (self.conv1, self.conv2):
            init_normal(conv, GAIN * depth**-0.25)  # L^(-1 / (2m - 2)) with m = 3 layers
        nn.init.zeros_(self.conv3.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.conv1(x), SLOPE)
        h = F.leaky_relu(self.conv2(h), SLOPE)
        result: Tensor = x + self.conv3(h)
        return result


class Generator(nn.Module):
    """Latent and class => image, from 4 x 4 pixels up."""

    def __init__(self, preset: GanPreset, classes: int = 0) -> None:
        super().__init__()
        widths = preset.widths
        self.of_class = nn.Embedding(classes, preset.latent) if classes else None
        # A learnt 4 x 4 pattern a channel; the latent says how much of each there is.
        self.pattern = nn.Parameter(torch.randn(widths[0], 4, 4))
        self.amount = nn.Linear(preset.latent * (2 if classes else 1), widths[0])
        self.change = nn.ModuleList(nn.Conv2d(a, b, 1, bias=False) for a, b in pairwise(widths))
        self.stages = stages(widths, preset)
        self.stem = preset.stem
        self.conv_out = nn.Conv2d(widths[-1], 3 * preset.stem**2, 1, bias=False)
        for layer in (self.amount, *self.change, self.conv_out):
            init_normal(layer, 1.0)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """z N x latent, standard normal; label N or None => N3HW, about [-1, 1]."""
        if self.of_class is not None:
            z = torch.cat([z, self.of_class(known(label))], dim=1)
        x = (self.pattern * self.amount(z)[:, :, None, None]).contiguous(memory_format=torch.channels_last)
        x = self.stages[0](x)
        for change, stage in zip(self.change, self.stages[1:], strict=True):
            # Of the two orders, which give the same, this is the cheaper one.
            x = stage(F.interpolate(change(x), scale_factor=2, mode="bilinear"))
        result: Tensor = F.pixel_shuffle(self.conv_out(x), self.stem)
        return result


class Discriminator(nn.Module):
    """Image and class => score, down to 4 x 4 pixels."""

    def __init__(self, preset: GanPreset, classes: int = 0) -> None:
        super().__init__()
        widths = preset.widths[::-1]
        self.stem = preset.stem
        self.conv_in = nn.Conv2d(3 * preset.stem**2, widths[0], 1, bias=False)
        self.change = nn.ModuleList(nn.Conv2d(a, b, 1, bias=False) for a, b in pairwise(widths))
        self.stages = stages(widths, preset)
        self.gather = nn.Conv2d(widths[-1], widths[-1], 4, groups=widths[-1], bias=False)
        # Projection (arXiv 1802.05637): the score is the product of what is seen and the class's own direction.
        self.of_class = nn.Embedding(classes, widths[-1]) if classes else None
        self.score = nn.Linear(widths[-1], widths[-1] if classes else 1, bias=False)
        for layer in (self.conv_in, *self.change, self.gather, self.score):
            init_normal(layer, 1.0)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """x N3HW; label N or None => N."""
        x = self.stages[0](self.conv_in(F.pixel_unshuffle(x, self.stem)))
        for change, stage in zip(self.change, self.stages[1:], strict=True):
            x = stage(change(F.avg_pool2d(x, 2)))
        seen: Tensor = self.gather(x).flatten(1)
        # The last product is no layer's, which autocast would round: only differences of scores count, nothing holds
        # the scores themselves near zero, and beyond 4 bf16 has steps of 1/32.
        score: Tensor
        if self.of_class is None:
            score = (seen.float() * self.score.weight[0]).sum(dim=1)
        else:
            score = (self.score(seen) * self.of_class(known(label))).sum(dim=1) / math.sqrt(seen.shape[1])
        return score


def stages(widths: tuple[int, ...], preset: GanPreset) -> nn.ModuleList:
    """The blocks of each resolution."""
    depth = preset.blocks * len(widths)
    return nn.ModuleList(nn.Sequential(*(Block(w, preset, depth) for _ in range(preset.blocks))) for w in widths)


def init_normal(layer: nn.Module, gain: float) -> None:
    """Normal weights of variance gain^2 / fan_in; biases zero."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def known(label: Tensor | None) -> Tensor:
    """The label; ValueError where there is none."""
    if label is None:
        raise ValueError("this network is class-conditional: it has to be told each image's class")
    return label
