"""The run directory: its configuration, written once; its lock; and the fingerprints that say what belongs to what."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifests import storage
from manifests.errors import RunError

# 2: perceptual hashes know mirrored copies; those of version 1 cannot be compared with them
RUN_VERSION = 2
SOURCE, CLEANED = "source", "cleaned"


def restored(round_: int) -> str:
    """The folder of a restoration round's candidates."""
    return f"restored/round{round_}"


#: ``origin`` of a sample in a view -> the folder whose tars hold its bytes.
FOLDER_OF_ORIGIN = {"source": SOURCE, "restored": restored(1)}


def fingerprint(*parts: object) -> str:
    """SHA-256 over canonical JSON: equal for equal values, whatever the order of keys."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def differing_keys(a: Any, b: Any, prefix: str = "") -> list[str]:
    """Dotted names of the keys in which two nested dicts differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        found = []
        for key in sorted(a.keys() | b.keys()):
            found += differing_keys(a.get(key), b.get(key), f"{prefix}{key}.")
        return found
    return [] if a == b else [f"{prefix.rstrip('.')} ({a!r} there, {b!r} now)"]


@dataclass(frozen=True, slots=True)
class Run:
    """An opened run directory. ``config`` is what its bytes depend on; workers and devices are not in it."""

    root: str
    config: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.config)

    def url(self, *parts: str) -> str:
        return storage.join(self.root, *parts)

    @property
    def staging(self) -> Path:
        """A local folder for what is not finished: in the run where it is local, else the machine's temporary one."""
        if storage.is_remote(self.root):
            return Path(tempfile.gettempdir()) / f"idm-curate-{fingerprint(self.root)[:16]}"
        return storage.local_path(self.root) / ".staging"

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A new, empty folder under the staging folder, gone at the end."""
        path = self.staging / uuid.uuid4().hex
        path.mkdir(parents=True)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def listing(self) -> dict[str, Any]:
        """The marker of the listing: rows, prefix, shard_size, sha256.

        Raises:
            RunError: the source has not been listed yet.
        """
        try:
            return storage.read_json(self.url(SOURCE, "listing.json"))
        except FileNotFoundError:
            raise RunError(f"{self.root}: nothing is ingested yet; run `idm-curate ingest` first") from None

    def shards(self) -> list[str]:
        """Names of all planned shards, in order."""
        listing = self.listing()
        count = -(-int(listing["rows"]) // int(listing["shard_size"]))
        return [f"{listing['prefix']}-{i:06d}" for i in range(count)]

    def stage_fingerprint(self, folder: str, *inputs: object) -> str:
        """What a stage's bytes depend on: the run's configuration, the listing, the stage, and further inputs."""
        return fingerprint(self.fingerprint, self.listing()["sha256"], folder, *inputs)

    def view_fingerprint(self, policy: dict[str, Any]) -> str:
        """What a view depends on: the restored round and the policy."""
        return fingerprint(self.stage_fingerprint(restored(1)), "view", policy)


def cleaned_fingerprint(view_marker: dict[str, Any]) -> str:
    """What the product depends on: all that the view it is packed from depends on."""
    return fingerprint(view_marker["fingerprint"], CLEANED)


def create_or_open(root: str, name: str, config: dict[str, Any]) -> Run:
    """Open a run directory, writing ``run.json`` if it is new.

    Raises:
        RunError: the directory belongs to another configuration (the keys that differ are named), or holds
            something that is no run.
    """
    url = storage.join(root, "run.json")
    if not storage.exists(url):
        foreign = [n for n in storage.list_names(root) if n not in {"run.lock", "run.log", ".staging"}]
        if foreign:
            raise RunError(
                f"{root} is no run directory (no run.json) and is not empty (it holds {foreign[0]!r}); "
                "give an empty or new directory with --run"
            )
        storage.write_json(
            {"version": RUN_VERSION, "name": name, "config": config, "fingerprint": fingerprint(config)}, url
        )
        return Run(root, config)
    run = read(root)
    different = differing_keys(run.config, json.loads(json.dumps(config)))
    if different:
        raise RunError(
            f"{root} was made with another configuration: {'; '.join(different)}. "
            "Use the same options to continue it, or another directory with --run."
        )
    return run


def read(root: str) -> Run:
    """Open an existing run directory.

    Raises:
        RunError: there is none, or its ``run.json`` cannot be understood.
    """
    try:
        stored = storage.read_json(storage.join(root, "run.json"))
        if stored["version"] != RUN_VERSION:
            raise RunError(
                f"{root}/run.json has version {stored['version']}, this program writes {RUN_VERSION}: "
                "its columns mean something else; make a new run in another directory"
            )
        run = Run(root, stored["config"])
        if stored["fingerprint"] != run.fingerprint:
            raise RunError(f"{root}/run.json was edited: its fingerprint does not match its configuration")
        return run
    except FileNotFoundError:
        raise RunError(f"{root} is no run directory: there is no run.json in it") from None
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{root}/run.json cannot be read: {error}") from error


@contextlib.contextmanager
def lock(root: str) -> Iterator[str | None]:
    """Hold the run directory for one driver. Yields a notice if the driver before this one died, else None.

    The kernel holds the lock (``flock``), so it ends with the process, however that ends. On an object store there
    is no such lock: there the caller must see to it that one driver runs.

    Raises:
        RunError: another driver is at work.
    """
    if storage.is_remote(root):
        yield None
        return
    path = storage.local_path(root) / "run.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as f:
        f.seek(0)
        holder = f.read().strip()
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{root} is in use by {holder or 'another driver'}; wait for it, or end it") from None
        f.truncate(0)
        f.write(f"pid {os.getpid()} on {socket.gethostname()}")
        f.flush()
        try:
            yield (
                f"the driver before this one ({holder}) ended without releasing the run; taken over" if holder else None
            )
        finally:
            f.truncate(0)


def empty_staging(run: Run) -> None:
    """Delete what an earlier driver left unfinished: the only place where anything is ever deleted."""
    shutil.rmtree(run.staging, ignore_errors=True)
