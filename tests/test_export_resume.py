"""Exports that are cut short: the same command goes on to the same bytes; and what cannot go on says why."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manifests import rundir, storage
from manifests.errors import RunError
from pipelines.export import export
from pipelines.exports import manifest, staging, stylegan, tree
from pipelines.exports.plan import Request
from tests.command_line import curate
from tests.export_fixture import hashes, make_run, manifest_of, write_squares

FORMATS = ["stylegan", "hf", "folder"]
COUNT, SHARD = 10, 4


class Killed(BaseException):
    """What stands for a kill: nobody may catch it."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ingested, and no more; three shards of 4, 4 and 2 images of one size. Tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("run")
    return make_run(write_squares(folder / "in", COUNT), folder / "run", "ingest", SHARD)


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run, tmp_path / "run")


def target_in(folder: Path, format: str) -> Path:
    return folder / ("out.zip" if format == "stylegan" else "out")


def export_to(run: Path, target: Path, format: str, **options: Any) -> list[str]:
    said: list[str] = []
    request = Request(format, arm="original", **options)  # type: ignore[arg-type]
    export(rundir.read(str(run)), str(target), request, say=said.append)
    return said


def fail_at(
    patch: pytest.MonkeyPatch, owner: type, method: str, call: int, error: BaseException, *, late: bool
) -> None:
    """Have the n-th call of a method raise, before it does its work or after."""
    original, calls = getattr(owner, method), 0

    def failing(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not late:
            raise error
        result = original(*arguments, **options)
        if calls == call:
            raise error
        return result

    patch.setattr(owner, method, failing)


def writer_of(format: str) -> type:
    return stylegan.StyleGanZip if format == "stylegan" else tree.Tree


@pytest.fixture(scope="module")
def undisturbed(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, str]]:
    """The bytes of exports that nothing disturbed, by format."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for format in FORMATS:
        export_to(run, target_in(folder / format, format), format)
    return lambda format: hashes(target_in(folder / format, format))


PLACES = [
    *[("add", call, True) for call in range(1, COUNT + 1)],  # in the middle of a shard, after each image
    *[("commit", call, late) for call in range(1, 4) for late in (False, True)],  # on both sides of each commit
    ("finish", 1, False),
    ("merge", 1, True),  # in the middle of the end
    ("finish", 1, True),
]


@pytest.mark.parametrize("format", FORMATS)
def test_killed_anywhere_it_goes_on_to_the_same_bytes(
    format: str, run: Path, tmp_path: Path, undisturbed: Callable[[str], dict[str, str]]
) -> None:
    owners = {"add": writer_of(format), "finish": writer_of(format), "commit": staging.Staging, "merge": manifest.Parts}
    for method, call, late in PLACES:
        target = target_in(tmp_path / f"{method}-{call}-{late}", format)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            fail_at(patch, owners[method], method, call, Killed(), late=late)
            export_to(run, target, format)
        assert not target.exists(), "what is not whole has not its name"
        assert [p.name for p in target.parent.iterdir()] == [f".{target.name}.export"]
        with pytest.MonkeyPatch.context() as patch:
            added: list[int] = []
            count_calls(patch, writer_of(format), "add", added)
            said = export_to(run, target, format)
        committed = {"add": (call - 1) // SHARD, "commit": call if late else call - 1}.get(method, 3)
        assert len(added) == COUNT - min(COUNT, committed * SHARD), "no committed work is done again"
        assert any(f"going on after {committed} of 3" in line for line in said) == (committed > 0)
        assert hashes(target) == undisturbed(format), (method, call, late)
        assert [p.name for p in target.parent.iterdir()] == [target.name]


def count_calls(patch: pytest.MonkeyPatch, owner: type, method: str, calls: list[int]) -> None:
    original = getattr(owner, method)

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return original(*arguments)

    patch.setattr(owner, method, counted)


@pytest.mark.parametrize("format", ["stylegan", "hf"])
def test_a_process_that_ends_at_once_loses_one_shard_at_most(
    format: str, run: Path, tmp_path: Path, undisturbed: Callable[[str], dict[str, str]]
) -> None:
    target = target_in(tmp_path, format)
    program = f"""
import os
from pathlib import Path
from tests import test_export_resume as t
owner, calls = t.writer_of({format!r}), []
original = owner.add
def add(*arguments):
    calls.append(1)
    name = original(*arguments)
    if len(calls) == 6:
        os._exit(9)  # as a SIGKILL: nothing is flushed, nothing is closed
    return name
owner.add = add
t.export_to(Path({str(run)!r}), Path({str(target)!r}), {format!r})
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parent.parent, capture_output=True)
    assert done.returncode == 9, done.stderr
    assert any("going on after 1 of 3 shards, 4 images" in line for line in export_to(run, target, format))
    assert hashes(target) == undisturbed(format)


def test_a_driver_that_ended_before_it_swept_up_leaves_a_whole_export(run: Path, tmp_path: Path) -> None:
    target = target_in(tmp_path, "folder")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr("pipelines.export.shutil.rmtree", lambda *_: (_ for _ in ()).throw(Killed()))
        export_to(run, target, "folder")
    before = hashes(target)
    assert (tmp_path / ".out.export").exists()
    assert "nothing to do" in export_to(run, target, "folder")[-1]
    assert hashes(target) == before and [p.name for p in tmp_path.iterdir()] == ["out"]


# ---- What keeps an export from going on


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("method", "call"), [("add", 6), ("commit", 2), ("finish", 1)])
def test_a_full_disk_is_told_and_costs_nothing_that_is_done(
    format: str, method: str, call: int, run: Path, tmp_path: Path, undisturbed: Callable[[str], dict[str, str]]
) -> None:
    target = target_in(tmp_path, format)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    owner = staging.Staging if method == "commit" else writer_of(format)
    options = ["export", run, "--to", target, "--format", format, "--arm", "original", "--workers", 0]
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, owner, method, call, full, late=False)
        said = curate(*options, code=1)
    assert "No space left" in said and "the same command again" in said and ".export" in said
    assert ("after 1 of 3 shards" in said) == (method != "finish") and not target.exists()
    assert "going on" in curate(*options)
    assert hashes(target) == undisturbed(format)


def test_too_little_space_is_told_before_anything_is_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "free_bytes", lambda _: 20_000)
    with pytest.raises(RunError, match=r"GB are needed and 2e-05 GB are free"):
        export_to(run, tmp_path / "out", "folder")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("resolution", [None, 24])
def test_the_space_that_is_asked_for_is_about_what_is_taken(
    format: str, resolution: int | None, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    monkeypatch.setattr("pipelines.export._size", lambda nbytes: asked.append(nbytes) or "")
    target = target_in(tmp_path, format)
    request = Request(format, arm="original", resolution=resolution)  # type: ignore[arg-type]
    export(rundir.read(str(run)), str(target), request, dry_run=True)
    export_to(run, target, format, resolution=resolution)
    files = [target] if target.is_file() else [p for p in target.rglob("*") if p.is_file()]
    taken = sum(p.stat().st_blocks * 512 for p in files)
    assert 0.5 * asked[0] < taken < asked[0] + 50_000  # the schema of a manifest takes 30 kB, however few its rows


def test_other_options_do_not_continue_what_was_begun(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        fail_at(patch, tree.Tree, "add", 6, Killed(), late=True)
        export_to(run, target, "folder")
    with pytest.raises(RunError, match=r"unfinished export.*format \('folder' there, 'hf' now\).*remove that folder"):
        export_to(run, target, "hf")
    assert len(manifest_of(target) if target.exists() else []) == 0
    export_to(run, target, "folder")


def test_a_stream_that_lost_what_was_committed_is_not_continued(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.zip"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        fail_at(patch, stylegan.StyleGanZip, "add", 6, Killed(), late=True)
        export_to(run, target, "stylegan")
    os.truncate(tmp_path / ".out.zip.export" / "archive.zip", 100)
    with pytest.raises(RunError, match="has 100 bytes"):
        export_to(run, target, "stylegan")


def test_one_export_at_a_time(run: Path, tmp_path: Path) -> None:
    with rundir.lock(str(tmp_path / ".out.export")), pytest.raises(RunError, match="in use by pid"):
        export_to(run, tmp_path / "out", "folder")
    export_to(run, tmp_path / "out", "folder")


# ---- A run that is not whole


def cut_tar(run: Path) -> None:
    path = run / "source" / "folder-000001.tar"
    os.truncate(path, path.stat().st_size // 2)


def lose_tar(run: Path) -> None:
    (run / "source" / "folder-000001.tar").unlink()


def lose_marker(run: Path) -> None:
    (run / "source" / "folder-000001.json").unlink()


@pytest.mark.parametrize("harm", [cut_tar, lose_tar, lose_marker])
def test_a_shard_that_is_gone_or_cut_is_named_before_anything_is_written(
    harm: Callable[[Path], None], copy: Path, tmp_path: Path
) -> None:
    harm(copy)
    with pytest.raises(RunError, match=r"source/folder-000001: .*to mend it, run .*idm-curate run --dataset folder"):
        export_to(copy, tmp_path / "out", "folder")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_bytes_that_are_not_those_of_their_row_are_never_exported(copy: Path, tmp_path: Path) -> None:
    path = copy / "source" / "folder-000001.tar"
    data = path.read_bytes()
    inside = data.index(b"IDAT") + 8
    path.write_bytes(data[:inside] + bytes([data[inside] ^ 1]) + data[inside + 1 :])  # the size agrees
    with pytest.raises(RunError, match=r"folder-000001\.tar: the bytes of 4 .*remove .*folder-000001\.json and run"):
        export_to(copy, tmp_path / "out", "folder")
    assert not (tmp_path / "out").exists()
    path.write_bytes(data)
    assert any("going on after 1" in line for line in export_to(copy, tmp_path / "out", "folder"))


def test_a_tar_that_is_cut_while_it_is_read_is_named(copy: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RunError, match=r"folder-000001\.tar: .*to mend it"):
        original = staging.Staging.commit

        def commit(self: staging.Staging, **counts: int) -> None:
            original(self, **counts)
            cut_tar(copy)

        patch.setattr(staging.Staging, "commit", commit)
        export_to(copy, tmp_path / "out", "folder")
