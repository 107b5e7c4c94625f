"""Detectors: networks whose features distances between sets of images are measured in, and which of them is there.

detector = open_detector(resolve_detector("auto", weights_folder()), "cpu", weights_folder())
features = detector(images)  # N H W 3, uint8 => N D, float32
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from manifests.errors import ConfigError
from pipelines import weights
from pipelines.detectors.detector import Detector, Features, Images, OpenDetector
from pipelines.detectors.dinov2 import Dinov2
from pipelines.detectors.efficientnet import EfficientNetLite0
from pipelines.detectors.inception import Inception

__all__ = [
    "CHOICES",
    "Detector",
    "Dinov2",
    "EfficientNetLite0",
    "Features",
    "Images",
    "Inception",
    "OpenDetector",
    "open_detector",
    "resolve_detector",
]

log = logging.getLogger("idm_curate")

#: For ``--detector``. ``auto`` is Inception where its file is, else EfficientNet-lite0, which is always there.
CHOICES: Final = ("auto", "inception", "effnet", "dinov2")


def resolve_detector(choice: str, weights_folder: Path) -> str:
    """Which detector a choice means here; said before any work, for a figure's name depends on it.

    Raises:
        ConfigError: no such choice, or its file is missing or another one.
    """
    if choice not in CHOICES:
        raise ConfigError(f"--detector {choice}: unknown, it is one of {', '.join(CHOICES)}")
    if choice == "auto":
        if weights.state(weights.INCEPTION, weights_folder) == "missing":
            instead = f"{EfficientNetLite0.frechet} is measured instead, which is not comparable with any FID"
            log.warning("no FID: %s; %s", weights.missing(weights.INCEPTION, weights_folder), instead)
            return "effnet"
        choice = "inception"
    if choice == "inception":
        weights.required_and_right(weights.INCEPTION, weights_folder)
    if choice == "dinov2":
        weights.required(weights.DINOV2, weights_folder)
    return choice


def open_detector(name: str, device: str, weights_folder: Path, side: int = 224) -> Detector:
    """Load a detector.

    Args:
        name: as ``resolve_detector`` gives it.
        device: of torch.
        weights_folder: where the files of others are.
        side: of EfficientNet-lite0's input, pixels.

    Raises:
        ConfigError: its weights are missing, or are not the ones that are meant.
        ValueError: there is none of this name.
    """
    if name == "inception":
        return Inception(device, weights_folder)
    if name == "effnet":
        return EfficientNetLite0(device, side)
    if name == "dinov2":
        return Dinov2(device, weights_folder)
    raise ValueError(f"no detector is called {name!r}")
