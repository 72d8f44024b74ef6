"""burgers_shocks_1d against shocks, fans and characteristics, Cole-Hopf, and the spectral solver."""

import math

import numpy as np
import pytest
import torch

FAMILY = "burgers_shocks_1d"
FREE = {"forced": False, "length": 1.0}


def mean_error(found, exact):
    return float((found - exact).abs().mean())


def characteristics(x, t):
    """u of u0 = 1/2 + sin(2 pi x) before its shock at t = 1 / (2 pi): u = u0(x - u t), by Newton's method."""
    u = 0.5 + torch.sin(2 * math.pi * x)
    for _ in range(100):
        phase = 2 * math.pi * (x - u * t)
        u = u - (u - 0.5 - torch.sin(phase)) / (1 + 2 * math.pi * t * torch.cos(phase))
    return u


def cell_means(function, n, *arguments, points=8):
    """Means of a function over the cells of [0, 1), by the midpoint rule on a grid `points` times as fine."""
    x = (torch.arange(n * points, dtype=torch.float64) + 0.5) / (n * points)
    return function(x, *arguments).reshape(n, points).mean(1)


def test_a_smooth_wave_follows_its_characteristics(run, observed_order):
    errors = []
    for n in (64, 128, 256):
        flow = run(FAMILY, (n,), FREE)
        found = flow(cell_means(characteristics, n, 0.0)[None], 0.1)[0]
        errors.append(mean_error(found, cell_means(characteristics, n, 0.1)))
    assert observed_order("smooth wave, L1, space and time", errors) > 1.7
    assert errors[-1] < 2e-4


def test_is_of_second_order_in_time(run, observed_order):
    def solve(courant):
        flow = run(FAMILY, (64,), FREE | {"courant": courant, "viscosity": 0.02})
        return flow(cell_means(characteristics, 64, 0.0)[None], 0.1)[0]

    reference = solve(0.0125)
    errors = [mean_error(solve(courant), reference) for courant in (0.4, 0.2, 0.1)]
    assert observed_order("in time, viscous wave", errors) == pytest.approx(2, abs=0.35)


@pytest.mark.parametrize("advection", [1.0, -1.0, 3.0])
def test_a_step_becomes_a_fan_and_a_shock(run, observed_order, advection):
    """u = 1 on 0.2 .. 0.5 and -0.2 elsewhere: a fan from 0.2, through u = 0, a shock from 0.5 at speed 0.4 a."""
    if advection < 0:
        with pytest.raises(Exception, match="advection"):
            run(FAMILY, (64,), FREE | {"advection": advection})
        return
    time = 0.3 / advection

    def exact(x, t):
        fan = ((x - 0.2) / (advection * max(t, 1e-12))).clamp(-0.2, 1.0)
        return torch.where(x > 0.5 + 0.4 * advection * t, -0.2, fan)

    errors = []
    for n in (80, 160, 320):
        flow = run(FAMILY, (n,), FREE | {"advection": advection})
        found = flow(cell_means(exact, n, 0.0, points=40)[None], time)[0]
        errors.append(mean_error(found, cell_means(exact, n, time, points=40)))
        assert float(found.min()) > -0.2 - 1e-9
        assert float(found.max()) < 1 + 1e-9
    assert observed_order(f"fan and shock, a = {advection}, L1", errors) > 0.8
    assert errors[-1] < 2e-3


def test_viscous_fronts_agree_with_cole_hopf(run, observed_order):
    def exact(x, t, viscosity=0.05):
        phi, slope = torch.ones_like(x), torch.zeros_like(x)
        for amplitude, mode, phase in ((0.5, 1, 0.3), (0.3, 2, 1.1)):
            k = 2 * math.pi * mode
            decay = amplitude * math.exp(-viscosity * k**2 * t)
            phi = phi + decay * torch.cos(k * x + phase)
            slope = slope - decay * k * torch.sin(k * x + phase)
        return -2 * viscosity * slope / phi

    errors = []
    for n in (32, 64, 128):
        flow = run(FAMILY, (n,), FREE | {"viscosity": 0.05})
        errors.append(mean_error(flow(cell_means(exact, n, 0.0)[None], 0.2)[0], cell_means(exact, n, 0.2)))
    assert observed_order("Cole-Hopf, L1, space and time", errors) == pytest.approx(2, abs=0.25)


def test_mass_stays_energy_falls_and_slopes_obey_oleinik(run):
    """An entropy solution has u_x <= 1 / t (Oleinik); late ones reach it between their shocks."""
    flow = run(FAMILY, (200,), {"forced": False})
    initial = flow.solver.draw_state(np.random.default_rng(3), {})
    energies = [float(initial.square().mean())]
    for time in (2.0, 8.0, 32.0):
        found = flow(initial, time)
        assert float(found.mean()) == pytest.approx(float(initial.mean()), abs=1e-13)
        energies.append(float(found.square().mean()))
        slopes = found[0].diff() / (16 / 200)
        assert float(slopes.quantile(0.95)) < 1 / time  # a cell beside a shock may be steeper
    assert energies == sorted(energies, reverse=True)
    assert float(slopes.median()) > 0.8 / 32


def test_the_force_turns_as_its_waves_say(run, relative_l2, figure):
    """With next to no advection u is u0 + int force dt, which is known."""
    numerics = {"advection": 1e-9}
    flow = run(FAMILY, (64,), numerics)
    state = flow.solver.draw_state(np.random.default_rng(4), {})
    sines, cosines, rates = state[1:].chunk(3)
    torch.testing.assert_close(state[0], sines.sum(0))
    torch.testing.assert_close(cosines**2 + sines**2, (cosines**2 + sines**2).mean(1, keepdim=True).expand(-1, 64))
    evolution = flow.solver.begin(
        state[None],
        {
            name: torch.tensor([getattr(flow.solver.parameters, name)[0]])
            for name in ("advection", "viscosity", "length")
        },
    )
    for _ in range(200):  # nothing else limits the step
        evolution.advance(0.02)
    turned = rates * 4.0
    exact = state[0] + ((torch.sin(turned) * sines + (1 - torch.cos(turned)) * cosines) / rates).sum(0)
    error = relative_l2(evolution.fields()[0, 0], exact)
    figure("force alone, t = 4, 200 steps", error)
    assert error < 1e-5


@pytest.mark.slow
def test_agrees_with_the_spectral_solver_of_the_forced_equation(run, observed_order):
    """E2 of the paper at viscosity 0.2, the same flow and force for both."""
    spectral = run("kdv_burgers_1d", (256,), {"step": 0.005})
    state = spectral.solver.draw_state(np.random.default_rng(8), {})
    parameters = {"advection": 1.0, "viscosity": 0.2}
    smooth = spectral(state, 4.0, dispersion=0.0, **parameters)[0]
    modes = torch.arange(129)
    errors = []
    for n in (64, 128, 256):
        flow = run(FAMILY, (n,))
        initial = flow.solver.draw_state(np.random.default_rng(8), {})
        shift = torch.exp(2j * math.pi * modes * (0.5 / n))
        middles = torch.fft.irfft(torch.fft.rfft(smooth) * shift, 256)[:: 256 // n]
        errors.append(mean_error(flow(initial, 4.0, **parameters)[0], middles))
    assert observed_order("forced, against the spectral solver, L1", errors) > 1.5
    assert errors[-1] < 2e-3
