"""Train the restorer on photographs from folders and archives, and choose its threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from manifests import storage
from manifests.errors import ConfigError, RunError

if TYPE_CHECKING:
    from idm_core.training import TrainConfig
    from pipelines.photo_pool import Source

#: Patches that the run's own validation looks at, and that the threshold is chosen on.
VALIDATION_PATCHES: Final = 64
CALIBRATION_PATCHES: Final = 2_000
FALSE_ALARMS: Final = 0.01
BROKEN: Final = 0.002
#: dB. A network that changes next to nothing would have a floor that forbids everything.
MOST_CONSISTENCY: Final = 40.0
#: 43.4 dB: whatever a network reads on clean images, nothing better than this is worth a restoration.
LEAST_THRESHOLD: Final = 0.02


def train_idm(
    sources: Sequence[str],
    out: Path,
    config: TrainConfig,
    *,
    shares: Sequence[float] | None = None,
    start: Path | None = None,
    lpips_trunk: Path | None = None,
    least_reduction: float | None = None,
    device: str = "cpu",
    workers: int = 0,
    gpus_per_worker: float | None = None,
    address: str | None = None,
) -> Path:
    """Train a restorer, or go on where ``out`` stopped; returns the checkpoint, ready for ``load_restorer``.

    The train split of the sources is learnt from; on the validation split the threshold is chosen. A state and a
    usable checkpoint are in ``out`` every ``save_nimg`` images, so the command may be killed and given again.

    Args:
        sources: folders, zips or tars of photographs: good ones, for their damage will be taken for no damage.
        out: folder of the run; with workers on several nodes, one that all of them see, as are the other paths.
        shares: how often each source is drawn from.
        start: a checkpoint whose weights a new run begins with.
        lpips_trunk: AlexNet's convolutions as safetensors; needed where ``config.perceptual`` is not 0.
        least_reduction: photographs are reduced at least by this factor, so that what they hold of damage is gone; see
            ``photo_pool.cut_patch``. 1: they are good as they are.
        device: of a training in this process, and of the choice of the threshold.
        workers: processes that share each step's batches, started by Ray Train; 0 trains in this process, without Ray.
            Each holds its own photographs. A run may go on with another number of them.
        gpus_per_worker, address: see ``train_on_ray``.

    Raises:
        ConfigError: an option is wrong.
        SourceError: a source cannot be opened or holds too little.
        RunError: the loss is no longer finite, or the workers failed again and again.
    """
    from pipelines.photo_pool import LEAST_REDUCTION

    sources = [
        source if storage.is_remote(source) else str(storage.local_path(source).absolute()) for source in sources
    ]
    out, start, lpips_trunk = out.absolute(), start and start.absolute(), lpips_trunk and lpips_trunk.absolute()
    least = LEAST_REDUCTION if least_reduction is None else least_reduction
    learn = partial(_train, sources, out, config, shares, start, lpips_trunk, least)
    if workers:
        from pipelines.train_distributed import train_on_ray

        if config.accumulate % workers:
            raise ConfigError(
                f"--workers {workers} share the {config.accumulate} batches of a step (--accumulate): "
                "that has to be a multiple of the workers"
            )
        _open(sources, shares)  # what is wrong with them is said before Ray starts
        cpus = 1 + config.data_processes
        train_on_ray(learn, out, workers, cpus_per_worker=cpus, gpus_per_worker=gpus_per_worker, address=address)
    else:
        learn(device)
    return calibrate(out / f"{config.preset.name}.safetensors", sources, shares, least_reduction=least, device=device)


def _open(sources: Sequence[str], shares: Sequence[float] | None) -> tuple[list[Source], list[Source]]:
    """The train and the validation split of the sources."""
    from pipelines.photo_pool import open_sources

    try:
        return open_sources(sources, shares, "train"), open_sources(sources, shares, "validation")
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _train(
    sources: Sequence[str],
    out: Path,
    config: TrainConfig,
    shares: Sequence[float] | None,
    start: Path | None,
    lpips_trunk: Path | None,
    least: float,
    device: str,
) -> None:
    """Train in this process, alone or as one of a group; errors become messages to the user."""
    import torch

    from idm_core.checkpoint import CheckpointError
    from idm_core.losses import Perceptual
    from idm_core.training import train
    from pipelines.photo_pool import PhotoPool

    training, held_out = _open(sources, shares)
    side = config.preset.resolution
    pool = PhotoPool(training, side, config.seed, least=least)
    validation = PhotoPool(held_out, side, seed=0, least=least)
    data = {s.url.rsplit("/", 1)[-1]: {"photographs": len(s.entries), "share": s.share} for s in training}
    try:
        train(
            pool.patch,
            torch.stack([validation.patch(i) for i in range(VALIDATION_PATCHES)]),
            config,
            out,
            start=start,
            perceptual=Perceptual(lpips_trunk) if lpips_trunk else None,
            device=device,
            usage={"trained": {"data": data}},
        )
    except CheckpointError as error:
        raise ConfigError(f"--out or --start: {error}") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except FloatingPointError as error:
        raise RunError(str(error)) from error


def calibrate(
    checkpoint: Path,
    sources: Sequence[str],
    shares: Sequence[float] | None = None,
    *,
    to: Path | None = None,
    steps: int | None = None,
    passes: int | None = None,
    least_reduction: float | None = None,
    device: str = "cpu",
) -> Path:
    """Choose the threshold and the floor of consistency on validation patches, and write them down.

    ``FALSE_ALARMS`` of clean patches lie above the threshold; ``BROKEN`` of what is restored from damaged ones lies
    under the floor.

    Args:
        checkpoint: of a run that may still be going on; it is read once.
        sources, shares, least_reduction: as it was trained with.
        to: where to write the result; the checkpoint itself when None.
        steps, passes: to be written as the new defaults.
    """
    import torch

    from idm_core.checkpoint import load_checkpoint, save_checkpoint
    from idm_core.degradations import RECIPES, degrade
    from idm_core.restorer import Restorer, to_images
    from pipelines.photo_pool import LEAST_REDUCTION, PhotoPool, open_sources

    networks, config, sha256 = load_checkpoint(checkpoint)
    restorer = Restorer(networks, config, sha256, device)
    least = LEAST_REDUCTION if least_reduction is None else least_reduction
    pool = PhotoPool(open_sources(sources, shares, "validation"), config.preset.resolution, seed=1, least=least)
    patches = torch.stack([pool.patch(i) for i in range(CALIBRATION_PATCHES)])
    quantile = sorted(restorer.severity(to_images(patches)))[-int(FALSE_ALARMS * CALIBRATION_PATCHES)]
    threshold = max(LEAST_THRESHOLD, math.floor(10_000 * quantile) / 10_000)
    config = replace(config, threshold=threshold, steps=steps or config.steps, passes=passes or config.passes)
    restorer = Restorer(networks, replace(config, consistency=0.0), sha256, device)
    kept = []
    for recipe in ("mild", "heavy"):
        some = patches[: CALIBRATION_PATCHES // 4]
        keys = [f"{recipe} {i}" for i in range(len(some))]
        results = restorer.restore(to_images(degrade(some, RECIPES[recipe], keys, seed=1)[0]), keys)
        kept += [r.consistency for r in results if r.passes]
    floor = sorted(kept)[int(BROKEN * len(kept))] if kept else 0.0
    config = replace(config, consistency=math.floor(10 * min(floor, MOST_CONSISTENCY)) / 10)
    return save_checkpoint(to or checkpoint, networks.state_dict(), config)
