"""diffusion_reaction_2d against chosen solutions, finite volumes of another code, and the theory of small waves."""

import math

import numpy as np
import pytest
import torch
from manufactured import forced_error
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
    assert observed_order("white noise in time, h = 0.02, 0.01, 0.005", errors) == pytest.approx(4, abs=0.4)
    assert errors[0] < 1e-4


def test_space_has_converged_for_smooth_states(run, relative_l2, observed_order):
    def solve(n):
        flow = run(FAMILY, (n, n), {"step": 0.02})
        x, y = (math.pi * (axis + 1) / 2 for axis in flow.points)
        initial = torch.stack([torch.cos(3 * x) * torch.cos(2 * y), 0.5 * torch.cos(x) + 0.3 * torch.cos(4 * y)])
        coefficients = flow.solver.problem(
            {k: torch.zeros(1, 1, 1, 1, dtype=torch.float64) for k in flow.solver.parameter_names}, initial
        ).basis.forward(flow(initial, 2.0))
        return coefficients[:, :16, :16] / n  # orthonormal coefficients grow with the number of cells

    exact = solve(96)
    errors = [relative_l2(solve(n), exact) for n in (24, 32, 48)]
    observed_order("smooth start in space, 24, 32 and 48 cells", errors, 1.5)
    assert errors[1] < errors[0] / 4
    assert errors[2] < errors[1] / 8


PARAMETERS = {"diffusivity_activator": 2e-2, "diffusivity_inhibitor": 5e-2, "threshold": 0.05}


def chosen_error(run, cells, steps):
    def reaction(fields):
        u, v = fields
        return torch.stack([u - u**3 - 0.05 - v, u - v])

    return forced_error(
        run(FAMILY, (cells, cells)).solver, reaction, [2e-2, 5e-2], time=1.0, steps=steps, **PARAMETERS
    )


def test_a_chosen_solution_converges_in_space_and_time(run, observed_order):
    space = [chosen_error(run, cells, 200) for cells in (6, 8, 12)]
    observed_order("chosen solution in space, 6, 8 and 12 cells", space, 1.5)
    assert space[1] < space[0] / 10
    assert space[2] < space[1] / 10
    time = [chosen_error(run, 24, steps) for steps in (10, 20, 40)]
    assert observed_order("chosen solution in time, 10, 20 and 40 steps", time) == pytest.approx(4, abs=0.3)


def finite_volumes(initial, time, **tolerances):
    """The same equation by second-order finite volumes in numpy and scipy's Runge-Kutta method (as PDEBench)."""
    h = 2 / initial.shape[-1]

    def rate(_, flat):
        cells = flat.reshape(initial.shape)
        padded = np.pad(cells, ((0, 0), (1, 1), (1, 1)), mode="edge")
        inner = padded[:, 1:-1, 1:-1]
        neighbours = padded[:, 2:, 1:-1] + padded[:, :-2, 1:-1] + padded[:, 1:-1, 2:] + padded[:, 1:-1, :-2]
        u, v = cells
        reaction = np.stack([u - u**3 - 5e-3 - v, u - v])
        return (reaction + np.array([1e-3, 5e-3])[:, None, None] * (neighbours - 4 * inner) / h**2).ravel()

    return solve_ivp(rate, (0, time), initial.ravel(), **tolerances).y[:, -1].reshape(initial.shape)


def test_finite_volumes_converge_to_it(run, observed_order):
    def difference(cells):
        flow = run(FAMILY, (cells, cells), {"step": 0.02})
        x, y = (math.pi * (axis + 1) / 2 for axis in flow.points)
        initial = torch.stack([torch.cos(2 * x) * torch.cos(y), 0.5 * torch.cos(x) + 0.3 * torch.cos(2 * y)])
        found = flow(initial, 2.0).numpy()
        other = finite_volumes(initial.numpy(), 2.0, rtol=1e-8, atol=1e-9)
        return float(np.linalg.norm(other - found) / np.linalg.norm(found))

    errors = [difference(cells) for cells in (16, 32, 64)]
    assert observed_order("finite volumes of scipy, 16, 32 and 64 cells", errors) == pytest.approx(2, abs=0.1)
    assert errors[-1] < 3e-3


def white_noise(run, cells, refine, number=0):
    """Solver and start of one sample on a refined grid."""
    solver = run(FAMILY, (cells, cells), {"refine": refine, "step": 0.02}).solver
    return solver, solver.draw_state(np.random.default_rng(number), {})


def solved(solver, state, time):
    """Stored fields at a time, (2, cells, cells)."""
    values = {"diffusivity_activator": 1e-3, "diffusivity_inhibitor": 5e-3, "threshold": 5e-3}
    evolution = solver.begin(
        state[None], {name: torch.tensor([value], dtype=torch.float64) for name, value in values.items()}
    )
    evolution.advance(time)
    return solver.restrict(evolution.fields())[0]


def test_white_noise_is_the_same_function_on_every_grid(run, relative_l2, observed_order):
    noise = white_noise(run, 16, 1)[1]
    assert float(noise.mean().abs()) < 4 / 16
    assert float(noise.std()) == pytest.approx(1, abs=0.1)
    solutions = []
    for refine in (1, 2, 4, 6):
        solver, state = white_noise(run, 16, refine)
        torch.testing.assert_close(solver.restrict(state[None])[0], noise, rtol=0, atol=1e-12)
        solutions.append(solved(solver, state, 0.3))
    errors = [relative_l2(solution, solutions[-1]) for solution in solutions[:-1]]
    observed_order("white noise in 16 cells, refine 1, 2, 4 against 6", errors)
    assert errors[1] < errors[0] / 4
    assert errors[2] < errors[1] / 20


@pytest.mark.slow
def test_the_published_set_is_solved_better_than_by_its_own_method(run, relative_l2, figure):
    solver, state = white_noise(run, 128, 1)
    reference = solved(*white_noise(run, 128, 2), 1.0)
    error = relative_l2(solved(solver, state, 1.0), reference)
    figure("PDEBench's set: error at t = 1 with refine 1", error)
    other = relative_l2(torch.from_numpy(finite_volumes(state.numpy(), 1.0)), reference)
    figure("PDEBench's set: difference of its own method at t = 1", other)
    assert error < 0.02 < other < 0.05  # both are small, as both solve the same equation
