"""allen_cahn_2d against travelling and resting fronts, a shrinking circle, and the laws of its energy."""

import itertools
import math

import numpy as np
import pytest
import torch

FAMILY = "allen_cahn_2d"


def wave(x, t, diffusivity, reaction):
    """Phase 1 that spreads into the unstable state 0 on both sides of x = 1/2: a pair of exact fronts.

    Each is (1 - tanh(z / 2 l)) / 2, l = sqrt(2 D / r), and moves at 3 sqrt(D r / 2) (Fisher's equation with a cubic;
    for example Murray, Mathematical Biology I, 2002, section 13.3). The two overlap by exp(-0.2 / l).
    """
    length, speed = math.sqrt(2 * diffusivity / reaction), 3 * math.sqrt(diffusivity * reaction / 2)
    half = 0.1 + speed * t
    return (torch.tanh((x - 0.5 + half) / (2 * length)) - torch.tanh((x - 0.5 - half) / (2 * length))) / 2


SHARP = {"diffusivity": 0.5, "reaction": 1e4}  # l = 0.01, speed 150
TIME = 1e-3


def wave_error(run, relative_l2, points, step, along=0):
    flow = run(FAMILY, (points, 4) if along == 0 else (4, points), {"step": step})
    x = flow.points[along]
    found = flow(wave(x, 0.0, **SHARP)[None], TIME, **SHARP)[0]
    return relative_l2(found, wave(x, TIME, **SHARP))


@pytest.mark.parametrize("along", [0, 1])
def test_travelling_fronts_converge_spectrally_in_space(run, relative_l2, observed_order, along):
    errors = [wave_error(run, relative_l2, points, 4e-6, along) for points in (64, 96, 128)]
    observed_order(f"travelling front along axis {along}, 64, 96 and 128 points", errors, 4 / 3)
    assert errors[1] < errors[0] / 10
    assert errors[2] < errors[1] / 10
    assert errors[2] < 1e-4


def test_travelling_fronts_are_of_fourth_order_in_time(run, relative_l2, observed_order):
    errors = [wave_error(run, relative_l2, 192, step) for step in (2.5e-5, 1.25e-5, 6.25e-6)]
    assert observed_order("travelling front in time, h = 0.25, 0.125, 0.0625 / r", errors) == pytest.approx(4, abs=0.3)


def test_fronts_between_the_phases_rest(run):
    flow = run(FAMILY, (128, 4), {"step": 2e-5})
    x, length = flow.points[0], 0.02
    # The pair of fronts attracts each other by exp(-2 distance / l): 1e-21. The grid holds them to 1e-6.
    at_rest = torch.tanh((x - 0.25) / length) * torch.tanh((0.75 - x) / length)
    found = flow(at_rest[None], 2e-3, diffusivity=1.0, reaction=2 / length**2)[0]
    assert float((found - at_rest).abs().max()) < 1e-5


@pytest.mark.slow
def test_a_circle_shrinks_by_its_curvature(run, figure):
    length, radius = 0.02, 0.35
    flow = run(FAMILY, (96, 96), {"step": 1e-4})
    distance = torch.hypot(*(axis - 0.5 for axis in flow.points))
    start = torch.tanh((radius - distance) / length)[None]
    # R' = -D / R: the area falls at the constant rate 2 pi D, but for terms of the order of (l / R)^2 = 0.003.
    areas = [
        float((flow(start, time, diffusivity=1.0, reaction=2 / length**2) + 1).mean() / 2) for time in (5e-3, 4.5e-2)
    ]
    rate = (areas[0] - areas[1]) / 4e-2
    figure("rate at which a circle loses area, over 2 pi D", f"{rate / (2 * math.pi):.5f}")
    assert rate == pytest.approx(2 * math.pi, rel=0.01)


def test_a_uniform_state_follows_the_ordinary_equation(run):
    for start in (0.1, -0.5, 1.4):
        initial = torch.full((1, 8, 8), start, dtype=torch.float64)
        found = run(FAMILY, (8, 8), {"step": 2e-4})(initial, 0.02, reaction=100.0)
        exact = start / math.sqrt(start**2 + (1 - start**2) * math.exp(-2 * 100.0 * 0.02))
        np.testing.assert_allclose(found, exact, rtol=1e-6)


def test_a_small_wave_follows_the_linear_theory(run, relative_l2):
    flow = run(FAMILY, (24, 16), {"step": 1e-4})
    x, y = flow.points
    small = 1e-8 * (torch.cos(6 * math.pi * x) * torch.sin(4 * math.pi * y))[None]
    found = flow(small, 0.01, diffusivity=1.5, reaction=300.0)
    assert relative_l2(found, small * math.exp(0.01 * (300.0 - 1.5 * (36 + 16) * math.pi**2))) < 1e-6


ROUGH = {"modes": (4, 12), "step": 1e-5, "reaction": 5000.0}


def random_start(run, points, number=0):
    flow = run(FAMILY, (points, points), ROUGH)
    return flow, flow.solver.draw_state(np.random.default_rng(number), {})


def energy(flow, u, diffusivity, reaction):
    """Mean of D |grad u|^2 / 2 + r (1 - u^2)^2 / 4, with the derivatives of the Fourier series."""
    k = torch.fft.fftfreq(len(u), 1 / len(u)).double() * 2 * math.pi
    spectrum = torch.fft.fft2(u, norm="forward")
    gradient = ((k[:, None] ** 2 + k**2) * spectrum.abs() ** 2).sum()
    return float(diffusivity * gradient / 2 + reaction * ((1 - u**2) ** 2).mean() / 4)


def test_the_energy_falls_and_the_phases_stay_within_one(run, figure):
    flow, u = random_start(run, 64)
    energies, largest = [energy(flow, u[0], 1.0, 5000.0)], []
    for _ in range(20):
        u = flow(u, 2e-4)
        energies.append(energy(flow, u[0], 1.0, 5000.0))
        largest.append(float(u.abs().max()))
    assert all(later < earlier for earlier, later in itertools.pairwise(energies))
    assert energies[-1] < energies[0] / 5  # the phases have parted
    figure("largest |u| of a random start, less 1", max(largest) - 1)
    assert 0.99 < max(largest) < 1 + 2e-4


def test_a_random_start_has_the_statistics_of_its_definition(run):
    flow = run(FAMILY, (32, 32), {"modes": (6, 6), "decay": 0.8})
    states = torch.stack([flow.solver.draw_state(np.random.default_rng(number), {})[0] for number in range(2000)])
    mode = torch.arange(1, 7).double()
    # The variance of a_ij is 1/3, the mean of each squared sine 1/2.
    variance = (mode[:, None] ** 2 + mode**2).pow(-1.6).sum() / 6**4 / 3 / 4
    assert float(states.square().mean()) == pytest.approx(float(variance), rel=0.05)
    assert float(states.mean(0).abs().max()) < 4 * math.sqrt(4 * variance / 2000)
    assert float(states[:, 0].abs().max()) == float(states[:, :, 0].abs().max()) == 0


@pytest.mark.slow
def test_the_kinks_of_a_random_start_cost_two_orders(run, relative_l2, observed_order):
    solutions = []
    for points in (48, 96, 192, 384):
        flow, start = random_start(run, points)
        solutions.append(flow(start, 1e-3)[0, :: points // 48, :: points // 48])
    errors = [relative_l2(solution, solutions[-1]) for solution in solutions[:-1]]
    assert observed_order("random start in space, 48, 96 and 192 points", errors) > 1.8
    assert errors[1] < 3e-3
