"""Work for the tests of the shard loop: top-level functions, so that a worker can import them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from manifests.rundir import Run
from pipelines import progress


def open_counting(run: Run, device: str) -> Callable[[str], dict[str, Any]]:
    return partial(_count, run, device)


def _count(run: Run, device: str, shard: str) -> dict[str, Any]:
    """Leave a trace of each time that a shard is worked on, and do to this process what its name asks for."""
    traces = Path(run.root) / "traces"
    traces.mkdir(exist_ok=True)
    times = len(list(traces.glob(f"{shard}.*")))
    (traces / f"{shard}.{times}").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
    if shard.startswith("poison") or (shard.startswith("weak") and times == 0):
        os.kill(os.getpid(), signal.SIGKILL)
    if shard.startswith("raises"):
        raise OSError("the disk is on holiday")
    if shard.startswith("flaky") and times < 2:
        raise OSError("the disk is late")
    if shard.startswith("slow"):  # five samples, and then it waits for somebody to have noticed
        for _ in range(5):
            progress.tick()
        while not (traces.parent / "noticed").exists():
            time.sleep(0.01)
    while shard.startswith("pair") and len(list(traces.iterdir())) < 2:  # until another actor has begun one too
        time.sleep(0.01)
    time.sleep(0.05)
    return {"counts": {"kept_original": 1}, "device": device}


def open_broken(run: Run, device: str) -> Callable[[str], dict[str, Any]]:
    raise ValueError("no such model")
