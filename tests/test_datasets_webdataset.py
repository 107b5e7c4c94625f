"""Existing WebDataset tars: the same samples and keys as webdataset's own reader gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from manifests.errors import SampleError, SourceError
from pipelines.datasets import open_dataset, read_entries
from pipelines.datasets.webdataset_tars import expand
from tests.layouts import jpegs, tar_of


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tars of four samples each."""
    root = tmp_path_factory.mktemp("tars")
    photographs = iter(jpegs("faces-wild", 12))
    for shard in range(3):
        members: dict[str, bytes] = {}
        for i in range(4):
            key = f"{shard}/face{i:03d}"
            members |= {
                f"{key}.jpg": next(photographs),
                f"{key}.cls": f"{shard * 4 + i}\n".encode(),
                f"{key}.json": json.dumps({"age": i, "name": "Åsa"}).encode(),
            }
        (root / f"x-{shard:06d}.tar").write_bytes(tar_of(members))
    return root


def test_samples_keys_and_labels_are_those_of_webdataset(tars: Path) -> None:
    import webdataset

    source = f"{tars}/x-{{000000..000002}}.tar"
    dataset = open_dataset("webdataset", source)
    theirs = {s["__key__"]: s for s in webdataset.WebDataset(source, shardshuffle=False)}
    assert [e.key for e in dataset.entries] == sorted(theirs)
    for entry, data in read_entries(dataset.entries):
        sample = theirs[entry.key]
        assert data == sample["jpg"] and entry.label == int(sample["cls"])
        assert json.loads(entry.metadata or "") == json.loads(sample["json"])
    assert dataset.entries[0].source_name == "x-000000.tar/0/face000.jpg" and dataset.problems == ()


@pytest.mark.parametrize(
    "source",
    [
        "{0}/x-{{000000..000002}}.tar",
        "{0}/x-*.tar",
        "{0}",
        "file://{0}/x-00000[0-2].tar",
        "{0}/x-000000.tar::{0}/x-00000{{1,2}}.tar",
        "{0}/x-000000.tar,{0}/x-000001.tar,{0}/x-000002.tar,{0}/x-000000.tar",
    ],
)
def test_every_way_to_name_tars(source: str, tars: Path) -> None:
    assert expand(source.format(tars)) == [f"{tars}/x-{i:06d}.tar" for i in range(3)]


def test_tars_behind_a_url(tars: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in tars.iterdir():
        memory.pipe(f"/wds/{path.name}", path.read_bytes())
    try:
        local = open_dataset("webdataset", str(tars))
        for source in ("memory://wds/x-{000000..000002}.tar", "memory://wds/*.tar", "memory://wds"):
            remote = open_dataset("webdataset", source)
            assert [(e.key, e.source_name) for e in remote.entries] == [(e.key, e.source_name) for e in local.entries]
            assert [d for _, d in read_entries(remote.entries)] == [d for _, d in read_entries(local.entries)]
    finally:
        memory.rm("/wds", recursive=True)


def test_odd_samples(tmp_path: Path) -> None:
    (jpg,) = jpegs("faces-wild", 1)
    (tmp_path / "x.tar").write_bytes(
        tar_of(
            {
                "a.json": b"{}", "a.txt": "a größe\n".encode(), "a.input.PNG": b"2nd", "a.jpg": jpg, "a.flac": b"s",
                "b.cls": b"3", "b.txt": b"no image",
                "c.v1.png": jpg, "c.cls": b"seven", "c.json": b"[1]",
                "d/__meta__/e.jpg": jpg, "__meta__/x.json": b"{}", "README": b"", "f.jpg": jpg,
            }
        )
    )  # fmt: skip
    dataset = open_dataset("webdataset", str(tmp_path / "x.tar"))
    found: Iterator[tuple[str, object]] = ((e.key, d) for e, d in read_entries(dataset.entries))
    data = dict(found)
    assert data.keys() == {"a", "b", "c", "d/__meta__/e", "f"}
    assert data["a"] == data["c"] == data["f"] == jpg
    error = data["b"]
    assert isinstance(error, SampleError) and error.reason == "no_image_member"
    by_key = {e.key: e for e in dataset.entries}
    assert json.loads(by_key["a"].metadata or "") == {"txt": "a größe"} and by_key["b"].label == 3
    assert by_key["c"].label is None and json.loads(by_key["c"].metadata or "") == {"json": [1]}
    assert any("c.cls is not what its extension says" in p for p in dataset.problems)
    assert "4 members of the tars are not carried over: .flac 1, .input.png 1, without a key 2" in dataset.problems


def test_a_key_that_comes_twice_is_two_samples(tmp_path: Path) -> None:
    first, second = jpegs("faces-wild", 2)
    (tmp_path / "1.tar").write_bytes(tar_of({"a.jpg": first, "b.jpg": first}))
    (tmp_path / "2.tar").write_bytes(tar_of({"a.jpg": second}))
    dataset = open_dataset("webdataset", str(tmp_path))
    assert [(e.key, e.source_name) for e in dataset.entries] == [
        ("a", "1.tar/a.jpg"), ("b", "1.tar/b.jpg"), ("a", "2.tar/a.jpg"),
    ]  # fmt: skip
    assert [d for _, d in read_entries(dataset.entries)] == [first, first, second]
    assert dataset.problems == ("1 samples have the key of another one",)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{0}/missing-*.tar", "no tar is there"),
        ("{0}/x-{{000000..000005}}.tar", r"x-000003\.tar cannot be opened"),
        ("{0}/x-{{000000..", "[Uu]nbalanced"),
        ("pipe:cat x.tar", "commands are not run"),
        (",", "names no tars"),
    ],
)
def test_what_is_not_there_is_named(source: str, message: str, tars: Path) -> None:
    with pytest.raises(SourceError, match=message):
        open_dataset("webdataset", source.format(tars))
