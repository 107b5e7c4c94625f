"""A training of seconds, of the smallest networks on coloured waves; and what may happen to one of its processes.

Top-level functions, so that a worker can import them.
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from idm_core.presets import Preset
from idm_core.training import TrainConfig, train
from manifests.errors import SourceError

TINY = Preset("tiny", 16, 2, (8, 16), (1, 1), (1,), 16, (8, 8, 8))
CONFIG = TrainConfig(
    TINY, 48, batch=4, lr=1e-2, warmup_nimg=8, decay_share=0.0, perceptual=0.0, self_share=0.5, self_after=16,
    precision="fp32", save_nimg=24,
)  # fmt: skip


def pristine(index: int) -> Tensor:
    """Smooth coloured waves, another for each index."""
    generator = torch.Generator().manual_seed(index)
    fy, fx, phase = torch.rand(3, 3, generator=generator)
    axis = torch.arange(16)
    waves = torch.sin(fy[:, None, None] * axis[:, None] + fx[:, None, None] * axis + 6 * phase[:, None, None])
    return (waves * 127 + 128).round() / 255


VALIDATION = torch.stack([pristine(-i) for i in range(1, 5)])


def write_photographs(folder: Path) -> Path:
    """24 small photographs, cut from one large one, and a broken file."""
    from PIL import Image
    from skimage import data

    photo = Image.fromarray(data.astronaut())
    for i in range(24):
        left, top = 16 * (i % 6), 60 * (i // 6)
        photo.crop((left, top, left + 240, top + 200)).save(folder / f"photo{i:02d}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def train_and_die_once(config: TrainConfig, out: Path, at: int, device: str) -> None:
    """The process that comes to image ``at`` is killed there, the first time."""

    def deadly(index: int) -> Tensor:
        flag = out / "died"
        if index == at and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return pristine(index)

    train(deadly, VALIDATION, config, out, device=device)


def find_no_photographs(out: Path, device: str) -> None:
    """Leaves a file each time that it is called."""
    (out / f"{uuid.uuid4()}.trace").touch()
    raise SourceError("photos.zip: none of 3 photographs can be used")


def fall_ill(device: str) -> None:
    raise OSError("the disk is on holiday")


def interrupt(driver: int, device: str) -> None:
    """Ctrl-C at the driver, from the process of rank 0; then wait to be ended."""
    if dist.get_rank() == 0:
        os.kill(driver, signal.SIGINT)
    time.sleep(600)
