"""What a driver says while it works: a bar on a terminal, plain lines elsewhere, and the whole of it in ``run.log``.

Between two shards it says how far the workers are into theirs: a stage calls ``tick`` once a sample, and whoever works
on the shard decides, by ``ticking``, where that goes.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from manifests import storage
from manifests.rundir import Run

log = logging.getLogger("idm_curate")

# How often plain lines say how far it is when no shard was finished meanwhile.
PLAIN_SECONDS = 30.0

_on_tick: ContextVar[Callable[[], object] | None] = ContextVar("on_tick", default=None)


def tick() -> None:
    """Another sample of the shard in work is done. Nothing depends on it, and outside of a shard it does nothing."""
    if (on_tick := _on_tick.get()) is not None:
        on_tick()


@contextlib.contextmanager
def ticking(on_tick: Callable[[], object]) -> Iterator[None]:
    """Have every ``tick`` in this block, in this thread, call ``on_tick``."""
    token = _on_tick.set(on_tick)
    try:
        yield
    finally:
        _on_tick.reset(token)


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


@dataclass(frozen=True, slots=True)
class Bar:
    """Progress over shards."""

    advance: Callable[[str], None]  # called once for every shard that is done with, with its name
    within: Callable[[float], None]  # called as often as you like: how much is done of those in work, in shards


@contextlib.contextmanager
def bar(title: str, total: int, done: int, unit: str = "shards") -> Iterator[Bar]:
    """Show progress over ``total`` shards, or whatever ``unit`` says, of which ``done`` were done before, with rate and
    time left.
    """
    start, finished, in_work = time.monotonic(), 0, 0.0
    said = start

    def pace() -> tuple[float, float]:
        """Shards a minute so far, and seconds left at that rate."""
        elapsed, worked = time.monotonic() - start, finished + in_work
        return worked / elapsed * 60, elapsed / worked * (total - done - worked)

    if not sys.stderr.isatty():

        def line(text: str) -> None:
            nonlocal said
            said = time.monotonic()
            rate, left = pace()
            told = f"{title}: {text}/{total} {unit}, {rate:.1f} a minute, {left:.0f} s left"
            print(told, file=sys.stderr, flush=True)

        def say(shard: str) -> None:
            nonlocal finished
            finished += 1
            line(str(done + finished))

        def say_within(shards: float) -> None:
            nonlocal in_work
            in_work = shards
            if shards > 0 and time.monotonic() - said >= PLAIN_SECONDS:
                line(f"{done + finished + shards:.2f}")

        yield Bar(say, say_within)
        return
    from rich.console import Console
    from rich.progress import Progress, TextColumn

    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[shards]}"))
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(title, total=total, completed=done, shards=f"{done}/{total}")

        def show(shard: str) -> None:
            nonlocal finished
            finished += 1
            text = f"{done + finished}/{total}, {pace()[0]:.1f} a minute"
            shown.update(task, completed=done + finished + in_work, shards=text)

        def show_within(shards: float) -> None:
            nonlocal in_work
            in_work = shards
            shown.update(task, completed=done + finished + shards)

        yield Bar(show, show_within)
