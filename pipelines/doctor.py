"""What this machine has for the work: devices, packages, models, weights; and how to get what it lacks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib import metadata, resources
from pathlib import Path

from pipelines.weights import WEIGHTS, line, weights_folder

REQUIRED = ("torch", "torchvision", "ray", "webdataset", "pyarrow", "clean-fid", "lpips", "facexlib", "click")
OPTIONAL = {
    "s3fs": "s3:// paths: pip install 'idm-curate[s3]'",
    "gcsfs": "gs:// paths: pip install 'idm-curate[gcs]'",
    "spandrel": "--restorer spandrel:FILE: pip install 'idm-curate[spandrel]'",
    "ai-edge-litert": "--faces mobilefacenet: pip install 'idm-curate[faces]'",
    "dlib-bin": "--faces dlib: pip install 'idm-curate[faces]'",
    "face-recognition-models": "--faces dlib: pip install 'idm-curate[faces]'",
}


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
        yield line(weights, folder)
    yield f"disk       {shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB free here"
