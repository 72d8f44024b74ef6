"""diffusion_sorption_1d against exact and self-similar solutions, and its balance of mass."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import brentq
from scipy.special import erfc

FAMILY = "diffusion_sorption_1d"


def content(u, porosity=0.29, density=2880.0, sorption=3.5e-4, exponent=0.874):
    return u + (1 - porosity) / porosity * density * sorption * u**exponent


def test_without_sorption_the_front_is_an_error_function(run, relative_l2, observed_order):
    errors = []
    for n in (32, 64, 128):
        flow = run(FAMILY, (n,), {"step": 0.5, "growth": 0.01})
        (x,) = flow.points
        found = flow(torch.zeros(1, n).double(), 20.0, freundlich_k=0.0)[0]
        errors.append(relative_l2(found, torch.from_numpy(erfc(x.numpy() / (2 * math.sqrt(5e-4 * 20))))))
    assert observed_order("no sorption, in space", errors) == pytest.approx(2, abs=0.3)
    assert errors[-1] < 2e-3


def test_linear_sorption_slows_the_front_down(run, relative_l2, figure):
    flow = run(FAMILY, (256,), {"growth": 0.01})
    (x,) = flow.points
    found = flow(torch.full((1, 256), 0.1).double(), 60.0, freundlich_n=1.0)[0]
    retardation = 1 + 0.71 / 0.29 * 2880 * 3.5e-4
    exact = 0.1 + 0.9 * torch.from_numpy(erfc(x.numpy() / (2 * math.sqrt(5e-4 * 60 / retardation))))
    left = x < 0.6  # away from the outlet
    error = relative_l2(found[left], exact[left])
    figure("linear sorption, 256 cells, t = 60", error)
    assert error < 5e-4


def self_similar(resting):
    """u(x / sqrt t) on a half line: D u'' + (xi / 2) C'(u) u' = 0, u(0) = 1, u(far) = resting; by shooting."""
    diffusivity = 5e-4

    def rate(xi, state):
        u, slope = max(state[0], 1e-9), state[1]
        retardation = 1 + 0.71 / 0.29 * 2880 * 3.5e-4 * 0.874 * u ** (0.874 - 1)
        return [slope, -xi / 2 * retardation * slope / diffusivity]

    def profile(slope, dense=False):
        far = 12 * math.sqrt(diffusivity)
        return solve_ivp(rate, (0, far), [1.0, slope], "LSODA", rtol=1e-8, atol=1e-10, dense_output=dense)

    scale = 1 / math.sqrt(diffusivity)
    slope = brentq(lambda s: profile(s).y[0, -1] - resting, -1.1 * scale, -0.5 * scale, xtol=1e-7)
    return profile(slope, dense=True).sol


def test_a_nonlinear_front_is_self_similar(run, relative_l2, observed_order):
    solution, errors = self_similar(0.1), []
    for n in (32, 64, 128):
        flow = run(FAMILY, (n,), {"step": 0.5, "growth": 0.01})
        (x,) = flow.points
        left = x < 0.6
        found = flow(torch.full((1, n), 0.1).double(), 60.0)[0, left]
        errors.append(relative_l2(found, torch.from_numpy(solution(x[left].numpy() / math.sqrt(60.0))[0])))
    assert observed_order("self-similar front, in space", errors) == pytest.approx(2, abs=0.3)
    assert errors[-1] < 1e-3


@pytest.mark.parametrize("initial", [0.1, 0.0])
def test_is_of_second_order_in_time(run, relative_l2, observed_order, initial):
    def solve(step):
        return run(FAMILY, (64,), {"step": step, "growth": 0.0})(torch.full((1, 64), initial).double(), 20.0)

    reference = solve(0.25)
    errors = [relative_l2(solve(step), reference) for step in (4.0, 2.0, 1.0)]
    assert observed_order(f"in time, u0 = {initial}", errors) == pytest.approx(2, abs=0.35)


def test_a_column_in_balance_is_linear(run, relative_l2):
    """u = 1 - x / (1 + D): as much leaves by D u_x = -u as enters."""
    flow = run(FAMILY, (32,), {"step": 50.0, "diffusivity": 0.5})
    (x,) = flow.points
    found = flow(torch.full((1, 32), 0.3).double(), 1000.0)[0]
    assert relative_l2(found, 1 - x / 1.5) < 1e-9


def test_what_enters_is_stored_or_leaves(run, figure):
    """Change of int C dx = int (flux at 0 - flux at 1) dt, both from the stored fields; Simpson's rule."""
    n, dt, diffusivity = 64, 1.0, 5e-4
    flow = run(FAMILY, (n,), {"step": 0.5})
    parameters = {
        name: torch.tensor([getattr(flow.solver.parameters, name)[0]]).double() for name in flow.solver.parameter_names
    }
    evolution = flow.solver.begin(torch.full((1, 1, n), 0.15).double(), parameters)
    stored, flux = [], []
    for frame in range(101):
        evolution.advance(dt if frame else 50.0)
        u = evolution.fields()[0, 0]
        stored.append(float(content(u).mean()))
        flux.append(float(2 * n * diffusivity * (1 - u[0]) - u[-1] / (1 + 1 / (2 * n * diffusivity))))
    entered = dt / 3 * (flux[0] + flux[-1] + 4 * sum(flux[1:-1:2]) + 2 * sum(flux[2:-1:2]))
    mismatch = abs(stored[-1] - stored[0] - entered) / (stored[-1] - stored[0])
    figure("balance of mass over t = 50 .. 150, mismatch", mismatch)
    assert mismatch < 1e-5


def test_concentrations_stay_between_their_bounds(run):
    flow = run(FAMILY, (64,))
    for initial in (0.0, 0.2):
        found = flow(torch.full((1, 64), initial).double(), 500.0)
        assert float(found.min()) >= -1e-12
        assert float(found.max()) <= 1
        assert (found[0].diff() <= 1e-12).all()  # falls from the inlet to the outlet


def test_initial_concentrations_are_uniform(run):
    solver = run(FAMILY, (128,)).solver
    drawn = [solver.draw_parameters(np.random.default_rng(seed))["initial"] for seed in range(2000)]
    assert min(drawn) >= 0
    assert max(drawn) <= 0.2
    assert float(np.mean(drawn)) == pytest.approx(0.1, abs=0.004)
    assert float(np.std(drawn)) == pytest.approx(0.2 / math.sqrt(12), rel=0.05)
