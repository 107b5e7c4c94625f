"""The chains against their closed forms, and the severity against its definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from idm_core.chains import CHAINS, Chain, Denoise, chain_of, edm, indi, shift
from idm_core.losses import LOSSES, pointwise_loss
from idm_core.network import Denoiser
from idm_core.presets import PRESETS, Preset, preset_named
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


def sampled(chain: Chain, y: Tensor, x0_hat: Denoise, severity: Tensor, steps: int, preset: Preset = PRESET) -> Tensor:
    return chain.sample(x0_hat, y, severity, lambda _: torch.randn(y.shape), steps, preset)


@pytest.mark.parametrize("name", CHAINS)
def test_a_denoiser_that_knows_the_truth_ends_at_the_truth(name: str) -> None:
    x0, y = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    for steps in (1,) if name == "direct" else (1, 2, 4, 8):
        restored = sampled(CHAINS[name], y, lambda x, level: x0, torch.tensor([0.2, 0.9]), steps)
        torch.testing.assert_close(restored, x0)


@pytest.mark.parametrize("name", CHAINS)
def test_every_evaluation_counts_and_none_is_asked_for_more(name: str) -> None:
    levels: list[float] = []

    def denoise(x: Tensor, level: Tensor) -> Tensor:
        levels.append(level.item())
        return x

    steps = 1 if name == "direct" else 5
    sampled(CHAINS[name], torch.rand(1, 3, 8, 8), denoise, torch.tensor([0.5]), steps)
    assert len(levels) == steps
    assert levels == sorted(set(levels), reverse=True) and levels[-1] >= 0 and levels[0] <= 1


@pytest.mark.parametrize("name", CHAINS)
def test_training_and_sampling_start_at_the_same_place(name: str) -> None:
    """At position 1 what is trained on is what a sampler hands in first: same level, same distribution."""
    chain, severity = CHAINS[name], torch.tensor([0.7])
    x0, y, noise = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64), torch.randn(1, 3, 64, 64)
    seen: list[tuple[Tensor, Tensor]] = []

    def denoise(x: Tensor, level: Tensor) -> Tensor:
        seen.append((x, level))
        return x0

    chain.sample(denoise, y, severity, lambda _: noise, 1, PRESET)
    x, level = chain.corrupt(x0, y, torch.ones(1), severity, noise, PRESET)
    if name == "edm":  # log sigma is normal: its end is the rare extreme, which the sampler goes beyond
        x, level = chain.corrupt(x0, y, torch.tensor([0.5]), severity, noise, PRESET)
        assert edm.level_to_sigma(level).item() == pytest.approx(torch.tensor(edm.P_MEAN).exp().item(), rel=1e-5)
        assert (x - (2 * x0 - 1)).std().item() == pytest.approx(edm.level_to_sigma(level).item(), rel=0.02)
    else:
        torch.testing.assert_close(seen[0][0], x)
        torch.testing.assert_close(seen[0][1], level)


@pytest.mark.parametrize("name", CHAINS)
def test_a_new_networks_correction_is_none(name: str) -> None:
    """The last layer is zero: the residual chains return y, the reference EDM's shrunken x."""
    chain, y, severity = CHAINS[name], torch.rand(2, 3, 64, 64), torch.tensor([0.3, 0.8])
    x, level = chain.corrupt(torch.rand_like(y), y, torch.full((2,), 0.9), severity, torch.randn_like(y), PRESET)
    with torch.no_grad():
        restored = chain.denoise(Denoiser(PRESET), x, y, level, severity, PRESET)
    if name == "edm":
        sigma = edm.level_to_sigma(level)[:, None, None, None]
        torch.testing.assert_close(2 * restored - 1, x * 0.25 / (sigma.square() + 0.25), atol=1e-5, rtol=1e-5)
    else:
        assert torch.equal(restored, y)


def test_chains_have_names() -> None:
    for preset in PRESETS.values():
        assert chain_of(preset) is CHAINS[preset.chain]
    with pytest.raises(ValueError, match="no chain is called 'ddpm'; there are shift, indi, edm, direct"):
        chain_of(replace(PRESET, chain="ddpm"))


@pytest.mark.parametrize("name", ["shift", "indi", "edm"])
def test_no_chain_of_no_steps(name: str) -> None:
    with pytest.raises(ValueError, match="at least one step, not 0"):
        sampled(CHAINS[name], torch.rand(1, 3, 8, 8), lambda x, level: x, torch.ones(1), 0)
    with pytest.raises(ValueError, match="one step, not 2"):
        sampled(CHAINS["direct"], torch.rand(1, 3, 8, 8), lambda x, level: x, torch.ones(1), 2)


def test_four_steps_are_resshifts_schedule() -> None:
    assert shift.schedule(4) == pytest.approx([0.100, 0.520, 0.761, 0.990], abs=5e-4)
    assert shift.schedule(1) == [0.99]


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 15])
def test_schedules_run_between_the_same_ends(steps: int) -> None:
    levels = shift.schedule(steps)
    assert len(levels) == steps
    assert levels == sorted(set(levels))
    assert levels[-1] == pytest.approx(0.99)
    sigmas = edm.schedule(steps)
    assert sigmas == sorted(set(sigmas), reverse=True)
    assert sigmas[0] == pytest.approx(80)
    assert steps == 1 or sigmas[-1] == pytest.approx(0.002)


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_reverse_steps_have_the_forward_marginals(steps: int) -> None:
    """With x0_hat = x0, x_t of the sampler is distributed as q(x_t | x0, y): mean and variance, at every step."""
    x0, y = torch.full((1, 1, 400, 400), 0.2), torch.full((1, 1, 400, 400), 0.7)
    seen: list[tuple[float, Tensor]] = []

    def denoise(x: Tensor, level: Tensor) -> Tensor:
        seen.append((level.item(), x))
        return x0

    sampled(CHAINS["shift"], y, denoise, torch.ones(1), steps)
    for level, x in seen[1:]:  # the start is y itself rather than its mixture with 2 % of x0
        eta = level**2
        assert x.mean().item() == pytest.approx(0.2 + eta * 0.5 / 0.99**2, abs=0.012)
        assert x.std().item() == pytest.approx(PRESET.kappa * level, rel=0.02)


def test_indi_passes_through_its_straight_line() -> None:
    """With x0_hat = x0 every state is (1 - t/s) x0 + (t/s) y."""
    x0, y, severity = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8), torch.tensor([0.6])

    def denoise(x: Tensor, level: Tensor) -> Tensor:
        share = level.item() / 0.6
        torch.testing.assert_close(x, x0 + share * (y - x0))
        trained, at = indi.corrupt(x0, y, torch.tensor([0.5 * share if share < 1 else 1.0]), severity, y, PRESET)
        torch.testing.assert_close(x, trained)
        torch.testing.assert_close(level, at)
        return x0

    sampled(CHAINS["indi"], y, denoise, severity, 4)


def test_dpm_solver_is_of_second_order() -> None:
    """Against the exact flow of Gaussian data: halving the steps' size divides the error by about four."""
    spread, y = 0.3, torch.full((1, 3, 4, 4), 0.5)
    noise = torch.randn(1, 3, 4, 4, dtype=torch.float64)

    def denoise(x: Tensor, level: Tensor) -> Tensor:  # the posterior mean of N(0, spread^2), in [0, 1]
        sigma = edm.level_to_sigma(level.double())[:, None, None, None]
        return (x * spread**2 / (spread**2 + sigma.square()) + 1) / 2

    def error(steps: int) -> float:
        x = edm.sample(denoise, y.double(), torch.ones(1, dtype=torch.float64), lambda _: noise, steps, PRESET)
        end = edm.SIGMA_MIN
        flow = edm.SIGMA_MAX * noise * ((spread**2 + end**2) / (spread**2 + edm.SIGMA_MAX**2)) ** 0.5
        exact = flow * spread**2 / (spread**2 + end**2)
        return float((2 * x - 1 - exact).abs().max())

    errors = [error(steps) for steps in (20, 40, 80)]
    assert errors[0] / errors[1] > 3 and errors[1] / errors[2] > 3


def test_diffusion_starts_where_the_sampler_does() -> None:
    x0, y, noise = torch.rand(3, 3, 8, 8), torch.rand(3, 3, 8, 8), torch.randn(3, 3, 8, 8)
    kappa = shift.kappa_at(torch.ones(3), PRESET)
    last = shift.diffuse(x0, y, torch.full((3,), 0.99), kappa, noise)
    torch.testing.assert_close(last, y + kappa * 0.99 * noise)
    middle = shift.diffuse(x0, y, torch.full((3,), 0.5), kappa, noise)
    torch.testing.assert_close(middle, x0 + 0.25 * (y - x0) + kappa * 0.5 * noise)


@pytest.mark.parametrize("name", ["shift", "indi"])
@pytest.mark.parametrize("steps", [1, 4])
def test_severity_zero_is_exactly_the_identity(stirred: Denoiser, name: str, steps: int) -> None:
    y = torch.rand(2, 3, 64, 64)

    def restore(severity: Tensor) -> Tensor:
        def denoise(x: Tensor, level: Tensor) -> Tensor:
            return CHAINS[name].denoise(stirred, x, y, level, severity, PRESET)

        return sampled(CHAINS[name], y, denoise, severity, steps)

    with torch.no_grad():
        # Exactly: to the last bit in one step, to float rounding of the convex combinations in several.
        torch.testing.assert_close(restore(torch.zeros(2)), y, rtol=0, atol=0 if steps == 1 else 1e-6)
        assert (restore(torch.full((2,), 0.5)) - y).abs().max() > 1e-3


def test_gates_grow_with_severity_or_are_off() -> None:
    severity = torch.linspace(0, 1, 11)
    for gate in (shift.c_out(severity, PRESET).flatten(), shift.kappa_at(severity, PRESET).flatten()):
        assert gate[0] == 0
        assert bool((gate.diff() >= 0).all())
    ungated = replace(PRESET, gate=0.0, gated=False)
    assert shift.kappa_at(severity, ungated).unique().tolist() == [pytest.approx(PRESET.kappa)]
    assert len(shift.c_out(severity, ungated).unique()) == 1


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
    with pytest.raises(ValueError, match=r"idm-65.*idm-64, idm-256, idm-512, indi-64"):
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
    rmse = torch.full((2,), 0.2)
    values = {kind: pointwise_loss(kind, a, b, rmse)[0].item() for kind in LOSSES}
    expected = {"l1": 0.5, "l2": 0.25, "l2_relative": 0.25 / 0.41, "charbonnier": (0.25 + 1e-4) ** 0.5 - 0.01}
    assert values == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="'huber'"):
        pointwise_loss("huber", a, b, rmse)
