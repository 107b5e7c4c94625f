"""The reference trainers: EDM and R3GAN by their closed forms, resumed as if never interrupted, and able to learn."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from idm_core.chains import edm
from idm_core.checkpoint import CheckpointError, load_tensors
from idm_core.generators import DdmPreset, GanPreset, Images, adversarial, ddm, generator_preset, sample, train
from idm_core.generators import training as training_module
from idm_core.generators.batches import batch_at, epoch_order
from idm_core.generators.presets import DDM_PRESETS, GAN_PRESETS
from idm_core.generators.resnet import Discriminator, Generator
from idm_core.generators.snapshot import Config, load_snapshot, new_network, save_snapshot
from idm_core.generators.training import annealed, learning_rate, snapshot_path
from idm_core.network import Denoiser
from idm_core.training_state import STATE
from pipelines.metrics.frechet import frechet_distance, statistics_of
from tests.tiny_generators import DDM, GAN, config, quarters, squares, train_as_one_of

SQUARES = squares(48)
PRESETS = pytest.mark.parametrize("preset", [DDM, GAN], ids=["ddm", "gan"])

# EDM


def test_preconditioning_is_that_of_table_1() -> None:
    c_skip, c_out, c_in = edm.scalings(torch.tensor([0.5, 1e-4, 1e4], dtype=torch.float64))
    # At sigma_data half of the image shows through; with next to no noise all of it, with next to all none.
    assert c_skip.tolist() == pytest.approx([0.5, 1, 0], abs=1e-6)
    assert c_out.tolist() == pytest.approx([0.5 / 2**0.5, 0, 0.5], abs=2e-4)
    assert c_in.tolist() == pytest.approx([2**0.5, 2, 1e-4], rel=1e-4)


def test_network_input_and_target_have_unit_variance() -> None:
    sigma = torch.logspace(-2, 2, 9, dtype=torch.float64)
    c_skip, c_out, c_in = edm.scalings(sigma)
    variance = edm.SIGMA_DATA**2 + sigma**2  # of x
    torch.testing.assert_close(c_in**2 * variance, torch.ones_like(sigma))
    target = ((1 - c_skip) ** 2 * edm.SIGMA_DATA**2 + c_skip**2 * sigma**2) / c_out**2  # of (x0 - c_skip x) / c_out
    torch.testing.assert_close(target, torch.ones_like(sigma))


def test_a_new_denoisers_loss_is_one_whatever_the_noise() -> None:
    network = Denoiser(DDM, conditional=False)  # its output is zero
    generator = torch.Generator().manual_seed(0)
    x0, noise = 0.5 * torch.randn(4, 512, 3, 8, 8, generator=generator)[:2]
    for sigma in (0.01, 0.5, 20.0):
        loss = ddm.loss(network, x0, torch.full((512,), sigma), noise / 0.5, None)
        assert loss.shape == (512,)
        assert loss.mean().item() == pytest.approx(1, abs=0.02)


def gaussian(mean: float, deviation: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The best denoiser of pixels that are normal on their own."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        variance = sigma.square()[:, None, None, None]
        return (deviation**2 * x + variance * mean) / (deviation**2 + variance)

    return denoise


def test_heun_recovers_a_gaussian_and_is_of_second_order() -> None:
    mean, deviation = 0.2, 0.4
    noise = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = edm.SIGMA_MAX * noise
    # The flow keeps a point at its quantile.
    exact = mean + (start - mean) * deviation / math.hypot(deviation, edm.SIGMA_MAX)
    errors = []
    for steps in (20, 40, 80):
        made = ddm.sample_heun(gaussian(mean, deviation), noise, steps)
        errors.append((made - exact).square().mean().sqrt().item())
    assert 3.2 < errors[0] / errors[1] < 5
    assert 3.2 < errors[1] / errors[2] < 5
    made = ddm.sample_heun(gaussian(mean, deviation), noise, 40)
    assert made.mean().item() == pytest.approx(mean, abs=0.01)
    assert made.std().item() == pytest.approx(deviation, abs=0.01)


def test_heun_evaluates_twice_a_step_but_for_the_last() -> None:
    seen: list[float] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(sigma[0].item())
        return x * 0

    ddm.sample_heun(denoise, torch.zeros(1, 3, 2, 2), 18)
    assert len(seen) == 35
    assert seen[0] == pytest.approx(80) and seen[-1] == pytest.approx(0.002)


def test_sigmas_are_log_normal() -> None:
    logs = ddm.draw_sigma(torch.rand(20_000, generator=torch.Generator().manual_seed(0)), None).log()
    assert logs.mean().item() == pytest.approx(-1.2, abs=0.03)
    assert logs.std().item() == pytest.approx(1.2, abs=0.03)


def test_bad_images_are_never_seen_below_their_noise() -> None:
    u = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    good = ddm.draw_sigma(u, None)
    for least in (0.01, 0.3, 1.6, 40.0):
        sigma = ddm.draw_sigma(u, torch.full_like(u, least))
        assert (sigma >= least).all()
        if least < 2:  # above it they are spread as all the noise there is
            assert sigma.median().item() == pytest.approx(good[good >= least].median().item(), rel=0.1)
    torch.testing.assert_close(ddm.draw_sigma(u, torch.zeros_like(u)), good)


def test_training_draws_noise_by_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the loop: each image's own level is what its noise is held to."""
    least = np.where(SQUARES.labels == 1, 2.0, 0.0).astype(np.float32)
    seen: list[tuple[float, float]] = []
    loss = ddm.loss

    def spy(network: nn.Module, x0: Tensor, sigma: Tensor, noise: Tensor, label: Tensor | None) -> Tensor:
        blue = x0[:, 2].mean(dim=(1, 2)) > x0[:, 0].mean(dim=(1, 2))
        seen.extend(zip(blue.tolist(), sigma.tolist(), strict=True))
        return loss(network, x0, sigma, noise, label)

    monkeypatch.setattr(ddm, "loss", spy)
    images = Images(SQUARES.pixels, SQUARES.labels, least)
    train(images, config(DDM, 96), tmp_path)
    assert min(sigma for blue, sigma in seen if blue) >= 2
    assert min(sigma for blue, sigma in seen if not blue) < 0.5
    assert {blue for blue, _ in seen} == {True, False}
    with pytest.raises(ValueError, match="diffusion"):
        train(images, config(GAN, 96), tmp_path / "gan")


# R3GAN


def test_the_pairs_losses_by_hand() -> None:
    scores = {1.0: torch.tensor([2.0, 0.0]), -1.0: torch.tensor([-1.0, 3.0])}  # of real, of fake images

    def score(images: Tensor) -> Tensor:
        return scores[images[0, 0, 0, 0].item()]

    real, fake = torch.ones(2, 3, 2, 2), -torch.ones(2, 3, 2, 2)
    loss, penalty = adversarial.discriminator_loss(score, real, fake, 0)
    assert loss.tolist() == pytest.approx([math.log1p(math.exp(-3)), math.log1p(math.exp(3))])
    assert penalty.tolist() == [0, 0]
    loss = adversarial.generator_loss(score, real, fake)
    assert loss.tolist() == pytest.approx([math.log1p(math.exp(3)), math.log1p(math.exp(-3))])


def test_the_penalties_of_a_linear_critic_are_its_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(3, 4, 4, generator=generator, requires_grad=True)
    real, fake = torch.randn(2, 5, 3, 4, 4, generator=generator)

    def score(images: Tensor) -> Tensor:
        return (images * weights).sum(dim=(1, 2, 3))

    _, penalty = adversarial.discriminator_loss(score, real, fake, 3.0)
    squared = weights.square().sum()
    torch.testing.assert_close(penalty, (3.0 / 2 * (squared + squared)).expand(5))
    # It can be learnt from: d/dw of 3 |w|^2.
    (gradient,) = torch.autograd.grad(penalty.mean(), weights)
    torch.testing.assert_close(gradient, 6 * weights)


def test_real_and_fake_are_penalised_each_where_it_lies() -> None:
    """score = |x|^2 / 2 has the gradient x."""
    real, fake = torch.full((2, 1, 1, 1), 3.0), torch.full((2, 1, 1, 1), 1.0)
    _, penalty = adversarial.discriminator_loss(lambda x: x.square().sum(dim=(1, 2, 3)) / 2, real, fake, 1.0)
    assert penalty.tolist() == pytest.approx([(9 + 1) / 2] * 2)


def test_lazy_penalties_are_as_heavy_on_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gammas: list[float] = []
    loss = adversarial.discriminator_loss

    def spy(score: adversarial.Score, real: Tensor, fake: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
        gammas.append(gamma)
        return loss(score, real, fake, gamma)

    monkeypatch.setattr(adversarial, "discriminator_loss", spy)
    train(SQUARES, config(replace(GAN, gamma=1.0, gamma_end=1.0, penalty_every=4), 16 * 8), tmp_path)
    assert gammas == [4, 0, 0, 0, 4, 0, 0, 0]


def test_new_networks_keep_variance_and_know_no_image_by_its_batch() -> None:
    preset = generator_preset("gan-32")
    assert isinstance(preset, GanPreset)
    torch.manual_seed(0)
    generator, discriminator = Generator(preset), Discriminator(preset)
    z = torch.randn(4, preset.latent)
    images = generator(z)
    assert images.shape == (4, 3, 32, 32)
    assert 0.3 < images.std().item() < 3
    scores = discriminator(images)
    assert scores.shape == (4,)
    torch.testing.assert_close(generator(z[1:2]), images[1:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(discriminator(images[1:2]), scores[1:2], rtol=1e-4, atol=1e-5)


# Classes


def stirred(network: nn.Module) -> nn.Module:
    """Not new any more: no layer is zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def test_classes_matter_to_every_network() -> None:
    x, level, zero = torch.randn(2, 3, 8, 8), torch.full((2,), 0.5), torch.zeros(2)
    one, two = torch.tensor([0, 1]), torch.tensor([0, 0])
    denoiser = stirred(Denoiser(DDM, conditional=False, classes=2))
    networks = [
        lambda label: denoiser(x, None, level, zero, label),
        partial(stirred(Generator(GAN, 2)), torch.ones(2, GAN.latent)),
        partial(stirred(Discriminator(GAN, 2)), x),
    ]
    for network in networks:
        first, second = network(one), network(two)
        torch.testing.assert_close(first[0], second[0])
        assert (first[1] - second[1]).abs().max() > 1e-3
        with pytest.raises(ValueError, match="class-conditional"):
            network(None)


def test_an_unconditional_denoiser_is_a_restorers_without_its_image() -> None:
    torch.manual_seed(0)
    with_image, without = Denoiser(DDM), Denoiser(DDM, conditional=False)
    gone = {n for n in with_image.state_dict() if n.startswith("inject")}
    assert with_image.state_dict().keys() - without.state_dict().keys() == gone
    assert without.conv_in.weight.shape[1] == with_image.conv_in.weight.shape[1] // 3


# Data


def test_an_epoch_has_every_image_once_in_an_order_of_its_own() -> None:
    orders = [epoch_order(100, 0, epoch)[0].tolist() for epoch in range(3)] + [epoch_order(100, 1, 0)[0].tolist()]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert 30 < sum(epoch_order(100, 0, 0)[1]) < 70


def test_the_image_at_a_position_does_not_depend_on_its_batch() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), np.uint8)
    images = Images(pixels, np.arange(10))
    whole = batch_at(images, 0, 40, 3, True, "cpu")
    parts = [batch_at(images, first, 8, 3, True, "cpu") for first in range(0, 40, 8)]
    assert torch.equal(whole.real, torch.cat([part.real for part in parts]))
    assert whole.label is not None
    for image, label in zip(whole.real, whole.label.tolist(), strict=True):
        truth = torch.from_numpy(pixels[label]).permute(2, 0, 1) / 127.5 - 1
        assert torch.equal(image, truth) or torch.equal(image, truth.flip(2))
    straight = batch_at(images, 0, 40, 3, False, "cpu")
    assert straight.label is not None and torch.equal(straight.label, whole.label)
    assert not torch.equal(straight.real, whole.real)


def test_images_that_are_none_are_refused() -> None:
    pixels = SQUARES.pixels
    for wrong, words in (
        (lambda: Images(pixels[:0]), "at least one"),
        (lambda: Images(pixels.astype(np.float32)), "uint8"),  # type: ignore[arg-type]
        (lambda: Images(pixels, np.zeros(3, np.int64)), "3,. values for 48"),
        (lambda: Images(pixels, np.arange(48) - 5), "image 0 has no class"),
        (lambda: Images(pixels, None, np.full(48, 80.0, np.float32)), "below 80"),
    ):
        with pytest.raises(ValueError, match=words):
            wrong()


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
