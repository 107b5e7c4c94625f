"""A training spread over processes by Ray Train: one ``torch.distributed`` group, one GPU each where there are any."""

from __future__ import annotations

import logging
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from manifests.errors import ConfigError, CurateError, RunError
from pipelines.config import Resources
from pipelines.workers import connect, gpus_each, is_local

if TYPE_CHECKING:
    from ray.train.v2.torch.torch_trainer import TorchTrainer

log = logging.getLogger("idm_curate")

#: How many times a group that lost a process is started again. Nodes that are taken away do not count.
MAX_FAILURES: Final = 3


def train_on_ray(
    work: Callable[[str], object],
    out: Path,
    workers: int,
    *,
    cpus_per_worker: int = 1,
    gpus_per_worker: float | None = None,
    address: str | None = None,
    max_failures: int = MAX_FAILURES,
) -> None:
    """Run ``work(device)`` in every process of a group (nccl on GPUs, else gloo) until all have returned.

    When a process dies or raises, all of them are started again and ``work`` has to go on from what it left in
    ``out``. An error of our own is final: another try would find the same.

    Args:
        work: a function that the workers can import, or a partial of one; paths in it are absolute, for the workers are
            in another folder. The device is "cpu", "cuda:0" and so on.
        out: folder that ``work`` writes into; on storage that all nodes see. Ray Train itself leaves nothing there.
        workers: processes in the group.
        cpus_per_worker: for the process and those that make its data.
        gpus_per_worker: 1 or 0; by default 1 where the cluster has GPUs. A process alone may have a part of one.
        address: a running Ray cluster; by default ``$RAY_ADDRESS``, else this machine.
        max_failures: restarts before it is given up.

    Raises:
        ConfigError: the options are wrong, this machine has not so many CPUs or GPUs, or ``gpus_each``'s.
        CurateError: whatever ``work`` raised of these.
        RunError: the group failed too often; the message is the first failing worker's.
        KeyboardInterrupt: Ctrl-C; the group was ended.
    """
    if workers < 1:
        raise ConfigError(f"--workers {workers}: a group has at least one process")
    connect(Resources(workers=workers, address=address))
    local = is_local(address)
    gpus = gpus_of_a_process(workers, cpus_per_worker, gpus_per_worker, local=local)
    fit(work, out, workers, cpus=cpus_per_worker, gpus=gpus, local=local, max_failures=max_failures)


def fit(
    work: Callable[[str], object],
    out: Path,
    workers: int,
    *,
    cpus: int,
    gpus: float,
    local: bool,
    max_failures: int = MAX_FAILURES,
) -> None:
    """As ``train_on_ray``, where Ray is there and there is room: in a driver, or in a task of its own, of which several
    may run at the same time. A task that is cancelled, or whose driver ends, takes its group along.
    """
    out.mkdir(parents=True, exist_ok=True)

    def process() -> None:
        from ray.train.torch import get_device

        if not out.is_dir():
            raise RunError(f"{out} is not there on {socket.gethostname()}: all nodes have to see this folder")
        work(str(get_device()))

    resources = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    # Ray Train's own records go to a folder that ends with the training; the state that counts is in `out`.
    with tempfile.TemporaryDirectory(prefix="idm-curate-") as records:
        _fit(_trainer(process, workers, resources, records, max_failures, local), max_failures)


def gpus_of_a_process(workers: int, cpus: int, wanted: float | None, *, local: bool) -> float:
    """1, 0, or the part of one that a group of one process asks for.

    Raises:
        ConfigError: it is another number; or this machine, which no autoscaler will enlarge, has not enough for all; or
            ``gpus_each``'s.
    """
    import ray

    if wanted not in (None, 0, 1) and not (workers == 1 and wanted < 1):
        raise ConfigError(f"--gpus-per-worker {wanted:g}: a process trains on one whole GPU, or on none (0)")
    gpus = gpus_each(wanted, local=local)
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for what, needed in (("CPU", workers * cpus), ("GPU", workers * gpus)):
        if local and needed > there.get(what, 0):
            raise ConfigError(
                f"--workers {workers} need {needed:g} {what}s; this machine has {there.get(what, 0):g}, as Ray sees it"
            )
    return gpus


def _trainer(
    process: Callable[[], None], workers: int, resources: dict[str, float], records: str, max_failures: int, local: bool
) -> TorchTrainer:
    # ray.train's own names, which to a type checker are those of its first version.
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2.api.callback import UserCallback
    from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.v2.torch.torch_trainer import TorchTrainer

    class OwnErrorsAreFinal(UserCallback):
        """Is told of failed workers on Ray Train's controller; what it raises there is not tried again."""

        def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
            error = first_failure(worker_exceptions)
            if isinstance(error, CurateError):
                raise error
            log.warning("a process of the training failed: %s: %s", type(error).__name__, str(error).partition("\n")[0])

    class LocalTrainer(TorchTrainer):
        """Without the actor that outlives a controller to clean up: here all ends with this process. It asks the
        dashboard once a second, and warns each time that there is none."""

        def _create_default_callbacks(self) -> list[Any]:
            return [c for c in super()._create_default_callbacks() if not isinstance(c, PlacementGroupCleanerCallback)]

    return (LocalTrainer if local else TorchTrainer)(
        process,
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu="GPU" in resources, resources_per_worker=dict(resources)
        ),
        run_config=RunConfig(
            name="train-idm",
            storage_path=records,
            failure_config=FailureConfig(max_failures=max_failures),
            callbacks=[OwnErrorsAreFinal()],
            logging_config=LoggingConfig("WARNING"),
        ),
    )


def _fit(trainer: TorchTrainer, max_failures: int) -> None:
    """``trainer.fit()``, with errors of our own and SIGINT handled as before it."""
    from ray.exceptions import RayActorError
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit()
    except SystemExit as stopped:  # how Ray Train ends the program on Ctrl-C, with exit status 0
        raise KeyboardInterrupt from stopped
    except WorkerGroupError as error:
        first = first_failure(error.worker_failures)
        raise RunError(
            f"the training failed, after {max_failures} restarts: {type(first).__name__}: {first}"
        ) from error
    except ControllerError as error:
        failure = error.controller_failure
        if isinstance(failure, CurateError):
            raise failure from error
        raise RunError(f"Ray Train failed with {type(failure).__name__}: {failure}") from error
    except RayActorError as error:
        raise RunError(f"Ray Train's controller died: {error}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


def first_failure(failures: Mapping[int, Exception]) -> Exception:
    """The failure that is behind the others: an error of our own, else a death, else the lowest rank's.

    When a process dies, the others fail too: their connection to it is closed.
    """
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    def order(rank: int) -> tuple[bool, bool, int]:
        error = failures[rank]
        return not isinstance(error, CurateError), not isinstance(error, WorkerHealthCheckFailedError), rank

    return failures[min(failures, key=order)]
