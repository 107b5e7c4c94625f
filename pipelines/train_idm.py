"""Train the restorer on photographs from folders and archives, and choose its threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from manifests.errors import ConfigError

if TYPE_CHECKING:
    from idm_core.training import TrainConfig

#: Patches that the run's own validation looks at, and that the threshold is chosen on.
VALIDATION_PATCHES: Final = 64
CALIBRATION_PATCHES: Final = 2_000
FALSE_ALARMS: Final = 0.01
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
    device: str = "cpu",
) -> Path:
    """Train a restorer, or go on where ``out`` stopped; returns the checkpoint, ready for ``load_restorer``.

    The train split of the sources is learnt from; on the validation split the threshold is chosen. A state and a
    usable checkpoint are in ``out`` every ``save_nimg`` images, so the command may be killed and given again.

    Args:
        sources: folders, zips or tars of photographs: good ones, for their damage will be taken for no damage.
        out: folder of the run.
        shares: how often each source is drawn from.
        start: a checkpoint whose weights a new run begins with.
        lpips_trunk: AlexNet's convolutions as safetensors; needed where ``config.perceptual`` is not 0.

    Raises:
        ConfigError: an option is wrong.
        SourceError: a source cannot be opened or holds too little.
    """
    import torch

    from idm_core.checkpoint import CheckpointError
    from idm_core.losses import Perceptual
    from idm_core.training import train
    from pipelines.photo_pool import PhotoPool, open_sources

    try:
        training = open_sources(sources, shares, "train")
        held_out = open_sources(sources, shares, "validation")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    side = config.preset.resolution
    pool = PhotoPool(training, side, config.seed)
    validation = PhotoPool(held_out, side, seed=0)
    data = {s.url.rsplit("/", 1)[-1]: {"photographs": len(s.entries), "share": s.share} for s in training}
    try:
        checkpoint = train(
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
    return calibrate(checkpoint, sources, shares, device=device)


def calibrate(
    checkpoint: Path,
    sources: Sequence[str],
    shares: Sequence[float] | None = None,
    *,
    to: Path | None = None,
    steps: int | None = None,
    passes: int | None = None,
    device: str = "cpu",
) -> Path:
    """Choose the threshold under which ``FALSE_ALARMS`` of clean validation patches are touched; write it down.

    Args:
        checkpoint: of a run that may still be going on; it is read once.
        sources, shares: as it was trained with.
        to: where to write the result; the checkpoint itself when None.
        steps, passes: to be written as the new defaults.
    """
    from idm_core.checkpoint import load_checkpoint, save_checkpoint
    from idm_core.restorer import Restorer
    from pipelines.photo_pool import PhotoPool, open_sources

    networks, config, sha256 = load_checkpoint(checkpoint)
    restorer = Restorer(networks, config, sha256, device)
    pool = PhotoPool(open_sources(sources, shares, "validation"), config.preset.resolution, seed=1)
    clean = [pool.patch(i).mul(255).byte().permute(1, 2, 0).numpy() for i in range(CALIBRATION_PATCHES)]
    quantile = sorted(restorer.severity(clean))[-int(FALSE_ALARMS * CALIBRATION_PATCHES)]
    threshold = max(LEAST_THRESHOLD, math.floor(10_000 * quantile) / 10_000)
    config = replace(config, threshold=threshold, steps=steps or config.steps, passes=passes or config.passes)
    return save_checkpoint(to or checkpoint, networks.state_dict(), config)
