"""Sources: whatever a folder or archive holds is listed, nothing leads out of it, and no file harms its neighbours."""

from __future__ import annotations

import functools
import http.server
import io
import os
import pickle
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import fsspec
import pytest

from manifests.errors import ConfigError, SampleError, SourceError
from pipelines.datasets import Entry, how_to_get, open_dataset, read_entries, reading
from pipelines.datasets.archives import open_container
from pipelines.datasets.listing import list_files
from tests.bad_files import photograph, save, write_bad_files
from tests.layouts import tar_of

PNG = save(photograph(), "PNG")


def outcomes(entries: list[Entry]) -> dict[str, str]:
    """What reading gives, by name: 'ok' or the reason."""
    return {e.source_name: d.reason if isinstance(d, SampleError) else "ok" for e, d in read_entries(entries)}


def test_a_folder_of_bad_files_is_listed_whole_and_read_without_harm(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    expected = write_bad_files(folder)
    dataset = open_dataset("folder", str(folder))
    assert {e.source_name for e in dataset.entries} == set(expected)
    assert [e.source_name for e in dataset.entries] == sorted(expected)
    assert dataset.problems == ("5 files are not images by their names and were left out: .db 1, .txt 1, hidden 3",)
    for name, found in outcomes(dataset.entries).items():
        if found != "ok":
            assert expected[name] == f"failed:{found}"
    assert {n for n, o in outcomes(dataset.entries).items() if o == "link_outside_source"} == {
        "link-outside.png",
        "link-climbing.png",
    }


def test_a_folder_link_is_named_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/b.png").write_bytes(PNG)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(PNG)
    (tmp_path / "in/more").symlink_to(tmp_path / "elsewhere")
    dataset = open_dataset("folder", str(tmp_path / "in"))
    assert [e.source_name for e in dataset.entries] == ["a.png"]
    assert "more" in dataset.problems[0] and "not followed" in dataset.problems[0]


def test_a_file_that_became_a_pipe_since_it_was_listed_does_not_hang(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "b.png").write_bytes(PNG)
    entries = open_dataset("folder", str(tmp_path)).entries
    (tmp_path / "a.png").unlink()
    os.mkfifo(tmp_path / "a.png")
    assert outcomes(entries) == {"a.png": "not_a_file", "b.png": "ok"}


def test_order_and_entries_do_not_depend_on_the_order_of_listing(tmp_path: Path) -> None:
    names = ["b.png", "a/z.png", "a.png", "A.png", "a/b/c.png"]
    orders = (names, names[::-1])
    for i, order in enumerate(orders):
        (tmp_path / f"{i}.tar").write_bytes(tar_of(dict.fromkeys(order, PNG)))
    first, second = (open_dataset("folder", str(tmp_path / f"{i}.tar")).entries for i in range(2))
    assert [e.source_name for e in first] == [e.source_name for e in second] == sorted(names)
    assert [e.key for e in first] == [e.key for e in second]


def test_a_hostile_tar(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:

        def add(name: str, data: bytes = PNG, kind: bytes = tarfile.REGTYPE, to: str = "") -> None:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, to, len(data) if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(data) if kind == tarfile.REGTYPE else None)

        add("early-link.png", kind=tarfile.SYMTYPE, to="sub/good.png")
        add("sub/", kind=tarfile.DIRTYPE)
        add("sub/good.png")
        add("sub/link.png", kind=tarfile.SYMTYPE, to="good.png")
        add("hard.png", kind=tarfile.LNKTYPE, to="sub/good.png")
        add("chain.png", kind=tarfile.SYMTYPE, to="sub/link.png")
        add("/absolute.png")
        add("sub/../../climbing.png")
        add("passwd.png", kind=tarfile.SYMTYPE, to="/etc/passwd")
        add("up.png", kind=tarfile.SYMTYPE, to="../../up.png")
        add("hard-out.png", kind=tarfile.LNKTYPE, to="/etc/passwd")
        add("dangling.png", kind=tarfile.SYMTYPE, to="nothing.png")
        add("circle.png", kind=tarfile.SYMTYPE, to="circle.png")
        add("pipe.png", kind=tarfile.FIFOTYPE)
        add("device.png", kind=tarfile.CHRTYPE)
        add("empty.png", b"")
        add("twice.png", b"first")
        add("twice.png", b"second")
        add("./dotted.png")
    entries = open_dataset("folder", str(tmp_path / "x.tar")).entries
    assert outcomes(entries) == {
        "/absolute.png": "unsafe_path",
        "chain.png": "ok",
        "circle.png": "broken_link",
        "dangling.png": "broken_link",
        "device.png": "not_a_file",
        "dotted.png": "ok",
        "early-link.png": "ok",
        "empty.png": "ok",  # read well; decoding will say what it is
        "hard-out.png": "link_outside_source",
        "hard.png": "ok",
        "passwd.png": "link_outside_source",
        "pipe.png": "not_a_file",
        "sub/../../climbing.png": "unsafe_path",
        "sub/good.png": "ok",
        "sub/link.png": "ok",
        "twice#2.png": "ok",
        "twice.png": "ok",
        "up.png": "link_outside_source",
    }
    data = {e.source_name: d for e, d in read_entries(entries)}
    assert data["chain.png"] == data["early-link.png"] == data["hard.png"] == PNG
    assert (data["twice.png"], data["twice#2.png"]) == (b"first", b"second")
    assert set(tmp_path.iterdir()) == {tmp_path / "x.tar"}


def test_a_hostile_zip(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        for name in ("good.png", "../climbing.png", "/absolute.png", "C:\\disk.png", "sub/also good.png", "broken.png"):
            archive.writestr(zipfile.ZipInfo(name), PNG)
        archive.writestr("secret.png", PNG)
        archive.writestr("twice.png", b"first")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("twice.png", b"second")
    data = bytearray(path.read_bytes())
    broken = data.index(PNG, data.index(b"broken.png"))  # members written with a ZipInfo are stored as they are
    data[broken + 100] ^= 0xFF
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # set the encryption bit in both of its headers
        header = data.rindex(signature, 0, data.index(b"secret.png", data.index(signature)))
        while b"secret.png" not in data[header : header + 70]:
            header = data.index(signature, header + 1)
        data[header + flags] |= 1
    path.write_bytes(data)
    entries = open_dataset("folder", str(path)).entries
    assert outcomes(entries) == {
        "../climbing.png": "unsafe_path",
        "/absolute.png": "unsafe_path",
        "C:\\disk.png": "unsafe_path",
        "broken.png": "unreadable_member",
        "good.png": "ok",
        "link.png": "link_in_archive",
        "secret.png": "encrypted",
        "sub/also good.png": "ok",
        "twice#2.png": "ok",
        "twice.png": "ok",
    }
    assert {e.source_name: d for e, d in read_entries(entries)}["twice#2.png"] == b"second"


def test_a_tar_that_breaks_off_keeps_what_was_before_and_says_so(tmp_path: Path) -> None:
    whole = tar_of({f"{i}.png": PNG for i in range(5)})
    path = tmp_path / "x.tar"
    path.write_bytes(whole[: len(whole) // 2])
    dataset = open_dataset("folder", str(path))
    found = outcomes(dataset.entries)
    assert list(found.values())[:-1] == ["ok"] * (len(found) - 1) and list(found.values())[-1] == "truncated_member"
    assert "what follows is lost" in dataset.problems[0]


def test_a_file_above_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("a.png", 10), ("b.png", 2000), ("c.png", 10)):
        (tmp_path / name).write_bytes(bytes(size))
    monkeypatch.setattr(reading, "MAX_FILE_BYTES", 1000)
    entries = open_dataset("folder", str(tmp_path)).entries
    assert outcomes(entries) == {"a.png": "ok", "b.png": "too_large_file", "c.png": "ok"}
    (tmp_path / "a.png").write_bytes(bytes(2000))  # it has grown since it was listed
    assert outcomes(entries)["a.png"] == "too_large_file"


def test_each_archive_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.tar").write_bytes(tar_of({f"{i}.png": PNG for i in range(20)}))
    entries = open_dataset("folder", str(tmp_path / "x.tar")).entries
    opened: list[str] = []

    def counted(url: str) -> IO[bytes]:
        opened.append(url)
        return open_container(url)

    monkeypatch.setattr(reading, "open_container", counted)
    assert set(outcomes(entries).values()) == {"ok"} and len(opened) == 1


def test_an_archive_that_is_gone_is_no_failed_sample(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(tar_of({"a.png": PNG}))
    entries = open_dataset("folder", str(path)).entries
    path.unlink()
    with pytest.raises(SourceError, match=r"x\.tar cannot be opened"):
        list(read_entries(entries))


def test_entries_survive_pickling_and_carry_all_that_reading_needs(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_of({"a/1.png": PNG, "b/2.png": b"two"}))
    entries = pickle.loads(pickle.dumps(open_dataset("folder", str(tmp_path / "x.tar")).entries))
    assert [d for _, d in read_entries(entries)] == [PNG, b"two"]
    assert [d for _, d in read_entries(entries[::-1])] == [b"two", PNG]


def test_sources_behind_urls() -> None:
    memory = fsspec.filesystem("memory")
    files = {"cat/1.png": PNG, "cat/2.png": b"2", "dog/a b.png": b"3", "notes.txt": b"no sample"}
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
            memory.pipe(f"/sources/folder/{name}", data)
    memory.pipe("/sources/x.zip", zipped.getvalue())
    memory.pipe("/sources/x.tar", tar_of(files))
    try:
        seen = []
        for name in ("folder", "x.zip", "x.tar"):
            dataset = open_dataset("folder", f"memory://sources/{name}")
            read = {e.source_name: d for e, d in read_entries(dataset.entries)}
            assert read == {n: d for n, d in files.items() if n.endswith(".png")}, name
            seen.append([(e.key, e.label, e.class_name, e.nbytes) for e in dataset.entries])
            assert dataset.problems == ("1 files are not images by their names and were left out: .txt 1",)
        assert seen[0] == seen[1] == seen[2]
        entries = open_dataset("folder", "memory://sources/folder").entries
        memory.rm("/sources/folder/cat/1.png")
        assert outcomes(entries) == {"cat/1.png": "unreadable", "cat/2.png": "ok", "dog/a b.png": "ok"}
    finally:
        memory.rm("/sources", recursive=True)


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """The standard library's file server, with the byte ranges that archives are read by."""

    def send_head(self):  # type: ignore[no-untyped-def]
        asked, path = self.headers.get("Range"), Path(self.translate_path(self.path))
        if asked is None or not path.is_file():
            return super().send_head()
        first, _, last = asked.removeprefix("bytes=").partition("-")
        data = path.read_bytes()[int(first) : int(last) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{path.stat().st_size}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        return io.BytesIO(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server of a folder: its URL, and the folder."""
    handler = functools.partial(RangeHandler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", tmp_path
    server.shutdown()
    server.server_close()


def test_sources_behind_http(web: tuple[str, Path]) -> None:
    url, folder = web
    (folder / "in/cat one").mkdir(parents=True)
    (folder / "in/cat one/ä 1.png").write_bytes(PNG)
    (folder / "in/dog").mkdir()
    (folder / "in/dog/2.png").write_bytes(b"two")
    (folder / "x.tar").write_bytes(tar_of({"cat one/ä 1.png": PNG, "dog/2.png": b"two"}))
    for source in (f"{url}/in/", f"{url}/x.tar"):
        entries = open_dataset("folder", source).entries
        assert [(e.source_name, e.class_name) for e in entries] == [
            ("cat one/ä 1.png", "cat one"),
            ("dog/2.png", "dog"),
        ]
        assert [d for _, d in read_entries(entries)] == [PNG, b"two"], source
    (folder / "in/dog/2.png").unlink()
    assert list(outcomes(open_dataset("folder", f"{url}/in/").entries)) == ["cat one/ä 1.png"]
    with pytest.raises(SourceError):
        open_dataset("folder", f"{url}/missing.tar")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "does not exist"),
        ("file.png", "neither a .zip nor a .tar"),
        ("empty", "holds no images"),
        ("text.zip", "not a readable zip"),
        ("text.tar", "not a readable tar"),
        ("x.tar.gz", "unpack it"),
        ("unknown://host/x.tar", "unknown"),
    ],
)
def test_a_source_that_is_none_is_named(source: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("file.png", "text.zip", "text.tar", "x.tar.gz"):
        (tmp_path / name).write_bytes(b"text" * 1000)
    with pytest.raises(SourceError, match=message) as refused:
        open_dataset("folder", source if "://" in source else str(tmp_path / source))
    assert source in str(refused.value)


def test_a_file_url_is_a_local_path(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    assert list_files(f"file://{tmp_path}") == list_files(str(tmp_path))


@pytest.mark.parametrize("name", ["ffhq", "imagenet", "folder", "webdataset"])
def test_without_a_source_the_user_is_told_where_to_get_one(name: str) -> None:
    with pytest.raises(ConfigError) as refused:
        open_dataset(name)
    assert str(refused.value) == how_to_get(name)
    assert "--source" in how_to_get(name) and "idm-curate run --dataset sample" in how_to_get(name)


def test_an_unknown_dataset_is_named() -> None:
    with pytest.raises(ConfigError, match="celeba: unknown, it is one of sample, ffhq"):
        open_dataset("celeba", "x")
