"""The whole path on real photographs: nothing lost, nothing redone, the same bytes whatever happens on the way."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import webdataset as wds
from PIL import Image

from idm_core.restorer import Restoration, Restorer
from manifests import rundir, shards
from manifests.verify import problems
from pipelines.select import QUANTITIES
from tests.bad_files import write_bad_files
from tests.command_line import curate
from tests.photographs import blurred, png, write_folder

ROOT = Path(__file__).parent.parent


def run_folder(source: Path, root: Path, *more: object) -> None:
    curate("run", "--dataset", "folder", "--source", source, "--run", root, "--shard-size", 8, "--workers", 0, *more)


def hashes(root: Path) -> dict[str, str]:
    """SHA-256 of every file that a stage committed, and of the views."""
    found = {}
    for folder in ("source", "restored", "cleaned", "views"):
        for path in sorted((root / folder).rglob("*")):
            if path.is_file():
                found[str(path.relative_to(root))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("photos") / "in", 36)


@pytest.fixture(scope="module")
def finished(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed. Tests read it; those that change it work on a copy."""
    root = tmp_path_factory.mktemp("runs") / "undisturbed"
    run_folder(source, root)
    return root


def cleaned(root: Path) -> pa.Table:
    run = rundir.read(str(root))
    return pa.concat_tables(shards.read_rows(run.url("cleaned"), s) for s in run.shards())


def test_every_source_image_has_one_row_and_all_of_it_verifies(finished: Path, source: Path) -> None:
    table = cleaned(finished)
    names = sorted(str(p.relative_to(source)) for p in source.rglob("*.png"))
    assert sorted(table["source_name"].to_pylist()) == names
    assert list(problems(rundir.read(str(finished)), hashes=True)) == []
    assert set(table["status"].to_pylist()) >= {"restored", "kept_original"}


def test_what_was_kept_has_its_original_bytes(finished: Path, source: Path) -> None:
    for row in cleaned(finished).to_pylist():
        original = hashlib.sha256((source / row["source_name"]).read_bytes()).hexdigest()
        assert row["source_sha256"] == original
        assert (row["output_sha256"] == original) == (row["origin"] == "source")
        assert (row["origin"] == "restored") == (row["status"] == "restored")


def test_damage_is_what_gets_restored(finished: Path) -> None:
    table = cleaned(finished)
    damaged = [int(name.split()[1][:3]) % 3 == 0 for name in table["source_name"].to_pylist()]
    restored = [status == "restored" for status in table["status"].to_pylist()]
    assert sum(d and r for d, r in zip(damaged, restored, strict=True)) >= 0.75 * sum(damaged)


def test_webdataset_ray_and_hugging_face_read_the_product(
    finished: Path, local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    rows = {r["key"]: r for r in cleaned(finished).to_pylist() if r["origin"] is not None}
    tars = sorted(str(p) for p in (finished / "cleaned").glob("*.tar"))
    plain = {s["__key__"]: s for s in wds.WebDataset(tars, shardshuffle=False)}
    by_ray = {s["__key__"]: s for s in ray.data.read_webdataset(tars, decoder=None).take_all()}
    loaded = datasets.load_dataset("webdataset", data_files=tars, split="train", cache_dir=str(tmp_path))
    by_face = {s["__key__"]: s for s in loaded}
    assert plain.keys() == by_ray.keys() == by_face.keys() == rows.keys()
    for key, row in rows.items():
        assert hashlib.sha256(plain[key][row["ext"]]).hexdigest() == row["output_sha256"]
        assert plain[key]["cls"] == by_ray[key]["cls"] == str(row["label"]).encode()
        assert by_face[key]["cls"] == row["label"] and by_face[key]["png"].size == (row["width"], row["height"])
        assert json.loads(plain[key]["json"])["source_name"] == row["source_name"]
        assert ("ape", "bee")[row["label"]] == row["source_name"].split("/")[0] == row["class_name"]


def test_the_wids_index_is_true(finished: Path) -> None:
    index = json.loads((finished / "cleaned/index.json").read_text())
    assert index["wids_version"] == 1
    for shard in index["shardlist"]:
        tar = finished / "cleaned" / shard["url"]
        assert shard["filesize"] == tar.stat().st_size
        assert shard["nsamples"] == len(list(wds.WebDataset(str(tar), shardshuffle=False)))


def test_the_same_command_again_does_nothing(finished: Path, source: Path) -> None:
    def stamps() -> dict[Path, int]:
        kept = {"run.log", "report.html", "report.json", "run.lock"}
        return {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file() and p.name not in kept}

    before = stamps()
    run_folder(source, finished)
    assert stamps() == before


def test_another_policy_restores_nothing_again(source: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    run_folder(source, root)
    first = hashes(root)
    policy = tmp_path / "harsh.yaml"
    policy.write_text("name: harsh\ngates: [{quantity: severity_drop, min: 0.99}]\ndamaged: restore_or_drop\n")
    run_folder(source, root, "--policy", policy)
    second = hashes(root)
    assert {k: v for k, v in first.items() if not k.startswith("cleaned/")} == {
        k: v for k, v in second.items() if not k.startswith(("cleaned/", "views/harsh"))
    }
    table = cleaned(root)
    assert "restored" not in table["status"].to_pylist()
    rejected = [r for r in table.to_pylist() if r["status"] == "rejected"]
    assert rejected and all(r["origin"] is None and r["gate"] == "severity_drop" and r["margin"] < 0 for r in rejected)
    assert list(problems(rundir.read(str(root)), hashes=True)) == []
    run_folder(source, root)
    assert hashes(root) == second | first


def test_a_bad_restorers_candidates_are_refused_each_by_a_gate(source: Path, tmp_path: Path) -> None:
    """It blurs and sharpens all that it is handed: what is damaged, by a severity that is not its own."""
    bad = "python:tests.benchmarks.two_restorers:BlurThenSharpen"
    run_folder(source, tmp_path / "run", "--restorer", bad)
    rows = cleaned(tmp_path / "run").to_pylist()
    refused = [r for r in rows if r["status"] == "rejected"]
    candidates = [r for r in rows if r["status"] != "kept_original"]
    assert len(rows) == 36 and len(candidates) >= 9 and len(refused) >= 0.95 * len(candidates)
    assert {r["gate"] for r in refused} <= set(QUANTITIES) and all(r["margin"] < 0 for r in refused)
    assert all(r["reason"] == f"gate_{r['gate']}" and r["origin"] is None for r in refused)
    run = rundir.read(str(tmp_path / "run"))
    tried = [r for s in run.shards() for r in shards.read_rows(run.url("restored/round1"), s).to_pylist()]
    assert sum(r["nbytes"] is not None for r in tried) == len(candidates), "rejected candidates are kept for audit"


def test_another_persons_face_is_refused_by_name_of_the_gate(
    tmp_path: Path, weights: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A candidate as sharp as could be, and somebody else."""
    with zipfile.ZipFile(data / "lfw-pairs.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".jpg"))[::10][:4]
        people = [np.asarray(Image.open(io.BytesIO(archive.read(n))).convert("RGB")) for n in names]
    (tmp_path / "in").mkdir()
    for i, person in enumerate(people):
        (tmp_path / "in" / f"{i}.png").write_bytes(png(person))

    def replaced(self: object, images: Sequence[np.ndarray], *_: object, **__: object) -> list[Restoration]:
        others = {people[i].tobytes(): people[i - 1] for i in range(len(people))}
        return [Restoration(others[image.tobytes()], 0.6, 0.1, 1, 1, "clean", 40.0) for image in images]

    monkeypatch.setattr(Restorer, "restore", replaced)
    run_folder(tmp_path / "in", tmp_path / "run", "--faces", "mobilefacenet")
    rows = cleaned(tmp_path / "run").to_pylist()
    assert [(r["status"], r["gate"]) for r in rows] == [("rejected", "identity_margin")] * 4
    assert all(r["face_model"] == "mobilefacenet" and r["faces"] >= 1 and r["identity_cosine"] < 0.4 for r in rows)
    assert all(r["lpips_source"] > 0.2 and r["niqe"] > 0 and r["after_niqe"] > 0 for r in rows)


def test_passes_end_at_a_floor_of_identity(tmp_path: Path, weights: Path, data: Path) -> None:
    """No restoration keeps a face to the last digit, and most keep it well."""
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(data / "lfw-pairs.zip") as archive:
        for name in sorted(n for n in archive.namelist() if n.endswith(".jpg"))[::10][:4]:
            person = Image.open(io.BytesIO(archive.read(name))).convert("RGB").resize((128, 128))
            (tmp_path / "in" / f"{Path(name).stem}.png").write_bytes(png(blurred(np.asarray(person), 1.2)))
    stops = {}
    for floor in (-3.0, 0.999):
        root = tmp_path / f"run{floor}"
        run_folder(tmp_path / "in", root, "--faces", "mobilefacenet", "--set", f"restore.identity={floor}")
        stops[floor] = [(r["status"], r["stop"], r["identity_cosine"] is None) for r in cleaned(root).to_pylist()]
    assert all(status != "kept_original" for status, _, _ in stops[-3.0])
    assert stops[0.999] == [("rejected", "identity", True)] * 4
    output = curate("run", "--dataset", "folder", "--source", tmp_path / "in", "--run", tmp_path / "other",
                    "--workers", 0, "--faces", "off", "--set", "restore.identity=0", code=2)  # fmt: skip
    assert "needs a face model" in output and not (tmp_path / "other").exists()


def test_the_run_says_which_instruments_speak_and_stays_with_them(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that come later change nothing in a run that began without them."""
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setenv("IDM_WEIGHTS", str(folder))
    monkeypatch.setattr("pipelines.faces._lacking", lambda name, folder: [f"{name} is not here"])
    root = tmp_path / "run"
    run_folder(source, root, "--limit", 8, "--until", "ingest")
    config = rundir.read(str(root)).config
    assert (config["faces"]["model"], config["evidence"]) == ("off", {"lpips": False, "niqe": False})
    monkeypatch.setattr("pipelines.faces._lacking", lambda name, folder: [])  # every model is there now
    monkeypatch.setattr("pipelines.weights.state", lambda weights, folder: "present")
    run_folder(source, root, "--limit", 8)
    rows = cleaned(root).to_pylist()
    assert {r["lpips_source"] for r in rows} == {r["niqe"] for r in rows} == {r["face_model"] for r in rows} == {None}
    assert any(r["ssim_source"] is not None for r in rows)
    output = curate("run", "--dataset", "folder", "--source", source, "--run", tmp_path / "other", "--workers", 0,
                    "--set", "evidence.lpips=true", code=2)  # fmt: skip
    assert "alexnet_features.safetensors is missing" in output and not (tmp_path / "other").exists()


def test_another_configuration_in_the_same_directory_is_refused(finished: Path, source: Path) -> None:
    before = hashes(finished)
    output = curate(
        "run", "--dataset", "folder", "--source", source, "--run", finished, "--shard-size", 8, "--workers", 0,
        "--set", "restore.threshold=0.9", code=1,
    )  # fmt: skip
    assert "restore.threshold" in output and hashes(finished) == before


def test_other_workers_and_other_order_give_the_same_bytes(
    finished: Path, source: Path, tmp_path: Path, local_ray: None
) -> None:
    run_folder(source, tmp_path / "run", "--workers", 2)
    assert hashes(tmp_path / "run") == hashes(finished)


def test_a_dry_run_touches_nothing(source: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    output = curate("run", "--dataset", "folder", "--source", source, "--run", root, "--shard-size", 8, "-n")
    assert "36 samples in 5 shards of 8" in output and not root.exists()


def test_every_kind_of_bad_file_gets_its_row_and_no_neighbour_is_lost(tmp_path: Path) -> None:
    good = write_folder(tmp_path / "in", 30, classes=("good",))
    (tmp_path / "in" / "bad").mkdir()
    expected = write_bad_files(tmp_path / "in" / "bad")
    assert sum(outcome.startswith("failed") for outcome in expected.values()) >= 10 and len(expected) >= 25
    run_folder(good, tmp_path / "run", "--set", "ingest.max_failed=1")
    rows = {r["source_name"]: r for r in cleaned(tmp_path / "run").to_pylist()}
    assert len([n for n in rows if n.startswith("good/")]) == 30
    for name, outcome in expected.items():
        row = rows.get(f"bad/{name}")
        assert row is not None, name
        verdict, _, detail = outcome.partition(":")
        if verdict == "failed":
            assert row["status"] == "failed" and row["reason"].startswith(detail), (name, row["reason"], outcome)
            assert row["origin"] is None and row["output_sha256"] is None
        else:
            assert row["status"] != "failed", (name, row["reason"])
            assert not detail or detail in row["notes"], (name, row["notes"], outcome)
    assert all(r["status"] != "failed" for n, r in rows.items() if n.startswith("good/"))
    assert list(problems(rundir.read(str(tmp_path / "run")), hashes=True)) == []


def test_a_shard_that_is_mostly_broken_fails_whole(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(8):
        (folder / f"{i}.png").write_bytes(b"no image")
    output = curate(
        "run", "--dataset", "folder", "--source", folder, "--run", tmp_path / "run", "--workers", 0, code=1
    )  # fmt: skip
    assert "given up" in output and "8 of 8 samples failed" in output
    assert not (tmp_path / "run/source/folder-000000.json").exists()


def test_harm_to_a_finished_run_is_found_and_mended_by_the_same_command(source: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    run_folder(source, root)
    before = hashes(root)
    (root / "cleaned/folder-000001.tar").write_bytes(b"")
    (root / "source/folder-000002.json").unlink()
    found = list(problems(rundir.read(str(root))))
    assert any("cleaned/folder-000001" in p for p in found) and any("source/folder-000002" in p for p in found)
    assert curate("verify", root, code=1)
    run_folder(source, root)
    assert hashes(root) == before


def start(source: Path, root: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable, "-m", "pipelines", "run", "--dataset", "folder", "--source", str(source), "--run", str(root),
        "--shard-size", "8", "--workers", "2",
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def processes_of(session: int) -> dict[int, str]:
    """Processes that were started in a session, with their command lines."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getsid(int(entry.name)) == session:
                    found[int(entry.name)] = (
                        (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    )
            except (ProcessLookupError, FileNotFoundError):
                continue
    return found


def kill_driver(driver: subprocess.Popen[bytes]) -> None:
    driver.kill()


def kill_an_actor(driver: subprocess.Popen[bytes]) -> None:
    for pid, command in processes_of(driver.pid).items():
        if command.startswith("ray::ShardActor"):
            os.kill(pid, signal.SIGKILL)
            return
    raise AssertionError("no actor was running")


def kill_ray(driver: subprocess.Popen[bytes]) -> None:
    for pid, command in processes_of(driver.pid).items():
        if pid != driver.pid and ("raylet" in command or "gcs_server" in command):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("kill", [kill_driver, kill_an_actor, kill_ray])
def test_a_kill_in_the_middle_then_the_same_command_gives_the_same_bytes(
    kill: Callable[[subprocess.Popen[bytes]], None], finished: Path, source: Path, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    driver = start(source, root)
    try:
        deadline = time.monotonic() + 120
        while not list(root.glob("restored/round1/*.json")):  # in the middle: some shards are restored, not all
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        kill(driver)
        driver.wait(120)
    finally:
        for pid in processes_of(driver.pid):
            os.kill(pid, signal.SIGKILL)
    run_folder(source, root)
    assert hashes(root) == hashes(finished)


def test_manifests_open_without_this_project(finished: Path) -> None:
    manifest = ds.dataset(finished / "cleaned", exclude_invalid_files=True)
    table = manifest.to_table(filter=ds.field("status") == "restored")
    assert len(table) and {"severity", "severity_after", "psnr_source", "phash"} <= set(table.column_names)
