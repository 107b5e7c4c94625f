"""The control for every chain: the same network once, y + F(y), told neither a noise level nor a severity."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from idm_core.chains.shift import UNGATED_SCALE, weight
from idm_core.presets import Preset

__all__ = ["corrupt", "denoise", "sample", "weight"]


def corrupt(
    x0: Tensor, y: Tensor, position: Tensor, severity: Tensor, noise: Tensor, preset: Preset
) -> tuple[Tensor, Tensor]:
    """y itself, at any position."""
    return y, torch.ones_like(severity)


def denoise(network: nn.Module, x: Tensor, y: Tensor, level: Tensor, severity: Tensor, preset: Preset) -> Tensor:
    """y + c F(0, y, 1, 0): the same scale whatever the damage."""
    residual: Tensor = network(torch.zeros_like(y), y, level, torch.zeros_like(severity))
    return y + UNGATED_SCALE * residual.float()


def sample(
    denoise: Callable[[Tensor, Tensor], Tensor],
    y: Tensor,
    severity: Tensor,
    noise: Callable[[int], Tensor],
    steps: int,
    preset: Preset,
) -> Tensor:
    """One evaluation; ValueError for any other number."""
    if steps != 1:
        raise ValueError(f"a direct restorer has one step, not {steps}")
    return denoise(y, torch.ones_like(severity))
