"""Severity: how damaged an image is, from 0 (clean) to 1, defined by its error and read by a small network.

    severity = clamp((44 - PSNR(truth, image)) / 30, 0, 1)

44 dB and better is 0, 14 dB and worse is 1. So it is continuous, known exactly for synthetic damage, and can be read
as the PSNR that is to be expected.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idm_core.network import detail
from idm_core.presets import Preset

CLEAN_PSNR: Final = 44.0
RANGE_DB: Final = 30.0
#: The severity map has one value for each CELL x CELL pixels.
CELL: Final = 8


def mse_to_severity(mse: Tensor) -> Tensor:
    """Mean squared error of images in [0, 1] => severity, not clamped: below 0 is better than clean needs to be."""
    return (CLEAN_PSNR + 10 * torch.log10(mse.clamp_min(1e-12))) / RANGE_DB


def severity_to_mse(severity: Tensor) -> Tensor:
    """Inverse of ``mse_to_severity``."""
    return 10 ** ((RANGE_DB * severity - CLEAN_PSNR) / 10)


def severity_to_rmse(severity: Tensor) -> Tensor:
    """Root mean squared error of images in [0, 1] that a severity stands for; 0.0063 at 0, 0.2 at 1."""
    return 10 ** ((RANGE_DB * severity - CLEAN_PSNR) / 20)


def true_severity(truth: Tensor, image: Tensor) -> Tensor:
    """Severity of each image, N, from its truth, both NCHW in [0, 1]."""
    return mse_to_severity((truth - image).square().mean(dim=(1, 2, 3))).clamp(0, 1)


def map_to_severity(cells: Tensor) -> Tensor:
    """Severity map N1HW => severity of each whole image, N, not clamped: the mean is taken of the squared error."""
    return mse_to_severity(severity_to_mse(cells.clamp(-1, 1.5)).mean(dim=(1, 2, 3)))


class SeverityNetwork(nn.Module):
    """Image => map of local severity, one value per 8 x 8 pixels. Fully convolutional; trained beside the denoiser."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        a, b, c = preset.severity_widths
        self.conv_in = nn.Conv2d(24, a, 3, padding=1)
        self.fine = nn.Sequential(_Block(a))
        self.down1 = nn.Conv2d(a, b, 2, stride=2)
        self.middle = nn.Sequential(_Block(b), _Block(b))
        self.down2 = nn.Conv2d(b, c, 2, stride=2)
        self.coarse = nn.Sequential(_Block(c), _Block(c))
        self.conv_out = nn.Conv2d(c, 1, 1)
        nn.init.zeros_(self.conv_out.weight)
        if self.conv_out.bias is not None:
            nn.init.constant_(self.conv_out.bias, 0.4)  # about the mean over the training mixture

    def forward(self, image: Tensor) -> Tensor:
        """N3HW in [0, 1], sides multiples of 8 => N1(H/8)(W/8), not clamped."""
        x = self.conv_in(F.pixel_unshuffle(torch.cat([4 * image - 2, detail(image, gain=100)], dim=1), 2))
        x = self.middle(self.down1(self.fine(x)))
        x = self.coarse(self.down2(x))
        cells: Tensor = self.conv_out(F.silu(x)).float()
        return cells


class _Block(nn.Module):
    """Residual block without a norm: the amplitude of noise is what the network has to read."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.conv2(F.silu(self.conv1(F.silu(x))))
        return result


def severity_loss(cells: Tensor, truth: Tensor, image: Tensor) -> Tensor:
    """Smooth L1 of the whole image's severity plus L1 of each cell's; scalar.

    Reading better than clean where the truth is clean costs nothing: the clamp at 0 is part of the definition.

    Args:
        cells: N1(H/8)(W/8), the network's map of ``image``.
        truth, image: N3HW in [0, 1].
    """
    error = (truth - image).square().mean(dim=1, keepdim=True)
    local = mse_to_severity(F.avg_pool2d(error, CELL)).clamp(0, 1)
    whole = true_severity(truth, image)
    read = map_to_severity(cells).clamp_min(0)
    return F.smooth_l1_loss(read, whole, beta=0.05) + (cells.clamp_min(0) - local).abs().mean()
