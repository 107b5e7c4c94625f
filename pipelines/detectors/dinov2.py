"""DINOv2's ViT-B/14 as a detector: learnt without labels, and close to people's judgement (arXiv 2306.04675)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from manifests.errors import ConfigError
from pipelines import weights
from pipelines.detectors.detector import Features, Images, checked

if TYPE_CHECKING:
    from torch import Tensor

    State = dict[str, Tensor]

_MEAN: Final = (0.485, 0.456, 0.406)  # of ImageNet, as all of DINOv2's training
_DEVIATION: Final = (0.229, 0.224, 0.225)
_PATCH: Final = 14
_HEAD: Final = 64  # channels of an attention head
_EPSILON: Final = 1e-6


class Dinov2:
    """DINOv2 (arXiv 2304.07193), ViT-B/14 without registers; the features are the class token after the last norm.

    Images are resized to 224 x 224 as for FID, by clean-fid, and normalised by ImageNet's mean and deviation, as in
    Stein et al. (arXiv 2306.04675). Theirs is the ViT-L: distances of the two are not comparable, hence the B in the
    name.

    Args:
        device: of torch.
        folder: where the file is; by default ``weights.weights_folder()``. It is read as plain tensors: nothing is
            unpickled that is no tensor.

    Raises:
        ConfigError: the file is not there, or does not hold this network.
    """

    name = "dinov2-vitb14-224"
    frechet = "FD-DINOv2-B"
    kernel = "KD-DINOv2-B"
    dimension = 768
    side = 224
    #: Images that are held at once.
    batch = 8

    def __init__(self, device: str = "cpu", folder: Path | None = None) -> None:
        import torch
        from cleanfid.resize import make_resizer

        path = weights.required(weights.DINOV2, folder)
        with path.open("rb") as f:
            self.sha256 = hashlib.file_digest(f, "sha256").hexdigest()
        state: State = torch.load(path, map_location="cpu", weights_only=True)
        shape = tuple(state["pos_embed"].shape) if "pos_embed" in state else ()
        if (
            shape != (1, 1 + 37 * 37, self.dimension)
            or "blocks.11.ls2.gamma" not in state
            or "norm.weight" not in state
        ):
            raise ConfigError(f"{path} is no DINOv2 ViT-B/14; it is from {weights.DINOV2.origin}")
        self.device = torch.device(device)
        self._state = {name: tensor.to(self.device) for name, tensor in state.items()}
        self._resized: Any = make_resizer("PIL", False, "bicubic", (self.side, self.side))

    def __call__(self, images: Images) -> Features:
        """N x H x W x 3 uint8 => N x 768 float32, on the CPU.

        Raises:
            ValueError: the images have another shape or type.
        """
        import torch

        features = np.empty((len(checked(images)), self.dimension), np.float32)
        mean, deviation = (torch.tensor(v, device=self.device).view(3, 1, 1) for v in (_MEAN, _DEVIATION))
        with torch.inference_mode():
            for first in range(0, len(images), self.batch):
                resized = np.stack([self._resized(image) for image in images[first : first + self.batch]])
                x = torch.from_numpy(resized).permute(0, 3, 1, 2).to(self.device) / 255
                features[first : first + self.batch] = class_token((x - mean) / deviation, self._state).cpu().numpy()
        return features


def class_token(x: Tensor, state: State) -> Tensor:
    """The forward pass: N 3 H W, normalised, sides multiples of 14 => N D. Depth and width are those of the weights."""
    import torch
    import torch.nn.functional as F

    x = F.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=_PATCH)
    rows, columns = x.shape[2:]
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
    x = x + positions(state["pos_embed"], rows, columns)
    block = 0
    while f"blocks.{block}.norm1.weight" in state:
        of = {
            name.removeprefix(f"blocks.{block}."): t for name, t in state.items() if name.startswith(f"blocks.{block}.")
        }
        x = x + of["ls1.gamma"] * _attention(_norm(x, of, "norm1"), of)
        hidden = F.gelu(F.linear(_norm(x, of, "norm2"), of["mlp.fc1.weight"], of["mlp.fc1.bias"]))
        x = x + of["ls2.gamma"] * F.linear(hidden, of["mlp.fc2.weight"], of["mlp.fc2.bias"])
        block += 1
    return _norm(x, state, "norm")[:, 0]


def positions(embedding: Tensor, rows: int, columns: int) -> Tensor:
    """Position embeddings 1 (1 + n^2) D for another number of patches, as DINOv2 does: bicubic, and by a scale that
    has 0.1 added to the number, which the published weights are evaluated with.
    """
    import torch
    import torch.nn.functional as F

    side = round((embedding.shape[1] - 1) ** 0.5)
    if (rows, columns) == (side, side):
        return embedding
    grid = embedding[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = ((rows + 0.1) / side, (columns + 0.1) / side)
    grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
    return torch.cat([embedding[:, :1], grid.permute(0, 2, 3, 1).reshape(1, rows * columns, -1)], dim=1)


def _attention(x: Tensor, of: State) -> Tensor:
    import torch.nn.functional as F

    n, tokens, width = x.shape
    qkv = F.linear(x, of["attn.qkv.weight"], of["attn.qkv.bias"])
    q, k, v = qkv.reshape(n, tokens, 3, width // _HEAD, _HEAD).permute(2, 0, 3, 1, 4)  # each N heads tokens 64
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width)
    return F.linear(mixed, of["attn.proj.weight"], of["attn.proj.bias"])


def _norm(x: Tensor, of: State, name: str) -> Tensor:
    import torch.nn.functional as F

    return F.layer_norm(x, (x.shape[-1],), of[f"{name}.weight"], of[f"{name}.bias"], _EPSILON)
