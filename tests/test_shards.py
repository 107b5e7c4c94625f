"""Shards: what is committed is whole, what is not whole is not done, and equal samples are equal bytes."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import pytest
import webdataset as wds

from manifests import schema, shards, storage
from manifests.errors import ShardError

ROWS = {"b": b"second" * 300, "a": b"first", "c-1": b"\x00\x01"}


def row(key: str, data: bytes) -> dict[str, object]:
    return {
        "key": key,
        "shard": "s-000000",
        "source_name": f"in/{key}.png",
        "status": "kept_original",
        "label": 3,
        "ext": "png",
        "output_sha256": hashlib.sha256(data).hexdigest(),
    }


def write(folder: Path, fingerprint: str = "f1", samples: dict[str, bytes] = ROWS) -> dict[str, object]:
    staging = folder / ".staging"
    rows = [row(k, v) for k, v in sorted(samples.items())]
    with shards.StagedTar(staging / "s-000000.tar") as tar:
        for r in rows:
            tar.add(str(r["key"]), shards.members_of(r, samples[str(r["key"])]))
        shards.locate(rows, tar.close())
    return shards.commit(
        str(folder / "source"), "s-000000", fingerprint, tar.path, rows, schema.SOURCE, rubbish=staging / "old"
    )


def test_a_committed_shard_reads_back(tmp_path: Path) -> None:
    marker = write(tmp_path)
    folder = str(tmp_path / "source")
    assert marker["rows"] == 3 and marker["counts"] == {"kept_original": 3}
    assert shards.why_not_done(folder, "s-000000", "f1", hashes=True) is None
    table = shards.read_rows(folder, "s-000000")
    assert table["key"].to_pylist() == ["a", "b", "c-1"]
    ranges = list(zip(table["offset"].to_pylist(), table["nbytes"].to_pylist(), strict=True))
    assert list(shards.read_samples(f"{folder}/s-000000.tar", ranges)) == [ROWS[k] for k in ("a", "b", "c-1")]


def test_webdataset_reads_what_was_written(tmp_path: Path) -> None:
    write(tmp_path)
    samples = list(wds.WebDataset(str(tmp_path / "source/s-000000.tar"), shardshuffle=False))
    assert [(s["__key__"], s["png"], s["cls"]) for s in samples] == [(k, ROWS[k], b"3") for k in sorted(ROWS)]


def test_the_tar_is_ustar_with_fixed_metadata(tmp_path: Path) -> None:
    write(tmp_path)
    with tarfile.open(tmp_path / "source/s-000000.tar") as tar:
        members = tar.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.mode, m.uname, bool(m.pax_headers)) for m in members} == {
        (0, 0, 0, 0o444, "root", False)
    }
    assert [m.name.split(".")[0] for m in members] == [key for key in sorted(ROWS) for _ in range(3)]


def test_equal_samples_are_equal_bytes(tmp_path: Path) -> None:
    first, second = write(tmp_path / "1"), write(tmp_path / "2")
    assert first == second


@pytest.mark.parametrize("suffix", ["tar", "parquet", "json"])
@pytest.mark.parametrize("harm", ["cut", "missing", "grown"])
def test_a_shard_that_is_not_whole_is_not_done(tmp_path: Path, suffix: str, harm: str) -> None:
    write(tmp_path)
    path = tmp_path / f"source/s-000000.{suffix}"
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-7] if harm == "cut" else path.read_bytes() + b"{")
    assert shards.why_not_done(str(tmp_path / "source"), "s-000000", "f1") is not None


def test_a_flipped_byte_is_seen_by_hashes(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "source/s-000000.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    assert shards.why_not_done(str(tmp_path / "source"), "s-000000", "f1") is None
    assert "SHA-256" in (shards.why_not_done(str(tmp_path / "source"), "s-000000", "f1", hashes=True) or "")


def test_another_fingerprint_is_not_done_and_is_replaced(tmp_path: Path) -> None:
    write(tmp_path)
    assert shards.why_not_done(str(tmp_path / "source"), "s-000000", "f2") == "made with another configuration"
    write(tmp_path, "f2", {"a": b"other"})
    assert shards.why_not_done(str(tmp_path / "source"), "s-000000", "f2", hashes=True) is None


def test_a_late_commit_alters_nothing(tmp_path: Path) -> None:
    write(tmp_path)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "source").iterdir()}
    write(tmp_path)
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "source").iterdir()} == before


def test_a_crash_between_the_files_leaves_the_shard_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Replacing a shard of another configuration: whichever write is the last one, no old marker may vouch for it.
    for survived in range(3):
        folder = tmp_path / str(survived)
        write(folder)
        publish, count = storage.publish, 0

        def crash(staged: Path, url: str, publish=publish, survived=survived) -> None:  # type: ignore[no-untyped-def]
            nonlocal count
            if count == survived:
                raise KeyboardInterrupt
            count += 1
            publish(staged, url)

        monkeypatch.setattr(storage, "publish", crash)
        with pytest.raises(KeyboardInterrupt):
            write(folder, "f2", {"a": b"x" * len(ROWS["a"]), "b": ROWS["b"], "c-1": ROWS["c-1"]})
        monkeypatch.undo()
        for fingerprint in ("f1", "f2"):
            assert shards.why_not_done(str(folder / "source"), "s-000000", fingerprint) is not None


@pytest.mark.parametrize("keys", [["b", "a"], ["a", "a"], ["a.b"], ["é"], ["x" * 93]])
def test_unsafe_or_unsorted_keys_are_refused(tmp_path: Path, keys: list[str]) -> None:
    with shards.StagedTar(tmp_path / "s.tar") as tar, pytest.raises(ShardError):
        for key in keys:
            tar.add(key, {"png": b"1"})


def test_a_range_beyond_the_end_is_an_error(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(ShardError, match="verify"):
        list(shards.read_samples(str(tmp_path / "source/s-000000.tar"), [(0, 10**6)]))


def test_an_unknown_column_is_refused() -> None:
    with pytest.raises(KeyError, match="sevrity"):
        schema.table_from_rows([{"key": "a", "sevrity": 1.0}], schema.SOURCE)


def test_every_column_says_what_it_is() -> None:
    for table in (schema.LISTING, schema.SOURCE, schema.RESTORED, schema.VIEW, schema.CLEANED):
        assert len(set(table.names)) == len(table.names)
        for field in table:
            assert field.metadata[b"doc"], field.name
