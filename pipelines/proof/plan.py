"""What a proof is going to compare, declared in ``jobs/proof.json`` before anything is trained; and its jobs.

jobs/proof.json                    the declaration
jobs/grown.json                    what was added to it later, and what was measured by then
jobs/images/ARM-PX.npy             an arm's images, decoded once
jobs/ARM-TRAINER-sSEED/            a job: its state, stats.jsonl, snapshots, done.json
metrics.jsonl                      figures of every snapshot
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, Field, PositiveInt, field_validator, model_validator

from manifests import rundir, storage
from manifests.errors import ConfigError, RunError
from manifests.rundir import Run
from pipelines.proof import ARMS as ARMS
from pipelines.proof.trainers import diffusion_models

ArmName = Literal["original", "cleaned", "combined", "null", "placebo", "filter", "weighted", "pristine"]

#: Of ``reference``: no path.
HELD_OUT: Final = "held-out"
#: What is filled in in the commands of an external trainer.
PLACES: Final = {
    "data": "the arm as a StyleGAN/EDM zip",
    "out": "folder that the trainer writes into; what it left there is there when it is started again",
    "seed": "the job's",
    "nimg": "images that it is to see",
    "kimg": "the same in thousands, rounded up",
    "mimg": "the same in millions",
    "gpus": "how many it has; CUDA_VISIBLE_DEVICES says which",
    "classes": "of the labels in {data}; 0: there are none",
    "cond": "1 with classes, 0 without",
    "snapshot": "newest file in {out} that `snapshot` matches; of `sample` alone",
    "samples": "folder that the images go to; of `sample` alone",
    "count": "images to be made; of `sample` alone",
    "last": "one less; of `sample` alone",
}
_OF_SAMPLE_ALONE: Final = ("snapshot", "samples", "count", "last")


#: Of an external trainer, what its images alone depend on: it may be mended while none of its jobs is done.
MENDABLE: Final = ("sample", "snapshot")


class External(BaseModel, frozen=True, extra="forbid"):
    """A trainer that is not ours: commands as lists of words, without a shell, in which ``PLACES`` are filled in."""

    train: tuple[str, ...] = Field(min_length=1, description="ends when nimg images were seen")
    sample: tuple[str, ...] | None = Field(default=None, min_length=1, description="makes images, as PNG, JPEG or WebP")
    snapshot: str | None = Field(default=None, description="glob in {out}, for example **/network-snapshot-*.pkl")
    resolution: int = Field(ge=8, description="side of the images in {data}, px")
    gpus: int = Field(default=1, ge=0)
    cpus: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _check(self) -> External:
        for name, words in (("train", self.train), ("sample", self.sample or ())):
            for place in (p for word in words for p in re.findall(r"\{([a-z]+)\}", word)):
                if place not in PLACES or (name == "train" and place in _OF_SAMPLE_ALONE):
                    known = [p for p in PLACES if name == "sample" or p not in _OF_SAMPLE_ALONE]
                    raise ValueError(f"{name}: {{{place}}} is not known; there are {', '.join(known)}")
                if place == "snapshot" and self.snapshot is None:
                    raise ValueError("sample: {snapshot} needs `snapshot`, which says what the file is called")
        return self


class Proof(BaseModel, frozen=True, extra="forbid"):
    """The declaration. All arms have the same budget, and seed k of one arm is paired with seed k of every other."""

    arms: tuple[ArmName, ...] = ("original", "cleaned", "combined", "filter", "null")
    trainers: tuple[str, ...] = Field(
        default=("ddm-32", "gan-32"), description="presets, or names of `presets` or `external`"
    )
    seeds: PositiveInt | dict[str, PositiveInt] = Field(
        default=5, description="runs of each arm and trainer; or of each trainer, 5 where it is not named"
    )
    nimg: PositiveInt | dict[str, PositiveInt] = Field(
        default=1_000_000, description="images that a job sees; or of each trainer, 1,000,000 where it is not named"
    )
    snapshots: int = Field(default=4, ge=1, description="of each job, evenly spaced; the last one makes the gain")
    classes: bool = Field(default=False, description="class-conditional, by the samples' labels")
    workers: int = Field(default=1, ge=1, description="processes that share each batch of a job, a GPU each")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        default="auto",
        description="of our own trainers; auto: bf16 where the hardware has it. Name one if nodes differ",
    )
    mirror: bool = Field(default=True, description="our own trainers see half of the images mirrored")
    compile: bool = Field(default=False, description="our own trainers' networks that make the images")
    view: str | None = Field(default=None, description="that `cleaned` and `combined` follow; none: the packed one")
    # What the arms are made with.
    severe_from: float | None = Field(default=None, ge=0, le=1, description="none: the restorer's own threshold")
    drop: float | None = Field(default=None, gt=0, lt=1, description="share that `filter` drops; none: all severe ones")
    least_sigma: float = Field(default=1.6, gt=0, description="of `weighted`, in EDM's units")
    placebo: Literal["jpeg", "sharpen"] = "jpeg"
    # What is measured.
    reference: str = Field(
        default=HELD_OUT, description="held-out: untouched good ones of the validation split; or a set"
    )
    detectors: tuple[str, ...] = Field(
        default=("auto",), description="auto: inception if its file is there, and effnet"
    )
    samples: int = Field(default=10_000, ge=2, description="images that each snapshot makes")
    # Trainers of one's own.
    presets: dict[str, dict[str, Any]] = Field(
        default={}, description="by name: `like`, one of ours, and what is otherwise, as `lr`, `batch` or `widths`"
    )
    external: dict[str, External] = {}

    @field_validator("arms", mode="before")
    @classmethod
    def _null(cls, arms: object) -> object:
        # YAML reads a bare null as nothing.
        return ["null" if arm is None else arm for arm in arms] if isinstance(arms, list | tuple) else arms

    @model_validator(mode="after")
    def _check(self) -> Proof:
        if "original" not in self.arms:
            raise ValueError("arms: every gain is over `original`; name it too")
        for name, values in (("arms", self.arms), ("trainers", self.trainers)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: one is named twice")
            if not values:
                raise ValueError(f"{name}: there are none")
        for name in self.trainers:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
                raise ValueError(f"trainers: {name!r} is no name; jobs' folders are called by it")
        tables = {"presets": self.presets, "external": self.external, "nimg": self.nimg, "seeds": self.seeds}
        for name, named in tables.items():
            if isinstance(named, dict) and (unused := sorted(set(named) - set(self.trainers))):
                raise ValueError(f"{name}.{unused[0]} is not among the trainers")
        if twice := sorted(self.presets.keys() & self.external.keys()):
            raise ValueError(f"{twice[0]} is in presets and in external")
        return self

    def nimg_of(self, trainer: str) -> int:
        """Images that each job of a trainer sees."""
        return self.nimg.get(trainer, DEFAULT_NIMG) if isinstance(self.nimg, dict) else self.nimg

    def seeds_of(self, trainer: str) -> int:
        """Runs of each arm with a trainer."""
        return self.seeds.get(trainer, DEFAULT_SEEDS) if isinstance(self.seeds, dict) else self.seeds


#: Arms with the very images of another one.
SAME_IMAGES: Final[dict[ArmName, ArmName]] = {"null": "original", "weighted": "original"}
#: Images that a job sees where the declaration says nothing.
DEFAULT_NIMG: Final = 1_000_000
#: Runs of an arm and trainer where it says nothing.
DEFAULT_SEEDS: Final = 5


@dataclass(frozen=True, slots=True)
class Job:
    """One training: an arm, a trainer and a pair's number.

    Attributes:
        pair: 0 and up; jobs of one pair and trainer differ in nothing but their arm.
        seed: of everything random in it: the pair's number, but for ``null``, whose seeds no other arm has.
    """

    arm: ArmName
    trainer: str
    pair: int
    seed: int
    nimg: int

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.trainer}-s{self.pair}"

    def folder(self, run: Run) -> Path:
        """Where it works; on storage that all nodes see."""
        return local_root(run) / "jobs" / self.name


def jobs(proof: Proof) -> Iterator[Job]:
    """All jobs, a pair of all arms after the other: who stops early has whole pairs. GANs have no ``weighted`` arm."""
    learn_above_noise = diffusion_models(proof) if "weighted" in proof.arms else ()
    for pair in range(max(map(proof.seeds_of, proof.trainers))):
        for trainer in proof.trainers:
            for arm in proof.arms if pair < proof.seeds_of(trainer) else ():
                if arm == "weighted" and trainer not in learn_above_noise:
                    continue
                seed = pair + 10_000 if arm == "null" else pair
                yield Job(arm, trainer, pair, seed, proof.nimg_of(trainer))


def local_root(run: Run) -> Path:
    """The run's folder. ConfigError where it is on an object store: trainings write in place."""
    if storage.is_remote(run.root):
        raise ConfigError(f"{run.root}: retraining needs the run directory on a file system that all nodes see")
    return storage.local_path(run.root)


def is_declared(run: Run) -> bool:
    """Whether there is a declaration."""
    return storage.exists(run.url("jobs", "proof.json"))


def declare(run: Run, proof: Proof) -> None:
    """Write the declaration down, or see that it is the one that is there. Seeds and arms may be added to it later,
    and ``MENDABLE`` be mended.

    Raises:
        ConfigError: another one was declared; the keys that differ are named.
    """
    url = run.url("jobs", "proof.json")
    declared = proof.model_dump(mode="json")
    if storage.exists(url):
        first = read(run)
        there = first.model_dump(mode="json")
        may_be = there | {"external": dict(there["external"])}
        for name in first.external.keys() & proof.external.keys():
            if not _has_done(run, first, name):
                may_be["external"][name] = mended(there["external"][name], declared["external"][name])
        if all(proof.seeds_of(trainer) >= first.seeds_of(trainer) for trainer in first.trainers):
            may_be |= {"seeds": declared["seeds"]}
        if set(first.arms) <= set(proof.arms):
            may_be |= {"arms": declared["arms"]}
        if different := rundir.differing_keys(may_be, declared):
            raise ConfigError(
                f"{url}: this run's proof was declared otherwise: {'; '.join(different)}. Keep to it, or prove it in "
                "another run directory; only `seeds` and `arms` may grow, and `sample` and `snapshot` of a trainer be "
                "mended that has no job done"
            )
        if there == declared:
            return
        _remember(run, first, proof)
    storage.write_json(declared, url)


def _remember(run: Run, first: Proof, proof: Proof) -> None:
    """Write down what was known when seeds or arms were added: who looks again and again finds a gain sooner or later.

    A line of it: ``seeds``, how many there were of the trainers that got more; ``arms``, the new ones; ``measured``.
    """
    from pipelines.proof.metrics import read_metrics

    measured = {line["job"] for line in read_metrics(run)} & {job.name for job in jobs(first)}
    seeds = {t: first.seeds_of(t) for t in first.trainers if proof.seeds_of(t) > first.seeds_of(t)}
    arms = [arm for arm in proof.arms if arm not in first.arms]
    step = {"seeds": seeds, "arms": arms, "measured": len(measured)}
    # It may be there: who was killed before the declaration was written comes here again.
    if (seeds or arms) and step not in (before := grown(run)):
        storage.write_json({"before": [*before, step]}, run.url("jobs", "grown.json"))


def grown(run: Run) -> list[dict[str, Any]]:
    """What was added to the declaration, in order, and how many of the jobs there were had been measured by then."""
    url = run.url("jobs", "grown.json")
    return list(storage.read_json(url)["before"]) if storage.exists(url) else []


def mended(there: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """An external trainer as it was written down, with what may be mended as it is now."""
    return there | {key: now[key] for key in MENDABLE}


def _has_done(run: Run, proof: Proof, trainer: str) -> bool:
    """Whether a job of a trainer is done: the others' images are made as that one's were."""
    return any((job.folder(run) / "done.json").exists() for job in jobs(proof) if job.trainer == trainer)


def read(run: Run) -> Proof:
    """The declaration. RunError where there is none."""
    try:
        return Proof.model_validate(storage.read_json(run.url("jobs", "proof.json")))
    except FileNotFoundError:
        raise RunError(f"{run.root}: no proof is declared; run `idm-curate retrain {run.root}`") from None
    except ValueError as error:
        raise RunError(f"{run.url('jobs', 'proof.json')}: {error}") from error
