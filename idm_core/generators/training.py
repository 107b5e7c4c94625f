"""Training of a generator, a diffusion model or a GAN: one loop, and what each of the two learns in a step."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from idm_core.chains import edm
from idm_core.generators import adversarial, ddm
from idm_core.generators.batches import Batch, Images, batch_at, draws
from idm_core.generators.presets import GanPreset, GeneratorPreset
from idm_core.generators.resnet import Discriminator
from idm_core.generators.snapshot import Config, new_network, save_snapshot
from idm_core.process_group import begin_together, sum_over_processes
from idm_core.training import use_bf16
from idm_core.training_state import STATE, forget_after, load_state, save_state


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Options of one training run beside its preset's; lengths are counted in real images seen (nimg).

    Attributes:
        nimg: length of the run, which the schedules of lr and gamma are stretched over. A finished run goes on when it
            is given more, but where those fall it is not the run that had it from the start.
        classes: of a class-conditional generator; 0 for one that knows none.
        mirror: half of the images are seen mirrored.
        accumulate: batches that make one step of the optimiser; with several processes, they share these.
        warmup_nimg: the learning rate rises this long.
        precision: fp32 | bf16 | auto: bf16 where the hardware multiplies it natively. Master weights are fp32.
        compile: what makes the images is compiled; a discriminator is not, for its gradient is differentiated again.
        save_nimg: a resumable state is written this often, with a line of statistics.
        snapshot_nimg: the averaged weights are kept this often, to make images with.
    """

    preset: GeneratorPreset
    nimg: int
    seed: int = 0
    classes: int = 0
    mirror: bool = True
    accumulate: int = 1
    warmup_nimg: int = 2_000
    precision: str = "auto"
    compile: bool = False
    save_nimg: int = 10_000
    snapshot_nimg: int = 50_000


def train(
    images: Images, config: TrainConfig, out: Path, *, device: str = "cpu", about: dict[str, Any] | None = None
) -> Path:
    """Train, or go on where the state in ``out`` stopped, and return the last snapshot's path.

    Which images come when is a function of (seed, nimg), and so is all noise on one kind of device: on a CPU, a run
    that was killed and given again ends with the same bits. Where ``torch.distributed`` is initialised, the processes
    share each step's batches and the first one writes; how many there are changes the order in which gradients are
    added up, and nothing else.

    Args:
        out: folder for ``training-state.safetensors``, ``stats.jsonl`` and ``snapshot-<nimg>.safetensors``.
        about: what the snapshots are to say of their data, for people to read.

    Raises:
        ValueError: the options do not fit each other, the images or the number of processes.
        CheckpointError: the state in ``out`` is damaged, or belongs to a run with other options or images.
        RuntimeError: the processes do not see the same state in ``out``.
        FloatingPointError: a loss is no longer finite.
    """
    # What is checked before the expensive part.
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    _check(images, config, world)
    preset, images_per_step = config.preset, config.preset.batch * config.accumulate
    bf16 = use_bf16(config.precision, device)
    autocast = partial(torch.autocast, torch.device(device).type, torch.bfloat16, enabled=bf16)

    # Networks, the generator's average, the optimiser: new, or as they were left.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        networks = nn.ModuleDict({"generator": new_network(preset, config.classes)})
        if isinstance(preset, GanPreset):
            networks["discriminator"] = Discriminator(preset, config.classes)
    networks = networks.to(device).to(memory_format=torch.channels_last)
    generator = networks["generator"]
    average = {f"generator.{k}": tensor.detach().clone() for k, tensor in generator.state_dict().items()}
    # R3GAN has no momentum: the other network changes under it.
    betas = (0.0, 0.99) if isinstance(preset, GanPreset) else (0.9, 0.999)
    optimizer = torch.optim.Adam(networks.parameters(), lr=preset.lr, betas=betas, fused=True)
    options = asdict(config) | asdict(preset) | {"preset": preset.name, "images": images.fingerprint}
    options["precision"] = "bf16" if bf16 else "fp32"  # auto would be another one on other hardware
    nimg, seconds_before = load_state(out / STATE, networks, average, optimizer, options)
    if world > 1:
        begin_together(nimg, out, device)
    averaged = [average[f"generator.{name}"] for name, _ in generator.named_parameters()]
    if config.compile:
        generator.compile()

    step: Step = gan_step if isinstance(preset, GanPreset) else ddm_step
    mine = range(rank, config.accumulate, world)
    sums: dict[str, Tensor] = {}
    started, steps = time.monotonic(), 0
    out.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        forget_after(nimg, out / "stats.jsonl")
    while nimg < config.nimg:
        # A step of the optimiser, or a GAN's two; and the average.
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, nimg)
        batches = [
            batch_at(images, nimg + m * preset.batch, preset.batch, config.seed, config.mirror, device) for m in mine
        ]
        for name, loss in step(networks, optimizer, batches, config, nimg, autocast).items():
            sums[name] = sums.get(name, torch.zeros((), device=device)) + loss
        steps += 1
        nimg += images_per_step
        half_life = min(preset.ema_nimg, max(nimg * 0.1, 1))
        torch._foreach_lerp_(averaged, list(generator.parameters()), 1 - 0.5 ** (images_per_step / half_life))

        # A line of statistics, the state, and at times a snapshot.
        kept, saved = (_is_due(every, nimg, config) for every in (config.snapshot_nimg, config.save_nimg))
        if not (kept or saved):
            continue
        means = torch.stack(list(sums.values())) / (steps * config.accumulate)
        if world > 1:
            dist.all_reduce(means)
        line = dict(zip(sums, means.tolist(), strict=True))
        if not math.isfinite(sum(line.values())):
            raise FloatingPointError(f"a loss is no longer finite at nimg {nimg}: {line}; lower lr ({preset.lr})")
        sums, steps = {}, 0
        if rank == 0:
            seconds = seconds_before + time.monotonic() - started
            if kept:  # before the state: who is killed between the two comes here again
                weights = {name.removeprefix("generator."): tensor for name, tensor in average.items()}
                trained = {k: v for k, v in options.items() if k not in asdict(preset)} | {"nimg": nimg}
                described = Config(preset, _class_counts(images, config), trained | (about or {}))
                save_snapshot(snapshot_path(out, nimg), weights, described)
            with (out / "stats.jsonl").open("a") as stats:
                progress = {"nimg": nimg, "seconds": round(seconds, 1), "lr": learning_rate(config, nimg)}
                stats.write(json.dumps(progress | line) + "\n")
            save_state(out / STATE, networks, average, optimizer, options, nimg, seconds)
    if world > 1:
        dist.barrier()  # nobody returns before the snapshot is there
    return snapshot_path(out, nimg)


def snapshot_path(out: Path, nimg: int) -> Path:
    """Where a run keeps its snapshot after so many images; the names sort by it."""
    return out / f"snapshot-{nimg:010d}.safetensors"


#: Autocast to bf16, or a context that does nothing.
Autocast = Callable[[], AbstractContextManager[object]]
#: (networks, optimiser, batches, config, nimg, autocast) => losses by name, summed over the batches.
Step = Callable[
    [nn.ModuleDict, torch.optim.Adam, Sequence[Batch], TrainConfig, int, Autocast],
    dict[str, Tensor],
]


def ddm_step(
    networks: nn.ModuleDict,
    optimizer: torch.optim.Adam,
    batches: Sequence[Batch],
    config: TrainConfig,
    nimg: int,
    autocast: Autocast,
) -> dict[str, Tensor]:
    """One step of the denoiser: each image at a noise level of its own."""
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=batches[0].real.device)
    for batch in batches:
        draw = draws(config.seed, f"noise {batch.first}", str(batch.real.device))
        u = torch.rand(len(batch.real), generator=draw, device=draw.device)
        noise = torch.randn(batch.real.shape, generator=draw, device=draw.device)
        with autocast():
            sigma = edm.sigma_at(u) if batch.sigma is None else batch.sigma
            loss = ddm.loss(networks["generator"], batch.real, sigma, noise, _label(batch, config)).mean()
        torch.autograd.backward(loss / config.accumulate)
        total = total + loss.detach()
    _update(networks["generator"], optimizer, most=1.0)
    return {"loss": total}


def gan_step(
    networks: nn.ModuleDict,
    optimizer: torch.optim.Adam,
    batches: Sequence[Batch],
    config: TrainConfig,
    nimg: int,
    autocast: Autocast,
) -> dict[str, Tensor]:
    """One step of the discriminator, then one of the generator, on the same real images and other fakes."""
    generator, discriminator, preset = networks["generator"], networks["discriminator"], config.preset
    assert isinstance(preset, GanPreset)
    gamma = annealed(preset.gamma, preset.gamma_end, nimg / config.nimg)
    if preset.penalty_every > 1:  # lazy regularisation, StyleGAN2's (arXiv 1912.04958)
        is_turn = nimg // (preset.batch * config.accumulate) % preset.penalty_every == 0
        gamma = gamma * preset.penalty_every if is_turn else 0.0
    names = ("discriminator_loss", "penalty", "generator_loss")
    totals = dict.fromkeys(names, torch.zeros((), device=batches[0].real.device))

    def fakes(batch: Batch, phase: str) -> Tensor:
        draw = draws(config.seed, f"{phase} {batch.first}", str(batch.real.device))
        z = torch.randn(len(batch.real), preset.latent, generator=draw, device=draw.device)
        images: Tensor = generator(z, _label(batch, config))
        return images.float()

    discriminator.requires_grad_(True)
    optimizer.zero_grad(set_to_none=True)
    for batch in batches:
        score = partial(discriminator, label=_label(batch, config))
        with autocast():
            with torch.no_grad():
                fake = fakes(batch, "discriminator")
            loss, penalty = adversarial.discriminator_loss(score, batch.real, fake, gamma)
        torch.autograd.backward((loss + penalty).mean() / config.accumulate)
        totals["discriminator_loss"] = totals["discriminator_loss"] + loss.detach().mean()
        totals["penalty"] = totals["penalty"] + penalty.detach().mean()
    _update(discriminator, optimizer)

    discriminator.requires_grad_(False)
    optimizer.zero_grad(set_to_none=True)
    for batch in batches:
        score = partial(discriminator, label=_label(batch, config))
        with autocast():
            loss = adversarial.generator_loss(score, batch.real, fakes(batch, "generator"))
        torch.autograd.backward(loss.mean() / config.accumulate)
        totals["generator_loss"] = totals["generator_loss"] + loss.detach().mean()
    _update(generator, optimizer)
    return totals


def annealed(start: float, end: float, progress: float) -> float:
    """From start to end along half a cosine; progress in [0, 1]."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def learning_rate(config: TrainConfig, nimg: int) -> float:
    """Linear warm-up, then the preset's cosine; not beyond its end."""
    rising = min((nimg + 1) / config.warmup_nimg, 1.0) if config.warmup_nimg else 1.0
    return rising * annealed(config.preset.lr, config.preset.lr_end, min(nimg / config.nimg, 1.0))


def _update(network: nn.Module, optimizer: torch.optim.Adam, most: float | None = None) -> None:
    """Step with all processes' gradients, their norm cut off at ``most``. What has no gradient stays as it is."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    if dist.is_initialized() and dist.get_world_size() > 1:
        sum_over_processes(gradients)
    if most is not None:
        torch.nn.utils.clip_grad_norm_(network.parameters(), most)
    optimizer.step()


def _label(batch: Batch, config: TrainConfig) -> Tensor | None:
    return batch.label if config.classes else None


def _class_counts(images: Images, config: TrainConfig) -> tuple[int, ...]:
    if images.labels is None or not config.classes:
        return ()
    return tuple(np.bincount(images.labels, minlength=config.classes).tolist())


def _is_due(every: int, nimg: int, config: TrainConfig) -> bool:
    """Whether the step that led to ``nimg`` passed a multiple of ``every``, or was the last."""
    return nimg % every < config.preset.batch * config.accumulate or nimg >= config.nimg


def _check(images: Images, config: TrainConfig, world: int) -> None:
    preset, side = config.preset, config.preset.resolution
    if images.pixels.shape[1:3] != (side, side):
        raise ValueError(f"{preset.name} learns from {side} x {side} pixels, not {images.pixels.shape[1:3]}")
    if config.accumulate % world:
        raise ValueError(f"{world} processes share {config.accumulate} batches a step: accumulate has to be a multiple")
    if config.classes and (images.labels is None or images.labels.max() >= config.classes):
        found = "no labels" if images.labels is None else f"class {images.labels.max()}"
        raise ValueError(f"a generator of {config.classes} classes needs labels below that; there are {found}")
    if images.least_sigma is not None and isinstance(preset, GanPreset):
        raise ValueError("least_sigma is a diffusion model's: a GAN sees images without noise")
