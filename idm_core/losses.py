"""What a restored image is compared with its truth by: pointwise losses, and LPIPS (arXiv 1801.03924)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOSSES: Final = ("l1", "l2", "l2_relative", "charbonnier")


def pointwise_loss(kind: str, restored: Tensor, truth: Tensor, rmse: Tensor) -> Tensor:
    """Mean over each image of a function of the error e, NCHW => N.

    l1 is |e|, l2 e^2, charbonnier sqrt(e^2 + 0.01^2) - 0.01 (l2 near zero, l1 beyond). l2_relative is e^2 / (2 rmse):
    l2 whose gradients are as large as l1's whatever the damage, so that the two differ in what they ask for alone.

    Args:
        rmse: N, error of the degraded image.
    """
    error = restored - truth
    if kind == "l1":
        error = error.abs()
    elif kind == "l2":
        error = error.square()
    elif kind == "l2_relative":
        error = error.square() / (2 * rmse[:, None, None, None] + 0.01)
    elif kind == "charbonnier":
        error = (error.square() + 1e-4).sqrt() - 1e-2
    else:
        raise ValueError(f"loss is one of {', '.join(LOSSES)}, not {kind!r}")
    return error.mean(dim=(1, 2, 3))


class Perceptual(nn.Module):
    """LPIPS v0.1 on AlexNet, written for training: one pass over both images, frozen, in whatever dtype autocast says.

    Args:
        trunk: safetensors with torchvision's AlexNet convolutions, ``features.{0,3,6,8,10}.{weight,bias}``.
            The five linear heads come with the ``lpips`` package.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, trunk: Path) -> None:
        super().__init__()
        import lpips
        from safetensors.torch import load_file

        weights = load_file(trunk)
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(3, 64, 11, stride=4, padding=2),
                nn.Conv2d(64, 192, 5, padding=2),
                nn.Conv2d(192, 384, 3, padding=1),
                nn.Conv2d(384, 256, 3, padding=1),
                nn.Conv2d(256, 256, 3, padding=1),
            ]
        )
        for conv, index in zip(self.convs, (0, 3, 6, 8, 10), strict=True):
            conv.load_state_dict({part: weights[f"features.{index}.{part}"] for part in ("weight", "bias")})
        heads = torch.load(Path(lpips.__file__).parent / "weights/v0.1/alex.pth", map_location="cpu", weights_only=True)
        for i in range(5):
            self.register_buffer(f"head{i}", heads[f"lin{i}.model.1.weight"])
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[None, :, None, None])
        self.requires_grad_(False)

    def forward(self, restored: Tensor, truth: Tensor) -> Tensor:
        """N3HW in [0, 1] twice => N."""
        a, b = self._features(restored), self._features(truth)
        distance = torch.zeros(len(restored), device=restored.device)
        for i, (fa, fb) in enumerate(zip(a, b, strict=True)):
            difference = (_unit(fa) - _unit(fb)).square()
            distance = distance + (difference * getattr(self, f"head{i}")).sum(dim=1).mean(dim=(1, 2))
        return distance

    def _features(self, image: Tensor) -> list[Tensor]:
        x = (2 * image - 1 - self.shift) / self.scale
        features = []
        for i, conv in enumerate(self.convs):
            x = F.relu(conv(x))
            features.append(x if x.dtype == torch.float64 else x.float())
            if i < 2:
                x = F.max_pool2d(x, 3, stride=2)
        return features


def _unit(x: Tensor) -> Tensor:
    """Features scaled to unit length at each pixel."""
    return x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
