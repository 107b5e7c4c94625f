"""The reference chain: an image-conditional denoiser from pure noise, as in SR3, in EDM's terms (arXiv 2206.00364).

    x = x0 + sigma n,   D(x; sigma, y) = c_skip x + c_out F(c_in x, y, sigma, s)          EDM, table 1
    samples: DPM-Solver++(2M), arXiv 2211.01095, over EDM's sigmas (equation 5)

The state x is in [-1, 1], where EDM's constants hold; truth, y and x0_hat are in [0, 1] as everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn

from idm_core.presets import Preset

SIGMA_DATA: Final = 0.5
SIGMA_MIN: Final = 0.002
SIGMA_MAX: Final = 80.0
RHO: Final = 7.0
P_MEAN: Final = -1.2
P_STD: Final = 1.2


def level_to_sigma(level: Tensor) -> Tensor:
    """[0, 1] => SIGMA_MIN to SIGMA_MAX, evenly in log sigma."""
    return SIGMA_MIN * (SIGMA_MAX / SIGMA_MIN) ** level


def sigma_to_level(sigma: Tensor) -> Tensor:
    """Inverse of ``level_to_sigma``, clamped to [0, 1]."""
    return (torch.log(sigma / SIGMA_MIN) / math.log(SIGMA_MAX / SIGMA_MIN)).clamp(0, 1)


def schedule(steps: int) -> list[float]:
    """sigma_0 > ... > sigma_{N-1} for N = steps, equation 5; SIGMA_MAX alone for one."""
    if steps < 1:
        raise ValueError(f"a chain has at least one step, not {steps}")
    first, last = SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO)
    return [(first + i / max(steps - 1, 1) * (last - first)) ** RHO for i in range(steps)]


def sigma_at(position: Tensor) -> Tensor:
    """Training's sigmas: log-normal, by their quantile in [0, 1]; table 1, "noise distribution"."""
    return torch.exp(P_MEAN + P_STD * torch.special.ndtri(position.clamp(1e-4, 1 - 1e-4)))


def scalings(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """c_skip, c_out and c_in, table 1 "network and preconditioning", each shaped like sigma."""
    variance = sigma.square() + SIGMA_DATA**2
    return SIGMA_DATA**2 / variance, sigma * SIGMA_DATA / variance.sqrt(), 1 / variance.sqrt()


def corrupt(
    x0: Tensor, y: Tensor, position: Tensor, severity: Tensor, noise: Tensor, preset: Preset
) -> tuple[Tensor, Tensor]:
    """x0 with noise whose log sigma is normal; ``position`` is its quantile."""
    level = sigma_to_level(sigma_at(position))
    return (2 * x0 - 1) + level_to_sigma(level)[:, None, None, None] * noise, level


def denoise(network: nn.Module, x: Tensor, y: Tensor, level: Tensor, severity: Tensor, preset: Preset) -> Tensor:
    """D(x; sigma, y), brought back to [0, 1]."""
    c_skip, c_out, c_in = scalings(level_to_sigma(level)[:, None, None, None])
    residual: Tensor = network(c_in * x, y, level, severity)
    return (c_skip * x + c_out * residual.float() + 1) / 2


def weight(level: Tensor, severity: Tensor, preset: Preset) -> Tensor:
    """1 / c_out, so that L1 of the network's own output has weight one at every sigma (of L2 EDM takes the square)."""
    sigma = level_to_sigma(level)
    return 2 * (sigma.square() + SIGMA_DATA**2).sqrt() / (sigma * SIGMA_DATA)


def sample(
    denoise: Callable[[Tensor, Tensor], Tensor],
    y: Tensor,
    severity: Tensor,
    noise: Callable[[int], Tensor],
    steps: int,
    preset: Preset,
) -> Tensor:
    """DPM-Solver++(2M) from pure noise; deterministic after the start, one evaluation a step."""
    sigmas = schedule(steps)
    x = sigmas[0] * noise(0)
    previous: Tensor | None = None
    x0_hat = x
    for i, sigma in enumerate(sigmas):
        x0_hat = 2 * denoise(x, sigma_to_level(torch.full_like(severity, sigma))) - 1
        if i + 1 < steps:
            h = math.log(sigma / sigmas[i + 1])
            extrapolated = x0_hat
            if previous is not None:
                r = math.log(sigmas[i - 1] / sigma) / h
                extrapolated = x0_hat + (x0_hat - previous) / (2 * r)
            x = (sigmas[i + 1] / sigma) * x - math.expm1(-h) * extrapolated
            previous = x0_hat
    return (x0_hat + 1) / 2
