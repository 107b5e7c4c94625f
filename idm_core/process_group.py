"""What the processes of one training, a ``torch.distributed`` group, have to agree on."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor


def begin_together(nimg: int, out: Path, device: str) -> None:
    """All processes go on from the same state: with different ones they would train, and to no purpose."""
    ends = torch.tensor([nimg, -nimg], device=device)
    dist.all_reduce(ends, dist.ReduceOp.MAX)
    most, least = int(ends[0]), -int(ends[1])
    if most != least:
        raise RuntimeError(
            f"the processes found states at nimg {least} and {most} in {out}: all nodes have to see one folder"
        )


def sum_over_processes(gradients: list[Tensor]) -> None:
    """In one message: these networks are small, and it is sent once a step."""
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, summed in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))
