"""A restorer in one safetensors file: both networks' averaged weights, and as metadata how they are to be used."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from idm_core.network import Denoiser
from idm_core.presets import Preset
from idm_core.severity import SeverityNetwork

FORMAT: Final = "idm-curate restorer, version 1"
WEIGHTS_FOLDER: Final = Path(__file__).parent / "weights"


class CheckpointError(ValueError):
    """A checkpoint is missing, is not one, or does not fit the networks it names."""


@dataclass(frozen=True, slots=True)
class Config:
    """What a checkpoint says beside its weights.

    Attributes:
        preset: the networks' shapes and the chain.
        threshold: severity under which an image is left alone.
        steps: evaluations of one pass.
        passes: most passes of the intrinsic iteration.
        consistency: dB of ``idm_core.restorer.consistency`` under which a pass is undone.
        trained: how it was trained, for people to read: images seen, seed, data, options.
    """

    preset: Preset
    threshold: float
    steps: int
    passes: int
    consistency: float = 0.0
    trained: dict[str, Any] = field(default_factory=dict)


class Networks(nn.Module):
    """The two networks of a restorer under one state dict, ``denoiser.*`` and ``severity.*``."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.denoiser = Denoiser(preset)
        self.severity = SeverityNetwork(preset)


def save_checkpoint(path: Path, weights: Mapping[str, Tensor], config: Config) -> Path:
    """Write weights and configuration; the file appears under its name only complete."""
    metadata = {"format": FORMAT, "config": json.dumps(asdict(config), sort_keys=True)}
    save_tensors(path, weights, metadata)
    return path


def load_checkpoint(path: Path) -> tuple[Networks, Config, str]:
    """Networks in evaluation mode on the CPU, their configuration, and the file's SHA-256 in hex.

    Raises:
        CheckpointError: what is wrong with which file, and what can be done.
    """
    tensors, metadata = load_tensors(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not a restorer: its format is {metadata.get('format')!r}, expected {FORMAT!r}. "
            "Train one with 'idm-curate train-idm'."
        )
    config = _parse_config(path, metadata.get("config", ""))
    with torch.device("meta"):
        expected = Networks(config.preset).state_dict()
    check_weights(path, config.preset.name, tensors, expected)
    networks = Networks(config.preset)
    networks.load_state_dict(tensors)
    return networks.eval().requires_grad_(False), config, hashlib.sha256(path.read_bytes()).hexdigest()


def check_weights(path: Path, preset: str, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """CheckpointError if a file's tensors are not those of a network, by name and shape, or are not finite."""
    wrong = [f"{name} is missing" for name in expected if name not in tensors]
    wrong += [f"{name} is unknown" for name in tensors if name not in expected]
    wrong += [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    wrong += [f"{name} holds values that are not finite" for name, t in tensors.items() if not bool(t.isfinite().all())]
    if wrong:
        raise CheckpointError(
            f"the weights in {path} do not fit preset {preset!r}: {'; '.join(wrong[:3])}"
            + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        )


def find_checkpoint(name_or_path: str | Path) -> Path:
    """A shipped restorer's name, or the path of a checkpoint => the path of the file."""
    path = Path(name_or_path)
    if path.suffix != ".safetensors":
        path = WEIGHTS_FOLDER / f"{name_or_path}.safetensors"
        if not path.is_file():
            shipped = sorted(p.stem for p in WEIGHTS_FOLDER.glob("*.safetensors"))
            raise CheckpointError(
                f"no restorer is called {str(name_or_path)!r}; there are {', '.join(shipped) or 'none'}. "
                "Give a name or the path of a .safetensors file."
            )
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    return path


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """A safetensors file written beside its place, synced, and moved there. Equal contents are equal bytes."""
    data = save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, metadata)
    # The library writes the metadata's entries in an order that is drawn anew each time.
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    with staged.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.write(memoryview(data)[8 + length :])
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)


def load_metadata(path: Path) -> dict[str, str]:
    """Metadata of a safetensors file, whose tensors are left alone; CheckpointError where it cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; CheckpointError where it cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error


def _parse_config(path: Path, text: str) -> Config:
    try:
        values = json.loads(text)
        preset: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.pop("preset").items()}
        return Config(preset=Preset(**preset), **values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the configuration in {path} cannot be read: {error}") from error
