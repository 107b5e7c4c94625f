"""What a training is resumed from: networks, average and optimiser in one file; and a log cut to its length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from idm_core.checkpoint import CheckpointError, load_tensors, save_tensors

STATE: Final = "training-state.safetensors"
#: Options that may change when a run goes on: its length, and what does not touch the numbers.
FREE: Final = frozenset({"nimg", "save_nimg", "snapshot_nimg", "data_processes"})


def save_state(
    path: Path,
    networks: nn.Module,
    average: dict[str, Tensor],
    optimizer: torch.optim.Adam,
    options: dict[str, Any],
    nimg: int,
    seconds: float,
) -> None:
    """Write all that a run goes on from, with its options; the file appears under its name only complete."""
    tensors = {f"network.{k}": v for k, v in networks.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.items()}
    for name, parameter in networks.named_parameters():
        tensors |= {f"{part}.{name}": value for part, value in optimizer.state[parameter].items()}
    metadata = {"nimg": nimg, "seconds": seconds, "config": options}
    save_tensors(path, tensors, {"training": json.dumps(metadata)})


def load_state(
    path: Path,
    networks: nn.Module,
    average: dict[str, Tensor],
    optimizer: torch.optim.Adam,
    options: dict[str, Any],
) -> tuple[int, float]:
    """Fill networks, average and optimiser from a state; (0, 0) where there is none. Returns (nimg, seconds).

    Raises:
        CheckpointError: it is damaged, or of a run with other options.
    """
    if not path.exists():
        return 0, 0.0
    tensors, metadata = load_tensors(path)
    try:
        training = json.loads(metadata["training"])
        saved, wanted = training["config"], json.loads(json.dumps(options))
        differ = sorted(k for k in wanted if saved.get(k) != wanted[k] and k not in FREE)
        if differ:
            raise CheckpointError(
                f"{path} was trained with other options ({', '.join(differ)}); "
                "continue with those, or use another folder"
            )
        networks.load_state_dict({k: tensors[f"network.{k}"] for k in networks.state_dict()})
        for name, tensor in average.items():
            tensor.copy_(tensors[f"average.{name}"])
        for name, parameter in networks.named_parameters():
            moments = {part: tensors[f"{part}.{name}"] for part in ("exp_avg", "exp_avg_sq")}
            # A fused optimiser counts its steps where the parameters are.
            optimizer.state[parameter] = {"step": tensors[f"step.{name}"].to(parameter.device)} | {
                part: torch.empty_like(parameter).copy_(moment) for part, moment in moments.items()
            }
    except KeyError as error:
        raise CheckpointError(f"{path} is not a training state: {error} is missing") from error
    return int(training["nimg"]), float(training["seconds"])


def forget_after(nimg: int, stats: Path) -> None:
    """Drop the lines after the state that a run goes on from: it was killed, and will write them again."""
    lines = stats.read_text().splitlines(keepends=True) if stats.exists() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["nimg"] <= nimg]
    if kept != lines:
        staged = stats.with_name(f".{stats.name}")
        staged.write_text("".join(kept))
        staged.replace(stats)
