"""Shards handed to Ray actors: one short loop. Ray places, pins and supervises; an actor takes a shard's name and
returns a record of a few hundred bytes. Images never travel through the object store."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifests import attempts, storage
from manifests.errors import ConfigError, CurateError, RunError
from manifests.rundir import Run
from pipelines import progress
from pipelines.config import Resources

log = logging.getLogger("idm_curate")

Work = Callable[[str], dict[str, Any]]
#: Opens a stage's work on the worker: loads a model once, say. Arguments: the run, and "cpu" or "cuda".
Opener = Callable[[Run, str], Work]
#: Takes how many samples of the shards in work are done.
Watch = Callable[[int], None]

# How long nothing may happen before the user is told what is being waited for.
PATIENCE_SECONDS = 30.0
# How often the driver looks how far the workers are into their shards.
LOOK_SECONDS = 1.0
# A constructor that fails on three actors in a row will fail on the fourth.
MAX_BROKEN_STARTS = 3


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A shard that was tried three times, or that failed in a way which another try cannot mend."""

    shard: str
    error: str
    path: str


def device_of_this_worker() -> str:
    """ "cuda" where Ray assigned a GPU that torch can use (Ray makes the others invisible), else "cpu"."""
    import ray
    import torch

    return "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"


def use_one_thread() -> None:
    """Work is spread over workers, not threads: how many share a sum decides its last bits, and so a manifest's."""
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)


class ShardActor:
    """Load once, work on shards by name, count each attempt on disk before it begins."""

    def __init__(self, opener: Opener, run: Run, stage: str, uses_gpu: bool) -> None:
        use_one_thread()
        self._run, self._stage = run, stage
        self._work = telling(opener(run, device_of_this_worker() if uses_gpu else "cpu"), run, stage)

    def place(self) -> dict[str, Any]:
        """Where this actor is: process, node, and the GPUs that it can see."""
        import ray

        context = ray.get_runtime_context()
        return {
            "pid": os.getpid(),
            "node": context.get_node_id(),
            "gpus": ray.get_gpu_ids(),
            "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        }

    def work(self, shard: str) -> dict[str, Any]:
        """Do one shard; the record of what was committed. An exception comes back as a record too."""
        return attempt(self._work, self._run, self._stage, shard)


def telling(work: Work, run: Run, stage: str) -> Work:
    """The same work; meanwhile a file tells the driver how many of the shard's samples are done."""
    if storage.is_remote(run.root):  # nothing small can be told cheaply through an object store
        return work

    def told(shard: str) -> dict[str, Any]:
        path = _ticks(run, stage, shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        # A byte a sample: the driver looks at the file's length, so that nothing half-written can be read.
        with path.open("wb", buffering=0) as ticks, progress.ticking(lambda: ticks.write(b".")):
            record = work(shard)
        path.unlink()
        return record

    return told


def _ticks(run: Run, stage: str, shard: str) -> Path:
    return run.staging / "ticks" / f"{stage.replace('/', '-')}-{shard}"


def attempt(work: Work, run: Run, stage: str, shard: str) -> dict[str, Any]:
    """One counted attempt at a shard: its record, or ``{"error", "final"}``. Our own errors are final: another try
    would find the same; anything else (storage, memory) may pass."""
    attempts.begin(run, stage, shard)
    start = time.monotonic()
    try:
        record = work(shard)
    except Exception as error:  # the boundary: whatever a shard raises is told by name, and its neighbours go on
        final = isinstance(error, CurateError)
        return {"error": str(error) if final else traceback.format_exc(), "final": final}
    attempts.clear(run, stage, shard)
    return {**record, "seconds": time.monotonic() - start, "pid": os.getpid()}


def map_shards(
    run: Run,
    stage: str,
    shards: Sequence[str],
    opener: Opener,
    resources: Resources,
    *,
    uses_gpu: bool = False,
    watch: Watch | None = None,
) -> Iterator[tuple[str, dict[str, Any] | GivenUp]]:
    """Work on every shard, in whatever order they finish; yields each shard's record, or that it was given up.

    An actor that dies is replaced and its shards are done again. A shard that was begun ``attempts.MAX_ATTEMPTS``
    times without a commit is given up and named in ``failures/``; the others go on.

    Args:
        watch: told now and then how many samples are done of the shards that are in work at that time.

    Raises:
        RunError: actors cannot be started at all.
    """
    todo: deque[str] = deque()
    for shard in shards:
        if attempts.count(run, stage, shard) >= attempts.MAX_ATTEMPTS:
            yield (
                shard,
                _give_up(run, stage, shard, "it was begun three times and never ended; --retry-failed tries it again"),
            )
        else:
            todo.append(shard)
    if not todo:
        return
    if resources.workers == 0:
        use_one_thread()
        work = opener(run, "cpu")
        while todo:
            shard = todo.popleft()
            with _watched_here(watch):
                record = attempt(work, run, stage, shard)
            outcome = _judge(run, stage, shard, record, todo)
            if outcome is not None:
                yield shard, outcome
        return
    yield from _map_on_ray(run, stage, todo, opener, resources, uses_gpu, watch)


@contextlib.contextmanager
def _watched_here(watch: Watch | None) -> Iterator[None]:
    """Have a shard that is worked on in this process tell how far it is."""
    if watch is None:
        yield
        return
    samples, looked = 0, time.monotonic()

    def count() -> None:
        nonlocal samples, looked
        samples += 1
        if time.monotonic() - looked >= LOOK_SECONDS:
            watch(samples)
            looked = time.monotonic()

    with progress.ticking(count):
        yield
    watch(0)


def _judge(
    run: Run, stage: str, shard: str, record: dict[str, Any], todo: deque[str]
) -> dict[str, Any] | GivenUp | None:
    """A record is passed on, a failed attempt goes back to the queue (None) or is given up."""
    if "error" not in record:
        attempts.forgive(run, stage, shard)
        return record
    if record["final"] or attempts.count(run, stage, shard) >= attempts.MAX_ATTEMPTS:
        return _give_up(run, stage, shard, record["error"])
    todo.append(shard)
    return None


def _give_up(run: Run, stage: str, shard: str, error: str) -> GivenUp:
    return GivenUp(shard, error, attempts.give_up(run, stage, shard, error))


def connect(resources: Resources) -> None:
    """Join the cluster at ``resources.address`` or ``$RAY_ADDRESS``, or start Ray on this machine alone."""
    import ray

    if ray.is_initialized():
        return
    address = resources.address or os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(address=address)
        return
    # "local" and never "auto": the stale record of an earlier cluster breaks a plain init. The store holds records
    # only, so it may be small.
    ray.init(
        address="local",
        include_dashboard=False,
        object_store_memory=100_000_000,
        logging_level=logging.WARNING,
    )


def is_local(address: str | None) -> bool:
    """Whether this machine is all there is, and no autoscaler will enlarge it."""
    return not address and not os.environ.get("RAY_ADDRESS")


def gpus_each(wanted: float | None, *, local: bool) -> float:
    """GPUs of a worker: as many as are wanted; where nobody says, 1 if there are any.

    Raises:
        ConfigError: nobody says, and a cluster shows none. It may be one whose GPUs come when they are asked for: days
            on its head's CPUs are not what was meant.
    """
    import ray

    if wanted is not None:
        return wanted
    there = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call]
    if there < 1 and not local:
        raise ConfigError(
            "the cluster shows no GPU: say `--gpus-per-worker 1` to wait for nodes that have one, or 0 to work on CPUs"
        )
    return float(there >= 1)


def placement(resources: Resources, uses_gpu: bool, shards: int) -> tuple[int, float]:
    """How many actors, and how many GPUs each.

    Raises:
        ConfigError: this machine has not so many, or ``gpus_each``'s.
    """
    import ray

    local = is_local(resources.address)
    gpus = gpus_each(resources.gpus_per_worker, local=local) if uses_gpu else 0.0
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    if local and gpus > there.get("GPU", 0):
        raise ConfigError(
            f"{gpus:g} GPUs per worker asked for, this machine has {there.get('GPU', 0):g} as Ray sees it"
        )
    if resources.workers is not None:
        wanted = resources.workers
    elif gpus:
        wanted = int(there.get("GPU", 0) / gpus)
    else:
        wanted = int(there.get("CPU", 1) / resources.cpus_per_worker)
    return max(1, min(wanted, shards)), gpus


def _map_on_ray(
    run: Run,
    stage: str,
    todo: deque[str],
    opener: Opener,
    resources: Resources,
    uses_gpu: bool,
    watch: Watch | None,
) -> Iterator[tuple[str, dict[str, Any] | GivenUp]]:
    import ray
    from ray.exceptions import RayError, RayTaskError

    connect(resources)
    workers, gpus = placement(resources, uses_gpu, len(todo))
    # max_restarts=0: a dead actor is replaced here, where its shard is known, and never revived with a call pending.
    remote: Any = ray.remote(max_restarts=0, num_cpus=resources.cpus_per_worker, num_gpus=gpus)(ShardActor)
    starting: dict[Any, Any] = {}  # ref of place() -> actor
    idle: list[Any] = []
    busy: dict[Any, tuple[Any, str]] = {}  # ref of work() -> (actor, shard)
    broken_starts, heard = 0, time.monotonic()

    def look() -> None:
        if watch is not None:
            watch(_samples_done(run, stage, (shard for _, shard in busy.values())))

    try:
        while todo or busy:
            while todo and idle:
                actor, shard = idle.pop(), todo.popleft()
                # One in flight: a hand-over costs 2 ms against seconds a shard, and a death costs one shard.
                busy[actor.work.remote(shard)] = (actor, shard)
            for _ in range(min(workers - len(starting) - len(idle) - len(busy), len(todo))):
                actor = remote.remote(opener, run, stage, uses_gpu)
                starting[actor.place.remote()] = actor
            ready, _ = ray.wait([*starting, *busy], num_returns=1, timeout=LOOK_SECONDS)
            if not ready:
                look()
                if not busy and not idle and time.monotonic() - heard >= PATIENCE_SECONDS:
                    log.warning("%s: waiting for %g CPU and %g GPU", stage, resources.cpus_per_worker, gpus)
                    heard = time.monotonic()
                continue
            heard = time.monotonic()
            ref = ready[0]
            if ref in starting:
                actor = starting.pop(ref)
                try:
                    log.info("%s: worker at %s", stage, ray.get(ref))
                except RayError as error:
                    broken_starts += 1
                    if broken_starts >= MAX_BROKEN_STARTS:
                        raise RunError(f"{stage}: workers cannot start: {error}") from error
                    continue
                broken_starts = 0
                idle.append(actor)
                continue
            actor, shard = busy.pop(ref)
            look()
            try:
                record = ray.get(ref)
                idle.append(actor)
            except RayTaskError:  # not in the shard, of which it would be a record: no other actor would fare better
                raise
            except RayError as error:  # its actor died: Ray has errors of its own for memory and for lost nodes
                log.warning("%s: the worker at shard %s died: %s", stage, shard, error)
                if getattr(error, "preempted", False):  # the node was taken away: no fault of the shard's
                    attempts.clear(run, stage, shard)
                record = {"error": f"its worker died: {error}", "final": False}
            outcome = _judge(run, stage, shard, record, todo)
            if outcome is not None:
                yield shard, outcome
    finally:
        for actor in [*starting.values(), *idle, *(actor for actor, _ in busy.values())]:
            ray.kill(actor)


def _samples_done(run: Run, stage: str, shards: Iterable[str]) -> int:
    """Samples done of shards that are in work. A file that is not there yet, or no more, counts nothing."""
    if storage.is_remote(run.root):
        return 0
    return sum(storage.size(str(_ticks(run, stage, shard))) or 0 for shard in shards)
