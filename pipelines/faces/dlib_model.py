"""dlib's face detector, 68 landmarks and 128-number identity, from two packages of PyPI: no file to fetch."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipelines.faces.face import Bytes3, Embedding, Face, Points, largest_first, unit
from pipelines.faces.landmarks import align, five_of_68

#: Pixels. The detector finds faces of 80 px and more: small images are doubled until it can, large ones are reduced.
MIN_SIDE: Final = 200
MAX_SIDE: Final = 1280
#: Of the detector's score. At its own 0 it takes a fold of cloth for a face now and then.
THRESHOLD: Final = 0.1

#: Where dlib's own ``get_face_chip`` (150 px, padding 0.25) puts the five landmarks, in shares of the side: the mean
#: over 100 photographs, made symmetric. The network was trained on such chips.
TEMPLATE: Final[Points] = np.array([[48.5, 46.1], [99.9, 46.1], [74.2, 76.0], [50.7, 104.5], [97.7, 104.5]]) / 150


class DlibFaces:
    """HOG detector, regression-tree landmarks, ResNet-29 identity (King; ``dlib-models``, public domain).

    The landmark model was trained on iBUG 300-W, whose own terms exclude commercial use.
    """

    name = "dlib"
    same_person = 0.9

    def __init__(self) -> None:
        import dlib

        models = models_folder()
        self._detector: Any = dlib.get_frontal_face_detector()
        self._predictor: Any = dlib.shape_predictor(str(models / "shape_predictor_68_face_landmarks.dat"))
        self._network: Any = dlib.face_recognition_model_v1(str(models / "dlib_face_recognition_resnet_model_v1.dat"))

    def detect(self, image: Bytes3) -> list[Face]:
        """All faces, largest first."""
        import dlib
        from PIL import Image

        block = max(1, math.ceil(max(image.shape[:2]) / MAX_SIDE))
        searched = np.ascontiguousarray(np.asarray(Image.fromarray(image).reduce(block)) if block > 1 else image)
        doublings = max(0, math.ceil(math.log2(MIN_SIDE / min(searched.shape[:2]))))
        rectangles, scores, _ = self._detector.run(searched, doublings, THRESHOLD)
        whole = np.ascontiguousarray(image)
        faces = []
        for r, score in zip(rectangles, scores, strict=True):
            edges = (r.left() * block, r.top() * block, (r.right() + 1) * block - 1, (r.bottom() + 1) * block - 1)
            shape = self._predictor(whole, dlib.rectangle(*edges))
            points = np.array([[p.x, p.y] for p in shape.parts()], np.float64)
            left, top, right, bottom = edges
            faces.append(Face((left - 0.5, top - 0.5, right + 0.5, bottom + 0.5), five_of_68(points), float(score)))
        return largest_first(faces)

    def embed(self, image: Bytes3, landmarks: Points) -> Embedding:
        """Identity: dlib's 128 numbers at length 1.

        dlib's rule, "the same person under a distance of 0.6", is one about the numbers before that: their length is
        about 1.4, and so it becomes a cosine of about 0.9.
        """
        chip = align(image, landmarks, 150, TEMPLATE)
        return unit(np.array(self._network.compute_face_descriptor(chip), np.float64))


def models_folder() -> Path:
    """The folder of model files in the package ``face-recognition-models``, which is not imported: it needs
    ``pkg_resources``, which setuptools has dropped."""
    spec = importlib.util.find_spec("face_recognition_models")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("face_recognition_models")
    return Path(spec.submodule_search_locations[0]) / "models"
