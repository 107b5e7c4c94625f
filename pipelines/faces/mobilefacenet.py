"""MobileFaceNet (Chen et al., arXiv 1804.07573) through its TFLite file, with MTCNN for the detector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipelines.faces.face import Bytes3, Embedding, Face, Points, unit
from pipelines.faces.landmarks import align
from pipelines.faces.mtcnn import load_mtcnn


class MobileFaceNet:
    """MTCNN finds, MobileFaceNet tells apart: 192 numbers."""

    name = "mobilefacenet"
    same_person = 0.4

    def __init__(self, mtcnn: Path, mobilefacenet: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._detector = load_mtcnn(mtcnn)
        self._network: Any = Interpreter(str(mobilefacenet), num_threads=1)
        self._network.allocate_tensors()
        self._input = self._network.get_input_details()[0]["index"]
        self._output = self._network.get_output_details()[0]["index"]

    def detect(self, image: Bytes3) -> list[Face]:
        """All faces, largest first."""
        return self._detector.detect(image)

    def embed(self, image: Bytes3, landmarks: Points) -> Embedding:
        """Identity: of the crop and of its mirror image, added, as ArcFace's own evaluation does it.

        The file takes exactly two images at a time, so the mirror image costs nothing.
        """
        crop = align(image, landmarks)
        pair = np.stack([crop, crop[:, ::-1]])  # 2 112 112 3
        self._network.set_tensor(self._input, (pair.astype(np.float32) - 127.5) / 128)
        self._network.invoke()
        one, mirrored = self._network.get_tensor(self._output)  # 2 192
        return unit(unit(one) + unit(mirrored))
