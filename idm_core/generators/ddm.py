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
