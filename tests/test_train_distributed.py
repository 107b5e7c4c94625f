"""Training spread over processes by Ray Train: what one process would do, whatever dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from idm_core.training import TrainConfig, train
from idm_core.training_state import STATE
from manifests.errors import ConfigError, RunError, SourceError
from pipelines.cli import cli
from pipelines.train_distributed import first_failure, train_on_ray
from pipelines.train_idm import train_idm
from tests.tiny_training import (
    CONFIG,
    VALIDATION,
    fall_ill,
    find_no_photographs,
    interrupt,
    pristine,
    train_and_die_once,
    write_photographs,
)

#: Two batches of 4 make a step, three steps a state.
SHARED = replace(CONFIG, accumulate=2)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "stats.jsonl").read_text().splitlines()]


def assert_same_run(out: Path, reference: Path) -> None:
    """The same weights, moments and figures, to what the order of additions leaves; and no other files."""
    ours, theirs = load_file(out / STATE), load_file(reference / STATE)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6, msg=name)
    assert [line["nimg"] for line in lines(out)] == [line["nimg"] for line in lines(reference)]
    for line, expected in zip(lines(out), lines(reference), strict=True):
        for name in ("loss", "severity_loss", "psnr_after_mild"):
            assert line[name] == pytest.approx(expected[name], abs=1e-5, rel=1e-5), name
    assert {path.name for path in out.iterdir()} - {"died"} == {path.name for path in reference.iterdir()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run in one process, 48 images."""
    out = tmp_path_factory.mktemp("alone")
    train(pristine, VALIDATION, SHARED, out)
    return out


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("photographs"))


def test_two_processes_train_as_one_and_one_goes_on(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_ray: None
) -> None:
    monkeypatch.setattr("pipelines.train_idm.CALIBRATION_PATCHES", 100)
    monkeypatch.chdir(tmp_path)  # paths from the command line may be relative; the workers are in another folder
    (tmp_path / "photographs").symlink_to(photographs)
    train_idm(["photographs"], Path("alone"), SHARED)
    handler = signal.getsignal(signal.SIGINT)
    train_idm(["photographs"], Path("shared"), replace(SHARED, nimg=24), workers=2, gpus_per_worker=0)
    assert signal.getsignal(signal.SIGINT) is handler
    assert [line["nimg"] for line in lines(tmp_path / "shared")] == [24]
    train_idm(["photographs"], Path("shared"), SHARED)
    assert_same_run(tmp_path / "shared", tmp_path / "alone")


def test_a_killed_process_costs_nothing_but_time(alone: Path, tmp_path: Path, local_ray: None) -> None:
    train_on_ray(partial(train_and_die_once, SHARED, tmp_path, 38), tmp_path, 2, gpus_per_worker=0)
    assert (tmp_path / "died").exists()
    assert_same_run(tmp_path, alone)


def test_lines_after_the_state_are_written_again(alone: Path, tmp_path: Path) -> None:
    train(pristine, VALIDATION, replace(SHARED, nimg=24), tmp_path)
    with (tmp_path / "stats.jsonl").open("a") as stats:
        stats.write('{"nimg": 48, "loss": 9}\n{"nimg": 72, "lo')  # it was killed after a line, and within one
    train(pristine, VALIDATION, SHARED, tmp_path)
    assert_same_run(tmp_path, alone)


def test_an_error_of_our_own_comes_back_as_it_is_and_is_final(tmp_path: Path, local_ray: None) -> None:
    with pytest.raises(SourceError, match="none of 3 photographs"):
        train_on_ray(partial(find_no_photographs, tmp_path), tmp_path, 1, gpus_per_worker=0)
    assert len(list(tmp_path.glob("*.trace"))) == 1


def test_another_error_is_told_when_restarts_are_used_up(tmp_path: Path, local_ray: None) -> None:
    with pytest.raises(RunError, match="after 0 restarts: OSError: the disk is on holiday"):
        train_on_ray(fall_ill, tmp_path, 1, gpus_per_worker=0, max_failures=0)


def test_ctrl_c_is_no_success(tmp_path: Path, local_ray: None) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_on_ray(partial(interrupt, os.getpid()), tmp_path, 1, gpus_per_worker=0)


def test_the_first_failure_is_the_cause() -> None:
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    closed, died = RuntimeError("Connection closed by peer"), WorkerHealthCheckFailedError("died", OSError("gone"))
    ours = ConfigError("no such preset")
    assert first_failure({0: closed, 1: died, 2: closed}) is died
    assert first_failure({0: closed, 1: died, 2: ours}) is ours
    assert first_failure({2: closed, 1: OSError("full")}).args == ("full",)


def test_wrong_options_are_refused_before_ray_starts(photographs: Path, tmp_path: Path) -> None:
    program = """
import sys
from click.testing import CliRunner
from pipelines.cli import cli
command = ["train-idm", "--source", sys.argv[1], "--out", sys.argv[2], "--workers", "2"]
for wrong in (["--accumulate", "3"], ["--share", "1", "--share", "1"]):
    done = CliRunner().invoke(cli, [*command, *wrong])
    print(done.exit_code, done.output.strip())
print(sys.modules.get("ray") is not None and sys.modules["ray"].is_initialized())
"""
    arguments = [sys.executable, "-c", program, str(photographs), str(tmp_path / "out")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    first, second, started = done.stdout.splitlines()
    assert first.startswith("2 Error: --workers 2 share the 3 batches of a step (--accumulate)")
    assert second.startswith("2 Error: 1 sources need as many shares")
    assert started == "False"


def test_more_than_this_machine_has_is_an_error_and_not_a_wait(tmp_path: Path, local_ray: None) -> None:
    def nothing(device: str) -> None: ...

    with pytest.raises(ConfigError, match="--workers 3 need 3 CPUs; this machine has 2"):
        train_on_ray(nothing, tmp_path, 3, gpus_per_worker=0)
    with pytest.raises(ConfigError, match=r"--gpus-per-worker 0\.5: a process trains on one whole GPU"):
        train_on_ray(nothing, tmp_path, 2, gpus_per_worker=0.5)
    with pytest.raises(ConfigError, match="--workers 0: a group has at least one process"):
        train_on_ray(nothing, tmp_path, 0)


@pytest.mark.parametrize(
    ("arguments", "accumulate"), [([], 1), (["--workers", "4"], 4), (["--workers", "2", "--accumulate", "8"], 8)]
)
def test_a_step_has_a_batch_for_each_worker(
    arguments: list[str], accumulate: int, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def record(sources: tuple[str, ...], out: Path, config: TrainConfig, **options: Any) -> Path:
        seen.update(options, config=config)
        return out

    monkeypatch.setattr("pipelines.train_idm.train_idm", record)
    done = CliRunner().invoke(cli, ["train-idm", "--source", str(photographs), "--out", str(tmp_path), *arguments])
    assert done.exit_code == 0, done.output
    assert seen["config"].accumulate == accumulate
    assert seen["workers"] == (int(arguments[1]) if arguments else 0)
