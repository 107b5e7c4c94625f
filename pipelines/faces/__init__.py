"""Faces: find them, align them, tell people apart, and measure what a restoration did to them.

model = open_faces("auto", weights_folder())
faces = model.detect(image)  # largest first
identity = model.embed(image, faces[0].landmarks)
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from pickle import PickleError
from typing import Final

from safetensors import SafetensorError

from manifests.errors import ConfigError
from pipelines import weights
from pipelines.faces.comparison import COLUMNS, compare, identity_margin
from pipelines.faces.face import Face, FaceModel
from pipelines.faces.landmarks import align, five_of_68, identity_cosine, landmark_error, pose

__all__ = [
    "CHOICES",
    "COLUMNS",
    "Face",
    "FaceModel",
    "align",
    "compare",
    "five_of_68",
    "identity_cosine",
    "identity_margin",
    "landmark_error",
    "open_faces",
    "pose",
    "resolve_faces",
]

#: For ``--faces``. ``auto`` is the first of the next three that is there, ``off`` is none.
CHOICES: Final = ("auto", "facexlib", "mobilefacenet", "dlib", "off")

_MODELS: Final = CHOICES[1:-1]
_FILES: Final = {
    "facexlib": (weights.RETINAFACE, weights.ARCFACE),
    "mobilefacenet": (weights.MTCNN, weights.MOBILEFACENET),
    "dlib": (),
}
_PACKAGES: Final = {
    "facexlib": {"facexlib": "facexlib"},
    "mobilefacenet": {"ai_edge_litert": "ai-edge-litert"},
    "dlib": {"dlib": "dlib-bin", "face_recognition_models": "face-recognition-models"},
}

# What torch, safetensors and TFLite raise for a file with other contents. Torch's message is not passed on: it advises
# to unpickle the file.
_UNLOADABLE: Final = (
    OSError, EOFError, RuntimeError, ValueError, LookupError, AttributeError, SafetensorError, PickleError,
)  # fmt: skip


def resolve_faces(choice: str, weights_folder: Path) -> str | None:
    """The name of the model that ``choice`` stands for on this machine; None for ``off``, or if ``auto`` finds none.

    Raises:
        ConfigError: a model that was named lacks a file or a package; the message says which, and what to do.
    """
    if choice not in CHOICES:
        raise ConfigError(f"--faces {choice}: unknown, it is one of {', '.join(CHOICES)}")
    if choice == "off":
        return None
    if choice == "auto":
        return next((name for name in _MODELS if not _lacking(name, weights_folder)), None)
    if lacking := _lacking(choice, weights_folder):
        raise ConfigError(f"--faces {choice}: " + "\n".join(lacking))
    return choice


def open_faces(choice: str, weights_folder: Path) -> FaceModel | None:
    """Load the face model that ``resolve_faces`` names, on the CPU; None where it names none.

    Raises:
        ConfigError: as ``resolve_faces``; or a file is not what its name says.
    """
    name = resolve_faces(choice, weights_folder)
    if name is None:
        return None
    files = [weights_folder / w.file for w in _FILES[name]]
    try:
        return _open(name, files)
    except _UNLOADABLE as error:
        suspects = [w for w in _FILES[name] if weights.state(w, weights_folder) == "wrong"] or list(_FILES[name])
        raise ConfigError(
            f"--faces {name}: {type(error).__name__} while loading "
            + " or ".join(f"{weights_folder / w.file}, which should have SHA-256 {w.sha256}" for w in suspects)
        ) from error


def _open(name: str, files: list[Path]) -> FaceModel:
    if name == "facexlib":
        from pipelines.faces.facexlib_model import FacexlibFaces

        return FacexlibFaces(retinaface=files[0], arcface=files[1])
    if name == "mobilefacenet":
        from pipelines.faces.mobilefacenet import MobileFaceNet

        return MobileFaceNet(mtcnn=files[0], mobilefacenet=files[1])
    from pipelines.faces.dlib_model import DlibFaces

    return DlibFaces()


def _lacking(name: str, folder: Path) -> list[str]:
    """What the model lacks on this machine, a sentence each."""
    absent = [package for module, package in _PACKAGES[name].items() if importlib.util.find_spec(module) is None]
    sentences = [f"{package} is not installed; pip install 'idm-curate[faces]'" for package in absent]
    return sentences + [weights.missing(w, folder) for w in _FILES[name] if not (folder / w.file).is_file()]
