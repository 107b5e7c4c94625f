"""All jobs on one screen, from what each writes into its ``stats.jsonl``; without a terminal a line now and then."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from manifests.rundir import Run
from pipelines.progress import PLAIN_SECONDS
from pipelines.proof.plan import Job

if TYPE_CHECKING:
    from rich.table import Table

State = Literal["waiting", "running", "done", "failed"]
#: State of each job by its name; the driver changes it while it is shown.
States = dict[str, State]

#: Statistics that are no loss.
_NO_LOSS: Final = frozenset({"nimg", "seconds", "lr"})
#: Jobs that fit on a screen: of more, those that are done or wait are counted alone.
_MOST_ROWS: Final = 24


@contextlib.contextmanager
def shown(run: Run, jobs: Sequence[Job], states: States) -> Iterator[None]:
    """Show the jobs while the block works on them."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.live import Live

        with Live(get_renderable=lambda: table(run, jobs, states), console=Console(stderr=True), refresh_per_second=1):
            yield
        return
    ended = threading.Event()

    def say() -> None:
        while not ended.wait(PLAIN_SECONDS):
            print(line(run, jobs, states), file=sys.stderr, flush=True)

    teller = threading.Thread(target=say, daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()
        print(line(run, jobs, states), file=sys.stderr, flush=True)


def line(run: Run, jobs: Sequence[Job], states: States) -> str:
    """How far all jobs are, in words."""
    counts = Counter(states.values())
    told = [f"{counts['done']}/{len(jobs)} jobs done"]
    told += [f"{counts[state]} {state}" for state in ("running", "failed") if counts[state]]
    for job in jobs:
        if states[job.name] == "running" and (found := statistics(run, job)):
            told.append(f"{job.name} {found['nimg']:,}/{job.nimg:,} {_loss(found)} {_duration(found['left'])} left")
    return "retrain: " + "; ".join(told)


def table(run: Run, jobs: Sequence[Job], states: States) -> Table:
    """A row a job: state, images seen, images a second, loss, time left."""
    from rich.table import Table

    counts = Counter(states.values())
    found = Table(title=f"{counts['done']} of {len(jobs)} jobs done", title_justify="left")
    for name in ("job", "state"):
        found.add_column(name)
    for name in ("images", "images/s", "loss", "left"):
        found.add_column(name, justify="right")
    rows = [job for job in jobs if len(jobs) <= _MOST_ROWS or states[job.name] in ("running", "failed")]
    for job in rows[:_MOST_ROWS]:
        row, told = [job.name, states[job.name]], statistics(run, job)
        if told:
            left = _duration(told["left"]) if states[job.name] == "running" else ""
            row += [f"{told['nimg']:,} of {job.nimg:,}", f"{told['rate']:.1f}", _loss(told), left]
        found.add_row(*row)
    if hidden := len(jobs) - len(rows[:_MOST_ROWS]):
        found.caption = f"and {hidden} more: {', '.join(f'{n} {state}' for state, n in counts.items())}"
    return found


def statistics(run: Run, job: Job) -> dict[str, Any] | None:
    """The last line of a job's ``stats.jsonl``, with ``rate`` (images a second) and ``left`` (seconds) beside it."""
    try:
        text = (job.folder(run) / "stats.jsonl").read_text()
    except FileNotFoundError:  # it has not come so far, or is another's trainer
        return None
    lines = [json.loads(text_line) for text_line in text.splitlines(keepends=True)[-2:] if text_line.endswith("\n")]
    if not lines:
        return None
    last: dict[str, Any] = lines[-1]
    before = lines[0] if len(lines) == 2 else {"nimg": 0, "seconds": 0.0}
    rate = (last["nimg"] - before["nimg"]) / max(last["seconds"] - before["seconds"], 1e-3)
    return last | {"rate": rate, "left": (job.nimg - last["nimg"]) / rate}


def _loss(found: dict[str, Any]) -> str:
    return " ".join(f"{value:.3g}" for name, value in found.items() if name not in _NO_LOSS | {"rate", "left"})


def _duration(seconds: float) -> str:
    minutes = max(0, round(seconds / 60))
    return f"{minutes // 60}:{minutes % 60:02d} h" if minutes >= 60 else f"{minutes} min"
