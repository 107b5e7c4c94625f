"""Weights that others publish: which file does what, where it goes, how to know it. Nothing here is ever downloaded."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from manifests.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Weights:
    """A file in the weights folder."""

    file: str
    use: str
    origin: str  # a URL, or how the file is made
    sha256: str | None = None  # of the file that the tests use, or that the URL serves; None: not known


_FACEXLIB: Final = "https://github.com/xinntao/facexlib/releases/download/v0.1.0"

LPIPS_TRUNK: Final = Weights(
    "alexnet_features.safetensors",
    "LPIPS, of candidates and in train-idm --lpips",
    "torchvision.models.alexnet(weights='DEFAULT').features, saved with safetensors under its own names",
    "9f97fd313f4da83dbe6bbfbe6effca1241de9edfcd7c53386261ed9697286dd9",
)
RETINAFACE: Final = Weights(
    "detection_Resnet50_Final.pth",
    "--faces facexlib: RetinaFace finds faces",
    f"{_FACEXLIB}/detection_Resnet50_Final.pth",
    "6d1de9c2944f2ccddca5f5e010ea5ae64a39845a86311af6fdf30841b0a5a16d",
)
ARCFACE: Final = Weights(
    "recognition_arcface_ir_se50.pth",
    "--faces facexlib: ArcFace tells people apart",
    f"{_FACEXLIB}/recognition_arcface_ir_se50.pth",
    "a035c768259b98ab1ce0e646312f48b9e1e218197a0f80ac6765e88f8b6ddf28",
)
MTCNN: Final = Weights(
    "mtcnn.safetensors",
    "--faces mobilefacenet: MTCNN finds faces",
    "facenet-pytorch's pnet, rnet and onet (MIT), saved with safetensors as pnet.*, rnet.*, onet.*",
    "45209c89a01a216d7ae9baf3fa8e506dfb0e8ff1269007ce26e28338a9148cd3",
)
MOBILEFACENET: Final = Weights(
    "mobilefacenet.tflite",
    "--faces mobilefacenet: MobileFaceNet tells people apart",
    "the TFLite conversion of MobileFaceNet with input [2,112,112,3] and output [2,192]",
    "d8ba40c0127fb8ca9917e8fddc79bbbda063657bc92a496d34da0bc8a760443b",
)
INCEPTION: Final = Weights(
    "inception-2015-12-05.pt",
    "evaluate --detector inception: FID and KID",
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
    "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
)
NIQE: Final = Weights(
    "niqe_pris_params.npz",
    "NIQE of candidates and their sources",
    "https://github.com/XPixelGroup/BasicSR/raw/v1.4.2/basicsr/metrics/niqe_pris_params.npz",
    "2a7c182a68c9e7f1b2e2e5ec723279d6f65d912b6fcaf37eb2bf03d7367c4296",
)
DINOV2: Final = Weights(
    "dinov2_vitb14_pretrain.pth",
    "evaluate --detector dinov2: FD-DINOv2-B",
    "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth",
)

#: The one table; ``idm-curate doctor`` prints it.
WEIGHTS: Final = (LPIPS_TRUNK, NIQE, RETINAFACE, ARCFACE, MTCNN, MOBILEFACENET, INCEPTION, DINOV2)


def weights_folder() -> Path:
    """Where weights of others are looked for: ``$IDM_WEIGHTS``, else ``~/.cache/idm-curate/weights``."""
    return Path(os.environ.get("IDM_WEIGHTS", "~/.cache/idm-curate/weights")).expanduser()


def required(weights: Weights, folder: Path | None = None) -> Path:
    """The path of a file that the work cannot do without.

    Args:
        weights: a row of the table.
        folder: where it should be; by default ``weights_folder()``.

    Raises:
        ConfigError: it is not there; the message says what goes where.
    """
    path = (folder or weights_folder()) / weights.file
    if not path.is_file():
        raise ConfigError(missing(weights, path.parent))
    return path


def required_and_right(weights: Weights, folder: Path | None = None) -> Path:
    """The same, where another file of that name would give other figures and no error.

    Raises:
        ConfigError: it is not there, or has another SHA-256.
    """
    path = required(weights, folder)
    if state(weights, path.parent) == "wrong":
        raise ConfigError(missing(weights, path.parent).replace(" is missing,", " is not the file that is meant,"))
    return path


def missing(weights: Weights, folder: Path) -> str:
    """What to do about a file that is not there, in one sentence."""
    return f"{folder / weights.file} is missing, for {weights.use}; from {weights.origin}; {_checksum(weights)}"


def state(weights: Weights, folder: Path) -> str:
    """``present``, ``missing``, or ``wrong``: a file of that name whose SHA-256 is another."""
    path = folder / weights.file
    if not path.is_file():
        return "missing"
    if weights.sha256 is None:
        return "present"
    with path.open("rb") as f:
        found = hashlib.file_digest(f, "sha256").hexdigest()
    return "present" if found == weights.sha256 else "wrong"


def line(weights: Weights, folder: Path) -> str:
    """The file's line in the doctor's report."""
    found = state(weights, folder)
    if found == "missing":
        return "missing    " + missing(weights, folder).replace(" is missing,", ",")
    if found == "wrong":
        return "wrong      " + missing(weights, folder).replace(" is missing,", " is not the file that is meant,")
    known = "" if weights.sha256 else f"; {_checksum(weights)}"
    return f"weights    {folder / weights.file}, for {weights.use}{known}"


def _checksum(weights: Weights) -> str:
    return f"SHA-256 {weights.sha256}" if weights.sha256 else "checksum not known"
