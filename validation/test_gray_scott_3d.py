"""gray_scott_3d against the two-dimensional family, an exact decay and a chosen solution."""

import math

import numpy as np
import pytest
import torch
from test_gray_scott_2d import MAZE, chosen_error

FAMILY = "gray_scott_3d"
FAST = {"diffusivity_a": 1e-3, "diffusivity_b": 5e-4} | MAZE


def test_a_state_that_is_the_same_along_one_axis_follows_two_dimensions(run):
    flat, solid = (run(f"gray_scott_{n}d", (16,) * n, {"step": 2.0}) for n in (2, 3))
    start = flat.solver.draw_state(np.random.default_rng(0), {})
    expected = flat(start, 100.0, **FAST)
    for axis in (1, 2, 3):
        found = solid(start.unsqueeze(axis).repeat_interleave(16, dim=axis), 100.0, **FAST)
        torch.testing.assert_close(found, expected.unsqueeze(axis).expand_as(found), rtol=0, atol=1e-12)


def test_all_axes_are_alike(run):
    flow = run(FAMILY, (16, 16, 16), {"step": 2.0})
    start = flow.solver.draw_state(np.random.default_rng(1), {})
    found = flow(start, 50.0, **FAST)
    turned = flow(start.permute(0, 3, 1, 2).contiguous(), 50.0, **FAST)
    torch.testing.assert_close(turned, found.permute(0, 3, 1, 2), rtol=0, atol=1e-12)


def test_without_b_a_wave_of_a_decays_exactly(run, relative_l2):
    flow = run(FAMILY, (8, 12, 10), {"step": 2.0})
    x, y, z = (math.pi * axis for axis in flow.points)
    wave = torch.cos(3 * x) * torch.sin(2 * y) * torch.cos(z)
    found = flow(torch.stack([1 + 0.3 * wave, 0 * wave]), 50.0, **MAZE)
    rate = MAZE["feed"] + 2e-5 * (9 + 4 + 1) * math.pi**2
    assert relative_l2(found[0], 1 + 0.3 * math.exp(-rate * 50) * wave) < 1e-12


def test_a_chosen_solution_converges_in_space_and_time(run, observed_order):
    space = [chosen_error(run, points, 50, FAMILY, 3) for points in (6, 8, 12)]
    observed_order("chosen solution in space, 6, 8 and 12 points", space, 1.5)
    assert space[1] < space[0] / 2
    assert space[2] < space[1] / 20
    time = [chosen_error(run, 16, steps, FAMILY, 3) for steps in (5, 10, 20)]
    assert observed_order("chosen solution in time, 5, 10 and 20 steps", time) == pytest.approx(4, abs=0.3)


def test_a_drawn_sample_converges_in_space(run, relative_l2, observed_order):
    solutions = []
    for points in (12, 24, 48):
        flow = run(FAMILY, (points,) * 3, {"step": 2.0})
        start = flow.solver.draw_state(np.random.default_rng(2), {})
        stride = (slice(None), *[slice(None, None, points // 12)] * 3)
        solutions.append(flow(start, 10.0, diffusivity_a=4e-3, diffusivity_b=2e-3, **MAZE)[stride])
    errors = [relative_l2(solution, solutions[-1]) for solution in solutions[:-1]]
    observed_order("blobs in space, 12 and 24 points against 48", errors)
    assert errors[1] < errors[0] / 10
