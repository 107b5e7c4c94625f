"""Training images, shuffled anew for every epoch; which one comes at position n is a function of (seed, n)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from idm_core.chains.edm import SIGMA_MAX, sigma_at
from idm_core.degradations import sample_generator


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """A training set at one resolution.

    Attributes:
        pixels: N x H x W x 3 uint8; may be mapped from a file, of which only what is asked for is then read.
        labels: N, class of each image, 0 and up; None where there are no classes.
        least_sigma: N, noise below which a diffusion model learns nothing from the image, in EDM's units (images in
            [-1, 1]); 0 for good images. None: all are good.
        fingerprint: of the set; a run is not resumed with another one.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64] | None = None
    least_sigma: NDArray[np.float32] | None = None
    fingerprint: str = ""

    def __post_init__(self) -> None:
        pixels: NDArray[Any] = self.pixels
        if pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.dtype != np.uint8 or not len(pixels):
            raise ValueError(f"images are N x H x W x 3 uint8, at least one; these are {pixels.shape} {pixels.dtype}")
        for name, values in (("labels", self.labels), ("least_sigma", self.least_sigma)):
            if values is not None and values.shape != (len(pixels),):
                raise ValueError(f"{name}: {values.shape} values for {len(pixels)} images")
        if self.labels is not None and self.labels.min() < 0:
            raise ValueError(f"image {int(self.labels.argmin())} has no class, or a negative one")
        if self.least_sigma is not None and not ((self.least_sigma >= 0) & (self.least_sigma < SIGMA_MAX)).all():
            raise ValueError(f"least_sigma: all have to be at least 0 and below {SIGMA_MAX:g}")
        if self.least_sigma is not None and self.least_sigma.all():
            raise ValueError("least_sigma: at low noise there is no image to learn from; at least one has to be 0")


@dataclass(frozen=True, slots=True)
class Batch:
    """Some images, on the device that is trained on.

    Attributes:
        first: position of the first of them.
        real: N3HW in [-1, 1], channels_last.
        label: N int64, or None.
        sigma: N float32, the noise that each image was chosen for; None where all images may have any.
    """

    first: int
    real: Tensor
    label: Tensor | None
    sigma: Tensor | None


def batch_at(images: Images, first: int, size: int, seed: int, mirror: bool, device: str) -> Batch:
    """The images at positions ``first`` to ``first + size - 1``; half of them mirrored if ``mirror``.

    With ``least_sigma`` the noise is drawn first, so that it is distributed as EDM has it, and an image that may not
    have it gives its place to the next one that may: Ambient-o (arXiv 2506.10038). A bad photograph under enough noise
    looks like a good one.
    """
    positions = np.arange(first, first + size)
    epochs, places = np.divmod(positions, len(images.pixels))
    indices, mirrored = np.empty(size, np.int64), np.empty(size, np.bool_)
    # Of the same draws as everybody's sigma on a CPU: arms of a pair see the same noise.
    sigma = None
    if images.least_sigma is not None:
        sigma = sigma_at(torch.rand(size, generator=draws(seed, f"noise {first}", "cpu")))
    for epoch in np.unique(epochs).tolist():
        order, flips = epoch_order(len(images.pixels), seed, epoch)
        there = epochs == epoch
        indices[there], mirrored[there] = order[places[there]], flips[places[there]]
        if images.least_sigma is not None and sigma is not None:
            for i in np.flatnonzero(there):
                indices[i] = _next_with_noise(float(sigma[i]), images.least_sigma, order, int(places[i]))
    pixels = images.pixels[indices]
    if mirror:
        pixels[mirrored] = pixels[mirrored, :, ::-1]
    real = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)  # NHWC in memory is channels_last
    return Batch(
        first,
        real.float() / 127.5 - 1,
        torch.from_numpy(images.labels[indices]).to(device) if images.labels is not None else None,
        None if sigma is None else sigma.to(device),
    )


def _next_with_noise(sigma: float, least: NDArray[np.float32], order: NDArray[np.int64], place: int) -> int:
    """The first image from a place on, round and round, that may be seen at ``sigma``; one of them may be at any."""
    while least[index := int(order[place % len(order)])] > sigma:
        place += 1
    return index


@lru_cache(maxsize=2)
def epoch_order(count: int, seed: int, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The images' order in an epoch, a permutation of all of them; and whether each place's image is mirrored."""
    generator = sample_generator(seed, f"epoch {epoch}")
    order = torch.randperm(count, generator=generator).numpy()
    return order, torch.randint(2, (count,), generator=generator, dtype=torch.bool).numpy()


def draws(seed: int, key: str, device: str) -> torch.Generator:
    """A generator on the device, a function of (seed, key) there: noise for large batches is not made on a CPU."""
    return torch.Generator(device).manual_seed(sample_generator(seed, key).initial_seed())
