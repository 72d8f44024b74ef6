"""gray_scott_2d against ordinary differential equations, exact decay and its own refinement."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

FAMILY = "gray_scott_2d"
MAZE = {"feed": 0.029, "kill": 0.057}


def test_a_uniform_state_follows_the_ordinary_equations(run):
    f, k = MAZE["feed"], MAZE["kill"]
    exact = solve_ivp(
        lambda _, y: [f * (1 - y[0]) - y[0] * y[1] ** 2, y[0] * y[1] ** 2 - (f + k) * y[1]],
        (0, 40),
        [0.6, 0.4],
        rtol=1e-11,
        atol=1e-12,
    ).y[:, -1]
    initial = torch.tensor([0.6, 0.4], dtype=torch.float64)[:, None, None].expand(2, 8, 8)
    found = run(FAMILY, (8, 8), {"step": 0.25})(initial, 40.0, **MAZE)
    np.testing.assert_allclose(found.mean((1, 2)), exact, rtol=1e-6)


def test_without_b_a_wave_of_a_decays_exactly(run, relative_l2):
    flow = run(FAMILY, (16, 16), {"step": 2.0})
    x, y = flow.points
    wave = torch.cos(3 * math.pi * x) * torch.sin(2 * math.pi * y)
    rate = MAZE["feed"] + 2e-5 * (9 + 4) * math.pi**2
    found = flow(torch.stack([1 + 0.3 * wave, 0 * wave]), 50.0, **MAZE)
    assert relative_l2(found[0], 1 + 0.3 * math.exp(-rate * 50) * wave) < 1e-12
    assert float(found[1].abs().max()) < 1e-15


def test_is_of_fourth_order_in_time(run, relative_l2, observed_order):
    def solve(step):
        flow = run(FAMILY, (32, 32), {"step": step})
        return flow(
            flow.solver.draw_state(np.random.default_rng(1), {}), 40.0, diffusivity_a=2e-4, diffusivity_b=1e-4, **MAZE
        )

    solutions = [solve(step) for step in (2.0, 1.0, 0.5, 0.125)]
    errors = [relative_l2(solution, solutions[-1]) for solution in solutions[:-1]]
    assert observed_order("Gray-Scott in time", errors) == pytest.approx(4, abs=0.4)


def test_the_grid_of_the_demonstration_holds_its_fronts(run, relative_l2):
    def solve(n):
        flow = run(FAMILY, (n, n), {"step": 2.5})
        return flow(flow.solver.draw_state(np.random.default_rng(2), {}), 100.0, **MAZE)[1, :: n // 64, :: n // 64]

    error = relative_l2(solve(128), solve(192))
    print(f"Gray-Scott, 128 against 192 points: {error:.2e}")
    assert error < 0.02
