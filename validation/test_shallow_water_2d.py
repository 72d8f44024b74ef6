"""shallow_water_2d against the exact dam breaks on a wet and a dry bed, its conservation laws and its symmetries."""

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


def ritter(x, t):
    """Height and velocity of the dam break on a dry bed, gravity and height 1 (Ritter, 1892)."""
    inside = np.abs(x / t - 0.5) < 1.5
    height = np.where(x < 0, 1.0, 0.0)
    return np.where(inside, (2 - x / t) ** 2 / 9, height), np.where(inside, 2 / 3 * (1 + x / t), 0.0)


@pytest.mark.parametrize("along", [0, 1])
def test_dam_break_on_a_dry_bed_converges_to_ritters_solution(run, observed_order, along):
    errors, momenta = [], []
    for n in (64, 128, 256):
        flow = run(FAMILY, (n, 4) if along == 0 else (4, n), {"velocity": True})
        x = flow.points[along]
        initial = torch.where(x < 0, 1.0, 0.0).double()
        found = flow(torch.stack([initial, 0 * x, 0 * x]), 0.8).numpy()
        height, velocity = ritter(x.numpy(), 0.8)
        errors.append(float(np.abs(found[0] - height).mean()))
        momenta.append(float(np.abs(found[0] * found[1 + along] - height * velocity).mean()))
        assert found[0].min() >= 0
        assert found[0].sum() == pytest.approx(float(initial.sum()), rel=1e-12)
        assert 1.5 < found[1 + along].max() < 2  # the edge of the water moves at 2
        assert np.abs(found[2 - along]).max() == 0
    assert observed_order(f"dry bed along axis {along}, height, L1", errors) > 0.9  # the fan has a kink at its end
    assert observed_order(f"dry bed along axis {along}, momentum, L1", momenta) > 0.9
    assert errors[-1] < 2e-3


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_a_column_of_water_spreads_over_a_dry_bed(run, precision):
    flow = run(FAMILY, (32, 32), {"velocity": True})
    drawn = {"gravity": 1.0, "radius": 0.7, "inner_height": 2.0, "outer_height": 0.0}
    initial = flow.solver.draw_state(np.random.default_rng(0), drawn)
    found = flow(initial.to(precision), 0.8, **drawn)
    height, fastest = found[0], float(found[1:].norm(dim=0).max())
    assert float(height.min()) >= 0
    assert float(height.sum()) == pytest.approx(float(initial[0].sum()), rel=1e-6)
    assert fastest < 2 * math.sqrt(2.0)  # twice the speed of a wave, as fast as water can run from rest
    x, y = flow.points
    edge = torch.hypot(x, y)[height > 1e-3].max()
    assert 0.7 + 0.8 < float(edge) < 0.7 + 2 * math.sqrt(2.0) * 0.8
    torch.testing.assert_close(height, height.T, rtol=0, atol=1e-5)


def hump(run, n, numerics=None, time=0.5):
    """A smooth wave on the way along x, before it breaks."""
    flow = run(FAMILY, (n, 4), numerics)
    height = 1 + 0.2 * torch.exp(-(flow.points[0] ** 2) / 0.3)
    return flow(torch.stack([height, 0 * height, 0 * height]), time)[0]


def test_a_smooth_wave_converges_with_second_order_in_space(run, observed_order):
    errors = []
    reference = hump(run, 512)
    for n in (32, 64, 128):
        means = reference.reshape(n, 512 // n, 4).mean(1)
        errors.append(float((hump(run, n) - means).abs().mean()))
    assert observed_order("smooth wave in space, L1", errors) > 1.7  # the limiter cuts crests


def test_a_smooth_wave_converges_with_second_order_in_time(run, observed_order):
    reference = hump(run, 64, {"courant": 0.025})
    errors = [float((hump(run, 64, {"courant": c}) - reference).abs().mean()) for c in (0.4, 0.2, 0.1)]
    assert observed_order("smooth wave in time, L1", errors) > 1.7


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
