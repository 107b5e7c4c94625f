"""The command line: every command explains itself, errors are messages, exit codes mean what they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pipelines.cli import cli

ROOT = Path(__file__).parent.parent
COMMANDS = sorted(cli.commands)


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pipelines", *arguments], capture_output=True, text=True, cwd=ROOT)


def test_the_promised_commands_are_there() -> None:
    promised = [
        "run",
        "ingest",
        "train-idm",
        "restore",
        "select",
        "pack",
        "status",
        "verify",
        "report",
        "doctor",
        "submit",
    ]
    assert set(promised) <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_and_is_in_the_readme(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0
    assert "Example" in result.output and f"idm-curate {name}" in result.output
    for parameter in cli.commands[name].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.name}"
    assert f"idm-curate {name}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("dataset", ["ffhq", "imagenet"])
def test_without_a_source_it_says_where_to_get_one(dataset: str) -> None:
    done = program("run", "--dataset", dataset)
    assert done.returncode == 2
    assert "idm-curate run --dataset sample" in done.stderr and "http" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--set", "restore.treshold=0.1"], "restore.treshold"),
        (["--set", "restore.threshold=high"], "restore.threshold"),
        (["--set", "nonsense"], "key=value"),
        (["--set", "dataset.limit=0"], "dataset.limit"),
        (["--restorer", "idm-9000"], "idm-9000"),
        (["--policy", "mild"], "mild"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--workers", "-1"], "workers"),
    ],
)
def test_a_wrong_option_exits_2_and_is_named(arguments: list[str], named: str, tmp_path: Path) -> None:
    done = program("run", "--dataset", "sample", "--run", str(tmp_path / "run"), *arguments)
    assert done.returncode == 2 and named in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["status", "verify", "restore", "select", "pack", "report"])
def test_what_is_no_run_is_an_error(command: str, tmp_path: Path) -> None:
    done = program(command, str(tmp_path))
    assert done.returncode == 1 and "run.json" in done.stderr and "Traceback" not in done.stderr


def test_a_source_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    source, root = str(tmp_path / "none"), str(tmp_path / "run")
    done = program("run", "--dataset", "folder", "--source", source, "--run", root)
    assert done.returncode in (1, 2) and str(tmp_path / "none") in done.stderr and "Traceback" not in done.stderr


def test_yaml_is_overridden_by_set_and_set_by_options(tmp_path: Path) -> None:
    from pipelines.config import load

    file = tmp_path / "c.yaml"
    file.write_text("dataset: {name: folder, source: /a, limit: 1}\nrestore: {threshold: 0.1}\n")
    config = load(file, ["dataset.limit=2", "restore.threshold=0.2"], {"dataset.limit": 3, "dataset.source": None})
    assert (config.dataset.limit, config.restore.threshold, config.dataset.source) == (3, 0.2, "/a")


def test_doctor_names_devices_packages_and_what_is_missing() -> None:
    result = CliRunner().invoke(cli, ["doctor"], env={"IDM_WEIGHTS": "/nonexistent"})
    assert result.exit_code == 0
    for word in ("cpu", "gpu", "torch", "model", "idm-64", "missing", "disk"):
        assert word in result.output


def test_a_restorer_trained_by_the_command_serves_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    from PIL import Image

    from tests.photographs import crops, write_folder

    monkeypatch.setattr("pipelines.train_idm.VALIDATION_PATCHES", 2)
    monkeypatch.setattr("pipelines.train_idm.CALIBRATION_PATCHES", 100)
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for i, pixels in enumerate(crops(24, side=128)):
        Image.fromarray(pixels).save(photographs / f"{i:02d}.png")
    out = tmp_path / "model"
    train = [
        "train-idm",
        "--source",
        str(photographs),
        "--out",
        str(out),
        "--nimg",
        "8",
        "--batch",
        "4",
        "--device",
        "cpu",
    ]
    result = CliRunner().invoke(cli, [*train, "--precision", "fp32"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert json.loads((out / "stats.jsonl").read_text().splitlines()[-1])["nimg"] == 8

    source, root = write_folder(tmp_path / "in", 9), tmp_path / "run"
    run = ["run", "--dataset", "folder", "--source", str(source), "--run", str(root), "--workers", "0"]
    result = CliRunner().invoke(cli, [*run, "--restorer", str(out / "idm-64.safetensors")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    marker = json.loads((root / "restored/round1/folder-000000.json").read_text())
    assert marker["rows"] == 9 and (root / "cleaned/folder-000000.tar").exists()
