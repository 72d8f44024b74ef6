"""diffusion_reaction_2d against ordinary differential equations and the linear theory of small waves."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.linalg import expm

FAMILY = "diffusion_reaction_2d"


def test_a_uniform_state_follows_the_ordinary_equations(run):
    exact = solve_ivp(
        lambda _, y: [y[0] - y[0] ** 3 - 5e-3 - y[1], y[0] - y[1]], (0, 3), [0.8, -0.4], rtol=1e-11, atol=1e-12
    ).y[:, -1]
    initial = torch.tensor([0.8, -0.4], dtype=torch.float64)[:, None, None].expand(2, 8, 8)
    found = run(FAMILY, (8, 8), {"step": 0.02})(initial, 3.0)
    np.testing.assert_allclose(found.mean((1, 2)), exact, rtol=1e-6)
    assert float(found.std((1, 2)).max()) < 1e-12


def test_a_small_no_flux_wave_follows_the_linear_theory(run):
    flow = run(FAMILY, (24, 16), {"step": 0.01})
    x, y = flow.points
    kx, ky = 3 * math.pi / 2, 2 * math.pi / 2
    wave = torch.cos(kx * (x + 1)) * torch.cos(ky * (y + 1))
    amplitude = np.array([1e-6, -2e-6])
    k2 = kx**2 + ky**2
    matrix = np.array([[1 - 1e-3 * k2, -1.0], [1.0, -1 - 5e-3 * k2]])
    found = flow(torch.stack([a * wave for a in amplitude]), 2.0, threshold=0.0)
    expected = torch.from_numpy(expm(2.0 * matrix) @ amplitude)[:, None, None] * wave
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-6


def test_is_of_fourth_order_in_time(run, relative_l2, observed_order):
    initial = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 16, 16)))
    solutions = [run(FAMILY, (16, 16), {"step": step})(initial, 1.0) for step in (0.02, 0.01, 0.005, 0.00125)]
    errors = [relative_l2(solution, solutions[-1]) for solution in solutions[:-1]]
    assert observed_order("diffusion-reaction in time", errors) == pytest.approx(4, abs=0.4)
    assert errors[0] < 1e-4


def test_space_has_converged_for_smooth_states(run, relative_l2):
    def solve(n):
        flow = run(FAMILY, (n, n), {"step": 0.02})
        x, y = (math.pi * (axis + 1) / 2 for axis in flow.points)
        initial = torch.stack([torch.cos(3 * x) * torch.cos(2 * y), 0.5 * torch.cos(x) + 0.3 * torch.cos(4 * y)])
        coefficients = flow.solver.problem(
            {k: torch.zeros(1, 1, 1, 1, dtype=torch.float64) for k in flow.solver.parameter_names}, initial.device
        ).basis.forward(flow(initial, 2.0))
        return coefficients[:, :16, :16] / n  # orthonormal coefficients grow with the number of cells

    exact = solve(96)
    errors = [relative_l2(solve(n), exact) for n in (24, 32, 48)]
    print(f"diffusion-reaction in space: {', '.join(f'{e:.2e}' for e in errors)}")
    assert errors[1] < errors[0] / 4
    assert errors[2] < errors[1] / 8
