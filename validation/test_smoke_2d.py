"""smoke_2d against exact advection, exact slow flows, balances and symmetries."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from data_pipeline.solvers.numerics.closed_box import carried, divergence

FAMILY = "smoke_2d"
UNIT = {"length": 1.0, "scale": 1.0}
METHODS = pytest.mark.parametrize("method", ["pdearena", "second_order"])


def sample(run, n, number=0, **numerics):
    flow = run(FAMILY, (n, n), numerics)
    return flow, flow.solver.draw_state(np.random.default_rng(number), {})


def begun(flow, initial, viscosity=0.01, buoyancy=0.5):
    drawn = {"viscosity": viscosity, "buoyancy": buoyancy}
    return flow.solver.begin(initial[None], {k: torch.tensor([v], dtype=torch.float64) for k, v in drawn.items()})


def blob(x, y):
    return torch.exp(-60 * ((x - 0.4) ** 2 + (y - 0.6) ** 2))


def cells(n):
    line = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return torch.meshgrid(line, line, indexing="ij")


def test_a_blob_is_carried_along_with_order_two_in_space(observed_order, relative_l2):
    errors = []
    for n in (32, 64, 128):
        x, y = cells(n)
        field = blob(x, y)[None]
        for _ in range(4):  # 0.04 along x and -0.03 along y, in any number of cells
            field = carried(field, torch.full_like(field, 0.01 * n), torch.full_like(field, -0.0075 * n), "border")
        errors.append(relative_l2(field[0], blob(x - 0.04, y + 0.03)))
    assert observed_order("carried along, in space", errors) > 1.7
    assert errors[-1] < 0.02


def test_a_blob_turns_with_order_one_in_time(observed_order, relative_l2):
    n, angle, errors = 192, 0.5, []
    x, y = cells(n)
    back_x = 0.5 + math.cos(angle) * (x - 0.5) + math.sin(angle) * (y - 0.5)
    back_y = 0.5 - math.sin(angle) * (x - 0.5) + math.cos(angle) * (y - 0.5)
    for steps in (2, 4, 8):
        field, h = blob(x, y)[None], angle / steps * n
        for _ in range(steps):
            field = carried(field, -h * (y - 0.5)[None], h * (x - 0.5)[None], "border")
        errors.append(relative_l2(field[0], blob(back_x, back_y)))
    assert observed_order("rigid rotation, in time", errors) > 0.8


@METHODS
def test_a_push_by_smoke_is_its_part_without_divergence(run, observed_order, relative_l2, method):
    errors = []
    for n in (16, 32, 64):
        flow = run(FAMILY, (n, n), UNIT | {"method": method})
        x, y = (math.pi * p for p in flow.points)
        smoke = torch.cos(x) * torch.sin(y)
        found = flow(torch.stack([smoke, 0 * x, 0 * x]), 1e-4, viscosity=1e-12, buoyancy=1.0)
        # -Lap psi_t = b s_x, psi = 0 on the walls.
        exact = 0.5e-4 * torch.stack([-torch.sin(x) * torch.cos(y), torch.cos(x) * torch.sin(y)])
        errors.append(relative_l2(found[1:], exact))
    assert observed_order(f"velocity pushed from rest, in space, {method}", errors) > 1.9
    assert errors[-1] < 1e-3


@METHODS
def test_slow_flow_decays_at_the_rate_of_a_square_with_no_slip_walls(run, observed_order, method):
    # Of the slowest Stokes mode: 52.3447, the buckling load of a clamped square plate.
    errors = []
    for n in (6, 12, 24):
        flow = run(FAMILY, (n, n), UNIT | {"method": method, "step": 0.25 / n**2, "viscosity": 1.0})
        x, y = flow.points
        # On the lower faces, from psi = sin^2 sin^2; the velocity is too small to carry anything.
        u = 1e-9 * torch.sin(math.pi * (x - 0.5 / n)) ** 2 * torch.sin(2 * math.pi * y)
        v = -1e-9 * torch.sin(2 * math.pi * x) * torch.sin(math.pi * (y - 0.5 / n)) ** 2
        evolution = begun(flow, torch.stack([0 * x, u, v]), viscosity=1.0, buoyancy=0.0)
        speeds = []
        for _ in range(2):
            evolution.advance(0.03125)
            speeds.append(float(evolution.fields().norm()))
        errors.append(abs(math.log(speeds[0] / speeds[1]) / 0.03125 / 52.3447 - 1))
    order = observed_order(f"rate of decay of slow flow in a square, {method}", errors)
    # The publisher's wall stands half a cell behind the true one.
    assert order > (1.8 if method == "second_order" else 0.7)
    assert errors[-1] < (0.02 if method == "second_order" else 0.15)


@METHODS
def test_no_cell_gains_or_loses_fluid(run, figure, method):
    flow, initial = sample(run, 48, method=method)
    evolution = begun(flow, initial)
    evolution.advance(15.0)
    left = divergence(evolution.u, evolution.v, flow.solver.spacing).abs().max() / evolution.u.abs().max()
    figure(f"largest divergence over largest speed a cell, {method}", float(left) * flow.solver.spacing[0])
    assert float(left) * flow.solver.spacing[0] < 1e-13


def layers(run, method, n=16, steps=10, viscosity=0.01, **numerics):
    """Largest speed of stable layers of smoke after 10 units of time."""
    flow = run(FAMILY, (n, n), {"method": method, "step": 10 / steps} | numerics)
    _, y = flow.points
    found = flow(torch.stack([1 + y / 32, 0 * y, 0 * y]), 10.0, viscosity=viscosity)
    return float(found[1:].abs().max())


def test_layers_of_smoke_stay_at_rest(run, figure):
    assert layers(run, "second_order") < 1e-12
    assert layers(run, "pdearena", viscosity=1e-14) < 1e-11
    # The publisher's order lets viscosity act on the push of the smoke before the pressure balances it.
    false = [layers(run, "pdearena", steps=steps, viscosity=0.01) for steps in (10, 20, 40)]
    figure("speed of layers at rest, pdearena, steps 1, 1/2, 1/4", ", ".join(f"{f:.1e}" for f in false))
    assert false[0] > 1.6 * false[1] > 2.5 * false[2] > 0


def test_smoke_on_the_right_lifts_the_fluid_there(run):
    flow = run(FAMILY, (16, 16))
    x, y = flow.points
    found = flow(torch.stack([(x > 16).double(), 0 * x, 0 * y]), 1.5)
    assert float(found[2, 8:].mean()) > 0.01 > -0.01 > float(found[2, :8].mean())
    # It turns anticlockwise: to the left at the top, to the right at the bottom.
    assert float(found[1, :, 8:].mean()) < -0.01 < 0.01 < float(found[1, :, :8].mean())


@METHODS
def test_a_mirrored_start_gives_the_mirrored_flow(run, method):
    flow, initial = sample(run, 32, method=method, step=0.5)
    found = flow(initial, 6.0)
    mirrored = flow(initial.flip(1), 6.0)
    sign = torch.tensor([1.0, -1.0, 1.0]).reshape(3, 1, 1)
    torch.testing.assert_close(mirrored, sign * found.flip(1), rtol=0, atol=1e-9)


def energy(evolution, flow):
    cell = flow.solver.spacing[0] ** 2
    return 0.5 * cell * float((evolution.u**2).sum() + (evolution.v**2).sum())


@METHODS
def test_the_work_of_buoyancy_becomes_energy_of_motion(run, observed_order, method):
    defects = []
    for n in (16, 32, 64) if method == "second_order" else (32, 64, 128):
        steps = n // 2
        flow, initial = sample(run, n, step=6.0 / steps, method=method)
        evolution, work = begun(flow, initial, viscosity=1e-9), 0.0
        for _ in range(steps):
            before = evolution.smoke, evolution.v
            evolution.advance(6.0 / steps)
            smoke, v = ((one + other) / 2 for one, other in zip(before, (evolution.smoke, evolution.v), strict=True))
            lift = float(((smoke[..., 1:] + smoke[..., :-1]) / 2 * v).sum()) * flow.solver.spacing[0] ** 2
            work += 0.5 * lift * 6.0 / steps
        defects.append(abs(1 - energy(evolution, flow) / work))
    order = observed_order(f"energy lost, of the work of buoyancy, {method}", defects)
    assert order > (1.1 if method == "second_order" else 0.7)
    assert defects[-1] < (0.02 if method == "second_order" else 0.1)


@METHODS
def test_smoke_keeps_its_range_and_nearly_its_mass(run, figure, method):
    drift = []
    for n in (32, 64):
        flow, initial = sample(run, n, step=0.75 * 32 / n, method=method)
        found = flow(initial, 30.0)[0]
        smoke = initial[0]
        assert float(found.min()) >= float(smoke.min()) - 1e-12
        assert float(found.max()) <= float(smoke.max()) + 1e-12
        drift.append(abs(float(found.mean() / smoke.mean()) - 1))
    figure(f"change of mass at t = 30 on 32, 64 cells, {method}", ", ".join(f"{d:.2%}" for d in drift))
    assert max(drift) < 0.3


def smooth(run, n, **numerics):
    """Smooth smoke in a flow whose layers at the walls the grids resolve: t = 4, viscosity 0.3."""
    flow = run(FAMILY, (n, n), {"viscosity": 0.3} | numerics)
    x, y = (math.pi / 32 * p for p in flow.points)
    smoke = 1 + torch.cos(x) * torch.cos(y) + 0.5 * torch.cos(2 * x)
    return flow(torch.stack([smoke, 0 * x, 0 * x]), 4.0)


@pytest.mark.parametrize(
    ("along", "method"),
    [
        ("space", "pdearena"),
        ("time", "pdearena"),
        ("time", "second_order"),
        pytest.param("space", "second_order", marks=pytest.mark.slow),
    ],
)
def test_smooth_flow_converges(run, relative_l2, observed_order, along, method):
    results = []
    for factor in (1, 2, 4, 8) if along == "space" else (1, 2, 4):
        if along == "time":
            found = smooth(run, 32, step=0.4 / factor, method=method)
        else:
            found = smooth(
                run, 16 * factor, step=0.8 / factor ** (2 if method == "second_order" else 1), method=method
            )
            while found.shape[-1] > 16:
                found = torch.nn.functional.avg_pool2d(found, 2)
        results.append(found)
    errors = [relative_l2(a, b) for a, b in pairwise(results)]
    order = observed_order(f"smooth flow, t = 4, in {along}, {method}", errors)
    assert order > (1.5 if method == "second_order" else 0.7)


def test_the_publishers_scheme_converges_to_the_flow_of_the_other(run, relative_l2, observed_order):
    pool = torch.nn.functional.adaptive_avg_pool2d
    reference = pool(smooth(run, 64, step=0.1, method="second_order"), 16)
    found = [pool(smooth(run, n, step=12.8 / n), 16) for n in (16, 32, 64, 128)]
    errors = [relative_l2(fields, reference) for fields in found]
    assert observed_order("smooth flow, t = 4, pdearena against second_order", errors) > 0.7
    assert errors[-1] < 0.015


def test_the_noise_is_the_publishers(run, figure):
    flow, _ = sample(run, 33)
    fine, _ = sample(run, 99)
    x, y = flow.points
    largest, in_longest = 0.0, []
    for number in range(100):
        noise = flow.solver._noise(np.random.default_rng(number), x[:, 0], y[0])
        assert float((noise**2).mean()) == pytest.approx(1, rel=1e-12)
        assert abs(float(noise.mean())) < 1e-12
        power = torch.fft.fft2(noise).abs() ** 2 / 33**4
        in_longest.append(float(power[0, 1] + power[1, 0] + power[0, -1] + power[-1, 0]))
        largest = max(largest, float(noise.abs().max()))
    figure("largest smoke of 100 samples", largest)
    assert largest < 3.0
    # Amplitudes |k|^-12: the diagonal waves hold 2^-12 of the variance of the two longest.
    assert 1 - np.mean(in_longest) == pytest.approx(2**-12, rel=1)
    coarse = flow.solver.draw_state(np.random.default_rng(5), {})
    torch.testing.assert_close(fine.solver.draw_state(np.random.default_rng(5), {})[:, 1::3, 1::3], coarse)
