"""A small proof with its jobs' folders as trainings leave them: real snapshots of tiny generators, real images."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from idm_core.generators import train
from idm_core.generators.training import TrainConfig
from manifests import rundir, storage
from manifests.rundir import Run
from pipelines.proof.measuring import Reference, Scored
from pipelines.proof.plan import Proof, declare, jobs
from pipelines.proof.samples import Rows
from pipelines.proof.scores import own_data, trained
from tests import tiny_generators

SIDES = {"tiny-ddm": 8, "tiny-gan": 8}
PROOF = Proof(
    arms=("original", "cleaned", "null"),
    trainers=("tiny-ddm", "tiny-gan"),
    seeds=2,
    nimg={"tiny-ddm": 64, "tiny-gan": 64},
    snapshots=2,
    samples=64,
)
Images = npt.NDArray[np.uint8]  # N H W 3


def rows(images: Images, path: Path) -> Rows:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, images)
    return Rows(path, rundir.fingerprint(images.tobytes().hex()), len(images))


def write_run(root: Path) -> Run:
    """A run directory with nothing in it but its configuration."""
    return rundir.create_or_open(str(root), "proof", {"dataset": {"name": "squares"}})


def write_sets(run: Run) -> tuple[list[Reference], list[Scored]]:
    """Squares as the reference; darkened ones as the original, less so as the cleaned one."""
    images, folder = tiny_generators.squares(160).pixels, Path(run.root) / "jobs" / "images"
    sets = {
        "reference": images[:80],
        "original": (images[80:] * 0.5).astype(np.uint8),
        "cleaned": (images[80:] * 0.8).astype(np.uint8),
    }
    at = {name: rows(pixels, folder / f"{name}-8.npy") for name, pixels in sets.items()}
    references = [
        Reference(name, 8, at[file])
        for name, file in (("held-out", "reference"), ("original", "original"), ("cleaned", "cleaned"))
    ]
    return references, [own_data(arm, 8, at[arm]) for arm in ("original", "cleaned")]


@cache
def _snapshots(trainer: str, seed: int, folder: Path) -> list[Path]:
    preset = {"tiny-ddm": tiny_generators.DDM, "tiny-gan": tiny_generators.GAN}[trainer]
    config = TrainConfig(preset, 64, seed=seed, warmup_nimg=64, precision="fp32", snapshot_nimg=32, save_nimg=64)
    out = folder / f"{trainer}-{seed}"
    train(tiny_generators.squares(48), config, out)
    return sorted(out.glob("snapshot-*.safetensors"))


def write_jobs(run: Run, trained_in: Path, proof: Proof = PROOF) -> None:
    """The declaration, and a folder for each job, with its snapshots."""
    declare(run, proof)
    for job in jobs(proof):
        seed = (proof.arms.index(job.arm) + job.pair) % 3  # some share a training: they take seconds each
        for path in _snapshots(job.trainer, seed, trained_in):
            storage.write_bytes(path.read_bytes(), str(job.folder(run) / path.name))


def everything(run: Run, proof: Proof = PROOF) -> tuple[list[Reference], list[Scored]]:
    references, data = write_sets(run)
    return references, [*data, *trained(run, proof, SIDES)]
