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
    start, finished = time.monotonic(), 0

    def count() -> tuple[float, float]:
        """Another shard: shards a minute so far, and seconds left at that rate."""
        nonlocal finished
        finished += 1
        elapsed = time.monotonic() - start
        return finished / elapsed * 60, elapsed / finished * (total - done - finished)

    if not sys.stderr.isatty():

        def say(shard: str) -> None:
            rate, left = count()
            text = f"{title}: {done + finished}/{total} shards, {rate:.1f} a minute, {left:.0f} s left"
            print(text, file=sys.stderr, flush=True)

        yield say
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn

    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(title, total=total, completed=done, rate="")

        def show(shard: str) -> None:
            rate, _ = count()
            shown.update(task, advance=1, rate=f"{rate:.1f} shards a minute")

        yield show
