"""Jobs of a trainer that is not ours: it gets its arm as a StyleGAN/EDM zip, and may make images in the end.

jobs/images/ARM-PX.zip    the arm, for all seeds; with labels ARM-PX-classes.zip
jobs/NAME/log.txt         all that the commands said
jobs/NAME/out/            what the trainer wrote; there when it is started again
jobs/NAME/trained.json    written when `train` has ended: it is not run again, should `sample` fail
jobs/NAME/samples/        the images it made
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from manifests import rundir, storage
from manifests.errors import ConfigError, RunError, SampleError
from manifests.rundir import Run
from pipelines.proof import plan, supervisor
from pipelines.proof.plan import External, Job, Proof

if TYPE_CHECKING:
    from idm_core.generators import Images

#: How often it is seen whether a command has ended.
_LOOK_SECONDS: Final = 0.2
#: Lines of the log that an error quotes.
_LAST_LINES: Final = 8
_SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".webp"})


def check_commands(name: str, trainer: External) -> None:
    """ConfigError where a preset has that name already, or a program is not there."""
    from idm_core.generators.presets import DDM_PRESETS, GAN_PRESETS

    if name in DDM_PRESETS or name in GAN_PRESETS:
        raise ConfigError(f"proof.external.{name}: a preset is called so; give it another name")
    for command in (trainer.train, trainer.sample):
        if command and "{" not in command[0] and shutil.which(command[0]) is None:
            raise ConfigError(f"proof.external.{name}: there is no program {command[0]} here")


def zip_path(run: Run, proof: Proof, job: Job) -> Path:
    """Where the images of a job's arm are for its trainer."""
    return plan.local_root(run) / "jobs" / "images" / zip_name(proof, job)


def zip_name(proof: Proof, job: Job) -> str:
    """What their file is called."""
    arm = plan.SAME_IMAGES.get(job.arm, job.arm)
    side, labelled = proof.external[job.trainer].resolution, "-classes" if proof.classes else ""
    return f"{arm}-{side}{labelled}.zip"


def write_zip(images: Images, path: Path) -> None:
    """Write an arm as a zip that NVlabs' trainers read, whole or not at all; nothing is done where it is there. Any
    process may, at once."""
    from pipelines.exports.stored_zip import StoredZip
    from pipelines.exports.stylegan import member_name, read_about
    from pipelines.images import encode_png

    about = {"images": images.fingerprint}
    if read_about(path) == about:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        staged = Path(folder) / path.name
        with staged.open("w+b") as archive, tempfile.TemporaryFile(dir=folder) as entries:
            written = StoredZip(archive, entries)
            for i, pixels in enumerate(images.pixels):
                written.add(member_name(i), encode_png(pixels))
            labels = None
            if images.labels is not None:
                labels = [[member_name(i), label] for i, label in enumerate(images.labels.tolist())]
            written.add("dataset.json", json.dumps({"labels": labels}).encode())
            written.close(storage.json_bytes(about))
        storage.publish(staged, str(path))


def learnt_from(about: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a job, as ``job.json`` has it, that its training depends on: all but how images are made in the end.

    That may be mended: a word that is wrong in `sample` does not cost days of training.
    """
    how = {key: value for key, value in about["external"].items() if key not in plan.MENDABLE}
    return {"job": about["job"], "images": about["images"], "external": how}


def train(run: Run, proof: Proof, job: Job, cwd: str, lock: int) -> None:
    """Run a job's commands to their end, in the folder ``cwd``; where one was interrupted or failed, once more.

    Args:
        lock: a file's descriptor that holds the job's folder. The commands get it too: they may outlive this process
            for some seconds, and no other trainer may begin in the same folder before they have ended.

    Raises:
        RunError: one of them failed; the message quotes what it said last. Or the images are not what was asked for.
    """
    trainer, folder = proof.external[job.trainer], job.folder(run).absolute()
    out, samples = folder / "out", folder / "samples"
    data = zip_path(run, proof, job).absolute()
    out.mkdir(parents=True, exist_ok=True)
    about, marker = storage.read_json(str(folder / "job.json")), str(folder / "trained.json")
    learnt = {"fingerprint": rundir.fingerprint(learnt_from(about))}
    classes = int(about["external"]["classes"])  # of all arms: this one may have lost all of a class
    filled: dict[str, object] = {"data": data, "out": out, "seed": job.seed, "gpus": trainer.gpus}
    filled |= {"nimg": job.nimg, "kimg": -(-job.nimg // 1000), "mimg": f"{job.nimg / 1e6:g}"}
    filled |= {"classes": classes, "cond": int(classes > 0)}
    with (folder / "log.txt").open("ab") as log:
        if not storage.exists(marker) or storage.read_json(marker) != learnt:
            _run(fill(trainer.train, filled), trainer, cwd, log, lock)
            storage.write_json(learnt, marker)
        if trainer.sample is None:
            return
        if samples.exists():  # of an attempt that was interrupted
            run.staging.mkdir(parents=True, exist_ok=True)
            samples.rename(run.staging / f"{job.name}-samples-{os.getpid()}")
        samples.mkdir()
        filled |= {"samples": samples, "count": proof.samples, "last": proof.samples - 1}
        if trainer.snapshot is not None:
            filled["snapshot"] = _newest(out, trainer.snapshot)
        _run(fill(trainer.sample, filled), trainer, cwd, log, lock)
    check_samples(samples, proof.samples)


def fill(command: Sequence[str], values: Mapping[str, object]) -> list[str]:
    """The words of a command with what belongs in its places; all other braces stay as they are."""
    return [re.sub(r"\{([a-z]+)\}", lambda place: str(values[place[1]]), word) for word in command]


def _run(command: list[str], trainer: External, cwd: str, log: IO[bytes], lock: int) -> None:
    """A command under a supervisor, which ends it when this process ends, however that is."""
    environment = dict(os.environ)
    if trainer.gpus == 0:  # Ray hides GPUs from those alone that asked for some
        environment["CUDA_VISIBLE_DEVICES"] = ""
    log.write(f"$ {' '.join(command)}\n".encode())
    log.flush()
    begun = log.tell()
    supervised = subprocess.Popen(
        [sys.executable, supervisor.__file__, *command],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=cwd,
        env=environment,
        pass_fds=[lock],
    )
    try:
        while (status := supervised.poll()) is None:
            time.sleep(_LOOK_SECONDS)  # to wait without would be deaf to Ray, which interrupts between two statements
    finally:  # cancelled, perhaps: an end of its input is what the supervisor ends by
        assert supervised.stdin is not None
        supervised.stdin.close()
        supervised.wait()
    if status:
        said = Path(log.name).read_bytes()[begun:].decode(errors="replace").strip().splitlines()[-_LAST_LINES:]
        raise RunError(f"{log.name}: {command[0]} ended with exit status {status}; it said last:\n" + "\n".join(said))


def _newest(out: Path, pattern: str) -> Path:
    found = sorted(out.glob(pattern), key=lambda path: (path.stat().st_mtime_ns, path.name))
    if not found:
        raise RunError(
            f"{out}: the trainer has ended, and there is no {pattern}; mend `snapshot`, or remove "
            f"{out.parent / 'trained.json'} to train on"
        )
    return found[-1]


def check_samples(folder: Path, count: int) -> None:
    """RunError where a folder does not hold so many images, or one of them cannot be decoded."""
    from pipelines.images import decode

    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if len(found) != count:
        raise RunError(f"{folder}: {len(found)} images are there, {count} were to be made")
    for path in found:
        try:
            decode(path.read_bytes())
        except SampleError as error:
            raise RunError(f"{path}: it cannot be decoded: {error}") from error
