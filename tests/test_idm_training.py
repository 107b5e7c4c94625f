"""Training: resumed is the same as never interrupted, and what it writes can be used or says why not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from idm_core import load_restorer
from idm_core.checkpoint import CheckpointError, find_checkpoint, load_checkpoint, load_tensors, save_checkpoint
from idm_core.losses import Perceptual
from idm_core.presets import PRESETS
from idm_core.restorer import to_images
from idm_core.training import TrainConfig, learning_rate, train
from idm_core.training_state import STATE
from manifests.errors import ConfigError, SourceError
from pipelines.photo_pool import PhotoPool, cut_patch, open_sources
from pipelines.split import split_of
from pipelines.train_idm import LEAST_THRESHOLD, calibrate, train_idm
from tests.tiny_training import CONFIG, TINY, VALIDATION, pristine, write_photographs


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of 48 images, saved at 24."""
    out = tmp_path_factory.mktemp("trained")
    train(pristine, VALIDATION, CONFIG, out)
    return out


def test_resumed_is_never_interrupted(trained: Path, tmp_path: Path) -> None:
    train(pristine, VALIDATION, replace(CONFIG, nimg=24), tmp_path)
    half = load_file(tmp_path / STATE)
    train(pristine, VALIDATION, CONFIG, tmp_path)
    whole, resumed = load_file(trained / STATE), load_file(tmp_path / STATE)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert any(not torch.equal(whole[name], half[name]) for name in whole)


def test_batches_made_ahead_are_the_same_batches(trained: Path, tmp_path: Path) -> None:
    train(pristine, VALIDATION, replace(CONFIG, nimg=24, data_processes=1), tmp_path)
    train(pristine, VALIDATION, CONFIG, tmp_path)
    whole, ahead = load_file(trained / STATE), load_file(tmp_path / STATE)
    assert all(torch.equal(whole[name], ahead[name]) for name in whole)


def test_a_finished_run_is_not_trained_further(trained: Path) -> None:
    before = (trained / STATE).stat().st_mtime_ns
    assert train(pristine, VALIDATION, CONFIG, trained) == trained / "tiny.safetensors"
    assert (trained / STATE).stat().st_mtime_ns == before


def test_other_options_are_refused_by_name(trained: Path) -> None:
    with pytest.raises(ValueError, match=r"other options \(batch, lr\)"):
        train(pristine, VALIDATION, replace(CONFIG, lr=1.0, batch=2), trained)


def test_accumulation_makes_one_step_of_several_batches(tmp_path: Path) -> None:
    config = replace(CONFIG, nimg=8, warmup_nimg=0)
    for accumulate in (1, 2):
        train(pristine, VALIDATION, replace(config, accumulate=accumulate), tmp_path / str(accumulate))
    separate, together = (load_file(tmp_path / str(accumulate) / STATE) for accumulate in (1, 2))
    assert separate["step.denoiser.conv_in.weight"].item() == 2
    assert together["step.denoiser.conv_in.weight"].item() == 1
    # The gradient is the mean of the two batches': not the first one's, and as large, not twice as large.
    first, both = (state["exp_avg.severity.conv_out.bias"].item() for state in (separate, together))
    assert first != both
    assert 0.2 < both / first < 1.2


def test_statistics_have_a_line_for_each_state(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "stats.jsonl").read_text().splitlines()]
    assert [line["nimg"] for line in lines] == [24, 48]
    assert {"loss", "seconds", "psnr_before_mild", "psnr_after_mild", "severity_error_clean"} <= lines[0].keys()


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    config = TrainConfig(TINY, 1000, lr=1.0, warmup_nimg=100, decay_share=0.2)
    assert [learning_rate(config, n) for n in (0, 49, 500, 800)] == pytest.approx([0.01, 0.5, 1.0, 1.0])
    assert learning_rate(config, 900) == pytest.approx(0.5)
    assert learning_rate(config, 1000) == 0.0


def test_a_perceptual_term_needs_its_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="AlexNet"):
        train(pristine, VALIDATION, replace(CONFIG, perceptual=0.1), tmp_path)


@pytest.mark.filterwarnings("ignore:.*weight.*:UserWarning")  # how lpips asks torchvision for a network
def test_lpips_agrees_with_its_own_package(weights: Path) -> None:
    import lpips

    trunk = weights / "alexnet_features.safetensors"
    ours = Perceptual(trunk)
    theirs = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    state = load_file(trunk)
    for name, parameter in theirs.net.named_parameters():
        parameter.data.copy_(state[f"features.{name.split('.', 1)[1]}"])
    a, b = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(a, b), theirs(a, b, normalize=True).flatten(), rtol=1e-4, atol=1e-6)


def test_checkpoints_load_or_say_why_not(trained: Path, tmp_path: Path) -> None:
    path = trained / "tiny.safetensors"
    networks, config, sha256 = load_checkpoint(path)
    assert config.preset == TINY
    assert config.trained["nimg"] == 48
    assert len(sha256) == 64
    assert not any(p.requires_grad for p in networks.parameters())

    tensors, metadata = load_tensors(path)
    broken = tmp_path / "broken.safetensors"

    def message(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
        save_file(tensors, broken, metadata)
        with pytest.raises(CheckpointError) as error:
            load_checkpoint(broken)
        return str(error.value)

    name = "denoiser.conv_in.weight"
    assert f"{name} is missing" in message({k: v for k, v in tensors.items() if k != name}, metadata)
    assert "surplus is unknown" in message(tensors | {"surplus": torch.zeros(1)}, metadata)
    assert "is (1,), not (8, 36, 3, 3)" in message(tensors | {name: torch.zeros(1)}, metadata)
    assert "not finite" in message(tensors | {name: torch.full_like(tensors[name], float("nan"))}, metadata)
    assert "train-idm" in message(tensors, {"format": "something else"})
    assert "configuration" in message(tensors, metadata | {"config": '{"preset": {"name": "x"}}'})
    broken.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load_checkpoint(broken)


def test_equal_checkpoints_are_equal_bytes(trained: Path, tmp_path: Path) -> None:
    networks, config, sha256 = load_checkpoint(trained / "tiny.safetensors")
    for i in range(8):
        path = save_checkpoint(tmp_path / f"{i}.safetensors", networks.state_dict(), config)
        assert load_checkpoint(path)[2] == sha256


def test_unknown_restorers_name_the_known_ones(tmp_path: Path) -> None:
    assert find_checkpoint("idm-64").is_file()
    with pytest.raises(CheckpointError, match="there are idm-64"):
        find_checkpoint("idm-63")
    with pytest.raises(CheckpointError, match="does not exist"):
        find_checkpoint(tmp_path / "no.safetensors")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("photographs"))


def test_splits_part_by_base_name(photographs: Path) -> None:
    names = [f"folder/{i}.jpg" for i in range(5000)]
    shares = {split: sum(split_of(n) == split for n in names) / 5000 for split in ("train", "validation", "test")}
    assert shares == pytest.approx({"train": 0.8, "validation": 0.1, "test": 0.1}, abs=0.02)
    assert split_of("a/b/c.jpg") == split_of("c.jpg")


def test_patches_depend_on_their_index_alone(photographs: Path) -> None:
    sources = open_sources([str(photographs)], None, "train")
    pool = PhotoPool(sources, 64, seed=1)
    in_order = [pool.patch(i) for i in range(6)]
    assert torch.equal(PhotoPool(sources, 64, seed=1).patch(5), in_order[5])
    assert len({patch.numpy().tobytes() for patch in in_order}) == 6
    assert not torch.equal(PhotoPool(sources, 64, seed=2).patch(5), in_order[5])


def test_a_small_pool_moves_on_and_stays_a_function_of_the_index(photographs: Path) -> None:
    sources = open_sources([str(photographs)], None, "train")
    small = PhotoPool(sources, 64, seed=0, nbytes=3 * 240 * 200 * 3, refresh=10)
    forwards = [small.patch(i) for i in range(40)]
    assert all(torch.equal(small.patch(i), forwards[i]) for i in (3, 31, 12))
    assert all(len(photos) == 3 for photos in small._photos)


def test_patches_are_reduced_never_enlarged() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8)
    for u in np.random.default_rng(1).random((50, 6)):
        patch = cut_patch(photo, 64, list(u))
        assert patch.shape == (64, 64, 3)
        assert patch.std() < 55  # white noise has 74: some averaging of neighbours took place


def test_the_command_trains(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.train_idm.VALIDATION_PATCHES", 2)
    monkeypatch.setattr("pipelines.train_idm.CALIBRATION_PATCHES", 100)
    config = TrainConfig(PRESETS["small-64"], 8, batch=4, save_nimg=8, precision="fp32", perceptual=0.0)
    path = train_idm([str(photographs)], tmp_path / "first", config)
    count = sum(split_of(file.name) == "train" for file in photographs.iterdir())
    assert load_restorer(path).config.trained["data"] == {photographs.name: {"photographs": count, "share": count**0.5}}
    with pytest.raises(ConfigError, match=r"other options \(batch\)"):
        train_idm([str(photographs)], tmp_path / "first", replace(config, batch=2))
    again = train_idm([str(photographs)], tmp_path / "second", replace(config, nimg=4, lr=0.0), start=path)
    first, second = load_file(path), load_file(again)
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(ConfigError, match=r"other options \(start\)"):
        train_idm([str(photographs)], tmp_path / "second", replace(config, lr=0.0), start=again)
    with pytest.raises(ConfigError, match=r"small-64.*do not fit 'idm-64'"):
        train_idm([str(photographs)], tmp_path / "third", replace(config, preset=PRESETS["idm-64"]), start=path)


def test_calibration_allows_one_false_alarm_in_a_hundred(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.train_idm.CALIBRATION_PATCHES", 200)
    shipped = find_checkpoint("idm-64")
    restorer = load_restorer(calibrate(shipped, [str(photographs)], to=tmp_path / "mine.safetensors", passes=3))
    pool = PhotoPool(open_sources([str(photographs)], None, "validation"), 64, seed=1)
    clean = to_images(torch.stack([pool.patch(i) for i in range(200)]))
    alarms = sum(s >= restorer.config.threshold for s in restorer.severity(clean))
    assert alarms == 2 or restorer.config.threshold == LEAST_THRESHOLD
    assert restorer.config.passes == 3
    assert restorer.config.consistency > 15
    before, after = load_file(shipped), load_file(tmp_path / "mine.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_command_says_what_is_wrong(photographs: Path, tmp_path: Path) -> None:
    config = TrainConfig(PRESETS["small-64"], 8, perceptual=0.0)
    with pytest.raises(ConfigError, match="1 sources need as many shares"):
        train_idm([str(photographs)], tmp_path, config, shares=[1.0, 2.0])
    with pytest.raises(SourceError):
        train_idm([str(tmp_path / "nothing")], tmp_path, config)
