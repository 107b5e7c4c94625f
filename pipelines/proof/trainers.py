"""The trainers that a declaration names: presets of ours, presets that it describes itself, and others' commands."""

from __future__ import annotations

import math
from dataclasses import asdict
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from pydantic import TypeAdapter, ValidationError

from manifests.errors import ConfigError

if TYPE_CHECKING:
    from idm_core.generators.presets import GeneratorPreset
    from pipelines.proof.plan import Proof

#: Options of presets that may be zero; of all others that is nonsense.
_MAY_BE_ZERO: Final = frozenset({"group", "gamma", "gamma_end", "lr_end"})


def preset_of(proof: Proof, trainer: str) -> GeneratorPreset:
    """A trainer of ours. ConfigError where there is none of that name, or the declaration describes it wrongly."""
    from idm_core.generators import generator_preset

    if trainer in proof.presets:
        return _described(proof, trainer)
    try:
        return generator_preset(trainer)
    except ValueError as error:
        raise ConfigError(f"--trainer: {error}, and those that proof.presets and proof.external name") from error


def diffusion_models(proof: Proof) -> tuple[str, ...]:
    """Those of ours among the trainers that are one."""
    from idm_core.generators import DdmPreset

    ours = (name for name in proof.trainers if name not in proof.external)
    return tuple(name for name in ours if isinstance(preset_of(proof, name), DdmPreset))


def resolution_of(proof: Proof, trainer: str) -> int:
    """Side of the images that a trainer learns from and makes, pixels. ConfigError: there is no such trainer."""
    return proof.external[trainer].resolution if trainer in proof.external else preset_of(proof, trainer).resolution


@lru_cache
def parameters(preset: GeneratorPreset) -> tuple[int, int]:
    """How many the generator has, and all that is trained. Kept: every job of a trainer asks.

    Raises:
        ConfigError: the preset's networks do not fit together.
    """
    import torch

    from idm_core.generators import GanPreset
    from idm_core.generators.resnet import Discriminator
    from idm_core.generators.snapshot import new_network

    try:
        with torch.device("meta"):
            network = new_network(preset, 0)
            generator = sum(p.numel() for p in network.parameters())
            if not isinstance(preset, GanPreset):
                side = preset.resolution
                network(torch.empty(1, 3, side, side), None, torch.empty(1), torch.empty(1))
                return generator, generator
            discriminator = Discriminator(preset, 0)
            discriminator(network(torch.empty(1, preset.latent)))
            return generator, generator + sum(p.numel() for p in discriminator.parameters())
    except (ValueError, RuntimeError, IndexError, ZeroDivisionError) as error:
        raise ConfigError(f"proof.presets.{preset.name}: its networks do not fit together: {error}") from error


def _described(proof: Proof, trainer: str) -> GeneratorPreset:
    """A preset of the declaration's own: one of ours, and what is otherwise."""
    from idm_core.generators import generator_preset
    from idm_core.generators.presets import DDM_PRESETS, GAN_PRESETS

    where, changes = f"proof.presets.{trainer}", dict(proof.presets[trainer])
    if trainer in {**DDM_PRESETS, **GAN_PRESETS}:
        raise ConfigError(f"{where}: a preset of ours is called so; give yours another name")
    try:
        like = generator_preset(str(changes.pop("like", None)))
    except ValueError as error:
        raise ConfigError(f"{where}.like: {error}") from error
    options = {name: value for name, value in asdict(like).items() if name != "name"}
    if unknown := sorted(changes.keys() - options.keys()):
        raise ConfigError(f"{where}.{unknown[0]} is no option of {like.name}; there are {', '.join(options)}")
    try:
        preset = TypeAdapter(type(like)).validate_python(options | changes | {"name": trainer})
    except ValidationError as error:
        wrong = error.errors()[0]
        raise ConfigError(f"{'.'.join(map(str, (where, *wrong['loc'])))}: {wrong['msg']}") from error
    for name, value in asdict(preset).items():
        numbers = value if isinstance(value, tuple) else (value,)
        if name != "name" and not all(_may_be(name, number) for number in numbers):
            raise ConfigError(f"{where}.{name}: {value} cannot be; it has to be above zero, and finite")
    return preset


def _may_be(name: str, number: float) -> bool:
    return 0 < number < math.inf or (number == 0 and name in _MAY_BE_ZERO)
