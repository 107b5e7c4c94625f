"""Is what ``auto`` chooses the faster precision here? Images a second of one core, by fp32 and bf16 in turn.

    python -m tests.benchmarks.precision

Trainings of random images: what is multiplied does not matter to how long it takes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from idm_core import generators, training
from idm_core.presets import PRESETS

TURNS = 5
NIMG = 256  # of a turn
IMAGES = np.random.default_rng(0).integers(0, 256, (1_024, 32, 32, 3), dtype=np.uint8)
TENSORS = torch.from_numpy(IMAGES).permute(0, 3, 1, 2).float() / 255  # NCHW

#: Goes on with the training in a folder, by a precision, to so many images.
Train = Callable[[Path, str, int], Path]


def of_generator(name: str) -> Train:
    preset, images = generators.generator_preset(name), generators.Images(IMAGES)

    def train(out: Path, precision: str, nimg: int) -> Path:
        # A longer run has other schedules, which costs nothing.
        config = generators.TrainConfig(preset, nimg, precision=precision, save_nimg=NIMG, snapshot_nimg=10**9)
        return generators.train(images, config, out)

    return train


def of_restorer(name: str) -> Train:
    def train(out: Path, precision: str, nimg: int) -> Path:
        config = training.TrainConfig(PRESETS[name], nimg, precision=precision, perceptual=0, save_nimg=NIMG)
        return training.train(lambda i: TENSORS[i % len(TENSORS)], TENSORS[:32], config, out)

    return train


def seconds(train: Train, folder: Path, precision: str, turns: int) -> float:
    """Of the last turn, the writing of its state aside."""
    train(folder, precision, turns * NIMG)
    lines = [json.loads(line)["seconds"] for line in (folder / "stats.jsonl").read_text().splitlines()]
    return float(lines[-1] - lines[-2])


def main() -> None:
    """A line for each model: the first turn warms up."""
    torch.set_num_threads(1)
    chosen = "bf16" if training.use_bf16("auto", "cpu") else "fp32"
    print(f"auto is {chosen} on this CPU")
    for name, train in (
        ("ddm-32", of_generator("ddm-32")), ("gan-32", of_generator("gan-32")), ("small-32", of_restorer("small-32"))
    ):  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            took: dict[str, list[float]] = {"fp32": [], "bf16": []}
            for precision in took:
                train(Path(folder) / precision, precision, NIMG)
            for turn in range(2, TURNS + 2):
                for precision, values in took.items():
                    values.append(seconds(train, Path(folder) / precision, precision, turn))
            ratio = median(exact / coarse for exact, coarse in zip(took["fp32"], took["bf16"], strict=True))
            rates = ", ".join(
                f"{NIMG / median(values):.0f} images/s by {precision}" for precision, values in took.items()
            )
            print(f"{name}: bf16 is {ratio:.2f} times as fast as fp32 ({rates})")


if __name__ == "__main__":
    main()
