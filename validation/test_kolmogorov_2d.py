"""kolmogorov_2d against the laminar flow, the eigenvalues of its instability, and its energy and enstrophy budgets."""

import math

import numpy as np
import pytest
import torch

FAMILY = "kolmogorov_2d"


def started(run, n, numerics=None, seed=0):
    flow = run(FAMILY, (n, n), numerics)
    return flow, flow.solver.draw_state(np.random.default_rng(seed), {})


def test_flow_from_rest_becomes_the_laminar_profile(run, relative_l2, figure):
    # It depends on y alone, so advection vanishes: w = -A k cos(k y) (1 - exp(-r t)) / r, r = drag + k^2 / Re.
    flow = run(FAMILY, (32, 32), {"wavenumber": 4, "step": 0.02})
    rate = 0.1 + 16 / 40
    exact = -1.5 * 4 * torch.cos(4 * flow.points[1]) * (1 - math.exp(-rate * 6)) / rate
    rest = torch.zeros(1, 32, 32, dtype=torch.float64)
    error = relative_l2(flow(rest, 6.0, reynolds=40.0, amplitude=1.5)[0], exact)
    figure("laminar flow from rest, t = 6", error)
    assert error < 1e-11


def most_unstable(reynolds, drag, k, m, modes):
    """Growth rate, and modes q = -modes .. modes along y, of the laminar flow's most unstable disturbance exp(i m x).

    w_t = -i m U (w - k^2 psi) + (Lap / Re - drag) w, for U = B sin(k y), B = 1 / (drag + k^2 / Re), psi = -Lap^-1 w.
    """
    q = np.arange(-modes, modes + 1)
    laplacian = -(q**2.0 + m**2)
    profile = (np.eye(len(q), k=-k) - np.eye(len(q), k=k)) / 2j / (drag + k**2 / reynolds)
    matrix = -1j * m * profile @ np.diag(1 + k**2 / laplacian) + np.diag(laplacian / reynolds - drag)
    values, vectors = np.linalg.eig(matrix)
    first = int(np.argmax(values.real))
    return values[first], vectors[:, first]


def test_a_small_disturbance_grows_at_the_rate_of_the_linear_theory(run, figure):
    reynolds, drag, k, m = 60.0, 0.1, 4, 2
    flow = run(FAMILY, (96, 96), {"wavenumber": k, "step": 0.01})  # it keeps |k| <= 31
    x, y = (axis.numpy() for axis in flow.points)
    rate, vector = most_unstable(reynolds, drag, k, m, 31)
    assert rate.real > 0.2
    shape = sum(c * np.exp(1j * q * y) for q, c in zip(range(-31, 32), vector, strict=True)) * np.exp(1j * m * x)
    laminar = -k * np.cos(k * y) / (drag + k**2 / reynolds)
    initial = torch.from_numpy(laminar + 1e-7 * shape.real)[None]
    found = flow(initial, 2.0, reynolds=reynolds, drag=drag)[0].numpy() - laminar
    exact = 1e-7 * (shape * np.exp(rate * 2)).real
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    figure(f"disturbance of growth rate {rate.real:.3f} after t = 2", float(error))
    assert error < 1e-5


def budgets(flow, initial, reynolds, time, frames):
    """Energy and enstrophy at the end, and what the equation says they should be by then (Simpson's rule)."""
    solver = flow.solver
    columns = {"reynolds": reynolds, "amplitude": 1.0, "drag": 0.1}
    evolution = solver.begin(initial[None], {k: torch.full((1,), v).double() for k, v in columns.items()})
    basis, k = evolution.problem.basis, solver.parameters.wavenumber
    inverse = torch.where(basis.laplacian == 0, 0.0, -1 / basis.laplacian)
    shear, curl = torch.sin(k * flow.points[1]), -k * torch.cos(k * flow.points[1])
    stored, rates = [], []
    for frame in range(frames):
        evolution.advance(time / (frames - 1) if frame else 0.0)
        hat = evolution.coefficients[0, 0]
        w, psi = basis.inverse(hat), basis.inverse(inverse * hat)
        u = basis.inverse(basis.derivatives[1] * inverse * hat)
        gradients = sum(basis.inverse(d * hat).square().mean() for d in basis.derivatives)
        energy, enstrophy = (w * psi).mean() / 2, w.square().mean() / 2
        stored.append(torch.stack([energy, enstrophy]))
        losses = torch.stack([2 * enstrophy, gradients]) / reynolds + 0.2 * stored[-1]
        rates.append(torch.stack([(u * shear).mean(), (w * curl).mean()]) - losses)
    weights = torch.ones(frames, 1, dtype=torch.float64)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    change = (weights * torch.stack(rates)).sum(0) * time / (frames - 1) / 3
    return stored[-1], stored[0] + change


def test_energy_and_enstrophy_change_by_what_force_friction_and_viscosity_do(run, figure):
    flow, initial = started(run, 48, {"wavenumber": 2, "step": 0.02})
    found, expected = budgets(flow, flow(initial, 5.0, reynolds=50.0), 50.0, 20.0, 801)
    errors = ((found - expected) / found).abs().tolist()
    figure("energy and enstrophy budgets over t = 20", f"{errors[0]:.1e}, {errors[1]:.1e}")
    assert max(errors) < 1e-5


def test_is_of_fourth_order_in_time(run, relative_l2, observed_order):
    numerics = {"wavenumber": 4}
    solutions = []
    for step in (0.05, 0.025, 0.0125, 0.003125):
        flow, initial = started(run, 32, numerics | {"step": step})
        solutions.append(flow(initial, 2.0, reynolds=40.0))
    errors = [relative_l2(solution, solutions[-1]) for solution in solutions[:-1]]
    assert observed_order("Kolmogorov flow in time", errors) == pytest.approx(4, abs=0.4)


def test_converges_spectrally_in_space(run, relative_l2, figure):
    solutions = []
    for n in (32, 64, 128):
        flow = run(FAMILY, (n, n), {"wavenumber": 4, "step": 0.02})
        x, y = flow.points
        initial = (torch.cos(x + 2 * y) + torch.sin(3 * x - y) + torch.cos(2 * x + 0.5))[None]
        solutions.append(flow(initial, 2.0, reynolds=20.0)[:, :: n // 32, :: n // 32])
    errors = [relative_l2(solution, solutions[-1]) for solution in solutions[:-1]]
    figure("Kolmogorov flow in space, 32 and 64 points against 128", f"{errors[0]:.1e}, {errors[1]:.1e}")
    assert errors[1] < errors[0] / 100
    assert errors[1] < 1e-5


def test_the_initial_vorticity_has_the_variance_of_its_spectrum(run, figure):
    k = np.arange(-15, 16)
    squared = k[:, None] ** 2 + k[None, :] ** 2
    expected = math.sqrt(2 * 7.0**3 * np.where(squared > 0, (squared + 49.0) ** -2.5, 0).sum())
    states = torch.stack([started(run, 32, seed=seed)[1] for seed in range(300)])
    measured = float(states.square().mean().sqrt())
    figure("initial standard deviation (32 points), and its formula", f"{measured:.3f}, {expected:.3f}")
    assert measured == pytest.approx(expected, rel=0.02)
