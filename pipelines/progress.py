"""What a driver says while it works: a bar on a terminal, plain lines elsewhere, and the whole of it in ``run.log``."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator

from manifests import storage
from manifests.rundir import Run

log = logging.getLogger("idm_curate")


@contextlib.contextmanager
def logged_to(run: Run) -> Iterator[None]:
    """Append the log to the run's ``run.log`` (on this machine's disk only: an object store cannot append)."""
    if storage.is_remote(run.root):
        yield
        return
    handler = logging.FileHandler(storage.local_path(run.root) / "run.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


@contextlib.contextmanager
def bar(title: str, total: int, done: int) -> Iterator[Callable[[str], None]]:
    """Progress over shards with rate and time left; the yielded function is called once a shard with its name."""
    if not sys.stderr.isatty():
        start, finished = time.monotonic(), 0

        def say(shard: str) -> None:
            nonlocal finished
            finished += 1
            elapsed = time.monotonic() - start
            left = elapsed / finished * (total - done - finished)
            print(
                f"{title}: {done + finished}/{total} shards, {finished / elapsed * 60:.1f} a minute, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

        yield say
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(title, total=total, completed=done)
        yield lambda shard: shown.advance(task)
