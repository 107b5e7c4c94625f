"""The chains that a denoiser can be trained on and sampled with, by the name in a preset; each is one module.

=======  =====================================================================================================
shift    Severity-gated residual shifting: ResShift's chain (arXiv 2307.12348) in pixel space. What ships.
indi     Inversion by direct iteration (arXiv 2303.11435), the severity as its time.
edm      The reference: a conditional denoiser from pure noise (SR3, arXiv 2104.07636), preconditioned and scheduled
         as in EDM (arXiv 2206.00364), sampled with DPM-Solver++ (arXiv 2211.01095).
direct   The control: one step, y + F(y), with no noise, no severity and no gate.
=======  =====================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from torch import Tensor, nn

from idm_core.chains import direct, edm, indi, shift
from idm_core.presets import Preset

#: (x_t, level) => x0_hat; level N, images NCHW. A network with y and its severity in it.
Denoise = Callable[[Tensor, Tensor], Tensor]
#: Index of the draw, 0 first => standard normal, shaped like y. What makes a sampler's result a function of its key.
NoiseSource = Callable[[int], Tensor]


class Chain(Protocol):
    """What a chain's module has. Truth x0 and degraded y NCHW in [0, 1]; severity of y and level N in [0, 1]."""

    def corrupt(
        self, x0: Tensor, y: Tensor, position: Tensor, severity: Tensor, noise: Tensor, preset: Preset
    ) -> tuple[Tensor, Tensor]:
        """(x_t, level) at a position along the chain, N in [0, 1], 1 where a sampler starts; for training."""

    def denoise(
        self, network: nn.Module, x: Tensor, y: Tensor, level: Tensor, severity: Tensor, preset: Preset
    ) -> Tensor:
        """x0_hat: how the network's input is scaled and its output made an image."""

    def weight(self, level: Tensor, severity: Tensor, preset: Preset) -> Tensor:
        """Weight of each image's loss, N."""

    def sample(
        self, denoise: Denoise, y: Tensor, severity: Tensor, noise: NoiseSource, steps: int, preset: Preset
    ) -> Tensor:
        """Restore y in ``steps`` evaluations of ``denoise``; the result may leave [0, 1] a little."""


CHAINS: Final[dict[str, Chain]] = {"shift": shift, "indi": indi, "edm": edm, "direct": direct}


def chain_of(preset: Preset) -> Chain:
    """The chain that a preset names; ValueError lists the names there are."""
    if preset.chain not in CHAINS:
        raise ValueError(f"preset {preset.name}: no chain is called {preset.chain!r}; there are {', '.join(CHAINS)}")
    return CHAINS[preset.chain]
