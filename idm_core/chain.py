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

#: (x_t, y, level, severity) => x0_hat; level = sqrt(eta_t), N; severity N; images NCHW.
Denoise = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
#: Index of the draw, 0 first => standard normal, shaped like y. What makes a sampler's result a function of its key.
NoiseSource = Callable[[int], Tensor]

FIRST_LEVEL: Final = 0.1
LAST_LEVEL: Final = 0.99
POWER: Final = 0.3


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


def gated_kappa(severity: Tensor, preset: Preset) -> Tensor:
    """kappa min(1, s / gate), N111."""
    return (preset.kappa * (severity / preset.gate).clamp(0, 1))[:, None, None, None]


def c_out(severity: Tensor) -> Tensor:
    """Scale of the correction, N111: the error that the severity stands for, less what counts as none."""
    floor = severity_to_rmse(torch.zeros_like(severity))
    return (severity_to_rmse(severity) - floor)[:, None, None, None]


def c_in(severity: Tensor) -> Tensor:
    """Scale that brings x_t - y to about unit variance, N111."""
    return 1 / (c_out(severity) + 0.01)


def denoise(network: nn.Module, x: Tensor, y: Tensor, level: Tensor, severity: Tensor) -> Tensor:
    """x0_hat = y + c_out(s) F(c_in(s) (x_t - y), y, sqrt(eta_t), s). Exactly y where s = 0."""
    residual: Tensor = network((x - y) * c_in(severity), y, level, severity)
    return y + c_out(severity) * residual.float()


def diffuse(x0: Tensor, y: Tensor, level: Tensor, kappa: Tensor, noise: Tensor) -> Tensor:
    """x_t ~ q(x_t | x0, y). At the last level it starts from y alone, as the sampler has to.

    (ResShift trains on the 2 % of x0 that are left at eta = .98; without much noise a network can read them.)
    """
    eta = level.square()[:, None, None, None]
    eta = torch.where(eta >= LAST_LEVEL**2 - 1e-6, torch.ones_like(eta), eta)
    return x0 + eta * (y - x0) + kappa * level[:, None, None, None] * noise


def reverse_step(x: Tensor, x0_hat: Tensor, eta: float, eta_next: float, kappa: Tensor, noise: Tensor | None) -> Tensor:
    """x_{t-1} from x_t; eta_next = eta_{t-1} < eta = eta_t. ``noise`` is None in the last step, where eta_next is 0."""
    alpha = eta - eta_next
    mean = (eta_next / eta) * x + (alpha / eta) * x0_hat
    return mean if noise is None else mean + kappa * (eta_next * alpha / eta) ** 0.5 * noise


def sample(denoise: Denoise, y: Tensor, severity: Tensor, kappa: Tensor, noise: NoiseSource, steps: int) -> Tensor:
    """Restore y, NCHW in [0, 1], in ``steps`` evaluations; the result may leave [0, 1] a little.

    Args:
        denoise: x0_hat from (x_t, y, level, severity).
        severity: N, of y.
        kappa: N111, from ``gated_kappa``.
        noise: called with 0 for the start and then once a step but the last.
    """
    levels = schedule(steps)
    x = y + kappa * levels[-1] * noise(0)
    for t in reversed(range(steps)):
        eta, eta_next = levels[t] ** 2, levels[t - 1] ** 2 if t > 0 else 0.0
        x0_hat = denoise(x, y, torch.full_like(severity, levels[t]), severity)
        x = reverse_step(x, x0_hat, eta, eta_next, kappa, noise(steps - t) if t > 0 else None)
    return x
