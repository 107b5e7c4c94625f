"""One face in an image, and what a face model must be able to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Bytes3 = npt.NDArray[np.uint8]  # H W 3, RGB
Points = npt.NDArray[np.float64]  # 5 2: x, y
Embedding = npt.NDArray[np.float32]  # D, of length 1


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """A detected face. All coordinates are pixels: (0, 0) is the middle of the image's top left pixel.

    ``landmarks`` are left eye, right eye, tip of the nose, left and right corner of the mouth, as the viewer sees
    them: the left eye is the one nearer to the image's left side in an upright face.
    """

    box: tuple[float, float, float, float]  # left, top, right, bottom; may reach over the image's border
    landmarks: Points
    score: float  # the detector's own; to be compared with its own alone

    @property
    def area(self) -> float:
        """Of the box, square pixels."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


class FaceModel(Protocol):
    """Finds faces and tells people apart. The same image gives the same answer, whatever was asked before."""

    @property
    def name(self) -> str:
        """What the manifest records: ``facexlib``, ``mobilefacenet`` or ``dlib``."""
        ...

    @property
    def same_person(self) -> float:
        """Cosine of two embeddings above which they are of one person more likely than not."""
        ...

    def detect(self, image: Bytes3) -> list[Face]:
        """All faces of an H x W x 3 uint8 RGB image, largest box first; none is an empty list."""
        ...

    def embed(self, image: Bytes3, landmarks: Points) -> Embedding:
        """Identity of the face whose five landmarks these are: a float32 vector of length 1."""
        ...


def largest_first(faces: list[Face]) -> list[Face]:
    """In the order that ``FaceModel.detect`` promises; of two equal boxes the surer, then the one further left.

    A detection whose coordinates are not finite, or whose eyes are less than a pixel apart, is no face and left out.
    """
    sound = [
        face
        for face in faces
        if np.isfinite(face.landmarks).all()
        and np.isfinite(face.box).all()
        and np.linalg.norm(face.landmarks[1] - face.landmarks[0]) >= 1
    ]
    return sorted(sound, key=lambda face: (-face.area, -face.score, face.box))


def unit(vector: npt.NDArray[np.floating]) -> Embedding:
    """The vector at length 1; one of zeros stays as it is, and is like nothing."""
    exact = np.asarray(vector, np.float64).ravel()
    return np.asarray(exact / max(float(np.linalg.norm(exact)), 1e-12), np.float32)
