"""shallow_water_2d against the exact dam break, its conservation laws and its symmetries."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

FAMILY = "shallow_water_2d"


def stoker(x, t, left, right):
    """Height of the dam break on a wet bed, gravity 1 (Stoker, Water Waves, 1957, section 10.8)."""
    c_left = math.sqrt(left)

    def mismatch(middle):
        rarefaction = 2 * (c_left - math.sqrt(middle))
        shock = (middle - right) * math.sqrt((middle + right) / (2 * middle * right))
        return rarefaction - shock

    middle = brentq(mismatch, right, left)
    speed = 2 * (c_left - math.sqrt(middle))
    shock = middle * speed / (middle - right)
    fan = (2 * c_left - x / t) ** 2 / 9
    height = np.where(x < (speed - math.sqrt(middle)) * t, fan, middle)
    return np.where(x < -c_left * t, left, np.where(x > shock * t, right, height))


@pytest.mark.parametrize("along", [0, 1])
def test_dam_break_on_a_wet_bed_converges_to_stokers_solution(run, observed_order, along):
    errors = []
    for n in (64, 128, 256):
        grid = (n, 4) if along == 0 else (4, n)
        flow = run(FAMILY, grid)
        x = flow.points[along]
        height = torch.where(x < 0, 2.0, 1.0).double()
        found = flow(torch.stack([height, 0 * x, 0 * x]), 1.0)[0]
        errors.append(float(np.abs(found.numpy() - stoker(x.numpy(), 1.0, 2.0, 1.0)).mean()))
        assert float(found.std(1 - along).max()) < 1e-12  # nothing happens across the strip
    assert observed_order(f"dam break along axis {along}, L1", errors) > 0.8  # first order at the shock
    assert errors[-1] < 3e-3


def radial(run, n, numerics=None):
    flow = run(FAMILY, (n, n), numerics)
    drawn = {"gravity": 1.0, "radius": 0.5, "inner_height": 2.0, "outer_height": 1.0}
    return flow, flow.solver.draw_state(np.random.default_rng(0), drawn)


def test_mass_stays_while_the_waves_are_inside(run):
    flow, initial = radial(run, 64)
    found = flow(initial, 1.0, radius=0.5)
    assert float(found.sum()) == pytest.approx(float(initial[0].sum()), rel=1e-9)
    # Its excess over the rest level is that of a cylinder of radius 1/2 and height 1.
    assert float((initial[0] - 1).sum()) * (5 / 64) ** 2 == pytest.approx(math.pi / 4, rel=0.02)


def test_waves_leave_through_the_open_sides(run):
    flow, initial = radial(run, 32)
    assert float((flow(initial, 8.0) - 1).abs().max()) < 0.06


def test_a_lake_at_rest_stays_at_rest(run):
    still = torch.stack([torch.full((16, 16), 1.3), torch.zeros(16, 16), torch.zeros(16, 16)]).double()
    torch.testing.assert_close(run(FAMILY, (16, 16))(still, 2.0)[0], still[0], rtol=1e-14, atol=0)


def test_the_radial_dam_break_keeps_its_symmetries(run):
    flow, initial = radial(run, 48)
    found = flow(initial, 1.0)[0]
    for other in (found.T, found.flip(0), found.flip(1)):
        torch.testing.assert_close(found, other, rtol=1e-10, atol=1e-12)


def test_the_radial_dam_break_converges_under_refinement(run, relative_l2, observed_order):
    stored = []
    for refine in (1, 2, 4, 8):
        flow, initial = radial(run, 16, {"refine": refine})
        parameters = {name: torch.ones(1, dtype=torch.float64) for name in flow.solver.parameter_names}
        stored.append(flow.solver.solve(initial[None], parameters, start=0.5, dt=0.25, frames=2)[0, -1])
    errors = [relative_l2(fields, stored[-1]) for fields in stored[:-1]]
    assert observed_order("radial dam break, L2", errors) > 0.8
    assert errors[-1] < 8e-3
