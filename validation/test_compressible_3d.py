"""compressible_3d against exact shock tubes, the decay of plane waves, the one- and two-dimensional solvers' steps."""

import math

import numpy as np
import pytest
import torch
from exact_riemann import riemann

from data_pipeline.solvers.numerics.gas import Gas, euler_step, to_conserved

FAMILY = "compressible_3d"
EULER = {"shear_viscosity": 0.0, "bulk_viscosity": 0.0}
DRAWN = {"density": 1.0, "temperature": 1.0, "mach_number": 1.0, "gamma": 5 / 3}


@pytest.mark.parametrize("along", [0, 1, 2])
def test_sods_tube_is_exact_along_each_axis(run, figure, along):
    n = 48
    gas = run(FAMILY, tuple(n if axis == along else 4 for axis in range(3)), {"boundary": "open"} | EULER)
    s = gas.points[along] - 0.5
    start = torch.stack([torch.where(s < 0, 1, 0.125), 0 * s, 0 * s, 0 * s, torch.where(s < 0, 1, 0.1)])
    found = gas(start, 0.2, gamma=1.4).movedim(1 + along, 1)
    across = found.flatten(2)
    assert float(across.std(2).max()) < 1e-12  # nothing happens across the strip
    exact = riemann((np.arange(n) + 0.5 - n / 2) / n / 0.2, (1, 0, 1), (0.125, 0, 0.1), 1.4)
    error = float(np.abs(across[0, :, 0].numpy() - exact[0]).mean())
    figure(f"Sod along axis {along}, 48 cells: density, L1", error)
    assert error < 1.2e-2
    assert np.abs(across[1 + along, :, 0].numpy() - exact[1]).mean() < 0.05


@pytest.mark.parametrize("axes", [2, 3])
def test_a_step_is_that_of_one_axis_where_only_one_matters(axes):
    """Along every axis, with viscosity and with motion across: the same numbers, to rounding."""
    rng = np.random.default_rng(0)
    n = 16
    line = torch.from_numpy(rng.uniform(0.5, 1.5, (3, n)))
    line[1] -= 1
    across = torch.from_numpy(rng.uniform(-1, 1, (axes - 1, n)))

    def constants(grid):
        return (torch.full((1, 1, *[1] * grid), value, dtype=torch.float64) for value in (1.4, 0.1, 0.2))

    gas = Gas(*constants(axes))
    step = torch.full_like(gas.gamma, 1e-3)
    found = []
    for along in range(axes):
        velocity = list(across)
        velocity.insert(along, line[1])
        state = torch.stack([line[0], *velocity, line[2]])
        shape = [n if axis == along else 5 for axis in range(axes)]
        view = [n if axis == along else 1 for axis in range(axes)]
        wide = state.reshape(-1, *view).expand(-1, *shape)[None]
        after = euler_step(to_conserved(wide, gas.gamma), step, gas, (0.1,) * axes, "circular")[0]
        flat = after.movedim(1 + along, 1).flatten(2)
        torch.testing.assert_close(flat, flat[:, :, :1].expand_as(flat), rtol=1e-13, atol=1e-13)
        order = [0, 1 + along, *(1 + axis for axis in range(axes) if axis != along), 1 + axes]
        found.append(flat[order, :, 0])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-12, atol=1e-13)
    alone = Gas(*constants(1))
    still = torch.stack([line[0], line[1], line[2]])[None]
    one = euler_step(to_conserved(still, alone.gamma), torch.full_like(alone.gamma, 1e-3), alone, (0.1,), "circular")
    torch.testing.assert_close(found[0][:2], one[0, :2], rtol=1e-12, atol=1e-13)  # mass and momentum along the axis


@pytest.mark.parametrize(("kind", "eta", "zeta"), [("sound", 0.02, 0.01), ("shear", 0.02, 0.1)])
def test_oblique_waves_decay_at_their_own_rates(run, figure, kind, eta, zeta):
    """Along (1, 1, 1): sound with half of (4/3 eta + zeta) / d, shear with eta / d."""
    n, small = 16, 1e-4
    gas = run(FAMILY, (n, n, n))
    x, y, z = gas.points
    wave = torch.sin(2 * math.pi * (x + y + z))
    direction = (1, 1, 1) if kind == "sound" else (1, 1, -2)
    size = small / math.hypot(*direction)
    start = torch.stack([0 * x + 1, *(size * d * wave for d in direction), 0 * x + 0.6])
    squared, time = 12 * math.pi**2, 0.1
    found = float(
        (gas(start, time, shear_viscosity=eta, bulk_viscosity=zeta)[3] * wave).mean() * 2 / (size * direction[2])
    )
    exact = math.exp(-eta * squared * time)
    if kind == "sound":
        decay = (4 / 3 * eta + zeta) * squared / 2
        frequency = math.sqrt(squared - decay**2)
        phase = frequency * time
        exact = math.exp(-decay * time) * (math.cos(phase) - decay / frequency * math.sin(phase))
    figure(f"oblique {kind}, 16 cells: error over the start", abs(found - exact))
    assert abs(found - exact) < 3e-2


def test_mass_momenta_and_energy_are_conserved(run, figure):
    gas = run(FAMILY, (8, 8, 8), {"modes": 1})
    start = gas.solver.draw_state(np.random.default_rng(4), DRAWN)
    gamma = torch.tensor(5 / 3, dtype=torch.float64)
    before, after = (
        to_conserved(state[None], gamma)[0].sum((1, 2, 3))
        for state in (start, gas(start, 1.0, shear_viscosity=0.01, bulk_viscosity=0.01))
    )
    change = float(((after - before).abs() / before[[0, 4, 4, 4, 4]]).max())
    figure("relative change of mass, momenta, energy in 1 unit, eta 0.01", change)
    assert change < 1e-12


@pytest.mark.parametrize("initial", ["random", "turbulence"])
def test_the_mean_speed_of_a_start_is_mach_times_the_speed_of_sound(run, initial):
    gas = run(FAMILY, (32, 32, 32), {"initial": initial, "windowed": 0.0})
    for seed in range(3):
        drawn = {"density": 2.0, "temperature": 3.0, "mach_number": 0.5, "gamma": 1.5}
        density, *velocity, _ = gas.solver.draw_state(np.random.default_rng(seed), drawn)
        speed = torch.stack(velocity).norm(dim=0)
        assert float(speed.mean()) == pytest.approx(0.5 * math.sqrt(4.5), rel=2e-3)
        assert float(speed.max()) < 4 * float(speed.mean())  # the estimate of the steps relies on it
        assert (float(density.std()) > 0) == (initial == "random")
        k = torch.fft.fftfreq(32, 1 / 32).double()
        rate = [
            torch.fft.fftn(v) * k.reshape([-1 if other == axis else 1 for other in range(3)])
            for axis, v in enumerate(velocity)
        ]
        share = float(sum(rate).norm() / torch.stack(rate).norm())
        assert share < 1e-12 if initial == "turbulence" else share > 0.3


@pytest.mark.slow
def test_a_turbulent_start_converges_under_refinement(run, observed_order, relative_l2):
    stored = []
    for refine in (1, 2, 4):
        gas = run(FAMILY, (8, 8, 8), {"refine": refine, "modes": 1, "initial": "turbulence"})
        start = gas.solver.draw_state(np.random.default_rng(0), DRAWN)
        stored.append(gas(start, 0.2, shear_viscosity=0.02, bulk_viscosity=0.02))
    errors = [relative_l2(fields, stored[-1]) for fields in stored[:-1]]
    # Errors against a solution that has one of its own: order 2 shows as log2(15 / 3) = 2.3.
    assert observed_order("turbulent start, eta 0.02, L2", errors) > 1.7
