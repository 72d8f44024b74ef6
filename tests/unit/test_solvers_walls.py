"""Incompressible flows between walls: bad input, initial states, geometry, batches."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.base.config import load
from data_pipeline.base.errors import ConfigError, DataError
from data_pipeline.config import DatasetConfig, GenerateConfig
from data_pipeline.solvers.numerics.immersed import most_markers
from data_pipeline.solvers.registry import FAMILIES
from data_pipeline.solvers.source import SolverSource
from tests.solver_cases import CASES

CONFIGS = Path(__file__).parents[2] / "configs" / "data"
WALLS = ["cavity_2d", "tube_2d", "cylinder_2d"]


def source(family, parameters=None, **changes):
    content = {"family": family, "seed": 5, "splits": {"train": 4}} | CASES[family]
    content |= {"parameters": content["parameters"] | (parameters or {})} | changes
    return SolverSource("name", GenerateConfig.model_validate(content))


def evolution(made, numbers=(0, 1)):
    states, drawn = zip(*(made.draw("train", number) for number in numbers), strict=True)
    columns = {key: torch.tensor([d[key] for d in drawn], dtype=torch.float64) for key in made.solver.parameter_names}
    return made.solver, torch.stack(states), columns


@pytest.mark.parametrize(
    ("family", "parameters", "words"),
    [
        ("cavity_2d", {"viscosity": -0.1}, ["viscosity", "> 0", "-0.1"]),
        ("cavity_2d", {"density": 0.0}, ["density", "> 0"]),
        ("cavity_2d", {"width": -1.0}, ["width", "> 0"]),
        ("cavity_2d", {"height": [2.0, 1.0]}, ["height", "low <= high"]),
        ("cavity_2d", {"velocity": 0.0}, ["velocity", "> 0"]),
        ("cavity_2d", {"courant": 1.5}, ["courant", "less than or equal to 1"]),
        ("cavity_2d", {"perturbation": -0.1}, ["perturbation", "greater than or equal to 0"]),
        (
            "cavity_2d",
            {"viscosity": 1e-3},
            [
                "too coarse for a boundary layer of thickness 0.0316",
                "Reynolds number 1000",
                "found: 16",
                "at least 64",
            ],
        ),
        ("cavity_2d", {"viscosity": [1e-3, 1.0], "refine": 4}, ["along y", "found: 48", "at least 64"]),
        ("cavity_2d", {"width": [0.5, 3.0]}, ["along x", "at least 19"]),
        ("cavity_2d", {"viscosity": 1e4}, ["too many steps", "generate.dt", "found: 0.5", "100000 steps"]),
        ("tube_2d", {"viscosity": 0.01}, ["along y", "found: 12", "at least 20: 2 cells"]),
        ("tube_2d", {"profile": "parabola"}, ["profile", "'uniform' or 'parabolic'"]),
        ("cylinder_2d", {"viscosity": 1e-3}, ["along x", "thickness 0.03", "Reynolds number 900"]),
        ("cylinder_2d", {"refine": 1}, ["too few cells across the cylinder", "found: 16", "8 of them"]),
        ("cylinder_2d", {"x_min": 1.0, "x_max": 4.0}, ["too near the boundary, or outside", "parameters.x_min"]),
        ("cylinder_2d", {"y_max": 0.55}, ["too near", "parameters.y_max", "0.55", "the radius and 4 cells"]),
        ("cylinder_2d", {"x_max": -3.0}, ["parameters.x_max", "found: (-3.0, -3.0)", "at least"]),
        ("cylinder_2d", {"radius": 0.0}, ["radius", "> 0"]),
    ],
)
def test_bad_input_is_refused_before_any_work(family, parameters, words):
    with pytest.raises(ConfigError) as refused:
        source(family, parameters)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize("family", WALLS)
def test_pressure_is_stored_on_demand(family):
    plain = next(source(family).read("train", 1, 2)).fields
    made = source(family, {"pressure": True})
    full = next(made.read("train", 1, 2)).fields
    assert made.info.channels == ("velocity_x", "velocity_y", "pressure")
    np.testing.assert_array_equal(full[..., :2], plain)
    assert full[..., 2].std() > 0


def test_pressure_follows_the_density():
    """Twice the density and twice the dynamic viscosity: the same flow, twice the pressure."""
    light, heavy = (
        next(source("tube_2d", {"pressure": True, "density": d, "viscosity": 0.1 * d}).read("train", 0, 1)).fields
        for d in (1.0, 2.0)
    )
    np.testing.assert_allclose(heavy[..., :2], light[..., :2], atol=1e-6)
    np.testing.assert_allclose(heavy[..., 2], 2 * light[..., 2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", WALLS)
def test_a_perturbation_is_the_same_function_on_every_grid(family):
    coarse, fine = (source(family, {"perturbation": 0.3, "refine": refine}) for refine in (4, 8))
    (a, drawn), (b, same) = coarse.draw("train", 2), fine.draw("train", 2)
    assert drawn == same
    # u is the difference of a stream function: the faces of the coarse grid hold means of the fine ones.
    ny = a.shape[2]
    torch.testing.assert_close(a[0], b[0, 1::2].reshape(-1, ny, 2).mean(2), rtol=0, atol=1e-12)
    torch.testing.assert_close(a[1], b[1, :, 1::2].reshape(a.shape[1], 2, -1).mean(1), rtol=0, atol=1e-12)
    assert float(a.square().sum(0).mean()) > 0


def test_samples_of_several_sizes_share_the_unit_square():
    several, one = source("cavity_2d", {"width": [0.8, 1.0]}), source("cavity_2d", {"width": 1.5, "height": 0.9})
    assert several.info.extent == ((0.0, 1.0), (0.0, 1.0))
    assert one.info.extent == ((0.0, 1.5), (0.0, 0.9))
    assert source("cylinder_2d", {"x_max": 2.0}).info.extent == ((-1.2, 2.0), (-1.0, 1.1))
    assert len({t.parameters["width"] for t in several.read("train", 0, 2)}) == 2


@pytest.mark.parametrize("family", WALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_flows_keep_their_precision_and_have_no_divergence(family, dtype):
    solver, states, columns = evolution(source(family, {"perturbation": 0.2}))
    flow = solver.flow(states.to(dtype), columns)
    flow.advance(0.1)
    assert flow.u.dtype == flow.v.dtype == flow.pressure().dtype == dtype
    divergence = flow.projection.divergence(flow.u, flow.v).abs().max()
    assert float(divergence) < (1e-12 if dtype == torch.float64 else 1e-3)


def test_a_flow_of_time_zero_changes_nothing():
    solver, states, columns = evolution(source("tube_2d", {"perturbation": 0.2}))
    flow = solver.flow(states, columns)
    before = flow.u
    flow.advance(0.0)
    assert torch.equal(flow.u, before)


def test_a_flow_that_blew_up_ends_as_nan_and_is_named(monkeypatch):
    monkeypatch.setattr("data_pipeline.solvers.numerics.staggered.MAX_STEPS", 2)
    with pytest.raises(DataError, match="blew up"):
        list(source("cavity_2d").read("train", 0, 1))
    monkeypatch.undo()
    solver, states, columns = evolution(source("cavity_2d"))
    states[1, 0, 3, 3] = torch.inf
    flow = solver.flow(states, columns)
    flow.advance(0.5)
    assert torch.isfinite(flow.u[0]).all()
    assert not torch.isfinite(flow.u[1]).all()


def test_a_compiled_step_gives_the_same_numbers(monkeypatch):
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: real(function, backend="eager", **options))
    plain = next(source("tube_2d").read("train", 0, 1)).fields
    compiled = next(source("tube_2d", compile=True).read("train", 0, 1)).fields
    np.testing.assert_allclose(compiled, plain, atol=1e-6)


def test_markers_lie_on_a_circle_below_the_surface():
    solver, states, columns = evolution(source("cylinder_2d"), (0, 1, 2))
    projection = solver.flow(states, columns).projection
    (columns_u, rows_u), _ = projection.markers.weights
    sizes = solver.sizes()
    most = most_markers(0.5, min(sizes[axis][0] / solver.grid[axis] for axis in (0, 1)))
    assert columns_u.shape[1] == most
    active = columns_u.sum(2) > 0.5
    # The weights add up to one, and their mean position is the marker.
    torch.testing.assert_close(columns_u.sum(2)[active], torch.ones(int(active.sum()), dtype=torch.float64))
    box = projection.box
    x = (columns_u * torch.arange(solver.grid[0] + 1)).sum(2) * box.dx[:, 0] + columns["x_min"][:, None]
    y = (rows_u * (torch.arange(solver.grid[1]) + 0.5)).sum(2) * box.dy[:, 0] + columns["y_min"][:, None]
    depth = columns["radius"][:, None] - torch.hypot(x, y)
    cell = torch.minimum(box.dx, box.dy)[:, 0]
    assert bool((depth[active] > (0.25 * cell).expand_as(depth)[active]).all())
    assert bool((depth[active] < (0.4 * torch.maximum(box.dx, box.dy)[:, 0]).expand_as(depth)[active]).all())


@pytest.mark.parametrize("path", ["cavity_2d", "tube_2d", "cylinder_2d", *(f"published/cfdbench_{p}_{s}" for p in ("cavity", "tube", "cylinder") for s in ("bc", "prop", "geo"))])  # fmt: skip  # noqa: E501
def test_the_configurations_open(path):
    settings = load(DatasetConfig, CONFIGS / f"{path}.yaml")
    opened = SolverSource(settings.name, settings.generate)
    assert settings.generate.family in FAMILIES
    assert opened.info.space == (64, 64)
    assert opened.info.masked == ("cylinder" in path)
