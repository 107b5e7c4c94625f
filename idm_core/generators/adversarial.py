"""The GAN's loss: R3GAN's (arXiv 2501.05441), relativistic pairs with zero-centred gradient penalties on both sides.

    L_D = E softplus(D(G(z)) - D(x)) + R1 + R2,   R1 = gamma/2 E |grad D(x)|^2,   R2 = gamma/2 E |grad D(G(z))|^2
    L_G = E softplus(D(x) - D(G(z)))

A fake is judged against the real image it is paired with, so D has no one boundary to push all fakes over; the
penalties are what makes the game converge.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

#: The discriminator, told the classes: images NCHW => scores N, higher for what looks real.
Score = Callable[[Tensor], Tensor]


def discriminator_loss(score: Score, real: Tensor, fake: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """The discriminator's loss and its penalty R1 + R2, each N; both are to be minimised, their sum.

    Args:
        real, fake: NCHW, pair by pair; no gradient goes back through them.
        gamma: weight of the penalties; with 0 they are not computed.
    """
    real, fake = (images.detach().requires_grad_(gamma > 0) for images in (real, fake))
    of_real, of_fake = score(real).float(), score(fake).float()
    loss = F.softplus(of_fake - of_real)
    if gamma == 0:
        return loss, torch.zeros_like(loss)
    return loss, gamma / 2 * (squared_gradient(of_real, real) + squared_gradient(of_fake, fake))


def generator_loss(score: Score, real: Tensor, fake: Tensor) -> Tensor:
    """The generator's loss, N: each fake is to look more real than its partner."""
    with torch.no_grad():
        of_real = score(real).float()
    return F.softplus(of_real - score(fake).float())


def squared_gradient(scores: Tensor, images: Tensor) -> Tensor:
    """|d score / d image|^2 of each image, N, summed over its pixels; can be differentiated again."""
    (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3))
