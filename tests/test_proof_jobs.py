"""Jobs of a proof: whatever is killed, the same command ends with the same bits; no job takes another along."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import skimage
import yaml

from idm_core.generators import batches
from idm_core.generators import training as generators_training
from idm_core.generators.batches import batch_at, epoch_order
from idm_core.training_state import STATE
from manifests import rundir, storage
from manifests.errors import RunError
from manifests.rundir import Run
from pipelines.config import Resources
from pipelines.proof import arms, board, jobs, plan, room, training
from pipelines.proof.plan import ArmName, External, Job, Proof
from pipelines.proof.training import Training
from pipelines.training_images import TrainingImages
from tests.command_line import curate
from tests.tiny_generators import DDM, GAN
from tests.tiny_proof import holder, know_tiny_presets, results, stats

ROOT = Path(__file__).parent.parent
#: Any images: none of these tests measures.
REFERENCE = ["--reference", Path(skimage.__file__).parent / "data", "--samples", 4]
#: 10 steps a job, a snapshot in the middle.
NIMG = 160
NAMES = [f"{arm}-{trainer}-s0" for trainer in ("tiny-ddm", "tiny-gan") for arm in ("original", "null")]


@pytest.fixture(autouse=True)
def tiny_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    know_tiny_presets(monkeypatch)


@pytest.fixture
def run(curated_run: Path, tmp_path: Path) -> Path:
    """A copy of a run that is decided."""
    return Path(shutil.copytree(curated_run, tmp_path / "run"))


def arguments(run: Path, *more: object, nimg: int = NIMG) -> list[object]:
    trainers = ["--trainer", DDM.name, "--trainer", GAN.name]
    arms = ["--arm", "original", "--arm", "null"]
    return ["retrain", run, *arms, *trainers, "--seeds", 1, "--nimg", nimg, "--snapshots", 2, *REFERENCE, *more]


def retrain(run: Path, *more: object, code: int = 0) -> str:
    return curate(*arguments(run, "--workers", 0, *more), code=code)


@pytest.fixture(scope="module")
def whole(curated_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose jobs nothing disturbed; for reading."""
    root = Path(shutil.copytree(curated_run, tmp_path_factory.mktemp("whole") / "run"))
    with pytest.MonkeyPatch.context() as patch:
        know_tiny_presets(patch)
        retrain(root)
    return root


def test_each_job_has_a_folder_that_says_what_it_is(whole: Path) -> None:
    run = rundir.read(str(whole))
    assert [job.name for job in plan.jobs(plan.read(run))] == NAMES
    for name in NAMES:
        folder = whole / "jobs" / name
        about, done = (storage.read_json(str(folder / f"{which}.json")) for which in ("job", "done"))
        assert done["fingerprint"] == about["fingerprint"]
        assert done["snapshots"] == ["snapshot-0000000080.safetensors", "snapshot-0000000160.safetensors"]
        assert all((folder / snapshot).is_file() for snapshot in done["snapshots"])
        assert about["train"]["preset"]["name"] in name and about["train"]["nimg"] == NIMG
        assert about["train"]["seed"] == (10_000 if "null" in name else 0)
        assert not (folder / "failure.json").exists()
    assert "4/4 done" in curate("status", whole)


class Killed(BaseException):
    """Stands for a kill: nothing after it is done."""


@pytest.mark.parametrize("at", [0, 3, 12, 25])
def test_killed_at_any_point_the_same_command_ends_with_the_same_bits(
    at: int, run: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first step, in the first job, in the second one, and in a GAN."""
    left = at

    def deadly(*rest: Any) -> Any:
        nonlocal left
        if not left:
            raise Killed
        left -= 1
        return batch_at(*rest)

    with monkeypatch.context() as patch:
        patch.setattr(generators_training, "batch_at", deadly)
        with pytest.raises(Killed):
            retrain(run)
    assert results(run) != results(whole)
    curate("retrain", run, "--workers", 0)  # as it was declared
    assert results(run) == results(whole)


def test_what_was_trained_on_is_not_measured_by_another_split(whole: Path, tmp_path: Path) -> None:
    """Else the reference would hold images that the generators have seen."""
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    policy = storage.read_json(str(run / "views" / "default.json"))["policy"] | {"validation": 0.4}
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(policy))
    curate("select", run, "--policy", tmp_path / "policy.yaml")
    assert "arm original held other images" in curate("evaluate", run, code=1)
    assert not (run / "metrics.jsonl").exists()


def test_pairs_differ_in_nothing_but_their_arm(run: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of one pair are trained alike and see their images in the same order; the null's have one of their own."""
    seen: dict[str, list[tuple[int, list[int]]]] = {}
    begun: list[str] = []
    train = jobs.train

    def named(run: Run, proof: Proof, training: Training, device: str) -> None:
        begun.append(training.job.name)
        train(run, proof, training, device)

    def told(count: int, seed: int, epoch: int) -> Any:
        order, flips = epoch_order(count, seed, epoch)
        seen.setdefault(begun[-1], []).append((epoch, order.tolist()))
        return order, flips

    monkeypatch.setattr(jobs, "train", named)
    monkeypatch.setattr(batches, "epoch_order", told)
    # What chance makes of a proof whose cleaning changed nothing: the same samples under two names.
    monkeypatch.setattr("pipelines.proof.arms.prepare_arm", prepare_original)
    retrain(run, "--arm", "cleaned", "--seeds", 2)
    for trainer in (DDM.name, GAN.name):
        pairs = [seen[f"original-{trainer}-s{pair}"] for pair in (0, 1)]
        assert pairs == [seen[f"cleaned-{trainer}-s{pair}"] for pair in (0, 1)] and pairs[0] != pairs[1]
        assert all(seen[f"null-{trainer}-s{pair}"] not in pairs for pair in (0, 1))
    ours = results(run)
    assert {name: ours[name] for name in results(whole)} == results(whole)
    for name in (name for name in ours if name.startswith("original")):
        same = ours[name] == ours[name.replace("original", "cleaned")]
        assert same == name.endswith("stats.jsonl"), "a snapshot says of which arm it is"


def test_what_is_done_is_not_done_again_and_seeds_may_be_added(whole: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(whole, tmp_path / "run"))
    before = {p: p.stat().st_mtime_ns for p in (root / "jobs").rglob("*") if p.is_file()}
    retrain(root)
    assert {p: p.stat().st_mtime_ns for p in (root / "jobs").rglob("*") if p.is_file()} == before
    retrain(root, "--seeds", 2)
    assert results(whole).items() <= results(root).items()
    assert len(results(root)) == 2 * len(results(whole))
    changed = {p for p, stamp in before.items() if p.stat().st_mtime_ns != stamp}
    assert changed == {root / "jobs/proof.json"}


def test_a_job_that_fails_takes_no_other_along_and_can_be_mended(run: Path, whole: Path) -> None:
    folder = run / "jobs" / NAMES[1]
    folder.mkdir(parents=True)
    (folder / STATE).write_bytes(b"no state")
    said = retrain(run, code=1)
    assert f"1 jobs failed; the first: {folder}/failure.json" in said
    assert STATE in storage.read_json(str(folder / "failure.json"))["error"]
    assert not (folder / "done.json").exists()
    assert all((run / "jobs" / name / "done.json").exists() for name in NAMES if name != NAMES[1])
    (folder / STATE).unlink()
    retrain(run)
    assert results(run) == results(whole) and not (folder / "failure.json").exists()


def test_an_error_that_is_none_of_ours_is_kept_whole(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "train", lambda *_: 1 / 0)
    said = retrain(run, code=1)
    assert "4 jobs failed" in said
    error = storage.read_json(str(run / "jobs" / NAMES[0] / "failure.json"))["error"]
    assert error.startswith("Traceback") and error.strip().endswith("ZeroDivisionError: division by zero")


def test_another_training_in_a_jobs_folder_is_refused(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = results(whole)
    said = retrain(whole, "--snapshots", 5, code=2)
    assert "snapshots (2 there, 5 now)" in said
    path = whole / "jobs" / NAMES[2] / "job.json"
    about = storage.read_json(str(path))
    storage.write_json(about | {"images": "others", "train": about["train"] | {"mirror": False}}, str(path))
    said = retrain(whole, code=2)
    assert "images ('others' there" in said and "train.mirror (False there, True now)" in said
    storage.write_json(about, str(path))
    retrain(whole)
    assert results(whole) == before


def test_a_snapshot_that_is_gone_is_no_success(whole: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(whole, tmp_path / "run"))
    folder = root / "jobs" / NAMES[0]
    (folder / "done.json").unlink()
    (folder / "snapshot-0000000080.safetensors").unlink()
    retrain(root, code=1)
    assert "1 of 2 snapshots are there" in storage.read_json(str(folder / "failure.json"))["error"]


def test_arms_are_decoded_side_by_side_to_the_same_bytes_and_errors(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_ray: None
) -> None:
    alone = Path(shutil.copytree(run, tmp_path / "alone"))
    damaged = Path(shutil.copytree(run, tmp_path / "damaged"))
    mine = External(train=(sys.executable,), resolution=DDM.resolution)
    proof = Proof(
        arms=("original", "null", "placebo"), trainers=(DDM.name, "mine"), external={"mine": mine}, view="default"
    )
    training.prepare(rundir.read(str(alone)), proof)
    jobs._decode_side_by_side(rundir.read(str(run)), proof, Resources())

    def decoded(root: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (root / "jobs/images").iterdir()}

    assert len(decoded(run)) == 8 and decoded(run) == decoded(alone)
    monkeypatch.setattr("pipelines.exports.arm.pixels_at", None)  # the driver has nothing left to decode
    training.prepare(rundir.read(str(run)), proof)

    tar = sorted((damaged / "source").glob("*.tar"))[0]
    tar.write_bytes(tar.read_bytes()[:-10_000])
    with pytest.raises(RunError, match=rf"^(?!ray::).*{tar.stem}"):
        jobs._decode_side_by_side(rundir.read(str(damaged)), proof, Resources())


prepare_arm = arms.prepare_arm


def prepare_original(run: Run, proof: Proof, arm: ArmName, resolution: int) -> TrainingImages:
    return prepare_arm(run, proof, "original", resolution)


def waited_for(what: Callable[[], bool], driver: subprocess.Popen[str], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.05)


def nimg_of(folder: Path) -> float:
    """How far a job has said it is; nowhere, where it was killed before its first state and begins again."""
    return max((line["nimg"] for line in stats(folder)), default=0)


def test_side_by_side_on_ray_a_killed_worker_and_a_killed_driver_cost_no_bit(run: Path, tmp_path: Path) -> None:
    """Two jobs of Ray Train at the same time; a worker is killed, then the driver; the rest is done without Ray."""
    if (os.cpu_count() or 1) < 2:
        pytest.skip("one CPU: there is no room for two jobs")
    undisturbed = Path(shutil.copytree(run, tmp_path / "undisturbed"))
    options = ["--arm", "original", "--arm", "null", "--trainer", DDM.name, "--seeds", 1, "--nimg", 16 * 600]
    options += ["--snapshots", 2, *REFERENCE]
    curate("retrain", undisturbed, *options, "--workers", 0)

    command = [sys.executable, "-m", "tests.tiny_proof", "retrain", run, *options]
    driver = subprocess.Popen(
        [str(word) for word in command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    folders = [run / "jobs" / name for name in NAMES[:2]]
    waited_for(lambda: all(stats(folder) and holder(folder) for folder in folders), driver)
    assert not any((folder / "done.json").exists() for folder in folders), "they are trained at the same time"
    first = holder(folders[0])
    assert first is not None
    os.kill(first, signal.SIGKILL)
    waited_for(lambda: holder(folders[0]) not in (None, first), driver)
    reached = nimg_of(folders[0])
    waited_for(lambda: nimg_of(folders[0]) > reached, driver)
    workers = [holder(folder) for folder in folders]
    driver.kill()
    driver.communicate()
    assert not (folders[0] / "done.json").exists()
    deadline = time.monotonic() + 60
    while any(worker is not None and Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, "workers outlive their driver"
        time.sleep(0.1)
    curate("retrain", run, *options, "--workers", 0)
    assert results(run) == results(undisturbed)


def test_two_processes_that_share_a_job_end_where_one_does(run: Path, tmp_path: Path) -> None:
    """Of two gradients the order in which they are added up is all the same: so to the same bits."""
    if (os.cpu_count() or 1) < 2:
        pytest.skip("one CPU: there is no room for two processes")
    alone = Path(shutil.copytree(run, tmp_path / "alone"))
    options = ["--arm", "original", "--trainer", DDM.name, "--seeds", 1, "--nimg", NIMG, "--snapshots", 2, *REFERENCE]
    options += ["--set", "proof.workers=2"]
    curate("retrain", alone, *options, "--workers", 0)
    command = [sys.executable, "-m", "tests.tiny_proof", "retrain", run, *options]
    done = subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert results(run) == results(alone)


def test_not_more_jobs_are_started_than_there_is_room_for(local_ray: None) -> None:
    """On two CPUs and two GPUs."""

    def may(needs: dict[str, float], *others: dict[str, float], at_once: int | None = None, local: bool = True) -> bool:
        all_needs = {str(i): n for i, n in enumerate([needs, *others])}
        named = [Named(Job("original", str(i), 0, 0, 1)) for i in range(len(all_needs))]
        by_name = {t.job.name: n for t, n in zip(named, all_needs.values(), strict=True)}
        return room.has_room(named[0], named[1:], by_name, at_once, local)  # type: ignore[arg-type]

    class Named:
        def __init__(self, job: Job) -> None:
            self.job = job

    one, gpu = {"CPU": 1, "GPU": 0}, {"CPU": 0, "GPU": 1}
    assert may(one) and may(one, one) and not may(one, one, one)
    assert may(gpu, gpu) and not may(gpu, gpu, gpu) and may(gpu, one, one)
    assert may({"CPU": 0, "GPU": 0.5}, gpu, {"CPU": 0, "GPU": 0.5}) and not may(gpu, gpu, {"CPU": 0, "GPU": 0.5})
    assert may({"CPU": 64, "GPU": 8}), "a cluster grows for what waits"
    assert may(one, one, one, local=False) and not may(one, one, one, one, local=False), "one that waits is enough"
    assert not may(one, one, at_once=1) and not may(one, one, one, at_once=3)
    assert may(one, one, one, at_once=3, local=False) and not may(one, one, one, at_once=2, local=False)


def test_the_board_tells_how_far_each_job_is(whole: Path) -> None:
    run, planned = rundir.read(str(whole)), list(plan.jobs(plan.read(rundir.read(str(whole)))))
    states: board.States = {job.name: "done" for job in planned}
    states[NAMES[0]], states[NAMES[1]] = "running", "failed"
    told = board.line(run, planned, states)
    assert told.startswith("retrain: 2/4 jobs done; 1 running; 1 failed; original-tiny-ddm-s0 160/160")
    table = board.table(run, planned, states)
    columns = {str(column.header): list(column.cells) for column in table.columns}
    assert columns["job"] == NAMES and columns["state"] == ["running", "failed", "done", "done"]
    assert columns["images"][0] == "160 of 160"
    lines = stats(whole / "jobs" / NAMES[0])
    told_of = board.statistics(run, planned[0])
    assert told_of is not None and told_of["loss"] == lines[-1]["loss"] and told_of["left"] == 0
    many = [Job("original", "tiny-ddm", pair, pair, 10) for pair in range(100)]
    table = board.table(run, many, {job.name: "waiting" for job in many})
    assert table.row_count == 0 and "100 more" in str(table.caption)
