"""rotating_shallow_water_2d against exact steady jets, linear waves, a nonlinear simple wave, and its budgets."""

import math

import numpy as np
import pytest
import torch

FAMILY = "rotating_shallow_water_2d"
TAU = 2 * math.pi
INVISCID = {"hyperviscosity": 1e-30}
RANDOM = {"coriolis": 8.0, "speed": 0.12, "jet": 0.3, "waves": 0.02}


def draw(flow, seed=3, **changes):
    drawn = {"gravity": 1.0, "depth": 1.0, **RANDOM, **changes}
    return flow.solver.draw_state(np.random.default_rng(seed), drawn)


def gradient(field):
    """Spectral derivatives along the last two axes of the unit box."""
    n, m = field.shape[-2:]
    kx = 1j * TAU * torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)[:, None]
    ky = 1j * TAU * torch.fft.fftfreq(m, 1 / m, dtype=torch.float64)
    coefficients = torch.fft.fft2(field)
    return torch.fft.ifft2(kx * coefficients).real, torch.fft.ifft2(ky * coefficients).real


def laplacian(field):
    return sum(gradient(part)[axis] for axis, part in enumerate(gradient(field)))


@pytest.mark.parametrize("along", [0, 1])
@pytest.mark.parametrize("f", [9.0, -5.0])
def test_a_jet_in_geostrophic_balance_is_steady(run, figure, along, f):
    flow = run(FAMILY, (24, 24))
    across = flow.points[1 - along]
    speed = 0.3 * torch.sin(2 * TAU * across) + 0.1 * torch.cos(TAU * across)
    stream = 0.3 / (2 * TAU) * torch.cos(2 * TAU * across) - 0.1 / TAU * torch.sin(TAU * across)
    # Along x: u = -psi_y; along y: v = psi_x.
    eta = f / 2.0 * (stream if along == 0 else -stream)
    velocity = [speed, 0 * speed] if along == 0 else [0 * speed, speed]
    initial = torch.stack([0.7 + eta, *velocity])
    found = flow(initial, 5.0, coriolis=f, gravity=2.0, depth=0.7, **INVISCID)
    change = float((found - initial).abs().max())
    figure(f"change of a balanced jet of speed 0.4 by t = 5, axis {along}, f = {f:g}", change)
    assert change < 1e-11


@pytest.mark.parametrize(("cycles", "f"), [((1, 0), 8.0), ((3, 2), 8.0), ((-2, 5), -3.0), ((0, 4), 0.0)])
def test_waves_obey_the_dispersion_relation(run, relative_l2, figure, cycles, f):
    flow = run(FAMILY, (16, 16))
    gravity, depth = 2.0, 0.5
    kx, ky = (TAU * m for m in cycles)
    k = math.hypot(kx, ky)
    omega = math.sqrt(f**2 + gravity * depth * k**2)

    def wave(t, a=1e-9):
        phase = kx * flow.points[0] + ky * flow.points[1] - omega * t
        along, across = a * omega / (depth * k) * torch.cos(phase), a * f / (depth * k) * torch.sin(phase)
        return torch.stack(
            [depth + a * torch.cos(phase), (kx * along - ky * across) / k, (ky * along + kx * across) / k]
        )

    found = flow(wave(0.0), 2.5, coriolis=f, gravity=gravity, depth=depth, **INVISCID)
    error = relative_l2(found[1:], wave(2.5)[1:])
    amplitude, exact = (torch.fft.fft2(h)[cycles] for h in (found[0] - depth, wave(2.5)[0] - depth))
    slip = float(torch.angle(amplitude / exact)) / (2.5 * omega)
    figure(f"wave {cycles}, f = {f:g}: relative error of the frequency", abs(slip))
    assert abs(slip) < 1e-6
    assert error < 1e-6


def simple_wave(x, t, a=0.1):
    """Height and velocity of a wave that runs to the right, gravity and depth 1: h = 1 + a sin 2 pi x at t = 0.

    u - 2 c is the same everywhere (u = 2 c - 2), so that each height moves at u + c = 3 c - 2.
    """
    start = x.clone()
    for _ in range(200):
        start = x - t * (3 * torch.sqrt(1 + a * torch.sin(TAU * start)) - 2)
    height = 1 + a * torch.sin(TAU * start)
    return height, 2 * torch.sqrt(height) - 2


@pytest.mark.parametrize("along", [0, 1])
def test_a_nonlinear_wave_steepens_as_the_exact_one(run, observed_order, along):
    errors = []
    for n in (16, 32, 64):
        flow = run(FAMILY, (n, 4) if along == 0 else (4, n), {"step": 0.0025})
        x = flow.points[along]
        height, speed = simple_wave(x, 0.0)
        velocity = [speed, 0 * speed] if along == 0 else [0 * speed, speed]
        found = flow(torch.stack([height, *velocity]), 0.5, coriolis=0.0, **INVISCID)
        exact = simple_wave(x, 0.5)
        errors.append(float(torch.stack([found[0] - exact[0], found[1 + along] - exact[1]]).norm() / math.sqrt(4 * n)))
    assert observed_order(f"simple wave along axis {along}, in space (spectral)", errors) > 6
    assert errors[-1] < 1e-7


def test_fourth_order_in_time(run, relative_l2, observed_order):
    def at(step):
        flow = run(FAMILY, (32, 32), {"step": step, "eddies": 3.0})
        return flow(draw(flow), 0.5, hyperviscosity=5e-7, **RANDOM) - torch.tensor([1.0, 0, 0])[:, None, None]

    reference = at(0.00125)
    errors = [relative_l2(at(step), reference) for step in (0.02, 0.01, 0.005)]
    assert observed_order("random flow in time", errors) > 3.7


def test_spectral_accuracy_in_space(run, relative_l2, observed_order):
    def at(n):
        flow = run(FAMILY, (n, n), {"step": 0.01, "eddies": 3.0})
        found = flow(draw(flow), 0.5, hyperviscosity=5e-7, **RANDOM) - torch.tensor([1.0, 0, 0])[:, None, None]
        return found[:, :: n // 16, :: n // 16]

    reference = at(96)
    errors = [relative_l2(at(n), reference) for n in (16, 32, 64)]
    assert observed_order("random flow in space (spectral)", errors) > 5
    assert errors[-1] < 1e-4


def budgets(state, f, nu):
    """Mass, energy and potential enstrophy of (h, u, v), and what hyperviscosity does to the last two in unit time."""
    height, u, v = state
    zeta = gradient(v)[0] - gradient(u)[1]
    energy = (height * (u**2 + v**2) + (height - 1) ** 2) / 2
    q = (zeta + f) / height
    damped = [-nu * laplacian(laplacian(field)) for field in (height, u, v, zeta)]
    energy_rate = ((u**2 + v**2) / 2 + height - 1) * damped[0] + height * (u * damped[1] + v * damped[2])
    enstrophy_rate = q * damped[3] - q**2 / 2 * damped[0]
    return [float(field.mean()) for field in (height, energy, height * q**2 / 2, energy_rate, enstrophy_rate)]


@pytest.mark.parametrize("end", [2.0, pytest.param(10.0, marks=pytest.mark.slow)])
def test_mass_energy_and_potential_enstrophy_over_a_long_run(run, figure, end):
    nu, f, frames = 2e-7, RANDOM["coriolis"], round(end / 0.1)
    flow = run(FAMILY, (48, 48), {"step": 0.02, "eddies": 3.0})
    columns = {
        name: torch.tensor([{"hyperviscosity": nu, **RANDOM}.get(name, 1.0)], dtype=torch.float64)
        for name in flow.solver.parameter_names
    }
    evolution = flow.solver.begin(draw(flow)[None], columns)
    rows = [budgets(evolution.fields()[0], f, nu)]
    for _ in range(frames):
        evolution.advance(end / frames)
        rows.append(budgets(evolution.fields()[0], f, nu))
    mass, energy, enstrophy, energy_rate, enstrophy_rate = np.array(rows).T
    lost = [np.trapezoid(rate, dx=end / frames) for rate in (energy_rate, enstrophy_rate)]
    figure(f"change of mass by t = {end:g}", abs(mass[-1] - mass[0]))
    # Of potential enstrophy only the part above that of the fluid at rest, f^2 / 2, belongs to the flow.
    for what, series, loss, scale in (
        ("energy", energy, lost[0], energy[0]),
        ("potential enstrophy", enstrophy, lost[1], enstrophy[0] - f**2 / 2),
    ):
        figure(f"{what}: part that the damping took by t = {end:g}", -loss / scale)
        figure(f"{what}: part that no term explains", abs(series[-1] - series[0] - loss) / scale)
        assert loss < 0
        assert abs(series[-1] - series[0] - loss) < 0.02 * abs(loss) + 1e-5 * scale
    assert abs(mass[-1] - mass[0]) < 1e-13


def test_initial_states_have_the_speed_the_jet_and_the_balance_that_were_drawn(run):
    flow = run(FAMILY, (48, 40))
    f, gravity = 8.0, 2.0
    height, u, v = draw(flow, gravity=gravity, waves=0.0)
    assert float((u**2 + v**2).mean().sqrt()) == pytest.approx(0.12, rel=0.1)  # jet and eddies may share a mode
    for slope, force in zip(gradient(height), (f * v, -f * u), strict=True):
        torch.testing.assert_close(gravity * slope, force, atol=1e-11, rtol=0)
    height, u, v = draw(flow, jet=1.0, waves=0.0)
    assert float((u**2).mean().sqrt()) == pytest.approx(0.12, rel=1e-9)
    assert float(v.abs().max()) < 1e-12
    assert float((u - u.mean(0)).abs().max()) < 1e-12
    rough = draw(flow, speed=1e-9)[0]
    assert float(rough.std(correction=0)) == pytest.approx(0.02, rel=1e-6)
