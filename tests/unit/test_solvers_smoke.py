"""Smoke in a closed box: what is refused, how it is drawn, and the pieces of its staggered grid."""

import math

import numpy as np
import pytest
import torch

from data_pipeline.base.config import load
from data_pipeline.base.errors import ConfigError, DataError
from data_pipeline.config import DatasetConfig
from data_pipeline.solvers.families.smoke_2d import Smoke2D, Smoke2DParameters
from data_pipeline.solvers.numerics.characteristics import carried_cubic, extended
from data_pipeline.solvers.numerics.closed_box import Projection, carried, centred, divergence, onto_faces
from data_pipeline.solvers.numerics.smoke_steps import SmokeSteps
from data_pipeline.solvers.source import SolverSource
from data_pipeline.stores.generation import relative_errors
from tests.unit.test_solvers_source import CONFIGS, source

FAMILY = "smoke_2d"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parameters": {"viscosity": -0.01}}, ["viscosity", "> 0"]),
        ({"parameters": {"buoyancy": 0.0}}, ["buoyancy", "> 0"]),
        ({"parameters": {"buoyancy": [0.5, 0.2]}}, ["buoyancy", "low <= high"]),
        ({"parameters": {"length": 0.0}}, ["length", "greater than 0"]),
        ({"parameters": {"smoothness": 1.0}}, ["smoothness", "greater than or equal to 2"]),
        ({"parameters": {"method": "maccormack"}}, ["method", "second_order"]),
        (
            {"dt": 4.0, "parameters": {"step": 4.0}},
            ["parameters.step", "found: 4", "at most 3.266", "crosses the box"],
        ),
        (
            {"resolution": (64, 64), "dt": 1.5, "parameters": {"viscosity": 20.0, "step": 1.5}},
            ["parameters.step", "found: 1.5", "at most 0.2", "viscosity"],
        ),
        (
            {"resolution": (64, 64), "parameters": {"method": "second_order", "viscosity": 0.5, "step": 0.5}},
            ["parameters.step", "found: 0.5", "at most 0.0625", "viscosity"],
        ),
        ({"resolution": (16, 11)}, ["resolution", "cells of 2.909", "at most scale / 4 = 2.75"]),
        ({"resolution": (128, 128), "parameters": {"scale": 0.5, "length": 32.0}}, ["at most scale / 4"]),
        (
            {"resolution": (512, 512), "parameters": {"scale": 0.5}},
            ["parameters.scale", "found: 0.5", "at least 0.63"],
        ),
    ],
)
def test_bad_input_is_refused_with_its_bound(changes, words):
    with pytest.raises(ConfigError) as refused:
        source(FAMILY, **changes)
    for word in words:
        assert word in str(refused.value)


def test_the_refined_run_of_the_largest_viscosity_is_stable():
    """Half the step on a grid twice as fine is twice the viscous number: the bound leaves room for it."""
    settings = {"method": "second_order", "viscosity": 1.0, "step": 0.5}
    changes = {"resolution": (16, 16), "start": 0.0, "dt": 4.0, "frames": 4}
    with pytest.raises(ConfigError, match=r"at most 0\.4995"):
        source(FAMILY, parameters=settings | {"viscosity": 1.001}, **changes)
    made = source(FAMILY, parameters=settings, **changes)
    errors = relative_errors(next(made.read("train", 0, 1)).fields, made.refined("train", 0), None)
    assert errors[-1] is not None
    assert errors[-1] < 0.1


@pytest.mark.parametrize(("changes", "words"), [
    ({"smoothness": 51.0}, "less than or equal to 50"), ({"scale": 400.0}, "at most 320"),
])  # fmt: skip
def test_smoke_without_amplitudes_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        source(FAMILY, parameters=changes)


@pytest.mark.parametrize("scale", [3.0, 320.0])
def test_the_smoothest_smoke_is_finite(scale):
    state = Smoke2D((64, 64), Smoke2DParameters(smoothness=50.0, scale=scale)).draw_state(np.random.default_rng(0), {})
    assert torch.isfinite(state).all()
    assert float(state[0].std()) > 0.1


@pytest.mark.parametrize("method", ["pdearena", "second_order"])
def test_a_solution_that_blows_up_is_named(method):
    made = source(FAMILY, parameters={"step": 0.5, "method": method})
    draw = made.draw

    def poisoned(split, number):
        state, drawn = draw(split, number)
        state[0, 3, 4] = math.nan if number == 1 else state[0, 3, 4]
        return state, drawn

    made.draw = poisoned
    with pytest.raises(DataError, match="trajectory 1"):
        list(made.read("train", 0, 2))


@pytest.mark.parametrize("method", ["pdearena", "second_order"])
def test_a_sample_does_not_depend_on_its_batch_where_viscosities_differ(method):
    changes = {"viscosity": [0.01, 0.4], "step": 0.5, "method": method}
    made = source(FAMILY, resolution=(24, 20), parameters=changes)
    together = [t.fields for t in made.read("train", 0, 4)]
    for number, fields in enumerate(together):
        np.testing.assert_array_equal(fields, next(made.read("train", number, number + 1)).fields)


def test_both_methods_start_from_the_same_sample_and_agree_for_a_while():
    first, second = (
        next(source(FAMILY, resolution=(32, 32), start=0.0, parameters={"step": 0.1, "method": m}).read("train", 0, 1))
        for m in ("pdearena", "second_order")
    )
    np.testing.assert_array_equal(first.fields[0], second.fields[0])
    difference = np.linalg.norm(first.fields[-1] - second.fields[-1]) / np.linalg.norm(second.fields[-1])
    assert 1e-4 < difference < 0.05


def test_buoyancy_is_drawn_for_each_trajectory():
    made = source(FAMILY, parameters={"buoyancy": [0.2, 0.5], "step": 0.5})
    drawn = [made.draw("train", number)[1] for number in range(4)]
    assert len({one["buoyancy"] for one in drawn}) == 4
    assert all(0.2 <= one["buoyancy"] <= 0.5 and one["viscosity"] == 0.01 for one in drawn)


def test_a_smaller_box_holds_the_same_pattern():
    wide, narrow = (Smoke2D((32, 32), Smoke2DParameters(length=k, scale=k / 3)) for k in (32.0, 2.0))
    states = [solver.draw_state(np.random.default_rng(3), {}) for solver in (wide, narrow)]
    torch.testing.assert_close(states[0], states[1], rtol=1e-10, atol=1e-10)
    assert narrow.extent == ((0.0, 2.0), (0.0, 2.0))


def test_a_small_scale_leaves_out_the_longest_waves():
    solver = Smoke2D((64, 64), Smoke2DParameters(scale=4.0))  # sqrt(0.1) 32 / 4 = 2.5 waves across the box
    x, y = solver.coordinates()
    power = torch.fft.fft2(solver._noise(np.random.default_rng(0), x[:, 0], y[0])).abs()
    assert float(power[:3, 0].max()) < 1e-8
    assert float(power[3, 0]) > 1


def test_the_projection_takes_the_divergence_and_leaves_what_has_none():
    spacing = (0.5, 0.25)
    u, v = torch.randn(2, 7, 12, dtype=torch.float64), torch.randn(2, 8, 11, dtype=torch.float64)
    project = Projection((8, 12), spacing, u)
    once_u, once_v, _ = project(u, v)
    assert float(divergence(once_u, once_v, spacing).abs().max()) < 1e-12
    twice_u, twice_v, pressure = project(once_u, once_v)
    torch.testing.assert_close(twice_u, once_u)
    torch.testing.assert_close(twice_v, once_v)
    assert float(pressure.abs().max()) < 1e-12


def test_values_are_averaged_between_faces_and_centres():
    u, v = torch.ones(1, 3, 5), torch.ones(1, 4, 4)
    cell_u, cell_v = centred(u, v)
    assert cell_u.shape == cell_v.shape == (1, 4, 5)
    assert cell_u[0, :, 0].tolist() == [0.5, 1, 1, 0.5]
    assert cell_v[0, 0].tolist() == [0.5, 1, 1, 1, 0.5]
    assert onto_faces(torch.arange(20.0).reshape(1, 4, 5))[0][0, 0].tolist() == [2.5, 3.5, 4.5, 5.5, 6.5]


def test_a_shift_by_whole_cells_moves_the_values():
    field = torch.randn(1, 6, 7, dtype=torch.float64)
    x, y = torch.full_like(field, 1.0), torch.full_like(field, -2.0)
    cubic = carried_cubic(extended(field, ("free", "free")), x, y)
    linear = carried(field, x, y, "border")
    for moved in (cubic, linear):
        torch.testing.assert_close(moved[:, 1:, :-2], field[:, :-1, 2:])
    torch.testing.assert_close(
        linear[0, 0], linear[0, 1] * 0 + torch.cat([field[0, 0, 2:], field[0, 0, -1:].repeat(2)])
    )
    assert carried(field, 10 * x, y, "zeros").abs().max() == 0


def test_cubic_values_are_exact_for_cubics_and_limited_where_asked():
    x = torch.arange(-2.0, 10.0, dtype=torch.float64)
    field = (x**3 - 4 * x)[:, None] + (x**2)[None, :]
    shift = torch.full((1, 8, 8), 0.3, dtype=torch.float64)
    at = torch.arange(8, dtype=torch.float64) - 0.3
    exact = (at**3 - 4 * at)[:, None] + (at**2)[None, :]
    torch.testing.assert_close(carried_cubic(field[None], shift, shift)[0], exact)
    step = extended((torch.arange(8) > 3).double()[None, :, None].expand(1, 8, 8), ("free", "free"))
    assert carried_cubic(step, shift, 0 * shift).max() > 1.01
    limited = carried_cubic(step, shift, 0 * shift, limited=True)
    assert (limited.min(), limited.max()) == (0, 1)


def test_fluid_never_comes_from_behind_a_wall():
    speed = torch.full((1, 7, 8), -3.0, dtype=torch.float64)  # towards low x, many cells a step
    still = torch.zeros(1, 8, 7, dtype=torch.float64)
    steps = SmokeSteps((1.0, 1.0), 1.0, still, still, Projection((8, 8), (1.0, 1.0), still), lambda function: function)
    x, y = steps._paths(speed, still, 0.5)
    assert float(y.abs().max()) == 0
    origin = torch.arange(8) + 0.5 - x[0, :, 4]
    assert (origin[1:] > origin[:-1]).all()
    assert 0 < origin[0] < 8
    assert origin[-1] <= 8


@pytest.mark.parametrize("method", ["pdearena", "second_order"])
def test_a_compiled_step_gives_the_same_numbers(method, monkeypatch):
    called = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: called.append(function) or function)
    settings = {"parameters": {"step": 0.5, "method": method}}
    plain, compiled = (next(source(FAMILY, compile=c, **settings).read("train", 0, 1)) for c in (False, True))
    assert len(called) == 2
    np.testing.assert_allclose(compiled.fields, plain.fields, rtol=1e-6)


@pytest.mark.parametrize(
    "name", ["smoke_2d", "published/pdearena_smoke_2d", "published/pdearena_smoke_2d_conditioned"]
)
def test_the_configurations_open(name):
    settings = load(DatasetConfig, CONFIGS / f"{name}.yaml")
    assert settings.generate is not None
    opened = SolverSource(settings.name, settings.generate)
    assert opened.info.channels == ("tracer", "velocity_x", "velocity_y")
    assert opened.info.boundaries == ("wall", "wall")
