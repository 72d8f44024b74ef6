"""poisson_2d against the eigenfunctions of its scheme, exact solutions, and the laws of its right-hand sides."""

import math

import numpy as np
import pytest
import torch

FAMILY = "poisson_2d"


def drawn(run, grid, number, **numerics):
    flow = run(FAMILY, grid, numerics)
    return flow, flow.solver.draw_state(np.random.default_rng(number), {"amplitude": 1.0})


@pytest.mark.parametrize("mode", [(1, 1), (3, 2), (7, 12)])
def test_eigenfunctions_of_the_scheme_are_exact(run, mode):
    flow = run(FAMILY, (17, 25))
    (x, y), (hx, hy) = flow.points, flow.solver.spacing
    wave = torch.sin(math.pi * mode[0] * x) * torch.sin(math.pi * mode[1] * y)
    ex, ey = (4 / h**2 * math.sin(math.pi * k * h / 2) ** 2 for k, h in zip(mode, (hx, hy), strict=True))
    # What the nine-point differences make of the wave, on either side of the equation.
    factor = (1 - (hx**2 * ex + hy**2 * ey) / 12) / (ex + ey - (hx**2 + hy**2) / 12 * ex * ey)
    torch.testing.assert_close(flow(wave[None], 0.0)[0], factor * wave, rtol=0, atol=1e-15)
    continuous = 1 / (math.pi**2 * (mode[0] ** 2 + mode[1] ** 2))
    assert factor == pytest.approx(continuous, rel=0.05 if max(mode) > 3 else 1e-3)


@pytest.mark.parametrize("cells", [(1, 1), (2, 3)])
def test_a_manufactured_solution_converges_with_fourth_order(run, relative_l2, observed_order, cells):
    errors = []
    for n in (8, 16, 32, 64):
        flow = run(FAMILY, (n * cells[0] + 1, n * cells[1] + 1))
        x, y = flow.points
        sx, cx, sy = torch.sin(math.pi * x), torch.cos(math.pi * x), torch.sin(2 * math.pi * y)
        u = torch.exp(x) * sx * sy
        minus_laplacian = -torch.exp(x) * ((1 - math.pi**2) * sx + 2 * math.pi * cx) * sy + 4 * math.pi**2 * u
        errors.append(relative_l2(flow(minus_laplacian[None], 0.0)[0], u))
    assert observed_order(f"manufactured solution, cells {cells[0]}:{cells[1]}, L2", errors) > 3.95
    assert errors[-1] < 1e-6


def test_a_constant_source_gives_the_twisted_bar(run, figure):
    # Torsion of a square bar. The source does not vanish in the corners, and u is not smooth there.
    centre = sum(
        16 / math.pi**4 * (-1) ** ((i + j) // 2 - 1) / (i * j * (i**2 + j**2))
        for i in range(1, 2000, 2)
        for j in range(1, 2000, 2)
    )
    flow = run(FAMILY, (65, 65))
    found = float(flow(torch.ones(1, 65, 65, dtype=torch.float64), 0.0)[0, 32, 32])
    figure("constant source, error at the centre, 65^2", abs(found / centre - 1))
    assert found == pytest.approx(centre, rel=1e-6)


@pytest.mark.parametrize("source", ["gaussians", "random_field"])
def test_drawn_sources_converge_with_fourth_order(run, relative_l2, observed_order, source):
    worst = []
    for refine in (1, 2, 4, 16):
        samples = []
        for number in range(6):
            flow, f = drawn(run, (33, 33), number, source=source, refine=refine, width=[0.0625, 0.1], modes=16)
            samples.append(flow.solver.restrict(flow(f, 0.0)[None])[0])
        worst.append(samples)
    errors = [max(map(relative_l2, coarse, worst[-1])) for coarse in worst[:-1]]
    assert observed_order(f"{source}, the worst of 6, L2", errors) > 3.8


def test_at_the_coarsest_grid_that_is_taken_solutions_are_off_by_a_per_cent(run, relative_l2, figure):
    errors = []
    for number in range(32):
        coarse, f = drawn(run, (33, 33), number, width=1 / 32)
        coarse.solver.check(0.0, 0.0, 1)
        fine, g = drawn(run, (33, 33), number, width=1 / 32, refine=8)
        errors.append(relative_l2(coarse(f, 0.0)[0], fine.solver.restrict(fine(g, 0.0)[None])[0, 0]))
    figure("Gaussians one interval wide, the worst of 32", max(errors))
    assert max(errors) < 0.01


def test_published_widths_on_128_points(run, relative_l2, figure):
    flow, f = drawn(run, (128, 128), 0)
    fine, g = drawn(run, (128, 128), 0, refine=3)
    error = relative_l2(flow(f, 0.0)[0], fine.solver.restrict(fine(g, 0.0)[None])[0, 0])
    figure("Gaussians 0.025 .. 0.1 wide on 128^2, from 382^2", error)
    single = flow(f.float(), 0.0)[0]
    assert single.dtype == torch.float32
    figure("the same in float32, from float64", relative_l2(single.double(), flow(f, 0.0)[0]))
    assert error < 1e-4
    assert relative_l2(single.double(), flow(f, 0.0)[0]) < 1e-5


def test_the_sources_follow_their_laws(run, figure):
    flow = run(FAMILY, (65, 65))
    fields = torch.stack([flow.solver.draw_state(np.random.default_rng(i), {"amplitude": 1.0}) for i in range(2000)])
    # Mean over centres and points of exp(-(x - c)^2 / (2 s^2)) on the unit interval; there are 1 / 0.4 Gaussians.
    widths = np.linspace(0.025, 0.1, 1001)
    erf = np.vectorize(math.erf)(1 / (math.sqrt(2) * widths))
    line = widths * math.sqrt(2 * math.pi) * erf - 2 * widths**2 * (1 - np.exp(-1 / (2 * widths**2)))
    expected = 2.5 * float(np.mean(line**2))
    weights = torch.ones(65, dtype=torch.float64)
    weights[0] = weights[-1] = 0.5
    found = float((fields[:, 0] * weights[:, None] * weights).sum((1, 2)).mean() / 64**2)
    figure("mean of the source beside that of its law, 2000 samples", found / expected)
    assert found == pytest.approx(expected, rel=0.08)
    assert min(float(f.max()) for f in fields) > 0
    _, once = drawn(run, (65, 65), 5)
    assert torch.equal(2 * once, flow.solver.draw_state(np.random.default_rng(5), {"amplitude": 2.0}))
