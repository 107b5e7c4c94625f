"""The proof's sets: truth and damage differ in the damaged images alone, and what is held out is nowhere else."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.datasets import open_dataset
from pipelines.proof.metrics import append_metrics, metrics_path, read_metrics
from tests.benchmarks import proof
from tests.benchmarks.proof import SIDE, Study, kind_of, write_images
from tests.photographs import crops, png
from tests.proof_fixture import write_run


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """36 photographs of elephants and of an abacus, in Tiny-ImageNet's layout."""
    with zipfile.ZipFile(tmp_path / "photographs.zip", "w") as members:
        for i, pixels in enumerate(crops(36)):
            members.writestr(f"train/{('n02504458', 'n02666196')[i % 2]}/images/{i}.v1.JPEG", png(pixels))
        members.writestr("words.txt", "a, b")
    monkeypatch.setenv("IDM_DATA", str(tmp_path))
    monkeypatch.setattr(proof, "HELD_OUT", 6)
    return "photographs.zip"


def written(folder: Path) -> dict[str, np.ndarray]:
    return {str(path.relative_to(folder)): np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.png"))}


@pytest.mark.parametrize("classes", [None, str, kind_of])
def test_only_what_is_written_down_is_damaged(
    archive: str, tmp_path: Path, classes: Callable[[str], str] | None
) -> None:
    write_images(Study(archive, archive, 30, 0.5, ("mild", "heavy"), {}, classes), tmp_path / "set")
    raw, truth, held_out = (written(tmp_path / "set" / name) for name in ("raw", "truth", "held-out"))
    assert raw.keys() == truth.keys() and len(raw) == 30 and len(held_out) == 6
    assert not raw.keys() & held_out.keys()
    damage = json.loads((tmp_path / "set" / "damage.json").read_text())["damage"]
    assert {one["recipe"] for one in damage.values()} == {"mild", "heavy"} and 5 < len(damage) < 25
    for name, image in raw.items():
        assert image.shape == (SIDE, SIDE, 3)
        assert np.array_equal(image, truth[name]) == (Path(name).stem not in damage)
    labels = {entry.label for entry in open_dataset("folder", str(tmp_path / "set" / "raw")).entries}
    assert labels == ({0, 1} if classes else {None})


def test_a_larger_share_and_set_hold_the_smaller_ones(archive: str, tmp_path: Path) -> None:
    for name, images, share in (("few", 12, 0.3), ("many", 30, 0.8)):
        write_images(Study(archive, archive, images, share, ("mild",), {}), tmp_path / name)
    few, many = (written(tmp_path / name / "raw") for name in ("few", "many"))
    damaged = [json.loads((tmp_path / name / "damage.json").read_text())["damage"] for name in ("few", "many")]
    assert few.keys() < many.keys() and damaged[0].keys() <= damaged[1].keys()
    assert all(np.array_equal(few[f"{key}.png"], many[f"{key}.png"]) for key in damaged[0])
    reference = [written(tmp_path / name / "held-out") for name in ("few", "many")]
    assert reference[0].keys() == reference[1].keys()


def test_restorers_share_what_none_of_them_has_touched(tmp_path: Path) -> None:
    first, second = (write_run(tmp_path / restorer) for restorer in proof.RESTORERS)
    for arm in ("original", "combined"):
        (job := Path(first.root) / "jobs" / f"{arm}-ddm-32-s0").mkdir(parents=True)
        (job / "done.json").write_text("{}")
    (Path(second.root) / "jobs" / ".original-ddm-32-s0").mkdir(parents=True)  # what a kill has left
    of_both = {"nimg": 1, "resolution": 32, "detector": "e", "figures": {}}
    lines = [
        of_both | {"job": f"{arm}-ddm-32-s0", "arm": arm, "reference": reference, "fingerprint": f"{arm}{reference}"}
        for arm in ("original", "combined")
        for reference in ("held-out", "cleaned")
    ]
    append_metrics(first, lines)
    for _ in range(2):  # the second time there is nothing to do
        proof.take_over(first, second)
        assert [p.name for p in (Path(second.root) / "jobs").iterdir()] == ["original-ddm-32-s0"]
        assert metrics_path(second).read_text().count("\n") == 1 and read_metrics(second) == lines[:1]
        assert read_metrics(first) == lines
