"""Training of both networks: the denoiser on the chain, the severity network on the same degraded images."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from idm_core.chains import chain_of
from idm_core.checkpoint import (
    CheckpointError,
    Config,
    Networks,
    load_checkpoint,
    save_checkpoint,
)
from idm_core.degradations import RECIPES, degrade, mixture, quantise
from idm_core.losses import Perceptual, pointwise_loss
from idm_core.presets import Preset
from idm_core.process_group import begin_together, sum_over_processes
from idm_core.severity import map_to_severity, severity_loss, severity_to_rmse, true_severity
from idm_core.training_data import Batches, Pristine, loader
from idm_core.training_state import STATE, forget_after, load_state, save_state


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Options of one training run; lengths are counted in images seen (nimg).

    Attributes:
        nimg: length of the run. A finished run goes on when it is given more.
        batch: images per forward and backward pass.
        accumulate: batches that make one step of the optimiser; with several processes, they share these.
        lr: of Adam; linear warm-up, constant, then linear decay to zero over the last ``decay_share``.
        ema_nimg: half-life of the averaged weights, shorter in the beginning.
        loss: l1 | l2 | l2_relative | charbonnier, on x0.
        perceptual: weight of LPIPS, from ``perceptual_after`` images on; needs the trunk's weights.
        self_share: share of inputs that are the model's own restorations, from ``self_after`` images on. As a posterior
            mean is its own posterior mean, this is what makes a second application change nothing.
        clean_share: share of inputs without damage.
        jitter: standard deviation of the error made on purpose in the severity that the denoiser is told.
        precision: fp32 | bf16 | auto: bf16 where the hardware multiplies it natively. Master weights are fp32.
        data_processes: that make batches ahead; 0 makes each when it is needed.
        save_nimg: a resumable state and a checkpoint are written this often, with a line of validation.
    """

    preset: Preset
    nimg: int
    seed: int = 0
    batch: int = 32
    accumulate: int = 1
    lr: float = 1e-3
    warmup_nimg: int = 5_000
    decay_share: float = 0.3
    ema_nimg: int = 10_000
    loss: str = "l1"
    perceptual: float = 0.1
    perceptual_after: int = 80_000
    self_share: float = 0.125
    self_after: int = 30_000
    clean_share: float = 0.15
    jitter: float = 0.05
    precision: str = "auto"
    compile: bool = False
    data_processes: int = 0
    save_nimg: int = 20_000


def train(
    pristine: Pristine,
    validation: Tensor,
    config: TrainConfig,
    out: Path,
    *,
    start: Path | None = None,
    perceptual: Perceptual | None = None,
    device: str = "cpu",
    usage: dict[str, Any] | None = None,
) -> Path:
    """Train, or go on where the state in ``out`` stopped, and return the checkpoint's path.

    Randomness is a function of (seed, nimg): on a CPU, a run that was interrupted ends with the same bits. Where
    ``torch.distributed`` is initialised, the processes share each step's batches and the first one writes; how many
    there are changes the order in which gradients are added up, and nothing else.

    Args:
        pristine: training images by index, 0 to nimg - 1, each ``preset.resolution`` square.
        validation: N3HW in [0, 1], images that are not trained on.
        out: folder for ``training-state.safetensors``, ``stats.jsonl`` and ``<preset>.safetensors``.
        start: a checkpoint of the same preset whose weights a new run begins with.
        perceptual: LPIPS; required where ``config.perceptual`` is not 0.
        usage: threshold, steps, passes and other entries of the checkpoint's configuration.

    Raises:
        ValueError: an option is out of range.
        CheckpointError: the state in ``out`` is damaged, or belongs to a run with other options.
        RuntimeError: the processes do not see the same state in ``out``.
        FloatingPointError: the loss is no longer finite.
    """
    # What is checked before the expensive part.
    if config.perceptual and perceptual is None:
        raise ValueError("perceptual is not 0: it needs AlexNet's weights; hand in Perceptual(path) or set it to 0")
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if config.accumulate % world:
        raise ValueError(f"{world} processes share {config.accumulate} batches a step: accumulate has to be a multiple")
    bf16 = use_bf16(config.precision, device)
    autocast = partial(torch.autocast, torch.device(device).type, torch.bfloat16, enabled=bf16)
    preset, images_per_step = config.preset, config.batch * config.accumulate
    chain = chain_of(preset)

    # Networks, their average, the optimiser: new, or as they were left.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        networks = Networks(preset)
    start_sha256 = _begin_with(start, networks, preset) if start is not None else None
    networks = networks.to(device).to(memory_format=torch.channels_last)
    average = {name: tensor.detach().clone() for name, tensor in networks.state_dict().items()}
    optimizer = torch.optim.Adam(networks.parameters(), lr=config.lr, betas=(0.9, 0.99), fused=True)
    options = asdict(config) | {"start": start_sha256}
    nimg, seconds_before = load_state(out / STATE, networks, average, optimizer, options)
    if world > 1:
        begin_together(nimg, out, device)
    parameters: list[Tensor] = list(networks.parameters())
    averaged: list[Tensor] = [average[name] for name, _ in networks.named_parameters()]
    if config.compile:
        networks.denoiser.compile()
        networks.severity.compile()
    if perceptual is not None:
        perceptual = perceptual.to(device).to(memory_format=torch.channels_last)

    mine = range(rank, config.accumulate, world)
    firsts = [n + m * config.batch for n in range(nimg, config.nimg, images_per_step) for m in mine]
    pairs = Batches(pristine, mixture(config.clean_share), config.batch, config.seed)
    batches = iter(loader(pairs, firsts, config.data_processes, pin=torch.device(device).type == "cuda"))
    sums = torch.zeros(3, device=device)  # of both losses and of batches
    started, data_seconds = time.monotonic(), 0.0
    out.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        forget_after(nimg, out / "stats.jsonl")
    while nimg < config.nimg:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, nimg)
        optimizer.zero_grad(set_to_none=True)
        for _ in mine:
            # Data: pristine images and their damage.
            clock = time.monotonic()
            batch = next(batches)
            data_seconds += time.monotonic() - clock
            truth, y, other, noise = (
                x.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
                for x in (batch.truth, batch.y, batch.other, batch.noise)
            )
            position, jitter = batch.position.to(device), config.jitter * batch.jitter.to(device)

            # Some inputs are what the model itself makes of them. In an autocast of its own: older versions of torch
            # keep the weights that were rounded here, without gradients, for the pass that needs them.
            own = round(config.self_share * config.batch) if batch.first >= config.self_after else 0
            if own:
                with autocast(), torch.no_grad():
                    severity = true_severity(truth[:own], y[:own])
                    y[:own] = restore_once(preset, networks, y[:own], severity, noise[-own:])

            with autocast():
                # The chain.
                severity = true_severity(truth, y)
                told = (severity + jitter).clamp(0, 1)
                x, level = chain.corrupt(truth, y, position, told, noise, preset)
                restored = chain.denoise(networks.denoiser, x, y, level, told, preset)

                # Losses.
                error = pointwise_loss(config.loss, restored, truth, severity_to_rmse(severity))
                if perceptual is not None and config.perceptual and batch.first >= config.perceptual_after:
                    error = error + config.perceptual * perceptual(restored, truth)
                loss = (chain.weight(level, severity, preset) * error).mean()
                # The small network sees the same photographs damaged in a second way too: its images are cheap.
                seen, truths = torch.cat([y, other]), torch.cat([truth, truth])
                loss_severity = severity_loss(networks.severity(seen), truths, seen)
            torch.autograd.backward((loss + loss_severity) / config.accumulate)
            sums += torch.stack([loss.detach(), loss_severity.detach(), torch.ones_like(loss)])

        # Step and average.
        if world > 1:
            sum_over_processes([p.grad for p in parameters if p.grad is not None])
        for network in (networks.denoiser, networks.severity):  # apart: their gradients differ a hundredfold
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        nimg += images_per_step
        half_life = min(config.ema_nimg, max(nimg * 0.1, 1))
        torch._foreach_lerp_(averaged, parameters, 1 - 0.5 ** (images_per_step / half_life))

        # A line of statistics, the state, and a checkpoint that can be used at once.
        if nimg // config.save_nimg > (nimg - images_per_step) // config.save_nimg or nimg >= config.nimg:
            if world > 1:
                dist.all_reduce(sums)
            seconds = seconds_before + time.monotonic() - started
            loss_mean, severity_mean = (sums[:2] / sums[2]).tolist()
            if not math.isfinite(loss_mean + severity_mean):
                raise FloatingPointError(f"the loss is no longer finite at nimg {nimg}; lower lr ({config.lr})")
            sums.zero_()
            if rank == 0:
                line = {"nimg": nimg, "seconds": round(seconds, 1), "data_seconds": round(data_seconds, 1)}
                line |= {"loss": loss_mean, "severity_loss": severity_mean, "lr": learning_rate(config, nimg)}
                line |= validate(preset, average, validation, config.seed, device=device, bf16=bf16)
                with (out / "stats.jsonl").open("a") as stats:
                    stats.write(json.dumps(line) + "\n")
                save_state(out / STATE, networks, average, optimizer, options, nimg, seconds)
                save_checkpoint(out / f"{preset.name}.safetensors", average, _usage(config, nimg, seconds, usage))
    if world > 1:
        dist.barrier()  # nobody returns before the checkpoint is there
    return out / f"{preset.name}.safetensors"


def restore_once(preset: Preset, networks: Networks, y: Tensor, severity: Tensor, noise: Tensor) -> Tensor:
    """One evaluation at the start of the chain, as 8-bit levels: NCHW in [0, 1] => the same."""
    chain = chain_of(preset)

    def denoise(x: Tensor, level: Tensor) -> Tensor:
        return chain.denoise(networks.denoiser, x, y, level, severity, preset)

    return quantise(chain.sample(denoise, y, severity, lambda _: noise, 1, preset))


def learning_rate(config: TrainConfig, nimg: int) -> float:
    """Warm-up, constant, linear decay to zero at the end of the run."""
    left = (config.nimg - nimg) / (config.decay_share * config.nimg) if config.decay_share else 1.0
    return config.lr * min((nimg + 1) / config.warmup_nimg if config.warmup_nimg else 1.0, 1.0, max(left, 0.0))


def use_bf16(precision: str, device: str) -> bool:
    """Whether to multiply in bf16. CPUs with no instruction for it convolve in bf16 much more slowly than in fp32."""
    if precision == "auto":
        if torch.device(device).type == "cpu":
            return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision is fp32, bf16 or auto, not {precision!r}")
    return precision == "bf16"


@torch.no_grad()
def validate(
    preset: Preset, weights: dict[str, Tensor], images: Tensor, seed: int, *, device: str, bf16: bool
) -> dict[str, float]:
    """Mean PSNR before and after one evaluation, and the severity's mean error, on mild and heavy damage."""
    networks = Networks(preset).to(device).to(memory_format=torch.channels_last)
    networks.load_state_dict(weights)
    result: dict[str, float] = {}
    for name in ("clean", "mild", "heavy"):
        keys = [f"validation {i}" for i in range(len(images))]
        y = degrade(images, RECIPES[name], keys, seed)[0].to(device)
        truth = images.to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
            severity = map_to_severity(networks.severity(y)).clamp(0, 1)
            restored = restore_once(preset, networks, y, severity, torch.zeros_like(y))
        result[f"severity_error_{name}"] = (severity - true_severity(truth, y)).abs().mean().item()
        if name != "clean":
            result[f"psnr_before_{name}"], result[f"psnr_after_{name}"] = (
                (-10 * (truth - x).square().mean(dim=(1, 2, 3)).log10()).mean().item() for x in (y, restored)
            )
    return {name: round(value, 4) for name, value in result.items()}


def _usage(config: TrainConfig, nimg: int, seconds: float, usage: dict[str, Any] | None) -> Config:
    options = {name: value for name, value in asdict(config).items() if name != "preset"} | {"nimg": nimg}
    # Chosen on validation faces and photographs: a second pass gains nothing, of the same price a second step does.
    settings = {"threshold": 0.1, "steps": 2, "passes": 1} | (usage or {})
    trained = options | {"seconds": round(seconds)} | settings.pop("trained", {})
    return Config(preset=config.preset, trained=trained, **settings)


def _begin_with(path: Path, networks: Networks, preset: Preset) -> str:
    """Load a checkpoint's weights, of whatever chain, into networks of the same shapes; returns its SHA-256."""
    found, config, sha256 = load_checkpoint(path)
    unchained = [replace(p, name="", chain="", kappa=0.0, gate=0.0, gated=True) for p in (config.preset, preset)]
    if unchained[0] != unchained[1]:
        raise CheckpointError(f"{path} is of preset {config.preset.name!r}: its weights do not fit {preset.name!r}")
    networks.load_state_dict(found.state_dict())
    return sha256
