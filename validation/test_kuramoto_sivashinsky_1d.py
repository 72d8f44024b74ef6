"""kuramoto_sivashinsky_1d: growth of small waves, an independent integrator, its energy, its attractor."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.io import loadmat

FAMILY = "kuramoto_sivashinsky_1d"
DATA = Path(__file__).parents[2] / "shared" / "data"


def waves(x, length):
    angle = 2 * math.pi * x / length
    return 0.8 * torch.sin(angle + 0.4) + 0.5 * torch.cos(3 * angle) - 0.3 * torch.sin(4 * angle)


@pytest.mark.parametrize("viscosity", [1.0, 0.6])
def test_small_waves_grow_and_decay_at_their_rates(run, viscosity):
    flow = run(FAMILY, (64,), {"length": 32.0})
    (x,) = flow.points
    for mode in (1, 3, 5, 8):
        k = 2 * math.pi * mode / 32
        found = flow(1e-9 * torch.cos(k * x)[None], 2.0, viscosity=viscosity)[0]
        exact = 1e-9 * math.exp((k**2 - viscosity * k**4) * 2) * torch.cos(k * x)
        torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-15)


def test_agrees_with_finite_differences_and_an_implicit_integrator(run, relative_l2, figure):
    """Sixth-order central differences of u u_x, u_xx and u_xxxx on 256 points, stepped by scipy's BDF."""
    n, length, end = 256, 32.0, 4.0
    h = length / n
    stencils = {
        1: ([-1, 9, -45, 0, 45, -9, 1], 60),
        2: ([2, -27, 270, -490, 270, -27, 2], 180),
        4: ([7, -96, 676, -1952, 2730, -1952, 676, -96, 7], 240),
    }

    def matrix(order):
        weights, divisor = stencils[order]
        half = len(weights) // 2
        rows = sum(w * np.roll(np.eye(n), j - half, axis=1) for j, w in enumerate(weights))
        return rows / divisor / h**order

    first, linear = matrix(1), -matrix(2) - matrix(4)

    def rate(_, u):
        return linear @ u - u * (first @ u)

    def jacobian(_, u):
        return linear - np.diag(u) @ first - np.diag(first @ u)

    flow = run(FAMILY, (n,), {"length": length})
    initial = waves(flow.points[0], length)
    reference = solve_ivp(rate, (0, end), initial.numpy(), "BDF", rtol=1e-7, atol=1e-8, jac=jacobian).y[:, -1]
    error = relative_l2(flow(initial[None], end)[0], torch.from_numpy(reference))
    figure("against finite differences and BDF, t = 4", error)
    assert error < 1e-4


def test_is_of_fourth_order_in_time(run, relative_l2, observed_order):
    def solve(step):
        flow = run(FAMILY, (32,), {"length": 32.0, "step": step})  # with more, the order is reached at smaller steps
        return flow(waves(flow.points[0], 32.0)[None], 4.0)

    reference = solve(0.0125)
    errors = [relative_l2(solve(step), reference) for step in (0.2, 0.1, 0.05)]
    assert observed_order("in time, t = 4", errors) == pytest.approx(4, abs=0.3)


def test_converges_spectrally_in_space(run, relative_l2, figure):
    def solve(n):
        flow = run(FAMILY, (n,), {"length": 32.0})
        return flow(waves(flow.points[0], 32.0)[None], 10.0)[:, :: n // 32]

    reference = solve(256)
    errors = [relative_l2(solve(n), reference) for n in (32, 64, 96)]
    figure("in space, t = 10, 32, 64, 96 points of length 32", ", ".join(f"{e:.1e}" for e in errors))
    assert errors[1] < errors[0] / 100
    assert errors[2] < errors[1] / 100


def test_energy_follows_its_budget(run, figure):
    """d/dt mean(u^2) / 2 = mean(u_x^2) - nu mean(u_xx^2), summed by Simpson's rule."""
    n, length, dt, viscosity = 96, 48.0, 0.1, 0.8
    flow = run(FAMILY, (n,), {"length": length, "step": 0.05, "viscosity": viscosity})
    parameters = {"viscosity": torch.tensor([viscosity]).double(), "length": torch.tensor([length]).double()}
    evolution = flow.solver.begin(waves(flow.points[0], length)[None, None], parameters)
    k = 2 * math.pi / length * torch.arange(n // 2 + 1)
    energy, gain = [], []
    for frame in range(201):
        evolution.advance(dt if frame else 30.0)
        spectrum = torch.fft.rfft(evolution.fields()[0, 0])
        slope, bend = (torch.fft.irfft(spectrum * (1j * k) ** order, n) for order in (1, 2))
        energy.append(float(evolution.fields().square().mean()) / 2)
        gain.append(float(slope.square().mean() - viscosity * bend.square().mean()))
    work = dt / 3 * (gain[0] + gain[-1] + 4 * sum(gain[1:-1:2]) + 2 * sum(gain[2:-1:2]))
    turned_over = dt * float(np.abs(gain).sum())
    mismatch = abs(energy[-1] - energy[0] - work) / turned_over
    figure("energy budget over t = 30 .. 50, mismatch", mismatch)
    assert mismatch < 1e-4
    assert float(evolution.fields().mean()) == pytest.approx(0, abs=1e-12)


def test_attractor_has_the_known_size_and_wavelength(run, figure):
    """Eight trajectories of the published set from t = 60 to 160."""
    flow = run(FAMILY, (192,), {"step": 0.1})
    initial = torch.stack([flow.solver.draw_state(np.random.default_rng(seed), {}) for seed in range(8)])
    parameters = {"viscosity": torch.ones(8).double(), "length": torch.full((8,), 64.0).double()}
    frames = flow.solver.solve(initial, parameters, start=60.0, dt=5.0, frames=21)[..., 0].double()
    size, largest = float(frames.square().mean().sqrt()), float(frames.abs().max())
    spectrum = torch.fft.rfft(frames).abs().square().mean((0, 1))
    peak = 2 * math.pi / 64 * int(spectrum.argmax())
    figure("attractor: rms u, largest |u|, wavenumber of the peak", f"{size:.3f}, {largest:.2f}, {peak:.2f}")
    assert size == pytest.approx(1.3, abs=0.1)
    assert 2.5 < largest < 3.8
    # The fastest-growing wave, k = 1 / sqrt 2, is near the peak of the spectrum.
    assert peak == pytest.approx(0.7, abs=0.2)
    assert float(spectrum[60] / spectrum.max()) < 1e-10


def test_viscosity_only_rescales(run):
    """x -> x sqrt nu, t -> nu t, u -> u / sqrt nu takes viscosity 1 to nu."""
    flow = run(FAMILY, (64,), {"length": 24.0, "step": 0.01})
    initial = waves(flow.points[0], 24.0)[None]
    scaled = run(FAMILY, (64,), {"length": 24.0, "step": 0.0025})
    found = scaled(2 * initial, 0.5, viscosity=0.25, length=12.0)
    torch.testing.assert_close(found, 2 * flow(initial, 2.0), rtol=1e-7, atol=1e-9)


def test_agrees_with_the_data_of_pysindy(run, relative_l2, figure):
    path = DATA / "pysindy" / "kuramoto_sivishinky.mat"
    if not path.exists():
        pytest.skip("no data of pysindy beside the repository")
    theirs = torch.from_numpy(loadmat(path)["uu"].T.copy())  # 251 frames of 1024 points on 32 pi, 0.4 apart
    flow = run(FAMILY, (1024,), {"step": 0.1, "length": 32 * math.pi})
    errors = [relative_l2(flow(theirs[:1], t)[0], theirs[round(t / 0.4)]) for t in (0.4, 4.0, 20.0)]
    figure("pysindy's data, t = 0.4, 4 and 20", ", ".join(f"{e:.1e}" for e in errors))
    assert max(errors) < 1e-2
