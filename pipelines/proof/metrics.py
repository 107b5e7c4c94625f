"""``metrics.jsonl``: a line a snapshot, detector and reference. It is only ever added to, a whole line at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from manifests.errors import RunError
from manifests.rundir import Run
from pipelines.proof.plan import local_root

#: What a line of an arm's own data says its trainer is.
DATA: Final = "data"
#: Of which images a line is, and what they were measured by: of lines that agree in these the last one counts.
_OF = ("job", "nimg", "resolution", "detector", "reference")


def metrics_path(run: Run) -> Path:
    """Where the lines are."""
    return local_root(run) / "metrics.jsonl"


def read_metrics(run: Run) -> list[dict[str, Any]]:
    """All lines that count, in the order of their first appearance; none where nothing was measured.

    A last line without an end is what a kill left: it is as if it were not there.

    Raises:
        RunError: a line in the middle is no line of ours.
    """
    path = metrics_path(run)
    try:
        whole = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for number, text in enumerate(whole, 1):
        try:
            line = json.loads(text)
            found[tuple(line[name] for name in _OF)] = line
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path}, line {number}: {error!r}; remove that line, it will be measured again") from error
    return list(found.values())


def append_metrics(run: Run, lines: Iterable[Mapping[str, Any]]) -> None:
    """Add lines, after cutting off what a kill left of the last one. For the driver, which holds the run's lock."""
    path = metrics_path(run)
    lines = list(lines)
    if not lines:
        return
    data = b"".join(json.dumps(line, sort_keys=True, allow_nan=False).encode() + b"\n" for line in lines)
    with path.open("ab+") as f:
        end = f.seek(0, os.SEEK_END)
        f.seek(0)
        whole = f.read().rfind(b"\n") + 1
        if whole < end:
            f.truncate(whole)
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
