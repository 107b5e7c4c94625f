"""InceptionV3 as FID needs it: the TensorFlow network of 2015 as TorchScript, behind clean-fid's resizer."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import weights
from pipelines.detectors.detector import Features, Images, checked


class Inception:
    """The Inception of FID (arXiv 1706.08500), resized for as clean-fid does (arXiv 2104.11222): its Frechet distance
    is FID and its kernel distance KID, comparable with those of others that resize in the same way.

    Each channel of each image is resized to 299 x 299 in float32 by Pillow's antialiased bicubic filter, clipped to
    0-255 and not rounded. The features are the 2048 of the last pooling. Resizer and network are called through
    clean-fid, which is given the file and downloads nothing.

    The file is opened by ``torch.jit.load``, which executes TorchScript and nothing else: no Python is unpickled. Its
    SHA-256 is compared first all the same.

    Args:
        device: of torch.
        folder: where the file is; by default ``weights.weights_folder()``.

    Raises:
        ConfigError: the file is not there, or is another one.
    """

    name = "inception-2015-12-05"
    frechet = "FID"
    kernel = "KID"
    dimension = 2048
    side = 299
    #: Images that are held at once.
    batch = 16

    def __init__(self, device: str = "cpu", folder: Path | None = None) -> None:
        import torch
        from cleanfid.inception_torchscript import InceptionV3W
        from cleanfid.resize import build_resizer

        path = weights.required_and_right(weights.INCEPTION, folder)
        self.sha256 = str(weights.INCEPTION.sha256)
        self.device = torch.device(device)
        with warnings.catch_warnings():
            # torch advises against TorchScript; the one published file of this network is TorchScript.
            warnings.simplefilter("ignore", FutureWarning)
            network = InceptionV3W(str(path.parent), download=False)
        self._network: Any = network.eval().to(self.device)
        self._resized = build_resizer("clean")

    def __call__(self, images: Images) -> Features:
        """N x H x W x 3 uint8 => N x 2048 float32, on the CPU.

        Raises:
            ValueError: the images have another shape or type.
        """
        import torch

        features = np.empty((len(checked(images)), self.dimension), np.float32)
        with torch.inference_mode():
            for first in range(0, len(images), self.batch):
                resized = np.stack([self._resized(image) for image in images[first : first + self.batch]])
                x = torch.from_numpy(resized).permute(0, 3, 1, 2).to(self.device)  # N 3 299 299, 0-255
                features[first : first + self.batch] = self._network(x).cpu().numpy()
        return features
