"""tube_2d against the exact start-up of a plane channel flow and Poiseuille's flow."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

FAMILY = "tube_2d"


def start_up(s, time):
    """Velocity over its mean between plates at s = 0 and 1, that was 1 everywhere at t = 0; `time` counts H^2 / nu.

    The flow rate is given, so the pressure gradient follows. u = 6 s (1 - s) + sum of a (cos(l e) - cos l)
    exp(-4 l^2 t) with e = 2 s - 1, tan l = l (no flow rate in any mode), a = 2 / (l^2 cos l) from u = 1 at t = 0.
    """
    u = 6 * s * (1 - s)
    for k in range(1, 60):
        root = brentq(lambda x: math.sin(x) - x * math.cos(x), k * math.pi, (k + 0.5) * math.pi)
        u += (
            2
            / (root**2 * math.cos(root))
            * (np.cos(root * (2 * s - 1)) - math.cos(root))
            * math.exp(-4 * root**2 * time)
        )
    return u


def start(run, grid, seed=None, **numerics):
    """A flow at t = 0, float64."""
    flow = run(FAMILY, grid, numerics)
    drawn = {name: getattr(flow.solver.parameters, name)[0] for name in flow.solver.parameter_names}
    columns = {name: torch.tensor([value], dtype=torch.float64) for name, value in drawn.items()}
    state = flow.solver.draw_state(np.random.default_rng(seed), drawn)
    return flow.solver.flow(state[None], columns)


def test_start_up_between_plates_converges_to_the_exact_solution(run, observed_order):
    errors = []
    for n in (8, 16, 32):
        flow = start(run, (32, n), viscosity=0.1, width=8.0, velocity=2.0)
        flow.advance(0.5)  # the inlet is felt up to about x = 2
        s = (np.arange(n) + 0.5) / n
        exact = 2 * start_up(s, 0.05)
        found = flow.u[0, 24].numpy()
        errors.append(float(np.sqrt(((found - exact) ** 2).mean() / (exact**2).mean())))
    assert observed_order("start-up between plates, cells across", errors) > 1.9
    assert errors[-1] < 2e-3


def test_the_flow_far_from_the_inlet_is_poiseuilles(run, figure):
    flow = start(run, (64, 16), viscosity=0.05, pressure=True)
    flow.advance(8.0)
    s = (np.arange(16) + 0.5) / 16
    u, v, pressure = flow.fields()[0]
    error = float(np.abs(u[-1].numpy() - 6 * s * (1 - s)).max() / 1.5)
    gradient = float((pressure[-8] - pressure[-1]).mean()) / (7 * 4 / 64)
    figure("Re 20, 16 cells across: largest error of u at the outlet, over its peak", error)
    figure("Re 20, 16 cells across: pressure gradient over 12 mu U / H^2", gradient / (12 * 0.05))
    assert error < 0.01
    assert gradient == pytest.approx(12 * 0.05, rel=0.01)
    assert float(v[-1].abs().max()) < 1e-3


def test_poiseuilles_flow_goes_on_as_it_came_in(run, relative_l2, figure):
    flow = start(run, (16, 16), viscosity=0.1, width=2.0, profile="parabolic", velocity=3.0)
    s = (torch.arange(16, dtype=torch.float64) + 0.5) / 16
    torch.testing.assert_close(flow.u[0, 0], 3 * (6 * s * (1 - s) - 1 / (2 * 16**2)))  # means over the faces
    before = flow.u
    flow.advance(1.0)
    change = relative_l2(flow.u, before)
    figure("parabolic inflow, 16 cells across: change on the way", change)
    assert change < 5e-3


def test_what_flows_in_flows_out(run):
    flow = start(run, (32, 16), seed=1, perturbation=0.3, velocity=2.0, profile="parabolic")
    for _ in range(4):
        flow.advance(0.5)
        assert float((flow.u.sum(2) - 2 * 16).abs().max()) < 1e-10
        assert float(flow.projection.divergence(flow.u, flow.v).abs().max()) < 1e-11


def test_vortices_leave_through_the_open_end(run, relative_l2, figure):
    still, stirred = (start(run, (64, 16), seed=2, perturbation=p) for p in (0.0, 0.5))
    distances = []
    for _ in range(6):
        still.advance(1.5)
        stirred.advance(1.5)
        distances.append(relative_l2(stirred.u, still.u))
    figure(
        "Re 100: distance of a stirred flow from a still one after 1.5, 4.5, 9 H/U",
        str([f"{d:.1e}" for d in distances[::2]]),
    )
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-3


def test_a_tube_that_is_cut_short_holds_the_same_flow(run, relative_l2, figure):
    """The entry flow still develops at the open end, half a height from the inlet."""
    short = start(run, (16, 16), viscosity=0.1, width=0.5)
    long = start(run, (64, 16), viscosity=0.1, width=2.0)
    for flow in (short, long):
        flow.advance(0.4)
    along, across = relative_l2(short.u, long.u[:, :17]), relative_l2(short.v, long.v[:, :16])
    figure("Re 10, cut at half a height: change of u, of v", f"{along:.1e}, {across:.1e}")
    assert along < 5e-3
    assert across < 0.06


def test_a_vortex_crosses_the_open_end(run, relative_l2, figure):
    """Half of it is out, and the tube behind the cut has the rest as if it went on."""
    flows = []
    for cells in (16, 48):
        flow = start(run, (cells, 16), viscosity=0.01, width=cells / 16, profile="parabolic")
        x, y = torch.meshgrid(torch.arange(cells + 1) / 16, torch.arange(17.0) / 16, indexing="ij")
        stream = 0.1 * torch.exp(-40 * ((x - 0.7) ** 2 + (y - 0.6) ** 2)).double()
        flow.u += stream.diff(dim=1) * 16
        flow.v[:, :, 1:-1] -= stream.diff(dim=0)[:, 1:-1] * 16
        flow.u, flow.v, _ = flow.projection(flow.u, flow.v)
        flow.advance(0.25)
        flows.append(flow)
    short, long = flows
    plain = start(run, (48, 16), viscosity=0.01, width=3.0, profile="parabolic")
    size = float((long.u - plain.u)[:, :17].norm())
    change = float((short.u - long.u[:, :17]).norm()) / size
    outlet = float((short.u[:, -1] - long.u[:, 16]).norm() / (long.u - plain.u)[:, 16].norm())
    figure(
        "Re 100, a vortex half out: error of u, and of u on the outlet, over the vortex", f"{change:.2f}, {outlet:.2f}"
    )
    assert change < 0.2
    assert outlet < 0.17


def test_a_stirred_flow_converges_under_refinement(run, relative_l2, observed_order):
    stored = []
    for refine in (1, 2, 4, 8):
        flow = start(
            run, (16, 8), seed=3, perturbation=0.3, viscosity=0.05, profile="parabolic", width=2.0, refine=refine
        )
        flow.advance(0.2)
        means = flow.fields()[0].reshape(2, 16, refine, 8, refine).mean((2, 4))
        stored.append(means)
    errors = [relative_l2(fields, stored[-1]) for fields in stored[:-1]]
    assert observed_order("a stirred flow that leaves, cells", errors) > 1.7
