"""The jobs of a proof are trained: as many side by side as the cluster has room for, each resumed where it stopped."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from manifests import storage
from manifests.errors import ConfigError, CurateError, RunError
from manifests.rundir import Run
from pipelines.config import Resources
from pipelines.proof import arms, board, detectors, external, plan
from pipelines.proof.plan import External, Proof
from pipelines.proof.room import check_room, has_room, needs_of, of_a_process, warn_without_node
from pipelines.proof.trainers import resolution_of
from pipelines.proof.training import Training, check, is_done, prepare

log = logging.getLogger("idm_curate")

#: How often the driver looks whether a job has ended.
LOOK_SECONDS: Final = 1.0
#: How long jobs may take to end by themselves on Ctrl-C.
END_SECONDS: Final = 15.0
#: How long a job waits for whoever had its folder before, and of whose end the cluster may not know yet.
FREE_SECONDS: Final = 120.0

#: Where our own jobs are. On one's own machine nobody takes nodes away, and nobody needs a process to watch for it.
#: On a cluster tasks without CPUs would pile up on the driver's node, with Ray Train's controllers of 0.7 GB each.
_ALONE: Final = {"runtime_env": {"env_vars": {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}}}
_SPREAD: Final = {"scheduling_strategy": "SPREAD"}


def retrain(run: Run, proof: Proof, resources: Resources) -> list[str]:
    """Train every job that is not done, each going on where it stopped; returns the paths that say why some failed.

    First what can be checked, then the declaration, then the arms' images, once; then the jobs in the order of the
    plan. With ``resources.workers`` 0 they are done one after the other in this process; else on Ray, side by side. A
    job that fails takes no other along, and is tried again by the next call.

    Raises:
        ConfigError: the proof cannot be done as it is declared, was declared otherwise, or a job's folder belongs to
            other images or options.
        RunError: the run has not come as far as its arms need.
    """
    proof = detectors.with_detectors(run, arms.with_view(run, proof))
    check(run, proof)
    plan.declare(run, proof)
    if resources.workers != 0:
        _decode_side_by_side(run, proof, resources)
    trainings = prepare(run, proof)
    todo = [t for t in trainings if not is_done(run, t.job, t.fingerprint)]
    if not todo:
        return []
    states: board.States = {t.job.name: "waiting" if t in todo else "done" for t in trainings}
    with board.shown(run, [t.job for t in trainings], states):
        if resources.workers == 0:
            failed = _one_by_one(run, proof, todo, states)
        else:
            failed = _side_by_side(run, proof, todo, resources, states)
    # In the plan's order: who fails first is chance.
    return [str(t.job.folder(run) / "failure.json") for t in todo if t in failed]


def _decode_side_by_side(run: Run, proof: Proof, resources: Resources) -> None:
    """Have Ray decode the arms that are not there yet, and write others' trainers their zips: a large set takes one
    core an hour for each. What is there afterwards is only mapped.

    Raises:
        ConfigError, RunError, SourceError: as ``arms.prepare_arm``.
    """
    sets: dict[tuple[plan.ArmName, int], Path | None] = {}
    for job in plan.jobs(proof):
        which = plan.SAME_IMAGES.get(job.arm, job.arm), resolution_of(proof, job.trainer)
        sets.setdefault(which, None)
        if job.trainer in proof.external:
            sets[which] = external.zip_path(run, proof, job)
    folder = plan.local_root(run) / "jobs" / "images"
    todo = [
        (arm, side, archive)
        for (arm, side), archive in sets.items()
        if not (folder / f"{arm}-{side}.json").exists() or (archive is not None and not archive.exists())
    ]
    if not todo:
        return
    import ray
    from ray.exceptions import RayError, RayTaskError

    from pipelines.workers import connect

    connect(resources)
    of_a_process(proof, resources)  # what would be wrong with it is said before the hours that decoding may take
    log.info("decoding %s side by side", ", ".join(f"{arm} at {side} px" for arm, side, _ in todo))
    remote: Any = ray.remote(num_cpus=1)(_decode)
    refs = [remote.remote(run, proof, *which) for which in todo]
    try:
        while refs:  # what is done is taken out: Ray ends this process where a task is cancelled as it returns
            ready, refs = ray.wait(refs, num_returns=1)
            ray.get(ready)
    except RayTaskError as error:  # as it would have been raised in this process
        raise error.cause from error
    except RayError as error:
        raise RunError(f"{run.root}: Ray could not have the arms decoded: {error}") from error
    finally:
        _end(refs)


def _decode(run: Run, proof: Proof, arm: plan.ArmName, side: int, archive: Path | None) -> None:
    """One arm at one size, on Ray; ``archive``: the zip that it is written to as well."""
    images = arms.training_images(run, proof, arm, side)
    if archive is not None:
        external.write_zip(images, archive)


def _one_by_one(run: Run, proof: Proof, todo: Sequence[Training], states: board.States) -> list[Training]:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    failed: list[Training] = []
    for training in todo:
        states[training.job.name] = "running"
        if isinstance(training.how, External):
            error = _run_external(run, proof, training, str(Path.cwd()))
        else:
            error = attempt(run, training, partial(train, run, proof, training, device))
        _ended(training, error, states, failed)
    return failed


def _side_by_side(
    run: Run, proof: Proof, todo: Sequence[Training], resources: Resources, states: board.States
) -> list[Training]:
    """Hand the jobs to Ray, each as a task that ends with it; not more at once than there is room for."""
    import ray
    from ray.exceptions import RayError

    from pipelines.workers import PATIENCE_SECONDS, connect, is_local

    connect(resources)
    local, (cpus, gpus) = is_local(resources.address), of_a_process(proof, resources)
    needs = {t.job.name: needs_of(t, proof.workers, cpus, gpus) for t in todo}
    if local:
        check_room([t for t in todo if isinstance(t.how, External)], needs)
    waiting, running, failed = deque(todo), dict[Any, Training](), list[Training]()
    asked: dict[Any, float] = {}  # tasks of others' trainers that no node was looked for yet => since when they run
    try:
        while waiting or running:
            while waiting and has_room(waiting[0], running.values(), needs, resources.jobs_at_once, local):
                training = waiting.popleft()
                states[training.job.name] = "running"
                task: Any
                if isinstance(training.how, External):
                    # The command is the work: its CPUs and GPUs are this task's.
                    task = ray.remote(num_cpus=training.how.cpus, num_gpus=training.how.gpus)(_run_external)
                    ref = task.remote(run, proof, training, str(Path.cwd()))
                    asked[ref] = time.monotonic()
                else:
                    # Ray Train's fit blocks, so it has a task of its own, which needs nothing: the group does the work.
                    task = ray.remote(num_cpus=0, **(_ALONE if local else _SPREAD))(_fit)
                    ref = task.remote(run, proof, training, cpus, gpus, local)
                running[ref] = training
            ready, _ = ray.wait(list(running), num_returns=1, timeout=LOOK_SECONDS)
            for ref in [ref for ref, since in asked.items() if time.monotonic() - since >= PATIENCE_SECONDS]:
                del asked[ref]
                warn_without_node(running[ref].job.name, needs[running[ref].job.name])
            for ref in ready:
                training = running.pop(ref)
                asked.pop(ref, None)
                try:
                    error = ray.get(ref)
                except RayError as lost:  # the task itself, again and again, or it could not be started
                    error = _fail(run, training, f"Ray lost this job: {type(lost).__name__}: {lost}")
                _ended(training, error, states, failed)
    finally:
        _end(list(running))
    return failed


def _end(refs: Sequence[Any]) -> None:
    """Have tasks end: by themselves, so that they end what they have started, and else by force."""
    import ray

    for ref in refs:
        ray.cancel(ref)
    _, left = ray.wait(list(refs), num_returns=len(refs), timeout=END_SECONDS) if refs else ([], [])
    for ref in left:
        ray.cancel(ref, force=True)


def _fit(run: Run, proof: Proof, training: Training, cpus: int, gpus: float, local: bool) -> str | None:
    """One of our own jobs, on Ray: the task that its group belongs to."""
    from pipelines.train_distributed import fit

    out, work = training.job.folder(run), partial(train, run, proof, training)
    return attempt(run, training, partial(fit, work, out, proof.workers, cpus=cpus, gpus=gpus, local=local))


def _run_external(run: Run, proof: Proof, training: Training, cwd: str) -> str | None:
    """A job of somebody else's trainer."""

    def do() -> None:
        with _alone_in(training.job.folder(run)) as lock:
            external.train(run, proof, training.job, cwd, lock)

    return attempt(run, training, do)


def attempt(run: Run, training: Training, do: Callable[[], object]) -> str | None:
    """Do a job and mark it as done; or leave ``failure.json``, and return what went wrong."""
    folder = training.job.folder(run)
    if storage.exists(failure := str(folder / "failure.json")):
        storage.retire(failure, run.staging)
    start = time.monotonic()
    try:
        do()
        done: dict[str, Any] = {"fingerprint": training.fingerprint, "seconds": round(time.monotonic() - start, 1)}
        if not isinstance(training.how, External):
            done["snapshots"] = _snapshots(folder, training)
    except CurateError as error:
        return _fail(run, training, str(error))
    except Exception:  # the boundary: whatever it is, the other jobs go on
        return _fail(run, training, traceback.format_exc())
    storage.write_json(done, str(folder / "done.json"))
    return None


def _fail(run: Run, training: Training, error: str) -> str:
    storage.write_json({"job": training.job.name, "error": error}, str(training.job.folder(run) / "failure.json"))
    return error


def _ended(training: Training, error: str | None, states: board.States, failed: list[Training]) -> None:
    if error is None:
        states[training.job.name] = "done"
        log.info("job %s is done", training.job.name)
        return
    states[training.job.name] = "failed"
    failed.append(training)
    log.error("job %s failed: %s", training.job.name, error.strip().splitlines()[-1])


def _snapshots(folder: Path, training: Training) -> list[str]:
    """Names of all that a finished training keeps. RunError where one is gone."""
    names = sorted(path.name for path in folder.glob("snapshot-*.safetensors"))
    planned = -(-training.job.nimg // training.how.snapshot_nimg)  # type: ignore[union-attr]
    if len(names) < planned:
        raise RunError(
            f"{folder}: {len(names)} of {planned} snapshots are there, and the training is at its end; remove the "
            "folder to train it again"
        )
    return names


def train(run: Run, proof: Proof, training: Training, device: str) -> None:
    """One of our own jobs in this process, alone or as one of a group; errors become messages to the user."""
    import torch.distributed as dist

    from idm_core import generators
    from idm_core.checkpoint import CheckpointError
    from pipelines.workers import use_one_thread

    job, config = training.job, training.how
    assert not isinstance(config, External)
    if device == "cpu":
        use_one_thread()
    images = arms.training_images(run, proof, job.arm, config.preset.resolution)
    first = not dist.is_initialized() or dist.get_rank() == 0
    with _alone_in(job.folder(run)) if first else contextlib.nullcontext():
        try:
            generators.train(images, config, job.folder(run), device=device, about={"arm": job.arm, "pair": job.pair})
        except (CheckpointError, FloatingPointError) as error:
            raise RunError(str(error)) from error
        except ValueError as error:
            raise ConfigError(str(error)) from error


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[int]:
    """Hold a job's folder, by a file's descriptor: who is given it holds the folder too, until all of them have ended.
    A driver that is killed may leave a process behind on another node, for some seconds.

    Raises:
        RunError: somebody else holds it, and does not end.
    """
    deadline = time.monotonic() + FREE_SECONDS
    with (folder / "lock").open("a+") as f:
        while True:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    f.seek(0)
                    raise RunError(f"{folder} is in use by {f.read()}; wait for it, or end it") from None
                time.sleep(0.2)
        f.truncate(0)
        f.write(f"pid {os.getpid()} on {socket.gethostname()}")
        f.flush()
        yield f.fileno()
