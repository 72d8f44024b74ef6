"""compressible_1d against exact Riemann problems, a simple wave, damped sound, and its conservation laws."""

import math

import numpy as np
import pytest
import torch
from exact_riemann import riemann

from data_pipeline.solvers.numerics.gas import to_conserved

FAMILY = "compressible_1d"
EULER = {"shear_viscosity": 0.0, "bulk_viscosity": 0.0}


def tube(x, left, right):
    """Two constant states (density, velocity, pressure) with the jump at 0, (3, n)."""
    sides = torch.tensor([left, right], dtype=torch.float64)[..., None]
    return torch.where(x < 0, sides[0], sides[1])


@pytest.mark.parametrize(
    ("name", "left", "right", "gamma", "time", "order", "error"),
    [
        ("Sod", (1, 0, 1), (0.125, 0, 0.1), 1.4, 0.4, 0.8, 4e-3),
        ("two fans, near vacuum", (1, -2, 0.4), (1, 2, 0.4), 1.4, 0.3, 0.6, 5e-3),
        ("strong shock, pressure ratio 1e5", (1, 0, 1000), (1, 0, 0.01), 1.4, 0.024, 0.5, 1.2e-2),
        ("colliding streams, Mach 10", (1, 10, 0.6), (1, -10, 0.6), 5 / 3, 0.1, 0.4, 8e-3),
    ],
)
def test_riemann_problems_converge_to_the_exact_solution(
    run, observed_order, name, left, right, gamma, time, order, error
):
    errors = []
    for n in (100, 200):
        gas = run(FAMILY, (n,), {"boundary": "open"} | EULER)
        (x,) = gas.points
        found = gas(tube(x, left, right), time, gamma=gamma).numpy()
        exact = riemann(x.numpy() / time, left, right, gamma)
        assert found[[0, 2]].min() > 0
        each = np.abs(found - exact).mean(1) / np.abs(exact).max(1)
        errors.append(float(each.mean()))
    assert (
        observed_order(f"{name}: L1 over the largest value", errors) > order
    )  # first order at shocks, less at contacts
    assert errors[-1] < error


def simple_wave(x, time, gamma=5 / 3):
    """A wave to the right: u - 2 c / (gamma - 1) is constant, u is carried with the speed u + c."""
    u = 0.2 * np.sin(np.pi * x)
    for _ in range(60):
        u = 0.2 * np.sin(np.pi * (x - (1 + (gamma + 1) / 2 * u) * time))
    sound = 1 + (gamma - 1) / 2 * u
    density = gamma * sound ** (2 / (gamma - 1))
    return torch.from_numpy(np.stack([density, u, sound**2 * density / gamma]))


def test_a_steepening_wave_is_second_order_in_space(run, observed_order):
    errors = []
    for n in (64, 128):
        gas = run(FAMILY, (n,), EULER)
        x = gas.points[0].numpy()
        found, exact = gas(simple_wave(x, 0), 0.5)[1], simple_wave(x, 0.5)[1]
        errors.append(float((found - exact).abs().mean() / exact.abs().mean()))  # L2: 1.8, for the limiter at extrema
    assert observed_order("simple wave: velocity, L1", errors) > 1.85
    assert errors[-1] < 1e-3


def test_steps_are_second_order_in_time(run, observed_order, relative_l2):
    found = []
    for courant in (0.4, 0.2, 0.025):
        gas = run(FAMILY, (48,), {"courant": courant})
        x = gas.points[0].numpy()
        found.append(gas(simple_wave(x, 0), 0.2, shear_viscosity=1e-3, bulk_viscosity=1e-3))
    errors = [relative_l2(one, found[-1]) for one in found[:-1]]
    assert observed_order("simple wave: time step, L2", errors) > 1.7


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_contact_at_rest_stays_bit_for_bit(run, dtype):
    """There is no heat conduction: viscosity leaves a gas at rest alone, whatever its temperature."""
    gas = run(FAMILY, (32,))
    (x,) = gas.points
    start = torch.stack([torch.where(x.abs() < 0.4, 8.0, 1.0), 0 * x, torch.ones_like(x)]).to(dtype)
    found = gas(start, 0.2, gamma=1.5, shear_viscosity=0.1, bulk_viscosity=0.1)
    torch.testing.assert_close(found, start, rtol=0, atol=0)


@pytest.mark.parametrize(("eta", "zeta"), [(0.03, 0.0), (0.0, 0.04), (0.015, 0.02)])
def test_sound_is_damped_by_both_viscosities(run, figure, eta, zeta):
    """Of u_t = -p_x / d + nu u_xx, p_t = -gamma p u_x: exp(-nu k^2 t / 2) at frequency sqrt(c^2 k^2 - (nu k^2 / 2)^2).

    nu = (4/3 eta + zeta) / d. All three cases have nu = 0.04, so that they also agree with one another.
    """
    gas = run(FAMILY, (96,))
    (x,) = gas.points
    small, k, time = 1e-5, 2 * math.pi, 0.7
    start = torch.stack([torch.ones_like(x), small * torch.sin(k * x), torch.full_like(x, 0.6)])
    found = float(
        (gas(start, time, shear_viscosity=eta, bulk_viscosity=zeta)[1] * torch.sin(k * x)).mean() * 2 / small
    )
    decay = 0.04 * k**2 / 2
    frequency = math.sqrt(k**2 - decay**2)
    exact = math.exp(-decay * time) * (math.cos(frequency * time) - decay / frequency * math.sin(frequency * time))
    figure(f"sound, eta {eta}, zeta {zeta}: error over the start", abs(found - exact))
    assert abs(found - exact) < 5e-3


@pytest.mark.parametrize("eta", [0.0, 0.02])
def test_mass_momentum_and_energy_are_conserved(run, figure, eta):
    gas = run(FAMILY, (64,), {"modes": 4})
    drawn = {"density": 1.0, "temperature": 1.0, "mach_number": 1.0, "gamma": 5 / 3}
    start = gas.solver.draw_state(np.random.default_rng(4), drawn)
    gamma = torch.tensor(5 / 3, dtype=torch.float64)
    before, after = (
        to_conserved(state[None], gamma)[0].sum(1)
        for state in (start, gas(start, 2.0, shear_viscosity=eta, bulk_viscosity=eta))
    )
    change = float(((after - before).abs() / before[[0, 2, 2]]).max())
    figure(f"relative change of mass, momentum, energy in 2 units, eta {eta}", change)
    assert change < 1e-12


def test_gas_expands_into_near_vacuum_no_faster_than_it_can(run, figure):
    """The front of a gas that meets nothing runs at 2 c / (gamma - 1)."""
    gas = run(FAMILY, (160,), {"boundary": "open"} | EULER)
    (x,) = gas.points
    start = tube(x, (1, 0, 0.6), (1e-10, 0, 0.6e-10))
    found = gas(start, 0.2)
    assert float(found[[0, 2]].min()) > 0
    front = float(x[found[0] > 1e-6].max()) / 0.2
    figure("front speed into density 1e-10 (vacuum: 3)", front)
    assert 2.2 < front < 3.05
    fan = x.abs() < 0.15
    exact = ((3 - x / 0.2) / 4) ** 3  # c = (2 c_0 + (gamma - 1)(u_0 - x/t)) / (gamma + 1), density c^(2/(gamma-1))
    assert float((found[0] - exact)[fan].abs().max()) < 0.02


def test_streams_that_part_leave_a_vacuum_and_stay_positive(run):
    gas = run(FAMILY, (100,), {"boundary": "open"} | EULER)
    (x,) = gas.points
    found = gas(tube(x, (1, -10, 0.6), (1, 10, 0.6)), 0.05)
    assert 0 < float(found[0].min()) < 1e-2
    assert float(found[2].min()) > 0
    assert float((found[0] - found[0].flip(0)).abs().max()) < 1e-10


def test_waves_leave_through_open_ends(run):
    gas = run(FAMILY, (64,), {"boundary": "open"})
    (x,) = gas.points
    bump = 0.01 * torch.exp(-((x / 0.2) ** 2))
    found = gas(torch.stack([1 + bump, 0 * x, 0.6 * (1 + 5 / 3 * bump)]), 3.0)
    assert float((found[0] - 1).abs().max()) < 1e-4


def test_random_starts_have_the_mean_speed_and_contrast_of_their_parameters(run):
    gas = run(FAMILY, (512,), {"windowed": 0.0, "contrast": [0.01, 0.2]})
    drawn = {"density": 2.0, "temperature": 3.0, "mach_number": 0.5, "gamma": 1.5}
    for seed in range(20):
        density, velocity, pressure = gas.solver.draw_state(np.random.default_rng(seed), drawn)
        assert float(velocity.abs().mean()) == pytest.approx(0.5 * math.sqrt(4.5), rel=1e-2)
        for field, mean in ((density, 2.0), (pressure, 6.0)):
            assert 0.0099 < float((field / mean - 1).abs().max()) < 0.2


def test_shock_tubes_jump_in_the_middle_half_between_two_constant_states(run):
    gas = run(FAMILY, (256,), {"initial": "shock", "boundary": "open"})
    (x,) = gas.points
    jumps = []
    for seed in range(200):
        drawn = {"density": 2.0, "temperature": 3.0, "mach_number": 0.5, "gamma": 1.5}
        density, velocity, pressure = gas.solver.draw_state(np.random.default_rng(seed), drawn)
        left, right = density == density[0], density == density[-1]
        assert int((~left & ~right).sum()) <= 1
        assert (float(density[0]), float(pressure[0])) == pytest.approx((2.0, 6.0))
        assert 0.01 <= float(pressure[-1]) <= 100
        assert float(velocity[0].abs()) <= 0.5 * math.sqrt(4.5)
        jumps.append(float(x[~left].min()))
    assert min(jumps) > -0.52
    assert max(jumps) < 0.52
    assert abs(np.mean(jumps)) < 0.06


def test_a_shock_tube_sample_converges_under_refinement(run, observed_order, relative_l2):
    stored = []
    for refine in (1, 2, 4):
        gas = run(FAMILY, (64,), {"initial": "shock", "boundary": "open", "refine": refine})
        drawn = {"density": 2.0, "temperature": 1.0, "mach_number": 0.5, "gamma": 5 / 3}
        start = gas.solver.draw_state(np.random.default_rng(1), drawn)
        stored.append(gas(start, 0.2))
    errors = [relative_l2(fields, stored[-1]) for fields in stored[:-1]]
    assert observed_order("shock tube of the sampler, L2", errors) > 0.5
