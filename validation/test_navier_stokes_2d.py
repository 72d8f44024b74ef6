"""navier_stokes_2d against exact solutions, and against the scheme of the Fourier neural operator's paper."""

import math

import numpy as np
import pytest
import torch

from data_pipeline.config import GenerateConfig
from data_pipeline.solvers.source import SolverSource

FAMILY = "navier_stokes_2d"


def drawn_state(n, count=1):
    config = GenerateConfig(family=FAMILY, resolution=(n, n), frames=2, dt=1.0, splits={"train": count})
    source = SolverSource("grf", config)
    return torch.stack([source.draw("train", number)[0] for number in range(count)])


def test_taylor_green_vortex_decays_at_the_viscous_rate(run, relative_l2):
    flow = run(FAMILY, (32, 32))
    x, y = (4 * math.pi * axis for axis in flow.points)
    initial = (torch.sin(x) * torch.sin(y))[None]
    found = flow(initial, 2.0, viscosity=5e-3, forcing=0.0)
    assert relative_l2(found, initial * math.exp(-5e-3 * 2 * (4 * math.pi) ** 2 * 2.0)) < 1e-12


def test_flow_from_rest_follows_the_force(run, relative_l2):
    # The force depends on x + y alone, so the flow is parallel and advection vanishes.
    flow = run(FAMILY, (32, 32))
    x, y = flow.points
    phase = 2 * math.pi * (x + y)
    rate = 8 * math.pi**2 * 1e-3
    exact = 0.1 * (torch.sin(phase) + torch.cos(phase)) * (1 - math.exp(-rate * 3.0)) / rate
    assert relative_l2(flow(torch.zeros(1, 32, 32, dtype=torch.float64), 3.0)[0], exact) < 1e-11


def test_flow_from_rest_follows_the_symmetric_force(run, relative_l2):
    # All its modes have one |k|, so the vorticity is a function of psi, and advection vanishes.
    flow = run(FAMILY, (32, 32), {"force": "symmetric"})
    x, y = (4 * math.pi * axis for axis in flow.points)
    rate = 16 * math.pi**2 * 1e-3
    exact = 0.1 * (torch.cos(x) + torch.cos(y)) * (1 - math.exp(-rate * 3.0)) / rate
    assert relative_l2(flow(torch.zeros(1, 32, 32, dtype=torch.float64), 3.0)[0], exact) < 1e-11


def test_a_weak_random_force_drives_each_mode_alone(run, relative_l2, figure):
    # At an amplitude of 1e-8 advection is a part of about 1e-8 of the rate.
    flow = run(FAMILY, (32, 32), {"force": "random"})
    force = flow.solver.draw_state(np.random.default_rng(3), {"forcing": 1e-8})[1]
    hat = torch.fft.fft2(force)
    assert sorted(set(torch.nonzero(hat.abs() > 1e-12)[:, 0].tolist())) == [0, 1, 2, 30, 31]
    k = 2 * math.pi * torch.fft.fftfreq(32, 1 / 32, dtype=torch.float64)
    rate = 1e-3 * (k[:, None] ** 2 + k[None, :] ** 2)
    grown = torch.where(rate > 0, -torch.expm1(-3.0 * rate) / rate, 0.0)
    found = flow(torch.stack([0 * force, force]), 3.0)[0]
    error = relative_l2(found, torch.fft.ifft2(hat * grown).real)
    figure("weak random force, t = 3", error)
    assert error < 1e-6


def paper_scheme(vorticity, time, count, viscosity=1e-3, forcing=0.1):
    """Crank-Nicolson for diffusion and forward Euler for advection, written anew in numpy."""
    n = len(vorticity)
    k = np.fft.fftfreq(n, 1 / n)
    kx, ky = k[:, None], k[None, :]
    laplacian = 4 * np.pi**2 * (kx**2 + ky**2)
    safe = np.where(laplacian == 0, 1, laplacian)
    mask = (abs(kx) <= n / 3) & (abs(ky) <= n / 3)
    t = np.linspace(0, 1, n + 1)[:-1]
    phase = 2 * np.pi * (t[:, None] + t[None, :])
    force = np.fft.fft2(forcing * (np.sin(phase) + np.cos(phase)))
    w, h = np.fft.fft2(vorticity), time / count
    for _ in range(count):
        psi = w / safe
        u, v = np.fft.ifft2(2j * np.pi * ky * psi).real, np.fft.ifft2(-2j * np.pi * kx * psi).real
        w_x, w_y = np.fft.ifft2(2j * np.pi * kx * w).real, np.fft.ifft2(2j * np.pi * ky * w).real
        advection = mask * np.fft.fft2(u * w_x + v * w_y)
        diffusion = 0.5 * h * viscosity * laplacian
        w = (w - h * advection + h * force - diffusion * w) / (1 + diffusion)
    return np.fft.ifft2(w).real


def test_agrees_with_the_scheme_of_the_paper_as_its_step_shrinks(run, relative_l2, observed_order, figure):
    initial = drawn_state(32)[0]
    found = run(FAMILY, (32, 32), {"step": 0.05})(initial, 2.0)[0]
    paper = [torch.from_numpy(paper_scheme(initial[0].numpy(), 2.0, count)) for count in (100, 200, 400)]
    errors = [relative_l2(p, found) for p in paper]
    assert observed_order("paper's scheme towards ETDRK4", errors) == pytest.approx(1, abs=0.1)
    # Richardson's extrapolation removes the first order of the paper's scheme.
    extrapolated = relative_l2(2 * paper[2] - paper[1], found)
    figure("paper's scheme, extrapolated, against ETDRK4", extrapolated)
    assert extrapolated < 2e-5


def test_is_of_fourth_order_in_time(run, relative_l2, observed_order):
    initial = 4 * drawn_state(32)[0]
    solutions = [run(FAMILY, (32, 32), {"step": step})(initial, 1.0) for step in (0.1, 0.05, 0.025, 0.00625)]
    errors = [relative_l2(solution, solutions[-1]) for solution in solutions[:-1]]
    assert observed_order("Navier-Stokes in time", errors) == pytest.approx(4, abs=0.4)


def test_converges_spectrally_in_space(run, relative_l2, figure):
    solutions = []
    for n in (32, 64, 128):
        flow = run(FAMILY, (n, n), {"step": 0.05})
        x, y = (2 * math.pi * axis for axis in flow.points)
        initial = torch.sin(x) * torch.sin(y) + 0.5 * torch.cos(2 * x + y + 0.3)
        solutions.append(flow(initial[None], 4.0)[:, :: n // 32, :: n // 32])
    errors = [relative_l2(solution, solutions[-1]) for solution in solutions[:-1]]
    figure("Navier-Stokes in space, 32 and 64 points against 128", f"{errors[0]:.1e}, {errors[1]:.1e}")
    assert errors[1] < errors[0] / 100
    assert errors[1] < 1e-6


def test_the_initial_vorticity_has_the_standard_deviation_of_the_papers_code(figure):
    # The covariance printed in the paper would give 0.2620 / sqrt 2 = 0.185.
    k = np.arange(-128, 128)
    squared = k[:, None] ** 2 + k[None, :] ** 2
    eigenvalues = 2 * 7.0**3 * np.where(squared > 0, (4 * np.pi**2 * squared + 49.0) ** -2.5, 0)
    expected = math.sqrt(eigenvalues.sum())
    assert expected == pytest.approx(0.2620, abs=5e-5)
    states = drawn_state(32, count=1000)
    measured = float(states.square().mean().sqrt())
    figure("initial standard deviation, and its formula", f"{measured:.4f}, {expected:.4f}")
    assert measured == pytest.approx(expected, rel=0.02)
    assert float(states.mean().abs()) < 1e-12  # no mean vorticity on a torus
