"""Training batches by the index of their first image: pristine patches, their damage, and the draws of the chain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from idm_core.degradations import Mixture, degrade, sample_generator

#: Index of a training image => 3HW in [0, 1]; always the same for the same index.
Pristine = Callable[[int], Tensor]


@dataclass(frozen=True, slots=True)
class Batch:
    """Images NCHW in [0, 1], on the CPU; the rest N.

    Attributes:
        first: index of the first image.
        truth: pristine.
        y: the same, damaged.
        other: damaged in a second way, for the severity network alone.
        noise: standard normal, shaped like y.
        position: along the chain, in [0, 1).
        jitter: standard normal; error made on purpose in the severity that the denoiser is told.
    """

    first: int
    truth: Tensor
    y: Tensor
    other: Tensor
    noise: Tensor
    position: Tensor
    jitter: Tensor


@dataclass(frozen=True, slots=True)
class Batches(Dataset[Batch]):
    """Every batch there could be; the same index gives the same batch, in whatever process it is made."""

    pristine: Pristine
    mixture: Mixture
    size: int
    seed: int

    def __getitem__(self, first: int) -> Batch:
        indices = range(first, first + self.size)
        keys = [str(i) for i in indices]
        truth = torch.stack([self.pristine(i) for i in indices])
        y, _ = degrade(truth, self.mixture, keys, self.seed)
        other, _ = degrade(truth, self.mixture, [f"{key} again" for key in keys], self.seed)
        draw = sample_generator(self.seed, f"step {first}")
        position = torch.rand(self.size, generator=draw)
        jitter = torch.randn(self.size, generator=draw)
        return Batch(first, truth, y, other, torch.randn(y.shape, generator=draw), position, jitter)


def loader(batches: Batches, firsts: Sequence[int], processes: int, pin: bool) -> DataLoader[Batch]:
    """The batches that begin at ``firsts``, in that order, made ahead by so many processes; 0 makes them when asked.

    Damage costs milliseconds an image (27 at 256 pixels, twice): a GPU would wait for it.
    """
    if processes and firsts:
        batches.pristine(firsts[0])  # the pool is filled before the processes fork, and shared by them
    return DataLoader(batches, batch_size=None, sampler=firsts, num_workers=processes, pin_memory=pin)
