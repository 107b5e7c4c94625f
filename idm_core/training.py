"""Training of both networks: the denoiser on the chain, the severity network on the same degraded images."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from idm_core.chain import LAST_LEVEL, c_out, denoise, diffuse, gated_kappa, level_at
from idm_core.checkpoint import CheckpointError, Config, Networks, load_tensors, save_checkpoint, save_tensors
from idm_core.degradations import RECIPES, degrade, quantise, sample_generator
from idm_core.losses import Perceptual, pointwise_loss
from idm_core.presets import Preset
from idm_core.severity import map_to_severity, severity_loss, true_severity

#: Index of a training image => 3HW in [0, 1]; always the same for the same index.
Pristine = Callable[[int], Tensor]
STATE: Final = "training-state.safetensors"


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Options of one training run; lengths are counted in images seen (nimg).

    Attributes:
        nimg: length of the run. A finished run goes on when it is given more.
        batch: images per forward and backward pass; ``accumulate`` of them make one step of the optimiser.
        lr: of Adam; linear warm-up, constant, then linear decay to zero over the last ``decay_share``.
        ema_nimg: half-life of the averaged weights, shorter in the beginning.
        loss: l1 | l2 | charbonnier, on x0.
        perceptual: weight of LPIPS, from ``perceptual_after`` images on; needs the trunk's weights.
        self_share: share of inputs that are the model's own restorations, from ``self_after`` images on. As a posterior
            mean is its own posterior mean, this is what makes a second application change nothing.
        jitter: standard deviation of the error made on purpose in the severity that the denoiser is told.
        precision: fp32 | bf16 | auto: bf16 where the hardware multiplies it natively. Master weights are fp32.
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
    jitter: float = 0.05
    precision: str = "auto"
    compile: bool = False
    save_nimg: int = 20_000


def train(
    pristine: Pristine,
    validation: Tensor,
    config: TrainConfig,
    out: Path,
    *,
    perceptual: Perceptual | None = None,
    device: str = "cpu",
    usage: dict[str, Any] | None = None,
) -> Path:
    """Train, or go on where the state in ``out`` stopped, and return the checkpoint's path.

    Randomness is a function of (seed, nimg): on a CPU, a run that was interrupted ends with the same bits.

    Args:
        pristine: training images by index, 0 to nimg - 1, each ``preset.resolution`` square.
        validation: N3HW in [0, 1], images that are not trained on.
        out: folder for ``training-state.safetensors``, ``stats.jsonl`` and ``<preset>.safetensors``.
        perceptual: LPIPS; required where ``config.perceptual`` is not 0.
        usage: threshold, steps, passes and other entries of the checkpoint's configuration.

    Raises:
        ValueError: an option is out of range.
        CheckpointError: the state in ``out`` is damaged, or belongs to a run with other options.
        FloatingPointError: the loss is no longer finite.
    """
    # What is checked before the expensive part.
    if config.perceptual and perceptual is None:
        raise ValueError("perceptual is not 0: it needs AlexNet's weights; hand in Perceptual(path) or set it to 0")
    bf16 = use_bf16(config.precision, device)
    preset, images_per_step = config.preset, config.batch * config.accumulate

    # Networks, their average, the optimiser: new, or as they were left.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        networks = Networks(preset)
    networks = networks.to(device).to(memory_format=torch.channels_last)
    average = {name: tensor.detach().clone() for name, tensor in networks.state_dict().items()}
    optimizer = torch.optim.Adam(networks.parameters(), lr=config.lr, betas=(0.9, 0.99), fused=True)
    nimg, seconds_before = _load_state(out / STATE, networks, average, optimizer, config)
    if config.compile:
        networks.denoiser.compile()
        networks.severity.compile()
    if perceptual is not None:
        perceptual = perceptual.to(device).to(memory_format=torch.channels_last)
    averaged: list[Tensor] = [average[name] for name, _ in networks.named_parameters()]
    current: list[Tensor] = list(networks.parameters())

    sums, started, data_seconds = {"loss": 0.0, "severity_loss": 0.0, "steps": 0}, time.monotonic(), 0.0
    out.mkdir(parents=True, exist_ok=True)
    while nimg < config.nimg:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, nimg)
        optimizer.zero_grad(set_to_none=True)
        for micro in range(config.accumulate):
            # Data: pristine images and their damage.
            clock = time.monotonic()
            first = nimg + micro * config.batch
            keys = [str(i) for i in range(first, first + config.batch)]
            truth = torch.stack([pristine(i) for i in range(first, first + config.batch)])
            y, _ = degrade(truth, None, keys, config.seed)
            other, _ = degrade(truth, None, [f"{key} again" for key in keys], config.seed)
            draw = sample_generator(config.seed, f"step {first}")
            u, v = torch.rand(2, config.batch, generator=draw)
            jitter = config.jitter * torch.randn(config.batch, generator=draw)
            noise = torch.randn(y.shape, generator=draw)
            data_seconds += time.monotonic() - clock
            truth, y, other, noise = (
                x.to(device).contiguous(memory_format=torch.channels_last) for x in (truth, y, other, noise)
            )
            u, v, jitter = u.to(device), v.to(device), jitter.to(device)

            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
                # Some inputs are what the model itself makes of them.
                own = round(config.self_share * config.batch) if first >= config.self_after else 0
                if own:
                    with torch.no_grad():
                        s = true_severity(truth[:own], y[:own])
                        start = y[:own] + gated_kappa(s, preset) * LAST_LEVEL * noise[-own:]
                        level = torch.full_like(s, LAST_LEVEL)
                        y[:own] = quantise(denoise(networks.denoiser, start, y[:own], level, s))

                # The chain: half of the evaluations at its start, where one-step restoration happens, half along it.
                level = torch.where(u < 0.5, torch.full_like(v, LAST_LEVEL), level_at(v))
                severity = true_severity(truth, y)
                told = (severity + jitter).clamp(0, 1)
                x = diffuse(truth, y, level, gated_kappa(told, preset), noise)
                restored = denoise(networks.denoiser, x, y, level, told)

                # Losses. The weight lies halfway between plain L1, which heavy damage rules, and L1 in decibels.
                weight = (0.03 / (c_out(severity).flatten() + 0.01)).sqrt()
                error = pointwise_loss(config.loss, restored, truth)
                if perceptual is not None and config.perceptual and first >= config.perceptual_after:
                    error = error + config.perceptual * perceptual(restored, truth)
                loss = (weight * error).mean()
                # The small network sees the same photographs damaged in a second way too: its images are cheap.
                seen, truths = torch.cat([y, other]), torch.cat([truth, truth])
                loss_severity = severity_loss(networks.severity(seen), truths, seen)
            torch.autograd.backward((loss + loss_severity) / config.accumulate)
            sums["loss"] += loss.item() / config.accumulate
            sums["severity_loss"] += loss_severity.item() / config.accumulate

        # Step and average.
        for network in (networks.denoiser, networks.severity):  # apart: their gradients differ a hundredfold
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        nimg += images_per_step
        sums["steps"] += 1
        half_life = min(config.ema_nimg, max(nimg * 0.1, 1))
        torch._foreach_lerp_(averaged, current, 1 - 0.5 ** (images_per_step / half_life))
        if not sums["loss"] < float("inf"):
            raise FloatingPointError(f"the loss is {sums['loss']} at nimg {nimg}; lower lr ({config.lr})")

        # A line of statistics, the state, and a checkpoint that can be used at once.
        if nimg // config.save_nimg > (nimg - images_per_step) // config.save_nimg or nimg >= config.nimg:
            seconds = seconds_before + time.monotonic() - started
            steps = sums.pop("steps")
            line = {"nimg": nimg, "seconds": round(seconds, 1), "data_seconds": round(data_seconds, 1)}
            line |= {name: value / steps for name, value in sums.items()} | {"lr": learning_rate(config, nimg)}
            line |= validate(preset, average, validation, config.seed, device=device, bf16=bf16)
            with (out / "stats.jsonl").open("a") as stats:
                stats.write(json.dumps(line) + "\n")
            _save_state(out / STATE, networks, average, optimizer, config, nimg, seconds)
            save_checkpoint(out / f"{preset.name}.safetensors", average, _usage(config, nimg, seconds, usage))
            sums = {"loss": 0.0, "severity_loss": 0.0, "steps": 0}
    return out / f"{preset.name}.safetensors"


def learning_rate(config: TrainConfig, nimg: int) -> float:
    """Warm-up, constant, linear decay to zero at the end of the run."""
    left = (config.nimg - nimg) / (config.decay_share * config.nimg) if config.decay_share else 1.0
    return config.lr * min((nimg + 1) / config.warmup_nimg if config.warmup_nimg else 1.0, 1.0, max(left, 0.0))


def use_bf16(precision: str, device: str) -> bool:
    """Whether to multiply in bf16. On CPUs without AMX bf16 convolutions are slower than fp32 ones, much slower."""
    if precision == "auto":
        if torch.device(device).type == "cpu":
            return bool(torch.cpu._is_amx_tile_supported())
        return bool(torch.cuda.is_bf16_supported())
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
            level = torch.full_like(severity, LAST_LEVEL)
            restored = quantise(denoise(networks.denoiser, y, y, level, severity))
        result[f"severity_error_{name}"] = (severity - true_severity(truth, y)).abs().mean().item()
        if name != "clean":
            result[f"psnr_before_{name}"], result[f"psnr_after_{name}"] = (
                (-10 * (truth - x).square().mean(dim=(1, 2, 3)).log10()).mean().item() for x in (y, restored)
            )
    return {name: round(value, 4) for name, value in result.items()}


def _usage(config: TrainConfig, nimg: int, seconds: float, usage: dict[str, Any] | None) -> Config:
    options = {name: value for name, value in asdict(config).items() if name != "preset"} | {"nimg": nimg}
    # One step and two passes: chosen on validation faces and photographs. More steps cost PSNR and time and gave
    # little; a second pass costs .1 dB, and gains a sixth of the LPIPS distance and a settled result.
    settings = {"threshold": 0.1, "steps": 1, "passes": 2} | (usage or {})
    trained = options | {"seconds": round(seconds)} | settings.pop("trained", {})
    return Config(preset=config.preset, trained=trained, **settings)


def _save_state(
    path: Path,
    networks: Networks,
    average: dict[str, Tensor],
    optimizer: torch.optim.Adam,
    config: TrainConfig,
    nimg: int,
    seconds: float,
) -> None:
    tensors = {f"network.{k}": v for k, v in networks.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.items()}
    for name, parameter in networks.named_parameters():
        tensors |= {f"{part}.{name}": value for part, value in optimizer.state[parameter].items()}
    metadata = {"nimg": nimg, "seconds": seconds, "config": json.loads(json.dumps(asdict(config)))}
    save_tensors(path, tensors, {"training": json.dumps(metadata)})


def _load_state(
    path: Path,
    networks: Networks,
    average: dict[str, Tensor],
    optimizer: torch.optim.Adam,
    config: TrainConfig,
) -> tuple[int, float]:
    """Fill networks, average and optimiser from a state; (0, 0) where there is none. Returns (nimg, seconds)."""
    if not path.exists():
        return 0, 0.0
    tensors, metadata = load_tensors(path)
    try:
        training = json.loads(metadata["training"])
        saved, wanted = training["config"], json.loads(json.dumps(asdict(config)))
        # The length may change (a run may go on, or end sooner); so may what does not touch the numbers.
        differ = sorted(k for k in wanted if saved.get(k) != wanted[k] and k not in ("nimg", "save_nimg"))
        if differ:
            raise CheckpointError(
                f"{path} was trained with other options ({', '.join(differ)}); "
                "continue with those, or use another folder"
            )
        networks.load_state_dict({k: tensors[f"network.{k}"] for k in average})
        for name, tensor in average.items():
            tensor.copy_(tensors[f"average.{name}"])
        for name, parameter in networks.named_parameters():
            moments = {part: tensors[f"{part}.{name}"] for part in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": tensors[f"step.{name}"]} | {
                part: torch.empty_like(parameter).copy_(moment) for part, moment in moments.items()
            }
    except KeyError as error:
        raise CheckpointError(f"{path} is not a training state: {error} is missing") from error
    return int(training["nimg"]), float(training["seconds"])
