"""What a proof's jobs need of a cluster, and whether it has room for one more."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from manifests.errors import ConfigError
from pipelines.config import Resources
from pipelines.proof.plan import External, Proof
from pipelines.proof.training import Training

log = logging.getLogger("idm_curate")

Needs = dict[str, float]  # "CPU", "GPU" => how many


def of_a_process(proof: Proof, resources: Resources) -> tuple[int, float]:
    """CPUs and GPUs of a process of our own jobs. ConfigError as ``gpus_of_a_process``, where there are such jobs."""
    from pipelines.train_distributed import gpus_of_a_process
    from pipelines.workers import is_local

    cpus = max(1, int(resources.cpus_per_worker))
    if all(trainer in proof.external for trainer in proof.trainers):
        return cpus, 0.0
    local = is_local(resources.address)
    return cpus, gpus_of_a_process(proof.workers, cpus, resources.gpus_per_worker, local=local)


def needs_of(training: Training, workers: int, cpus: int, gpus: float) -> Needs:
    """A job's: of our own as many as its processes, of another trainer what is declared."""
    if isinstance(training.how, External):
        return {"CPU": training.how.cpus, "GPU": training.how.gpus}
    return {"CPU": workers * cpus, "GPU": workers * gpus}


def check_room(trainings: Sequence[Training], needs: dict[str, Needs]) -> None:
    """ConfigError where this machine could never do one of them."""
    import ray

    there: Needs = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for training in trainings:
        for what, needed in needs[training.job.name].items():
            if needed > there.get(what, 0):
                raise ConfigError(
                    f"proof.external.{training.job.trainer}: it needs {needed:g} {what}s; this machine has "
                    f"{there.get(what, 0):g}, as Ray sees it"
                )


def warn_without_node(name: str, needs: Needs) -> None:
    """Say that a task waits for a node, where none that is there could ever take it: it may wait for ever."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    if not any(all(node.get(what, 0) >= needed for what, needed in needs.items()) for node in nodes):
        log.warning("job %s waits for a node with %g CPUs and %g GPUs; none is there", name, needs["CPU"], needs["GPU"])


def has_room(training: Training, running: Any, needs: dict[str, Needs], at_once: int | None, local: bool) -> bool:
    """Whether another job may be started. The first one always may.

    On a cluster one more may than there is room for now: a job that waits is what it grows for. ``at_once`` goes
    beyond the room there: whoever names a number gets it, and Ray has the jobs wait for their nodes.
    """
    import ray

    others = [needs[t.job.name] for t in running]
    if not others:
        return True
    if at_once is not None and (len(others) >= at_once or not local):
        return len(others) < at_once
    there: Needs = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return all(
        sum(other[what] for other in others) + (needed if local else 0) <= there.get(what, 0)
        for what, needed in needs[training.job.name].items()
    )
