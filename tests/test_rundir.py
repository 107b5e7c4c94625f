"""The run directory: one configuration, one driver, and fingerprints that change when something does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from manifests import rundir, storage
from manifests.errors import RunError

CONFIG = {"dataset": {"name": "folder", "limit": None}, "restore": {"threshold": 0.2}}


def test_the_same_configuration_opens_again(tmp_path: Path) -> None:
    first = rundir.create_or_open(str(tmp_path / "r"), "r", CONFIG)
    again = rundir.create_or_open(str(tmp_path / "r"), "r", {k: CONFIG[k] for k in reversed(CONFIG)})
    assert first.fingerprint == again.fingerprint == rundir.read(str(tmp_path / "r")).fingerprint


def test_another_configuration_is_refused_and_the_key_named(tmp_path: Path) -> None:
    rundir.create_or_open(str(tmp_path), "r", CONFIG)
    with pytest.raises(RunError, match=r"restore\.threshold \(0\.2 there, 0\.3 now\)"):
        rundir.create_or_open(str(tmp_path), "r", {**CONFIG, "restore": {"threshold": 0.3}})


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(RunError, match="no run directory"):
        rundir.create_or_open(str(tmp_path), "r", CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == ["holiday.jpg"]


def test_an_edited_run_json_is_refused(tmp_path: Path) -> None:
    rundir.create_or_open(str(tmp_path), "r", CONFIG)
    path = tmp_path / "run.json"
    path.write_text(path.read_text().replace("0.2", "0.9"))
    with pytest.raises(RunError, match="edited"):
        rundir.read(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"version": 99}', b'{"version": 1}', b'{"version": 2}'])
def test_a_broken_run_json_is_an_error_with_a_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(RunError, match=r"run\.json"):
        rundir.read(str(tmp_path))


def hold(root: str, held: multiprocessing.synchronize.Event) -> None:
    with rundir.lock(root):
        held.set()
        time.sleep(60)


def test_one_driver_at_a_time_and_a_dead_one_is_taken_over(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    driver = context.Process(target=hold, args=(str(tmp_path), held))
    driver.start()
    assert held.wait(30)
    with pytest.raises(RunError, match=f"pid {driver.pid}"), rundir.lock(str(tmp_path)):
        pass
    assert driver.pid is not None
    os.kill(driver.pid, signal.SIGKILL)
    driver.join()
    with rundir.lock(str(tmp_path)) as notice:
        assert notice is not None and "taken over" in notice
    with rundir.lock(str(tmp_path)) as notice:
        assert notice is None


def test_nothing_but_staging_is_emptied(tmp_path: Path) -> None:
    run = rundir.create_or_open(str(tmp_path / "r"), "r", CONFIG)
    with run.scratch() as scratch:
        (scratch / "half").write_bytes(b"1")
        storage.write_bytes(b"2", run.url("source", "x.tar"))
        rundir.empty_staging(run)
    assert not run.staging.exists() and storage.read_bytes(run.url("source", "x.tar")) == b"2"


def test_differing_keys_are_named_at_any_depth() -> None:
    a, b = {"x": {"y": 1, "z": 2}, "w": 0}, {"x": {"y": 1, "z": 3}, "v": 0}
    assert rundir.differing_keys(a, b) == ["v (None there, 0 now)", "w (0 there, None now)", "x.z (2 there, 3 now)"]


@pytest.mark.parametrize("root", ["{tmp}", "file://{tmp}", "memory://runs"])
def test_storage_is_the_same_on_every_kind_of_path(root: str, tmp_path: Path) -> None:
    url = storage.join(root.format(tmp=tmp_path), "d", "x.json")
    assert (
        not storage.exists(url) and storage.size(url) is None and storage.list_names(storage.join(url, "..none")) == []
    )
    storage.write_json({"b": 1, "a": "ü"}, url)
    staged = tmp_path / "staged"
    staged.write_bytes(b"12345")
    storage.publish(staged, storage.join(root.format(tmp=tmp_path), "d", "y.bin"))
    assert not staged.exists()
    assert storage.read_json(url) == {"a": "ü", "b": 1}
    assert storage.list_names(storage.join(root.format(tmp=tmp_path), "d")) == ["x.json", "y.bin"]
    assert storage.size(storage.join(root.format(tmp=tmp_path), "d", "y.bin")) == 5
    storage.retire(url, tmp_path / "rubbish")
    assert not storage.exists(url)
