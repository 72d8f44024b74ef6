"""cylinder_2d against the benchmark of Schaefer and Turek, and the symmetry and kinematics of the flow.

M. Schaefer and S. Turek, "Benchmark computations of laminar flow around a cylinder" (1996): a cylinder of diameter 0.1
at 0.2 from the inlet and 0.01 off the middle of a channel of height 0.41, parabolic inflow, nu = 1e-3. In brackets
their intervals for drag and lift coefficients and the Strouhal number.
"""

import numpy as np
import pytest
import torch

from data_pipeline.solvers.numerics.staggered import Projection

FAMILY = "cylinder_2d"
CHANNEL = {
    "radius": 0.05, "x_min": -0.2, "y_min": -0.2, "y_max": 0.21, "viscosity": 1e-3, "profile": "parabolic"
}  # fmt: skip


def start(run, grid, seed=0, **numerics):
    """A flow at t = 0, float64, and its solver."""
    flow = run(FAMILY, grid, numerics)
    drawn = {name: getattr(flow.solver.parameters, name)[0] for name in flow.solver.parameter_names}
    columns = {name: torch.tensor([value], dtype=torch.float64) for name, value in drawn.items()}
    state = flow.solver.draw_state(np.random.default_rng(seed), drawn)
    return flow.solver.flow(state[None], columns), flow.solver


def coefficients(flow, velocity, diameter):
    """Drag and lift over rho U^2 D / 2: the forces that hold the fluid at the cylinder."""
    u, v, _ = Projection.__call__(flow.projection, *flow.rate(flow.u, flow.v))
    forces = flow.projection.forces(u, v)[0].reshape(2, -1).sum(1) * flow.box.dx[0] * flow.box.dy[0]
    return (2 * forces / (velocity**2 * diameter)).flatten().tolist()


def pressure_drop(flow, cells):
    """Pressure before the cylinder less that behind, each extrapolated from two cells outside the smeared layer.

    `cells` are those from the inlet to the cylinder's front; it is two thirds as thick.
    """
    row = 0.2 / float(flow.box.dy) - 0.5
    low = int(row)
    line = torch.lerp(flow.pressure()[0, :, low], flow.pressure()[0, :, low + 1], row - low)
    back = cells + 2 * cells // 3
    front = 2.5 * line[cells - 2] - 1.5 * line[cells - 3]
    return float(front - (2.5 * line[back + 1] - 1.5 * line[back + 2]))


def schaefer_turek(run, rows, velocity, **numerics):
    """Their channel with so many cells across, shortened to 1.2."""
    grid = (round(1.2 / 0.41 * rows), rows)
    return start(run, grid, velocity=velocity, x_max=grid[0] * 0.41 / rows - 0.2, **CHANNEL, **numerics)[0]


@pytest.mark.slow
def test_drag_at_reynolds_number_20(run, figure):
    flow = schaefer_turek(run, 41, 0.2, perturbation=0.0)
    flow.advance(3.0)
    drag, lift = coefficients(flow, 0.2, 0.1)
    drop = pressure_drop(flow, 15)
    figure("Re 20, 10 cells across the cylinder: pressure drop (0.1172 .. 0.1176)", drop)
    assert drop == pytest.approx(0.1174, rel=0.05)
    figure("Re 20, 10 cells across the cylinder: drag (5.57 .. 5.59)", drag)
    figure("Re 20, 10 cells across the cylinder: lift (0.0104 .. 0.0110)", lift)
    assert drag == pytest.approx(5.58, rel=0.02)
    assert lift == pytest.approx(0.0107, abs=0.01)


@pytest.mark.slow
def test_drag_at_reynolds_number_20_on_a_finer_grid(run, figure):
    flow = schaefer_turek(run, 62, 0.2, perturbation=0.0)
    flow.advance(4.0)
    drag, lift = coefficients(flow, 0.2, 0.1)
    figure("Re 20, 15 cells across the cylinder: drag (5.57 .. 5.59)", drag)
    figure("Re 20, 15 cells across the cylinder: lift (0.0104 .. 0.0110)", lift)
    assert drag == pytest.approx(5.58, rel=5e-3)
    assert lift == pytest.approx(0.0107, abs=3e-3)


@pytest.mark.slow
def test_vortex_street_at_reynolds_number_100(run, figure):
    """15 cells across, three quarters of what the check asks for."""
    flow = schaefer_turek(run, 62, 1.0, perturbation=0.3)
    flow.advance(3.0)
    history = []
    for _ in range(150):
        flow.advance(0.01)
        history.append(coefficients(flow, 1.0, 0.1))
    drag, lift = np.array(history).T
    rises = np.flatnonzero((lift[:-1] < 0) & (lift[1:] >= 0))
    crossings = rises + lift[rises] / (lift[rises] - lift[rises + 1])
    strouhal = 0.1 / (0.01 * np.diff(crossings).mean())
    figure("Re 100, 15 cells across the cylinder: largest drag (3.22 .. 3.24)", float(drag.max()))
    figure("Re 100, 15 cells across the cylinder: largest lift (0.99 .. 1.01)", float(lift.max()))
    figure("Re 100, 15 cells across the cylinder: Strouhal number (0.295 .. 0.305)", float(strouhal))
    assert strouhal == pytest.approx(0.3, rel=0.03)
    assert drag.max() == pytest.approx(3.23, rel=0.08)
    assert lift.max() == pytest.approx(1.0, rel=0.3)


SMALL = {"viscosity": 0.05, "x_min": -1.5, "x_max": 2.5, "y_min": -1.5, "y_max": 1.5}


def test_no_flow_through_the_cylinder(run, figure):
    flow, _ = start(run, (48, 36), **SMALL)
    for _ in range(3):
        flow.advance(0.3)
        assert float(flow.projection.divergence(flow.u, flow.v).abs().max()) < 1e-11
        assert float(flow.projection.markers.velocity(flow.u, flow.v).abs().max()) < 1e-12
    # The mean velocity inside is the flow through the surface, by Gauss' theorem: nothing but what leaks.
    x, y = torch.meshgrid(torch.arange(49) / 12 - 1.5, (torch.arange(36) + 0.5) / 12 - 1.5, indexing="ij")
    inside = float(flow.u[0][torch.hypot(x, y) < 0.5].mean())
    figure("Re 20, 12 cells across: mean velocity in the cylinder, over U", inside)
    assert abs(inside) < 0.05
    assert float(flow.u[0, 18].sum() / 36) == pytest.approx(1.0, abs=1e-12)


def test_a_symmetric_flow_stays_symmetric(run):
    flow, _ = start(run, (48, 36), perturbation=0.0, **SMALL)
    flow.advance(1.0)
    torch.testing.assert_close(flow.u, flow.u.flip(2), rtol=0, atol=1e-9)
    torch.testing.assert_close(flow.v, -flow.v.flip(2), rtol=0, atol=1e-9)


def test_it_starts_as_potential_flow(run, observed_order):
    """U (1 + a^2 (y^2 - x^2) / r^4) and its images in both walls; the distance to the inlet leaves an error, too."""
    errors = []
    for n in (24, 48, 96):
        box = {"x_min": -4.0, "x_max": 4.0, "y_min": -4.0, "y_max": 4.0, "radius": 1.0, "viscosity": 0.2}
        flow, _ = start(run, (n, n), perturbation=0.0, **box)
        x = torch.linspace(-4, 4, n + 1, dtype=torch.float64)[:, None]
        y = (torch.arange(n, dtype=torch.float64) + 0.5) * 8 / n - 4
        z = torch.complex(x.expand(-1, n), y.expand(n + 1, -1))
        exact = 1 - ((torch.pi / 8) ** 2 / torch.sinh(torch.pi * z / 8).square()).real
        near = (z.abs() > 1.5) & (z.abs() < 3)
        errors.append(float((flow.u[0] - exact)[near].square().mean().sqrt()))
    # Forces that are smeared over a cell and a half are of first order beside the cylinder.
    assert observed_order("potential flow at t = 0, cells", errors) > 0.9
    assert errors[-1] < 0.03


def test_stored_fields_are_zero_where_the_mask_is_false(run):
    _, solver = start(run, (48, 36), pressure=True, refine=2, **SMALL)
    columns = {
        n: torch.tensor([getattr(solver.parameters, n)[0]], dtype=torch.float64) for n in solver.parameter_names
    }
    fields = solver.solve(torch.zeros(1, 2, 96, 72, dtype=torch.float64), columns, start=0.1, dt=0.1, frames=2)
    mask = solver.mask(columns)[0]
    assert fields.shape == (1, 2, 48, 36, 3)
    assert float(fields[:, :, ~mask].abs().max()) == 0
    # Cells that the surface cuts hold the mean of their fluid.
    outside = solver.outside(columns).double()
    assert torch.equal(solver.restrict(torch.cat([5 * outside, outside], dim=1))[0, 0], 5.0 * mask)
    x, y = np.meshgrid(*solver.points(), indexing="ij")
    assert abs(float((~mask).sum()) * 4 / 48 * 3 / 36 / (np.pi / 4) - 1) < 0.05
    assert np.array_equal(mask.numpy()[np.hypot(x, y) > 0.6], np.ones(int((np.hypot(x, y) > 0.6).sum()), bool))
