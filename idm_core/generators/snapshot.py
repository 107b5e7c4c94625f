"""A trained generator in one safetensors file, and the images that it makes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from idm_core.checkpoint import CheckpointError, check_weights, load_metadata, load_tensors, save_tensors
from idm_core.degradations import sample_generator
from idm_core.generators import ddm
from idm_core.generators.presets import DdmPreset, GanPreset, GeneratorPreset
from idm_core.generators.resnet import Generator
from idm_core.network import Denoiser
from idm_core.tiles import fixed_batches
from idm_core.training import use_bf16

FORMAT: Final = "idm-curate generator, version 1"


@dataclass(frozen=True, slots=True)
class Config:
    """What a snapshot says beside its weights.

    Attributes:
        preset: the network's shape.
        class_counts: training images of each class; empty where it knows no classes.
        trained: how, for people to read: images seen, seed, options, data.
    """

    preset: GeneratorPreset
    class_counts: tuple[int, ...] = ()
    trained: dict[str, Any] = field(default_factory=dict)


def new_network(preset: GeneratorPreset, classes: int) -> Generator | Denoiser:
    """What makes the images: a GAN's generator or a diffusion model's denoiser."""
    if isinstance(preset, GanPreset):
        return Generator(preset, classes)
    return Denoiser(preset, conditional=False, classes=classes)


def save_snapshot(path: Path, weights: Mapping[str, Tensor], config: Config) -> Path:
    """Write weights and configuration; the file appears under its name only complete."""
    kind = "gan" if isinstance(config.preset, GanPreset) else "ddm"
    about = json.dumps(asdict(config) | {"kind": kind}, sort_keys=True)
    save_tensors(path, weights, {"format": FORMAT, "config": about})
    return path


def read_config(path: Path) -> Config:
    """The configuration alone.

    Raises:
        CheckpointError: what is wrong with which file.
    """
    metadata = load_metadata(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no generator: its format is {metadata.get('format')!r}, not {FORMAT!r}")
    return _parse_config(path, metadata.get("config", ""))


def load_snapshot(path: Path) -> tuple[nn.Module, Config]:
    """Network in evaluation mode on the CPU, and its configuration.

    Raises:
        CheckpointError: what is wrong with which file.
    """
    config, (tensors, _) = read_config(path), load_tensors(path)
    with torch.device("meta"):
        expected = new_network(config.preset, len(config.class_counts)).state_dict()
    check_weights(path, config.preset.name, tensors, expected)
    network = new_network(config.preset, len(config.class_counts))
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False), config


def steps_of(preset: GeneratorPreset) -> int:
    """Of Heun's method, of which one is two evaluations: EDM's choices at 32 pixels, and at 64."""
    return 18 if preset.resolution <= 32 else 40


def sample(
    path: Path,
    count: int,
    seed: int,
    labels: Sequence[int] | None = None,
    *,
    first: int = 0,
    steps: int | None = None,
    batch: int = 64,
    device: str = "cpu",
    precision: str | None = None,
) -> NDArray[np.uint8]:
    """Images number ``first`` to ``first + count - 1`` of a snapshot, count x H x W x 3 uint8.

    Image i is a function of (snapshot, seed, i) and its label. The network always sees batches of exactly ``batch``,
    since kernels may round otherwise for another size.

    Args:
        labels: classes, one an image; drawn as often as the training set had each when None.
        steps: of a diffusion model; None: ``steps_of`` says how many.
        precision: fp32 | bf16 | auto, of the network; the steps between its calls are float64. None: as it was trained.

    Raises:
        CheckpointError: that is no snapshot.
        ValueError: labels for a generator that knows no classes, too few of them, or unknown ones.
    """
    network, config = load_snapshot(path)
    _check_labels(config, count, labels)
    network = network.to(device).to(memory_format=torch.channels_last)
    make = _images_of(network, config.preset, steps or steps_of(config.preset))
    side = config.preset.resolution
    shape = (config.preset.latent,) if isinstance(config.preset, GanPreset) else (3, side, side)
    bf16 = use_bf16(precision or config.trained.get("precision", "auto"), device)
    shares = torch.tensor(config.class_counts, dtype=torch.float64).cumsum(0)
    images = np.empty((count, side, side, 3), np.uint8)
    for start in range(0, count, batch):
        there = range(start, min(start + batch, count))
        noise, classes = torch.empty(len(there), *shape), torch.zeros(len(there), dtype=torch.int64)
        for place, i in enumerate(there):
            generator = sample_generator(seed, f"image {first + i}")
            u = torch.rand((), generator=generator, dtype=torch.float64)
            noise[place] = torch.randn(shape, generator=generator)
            if labels is not None:
                classes[place] = labels[i]
            elif config.class_counts:
                classes[place] = torch.searchsorted(shares, u * shares[-1], right=True)
        with torch.no_grad(), torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
            made = fixed_batches(make, (noise.to(device), classes.to(device)), batch)
        levels = ((made.float() + 1) * 127.5).round().clamp(0, 255).byte()
        images[there.start : there.stop] = levels.permute(0, 2, 3, 1).cpu().numpy()
    return images


def _images_of(network: nn.Module, preset: GeneratorPreset, steps: int) -> Callable[[Tensor, Tensor], Tensor]:
    """(noise, label) => images N3HW in about [-1, 1]."""

    def diffuse(noise: Tensor, label: Tensor) -> Tensor:
        return ddm.sample_heun(lambda x, sigma: ddm.denoise(network, x.float(), sigma.float(), label), noise, steps)

    return network if isinstance(preset, GanPreset) else diffuse


def _check_labels(config: Config, count: int, labels: Sequence[int] | None) -> None:
    classes = len(config.class_counts)
    if labels is None:
        return
    if not classes:
        raise ValueError(f"{config.preset.name} was trained without classes: it cannot be asked for one")
    if len(labels) != count:
        raise ValueError(f"{count} images need as many labels, not {len(labels)}")
    if unknown := [label for label in labels if not 0 <= label < classes]:
        raise ValueError(f"no class is called {unknown[0]}; there are 0 to {classes - 1}")


def _parse_config(path: Path, text: str) -> Config:
    try:
        values = json.loads(text)
        kind = {"ddm": DdmPreset, "gan": GanPreset}[values.pop("kind")]
        preset = {k: tuple(v) if isinstance(v, list) else v for k, v in values.pop("preset").items()}
        return Config(kind(**preset), tuple(values.pop("class_counts")), **values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the configuration in {path} cannot be read: {error}") from error
