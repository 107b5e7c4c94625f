"""Trainers that are not ours: what they get, what is made of their failures, and that they end with the driver."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
import yaml
from PIL import Image

from idm_core.generators import Images
from manifests import storage
from pipelines.proof import external, jobs, room
from tests.command_line import curate
from tests.export_fixture import ImageFolderDataset

ROOT = Path(__file__).parent.parent
STUB = Path(__file__).parent / "stub_trainer.py"
REFERENCE = Path(skimage.__file__).parent / "data"
PYTHON = sys.executable


@pytest.fixture
def run(curated_run: Path, tmp_path: Path) -> Path:
    """A copy of a run that is decided."""
    return Path(shutil.copytree(curated_run, tmp_path / "run"))


def declared(folder: Path, trainers: dict[str, dict[str, Any]], **more: Any) -> Path:
    """A YAML file that declares trainers, with two arms and one seed where nothing else is said."""
    path = folder / "proof.yaml"
    defaults = {"arms": ["original", "null"], "seeds": 1, "nimg": 1500, "samples": 5, "reference": str(REFERENCE)}
    trainers = {name: {"resolution": 16, "gpus": 0, **trainer} for name, trainer in trainers.items()}
    path.write_text(yaml.safe_dump({"proof": defaults | {"trainers": list(trainers), "external": trainers} | more}))
    return path


def stub(*words: object) -> list[str]:
    return [PYTHON, str(STUB), *map(str, words)]


def retrain(run: Path, config: Path, *more: object, code: int = 0) -> str:
    return curate("retrain", run, "--config", config, "--workers", 0, *more, code=code)


def error_of(run: Path, job: str) -> str:
    return str(storage.read_json(str(run / "jobs" / job / "failure.json"))["error"])


TRAIN = stub(
    "train", "{data}", "{out}", "{seed}", "{nimg}", "{kimg}", "{mimg}", "{gpus}", "{classes}", "{cond}", '{"a"}'
)
SAMPLE = stub("sample", "{snapshot}", "{samples}", "{count}")


def test_a_trainer_gets_its_arm_and_its_samples_are_collected(run: Path, tmp_path: Path) -> None:
    config = declared(tmp_path, {"other": {"train": TRAIN, "sample": SAMPLE, "snapshot": "snap*.pkl"}}, classes=True)
    retrain(run, config)
    for arm, seed in (("original", 0), ("null", 10_000)):
        folder = run / "jobs" / f"{arm}-other-s0"
        images = ImageFolderDataset(run / "jobs/images/original-16-classes.zip")
        assert images.labels is not None and set(images.labels) == {0, 1, 2} and images.shape == (3, 16, 16)
        told = (folder / "out/snapshot-1.pkl").read_text().splitlines()
        assert told == [str(len(images.names)), str(seed), "1500", "2", "0.0015", "0", "3", "1", '{"a"}']
        images.close()
        assert len(list((folder / "samples").rglob("*.png"))) == 5
        assert "trained on" in (folder / "log.txt").read_text()
        marker = storage.read_json(str(folder / "done.json"))
        assert marker["fingerprint"] == storage.read_json(str(folder / "job.json"))["fingerprint"]
        (folder / "out/snapshot-1.pkl").unlink()
    retrain(run, config)
    assert not list((run / "jobs").rglob("snapshot-1.pkl")), "what is done is not done again"


def test_a_zip_holds_an_arms_pixels_once(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1003, 8, 8, 3), dtype=np.uint8)
    path = tmp_path / "images" / "arm.zip"
    external.write_zip(Images(pixels, np.arange(1003) % 3, fingerprint="one"), path)
    opened = ImageFolderDataset(path)
    assert opened.labels is not None and opened.labels.tolist() == (np.arange(1003) % 3).tolist()
    assert all(np.array_equal(opened[i].transpose(1, 2, 0), pixels[i]) for i in range(1003))
    opened.close()
    before = path.stat().st_mtime_ns
    external.write_zip(Images(pixels, np.arange(1003) % 3, fingerprint="one"), path)
    assert path.stat().st_mtime_ns == before
    external.write_zip(Images(pixels[:4], fingerprint="two"), path)
    opened = ImageFolderDataset(path)
    assert len(opened.names) == 4 and opened.labels is None
    opened.close()
    assert [p.name for p in path.parent.iterdir()] == ["arm.zip"]


def write_images(folder: Path, images: Sequence[bytes]) -> None:
    for i, data in enumerate(images):
        (folder / f"{i}.png").write_bytes(data)


def test_samples_are_counted_and_looked_at(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    external.check_samples(tmp_path, 1)
    with pytest.raises(Exception, match="1 images are there, 2 were to be made"):
        external.check_samples(tmp_path, 2)
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(Exception, match=r"b\.png: it cannot be decoded: not_an_image"):
        external.check_samples(tmp_path, 2)


def test_what_goes_wrong_is_told_with_the_last_words_and_the_others_go_on(run: Path, tmp_path: Path) -> None:
    trainers = {
        "fails": {"train": stub("fail")},
        "lazy": {"train": stub("train", "{data}", "{out}"), "sample": [PYTHON, "-c", "pass"]},
        "forgets": {"train": [PYTHON, "-c", "pass"], "sample": SAMPLE, "snapshot": "**/net*.pkl"},
        "good": {"train": TRAIN},
    }
    said = retrain(run, config := declared(tmp_path, trainers, arms=["original"]), code=1)
    assert "3 jobs failed; the first: " in said and "original-fails-s0/failure.json" in said
    told = error_of(run, "original-fails-s0").splitlines()
    assert "ended with exit status 1; it said last:" in told[0]
    assert told[-2:] == ["line 49", "out of memory, or so"] and len(told) < 12
    assert "0 images are there, 5 were to be made" in error_of(run, "original-lazy-s0")
    assert "there is no **/net*.pkl" in error_of(run, "original-forgets-s0")
    assert (run / "jobs/original-good-s0/done.json").exists()
    assert "3 jobs failed" in retrain(run, config, code=1), "they are tried again"


def test_samples_that_fail_cost_no_training_and_are_mended_until_a_job_is_done(run: Path, tmp_path: Path) -> None:
    def again(code: int = 0, **other: object) -> str:
        trainer = {"train": TRAIN, "sample": SAMPLE, "snapshot": "snap*.pkl"} | other
        return retrain(run, declared(tmp_path, {"other": trainer}, arms=["original"]), code=code)

    folder = run / "jobs/original-other-s0"
    again(1, sample=stub("fail"))
    again(1, snapshot="*.pt")
    assert "external.other.train" in again(2, train=[*TRAIN, "more"])
    again()
    assert (folder / "log.txt").read_text().count("trained on") == 1
    about, done = (storage.read_json(str(folder / f"{name}.json")) for name in ("job", "done"))
    assert about["external"]["sample"] == SAMPLE and about["fingerprint"] == done["fingerprint"]
    said = again(2, sample=stub("fail"), snapshot="*.pt")
    assert "external.other.sample" in said and "external.other.snapshot ('snap*.pkl' there, '*.pt' now)" in said
    storage.write_json({"fingerprint": "of another training"}, str(folder / "trained.json"))
    (folder / "done.json").unlink()
    again()
    assert (folder / "log.txt").read_text().count("trained on") == 2


def test_what_cannot_work_is_refused_before_anything_is_done(run: Path, tmp_path: Path) -> None:
    for trainers, words in (
        ({"mine": {"train": ["no-such-program", "{data}"]}}, "there is no program no-such-program"),
        ({"gan-32": {"train": [PYTHON]}}, "a preset is called so"),
        ({"mine": {"train": [PYTHON, "{date}"]}}, "{date} is not known; there are data, out"),
        ({"mine": {"train": [PYTHON, "{samples}"]}}, "{samples} is not known"),
        ({"mine": {"train": [PYTHON], "sample": [PYTHON, "{snapshot}"]}}, "needs `snapshot`"),
        ({"../mine": {"train": [PYTHON]}}, "is no name"),
    ):
        assert words in retrain(run, declared(tmp_path, trainers), code=2)
    assert not (run / "jobs").exists()


def test_side_by_side_on_the_gpus_that_ray_gives_them(run: Path, tmp_path: Path, local_ray: None) -> None:
    """Two logical GPUs, four jobs that each want one: two at a time, each its own; those that fail stop no other."""
    place = tmp_path / "place"
    place.mkdir()
    trainer = {"train": stub("meet", place, "{out}", "{seed}", 2), "gpus": 1}
    config = declared(tmp_path, {"meets": trainer}, seeds=2)
    said = curate("retrain", run, "--config", config, code=1)
    assert "2 jobs failed; the first: " in said and "original-meets-s1/failure.json" in said
    jobs = {p.parent.parent.name: p.read_text() for p in (run / "jobs").glob("*/out/gpu")}
    assert len(jobs) == 4 and set(jobs.values()) == {"0", "1"}
    assert jobs["original-meets-s0"] != jobs["null-meets-s0"]
    assert [p.name for p in sorted((run / "jobs").glob("*/done.json"))] == ["done.json"] * 2
    for name in ("original-meets-s0", "null-meets-s0"):
        assert (run / "jobs" / name / "out/together").read_text() == "2"
    assert "an odd seed" in error_of(run, "null-meets-s1")


def test_more_than_this_machine_has_is_an_error_and_not_a_wait(run: Path, tmp_path: Path, local_ray: None) -> None:
    config = declared(tmp_path, {"large": {"train": TRAIN, "gpus": 3}})
    assert "it needs 3 GPUs; this machine has 2" in curate("retrain", run, "--config", config, code=2)


def waited_for(what: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.05)


@pytest.mark.parametrize("workers", [["--workers", "0"], []], ids=["here", "ray"])
def test_a_killed_driver_takes_the_trainer_and_all_its_processes_along(
    workers: list[str], run: Path, tmp_path: Path
) -> None:
    config = declared(tmp_path, {"slow": {"train": stub("linger", "{out}")}}, arms=["original"])
    command = [PYTHON, "-m", "pipelines", "retrain", str(run), "--config", str(config), *workers]
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pids = run / "jobs/original-slow-s0/out/pids"
    waited_for(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    processes = [Path("/proc") / pid for pid in pids.read_text().split()]
    assert all(process.exists() for process in processes)
    driver.kill()
    driver.wait()
    waited_for(lambda: not any(process.exists() for process in processes), 30)


def test_no_second_trainer_begins_before_the_first_has_ended(run: Path, tmp_path: Path) -> None:
    """It takes its time to die when its driver was killed, and the same command is given at once."""
    config = declared(tmp_path, {"deaf": {"train": stub("stubborn", "{out}")}}, arms=["original"])
    command = [PYTHON, "-m", "pipelines", "retrain", str(run), "--config", str(config), "--workers", "0"]
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pid = run / "jobs/original-deaf-s0/out/pid"
    waited_for(lambda: pid.exists() and pid.read_text() != "")
    driver.kill()
    driver.wait()
    assert Path(f"/proc/{pid.read_text()}").exists()
    retrain(run, config)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C interrupts, in tests that a shell runs in the background too: such a process is born deaf to it."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


def test_ctrl_c_ends_what_runs_on_ray_and_is_no_failure(
    run: Path, tmp_path: Path, local_ray: None, ctrl_c: None
) -> None:
    config = declared(tmp_path, {"slow": {"train": stub("linger", "{out}")}})
    pids = [run / "jobs" / f"{arm}-slow-s0/out/pids" for arm in ("original", "null")]

    def interrupt() -> None:
        waited_for(lambda: all(path.exists() and len(path.read_text().split()) == 2 for path in pids))
        os.kill(os.getpid(), signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    said = curate("retrain", run, "--config", config, code=130)
    interrupter.join()
    assert "the same command again continues" in said
    processes = [Path("/proc") / pid for path in pids for pid in path.read_text().split()]
    waited_for(lambda: not any(process.exists() for process in processes), 30)
    assert not list((run / "jobs").glob("*/failure.json")) and not list((run / "jobs").glob("*/done.json"))


def test_who_waits_for_a_node_that_may_never_come_is_told(
    run: Path, tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """This machine passes for a cluster, which may grow, and for this job it does not."""
    warn = room.warn_without_node
    warn("small", {"CPU": 2, "GPU": 2})

    def told(name: str, needs: dict[str, float]) -> None:
        warn(name, needs)
        raise KeyboardInterrupt

    monkeypatch.setenv("RAY_ADDRESS", "a-cluster:6379")
    monkeypatch.setattr("pipelines.workers.PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(jobs, "warn_without_node", told)
    config = declared(tmp_path, {"large": {"train": TRAIN, "gpus": 4}}, arms=["original"])
    curate("retrain", run, "--config", config, code=130)
    said = [message for message in caplog.messages if "waits for a node" in message]
    assert said == ["job original-large-s0 waits for a node with 1 CPUs and 4 GPUs; none is there"]


def test_a_real_trainer_learns_from_an_arm_and_makes_images(run: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("denoising_diffusion_pytorch") is None:
        pytest.skip("denoising-diffusion-pytorch is not installed")
    script = str(Path(__file__).parent / "ddpm_trainer.py")
    trainer = {
        "train": [PYTHON, script, "train", "{data}", "{out}", "{nimg}", "{seed}"],
        "sample": [PYTHON, script, "sample", "{snapshot}", "{samples}", "{count}", "{seed}"],
        "snapshot": "network-*.pt",
    }
    retrain(run, declared(tmp_path, {"ddpm": trainer}, arms=["original"], nimg=64, samples=3))
    folder = run / "jobs/original-ddpm-s0"
    losses = [float(line.split()[-1]) for line in (folder / "log.txt").read_text().splitlines() if " loss " in line]
    assert len(losses) == 8 and losses[-1] < losses[0]
    images = [np.asarray(Image.open(path)) for path in sorted((folder / "samples").iterdir())]
    assert [image.shape for image in images] == [(16, 16, 3)] * 3
    assert not np.array_equal(images[0], images[1])
