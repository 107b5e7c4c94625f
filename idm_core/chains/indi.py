"""Inversion by direct iteration (InDI, arXiv 2303.11435), with the severity of y as the time it starts at.

    x_t      = (1 - t/s) x0 + (t/s) y,                 0 < t <= s
    x_{t-d}  = (d/t) x0_hat(x_t, t) + (1 - d/t) x_t

An image of severity s is what a worse one becomes on its way, so a clean image has no way to go. No noise is added.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from idm_core.chains.shift import denoise, weight
from idm_core.presets import Preset

__all__ = ["corrupt", "denoise", "sample", "weight"]


def corrupt(
    x0: Tensor, y: Tensor, position: Tensor, severity: Tensor, noise: Tensor, preset: Preset
) -> tuple[Tensor, Tensor]:
    """x_t and its level t = share s; half of the shares are 1, where one-step restoration happens."""
    share = torch.where(position >= 0.5, torch.ones_like(position), 2 * position)
    return x0 + share[:, None, None, None] * (y - x0), share * severity


def sample(
    denoise: Callable[[Tensor, Tensor], Tensor],
    y: Tensor,
    severity: Tensor,
    noise: Callable[[int], Tensor],
    steps: int,
    preset: Preset,
) -> Tensor:
    """Equal steps d = s / steps from t = s down to 0."""
    if steps < 1:
        raise ValueError(f"a chain has at least one step, not {steps}")
    x = y
    for left in range(steps, 0, -1):
        x0_hat = denoise(x, severity * (left / steps))
        x = x0_hat / left + x * (1 - 1 / left)
    return x
