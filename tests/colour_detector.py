"""A detector of colours, for tests: a few numbers of each image, and no network. Workers import it from here."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from pipelines.detectors import Features, Images


class ColourDetector:
    """Means of the three channels in four quarters of the image, in 0-1."""

    name, frechet, kernel, sha256 = "colours", "FD-colour", "KD-colour", "0" * 64
    dimension, side = 12, 16

    def __init__(self, device: str = "cpu") -> None:
        self.looked_at = 0

    def __call__(self, images: Images) -> Features:
        self.looked_at += len(images)
        h, w = images.shape[1] // 2, images.shape[2] // 2
        quarters = [images[:, :h, :w], images[:, h:, :w], images[:, :h, w:], images[:, h:, w:]]
        return np.concatenate([q.mean(axis=(1, 2)) for q in quarters], axis=1).astype(np.float32) / 255


class DeadlyDetector(ColourDetector):
    """Takes its process down at the first image it is given, once: there is a file that says that it did."""

    said: Path

    def __init__(self, device: str = "cpu", *, said: Path) -> None:
        super().__init__(device)
        self.said = said

    def __call__(self, images: Images) -> Features:
        try:
            self.said.touch(exist_ok=False)
        except FileExistsError:
            return super().__call__(images)
        time.sleep(0.1)
        os._exit(1)
