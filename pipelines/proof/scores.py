"""Figures of every snapshot of a proof, and of the arms' own data, against every reference: lines of metrics.jsonl.

What there is to measure; how it is measured is in ``measuring``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from manifests import storage
from manifests.errors import RunError
from manifests.rundir import Run
from pipelines.config import Resources
from pipelines.detectors import OpenDetector
from pipelines.proof.detectors import detectors_of
from pipelines.proof.measuring import Reference, Scored, score_sets
from pipelines.proof.metrics import DATA
from pipelines.proof.plan import SAME_IMAGES, Job, Proof, jobs, local_root
from pipelines.proof.samples import Images, Left, Made, Rows, all_rows, reference_rows, some_rows
from pipelines.proof.trainers import resolution_of


def score(run: Run, proof: Proof, resources: Resources, detectors: Sequence[OpenDetector] | None = None) -> list[str]:
    """Measure whatever is there of a proof and was not measured yet; returns the paths of what says why some failed.

    Args:
        run: the run; its jobs may be unfinished.
        proof: as declared.
        resources: actors, each of which does whole sets of images; 0: this process.
        detectors: by default those that the proof declares.

    Raises:
        ConfigError: a detector's file, an arm or the reference is missing.
        RunError: a job was trained on other images than its arm holds now.
        SourceError: the reference cannot be read.
    """
    measured_by = detectors or detectors_of(proof)
    sides = {trainer: resolution_of(proof, trainer) for trainer in proof.trainers}
    check_images(run, proof, sides)
    references, data = sets_of(run, proof, sorted(set(sides.values())))
    scored = [*data, *trained(run, proof, sides)]
    return score_sets(run, scored, references, measured_by, resources)


def check_images(run: Run, proof: Proof, resolutions: Mapping[str, int]) -> None:
    """See that every job was trained on what its arm holds now.

    A view that is decided anew moves images between the training sets and the reference: what a generator has seen
    would be what it is measured by.

    Raises:
        RunError: one was not.
    """
    from pipelines.proof.arms import training_images

    now = dict[tuple[str, int], str]()
    for job in jobs(proof):
        about, side = job.folder(run) / "job.json", resolutions[job.trainer]
        if not about.exists():
            continue
        if (job.arm, side) not in now:
            now[job.arm, side] = training_images(run, proof, job.arm, side).fingerprint
        if storage.read_json(str(about))["images"] != now[job.arm, side]:
            raise RunError(
                f"{about}: arm {job.arm} held other images when this job was trained; decide by the policy of then "
                f"again (`idm-curate select {run.root}`), or prove it in another run directory"
            )


# ---- What there is to measure


def sets_of(run: Run, proof: Proof, resolutions: Sequence[int]) -> tuple[list[Reference], list[Scored]]:
    """The references at each resolution, the headline first; and the arms' own data, as many images of each arm.

    As many, because a Frechet distance grows as the number of images falls: arms that drop some would look worse.
    """
    from pipelines.proof.arms import held_out, prepare_arm

    reference, folder = held_out(run, proof), local_root(run) / "jobs" / "images"
    references, data = list[Reference](), list[Scored]()
    for side in resolutions:
        references.append(Reference(proof.reference, side, reference_rows(run, reference, side)))
        arms = {arm: prepare_arm(run, proof, arm, side) for arm in proof.arms if arm not in SAME_IMAGES}
        for arm in ("original", "cleaned"):
            if arm in arms:
                references.append(Reference(arm, side, all_rows(arms[arm], folder / f"{arm}-{side}.npy")))
        count = min(proof.samples, *(len(images.keys) for images in arms.values()))
        data += [
            own_data(arm, side, some_rows(images, folder / f"{arm}-{side}.npy", count)) for arm, images in arms.items()
        ]
    return references, data


def own_data(arm: str, resolution: int, rows: Rows) -> Scored:
    """An arm's own data as something to measure."""
    name = f"{arm}-{DATA}-{resolution}"
    return Scored(name, arm, DATA, None, 0, resolution, rows, rows.path.with_name(f"{name}.png"))


def trained(run: Run, proof: Proof, resolutions: Mapping[str, int]) -> list[Scored]:
    """Every snapshot that is there, the jobs' last ones first, and the samples of external trainers that are done.

    Jobs of one pair are sampled with the same seed: what differs is their arm alone, and the null's training.
    """
    of_jobs = [list(_of_job(run, proof, job, resolutions[job.trainer])) for job in jobs(proof)]
    return [*(scored[-1] for scored in of_jobs if scored), *(earlier for scored in of_jobs for earlier in scored[:-1])]


def _of_job(run: Run, proof: Proof, job: Job, resolution: int) -> Iterator[Scored]:
    folder = job.folder(run)
    if job.trainer in proof.external:
        if proof.external[job.trainer].sample is not None and (folder / "done.json").exists():
            left = Left(folder / "samples", proof.samples)
            yield _scored(job, job.nimg, resolution, left, folder)
        return
    for path in sorted(folder.glob("snapshot-*.safetensors")):
        nimg = int(path.stem.removeprefix("snapshot-"))
        yield _scored(job, nimg, resolution, Made(path, job.pair, proof.samples), folder)


def _scored(job: Job, nimg: int, resolution: int, images: Images, folder: Path) -> Scored:
    grid = folder / f"samples-{nimg:010d}.png"
    return Scored(job.name, job.arm, job.trainer, job.pair, nimg, resolution, images, grid)
