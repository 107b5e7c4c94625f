"""Generators of seconds, and the coloured squares of two classes that they learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch.distributed as dist

from idm_core.generators import DdmPreset, GanPreset, Images, TrainConfig, train

DDM = DdmPreset("tiny-ddm", 8, 1, (16, 24), (1, 1), (1,), 16, 16, 3e-3, 3e-3, 500)
GAN = GanPreset("tiny-gan", 8, 8, 1, (24, 16), 1, 1, 0, 16, 2e-3, 1e-3, 500, 0.1, 0.05)


def squares(count: int) -> Images:
    """8 x 8 pixels: class 0 reddish and brighter at the top, class 1 bluish and brighter at the bottom."""
    generator = np.random.default_rng(0)
    labels = np.arange(count) % 2
    colours = np.array([[200.0, 90, 60], [50, 100, 190]])[labels] + generator.normal(0, 12, (count, 3))
    ramp = np.linspace(30, -30, 8) * generator.normal(1, 0.2, (count, 1))
    ramp *= np.where(labels == 0, 1, -1)[:, None]
    pixels = colours[:, None, None, :] + ramp[:, :, None, None] + np.zeros((1, 1, 8, 1))
    return Images(pixels.clip(0, 255).round().astype(np.uint8), labels)


def config(preset: DdmPreset | GanPreset, nimg: int, **options: int) -> TrainConfig:
    return TrainConfig(preset, nimg, **({"warmup_nimg": 64, "precision": "fp32"} | options))  # type: ignore[arg-type]


def train_as_one_of(rank: int, world: int, options: TrainConfig, meeting: Path, out: Path) -> None:
    """One process of a group that shares a training; top-level, so that another process can import it."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    train(squares(48), options, out)
    dist.destroy_process_group()


def quarters(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Mean colours of each image's four quarters, N x 12: enough to tell colours, ramps and their spread."""
    return images.reshape(-1, 2, 4, 2, 4, 3).mean(axis=(2, 4)).reshape(len(images), -1)
