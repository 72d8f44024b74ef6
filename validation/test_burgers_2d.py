"""burgers_2d against the Cole-Hopf solution."""

import math

import pytest
import torch

FAMILY = "burgers_2d"


def cole_hopf(x, y, t, viscosity):
    """u = -2 nu grad phi / phi of a positive heat solution phi: an exact solution with curl-free velocity."""
    k = 2 * math.pi
    terms = [(0.4, 1, 0, 0.3), (0.3, 0, 1, 1.1), (0.2, 1, 1, 0.5)]
    phi = torch.ones_like(x)
    by_x, by_y = torch.zeros_like(x), torch.zeros_like(x)
    for amplitude, m, n, shift in terms:
        decay = amplitude * math.exp(-viscosity * k**2 * (m**2 + n**2) * t)
        phase = k * (m * x + n * y) + shift
        phi = phi + decay * torch.cos(phase)
        by_x = by_x - decay * k * m * torch.sin(phase)
        by_y = by_y - decay * k * n * torch.sin(phase)
    return -2 * viscosity * torch.stack([by_x, by_y]) / phi


def error_at(run, relative_l2, n, step, viscosity=0.05):
    flow = run(FAMILY, (n, n), {"step": step})
    x, y = flow.points
    found = flow(cole_hopf(x, y, 0.0, viscosity), 0.3, viscosity=viscosity)
    return relative_l2(found, cole_hopf(x, y, 0.3, viscosity))


def test_agrees_with_cole_hopf_to_high_accuracy(run, relative_l2, figure):
    error = error_at(run, relative_l2, 96, 0.01)
    figure("Burgers against Cole-Hopf, 96 points", error)
    assert error < 1e-8


def test_converges_spectrally_in_space(run, relative_l2, figure):
    errors = [error_at(run, relative_l2, n, 0.0025) for n in (12, 16, 24, 32)]
    figure("Burgers in space, 12, 16, 24, 32 points", ", ".join(f"{e:.1e}" for e in errors))
    assert errors[1] < errors[0] / 3
    assert errors[2] < errors[1] / 10
    assert errors[3] < errors[2] / 10


def test_is_of_fourth_order_in_time(run, relative_l2, observed_order):
    def solve(step):
        flow = run(FAMILY, (32, 32), {"step": step})
        x, y = (2 * math.pi * axis for axis in flow.points)
        return flow(torch.stack([torch.sin(x) * torch.cos(y), torch.cos(x + y)]), 0.2, viscosity=0.02)

    solutions = [solve(step) for step in (0.02, 0.01, 0.005, 0.00125)]
    errors = [relative_l2(solution, solutions[-1]) for solution in solutions[:-1]]
    assert observed_order("Burgers in time", errors) == pytest.approx(4, abs=0.4)
