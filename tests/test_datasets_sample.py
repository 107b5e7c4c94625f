"""The sample: real crops, damage on record, truth for each, and the same bytes each time."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manifests.errors import ConfigError, SampleError
from pipelines import images
from pipelines.datasets import Dataset, open_dataset, read_entries, sample


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def dataset(run_dir: Path) -> Dataset:
    return open_dataset("sample", run_dir=run_dir)


def hashes(root: Path) -> dict[str, str]:
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()
    }


def about(dataset: Dataset) -> list[dict[str, Any]]:
    return [json.loads(e.metadata or "") for e in dataset.entries]


def test_size_and_shares(dataset: Dataset) -> None:
    assert len(dataset.entries) == sample.COUNT >= 256 and dataset.problems == ()
    crops = [row for row in about(dataset) if row["duplicate_of"] is None]
    damaged = Counter(row["damage"]["kind"] for row in crops if row["damage"])
    assert len(crops) == sample.CROPS and damaged.total() == 0.4 * len(crops)
    assert damaged.keys() == {"blur", "noise", "downsample", "jpeg", "mixture"} and min(damaged.values()) >= 20
    kinds = Counter(row["duplicate_of"]["kind"] for row in about(dataset) if row["duplicate_of"])
    assert kinds == {"exact": 4, "near": 4}
    assert len({e.group for e in dataset.entries}) >= 8 and len({e.key for e in dataset.entries}) == sample.COUNT


def test_undamaged_samples_are_their_truth_and_damaged_ones_are_not(dataset: Dataset) -> None:
    truths = [e.truth for e in dataset.entries if e.truth is not None]
    assert len(truths) == len(dataset.entries)
    psnr = {}
    for (entry, data), (_, truth), row in zip(
        read_entries(dataset.entries), read_entries(truths), about(dataset), strict=True
    ):
        assert not isinstance(data, SampleError) and not isinstance(truth, SampleError)
        found, pristine = images.decode(data), images.decode(truth)
        assert found.rgb.shape == pristine.rgb.shape and 64 <= found.width <= 128
        assert found.format == ("JPEG" if row["damage"] and "jpeg" in entry.source_name[-4:] else found.format)
        error = np.square(found.rgb.astype(float) - pristine.rgb).mean()
        if row["damage"] is None:
            assert error == 0, entry.key
        else:
            psnr[entry.key] = 10 * np.log10(255**2 / error)
    # Mild to medium: seen, and not beyond repair.
    assert min(psnr.values()) > 15 and np.median(list(psnr.values())) < 32


def test_jpeg_damage_is_a_jpeg_of_the_quality_on_record(dataset: Dataset) -> None:
    for entry, row in zip(dataset.entries, about(dataset), strict=True):
        quality = (row["damage"] or {"parameters": {}})["parameters"].get("quality")
        assert entry.source_name.endswith(".jpg") == (quality is not None)


def test_exact_duplicates_are_exact(dataset: Dataset) -> None:
    data = {e.key: d for e, d in read_entries(dataset.entries)}
    for entry, row in zip(dataset.entries, about(dataset), strict=True):
        if row["duplicate_of"]:
            assert (data[entry.key] == data[row["duplicate_of"]["of"]]) == (row["duplicate_of"]["kind"] == "exact")


def test_it_is_built_once_and_always_the_same(run_dir: Path, dataset: Dataset, tmp_path: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (run_dir / "raw").rglob("*")}
    assert open_dataset("sample", run_dir=run_dir) == dataset
    assert {p: p.stat().st_mtime_ns for p in (run_dir / "raw").rglob("*")} == before
    (tmp_path / ".staging/raw/images").mkdir(parents=True)
    (tmp_path / ".staging/raw/images/left-over.png").write_bytes(b"of a build that was killed")
    open_dataset("sample", run_dir=tmp_path)
    assert hashes(tmp_path / "raw") == hashes(run_dir / "raw")
    assert not list((tmp_path / ".staging").iterdir())


def test_it_takes_no_source(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="takes no --source"):
        open_dataset("sample", str(tmp_path), run_dir=tmp_path)
