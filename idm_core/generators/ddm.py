"""The diffusion model: EDM (Karras et al. 2022, arXiv 2206.00364) on the project's denoiser, with classes or without.

    x = x0 + sigma n,   D(x; sigma) = c_skip x + c_out F(c_in x; sigma)                    table 1
    loss                (1 / c_out^2) |D(x; sigma) - x0|^2,  log sigma normal              equation 8
    samples             Heun's second order steps, no noise added, over equation 5's sigmas    algorithm 1

Images are in [-1, 1], where EDM's constants hold. The constants and the scalings are those of ``idm_core.chains.edm``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from idm_core.chains import edm

#: (x NCHW, sigma N) => x0_hat.
Denoise = Callable[[Tensor, Tensor], Tensor]


def denoise(network: nn.Module, x: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
    """x0_hat = D(x; sigma): x N3HW, sigma N; label N or None."""
    c_skip, c_out, c_in = edm.scalings(sigma[:, None, None, None])
    output: Tensor = network(c_in * x, None, edm.sigma_to_level(sigma), torch.zeros_like(sigma), label)
    return c_skip * x + c_out * output.float()


def draw_sigma(u: Tensor, least: Tensor | None) -> Tensor:
    """Training's sigmas, N: log-normal, and cut off below ``least`` where that is given.

    With ``least`` an image teaches the network nothing below a noise level of its own: a bad photograph under enough
    noise looks like a good one. So Ambient-o (arXiv 2506.10038) learns from both. It draws the noise first and then an
    image that may have it; here the image comes first, so that every image is seen equally often and no step is wasted.
    The price: noise above ``least`` is seen a little more often than EDM's distribution has it.

    Args:
        u: N, uniform in [0, 1).
        least: N; 0 for good images.
    """
    if least is None:
        return edm.sigma_at(u)
    quantile = torch.special.ndtr((least.log() - edm.P_MEAN) / edm.P_STD)
    return torch.maximum(edm.sigma_at(quantile + (1 - quantile) * u), least)  # rounding may not lead below it


def loss(network: nn.Module, x0: Tensor, sigma: Tensor, noise: Tensor, label: Tensor | None) -> Tensor:
    """Each image's loss, N, about 1 at every sigma for a network that is new; equation 8."""
    _, c_out, _ = edm.scalings(sigma[:, None, None, None])
    x0_hat = denoise(network, x0 + sigma[:, None, None, None] * noise, sigma, label)
    return ((x0_hat - x0) / c_out).square().mean(dim=(1, 2, 3))


def sample_heun(denoise: Denoise, noise: Tensor, steps: int) -> Tensor:
    """Images from standard normal noise, NCHW: 2 steps - 1 evaluations; algorithm 1.

    The state is float64, as in the paper: sigma falls by a factor of 40,000 on the way.
    """
    sigmas = [*edm.schedule(steps), 0.0]
    x = sigmas[0] * noise.double()
    for i in range(steps):
        here, there = sigmas[i], sigmas[i + 1]
        slope = (x - _evaluate(denoise, x, here)) / here
        euler = x + (there - here) * slope
        if there > 0:
            x = x + (there - here) * (slope + (euler - _evaluate(denoise, euler, there)) / there) / 2
        else:
            x = euler
    return x


def _evaluate(denoise: Denoise, x: Tensor, sigma: float) -> Tensor:
    return denoise(x, x.new_full((len(x),), sigma)).double()
