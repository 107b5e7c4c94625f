"""Severity-gated residual shifting: the chain of ResShift (arXiv 2307.12348) in pixel space, with two gates.

    q(x_t | x0, y)  = N(x0 + eta_t (y - x0), kappa(s)^2 eta_t I),        t = 1..T
    x_{t-1}         = (eta_{t-1}/eta_t) x_t + (alpha_t/eta_t) x0_hat + kappa(s) sqrt(eta_{t-1} alpha_t / eta_t) z
    alpha_t         = eta_t - eta_{t-1},  eta_0 = 0

The gates: the noise kappa(s) and the correction x0_hat - y both vanish with the severity s of y, so that an image
without damage is returned exactly, whatever the network says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn

from idm_core.presets import Preset
from idm_core.severity import severity_to_rmse

FIRST_LEVEL: Final = 0.1
LAST_LEVEL: Final = 0.99
POWER: Final = 0.3
#: Root mean square error of damage that the ungated correction is scaled by: about the training mixture's.
UNGATED_SCALE: Final = 0.06


def level_at(position: Tensor) -> Tensor:
    """sqrt(eta) at a position in [0, 1] along the chain, ResShift's equation 10 with p = 0.3."""
    level: Tensor = FIRST_LEVEL * (LAST_LEVEL / FIRST_LEVEL) ** position**POWER
    return level


def schedule(steps: int) -> list[float]:
    """sqrt(eta_1) < ... < sqrt(eta_T) for T = steps; .100 .520 .761 .990 for four, .990 for one."""
    if steps < 1:
        raise ValueError(f"a chain has at least one step, not {steps}")
    if steps == 1:
        return [LAST_LEVEL]
    return level_at(torch.arange(steps, dtype=torch.float64) / (steps - 1)).tolist()


def kappa_at(severity: Tensor, preset: Preset) -> Tensor:
    """kappa min(1, s / gate), N111; kappa for any severity where the gate is 0."""
    gate = (severity / preset.gate).clamp(0, 1) if preset.gate else torch.ones_like(severity)
    return (preset.kappa * gate)[:, None, None, None]


def c_out(severity: Tensor, preset: Preset) -> Tensor:
    """Scale of the correction, N111: the error that the severity stands for, less what counts as none."""
    if not preset.gated:
        return torch.full_like(severity, UNGATED_SCALE)[:, None, None, None]
    floor = severity_to_rmse(torch.zeros_like(severity))
    return (severity_to_rmse(severity) - floor)[:, None, None, None]


def c_in(severity: Tensor, preset: Preset) -> Tensor:
    """Scale that brings x_t - y to about unit variance, N111."""
    return 1 / (c_out(severity, preset) + 0.01)


def denoise(network: nn.Module, x: Tensor, y: Tensor, level: Tensor, severity: Tensor, preset: Preset) -> Tensor:
    """x0_hat = y + c_out(s) F(c_in(s) (x_t - y), y, sqrt(eta_t), s). Exactly y where s = 0."""
    residual: Tensor = network((x - y) * c_in(severity, preset), y, level, severity)
    return y + c_out(severity, preset) * residual.float()


def diffuse(x0: Tensor, y: Tensor, level: Tensor, kappa: Tensor, noise: Tensor) -> Tensor:
    """x_t ~ q(x_t | x0, y). At the last level it starts from y alone, as the sampler has to.

    (ResShift trains on the 2 % of x0 that are left at eta = .98; without much noise a network can read them.)
    """
    eta = level.square()[:, None, None, None]
    eta = torch.where(eta >= LAST_LEVEL**2 - 1e-6, torch.ones_like(eta), eta)
    return x0 + eta * (y - x0) + kappa * level[:, None, None, None] * noise


def corrupt(
    x0: Tensor, y: Tensor, position: Tensor, severity: Tensor, noise: Tensor, preset: Preset
) -> tuple[Tensor, Tensor]:
    """x_t and its level: half of the positions at the start, where one-step restoration happens, half along the way."""
    level = torch.where(position >= 0.5, torch.full_like(position, LAST_LEVEL), level_at(2 * position))
    return diffuse(x0, y, level, kappa_at(severity, preset), noise), level


def weight(level: Tensor, severity: Tensor, preset: Preset) -> Tensor:
    """Halfway between plain L1, which heavy damage rules, and L1 in decibels; about 1 at 30 dB."""
    floor = severity_to_rmse(torch.zeros_like(severity))
    return (0.03 / (severity_to_rmse(severity) - floor + 0.01)).sqrt()


def reverse_step(x: Tensor, x0_hat: Tensor, eta: float, eta_next: float, kappa: Tensor, noise: Tensor | None) -> Tensor:
    """x_{t-1} from x_t; eta_next = eta_{t-1} < eta = eta_t. ``noise`` is None in the last step, where eta_next is 0."""
    alpha = eta - eta_next
    mean = (eta_next / eta) * x + (alpha / eta) * x0_hat
    return mean if noise is None else mean + kappa * (eta_next * alpha / eta) ** 0.5 * noise


def sample(
    denoise: Callable[[Tensor, Tensor], Tensor],
    y: Tensor,
    severity: Tensor,
    noise: Callable[[int], Tensor],
    steps: int,
    preset: Preset,
) -> Tensor:
    """From y with a little noise along the reverse chain; one draw for the start and each step but the last."""
    levels, kappa = schedule(steps), kappa_at(severity, preset)
    x = y + kappa * levels[-1] * noise(0)
    for t in reversed(range(steps)):
        eta, eta_next = levels[t] ** 2, levels[t - 1] ** 2 if t > 0 else 0.0
        x0_hat = denoise(x, torch.full_like(severity, levels[t]))
        x = reverse_step(x, x0_hat, eta, eta_next, kappa, noise(steps - t) if t > 0 else None)
    return x
