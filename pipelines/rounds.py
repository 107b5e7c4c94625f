"""Extrinsic iteration: train on a raw set, clean it through the gates, train on, until a held-out set says stop.

    OUT/round1/                training on the raw set
    OUT/round1/cleaned/        a run: the raw set, cleaned by round 1's model; views default policy and ``anchor``
    OUT/round2/                training that begins with round 1's weights, on that view; and so on
    OUT/rounds.jsonl           a line for each round: scores, diversity, the decision
    OUT/<preset>.safetensors   the best round's model, calibrated

Every round cleans the raw set itself, so errors do not pile up, and trains with a share of samples that nothing ever
touched: models that are fed their own output alone lose quality and diversity round by round (arXiv 2307.01850).
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from scipy.stats import t as student

from manifests import storage
from manifests.errors import RunError
from pipelines import config as configuration
from pipelines.photo_pool import PhotoPool, open_sources
from pipelines.query_view import save_view
from pipelines.run import execute, opened, resolve
from pipelines.train_idm import calibrate, train_idm

if TYPE_CHECKING:
    from idm_core.losses import Perceptual
    from idm_core.training import TrainConfig

log = logging.getLogger("idm_curate")
Scores = np.ndarray[Any, np.dtype[np.float64]]

#: Patches of the held-out set, and of the diversity guard.
SCORED_PATCHES: Final = 256
GUARD_PATCHES: Final = 512
SCORE_SEED: Final = 77
STAGES: Final = ("ingest", "restore", "select")


@dataclass(frozen=True, slots=True)
class Rounds:
    """Options of the iteration.

    Attributes:
        most: rounds at the most.
        nimg: images that each round after the first is trained on.
        clean_above: severity from which on the training set's own samples are restored. Lower than one would choose for
            use: a model that was told that a dirty set is clean reads its dirt as half of what it is.
        policy: what decides on the candidates.
        anchor: share of the samples, those of the least severity among the untouched, that the anchor is made of.
        anchor_share: share of the training patches that come from the anchor.
        confidence: one-sided, with which a round has to be better than the one before for another to be begun.
        least_diversity: ratio of the variance of features of the cleaned set to that of the same samples raw; a
            restorer that makes all faces alike lowers it.
        least_reduction: as in ``photo_pool.cut_patch``; 1: photographs as they are, their dirt with them.
    """

    most: int = 5
    nimg: int = 50_000
    clean_above: float = 0.2
    policy: str = "strict"
    anchor: float = 0.25
    anchor_share: float = 0.25
    confidence: float = 0.95
    least_diversity: float = 0.8
    least_reduction: float = 1.0


Stop = Literal["no_gain", "diversity", "rounds"]


@dataclass(frozen=True, slots=True)
class Round:
    """What is known of one round.

    Attributes:
        score: mean over the held-out patches with planted damage, after restoration: LPIPS, or where there is no
            trunk root mean square error; less is better.
        better_by: mean improvement over the round before, with the half-width of its one-sided interval.
        diversity: see ``Rounds.least_diversity``, of the set that this round was trained on.
        counts: samples by status in that set.
        stop: why no further round was begun; None if one was.
    """

    number: int
    checkpoint: str
    score: float
    better_by: float | None = None
    uncertainty: float | None = None
    diversity: float | None = None
    counts: dict[str, int] | None = None
    stop: Stop | None = None


def train_rounds(
    source: str,
    out: Path,
    config: TrainConfig,
    rounds: Rounds,
    *,
    start: Path | None = None,
    lpips_trunk: Path | None = None,
    device: str = "cpu",
    workers: int = 0,
    gpus_per_worker: float | None = None,
    address: str | None = None,
) -> Path:
    """Train rounds until one is no better; returns the best one's checkpoint. The same call again continues.

    Args:
        source: the raw set, a folder, zip or tar; dirty, but most of it better than its damaged copies.
        out: folder of all rounds.
        config: of round 1; later ones take its options, without the stages of a beginning.
        workers, gpus_per_worker, address: of trainings and of the runs that clean; 0 workers are this process.

    Raises:
        ConfigError, SourceError, RunError: as training and runs do.
    """
    from idm_core.losses import Perceptual

    resources = {"workers": workers, "gpus_per_worker": gpus_per_worker, "address": address}
    train: dict[str, Any] = {
        "lpips_trunk": lpips_trunk, "device": device, "least_reduction": rounds.least_reduction, **resources,
    }  # fmt: skip
    later = replace(config, nimg=rounds.nimg, perceptual_after=0, self_after=0)
    perceptual = Perceptual(lpips_trunk).to(device) if lpips_trunk else None
    out = out.absolute()

    checkpoint = train_idm([source], out / "round1", config, start=start, **train)
    # What round 1 reads says which samples are good enough to plant damage in; all rounds are scored on those.
    clean(source, out / "round1" / "cleaned", checkpoint, rounds, resources)
    held_out = held_out_patches(out / "round1" / "cleaned", config.preset.resolution, rounds)
    history: list[Round] = []
    scores: list[Scores] = []
    diversity: float | None = None
    counts: dict[str, int] | None = None
    for number in range(1, rounds.most + 1):
        root = out / f"round{number}" / "cleaned"
        scores.append(score(checkpoint, held_out, perceptual, device))
        this = Round(
            number, str(checkpoint.relative_to(out)), float(scores[-1].mean()), diversity=diversity, counts=counts
        )
        if number > 1:
            better, uncertainty = gain(scores[-2], scores[-1], rounds.confidence)
            this = replace(this, better_by=better, uncertainty=uncertainty)
            if better <= uncertainty:
                this = replace(this, stop="no_gain")
        if this.stop is None and number == rounds.most:
            this = replace(this, stop="rounds")
        if this.stop is None:
            counts = clean(source, root, checkpoint, rounds, resources)  # of round 1: done already
            diversity = diversity_kept(source, root, config.preset.resolution, rounds, device)
            if diversity < rounds.least_diversity:
                this = replace(this, stop="diversity")
        history.append(this)
        _write(out / "rounds.jsonl", history)
        log.info("round %d: score %.4f; %s", number, this.score, this.stop or "goes on")
        if this.stop is not None:
            break
        views = [str(root / "views" / f"{name}.parquet") for name in (_view_of(rounds), "anchor")]
        checkpoint = train_idm(
            views,
            out / f"round{number + 1}",
            later,
            shares=[1 - rounds.anchor_share, rounds.anchor_share],
            start=checkpoint,
            **train,
        )
    best = min(history, key=lambda r: r.score)
    final = out / f"{config.preset.name}.safetensors"
    shutil.copyfile(out / best.checkpoint, staged := final.with_name(f".{final.name}"))
    staged.replace(final)
    anchor = str(out / "round1" / "cleaned" / "views" / "anchor.parquet")
    return calibrate(final, [anchor], device=device, least_reduction=rounds.least_reduction)


def clean(source: str, root: Path, checkpoint: Path, rounds: Rounds, resources: dict[str, Any]) -> dict[str, int]:
    """Clean the raw set with a round's model, as a run of its own with an ``anchor`` view; samples by status.

    Raises:
        RunError: shards were given up.
    """
    options = {
        "dataset.name": "folder",
        "dataset.source": source,
        "restore.restorer": str(checkpoint),
        "restore.threshold": rounds.clean_above,
        "policy": rounds.policy,
        **{f"resources.{name}": value for name, value in resources.items()},
    }
    settings = resolve(configuration.load(None, (), options), STAGES, str(root))
    with opened(str(root), "rounds", settings) as run:
        outcome = execute(run, settings, STAGES)
    if outcome.failures:
        raise RunError(f"{root}: {len(outcome.failures)} shards were given up; the first: {outcome.failures[0]}")
    untouched = "status = 'kept_original' AND severity IS NOT NULL"
    save_view(
        run,
        "anchor",
        f"SELECT key FROM samples WHERE {untouched} AND severity <= "
        f"(SELECT quantile_cont(severity, {rounds.anchor}) FROM samples WHERE severity IS NOT NULL)",
        _view_of(rounds),
    )
    marker = storage.read_json(run.url("views", f"{_view_of(rounds)}.json"))
    return dict(marker["counts"])


def _view_of(rounds: Rounds) -> str:
    from pipelines.select import load_policy

    return load_policy(rounds.policy).name


def held_out_patches(root: Path, side: int, rounds: Rounds) -> Any:
    """Patches of the validation split's best samples, N3HW in [0, 1]: damage is planted in them to score the rounds."""
    import torch

    anchor = open_sources([str(root / "views" / "anchor.parquet")], None, "validation")
    pool = PhotoPool(anchor, side, SCORE_SEED, least=rounds.least_reduction)
    return torch.stack([pool.patch(i) for i in range(SCORED_PATCHES)])


def score(checkpoint: Path, truth: Any, perceptual: Perceptual | None, device: str) -> Scores:
    """Distance of each patch to its truth after mild or heavy damage, in turns, and one pass; less is better."""
    import torch

    from idm_core import load_restorer
    from idm_core.degradations import RECIPES, degrade
    from idm_core.restorer import to_images, to_tensor

    keys = [str(i) for i in range(len(truth))]
    y = truth.clone()
    for offset, recipe in enumerate(("mild", "heavy")):
        y[offset::2] = degrade(truth[offset::2], RECIPES[recipe], keys[offset::2], SCORE_SEED)[0]
    images = to_images(y)
    restorer = load_restorer(checkpoint, device)
    restored = restorer.one_pass(images, keys, restorer.severity(images), restorer.config.steps)
    x = to_tensor(restored)
    with torch.inference_mode():
        if perceptual is not None:
            pairs = zip(torch.split(x, 32), torch.split(truth, 32), strict=True)
            distance = torch.cat([perceptual(a.to(device), b.to(device)) for a, b in pairs])
        else:
            distance = (x - truth).square().mean(dim=(1, 2, 3)).sqrt()
    found: Scores = distance.double().cpu().numpy()
    return found


def gain(before: Scores, after: Scores, confidence: float) -> tuple[float, float]:
    """Mean improvement over the same patches, and the half-width of its one-sided interval (paired, Student's t)."""
    difference = before - after
    error = difference.std(ddof=1) / len(difference) ** 0.5
    return float(difference.mean()), float(student.ppf(confidence, len(difference) - 1) * error)


def diversity_kept(source: str, root: Path, side: int, rounds: Rounds, device: str) -> float:
    """Total variance of EfficientNet-lite0's features over patches of the cleaned set, by that of the same ones raw."""
    import torch

    from idm_core.restorer import to_images
    from pipelines.detectors import EfficientNetLite0

    [cleaned] = open_sources([str(root / "views" / f"{_view_of(rounds)}.parquet")], None, "train")
    [raw] = open_sources([source], None, "train")
    names = {entry.source_name for entry in cleaned.entries}
    raw = replace(raw, entries=tuple(entry for entry in raw.entries if entry.source_name in names))
    detector = EfficientNetLite0(device, side=96)
    variances = []
    for source_of_patches in (cleaned, raw):
        pool = PhotoPool([source_of_patches], side, SCORE_SEED, least=rounds.least_reduction)
        patches = to_images(torch.stack([pool.patch(i) for i in range(GUARD_PATCHES)]))
        variances.append(float(detector(np.stack(patches)).astype(np.float64).var(axis=0).sum()))
    return variances[0] / variances[1]


def _write(path: Path, history: Sequence[Round]) -> None:
    staged = path.with_name(f".{path.name}")
    staged.write_text("".join(json.dumps(asdict(r)) + "\n" for r in history), encoding="utf-8")
    staged.replace(path)
