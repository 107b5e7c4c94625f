"""The reference trainers: resumed as if never interrupted, shared by processes, and able to learn."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from idm_core.checkpoint import CheckpointError, load_tensors
from idm_core.generators import DdmPreset, GanPreset, Images, generator_preset, sample, train
from idm_core.generators import training as training_module
from idm_core.generators.batches import batch_at
from idm_core.generators.presets import DDM_PRESETS, GAN_PRESETS
from idm_core.generators.resnet import Discriminator, Generator
from idm_core.generators.snapshot import Config, load_snapshot, new_network, read_config, save_snapshot
from idm_core.generators.training import annealed, learning_rate, snapshot_path
from idm_core.training_state import STATE
from pipelines.metrics.frechet import frechet_distance, statistics_of
from tests.tiny_generators import DDM, GAN, config, quarters, squares, train_as_one_of

SQUARES = squares(48)
PRESETS = pytest.mark.parametrize("preset", [DDM, GAN], ids=["ddm", "gan"])

# The loop


class Killed(Exception):
    """Stands for a kill: nothing after it is run."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of runs that were never interrupted."""
    folders = {preset.name: tmp_path_factory.mktemp(preset.name) for preset in (DDM, GAN)}
    for preset in (DDM, GAN):
        train(SQUARES, whole_config(preset), folders[preset.name])
    return folders


def whole_config(preset: DdmPreset | GanPreset) -> Any:
    return config(preset, 16 * 12, classes=2, accumulate=2, save_nimg=64, snapshot_nimg=96)


@PRESETS
@pytest.mark.parametrize("at", [32, 128])
def test_a_killed_run_ends_with_the_same_bits(
    preset: DdmPreset | GanPreset, at: int, whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at image 32, before any state, or at 128, where the snapshot of 96 and its state are written."""
    with monkeypatch.context() as patch:

        def deadly(images: Images, first: int, *rest: Any) -> Any:
            if first >= at:
                raise Killed
            return batch_at(images, first, *rest)

        patch.setattr(training_module, "batch_at", deadly)
        with pytest.raises(Killed):
            train(SQUARES, whole_config(preset), tmp_path)
    last = train(SQUARES, whole_config(preset), tmp_path)
    there = whole[preset.name]
    assert last.name == snapshot_path(there, 192).name
    for name in ("snapshot-0000000096.safetensors", last.name):
        assert (tmp_path / name).read_bytes() == (there / name).read_bytes()
    mine, theirs = load_file(tmp_path / STATE), load_file(there / STATE)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert curve(tmp_path) == curve(there)


def curve(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def test_a_kill_between_snapshot_and_state_loses_neither(
    whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(training_module, "save_state", die)
        with pytest.raises(Killed):
            train(SQUARES, config(DDM, 64, snapshot_nimg=32), tmp_path)
    assert [p.name for p in tmp_path.glob("snapshot-*")] == ["snapshot-0000000032.safetensors"]
    train(SQUARES, config(DDM, 64, snapshot_nimg=32), tmp_path)
    assert len(list(tmp_path.glob("snapshot-*"))) == 2
    assert [line["nimg"] for line in curve(tmp_path)] == [32, 64]


def test_the_same_command_again_does_nothing_and_another_is_refused(whole: dict[str, Path]) -> None:
    folder = whole["tiny-gan"]
    before = (folder / STATE).stat().st_mtime_ns
    assert train(SQUARES, whole_config(GAN), folder) == snapshot_path(folder, 192)
    assert (folder / STATE).stat().st_mtime_ns == before
    with pytest.raises(CheckpointError, match=r"other options \(gamma, seed\)"):
        train(SQUARES, replace(whole_config(replace(GAN, gamma=9.0)), seed=5), folder)
    with pytest.raises(CheckpointError, match=r"other options \(images\)"):
        train(replace(SQUARES, fingerprint="others"), whole_config(GAN), folder)


@PRESETS
def test_accumulation_is_the_mean_over_its_batches(
    preset: DdmPreset | GanPreset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two equal batches, of one image and with the same noise, make the step that one of them makes."""
    monkeypatch.setattr(training_module, "draws", lambda seed, key, device: torch.Generator().manual_seed(0))
    one = Images(SQUARES.pixels[:1])
    for accumulate in (1, 2):
        options = config(preset, 16 * accumulate, accumulate=accumulate, mirror=False, warmup_nimg=0)
        train(one, options, tmp_path / str(accumulate))
    first, both = (load_file(tmp_path / str(accumulate) / STATE) for accumulate in (1, 2))
    for name in (n for n in first if n.startswith(("exp_avg_sq", "step"))):
        torch.testing.assert_close(both[name], first[name])
    assert curve(tmp_path / "2")[0]["lr"] == curve(tmp_path / "1")[0]["lr"]


def test_processes_share_a_step(tmp_path: Path) -> None:
    """Two of them end where one does, but for the order in which gradients are added up."""
    options = config(GAN, 16 * 4, classes=2, accumulate=2)
    train(SQUARES, options, tmp_path / "one")
    spawn = torch.multiprocessing.get_context("spawn").Process
    group = [
        spawn(target=train_as_one_of, args=(r, 2, options, tmp_path / "meeting", tmp_path / "two")) for r in (0, 1)
    ]
    for process in group:
        process.start()
    for process in group:
        process.join()
        assert process.exitcode == 0
    one, two = (load_file(tmp_path / name / STATE) for name in ("one", "two"))
    for name in (n for n in one if n.startswith(("network", "average"))):
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)
    for a, b in zip(curve(tmp_path / "one"), curve(tmp_path / "two"), strict=True):
        assert a == pytest.approx(b, rel=1e-3)


@PRESETS
def test_bf16_is_fp32_a_little_coarser(preset: DdmPreset | GanPreset, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        train(SQUARES, replace(config(preset, 16 * 4), precision=precision), tmp_path / precision)
    exact, coarse = (curve(tmp_path / precision)[-1] for precision in ("fp32", "bf16"))
    assert exact != coarse
    assert exact == pytest.approx(coarse, rel=0.05)
    state = load_file(tmp_path / "bf16" / STATE)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    snapshots = [next((tmp_path / precision).glob("snapshot-*")) for precision in ("fp32", "bf16")]
    assert [read_config(path).trained["precision"] for path in snapshots] == ["fp32", "bf16"]
    for path, precision in zip(snapshots, ("fp32", "bf16"), strict=True):  # by itself, as it was trained
        assert np.array_equal(sample(path, 4, 0), sample(path, 4, 0, precision=precision))


@PRESETS
def test_a_training_does_not_change_its_precision_on_the_way(
    preset: DdmPreset | GanPreset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What auto means is another thing on another node."""
    for nimg, native in ((16, True), (32, False)):
        monkeypatch.setattr(training_module, "use_bf16", lambda precision, device, native=native: native)
        if native:
            train(SQUARES, config(preset, nimg), tmp_path)
        else:
            with pytest.raises(CheckpointError, match=r"other options \(precision\)"):
                train(SQUARES, config(preset, nimg), tmp_path)


def test_divergence_is_said(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="lower lr"):
        train(SQUARES, config(replace(GAN, lr=1e20, lr_end=1e20), 96, warmup_nimg=0), tmp_path)
    assert not (tmp_path / STATE).exists()


def test_what_does_not_fit_is_refused_first(tmp_path: Path) -> None:
    for images, options, words in (
        (Images(np.zeros((4, 16, 16, 3), np.uint8)), config(DDM, 32), "8 x 8 pixels"),
        (Images(SQUARES.pixels), config(DDM, 32, classes=2), "no labels"),
        (SQUARES, config(DDM, 32, classes=1), "class 1"),
    ):
        with pytest.raises(ValueError, match=words):
            train(images, options, tmp_path)
    with pytest.raises(ValueError, match=r"there are .*gan-32"):
        generator_preset("gan-33")


def test_schedules_warm_up_and_fall() -> None:
    options = config(replace(GAN, lr=1.0, lr_end=0.2), 1000, warmup_nimg=100)
    assert learning_rate(options, 49) == pytest.approx(0.5, abs=0.01)
    assert learning_rate(options, 500) == pytest.approx(0.6)
    assert learning_rate(options, 1000) == pytest.approx(0.2)
    assert [annealed(4, 2, x) for x in (0, 0.5, 1)] == pytest.approx([4, 3, 2])


def test_presets_fit_their_own_shapes() -> None:
    with torch.device("meta"):
        for preset in (*DDM_PRESETS.values(), *GAN_PRESETS.values()):
            network, side = new_network(preset, 10), preset.resolution
            label = torch.zeros(2, dtype=torch.int64)
            if isinstance(preset, GanPreset):
                images = network(torch.zeros(2, preset.latent), label)
                assert Discriminator(preset, 10)(images, label).shape == (2,)
            else:
                images = network(torch.zeros(2, 3, side, side), None, torch.zeros(2), torch.zeros(2), label)
            assert images.shape == (2, 3, side, side)


# What comes out


@PRESETS
def test_a_sample_depends_on_its_index_alone(preset: DdmPreset | GanPreset, whole: dict[str, Path]) -> None:
    make = partial(sample, snapshot_path(whole[preset.name], 192), seed=7, steps=4)
    images = make(20, batch=8)
    assert images.shape == (20, 8, 8, 3) and images.dtype == np.uint8
    assert np.array_equal(make(9, first=11, batch=8), images[11:])
    assert np.abs(make(20, batch=5).astype(int) - images).max() <= 1  # kernels may round otherwise
    assert len({image.tobytes() for image in images}) == 20
    assert not np.array_equal(sample(snapshot_path(whole[preset.name], 192), 20, 8, steps=4), images)


def test_classes_are_drawn_as_they_were_seen_or_asked_for(tmp_path: Path) -> None:
    network = Generator(GAN, 3)
    with torch.no_grad():  # grey level by class
        for parameter in network.parameters():
            parameter.zero_()
        assert network.of_class is not None
        network.of_class.weight[:, 0] = torch.tensor([-0.5, 0.0, 0.5])
        network.pattern.fill_(1)
        network.amount.weight[:, GAN.latent] = 1
        network.change[0].weight[:, 0] = 1
        network.conv_out.weight[:, 0] = 1
    path = save_snapshot(tmp_path / "x.safetensors", network.state_dict(), Config(GAN, (1, 0, 3)))
    grey = sample(path, 400, 0)[:, 0, 0, 0]
    levels, counts = np.unique(grey, return_counts=True)
    assert levels.tolist() == [64, 191]
    assert counts[0] == pytest.approx(100, abs=30)
    assert sample(path, 3, 0, [0, 1, 2])[:, 0, 0, 0].tolist() == [64, 128, 191]
    for labels, words in (([0], "need as many"), ([0, 1, 3], "there are 0 to 2")):
        with pytest.raises(ValueError, match=words):
            sample(path, 3, 0, labels)


def test_snapshots_load_or_say_why_not(whole: dict[str, Path], tmp_path: Path) -> None:
    path = snapshot_path(whole["tiny-ddm"], 192)
    network, about = load_snapshot(path)
    assert about.preset == DDM and about.class_counts == (24, 24)
    assert about.trained["nimg"] == 192
    assert not any(p.requires_grad for p in network.parameters())
    tensors, metadata = load_tensors(path)
    broken = tmp_path / "broken.safetensors"
    for change, words in (
        ({"format": "another"}, "is no generator"),
        ({"config": "{}"}, "cannot be read"),
        ({"config": metadata["config"].replace('"kind": "ddm"', '"kind": "vae"')}, "cannot be read"),
    ):
        save_file(tensors, broken, metadata | change)
        with pytest.raises(CheckpointError, match=words):
            load_snapshot(broken)
    save_file({k: v for k, v in tensors.items() if k != "conv_in.weight"}, broken, metadata)
    with pytest.raises(CheckpointError, match=r"conv_in\.weight is missing"):
        load_snapshot(broken)


@PRESETS
def test_two_classes_are_learnt(preset: DdmPreset | GanPreset, tmp_path: Path) -> None:
    """By the Frechet distance of mean colours, all together and within each class."""
    images = squares(256)
    start = 16 * 4
    nimg = 16 * 120
    last = train(images, config(preset, nimg, classes=2, mirror=False, snapshot_nimg=start, save_nimg=nimg), tmp_path)

    real = [statistics_of(quarters(images.pixels[images.labels == label])) for label in (0, 1)]
    apart = frechet_distance(*real)

    def distance(path: Path, label: int) -> float:
        made = sample(path, 64, 0, [label] * 64, steps=6)
        return frechet_distance(statistics_of(quarters(made)), real[label])

    for label in (0, 1):
        before, after = distance(snapshot_path(tmp_path, start), label), distance(last, label)
        assert after < before / 5
        assert after < apart / 20
