"""What a run directory says of itself: shards done per stage, samples per status, failures. Reads markers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from manifests import attempts, rundir, shards, storage
from manifests.rundir import Run


@dataclass(frozen=True, slots=True)
class StageStatus:
    """One stage's progress. ``counts`` are samples by status over the shards that are done."""

    stage: str
    done: int
    planned: int
    counts: dict[str, int]

    @property
    def complete(self) -> bool:
        return self.done == self.planned


def shard_stages(run: Run) -> list[tuple[str, str | None]]:
    """The folders that hold one shard per source shard, with the fingerprint that each one's markers must carry."""
    folders: list[tuple[str, str | None]] = [
        (folder, run.stage_fingerprint(folder)) for folder in (rundir.SOURCE, rundir.restored(1))
    ]
    view = packed_view(run)
    cleaned = None
    if view is not None:
        try:
            cleaned = rundir.cleaned_fingerprint(storage.read_json(run.url("views", f"{view}.json")))
        except FileNotFoundError:
            cleaned = "its view is missing"
    return [*folders, (rundir.CLEANED, cleaned)]


def packed_view(run: Run) -> str | None:
    """The name of the view that ``cleaned/`` was last packed from, or None."""
    for shard in run.shards():
        try:
            return str(storage.read_json(run.url(rundir.CLEANED, f"{shard}.json"))["view"])
        except FileNotFoundError:
            continue
    return None


def stages(run: Run) -> Iterator[StageStatus]:
    """Progress of each stage that works shard by shard, in order."""
    planned = run.shards()
    for folder, fingerprint in shard_stages(run):
        url = run.url(folder)
        done = [s for s in planned if shards.why_not_done(url, s, fingerprint) is None]
        counts: Counter[str] = Counter()
        for shard in done:
            counts.update(storage.read_json(storage.join(url, f"{shard}.json"))["counts"])
        yield StageStatus(folder, len(done), len(planned), dict(sorted(counts.items())))


def digest(run: Run) -> str:
    """Changes with anything that a stage committed or gave up: what a report is of.

    Which shards are there, and the fingerprint of their stage: what is in them follows from it. So a run of any size
    costs a listing of each stage's folder, and not one read of a marker.
    """
    there = [(fp, storage.list_names(run.url(folder), ".json")) for folder, fp in shard_stages(run)]
    names = storage.list_names(run.url("views"), ".json")
    chosen = [storage.read_json(run.url("views", n)) for n in names]
    # Lines of a proof are only ever added to; what is replaced is small.
    lines = storage.size(run.url("metrics.jsonl"))
    replaced = (run.url(name) for name in ("jobs/proof.json", "influence.json", "balance.json"))
    made = [storage.read_json(url) for url in replaced if storage.exists(url)]
    proved = [lines, *made] if lines or made else []
    return rundir.fingerprint(run.listing(), there, chosen, attempts.given_up(run), *proved)


def views(run: Run) -> dict[str, dict[str, int]]:
    """Samples by status of each view that was selected."""
    names = storage.list_names(run.url("views"), ".json")
    return {n.removesuffix(".json"): storage.read_json(run.url("views", n))["counts"] for n in names}


def describe(run: Run) -> tuple[str, bool]:
    """The whole status as text, and whether all of it is done."""
    listing = run.listing()
    lines = [f"{run.root}: {listing['prefix']}, {listing['rows']} samples, fingerprint {run.fingerprint[:12]}"]
    complete = True
    for stage in stages(run):
        complete &= stage.complete
        counts = ", ".join(f"{n} {status}" for status, n in stage.counts.items())
        lines.append(f"  {stage.stage:<16} {stage.done}/{stage.planned} shards  {counts}")
    for name, counts_of_view in views(run).items():
        lines.append(f"  {'views/' + name:<16} " + ", ".join(f"{n} {s}" for s, n in counts_of_view.items()))
    if names := storage.list_names(run.url("jobs"), ""):
        begun = [n for n in names if storage.exists(run.url("jobs", n, "job.json"))]
        done = sum(storage.exists(run.url("jobs", n, "done.json")) for n in begun)
        failed = [n for n in begun if storage.exists(run.url("jobs", n, "failure.json"))]
        complete &= done == len(begun)
        lines.append(f"  {'jobs':<16} {done}/{len(begun)} done" + (f"; failed: {', '.join(failed)}" if failed else ""))
    for problem in listing["problems"]:
        lines.append(f"  source: {problem}")
    for failure in attempts.given_up(run):
        complete = False
        first_line = str(failure["error"]).strip().splitlines()[-1]
        lines.append(f"  given up: {failure['stage']} {failure['shard']}: {first_line}")
    return "\n".join(lines), complete
