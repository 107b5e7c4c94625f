"""The restorer as others use it: lists of photographs of any size in, lists of results out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from idm_core.chains import NoiseSource, chain_of
from idm_core.checkpoint import Config, Networks, find_checkpoint, load_checkpoint
from idm_core.degradations import sample_generator
from idm_core.severity import CELL, mse_to_severity, severity_to_mse, severity_to_rmse
from idm_core.tiles import (
    MULTIPLE,
    apply_tiled,
    cut,
    fixed_batches,
    multiple_of,
    pad_reflected,
    tiles_of,
    tiles_per_batch,
)

Photograph = NDArray[np.uint8]
#: Why the intrinsic iteration ended: under the threshold; as many passes as were allowed; or a pass that changed too
#: little, made it worse, another picture, or another person, so that the image before that pass is kept; or, of
#: restorers of others, that it had nothing to offer.
Stop = Literal["clean", "settled", "passes", "severity_rose", "inconsistent", "identity", "declined"]
#: How alike the subjects of photograph and restored image are, more is more; None where that cannot be said.
Identity = Callable[[Photograph, Photograph], float | None]
#: Share of the error that the severity says is there, under which a pass's change is no correction any more. On the
#: validation split first passes of idm-64 change .26 of it or more (median .65), second ones less than .25 in 98 of 100
#: images, and what those change gains nothing (-.04 dB). So nearly every result is a fixed point, to the byte.
SETTLED_SHARE: Final = 0.25
#: By how much a severity that rose may still be an error of reading, which is .04 to .06 in the mean.
SEVERITY_ERROR: Final = 0.05
SEVERITY_DIGITS: Final = 4
#: Draws of the chain's noise; part of what a restored image's bytes depend on.
NOISE_SEED: Final = 0


@dataclass(frozen=True, slots=True)
class Restoration:
    """What became of one photograph.

    Attributes:
        image: HxWx3 uint8. The very array that was handed in where nothing was done to it.
        severity: damage as read before, 0 clean to 1 worst.
        severity_after: the same of ``image``.
        passes: passes of the intrinsic iteration that went into ``image``.
        evaluations: denoiser evaluations spent on each pixel, kept or not.
        stop: why the iteration ended.
        consistency: PSNR in dB between the coarse structure of ``image`` and that of the photograph; infinite if equal.
    """

    image: Photograph
    severity: float
    severity_after: float
    passes: int
    evaluations: int
    stop: Stop
    consistency: float


class Restorer:
    """Networks on a device with the settings of their checkpoint; made by ``load_restorer``.

    Attributes:
        identity: if set, passes end before the subject becomes less alike than ``identity_floor``.
    """

    identity: Identity | None = None
    identity_floor: float = 0.5

    def __init__(self, networks: Networks, config: Config, model_sha256: str, device: str = "cpu") -> None:
        if MULTIPLE % multiple_of(config.preset):
            raise ValueError(f"tiles of multiples of {MULTIPLE} pixels do not fit preset {config.preset.name}")
        self.config = config
        self.model_sha256 = model_sha256
        self.device = torch.device(device)
        self._networks = networks.to(self.device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def severity(self, images: Sequence[Photograph]) -> list[float]:
        """How damaged each image is, 0 clean to 1 worst; a pure function of its pixels.

        Args:
            images: HxWx3 uint8, any sizes.
        """
        self._check(images)
        found = [0.0] * len(images)
        for group in self._groups(images):
            y, valid = self._stack([images[i] for i in group])
            for i, value in zip(group, self._read_severity(y, valid), strict=True):
                found[i] = value
        return found

    @torch.inference_mode()
    def restore(
        self,
        images: Sequence[Photograph],
        keys: Sequence[str],
        *,
        steps: int | None = None,
        passes: int | None = None,
        threshold: float | None = None,
    ) -> list[Restoration]:
        """Restore the images that need it, by intrinsic iteration: pass, read the severity again, go on or stop.

        What comes back for an image depends on its pixels, its key and the options; not on the images beside it.

        Args:
            images: HxWx3 uint8, any sizes.
            keys: one for each image; seeds its noise.
            steps: evaluations of one pass.
            passes: most passes.
            threshold: severity under which an image is left alone. All three come from the checkpoint when None.

        Raises:
            ValueError: an image has another shape or type, or the numbers of images and keys differ.
        """
        steps = self.config.steps if steps is None else steps
        passes = self.config.passes if passes is None else passes
        threshold = self.config.threshold if threshold is None else threshold
        if len(images) != len(keys):
            raise ValueError(f"{len(images)} images but {len(keys)} keys")
        if steps < 1 or passes < 1:
            raise ValueError(f"steps and passes are at least 1, not {steps} and {passes}")

        results = [
            Restoration(image, s, s, 0, 0, "clean", math.inf)
            for image, s in zip(images, self.severity(images), strict=True)
        ]
        active = [i for i, r in enumerate(results) if r.severity >= threshold]
        for number in range(1, passes + 1):
            before = [results[i] for i in active]
            candidates = self.one_pass(
                [r.image for r in before],
                [f"{keys[i]}/{number}" for i in active],
                [r.severity_after for r in before],
                steps,
            )
            going_on = []
            for i, old, image, s in zip(active, before, candidates, self.severity(candidates), strict=True):
                spent = replace(old, evaluations=old.evaluations + steps)
                same = consistency(images[i], image)
                new = replace(spent, image=image, severity_after=s, passes=number, consistency=same)
                if _rms(old.image, image) < SETTLED_SHARE * _expected_rms(old.severity_after):
                    results[i] = replace(spent, stop="settled")
                elif s > old.severity_after + SEVERITY_ERROR:
                    results[i] = replace(spent, stop="severity_rose")
                elif same < self.config.consistency:
                    results[i] = replace(spent, stop="inconsistent")
                elif not self._same_subject(images[i], image):
                    results[i] = replace(spent, stop="identity")
                elif s < threshold:
                    results[i] = replace(new, stop="clean")
                else:
                    results[i] = replace(new, stop="passes")
                    going_on.append(i)
            active = going_on
        return results

    def _same_subject(self, source: Photograph, image: Photograph) -> bool:
        alike = None if self.identity is None else self.identity(source, image)
        return alike is None or alike >= self.identity_floor

    @torch.inference_mode()
    def one_pass(
        self, images: Sequence[Photograph], keys: Sequence[str], severities: Sequence[float], steps: int
    ) -> list[Photograph]:
        """Every image once through the chain at the severity it is said to have, whether it needs it or not.

        What ``restore`` does in a pass, without its rules; also how a checkpoint of a chain without a gate is run.

        Args:
            images: HxWx3 uint8, any sizes.
            keys, severities: one for each image.
            steps: evaluations.
        """
        restored: list[Photograph] = list(images)
        for group in self._groups(images):
            y, _ = self._stack([images[i] for i in group])
            severity = torch.tensor([severities[i] for i in group], dtype=torch.float32, device=self.device)
            shapes = [images[i].shape for i in group]

            def noise(draw: int, group: list[int] = group, y: Tensor = y) -> Tensor:
                # Drawn at the canvas's size on the CPU: the same on every kind of device.
                sources = [sample_generator(NOISE_SEED, f"{keys[i]}/{draw}") for i in group]
                return torch.stack([torch.randn(y.shape[1:], generator=source) for source in sources]).to(y.device)

            x = self._sample(y, severity, noise, steps)
            for i, (h, w, _), image in zip(group, shapes, to_images(x), strict=True):
                restored[i] = image[:h, :w].copy()
        return restored

    def _sample(self, y: Tensor, severity: Tensor, noise: NoiseSource, steps: int) -> Tensor:
        """The chain over a stack of one canvas, each of its evaluations in tiles."""
        preset, chain = self.config.preset, chain_of(self.config.preset)

        def one_tile(x: Tensor, y: Tensor, level: Tensor, severity: Tensor) -> Tensor:
            return chain.denoise(self._networks.denoiser, x, y, level, severity, preset)

        def denoise(x: Tensor, level: Tensor) -> Tensor:
            return apply_tiled(one_tile, (x, y), (level, severity))

        return chain.sample(denoise, y, severity, noise, steps, preset)

    def _read_severity(self, y: Tensor, valid: Tensor) -> list[float]:
        """Severity of each image of a stack: squared errors of the cells, averaged where the image is."""
        rows, columns = cut(y.shape[2]), cut(y.shape[3])
        size = tiles_per_batch(rows.side, columns.side, self.device)
        total, weights = torch.zeros(2, len(y), dtype=torch.float64)
        for r, c, window in tiles_of(rows, columns):
            cells = fixed_batches(self._networks.severity, (y[:, :, r, c],), size).cpu()
            weight = F.avg_pool2d(valid[:, None, r, c] * window, CELL).double()
            total += (severity_to_mse(cells.double().clamp(-1, 1.5)) * weight).sum(dim=(1, 2, 3))
            weights += weight.sum(dim=(1, 2, 3))
        # Rounded, as another number of threads may add up in another order and move the last bits.
        return [round(s, SEVERITY_DIGITS) for s in mse_to_severity(total / weights).clamp(0, 1).tolist()]

    def _groups(self, images: Sequence[Photograph]) -> list[list[int]]:
        """Indices of images that share a canvas, as many as one batch holds; an image of several tiles is alone."""
        by_canvas: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(images):
            canvas = cut(image.shape[0]).padded, cut(image.shape[1]).padded
            by_canvas.setdefault(canvas, []).append(i)
        groups = []
        for (height, width), indices in by_canvas.items():
            size = tiles_per_batch(height, width, self.device)
            groups += [indices[first : first + size] for first in range(0, len(indices), size)]
        return groups

    def _stack(self, images: Sequence[Photograph]) -> tuple[Tensor, Tensor]:
        """Images of one canvas => N3HW in [0, 1] on the device, and NHW: 1.0 where the image is, 0.0 where padding."""
        height, width = cut(images[0].shape[0]).padded, cut(images[0].shape[1]).padded
        padded = np.stack([pad_reflected(image, height, width) for image in images])
        valid = torch.zeros(len(images), height, width)
        for mask, image in zip(valid, images, strict=True):
            mask[: image.shape[0], : image.shape[1]] = 1
        return torch.from_numpy(padded).permute(0, 3, 1, 2).to(self.device).float() / 255, valid

    @staticmethod
    def _check(images: Sequence[Photograph]) -> None:
        for i, image in enumerate(images):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
                raise ValueError(f"image {i} is {image.dtype} {image.shape}; a restorer takes HxWx3 uint8")


def load_restorer(name_or_path: str | Path, device: str = "cpu") -> Restorer:
    """A restorer from a shipped checkpoint's name (``idm-64``) or the path of a ``.safetensors`` file.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    networks, config, sha256 = load_checkpoint(find_checkpoint(name_or_path))
    return Restorer(networks, config, sha256, device)


def consistency(a: Photograph, b: Photograph) -> float:
    """PSNR in dB between two images' averages over cells of 8 x 8 pixels: what no honest restoration changes much.

    Blur, noise, compression and lost resolution leave the averages nearly alone; another face, a moved edge or another
    colour do not.
    """
    means = [
        F.avg_pool2d(torch.from_numpy(x.astype(np.float64).transpose(2, 0, 1)), CELL, ceil_mode=True) for x in (a, b)
    ]
    error = float((means[0] - means[1]).square().mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


def to_tensor(images: Sequence[Photograph]) -> Tensor:
    """Photographs of one size => N3HW float in [0, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def to_images(batch: Tensor) -> list[Photograph]:
    """N3HW in or near [0, 1] => N arrays HxWx3 uint8, rounded to the nearest level; inverse of ``to_tensor``."""
    return list((batch.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy())


def _rms(a: Photograph, b: Photograph) -> float:
    """Root mean square difference, in units of the pixel range."""
    return float(np.sqrt(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2))) / 255


def _expected_rms(severity: float) -> float:
    """The error that a severity stands for, in the same units."""
    return severity_to_rmse(torch.tensor(severity)).item()
