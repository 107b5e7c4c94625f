"""facexlib's RetinaFace (arXiv 1905.00641) and ArcFace (arXiv 1801.07698), from files in the weights folder.

facexlib's own loaders are not called: they download, unpickle whatever they are given, and ask for CUDA.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipelines.faces.face import Bytes3, Embedding, Face, Points, largest_first, unit
from pipelines.faces.landmarks import align

#: Pixels; a larger image is reduced before it is searched.
MAX_SIDE: Final = 1280
THRESHOLD: Final = 0.8


class FacexlibFaces:
    """RetinaFace (ResNet-50) finds, ArcFace (IR-SE-50) tells apart: 512 numbers."""

    name = "facexlib"
    same_person = 0.35

    def __init__(self, retinaface: Path, arcface: Path, device: str = "cpu") -> None:
        import torch
        from facexlib.detection.retinaface import RetinaFace
        from facexlib.recognition.arcface_arch import Backbone

        self._device = torch.device(device)
        tensors = [torch.load(path, map_location="cpu", weights_only=True) for path in (retinaface, arcface)]
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # it builds its ResNet with an argument torchvision has renamed
            self._detector: Any = RetinaFace(network_name="resnet50", half=False, device=self._device)
        self._network: Any = Backbone(num_layers=50, drop_ratio=0.6, mode="ir_se")
        for network, found in zip((self._detector, self._network), tensors, strict=True):
            # The detector was saved from nn.DataParallel.
            network.load_state_dict({name.removeprefix("module."): tensor for name, tensor in found.items()})
            network.eval().requires_grad_(False).to(self._device)

    def detect(self, image: Bytes3) -> list[Face]:
        """All faces, largest first."""
        import torch
        from PIL import Image

        block = max(1, math.ceil(max(image.shape[:2]) / MAX_SIDE))
        searched = np.asarray(Image.fromarray(image).reduce(block)) if block > 1 else image
        with torch.inference_mode():  # it wants BGR, like everything that was born in OpenCV
            rows = self._detector.detect_faces(np.ascontiguousarray(searched[..., ::-1]), THRESHOLD)
        found = np.asarray(rows, np.float64).reshape(-1, 15)  # box, score, landmarks
        faces = []
        for row in found:
            left, top, right, bottom = ((row[:4] + 0.5) * block - 0.5).tolist()
            points = (row[5:].reshape(5, 2) + 0.5) * block - 0.5
            faces.append(Face((left, top, right, bottom), points, float(row[4])))
        return largest_first(faces)

    def embed(self, image: Bytes3, landmarks: Points) -> Embedding:
        """Identity: of the crop and of its mirror image, added, as ArcFace's evaluation does it.

        The network was trained on channels in the order of OpenCV (InsightFace_Pytorch's ``load_mx_rec``).
        """
        import torch

        crop = align(image, landmarks)[..., ::-1]
        pair = np.stack([crop, crop[:, ::-1]]).transpose(0, 3, 1, 2)  # 2 3 112 112
        with torch.inference_mode():
            x = (torch.tensor(np.ascontiguousarray(pair), device=self._device).float() - 127.5) / 127.5
            vectors = self._network(x).cpu().numpy()  # 2 512
        return unit(vectors.sum(0))
