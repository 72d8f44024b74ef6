"""compressible_2d against exact shock tubes, a vortex, viscous decay, symmetries and its conservation laws."""

import math

import numpy as np
import pytest
import torch
from exact_riemann import riemann

from data_pipeline.solvers.numerics.gas import to_conserved

FAMILY = "compressible_2d"
EULER = {"shear_viscosity": 0.0, "bulk_viscosity": 0.0}
DRAWN = {"density": 1.0, "temperature": 1.0, "mach_number": 1.0, "gamma": 5 / 3}


@pytest.mark.parametrize("along", [0, 1])
def test_sods_tube_is_exact_to_first_order_along_each_axis(run, observed_order, along):
    errors = []
    for n in (50, 100):
        gas = run(FAMILY, (n, 4) if along == 0 else (4, n), {"boundary": "open"} | EULER)
        s = gas.points[along] - 0.5
        start = torch.stack([torch.where(s < 0, 1, 0.125), 0 * s, 0 * s, torch.where(s < 0, 1, 0.1)])
        found = gas(start, 0.2, gamma=1.4)
        assert float(found.std(2 - along).max()) < 1e-12  # nothing happens across the strip
        assert float(found[2 - along].abs().max()) == 0
        line = found.mean(2 - along)
        exact = riemann(s.movedim(along, 0)[:, 0].numpy() / 0.2, (1, 0, 1), (0.125, 0, 0.1), 1.4)
        errors.append(float(np.abs(line[0].numpy() - exact[0]).mean()))
        assert np.abs(line[1 + along].numpy() - exact[1]).mean() < 0.03
    assert observed_order(f"Sod along axis {along}: density, L1", errors) > 0.8
    assert errors[-1] < 6e-3


def vortex(x, y, gamma=1.4, strength=1.0, radius=0.08):
    """An isentropic vortex in the middle of the box, at rest in a gas of density and temperature 1 (Shu, 1998)."""
    dx, dy = (x - 0.5) / radius, (y - 0.5) / radius
    swirl = strength / (2 * math.pi) * torch.exp((1 - dx**2 - dy**2) / 2)
    temperature = 1 - (gamma - 1) / (2 * gamma) * swirl**2
    density = temperature ** (1 / (gamma - 1))
    return torch.stack([density, -dy * swirl, dx * swirl, density * temperature])


@pytest.mark.slow
def test_a_drifting_vortex_is_second_order(run, observed_order):
    errors = []
    for n in (32, 64, 128):
        gas = run(FAMILY, (n, n), EULER)
        x, y = gas.points
        drift = torch.tensor([0, 1.0, 0.5, 0], dtype=torch.float64)[:, None, None]
        found = gas(vortex(x, y, strength=3.0) + drift, 0.4, gamma=1.4)
        # Carried by (0.4, 0.2); what crosses the side comes in again on the other.
        exact = vortex((x - 0.4) % 1, (y - 0.2) % 1, strength=3.0) + drift
        errors.append(float((found - exact).abs().mean()))
    assert observed_order("vortex, L1 of all channels", errors) > 1.7
    assert errors[-1] < 2e-3


@pytest.mark.parametrize("along", [0, 1])
def test_shear_decays_as_heat(run, observed_order, along):
    """v(x) between two streams obeys d v_t = eta v_xx; the bulk viscosity does not matter."""
    errors = []
    for n in (16, 32):
        gas = run(FAMILY, (n, 4) if along == 0 else (4, n))
        x = gas.points[along]
        shear, zero = 1e-3 * torch.sin(2 * math.pi * x), 0 * x
        velocity = (zero, shear) if along == 0 else (shear, zero)
        found = gas(torch.stack([zero + 2, *velocity, zero + 1]), 0.5, shear_viscosity=0.05, bulk_viscosity=0.3)
        exact = shear * math.exp(-0.05 / 2 * (2 * math.pi) ** 2 * 0.5)
        errors.append(float((found[2 - along] - exact).norm() / exact.norm()))
    assert observed_order(f"shear layer along axis {along}, L2", errors) > 1.9
    assert errors[-1] < 5e-3


@pytest.mark.parametrize("along", [0, 1])
def test_a_stream_carries_the_motion_across_it(run, observed_order, along):
    """Without viscosity the velocity across a stream, and the density, move with it unchanged."""
    errors = []
    for n in (16, 32):
        gas = run(FAMILY, (n, 4) if along == 0 else (4, n), EULER)
        x, still = gas.points[along], 0 * gas.points[0]

        def state(shift, x=x, still=still):
            wave = torch.sin(2 * math.pi * (x - shift))
            velocity = (still + 1, 0.2 * wave) if along == 0 else (0.2 * wave, still + 1)
            return torch.stack([1 + 0.2 * wave, *velocity, still + 1])

        found, exact = gas(state(0.0), 0.25), state(0.25)
        errors.append(float((found - exact).abs().mean()))
    assert observed_order(f"shear carried along axis {along}, L1 of all channels", errors) > 1.6
    assert errors[-1] < 3e-3


def test_shear_heats_the_gas_where_it_is_strongest(run, figure):
    """At first p_t = (gamma - 1) eta (v_x)^2: what friction takes from the flow stays where it was taken."""
    gas = run(FAMILY, (64, 4))
    x, _ = gas.points
    k, speed, time = 2 * math.pi, 0.3, 0.002
    start = torch.stack([0 * x + 1, 0 * x, speed * torch.sin(k * x), 0 * x + 1])
    rise = gas(start, time, shear_viscosity=0.05, bulk_viscosity=0.1)[3] - 1
    exact = 2 / 3 * 0.05 * (k * speed * torch.cos(k * x)) ** 2 * time
    error = float((rise - exact).norm() / exact.norm())
    figure("heat of a shear layer, relative L2", error)
    assert error < 1e-2


@pytest.mark.parametrize(
    ("kind", "eta", "zeta"), [("sound", 0.02, 0.0), ("sound", 0.0, 0.08 / 3), ("shear", 0.02, 0.1)]
)
def test_oblique_waves_decay_at_their_own_rates(run, figure, kind, eta, zeta):
    """Along (1, 1): sound with nu = (4/3 eta + zeta) / d, half of it in amplitude; shear with eta / d."""
    n, small = 40, 1e-4
    gas = run(FAMILY, (n, n))
    x, y = gas.points
    wave = torch.sin(2 * math.pi * (x + y))
    ones, v = torch.ones_like(x), small * wave / math.sqrt(2)
    start = torch.stack([ones, v, v if kind == "sound" else -v, 0.6 * ones])
    squared, time = 8 * math.pi**2, 0.2
    found = float(
        (gas(start, time, shear_viscosity=eta, bulk_viscosity=zeta)[1] * wave).mean() * 2 * math.sqrt(2) / small
    )
    exact = math.exp(-eta * squared * time)
    if kind == "sound":
        decay = 0.08 / 3 * squared / 2
        frequency = math.sqrt(squared - decay**2)
        phase = frequency * time
        exact = math.exp(-decay * time) * (math.cos(phase) - decay / frequency * math.sin(phase))
    figure(f"oblique {kind}, eta {eta}, zeta {zeta:.2g}: error over the start", abs(found - exact))
    assert abs(found - exact) < 1e-2


@pytest.mark.parametrize("eta", [0.0, 0.02])
def test_mass_momenta_and_energy_are_conserved(run, figure, eta):
    gas = run(FAMILY, (16, 16), {"modes": 2})
    start = gas.solver.draw_state(np.random.default_rng(4), DRAWN)
    gamma = torch.tensor(5 / 3, dtype=torch.float64)
    before, after = (
        to_conserved(state[None], gamma)[0].sum((1, 2))
        for state in (start, gas(start, 2.0, shear_viscosity=eta, bulk_viscosity=eta))
    )
    change = float(((after - before).abs() / before[[0, 3, 3, 3]]).max())
    figure(f"relative change of mass, momenta, energy in 2 units, eta {eta}", change)
    assert change < 1e-12


def test_a_round_blast_keeps_its_symmetries_and_is_round(run, figure):
    gas = run(FAMILY, (32, 32), {"boundary": "open"})
    x, y = gas.points
    r = torch.hypot(x - 0.5, y - 0.5)
    hot = 0.1 + 0.9 * (0.5 + 0.5 * torch.tanh((0.2 - r) / 0.03))
    found = gas(torch.stack([torch.ones_like(x), 0 * x, 0 * x, hot]), 0.2, shear_viscosity=1e-3, bulk_viscosity=1e-3)
    density = found[0]
    for other in (density.T, density.flip(0), density.flip(1)):
        torch.testing.assert_close(density, other, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(found[1], found[2].T, rtol=1e-10, atol=1e-12)
    line, diagonal = density[16, 16:].numpy(), density.diagonal()[16:].numpy()
    on_line, on_diagonal = r[16, 16:].numpy(), r.diagonal()[16:].numpy()
    same = np.abs(np.interp(on_line[:-2], on_diagonal, diagonal) - line[:-2]).mean()
    figure("round blast: axis against diagonal, mean difference of density", float(same))
    assert same < 0.04


@pytest.mark.slow
def test_a_random_start_converges_under_refinement(run, observed_order, relative_l2):
    stored = []
    for refine in (1, 2, 4):
        gas = run(FAMILY, (16, 16), {"refine": refine, "modes": 2, "windowed": 0.0})
        start = gas.solver.draw_state(np.random.default_rng(0), DRAWN)
        stored.append(gas(start, 0.2, shear_viscosity=0.02, bulk_viscosity=0.02))
    errors = [relative_l2(fields, stored[-1]) for fields in stored[:-1]]
    # Errors against a solution that has one of its own: order 2 shows as log2(15 / 3) = 2.3.
    assert observed_order("random start, eta 0.02, L2", errors) > 1.7
    assert errors[-1] < 3e-2


@pytest.mark.parametrize("initial", ["random", "turbulence"])
def test_the_mean_speed_of_a_start_is_mach_times_the_speed_of_sound(run, initial):
    gas = run(FAMILY, (64, 64), {"initial": initial, "windowed": 0.0})
    for seed in range(10):
        drawn = {"density": 2.0, "temperature": 3.0, "mach_number": 0.5, "gamma": 1.5}
        density, *velocity, pressure = gas.solver.draw_state(np.random.default_rng(seed), drawn)
        speed = torch.hypot(*velocity)
        assert float(speed.mean()) == pytest.approx(0.5 * math.sqrt(4.5), rel=2e-3)
        assert float(speed.max()) < 4 * float(speed.mean())  # the estimate of the steps relies on it
        low, high = (0.0099, 0.205) if initial == "random" else (0, 1e-12)
        for field, mean in ((density, 2.0), (pressure, 6.0)):
            assert low <= float((field / mean - 1).abs().max()) <= high
        rate = [
            torch.fft.fft2(v) * 1j * torch.fft.fftfreq(64, 1 / 64).double().reshape(s)
            for v, s in zip(velocity, ((64, 1), (1, 64)), strict=True)
        ]
        share = float((rate[0] + rate[1]).norm() / torch.stack(rate).norm())
        assert share < 1e-12 if initial == "turbulence" else share > 0.3


def test_starts_have_the_published_spectrum(run):
    """Mean power of a mode |k|^-1 (random) and |k|^-2 (turbulence, less the part along k); no mode along an axis."""
    for initial, power in (("random", -1), ("turbulence", -2)):
        gas = run(FAMILY, (32, 32), {"initial": initial, "windowed": 0.0})
        found = torch.zeros(32, 32, dtype=torch.float64)
        for seed in range(200):
            state = gas.solver.draw_state(np.random.default_rng(seed), DRAWN)
            found += torch.fft.fft2(state[1:3]).abs().square().sum(0)
        assert float(found[0].max() + found[:, 0].max() + found[5:28].max()) < 1e-9 * float(found.max())
        ratio = float((found[4, 4] + found[4, -4]) / (found[1, 1] + found[1, -1]))
        assert ratio == pytest.approx(4.0**power, rel=0.25)


def test_half_of_the_random_starts_are_at_rest_outside_a_window(run):
    gas = run(FAMILY, (32, 32))
    still = [
        bool((gas.solver.draw_state(np.random.default_rng(seed), DRAWN)[1:3, 0].abs() < 1e-3).all())
        for seed in range(200)
    ]
    assert 0.35 < np.mean(still) < 0.65
