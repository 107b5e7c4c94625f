"""What a run says of itself changes when the run does, and costs little to ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from manifests import attempts, rundir, status, storage
from tests.report_fixture import POLICY, write_run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three shards; each test changes it in its own way and back."""
    return write_run(tmp_path_factory.mktemp("status") / "run", count=6, size=16, shard_size=2)


def test_the_digest_changes_with_whatever_is_committed_or_given_up(root: Path) -> None:
    run = rundir.read(str(root))
    first = status.digest(run)
    assert status.digest(run) == first
    found = {first}
    for folder in ("source", "restored/round1", "cleaned"):
        marker = root / folder / "sample-000001.json"
        content = marker.read_bytes()
        marker.unlink()
        found.add(status.digest(run))
        marker.write_bytes(content)
    url = run.url("views", "default.json")
    view = storage.read_json(url)
    policy = {**POLICY, "damaged": "drop"}
    storage.write_json(view | {"policy": policy, "fingerprint": run.view_fingerprint(policy)}, url)
    found.add(status.digest(run))
    storage.write_json(view, url)
    attempts.give_up(run, "cleaned", "sample-000002", "the disk is on holiday")
    found.add(status.digest(run))
    attempts.forgive(run, "cleaned", "sample-000002")
    assert len(found) == 6 and status.digest(run) == first


def test_the_digest_reads_no_more_of_a_larger_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    read_json = storage.read_json

    def counted(url: str) -> dict[str, Any]:
        reads.append(url)
        return read_json(url)

    counts = []
    for shards in (2, 5):
        run = rundir.read(str(write_run(tmp_path / str(shards), count=2 * shards, size=16, shard_size=2)))
        monkeypatch.setattr(storage, "read_json", counted)
        reads.clear()
        status.digest(run)
        counts.append(len(reads))
        monkeypatch.setattr(storage, "read_json", read_json)
    assert counts[0] == counts[1]
