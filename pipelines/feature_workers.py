"""Who looks at the parts of a set of images: this process, or Ray actors, which are told where images lie and leave
features in files.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from manifests.errors import RunError
from pipelines.config import Resources
from pipelines.detectors import Detector, OpenDetector
from pipelines.feature_sets import Part, Sampling, Work, write_part
from pipelines.workers import connect, device_of_this_worker, placement, use_one_thread


def crew(open_detector: OpenDetector, resources: Resources) -> tuple[Detector, Work, str]:
    """A detector in this process, what does the work, and the device that it does it on.

    Raises:
        ConfigError: the detector's weights are not there, or more GPUs were asked for than this machine has.
    """
    if resources.workers == 0:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        detector = open_detector(device)
        return detector, partial(here, detector), device
    detector = open_detector("cpu")
    connect(resources)
    _, gpus = placement(resources, True, 1)
    return detector, partial(on_ray, open_detector, resources), "cuda" if gpus else "cpu"


def here(detector: Detector, todo: Sequence[Part], sampling: Sampling, crop: int) -> Iterator[Part]:
    """In this process, one after the other."""
    for part in todo:
        write_part(part, detector, sampling, crop)
        yield part


def on_ray(
    open_detector: OpenDetector, resources: Resources, todo: Sequence[Part], sampling: Sampling, crop: int
) -> Iterator[Part]:
    """On actors, which Ray places, pins and revives; parts come in whatever order they are done.

    Raises:
        RunError: a part took its actor down three times, or raised; the others that are done stay done.
    """
    if not todo:
        return
    import ray
    from ray.exceptions import RayError

    count, gpus = placement(resources, True, len(todo))
    remote: Any = ray.remote(max_restarts=-1, max_task_retries=2, num_cpus=resources.cpus_per_worker, num_gpus=gpus)(
        _Actor
    )
    queue, busy = deque(todo), dict[Any, tuple[Any, Part]]()
    with contextlib.ExitStack() as stack:
        idle = [remote.remote(open_detector) for _ in range(count)]
        for actor in idle:
            stack.callback(ray.kill, actor)
        while queue or busy:
            while queue and idle:
                actor, part = idle.pop(), queue.popleft()
                busy[actor.work.remote(part, sampling, crop)] = (actor, part)
            (ready,), _ = ray.wait([*busy], num_returns=1)
            actor, part = busy.pop(ready)
            try:
                ray.get(ready)
            except RayError as error:  # the work raised, or its actor died, of whatever
                raise RunError(f"{part.path.stem}, from {part.entries[0].source_name} on: {error}") from error
            idle.append(actor)
            yield part


class _Actor:
    """Load once, look at parts."""

    def __init__(self, open_detector: OpenDetector) -> None:
        use_one_thread()
        self._detector = open_detector(device_of_this_worker())

    def work(self, part: Part, sampling: Sampling, crop: int) -> None:
        write_part(part, self._detector, sampling, crop)
