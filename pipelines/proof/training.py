"""A job with all that it takes: how it is trained and on what, what it will cost, and whether it is done.

jobs/NAME/job.json        what it is, and its fingerprint
jobs/NAME/...             its state, stats.jsonl and snapshots; what an external trainer has: ``external``
jobs/NAME/done.json       written last
jobs/NAME/failure.json    why it ended without; the same command tries it again
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from manifests import rundir, storage
from manifests.errors import ConfigError
from manifests.rundir import Run
from pipelines.proof import arms, external, plan
from pipelines.proof.plan import External, Job, Proof
from pipelines.proof.trainers import parameters, preset_of, resolution_of

if TYPE_CHECKING:
    from idm_core.generators import Images, TrainConfig

log = logging.getLogger("idm_curate")

#: A small model's state, written every two seconds, took a fifth of its training's time.
LEAST_SAVED_NIMG: Final = 1_000
#: Of the learning rate, at least.
WARMUP_NIMG, WARMUP_STEPS = 2_000, 60


@dataclass(frozen=True, slots=True)
class Training:
    """A job, ready to be trained.

    Attributes:
        how: a trainer of ours with its options, or a command.
        about: all that its result depends on.
    """

    job: Job
    how: TrainConfig | External
    about: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return rundir.fingerprint(self.about)


def check_trainers(proof: Proof) -> None:
    """ConfigError where a trainer does not exist, or its options do not fit it. Needs no run."""
    for trainer in proof.trainers:
        if trainer in proof.external:
            external.check_commands(trainer, proof.external[trainer])
            continue
        preset, nimg = preset_of(proof, trainer), proof.nimg_of(trainer)
        parameters(preset)
        if preset.batch % proof.workers:
            raise ConfigError(
                f"proof.workers: {proof.workers} processes cannot share {trainer}'s {preset.batch} images"
            )
        if nimg < proof.snapshots * preset.batch:
            raise ConfigError(
                f"proof.nimg: {trainer} learns from {preset.batch} images at once; {nimg} are too few for "
                f"{proof.snapshots} snapshots"
            )


def check(run: Run, proof: Proof) -> None:
    """See before any training that the trainers exist, that the arms can be made, and that the disk has room for it.

    Raises:
        ConfigError: it is not so.
    """
    check_trainers(proof)
    arms.check_arms(run, proof)
    root, planned = plan.local_root(run), _planned(proof, int(run.listing()["rows"]))
    needed = sum(max(0, size - _bytes_in(root / "jobs" / name)) for name, size in planned.items())
    free = storage.free_bytes(run.root)
    if free is not None and needed > free:
        raise ConfigError(
            f"{root}: the jobs need about {needed / 1e9:.2g} GB more, {free / 1e9:.2g} GB are free; declare fewer "
            "seeds, arms or snapshots, or use another disk"
        )


def prepare(run: Run, proof: Proof) -> list[Training]:
    """All jobs in the order of the plan, with their images decoded and each written down in its folder.

    Raises:
        ConfigError: labels are missing, or a job's folder belongs to other images or options; the keys are named.
    """
    jobs = list(plan.jobs(proof))
    sides = {trainer: resolution_of(proof, trainer) for trainer in proof.trainers}
    images: dict[tuple[str, int], Images] = {}
    for arm, side in dict.fromkeys((job.arm, sides[job.trainer]) for job in jobs):
        log.info("decoding arm %s at %d px", arm, side)
        images[arm, side] = arms.training_images(run, proof, arm, side)
    # An arm may have lost all of a class: they are all trained for the same number.
    classes = 1 + max(int(i.labels.max()) for i in images.values() if i.labels is not None) if proof.classes else 0
    found = []
    for job in jobs:
        mine = images[job.arm, sides[job.trainer]]
        how = proof.external.get(job.trainer) or _options(proof, job, classes)
        about = {"job": asdict(job), "images": mine.fingerprint}
        if isinstance(how, External):
            external.write_zip(mine, external.zip_path(run, proof, job))
            about["external"] = how.model_dump(mode="json") | {"classes": classes, "samples": proof.samples}
        else:
            about["train"] = asdict(how)
        found.append(Training(job, how, json.loads(storage.json_bytes(about))))
    for training in found:
        _claim(run, training)
    return found


def _options(proof: Proof, job: Job, classes: int) -> TrainConfig:
    from idm_core.generators import TrainConfig

    preset = preset_of(proof, job.trainer)
    return TrainConfig(
        replace(preset, batch=preset.batch // proof.workers),
        job.nimg,
        seed=job.seed,
        classes=classes,
        mirror=proof.mirror,
        accumulate=proof.workers,
        warmup_nimg=max(WARMUP_NIMG, WARMUP_STEPS * preset.batch),
        precision=proof.precision,
        compile=proof.compile,
        save_nimg=max(job.nimg // 100, LEAST_SAVED_NIMG),  # the most that a kill costs
        snapshot_nimg=-(-job.nimg // proof.snapshots),
    )


def _claim(run: Run, training: Training) -> None:
    """Write a job down, or see that the one in its folder is the same, but for what may be mended before it is done."""
    url = str(training.job.folder(run) / "job.json")
    if storage.exists(url):
        there = {key: value for key, value in storage.read_json(url).items() if key != "fingerprint"}
        may_be = there
        if isinstance(training.how, External) and not is_done(run, training.job):
            may_be = there | {"external": plan.mended(there["external"], training.about["external"])}
        if different := rundir.differing_keys(may_be, training.about):
            raise ConfigError(
                f"{url}: this job was begun otherwise: {'; '.join(different)}. Go back to that, or prove it in another "
                "run directory"
            )
        if there == training.about:
            return
    storage.write_json({"fingerprint": training.fingerprint} | training.about, url)


def is_done(run: Run, job: Job, fingerprint: str | None = None) -> bool:
    """Whether a job has ended well; with a fingerprint, whether that one has."""
    try:
        marker = storage.read_json(str(job.folder(run) / "done.json"))
    except FileNotFoundError:
        return False
    return fingerprint is None or marker["fingerprint"] == fingerprint


def described(proof: Proof, run: Run | None, images: int | None) -> list[str]:
    """What is to be trained, a line a trainer; touches nothing.

    Args:
        run: where jobs may be done already; None: there is none yet.
        images: samples of the source, where that is known.
    """
    check_trainers(proof)
    lines = []
    for trainer in proof.trainers:
        jobs = [job for job in plan.jobs(proof) if job.trainer == trainer]
        done = 0 if run is None else sum(is_done(run, job) for job in jobs)
        lines.append(
            f"{trainer}: {len(jobs)} jobs, {done} done; {jobs[0].nimg:,} images each; arms "
            f"{', '.join(dict.fromkeys(job.arm for job in jobs))}; {proof.seeds_of(trainer)} seeds"
        )
    if images is not None:
        lines.append(f"about {disk_bytes(proof, images) / 1e9:.2g} GB in jobs/ when all is done")
    return lines


def disk_bytes(proof: Proof, images: int) -> int:
    """About what ``jobs/`` takes in the end: the arms' images, states and snapshots. ``images``: samples of a run.

    Without what others' trainers write into their folders, of which nobody knows.
    """
    return sum(_planned(proof, images).values())


def _planned(proof: Proof, images: int) -> dict[str, int]:
    """The same by what it is for: names in ``jobs/``, of files or folders."""
    found: dict[str, int] = {}
    for job in plan.jobs(proof):
        arm, side = plan.SAME_IMAGES.get(job.arm, job.arm), resolution_of(proof, job.trainer)
        if (other := proof.external.get(job.trainer)) is not None:
            found[f"images/{external.zip_name(proof, job)}"] = 3 * side**2 * images
            found[f"{job.name}/samples"] = 3 * side**2 * proof.samples if other.sample else 0
        else:
            generator, all_of_them = parameters(preset_of(proof, job.trainer))
            # A state is all networks and two moments of each parameter, and the generator's average.
            found[job.name] = 4 * (generator * (proof.snapshots + 1) + 3 * all_of_them)
        found[f"images/{arm}-{side}.npy"] = 3 * side**2 * images
    return found


def _bytes_in(path: Path) -> int:
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
