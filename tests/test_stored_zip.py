"""The zip writer: other readers open what it wrote, at every size, and it goes on from wherever it was cut."""

from __future__ import annotations

import io
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.exports import stored_zip
from pipelines.exports.stored_zip import StoredZip, read_comment

MEMBERS = st.lists(st.binary(max_size=40), max_size=8)


def written(members: list[bytes], comment: bytes = b"") -> bytes:
    archive, directory = io.BytesIO(), io.BytesIO()
    zipped = StoredZip(archive, directory)
    for i, data in enumerate(members):
        zipped.add(f"{i:05d}/{i}.bin", data)
    zipped.close(comment)
    return archive.getvalue()


@given(MEMBERS)
def test_the_standard_library_reads_what_was_written(members: list[bytes]) -> None:
    with zipfile.ZipFile(io.BytesIO(written(members, b"about"))) as opened:
        assert opened.testzip() is None and opened.comment == b"about"
        assert [opened.read(f"{i:05d}/{i}.bin") for i in range(len(members))] == members
        assert all(m.compress_type == zipfile.ZIP_STORED for m in opened.infolist())
        assert {m.date_time for m in opened.infolist()} <= {(1980, 1, 1, 0, 0, 0)}


@given(MEMBERS, st.data())
def test_cut_back_to_any_member_it_goes_on_to_the_same_bytes(members: list[bytes], drawn: st.DataObject) -> None:
    kept = drawn.draw(st.integers(0, len(members)))
    archive, directory = io.BytesIO(), io.BytesIO()
    begun = StoredZip(archive, directory)
    for i, data in enumerate(members[:kept]):
        begun.add(f"{i:05d}/{i}.bin", data)
    lengths = [stream.tell() for stream in (archive, directory)]
    begun.add("00000/lost.bin", b"lost")
    for stream, length in zip((archive, directory), lengths, strict=True):
        stream.truncate(length)
        stream.seek(length)
    going_on = StoredZip(archive, directory, kept)
    for i, data in enumerate(members[kept:], kept):
        going_on.add(f"{i:05d}/{i}.bin", data)
    going_on.close(b"")
    assert archive.getvalue() == written(members)


@given(MEMBERS, st.integers(0, 60), st.integers(1, 6))
def test_zip64_fields_are_read_wherever_they_are_needed(members: list[bytes], max32: int, max16: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_zip, "MAX32", max32)  # so that small members need what large ones do
        patch.setattr(stored_zip, "MAX16", max16)
        data = written(members)
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        assert opened.testzip() is None
        assert [opened.read(name) for name in opened.namelist()] == members


def test_more_members_than_16_bits_count() -> None:
    members = [b"%d" % i for i in range(70_000)]
    with zipfile.ZipFile(io.BytesIO(written(members))) as opened:
        assert len(opened.namelist()) == 70_000
        assert all(opened.read(f"{i:05d}/{i}.bin") == members[i] for i in (0, 65_534, 65_535, 65_536, 69_999))


def test_beyond_4_gib(tmp_path: Path) -> None:
    """A hole in a sparse file stands for the members that came before."""
    path = tmp_path / "a.zip"
    with path.open("w+b") as archive, (tmp_path / "directory").open("w+b") as directory:
        archive.seek(5 << 30)
        zipped = StoredZip(archive, directory)
        zipped.add("far.bin", b"beyond")
        zipped.close(b"")
    assert path.stat().st_size > 5 << 30
    with zipfile.ZipFile(path) as opened:
        assert opened.read("far.bin") == b"beyond" and opened.infolist()[0].header_offset == 5 << 30


def test_a_member_from_a_file_is_as_one_from_memory(tmp_path: Path) -> None:
    data = bytes(range(256)) * 9000  # larger than what is read at once
    (tmp_path / "file").write_bytes(data)
    archive, directory = io.BytesIO(), io.BytesIO()
    zipped = StoredZip(archive, directory)
    zipped.add_file("00000/0.bin", tmp_path / "file")
    zipped.close(b"")
    assert archive.getvalue() == written([data])


@pytest.mark.skipif(shutil.which("unzip") is None, reason="Info-ZIP's unzip is not installed")
def test_info_zip_finds_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(written([b"one", b"", b"three"], b"about"))
    done = subprocess.run(["unzip", "-t", str(path)], capture_output=True, text=True)
    assert done.returncode == 0 and "No errors" in done.stdout


@pytest.mark.parametrize("comment", [b"", b"about", b"x" * 65_535, b"PK\5\6 is how an end record begins"])
def test_comments_are_read_of_whole_archives_alone(comment: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(written([b"data" * 20_000], comment))
    assert read_comment(path) == comment
    path.write_bytes(path.read_bytes()[:-1])
    assert read_comment(path) is None
    for content in (b"", b"PK", b"no archive " * 9999):
        path.write_bytes(content)
        assert read_comment(path) is None


def test_a_comment_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="65535"):
        written([], b"x" * 65_536)
