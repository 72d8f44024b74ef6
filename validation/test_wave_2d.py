"""wave_2d against standing waves, pulses in layered media, an infinite box, and its conserved energy."""

import math

import numpy as np
import pytest
import torch

from data_pipeline.solvers.numerics import acoustics

FAMILY = "wave_2d"
WALLS = {"boundary": "wall", "rate": True}


def cells(flow, modes):
    """Cell means of cos(m pi x) cos(n pi y)."""
    lines = []
    for axis, m in enumerate(modes):
        h = flow.solver.spacing[axis]
        x = flow.points[axis]
        lines.append(torch.cos(m * math.pi * x) * (math.sin(m * math.pi * h / 2) / (m * math.pi * h / 2) if m else 1))
    return lines[0] * lines[1]


def standing(run, n, courant=0.8, time=1.25, modes=(2, 3), speed=1.5):
    """Error of u and of u_t of a standing wave between walls, and its exact values."""
    flow = run(FAMILY, (n, 3 * n // 2), WALLS | {"courant": courant, "speed": speed})
    omega = speed * math.pi * math.hypot(*modes)
    shape = cells(flow, modes)
    found = flow(torch.stack([shape, torch.full_like(shape, speed)]), time)
    exact = torch.stack([shape * math.cos(omega * time), -omega * shape * math.sin(omega * time)])
    return [float((found[i] - exact[i]).norm() / exact[i].norm()) for i in (0, 1)]


def test_standing_waves_converge_with_fourth_order_in_space_and_time(run, observed_order):
    errors = [standing(run, n) for n in (16, 32, 64)]
    assert observed_order("standing wave in space and time, u", [e[0] for e in errors]) > 3.7
    assert observed_order("standing wave in space and time, u_t", [e[1] for e in errors]) > 3.7
    assert errors[-1][0] < 1e-4


def test_fourth_order_in_time(run, observed_order):
    def at(courant):
        flow = run(FAMILY, (32, 32), {"courant": courant, "speed": 1.5})
        return flow(flow.solver.draw_state(np.random.default_rng(1), {}), 0.5)

    reference = at(0.05)
    errors = [float((at(courant) - reference).norm() / reference.norm()) for courant in (0.8, 0.4, 0.2)]
    assert observed_order("pulses in an open box in time", errors) > 3.7


def layered(run, n, along, speeds, interface=0.5 + 1 / 192, time=0.22, start=0.36, width=0.03):
    """A pulse that meets another medium a third or two into a cell of each grid: what is found, and the exact one."""
    first, second = speeds
    grid = (n, 4) if along == 0 else (4, n)
    flow = run(FAMILY, grid, {"boundary": "wall", "speed": [min(speeds), max(speeds)]})
    x, h = flow.points[along], 1 / n
    before = ((interface - (x - h / 2)) / h).clamp(0, 1)
    speed = (before / first**2 + (1 - before) / second**2) ** -0.5
    edges = [torch.erf((x + sign * h / 2 - start) / (math.sqrt(2) * width)) for sign in (-1, 1)]
    pulse = (edges[1] - edges[0]) * width * math.sqrt(math.pi / 2) / h
    found = flow(torch.stack([pulse, speed]), time)[0]

    def gauss(distance):
        return torch.exp(-(distance**2) / (2 * width**2))

    reflected, transmitted = (second - first) / (second + first), 2 * second / (second + first)
    left = gauss(x - start - first * time) + gauss(x - start + first * time)
    left = left + reflected * gauss(2 * interface - x - start - first * time)
    right = transmitted * gauss((x - interface) * first / second + interface - start - first * time)
    return found, torch.where(x < interface, left, right) / 2, x


@pytest.mark.parametrize("along", [0, 1])
@pytest.mark.parametrize("speeds", [(1.0, 2.0), (1.0, 0.5)])
def test_a_pulse_is_reflected_and_transmitted_at_a_layer(run, observed_order, along, speeds):
    errors = []
    for n in (64, 128, 256):
        found, exact, _ = layered(run, n, along, speeds)
        errors.append(float((found - exact).norm() / exact.norm()))
    name = f"pulse onto a layer of speed {speeds[1]:g} along axis {along}"
    assert observed_order(name, errors) > 1.8
    assert errors[-1] < 3e-3


def test_the_amplitude_of_a_reflection(run, figure):
    # All three pulses are far apart. Their areas tell their heights: a pulse of speed c is as long as c.
    found, _, x = layered(run, 256, 0, (1.0, 2.0), interface=0.6, time=0.35, start=0.45, width=0.02)
    area = 0.02 * math.sqrt(2 * math.pi) * 256 * 4
    echo = float(found[(x > 0.25) & (x < 0.55)].sum()) / area
    through = float(found[x > 0.65].sum()) / area / 2
    figure("amplitude of an echo; (c2 - c1) / (c2 + c1) / 2 is 1/6 = 0.16667", f"{echo:.5f}")
    figure("amplitude beyond the layer; c2 / (c2 + c1) is 2/3 = 0.66667", f"{through:.5f}")
    assert echo == pytest.approx(1 / 6, rel=2e-3)
    assert through == pytest.approx(2 / 3, rel=2e-3)


def energy(fields, speed):
    """Integral of u_t^2 / (2 c^2) + |grad u|^2 / 2, the gradient from the mirrored field's Fourier series."""
    u, rate = fields
    total = float((rate**2 / (2 * speed**2)).mean())
    for axis in (0, 1):
        mirrored = torch.cat([u, u.flip(axis)], dim=axis)
        n = u.shape[axis]
        k = math.pi * torch.fft.fftfreq(2 * n, 1 / (2 * n), dtype=torch.float64)
        factor = 1j * k.reshape((-1, 1) if axis == 0 else (1, -1))
        slope = torch.fft.ifft(torch.fft.fft(mirrored, dim=axis) * factor, dim=axis).real
        total += float((slope**2).mean()) / 2
    return total


@pytest.mark.parametrize("end", [2.0, pytest.param(20.0, marks=pytest.mark.slow)])
def test_energy_between_walls_stays_over_a_long_run(run, figure, end):
    flow = run(FAMILY, (64, 64), WALLS | {"medium": "bumps", "pulse_width": 0.08})
    initial = flow.solver.draw_state(np.random.default_rng(2), {})
    energies = [energy(flow(initial, time), initial[1]) for time in (0.0, end / 2, end)]
    change = max(abs(e / energies[0] - 1) for e in energies)
    figure(f"relative change of the energy between walls by t = {end:g}", change)
    assert change < (2e-4 if end < 10 else 2e-3)


def test_waves_leave_an_open_box_as_if_it_had_no_sides(run, figure):
    n = 48
    open_box = run(FAMILY, (n, n), {"speed": [0.5, 1.5], "courant": 0.8})
    initial = open_box.solver.draw_state(np.random.default_rng(4), {})
    # The same pulses and layers in the middle of a walled box three times as wide, until its echoes come back.
    wide = torch.nn.functional.pad(initial[:1], (n, n, n, n))
    speed = torch.nn.functional.pad(initial[1:, None], (n, n, n, n), mode="replicate")[:, 0]
    far = acoustics.AcousticEvolution(wide, speed, spacing=(1 / n, 1 / n), fastest=1.5, courant=0.8, open_box=False)
    worst, passed = 0.0, 0.0
    for time in (0.3, 0.6, 0.9, 1.2):
        far.advance(0.3)
        middle = far.displacement()[0, n : 2 * n, n : 2 * n]
        worst = max(worst, float((open_box(initial, time)[0] - middle).norm() / initial[0].norm()))
        passed = float(middle.norm() / initial[0].norm())
    figure("echo of an open side, of the initial norm", worst)
    assert worst < 2e-4
    assert passed < 0.6


def test_pulses_and_media_lie_in_their_ranges(run):
    layers, bumps = (run(FAMILY, (64, 48), {"medium": medium}) for medium in ("layers", "bumps"))
    for number in range(20):
        pulses, speed = layers.solver.draw_state(np.random.default_rng(number), {})
        assert 0.45 < float(pulses.max()) < 4
        assert float(pulses[0].max()) < 3e-3  # next to nothing at the sides
        assert float((speed - speed[:1]).abs().max()) == 0  # horizontal
        assert 1 <= len(speed[0].unique()) <= 2 * 6 - 1  # and a mean in each cell that an interface cuts
        for field in (speed, bumps.solver.draw_state(np.random.default_rng(number), {})[1]):
            assert 0.5 <= float(field.min()) <= float(field.max()) <= 1.5
