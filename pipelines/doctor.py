"""What this machine has for the work: devices, packages, models, weights; and how to get what it lacks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path

from manifests.errors import ConfigError

REQUIRED = ("torch", "torchvision", "ray", "webdataset", "pyarrow", "clean-fid", "lpips", "facexlib", "click")
OPTIONAL = {"s3fs": "s3:// paths: pip install 'idm-curate[s3]'", "gcsfs": "gs:// paths: pip install 'idm-curate[gcs]'"}


@dataclass(frozen=True, slots=True)
class Weights:
    """A file that others publish and that is never fetched on its own."""

    file: str
    use: str
    origin: str


LPIPS_TRUNK = Weights(
    "alexnet_features.safetensors",
    "train-idm --lpips: the trunk of LPIPS",
    "torchvision.models.alexnet(weights='DEFAULT').features, saved with safetensors under its own names",
)
WEIGHTS = (LPIPS_TRUNK,)


def weights_folder() -> Path:
    """Where weights of others are looked for: ``$IDM_WEIGHTS``, else ``~/.cache/idm-curate/weights``."""
    return Path(os.environ.get("IDM_WEIGHTS", "~/.cache/idm-curate/weights")).expanduser()


def required(weights: Weights) -> Path:
    """The path of a file that the work cannot do without.

    Raises:
        ConfigError: it is not in the weights folder.
    """
    path = weights_folder() / weights.file
    if not path.is_file():
        raise ConfigError(f"{path} is missing, for {weights.use}; it is made of {weights.origin}")
    return path


def examine() -> Iterator[str]:
    """One line for each thing that is there or missing."""
    import torch

    yield f"cpu        {os.cpu_count()} cores"
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
            yield f"gpu {i}      {properties.name}, {properties.total_memory / 2**30:.0f} GiB, {bf16}"
    else:
        yield "gpu        none that torch can use; restoring runs on the CPU"
    for name in REQUIRED:
        yield f"package    {name} {metadata.version(name)}"
    for name, how in OPTIONAL.items():
        try:
            yield f"optional   {name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            yield f"missing    {name}, optional, for {how}"
    for checkpoint in sorted(Path(str(resources.files("idm_core") / "weights")).glob("*.safetensors")):
        yield f"model      {checkpoint.stem}, {checkpoint.stat().st_size / 1e6:.1f} MB"
    folder = weights_folder()
    for weights in WEIGHTS:
        found = (folder / weights.file).is_file()
        yield f"{'weights' if found else 'missing':<10} {folder / weights.file}, for {weights.use}" + (
            "" if found else f"; from {weights.origin}"
        )
    yield f"disk       {shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB free here"
