"""What each preset costs to train: `python -m tests.benchmarks.presets`. From shapes alone: nothing is computed.

GB fixed is what a training holds whatever its batch: weights, gradients, Adam's two moments and the average, all fp32,
and the rounded weights of bf16. MB an image is what the forward pass keeps for the backward pass of both networks: the
denoiser sees an image once, the severity network sees it damaged in two ways. What a step needs on top (gradients of
activations on the way back, the convolutions' workspace, LPIPS where it is in the loss) is not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from idm_core.chains import chain_of
from idm_core.checkpoint import Networks
from idm_core.losses import pointwise_loss
from idm_core.presets import PRESETS, Preset
from idm_core.severity import severity_loss, severity_to_rmse, true_severity

#: Bytes of fp32 numbers that a training holds for a parameter: weight, gradient, two moments, average.
FIXED = 4 * 5


@contextmanager
def autocast_on_cuda(enabled: bool) -> Iterator[None]:
    """bf16 as on a GPU: a CPU rounds other operations. Without a GPU ``torch.autocast`` would do nothing."""
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", enabled)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", False)


@contextmanager
def saved_bytes(networks: Networks) -> Iterator[dict[int, int]]:
    """Bytes of each storage that autograd keeps for the backward pass, the networks' own aside."""
    own = {id_of(p) for p in networks.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # or another storage might get the number of one that is gone

    def pack(tensor: Tensor) -> Tensor:
        if id_of(tensor) not in own:
            kept[id_of(tensor)] = tensor.untyped_storage().nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def id_of(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def kept_bytes(preset: Preset, batch: int, bf16: bool) -> int:
    """What a step of ``idm_core.training.train`` on a GPU keeps for its backward pass; in bf16, rounded weights too."""
    with FakeTensorMode(), torch.device("cuda"), autocast_on_cuda(bf16):
        networks = Networks(preset)
        for parameter in networks.parameters():  # as .to(memory_format=...) does it, which fake tensors refuse
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        chain = chain_of(preset)
        truth, y, other, noise = (torch.empty(batch, 3, preset.resolution, preset.resolution) for _ in range(4))
        position, told = torch.empty(2, batch)
        with saved_bytes(networks) as kept:
            severity = true_severity(truth, y)
            x, level = chain.corrupt(truth, y, position, told, noise, preset)
            restored = chain.denoise(networks.denoiser, x, y, level, told, preset)
            error = pointwise_loss("l1", restored, truth, severity_to_rmse(severity))
            loss = (chain.weight(level, severity, preset) * error).mean()
            seen, truths = torch.cat([y, other]), torch.cat([truth, truth])
            loss = loss + severity_loss(networks.severity(seen), truths, seen)
        return sum(kept.values())


def parameters_and_flop(preset: Preset) -> tuple[int, int, int]:
    """Parameters of the denoiser and of the severity network; operations of one evaluation of one image."""
    with torch.device("meta"):
        networks = Networks(preset)
        image, one = torch.empty(1, 3, preset.resolution, preset.resolution), torch.empty(1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        chain_of(preset).denoise(networks.denoiser, image, image, one, one, preset)
    denoiser, severity = (sum(p.numel() for p in n.parameters()) for n in (networks.denoiser, networks.severity))
    return denoiser, severity, counter.get_total_flops()


def main() -> None:
    print("| preset | M parameters | GFLOP | GB fixed | MB an image, fp32 | GB fixed, bf16 | MB an image, bf16 |")
    print("| --- |" + " --- |" * 6)
    for preset in PRESETS.values():
        denoiser, severity, flop = parameters_and_flop(preset)
        cells = [preset.name, f"{denoiser / 1e6:.1f} + {severity / 1e6:.2f}", f"{flop / 1e9:.3g}"]
        for bf16 in (False, True):
            one, two = (kept_bytes(preset, batch, bf16) for batch in (1, 2))
            fixed = FIXED * (denoiser + severity) + 2 * one - two
            cells += [f"{fixed / 1e9:.2f}", f"{(two - one) / 1e6:.1f}"]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
