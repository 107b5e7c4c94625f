"""Trainers that a declaration describes itself: a preset of ours, but for what is named."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import skimage

from idm_core.generators.presets import DDM_PRESETS, GAN_PRESETS
from idm_core.generators.snapshot import read_config
from manifests.errors import ConfigError
from pipelines.proof import plan, training
from pipelines.proof.plan import Proof
from pipelines.proof.trainers import preset_of
from tests.command_line import curate


@pytest.mark.parametrize(
    ("described", "words"),
    [
        ({"lr": 1e-4}, "proof.presets.x.like: no generator preset is called 'None'"),
        ({"like": "x"}, "proof.presets.x.like: .* there are ddm-32"),
        ({"like": "gan-64", "rate": 1}, "proof.presets.x.rate is no option of gan-64; .*gamma_end"),
        ({"like": "gan-64", "name": "y"}, "proof.presets.x.name is no option"),
        ({"like": "ddm-64", "lr": "low"}, "proof.presets.x.lr: .*number"),
        ({"like": "ddm-64", "lr": 0}, "proof.presets.x.lr: 0.0 cannot be"),
        ({"like": "ddm-64", "lr": float("nan")}, "proof.presets.x.lr: nan cannot be"),
        ({"like": "ddm-64", "widths": [64, 0]}, "proof.presets.x.widths: .* cannot be"),
        ({"like": "ddm-64", "widths": []}, "proof.presets.x: its networks do not fit"),
        ({"like": "ddm-64", "widths": [64, 64]}, "proof.presets.x: its networks do not fit"),
        ({"like": "ddm-64", "resolution": 36}, "proof.presets.x: its networks do not fit"),
        ({"like": "gan-64", "group": 24}, "proof.presets.x: its networks do not fit"),
        ({"like": "gan-64", "resolution": 32}, "5 widths are not of 32 pixels"),
    ],
)
def test_what_is_described_wrongly_is_refused(described: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        training.check_trainers(Proof(trainers=("x",), presets={"x": described}))


def test_our_own_names_are_not_given_again() -> None:
    with pytest.raises(ConfigError, match="a preset of ours is called so"):
        training.check_trainers(Proof(trainers=("ddm-32",), presets={"ddm-32": {"like": "ddm-32", "lr": 1e-4}}))


def test_it_is_one_of_ours_but_for_what_it_names() -> None:
    presets = {"slow": {"like": "ddm-32", "lr": 1e-4, "widths": [32, 64, 96]}, "wild": {"like": "gan-32", "gamma": 0}}
    proof = Proof(arms=("original", "weighted"), trainers=("slow", "wild"), presets=presets, seeds=1)
    training.check_trainers(proof)
    assert preset_of(proof, "slow") == replace(DDM_PRESETS["ddm-32"], name="slow", lr=1e-4, widths=(32, 64, 96))
    assert preset_of(proof, "wild") == replace(GAN_PRESETS["gan-32"], name="wild", gamma=0.0)
    assert [job.name for job in plan.jobs(proof)] == ["original-slow-s0", "weighted-slow-s0", "original-wild-s0"]
    assert Proof.model_validate_json(proof.model_dump_json()) == proof


def test_it_is_trained_as_ours_are(curated_run: Path, tmp_path: Path) -> None:
    """By a file, through the command line; and another description of it is another proof."""
    root, file = Path(shutil.copytree(curated_run, tmp_path / "run")), tmp_path / "proof.yaml"
    file.write_text(
        "proof:\n  arms: [original]\n  trainers: [narrow]\n  seeds: 1\n  nimg: 64\n  snapshots: 1\n  mirror: false\n"
        "  samples: 60\n  presets:\n    narrow: {like: ddm-32, widths: [8, 8, 8], embedding: 16, lr: 0.002}\n"
        f"  reference: {Path(skimage.__file__).parent / 'data'}\n"
    )
    curate("retrain", root, "--config", file, "--workers", 0)
    (snapshot,) = (root / "jobs" / "original-narrow-s0").glob("snapshot-*")
    config = read_config(snapshot)
    assert (config.preset.name, config.preset.lr, config.trained["mirror"]) == ("narrow", 0.002, False)
    curate("retrain", root, "--workers", 0)  # as it was declared
    file.write_text(file.read_text().replace("0.002", "0.001"))
    assert "declared otherwise: presets" in curate("retrain", root, "--config", file, "--workers", 0, code=2)
