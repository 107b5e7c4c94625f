"""Weights of others through spandrel: GFPGAN, RestoreFormer, Real-ESRGAN, SwinIR, SCUNet and what else it knows.

pip install 'idm-curate[spandrel]'; the file is the user's: nothing is downloaded.

A network that enlarges is restored with at its own scale, and its output reduced to the source's size. Images larger
than a tile are restored in overlapping tiles, so that memory is bounded by 256 x 256 pixels at the network's scale.

Networks for faces (GFPGAN, RestoreFormer, CodeFormer) expect a face cut out in FFHQ's geometry, 512 x 512: FFHQ itself,
or what ``ingest --align ffhq`` cuts. They are offered square images of at most 512 pixels a side, enlarged to that.
They return None for every other image: one that is not square is no such cut, and a larger one would lose detail.

CodeFormer's licence is non-commercial, and so it is no part of spandrel: pip install spandrel-extra-arches.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from pickle import PickleError
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from idm_core.degradations import sample_generator
from idm_core.restorer import NOISE_SEED, to_images, to_tensor
from idm_core.tiles import cut, pad_reflected, tiles_of
from manifests.errors import ConfigError
from pipelines.restorers import Photograph

#: Side of the faces that networks for faces are trained on.
FACE_SIDE: Final = 512


class SpandrelModel:
    """A network that spandrel recognises by its weights, over one image at a time."""

    def __init__(self, path: Path, device: str) -> None:
        self.device = torch.device(device)
        self._network = open_network(path).to(self.device).eval()
        self._network.model.requires_grad_(False)

    def restore(self, images: Sequence[Photograph], keys: Sequence[str]) -> list[Photograph | None]:
        """A candidate for each image; None where a network for faces is not meant for it.

        Args:
            images: HxWx3 uint8, any sizes.
            keys: seed the noise of networks that draw some (GFPGAN).
        """
        return [self._one(image, key) for image, key in zip(images, keys, strict=True)]

    @torch.inference_mode()
    def _one(self, image: Photograph, key: str) -> Photograph | None:
        height, width = image.shape[:2]
        faces = self._network.purpose == "FaceSR"
        if faces and (height != width or width > FACE_SIDE):
            return None
        # The networks draw from the global generator: it is lent to them for one image, and put back.
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(sample_generator(NOISE_SEED, key).initial_seed())
            return self._face(image) if faces else self._tiled(image)

    def _face(self, image: Photograph) -> Photograph:
        restored = self._run(to_tensor([_resized(image, FACE_SIDE)]).to(self.device))
        return _resized(to_images(restored)[0], len(image))

    def _tiled(self, image: Photograph) -> Photograph:
        rows, columns = cut(image.shape[0]), cut(image.shape[1])
        x = to_tensor([pad_reflected(image, rows.padded, columns.padded)])
        blended = torch.zeros_like(x)
        for r, c, window in tiles_of(rows, columns):
            blended[..., r, c] += window * self._run(x[..., r, c].to(self.device)).cpu()
        return to_images(blended)[0][: image.shape[0], : image.shape[1]].copy()

    def _run(self, x: Tensor) -> Tensor:
        """N3HW in [0, 1] => the same size, whatever the network's scale."""
        y: Tensor = self._network(x.contiguous())  # GFPGAN takes views of it
        if y.shape[2:] != x.shape[2:]:
            y = F.interpolate(y, size=x.shape[2:], mode="bicubic", antialias=True)
        return y


def open_network(path: Path) -> Any:
    """spandrel's descriptor of a weights file, on the CPU.

    Raises:
        ConfigError: spandrel does not know the network, or it is none from RGB to RGB.
    """
    import spandrel

    if importlib.util.find_spec("spandrel_extra_arches") is not None:
        import spandrel_extra_arches

        spandrel_extra_arches.install(ignore_duplicates=True)
    try:
        network = spandrel.ModelLoader().load_from_state_dict(spandrel.canonicalize_state_dict(read_weights(path)))
    except spandrel.UnsupportedModelError as error:
        raise ConfigError(f"--restorer spandrel:{path}: spandrel knows no network with such weights") from error
    except (RuntimeError, LookupError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise ConfigError(f"--restorer spandrel:{path}: its weights do not fit their network: {error}") from error
    channels = network.input_channels, network.output_channels
    if network.purpose not in ("Restoration", "SR", "FaceSR") or channels != (3, 3):
        raise ConfigError(
            f"--restorer spandrel:{path}: {network.architecture.name}, {network.purpose}, takes {channels[0]} channels "
            f"and gives {channels[1]}; a restorer takes RGB and nothing else, and gives RGB"
        )
    return network


def read_weights(path: Path) -> dict[str, Any]:
    """The tensors of a .safetensors file, or of a .pth, .pt or .ckpt; nothing in a file is ever executed.

    Raises:
        ConfigError: it cannot be read so. spandrel's own reader is not asked: it runs TorchScript.
    """
    data = path.read_bytes()
    try:
        if path.suffix.lower() == ".safetensors":
            return load(data)
        if path.suffix.lower() in (".pth", ".pt", ".ckpt"):
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            if isinstance(found, dict):
                return found
    except (RuntimeError, ValueError, LookupError, EOFError, SafetensorError, PickleError) as error:
        # torch's own message is not passed on: it advises to unpickle the file
        raise ConfigError(
            f"--restorer spandrel:{path}: no tensors alone ({type(error).__name__}); a file that holds anything else, "
            "pickled objects or TorchScript, is not opened: save its state dict as .safetensors"
        ) from error
    raise ConfigError(f"--restorer spandrel:{path}: expected .safetensors, .pth, .pt or .ckpt with a dict of tensors")


def _resized(image: Photograph, side: int) -> Photograph:
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS))
