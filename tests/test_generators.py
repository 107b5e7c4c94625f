"""The reference trainers: EDM and R3GAN by their closed forms, their networks, and the order of their images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from idm_core.chains import edm
from idm_core.generators import GanPreset, Images, adversarial, ddm, generator_preset, train
from idm_core.generators.batches import batch_at, epoch_order
from idm_core.generators.resnet import Discriminator, Generator
from idm_core.network import Denoiser
from tests.tiny_generators import DDM, GAN, config, squares

SQUARES = squares(48)

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
    logs = edm.sigma_at(torch.rand(20_000, generator=torch.Generator().manual_seed(0))).log()
    assert logs.mean().item() == pytest.approx(-1.2, abs=0.03)
    assert logs.std().item() == pytest.approx(1.2, abs=0.03)


@pytest.mark.parametrize("bad", [0.1, 0.9])
def test_bad_images_are_never_seen_below_their_noise_and_noise_is_spread_as_ever(bad: float) -> None:
    """Whatever the share of bad images; above their noise they are seen as often as others."""
    count = 400
    pixels = np.arange(count, dtype=np.uint16).view(np.uint8).reshape(count, 1, 1, 2)  # an image knows its number
    pixels = np.concatenate([pixels, np.zeros((count, 1, 1, 1), np.uint8)], axis=3)
    least = np.where(np.arange(count) < bad * count, 1.0, 0.0).astype(np.float32)
    images = Images(pixels, least_sigma=least)
    sigmas, numbers = [], []
    for first in range(0, 40_000, 80):
        batch = batch_at(images, first, 80, seed=3, mirror=False, device="cpu")
        assert batch.sigma is not None
        low, high = ((batch.real[:, :2, 0, 0] + 1) * 127.5).round().int().T
        sigmas.append(batch.sigma)
        numbers.append(low + 256 * high)
    sigma, number = torch.cat(sigmas), torch.cat(numbers)
    assert not (torch.from_numpy(least)[number] > sigma).any()
    assert sigma.log().mean().item() == pytest.approx(-1.2, abs=0.03)
    assert sigma.log().std().item() == pytest.approx(1.2, abs=0.03)
    noisy = sigma >= 1
    assert (number[noisy] < bad * count).float().mean().item() == pytest.approx(bad, abs=0.03)
    seen = number[~noisy].bincount(minlength=count)[int(bad * count) :]  # of the good ones none is favoured
    assert seen.float().mean() * 0.5 < seen.min() and seen.max() < seen.float().mean() * 1.6


def test_without_good_images_there_is_nothing_to_learn_at_low_noise() -> None:
    with pytest.raises(ValueError, match="at least one has to be 0"):
        Images(SQUARES.pixels, least_sigma=np.full(len(SQUARES.pixels), 0.5, np.float32))


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


@pytest.mark.parametrize("classes", [0, 3])
def test_scores_are_finer_than_bf16(classes: int) -> None:
    """Far from zero, where nothing but their differences says anything."""
    discriminator = stirred(Discriminator(GAN, classes))
    images, label = torch.randn(8, 3, GAN.resolution, GAN.resolution), torch.zeros(8, dtype=torch.int64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores = discriminator(images, label)
    assert scores.dtype == torch.float32 and (scores != scores.bfloat16()).sum() >= 7
    torch.testing.assert_close(scores, discriminator(images, label), rtol=0.05, atol=0.05 * scores.abs().max().item())


def test_with_a_stem_every_pixel_is_made_and_judged() -> None:
    preset = replace(GAN, resolution=16, stem=2)
    images = stirred(Generator(preset))(torch.randn(2, GAN.latent)).detach().requires_grad_()
    assert images.shape == (2, 3, 16, 16)
    assert stirred(Discriminator(preset))(images).shape == (2,)
    (gradient,) = torch.autograd.grad(stirred(Discriminator(preset))(images).sum(), images)
    assert (gradient != 0).all()
    with pytest.raises(ValueError, match="widths are not of 8 pixels"):
        replace(GAN, stem=2)


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
