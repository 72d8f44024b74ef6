"""decaying_turbulence_2d against exact solutions, conservation laws and another solver's data."""

import math
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

FAMILY = "decaying_turbulence_2d"
SHARED = Path(__file__).parents[2] / "shared" / "data" / "the_well" / FAMILY / "data" / "test"


def started(run, n, numerics=None, seed=0):
    flow = run(FAMILY, (n, n), numerics)
    return flow, flow.solver.draw_state(np.random.default_rng(seed), {"speed": flow.solver.parameters.speed[0]})


def energy_and_enstrophy(flow, vorticity):
    w = torch.fft.fft2(vorticity[0], norm="forward").abs().square()
    n, length = len(w), flow.solver.lengths[0]
    k = 2 * math.pi / length * torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)
    squared = k[:, None] ** 2 + k[None, :] ** 2
    squared[0, 0] = math.inf
    return float((w / squared).sum()) / 2, float(w.sum()) / 2


@pytest.mark.parametrize("length", [1.0, 2 * math.pi])
def test_taylor_green_vortices_decay_at_the_viscous_rate(run, relative_l2, length):
    flow = run(FAMILY, (32, 32), {"length": length, "step": 0.05 * length})
    k = 2 * math.pi / length
    x, y = (k * axis for axis in flow.points)
    initial = (torch.sin(2 * x) * torch.sin(y))[None]
    found = flow(initial, 2.0, viscosity=2e-3)
    assert relative_l2(found, initial * math.exp(-2e-3 * 5 * k**2 * 2.0)) < 1e-11


def test_a_vortex_street_in_a_shear_keeps_its_shape(run, relative_l2, figure):
    # Any sum of modes of one |k| is a steady solution of Euler's equation: here |k| = 5, along (3, 4) and (5, 0).
    flow = run(FAMILY, (48, 48), {"step": 0.02})
    x, y = (2 * math.pi * axis for axis in flow.points)
    initial = (torch.sin(3 * x + 4 * y) + 0.7 * torch.cos(5 * x + 1) + 0.4 * torch.sin(4 * x - 3 * y))[None]
    found = flow(initial, 3.0, viscosity=1e-3)
    error = relative_l2(found, initial * math.exp(-1e-3 * 4 * math.pi**2 * 25 * 3.0))
    figure("sum of modes with |k| = 5, t = 3", error)
    assert error < 1e-10


def test_without_viscosity_energy_and_enstrophy_drift_by_the_error_of_the_steps(run, observed_order, figure):
    drifts = []
    for step in (0.08, 0.04, 0.02):
        flow, initial = started(run, 32, {"step": step})
        found = flow(initial, 4.0, viscosity=1e-14)
        before, after = energy_and_enstrophy(flow, initial), energy_and_enstrophy(flow, found)
        drifts.append([abs(a / b - 1) for a, b in zip(after, before, strict=True)])
    energy, enstrophy = ([drift[i] for drift in drifts] for i in (0, 1))
    figure("drift of energy by t = 4, inviscid, h = 0.02", energy[-1])
    assert energy[-1] < 1e-9
    assert observed_order("drift of enstrophy by t = 4, inviscid", enstrophy) > 3.8
    assert enstrophy[-1] < 1e-7


@pytest.mark.slow
def test_viscosity_takes_energy_and_enstrophy_at_their_rates(run, figure):
    # dE/dt = -2 nu Z; Simpson's rule over a run in which most of the energy goes.
    flow, initial = started(run, 32, {"step": 0.02})
    frames, time, viscosity = 201, 8.0, 2e-3
    columns = {"viscosity": torch.tensor([viscosity]).double(), "speed": torch.ones(1).double()}
    evolution = flow.solver.begin(initial[None], columns)
    stored = []
    for frame in range(frames):
        evolution.advance(time / (frames - 1) if frame else 0.0)
        stored.append(energy_and_enstrophy(flow, evolution.fields()[0]))
    energy, enstrophy = np.array(stored).T
    weights = np.ones(frames)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    lost = 2 * viscosity * (weights * enstrophy).sum() * time / (frames - 1) / 3
    error = abs(energy[0] - energy[-1] - lost) / lost
    figure("energy lost to viscosity over t = 8", float(error))
    assert energy[-1] < energy[0] / 2
    assert error < 1e-7
    assert (np.diff(enstrophy) < 0).all()


def test_is_of_fourth_order_in_time(run, relative_l2, observed_order):
    solutions = []
    for step in (0.08, 0.04, 0.02, 0.005):
        flow, initial = started(run, 32, {"step": step})
        solutions.append(flow(initial, 2.0, viscosity=1e-3))
    errors = [relative_l2(solution, solutions[-1]) for solution in solutions[:-1]]
    assert observed_order("decaying turbulence in time", errors) == pytest.approx(4, abs=0.4)


def test_converges_spectrally_in_space(run, relative_l2, figure):
    solutions = []
    for n in (32, 64, 128):
        flow = run(FAMILY, (n, n), {"step": 0.02})
        x, y = (2 * math.pi * axis for axis in flow.points)
        initial = torch.sin(x) * torch.sin(y) + 0.5 * torch.cos(2 * x + y + 0.3) + 0.3 * torch.cos(x - 3 * y)
        solutions.append(flow(3 * initial[None], 1.5, viscosity=2e-3)[:, :: n // 32, :: n // 32])
    errors = [relative_l2(solution, solutions[-1]) for solution in solutions[:-1]]
    figure("decaying turbulence in space, 32 and 64 points against 128", f"{errors[0]:.1e}, {errors[1]:.1e}")
    assert errors[1] < errors[0] / 100
    assert errors[1] < 1e-6


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
def test_agrees_with_the_frames_of_exponax(run, relative_l2, figure):
    # Its rule keeps |k| <= 20 of 64 points, as ours does of 63; its vorticity has the opposite sign. Frame 0 holds
    # |k| <= 7, so changing grids loses nothing.
    with h5py.File(next(SHARED.glob("*.hdf5"))) as file:
        frames = -torch.from_numpy(file["t0_fields/vorticity"][:4]).double()

    def on_grid(fields, n):
        k = np.r_[0:21, -20:0]
        hat = torch.zeros(*fields.shape[:-2], n, n, dtype=torch.complex128)
        hat[..., k[:, None], k[None, :]] = torch.fft.fft2(fields, norm="forward")[..., k[:, None], k[None, :]]
        return torch.fft.ifft2(hat, norm="forward").real

    flow = run(FAMILY, (63, 63), {"step": 0.02})
    parameters = {"viscosity": torch.full((4,), 3e-4, dtype=torch.float64), "speed": torch.ones(4).double()}
    initial = on_grid(frames[:, :1], 63)
    found = flow.solver.solve(initial, parameters, start=0.0, dt=0.1, frames=frames.shape[1])
    found = on_grid(found[..., 0].double(), 64)
    errors = [max(relative_l2(f[i], e[i]) for f, e in zip(found, frames, strict=True)) for i in (1, 10, 20)]
    figure("exponax's frames 1, 10, 20 (t = 0.1, 1, 2)", ", ".join(f"{e:.1e}" for e in errors))
    assert max(errors) < 1e-4


@pytest.mark.parametrize("spectrum", ["gaussian", "mcwilliams"])
def test_initial_fields_have_their_speed_and_spectrum(run, figure, spectrum):
    numerics = {"spectrum": spectrum, "length": 2 * math.pi, "speed": 1.0, "peak": 4.0}
    power = torch.zeros(48, 48, dtype=torch.float64)
    for seed in range(200):
        flow, initial = started(run, 48, numerics, seed)
        energy, _ = energy_and_enstrophy(flow, initial)
        assert energy == pytest.approx(0.5, rel=1e-12)  # half the square of the speed
        power += torch.fft.fft2(initial[0], norm="forward").abs().square()
    k = torch.fft.fftfreq(48, 1 / 48, dtype=torch.float64)
    size = torch.hypot(k[:, None], k[None, :])

    def ratio(low, high):
        return float(power[size.round() == low].mean() / power[size.round() == high].mean())

    if spectrum == "gaussian":
        expected = ((4 * math.pi**2 * 10**2 + 49) / (4 * math.pi**2 * 3**2 + 49)) ** 2.5
    else:
        expected = (3**2 / (1 + (3 / 4) ** 4)) / (10**2 / (1 + (10 / 4) ** 4))
    figure(f"{spectrum}: power at k = 3 over that at 10, and formula", f"{ratio(3, 10):.3g}, {expected:.3g}")
    assert ratio(3, 10) == pytest.approx(expected, rel=0.12)  # rings of whole wavenumbers, 200 fields
    assert float(power[size > 15 * math.sqrt(2)].max()) < 1e-20
