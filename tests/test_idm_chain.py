"""The chain against its closed forms, and the severity against its definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from idm_core import chain
from idm_core.losses import LOSSES, pointwise_loss
from idm_core.network import Denoiser
from idm_core.presets import PRESETS, preset_named
from idm_core.severity import (
    SeverityNetwork,
    map_to_severity,
    mse_to_severity,
    severity_loss,
    severity_to_mse,
    severity_to_rmse,
    true_severity,
)

PRESET = PRESETS["idm-64"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def stirred() -> Denoiser:
    """A denoiser none of whose layers is zero, as after training."""
    network = Denoiser(PRESET)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    return network


def test_four_steps_are_resshifts_schedule() -> None:
    assert chain.schedule(4) == pytest.approx([0.100, 0.520, 0.761, 0.990], abs=5e-4)
    assert chain.schedule(1) == [0.99]


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 15])
def test_schedules_rise_to_the_same_end(steps: int) -> None:
    levels = chain.schedule(steps)
    assert len(levels) == steps
    assert levels == sorted(set(levels))
    assert levels[-1] == pytest.approx(0.99)


def test_no_schedule_of_no_steps() -> None:
    with pytest.raises(ValueError, match="at least one step, not 0"):
        chain.schedule(0)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_a_denoiser_that_knows_the_truth_ends_at_the_truth(steps: int) -> None:
    x0, y = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    severity = torch.tensor([0.2, 0.9])
    kappa = chain.gated_kappa(severity, PRESET)
    restored = chain.sample(lambda x, y, level, s: x0, y, severity, kappa, lambda _: torch.randn(y.shape), steps)
    torch.testing.assert_close(restored, x0)


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_reverse_steps_have_the_forward_marginals(steps: int) -> None:
    """With x0_hat = x0, x_t of the sampler is distributed as q(x_t | x0, y): mean and variance, at every step."""
    x0, y = torch.full((1, 1, 400, 400), 0.2), torch.full((1, 1, 400, 400), 0.7)
    severity = torch.ones(1)
    kappa = chain.gated_kappa(severity, PRESET)
    seen: list[tuple[float, Tensor]] = []

    def denoise(x: Tensor, y: Tensor, level: Tensor, s: Tensor) -> Tensor:
        seen.append((level.item(), x))
        return x0

    chain.sample(denoise, y, severity, kappa, lambda _: torch.randn(y.shape), steps)
    for level, x in seen[1:]:  # the start is y itself rather than its mixture with 2 % of x0
        eta = level**2
        assert x.mean().item() == pytest.approx(0.2 + eta * 0.5 / 0.99**2, abs=0.012)
        assert x.std().item() == pytest.approx(PRESET.kappa * level, rel=0.02)


def test_diffusion_starts_where_the_sampler_does() -> None:
    x0, y, noise = torch.rand(3, 3, 8, 8), torch.rand(3, 3, 8, 8), torch.randn(3, 3, 8, 8)
    kappa = chain.gated_kappa(torch.ones(3), PRESET)
    last = chain.diffuse(x0, y, torch.full((3,), 0.99), kappa, noise)
    torch.testing.assert_close(last, y + kappa * 0.99 * noise)
    middle = chain.diffuse(x0, y, torch.full((3,), 0.5), kappa, noise)
    torch.testing.assert_close(middle, x0 + 0.25 * (y - x0) + kappa * 0.5 * noise)


@pytest.mark.parametrize("steps", [1, 4])
def test_severity_zero_is_exactly_the_identity(stirred: Denoiser, steps: int) -> None:
    y = torch.rand(2, 3, 64, 64)
    severity = torch.zeros(2)

    def denoise(x: Tensor, y: Tensor, level: Tensor, s: Tensor) -> Tensor:
        return chain.denoise(stirred, x, y, level, s)

    def restore(severity: Tensor) -> Tensor:
        kappa = chain.gated_kappa(severity, PRESET)
        return chain.sample(denoise, y, severity, kappa, lambda _: torch.randn(y.shape), steps)

    with torch.no_grad():
        # Exactly: to the last bit in one step, to float rounding of the convex combinations in several.
        torch.testing.assert_close(restore(severity), y, rtol=0, atol=0 if steps == 1 else 1e-6)
        assert (restore(torch.full((2,), 0.5)) - y).abs().max() > 1e-3


def test_gates_grow_with_severity() -> None:
    severity = torch.linspace(0, 1, 11)
    for gate in (chain.c_out(severity).flatten(), chain.gated_kappa(severity, PRESET).flatten()):
        assert gate[0] == 0
        assert bool((gate.diff() >= 0).all())


def test_a_new_denoiser_changes_nothing() -> None:
    y = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert not Denoiser(PRESET)(torch.randn_like(y), y, torch.ones(1), torch.ones(1)).any()


def test_denoiser_sees_no_further_than_its_neighbourhood(stirred: Denoiser) -> None:
    """No global statistics: what is far away has no influence, so tiles can be restored apart."""
    y = torch.rand(1, 3, 64, 320)
    other = y.clone()
    other[..., 256:] = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        a, b = (stirred(torch.zeros_like(y), x, torch.ones(1), torch.ones(1)) for x in (y, other))
    assert torch.equal(a[..., :64], b[..., :64])
    assert not torch.equal(a[..., 256:], b[..., 256:])


def test_presets_fit_their_own_shapes() -> None:
    for name, preset in PRESETS.items():
        assert preset_named(name) is preset
        with torch.device("meta"):
            network = Denoiser(preset)
            y = torch.rand(1, 3, preset.resolution, preset.resolution)
            assert network(y, y, torch.rand(1), torch.rand(1)).shape == y.shape
    with pytest.raises(ValueError, match=r"idm-65.*idm-64, idm-256, idm-512"):
        preset_named("idm-65")


def test_severity_is_what_it_says() -> None:
    truth = torch.full((4, 3, 16, 16), 0.5)
    rmse = torch.tensor([0.0, 10 ** (-44 / 20), 10 ** (-29 / 20), 10 ** (-14 / 20)])
    image = truth + rmse[:, None, None, None]
    torch.testing.assert_close(true_severity(truth, image), torch.tensor([0.0, 0.0, 0.5, 1.0]), atol=1e-5, rtol=0)
    severity = torch.linspace(0, 1, 7)
    torch.testing.assert_close(mse_to_severity(severity_to_mse(severity)), severity)
    torch.testing.assert_close(severity_to_rmse(severity).square(), severity_to_mse(severity))


def test_a_severity_map_is_averaged_as_squared_error() -> None:
    cells = torch.tensor([0.2, 0.8]).view(1, 1, 1, 2)
    mean = severity_to_mse(cells).mean()
    torch.testing.assert_close(map_to_severity(cells)[0], mse_to_severity(mean))
    assert map_to_severity(cells).item() > 0.65  # far nearer to the worse half than the mean of the two is


def test_severity_network_gives_a_value_for_each_cell() -> None:
    with torch.no_grad():
        assert SeverityNetwork(PRESET)(torch.rand(2, 3, 64, 96)).shape == (2, 1, 8, 12)


def test_severity_loss_is_zero_at_the_truth() -> None:
    truth = torch.rand(1, 3, 16, 16)
    assert severity_loss(torch.full((1, 1, 2, 2), -0.3), truth, truth).item() == 0  # better than clean: no error
    shifted = truth + 10 ** (-29 / 20)
    assert severity_loss(torch.full((1, 1, 2, 2), 0.5), truth, shifted).item() < 1e-4
    assert severity_loss(torch.full((1, 1, 2, 2), 0.1), truth, shifted).item() > 0.5


def test_pointwise_losses() -> None:
    a, b = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.5)
    values = {kind: pointwise_loss(kind, a, b)[0].item() for kind in LOSSES}
    assert values == pytest.approx({"l1": 0.5, "l2": 0.25, "charbonnier": (0.25 + 1e-4) ** 0.5 - 0.01}, abs=1e-6)
    with pytest.raises(ValueError, match="'huber'"):
        pointwise_loss("huber", a, b)
