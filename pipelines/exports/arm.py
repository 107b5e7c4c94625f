"""The samples of one arm of a run, shard by shard, in the order of their keys; and their bytes, checked."""

from __future__ import annotations

import contextlib
import hashlib
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from manifests import rundir, schema, shards, status, storage
from manifests.errors import ConfigError, RunError, SampleError, ShardError
from manifests.rundir import Run
from pipelines.exports.picture import Pixels, pixels_at

Row = dict[str, Any]
#: ``cleaned``: what a view decided on. ``original``: every usable image of the source, with its own bytes.
ArmName = Literal["cleaned", "original"]

_LOCATED = ["key", "shard", "status", "label", "split", *schema.names(schema.LOCATION)]
_PLACE = set(schema.names([*schema.IDENTITY, *schema.LOCATION]))


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm of a run, opened; what it holds does not change while it is open."""

    run: Run
    name: ArmName
    view: str | None  # None for the original
    fingerprint: str  # all that its samples and their columns depend on
    restored: bool  # whether the columns of the restored manifests are part of it
    _decided: shards.ParquetOfShards | None

    def samples(self, shard: str) -> list[Row]:
        """The shard's samples, by key: where their bytes lie, label and split. The failed and the dropped are none."""
        if self._decided is None:
            rows = shards.read_rows(self.run.url(rundir.SOURCE), shard, _LOCATED).to_pylist()
            return [row | {"origin": "source"} for row in rows if row["status"] != "failed"]
        return [row for row in self.decided(shard) if row["origin"] is not None]

    def decided(self, shard: str) -> list[Row]:
        """What the view says of every sample of the shard, by key: of the failed and the dropped too.

        Raises:
            ConfigError: the original has no view.
        """
        if self._decided is None:
            raise ConfigError(f"{self.run.root}: no view decides on its original")
        return sorted(self._decided.read(shard), key=lambda row: str(row["key"]))

    def described(self, shard: str, samples: Sequence[Row]) -> list[Row]:
        """These samples with every column of ``schema.CLEANED`` that is known of them."""
        known = {row["key"]: row for row in shards.read_rows(self.run.url(rundir.SOURCE), shard).to_pylist()}
        if self.restored:
            for row in shards.read_rows(self.run.url(rundir.restored(1)), shard).to_pylist():
                known[row["key"]] |= {name: value for name, value in row.items() if name not in _PLACE}
        if unknown := [row["key"] for row in samples if row["key"] not in known]:
            raise RunError(f"view {self.view}: {unknown[0]!r} is no sample of {shard}; run `verify`")
        columns = set(schema.CLEANED.names)
        return [{k: v for k, v in (known[row["key"]] | row).items() if k in columns} for row in samples]

    def check(self, shard: str, samples: Sequence[Row]) -> None:
        """See to it that the tars that these samples lie in are there, whole, as far as their markers tell.

        Raises:
            RunError: one is not; the message says what mends it.
        """
        for origin in sorted({row["origin"] for row in samples}):
            folder = rundir.FOLDER_OF_ORIGIN[origin]
            why = shards.why_not_done(self.run.url(folder), shard, self.run.stage_fingerprint(folder))
            if why is not None:
                raise RunError(f"{self.run.url(folder, shard)}: {why}; to mend it, run {_command(self.run, folder)}")

    def images(self, shard: str, samples: Sequence[Row]) -> Iterator[bytes]:
        """The image file of each sample, in order.

        Raises:
            RunError: what lies in a tar is not what its manifest says; the message says what mends it.
        """
        streams = {
            origin: shards.read_samples(
                self.run.url(folder, f"{shard}.tar"),
                [(row["offset"], row["nbytes"]) for row in samples if row["origin"] == origin],
            )
            for origin, folder in rundir.FOLDER_OF_ORIGIN.items()
        }
        for row in samples:
            try:
                data = next(streams[row["origin"]])
            except (ShardError, FileNotFoundError) as error:
                raise RunError(f"{error}; {self._remedy(row['origin'], shard)}") from error
            if hashlib.sha256(data).hexdigest() != row["output_sha256"]:
                url = self.run.url(rundir.FOLDER_OF_ORIGIN[row["origin"]], f"{shard}.tar")
                wrong = f"{url}: the bytes of {row['key']} are not those of its row"
                raise RunError(f"{wrong}; {self._remedy(row['origin'], shard)}")
            yield data

    def pixels(self, shard: str, samples: Sequence[Row], resolution: int) -> Iterator[Pixels]:
        """The image of each sample, in order: its centre square at a resolution, HWC uint8.

        Raises:
            RunError: as ``images``.
        """
        for row, data in zip(samples, self.images(shard, samples), strict=True):
            try:
                yield pixels_at(data, resolution, "center")
            except SampleError as error:
                raise RunError(f"{self.run.root}: {row['key']} cannot be decoded any more: {error}") from error

    def _remedy(self, origin: str, shard: str) -> str:
        folder = rundir.FOLDER_OF_ORIGIN[origin]
        marker = self.run.url(folder, f"{shard}.json")
        return f"to mend it, remove {marker} and run {_command(self.run, folder)}"


def _command(run: Run, folder: str) -> str:
    """The command that does a stage's missing shards again."""
    if folder != rundir.SOURCE:
        return f"`idm-curate restore {shlex.quote(run.root)}`"
    dataset = run.config["dataset"]
    source = f" --source {shlex.quote(dataset['source'])}" if dataset["source"] else ""
    command = f"idm-curate run --dataset {dataset['name']}{source} --run {shlex.quote(run.root)}"
    return f"the command that made this run again (`{command}`, with its other options)"


@contextlib.contextmanager
def opened(run: Run, name: ArmName, view: str | None) -> Iterator[Arm]:
    """Open an arm of a run. ``view`` None: the one that ``cleaned/`` was packed from, or the only one there is.

    Raises:
        ConfigError: the original has no view; or there are several, and none was named.
        RunError: nothing is decided yet, there is no such view, or it is being replaced.
    """
    candidates = rundir.restored(1)
    if name == "original":
        if view is not None:
            raise ConfigError("--arm original holds all images of the source; a --view decides on the cleaned ones")
        missing = (shards.why_not_done(run.url(candidates), s, run.stage_fingerprint(candidates)) for s in run.shards())
        restored = all(why is None for why in missing)
        parts = [rundir.SOURCE, candidates] if restored else [rundir.SOURCE]
        fingerprint = rundir.fingerprint([run.stage_fingerprint(folder) for folder in parts])
        yield Arm(run, name, None, fingerprint, restored, None)
        return
    view = view or _only_view(run)
    url = run.url("views", f"{view}.json")
    try:
        marker = storage.read_json(url)
        stream = storage.open_read(run.url("views", f"{view}.parquet"))
    except FileNotFoundError:
        there = ", ".join(status.views(run)) or "none"
        raise RunError(f"{run.root}: no view {view!r} (there are: {there}); make it with `idm-curate select`") from None
    with stream:
        if not storage.exists(url) or storage.read_json(url) != marker:
            raise RunError(f"{run.root}: view {view} is being replaced; run the same command again")
        yield Arm(run, name, view, str(marker["fingerprint"]), True, shards.ParquetOfShards(stream))


def _only_view(run: Run) -> str:
    names = list(status.views(run))
    view = status.packed_view(run)
    if view is None and len(names) > 1:
        raise ConfigError(f"{run.root} has several views: {', '.join(names)}; name one with --view")
    if view is None and not names:
        raise RunError(f"{run.root}: nothing is decided yet; run `idm-curate select {run.root}` first")
    return view or names[0]
