"""navier_stokes_3d against exact flows, a power series in time, and the invariants of the equation."""

import math
from collections import defaultdict

import numpy as np
import pytest
import torch

from data_pipeline.solvers.numerics.basis import FourierBasis

FAMILY = "navier_stokes_3d"


def curl(velocity):
    basis = FourierBasis(tuple(velocity.shape[1:]), (2 * math.pi,) * 3, velocity)
    u, v, w = basis.forward(velocity)
    dx, dy, dz = basis.derivatives
    return basis.inverse(torch.stack([dy * w - dz * v, dz * u - dx * w, dx * v - dy * u]))


def energy(velocity):
    return 0.5 * float(velocity.square().sum(0).mean())


def enstrophy(velocity):
    return energy(curl(velocity))


def helicity(velocity):
    return float((velocity * curl(velocity)).sum(0).mean())


def vortices(points):
    x, y, z = points
    return torch.stack([torch.sin(x) * torch.cos(y), -torch.cos(x) * torch.sin(y), 0 * z]) * torch.cos(z)


def random_start(run, n, number=0, numerics=None):
    flow = run(FAMILY, (n, n, n), {"peak": 1.5} | (numerics or {}))
    return flow, flow.solver.draw_state(np.random.default_rng(number), {"speed": 1.0})


def test_the_abc_flow_decays_exactly(run, relative_l2, figure):
    flow = run(FAMILY, (16, 16, 16), {"step": 0.05})
    x, y, z = flow.points
    abc = torch.stack(
        [
            1.0 * torch.sin(2 * z) + 0.5 * torch.cos(2 * y),
            0.8 * torch.sin(2 * x) + 1.0 * torch.cos(2 * z),
            0.5 * torch.sin(2 * y) + 0.8 * torch.cos(2 * x),
        ]
    )
    torch.testing.assert_close(curl(abc), 2 * abc)  # a Beltrami flow: u x curl u = 0
    error = relative_l2(flow(abc, 1.0, viscosity=0.1), abc * math.exp(-0.1 * 4 * 1.0))
    figure("ABC flow at t = 1, relative error", error)
    assert error < 1e-12


@pytest.mark.parametrize("still", [0, 1, 2])
def test_vortices_in_a_plane_decay_exactly(run, relative_l2, still):
    flow = run(FAMILY, (12, 12, 12), {"step": 0.1})
    a, b = (flow.points[axis] for axis in range(3) if axis != still)
    velocity = [torch.sin(a) * torch.cos(2 * b) * 2, -torch.cos(a) * torch.sin(2 * b)]
    velocity.insert(still, torch.zeros_like(a))
    start = torch.stack(velocity)
    assert relative_l2(flow(start, 1.0, viscosity=0.1), start * math.exp(-0.1 * 5)) < 1e-12


def series(order, viscosity):
    """Taylor coefficients in time of Taylor and Green's vortices, each {wavevector: complex amplitude (3,)}.

    (n + 1) u_{n+1} = P sum_m u_m x curl u_{n-m} - nu k^2 u_n, by products of the modes themselves: no grid, no FFT.
    """
    first = defaultdict(lambda: np.zeros(3, complex))
    for p, q, r in np.ndindex(2, 2, 2):
        k = 1 - 2 * np.array([p, q, r])
        first[tuple(k)] += np.array([k[0], -k[1], 0]) / 8j
    terms, curls = [first], []
    for n in range(order):
        curls.append({k: 1j * np.cross(k, c) for k, c in terms[n].items()})
        rate = defaultdict(lambda: np.zeros(3, complex))
        for m in range(n + 1):
            for k, c in terms[m].items():
                for other, d in curls[n - m].items():
                    rate[tuple(np.add(k, other))] += np.cross(c, d)
        for k, c in terms[n].items():
            rate[k] = rate[k] - viscosity * np.dot(k, k) * c
        following = {k: (c - np.dot(k, c) * np.array(k) / max(np.dot(k, k), 1)) / (n + 1) for k, c in rate.items()}
        terms.append({k: c for k, c in following.items() if np.abs(c).max() > 1e-15})
    return terms


def test_vortices_follow_their_power_series(run, relative_l2, figure):
    terms, time = series(6, 0.02), 0.1
    flow = run(FAMILY, (16, 16, 16), {"step": 0.025})
    exact = torch.zeros(3, 16, 16, 16, dtype=torch.float64)
    for n, term in enumerate(terms):
        for k, c in term.items():
            wave = torch.exp(1j * sum(a * p for a, p in zip(k, flow.points, strict=True)))
            exact += time**n * (torch.from_numpy(c).reshape(3, 1, 1, 1) * wave).real
    found = flow(vortices(flow.points), time, viscosity=0.02)
    figure("vortices of Taylor and Green against their power series, t = 0.1", relative_l2(found, exact))
    assert float(exact[2].abs().max()) > 5e-3  # the third component comes from the pressure alone
    assert relative_l2(found, exact) < 1e-7


def test_energy_and_helicity_stay_without_viscosity(run, figure):
    flow, start = random_start(run, 16, numerics={"step": 0.02})
    found = flow(start, 1.0, viscosity=0.0)
    drift = abs(energy(found) / energy(start) - 1)
    twist = abs(helicity(found) - helicity(start)) / math.sqrt(4 * energy(start) * enstrophy(start))
    figure("drift of energy, of helicity at t = 1 without viscosity", f"{drift:.1e}, {twist:.1e}")
    assert abs(helicity(start)) > 1e-2
    assert drift < 1e-6
    assert twist < 1e-6
    assert enstrophy(found) > 1.2 * enstrophy(start)  # it is no plane flow: vortices stretch


def test_energy_falls_by_twice_viscosity_times_enstrophy(run, figure):
    flow, state = random_start(run, 16, numerics={"step": 0.02})
    energies, enstrophies = [], []
    for _ in range(11):
        energies.append(energy(state))
        enstrophies.append(enstrophy(state))
        state = flow(state, 0.04, viscosity=0.06)
    weights = np.array([1, 4, 2, 4, 2, 4, 2, 4, 2, 4, 1]) * 0.04 / 3
    lost = 2 * 0.06 * float(weights @ enstrophies)
    figure("energy lost over 2 nu times enstrophy, less 1", (energies[0] - energies[-1]) / lost - 1)
    assert energies[0] - energies[-1] == pytest.approx(lost, rel=1e-5)


def test_the_velocity_has_no_divergence_and_mean_and_stays_below_two_thirds(run, figure):
    flow, start = random_start(run, 16)
    found = flow(start, 0.5, viscosity=0.05)
    basis = FourierBasis((16, 16, 16), (2 * math.pi,) * 3, found)
    modes = basis.forward(found)
    divergence = basis.inverse(sum(d * c for d, c in zip(basis.derivatives, modes, strict=True)))
    figure("largest divergence after t = 0.5, speed 1", float(divergence.abs().max()))
    assert float(divergence.abs().max()) < 1e-12
    assert float(found.mean((1, 2, 3)).abs().max()) < 1e-14
    assert float((modes * (1 - basis.dealias)).abs().max()) < 1e-10


def test_order_four_in_time(run, relative_l2, observed_order):
    results = []
    for step in (0.1, 0.05, 0.025, 0.0125):
        flow, start = random_start(run, 16, numerics={"step": step})
        results.append(flow(start, 0.4, viscosity=0.05))
    errors = [relative_l2(found, results[-1]) for found in results[:-1]]
    assert observed_order("in time, random start", errors) > 3.7


def test_spectral_convergence_in_space(run, relative_l2, figure):
    results = []
    for n in (16, 24, 32):
        flow = run(FAMILY, (n, n, n), {"step": 0.05})
        results.append(flow(vortices(flow.points), 0.5, viscosity=0.1)[:, :: n // 8, :: n // 8, :: n // 8])
    errors = [relative_l2(found, results[-1]) for found in results[:-1]]
    figure("in space, vortices: errors on 16^3, 24^3", ", ".join(f"{e:.1e}" for e in errors))
    assert errors[1] < errors[0] / 10  # wavenumbers up to 5 and 7
    assert errors[1] < 1e-5


def test_the_random_start_has_its_spectrum(run, figure):
    peak, count = 4.0, 12
    k = np.fft.fftfreq(36, 1 / 36)
    squared = k[:, None, None] ** 2 + k[:, None] ** 2 + k**2
    shell = np.rint(np.sqrt(squared)).astype(int).ravel()
    # E(k) is k^4 exp(-2 (k / peak)^2) where every mode of the sphere, 4 pi k^2 of them, has its part.
    expected = np.bincount(shell, (squared * np.exp(-2 * squared / peak**2)).ravel())
    powers = np.zeros_like(expected)
    for number in range(count):
        _, start = random_start(run, 36, number, {"peak": peak})
        assert energy(start) == pytest.approx(0.5, rel=1e-12)
        modes = torch.fft.fftn(start, dim=(1, 2, 3), norm="forward").abs().square().sum(0).numpy()
        powers += np.bincount(shell, modes.ravel())
    found = powers[1:9] / powers[1:9].sum() / (expected[1:9] / expected[1:9].sum())
    figure("energy of shells 1 .. 8 over k^4 exp(-2 (k/4)^2), 12 fields", f"{found.min():.2f} .. {found.max():.2f}")
    np.testing.assert_allclose(found[2:], 1, rtol=0.12)
    assert powers[12:].sum() < 1e-12 * powers.sum()


@pytest.mark.slow
def test_dissipation_of_the_vortices_at_reynolds_100_peaks_as_in_brachet_1983(run, figure):
    # Brachet et al., J. Fluid Mech. 130, 1983: at Re = 100 the largest dissipation, about 0.013, comes at t = 4 .. 5.
    flow = run(FAMILY, (32, 32, 32), {"step": 0.1})
    state, rates = vortices(flow.points), []
    for _ in range(14):
        state = flow(state, 0.5, viscosity=0.01)
        rates.append(2 * 0.01 * enstrophy(state))
    top = int(np.argmax(rates))
    figure("largest dissipation at Re = 100, and its time", f"{rates[top]:.4f} at {(top + 1) / 2}")
    assert 4 <= (top + 1) / 2 <= 5.5
    assert rates[top] == pytest.approx(0.0127, abs=0.001)
