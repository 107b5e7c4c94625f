"""How often a shard was begun, counted on disk before the work starts, so that a shard that kills whatever touches
it (worker, node or driver) is given up in the end instead of for ever."""

from __future__ import annotations

from typing import Any

from manifests import storage
from manifests.rundir import Run

MAX_ATTEMPTS = 3


def _name(stage: str, shard: str) -> str:
    return f"{stage.replace('/', '-')}-{shard}"


def _url(run: Run, stage: str, shard: str) -> str:
    return run.url("failures", "attempts", f"{_name(stage, shard)}.json")


def count(run: Run, stage: str, shard: str) -> int:
    """Attempts begun and not ended in a commit."""
    try:
        return int(storage.read_json(_url(run, stage, shard))["begun"])
    except FileNotFoundError:
        return 0


def begin(run: Run, stage: str, shard: str) -> None:
    """Count an attempt; called by the worker before it touches the shard."""
    storage.write_json({"begun": count(run, stage, shard) + 1}, _url(run, stage, shard))


def clear(run: Run, stage: str, shard: str) -> None:
    """Forget the attempts: the shard is done, or is to be tried afresh."""
    url = _url(run, stage, shard)
    if storage.exists(url):
        storage.retire(url, run.staging)


def give_up(run: Run, stage: str, shard: str, error: str) -> str:
    """Name the shard among the failures; returns the path of the file that says why."""
    url = run.url("failures", f"{_name(stage, shard)}.json")
    storage.write_json({"stage": stage, "shard": shard, "attempts": count(run, stage, shard), "error": error}, url)
    return url


def forgive(run: Run, stage: str, shard: str) -> None:
    """Take a shard off the failures, if it is there: it is done, or is to be tried afresh."""
    clear(run, stage, shard)
    url = run.url("failures", f"{_name(stage, shard)}.json")
    if storage.exists(url):
        storage.retire(url, run.staging)


def given_up(run: Run) -> list[dict[str, Any]]:
    """All shards that are named among the failures."""
    names = storage.list_names(run.url("failures"), ".json")
    return [storage.read_json(run.url("failures", n)) for n in names]
