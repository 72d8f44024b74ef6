"""The steady families: Darcy flow and Poisson's equation."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.base.config import load
from data_pipeline.base.errors import ConfigError, DataError
from data_pipeline.config import DatasetConfig, GenerateConfig
from data_pipeline.solvers.numerics import elliptic
from data_pipeline.solvers.numerics.cosine_field import cosine_field
from data_pipeline.solvers.numerics.sine import sine_transform
from data_pipeline.solvers.source import SolverSource

CONFIGS = Path(__file__).parents[2] / "configs" / "data"


def source(family, **changes):
    content = {"family": family, "resolution": (33, 33), "splits": {"train": 8}, "parameters": {"modes": 64}}
    return SolverSource("name", GenerateConfig.model_validate(content | changes))


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        (
            "darcy_2d",
            {"parameters": {"inverse_length": 9.0}},
            ["parameters.inverse_length", "found: 9", "at most 8", "4 intervals of the grid"],
        ),
        ("darcy_2d", {"resolution": (33, 9)}, ["parameters.inverse_length", "found: 3", "at most 2"]),
        ("darcy_2d", {"parameters": {"low": 0.01, "high": 12}}, ["parameters.low", "0.01, 12", "at most 1000"]),
        ("darcy_2d", {"parameters": {"low": 12, "high": 0.01}}, ["parameters.high", "12, 0.01", "at most 1000"]),
        ("darcy_2d", {"parameters": {"low": 0}}, ["low", "greater than 0"]),
        ("darcy_2d", {"parameters": {"high": -1}}, ["high", "greater than 0"]),
        ("darcy_2d", {"parameters": {"smoothness": 1.0}}, ["smoothness", "greater than 1"]),
        ("darcy_2d", {"parameters": {"modes": 1}}, ["modes", "greater than or equal to 2"]),
        ("darcy_2d", {"parameters": {"modes": 4097}}, ["modes", "less than or equal to 4096"]),
        ("darcy_2d", {"parameters": {"smoothness": 51.0}}, ["smoothness", "less than or equal to 50"]),
        ("darcy_2d", {"parameters": {"permeability": "log"}}, ["permeability", "lognormal"]),
        ("darcy_2d", {"parameters": {"source": [2, 1]}}, ["source", "low <= high"]),
        ("darcy_2d", {"dt": 0.1}, ["steady", "1, 0, 0", "leave them out"]),
        ("darcy_2d", {"frames": 3}, ["steady", "found: 3"]),
        ("darcy_2d", {"resolution": (33,)}, ["resolution", "2 numbers"]),
        ("poisson_2d", {}, ["parameters.width", "found: 0.025", "at least 0.03125"]),
        ("poisson_2d", {"parameters": {"width": [-0.1, 0.1]}}, ["width", "> 0"]),
        ("poisson_2d", {"parameters": {"stop": 0}}, ["stop", "greater than 0"]),
        ("poisson_2d", {"parameters": {"stop": 1.1}}, ["stop", "less than or equal to 1"]),
        (
            "poisson_2d",
            {"parameters": {"source": "random_field", "inverse_length": 9.0}},
            ["parameters.inverse_length", "found: 9", "at most 8"],
        ),
    ],
)
def test_bad_input_is_refused_before_any_work(family, changes, words):
    with pytest.raises(ConfigError) as refused:
        source(family, **changes)
    for word in words:
        assert word in str(refused.value)


def test_the_stored_grid_includes_the_boundary():
    made = source("darcy_2d", parameters={"modes": 64, "refine": 2})
    assert made.solver.grid == (65, 65)
    trajectory = next(made.read("train", 0, 1))
    pressure = trajectory.fields[0, :, :, 0]
    assert pressure[1:-1, 1:-1].min() > 0
    assert pressure[0].max() == pressure[-1].max() == pressure[:, 0].max() == pressure[:, -1].max() == 0
    assert made.info.coordinates is not None
    assert made.info.coordinates[0][0] == 0
    assert made.info.coordinates[0][-1] == 1
    state, _ = made.draw("train", 0)
    np.testing.assert_array_equal(trajectory.static[..., 0], state[0, ::2, ::2])


@pytest.mark.parametrize("parameters", [{"permeability": "lognormal"}, {"low": 0.1, "high": 1.0}])
def test_variants_of_the_permeability(parameters):
    made = source("darcy_2d", parameters={"modes": 64, **parameters})
    rocks = np.stack([t.static for t in made.read("train", 0, 8)])
    if "low" in parameters:
        np.testing.assert_allclose(np.unique(rocks), [0.1, 1.0], rtol=1e-6)
        assert made.draw("train", 0)[0].unique().tolist() == [0.1, 1.0]
    else:
        assert rocks.min() > 0
        assert np.unique(rocks).size > 1000
        assert abs(np.log(rocks).mean()) < 0.2


def test_each_sample_draws_its_own_source_which_scales_the_pressure():
    fixed = [t.fields for t in source("darcy_2d").read("train", 0, 8)]
    drawn = list(source("darcy_2d", parameters={"modes": 64, "source": [0.5, 2.0]}).read("train", 0, 8))
    values = [t.parameters["source"] for t in drawn]
    assert len(set(values)) == 8
    assert min(values) >= 0.5
    assert max(values) <= 2.0
    for plain, t in zip(fixed, drawn, strict=True):
        np.testing.assert_allclose(t.fields, t.parameters["source"] * plain, rtol=1e-5, atol=1e-9)


def test_an_inner_product_does_not_depend_on_its_batch_or_on_threads():
    # Above 32768 values torch splits the sum of a whole tensor among threads.
    a, b = torch.randn(2, 3, 211, 211, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = elliptic._dot(a, b)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            alone = torch.cat([elliptic._dot(a[i : i + 1], b[i : i + 1]) for i in range(3)])
            assert torch.equal(alone, together)
    finally:
        torch.set_num_threads(before)


def test_no_source_means_no_pressure_and_leaves_the_rest_of_the_batch_alone():
    made = source("darcy_2d")
    state, _ = made.draw("train", 0)
    solver = made.solver
    values = torch.tensor([0.0, 1.0], dtype=torch.float64)
    both = solver.solve(torch.stack([state, state]), {"source": values}, start=0.0, dt=0.0, frames=1)
    alone = solver.solve(state[None], {"source": values[1:]}, start=0.0, dt=0.0, frames=1)
    assert float(both[0].abs().max()) == 0
    torch.testing.assert_close(both[1], alone[0], rtol=0, atol=0)


def test_a_sample_that_does_not_converge_is_named(monkeypatch):
    monkeypatch.setattr(elliptic, "_ITERATIONS", 2)
    with pytest.raises(DataError, match="trajectory 3"):
        list(source("darcy_2d").read("train", 3, 5))


def test_a_sample_without_a_solution_does_not_harm_its_neighbour():
    made = source("darcy_2d")
    state, _ = made.draw("train", 0)
    values = {"source": torch.ones(2, dtype=torch.float64)}
    fields = made.solver.solve(torch.stack([state, state * torch.nan]), values, start=0.0, dt=0.0, frames=1)
    alone = made.solver.solve(state[None], {"source": values["source"][:1]}, start=0.0, dt=0.0, frames=1)
    assert torch.equal(fields[0], alone[0])
    assert not torch.isfinite(fields[1]).all()


def test_the_sine_transform_is_its_own_inverse_and_finds_a_wave():
    values = torch.randn(2, 7, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for axis in (-1, -2):
        torch.testing.assert_close(sine_transform(sine_transform(values, axis), axis), values)
    wave = torch.sin(3 * torch.pi / 8 * torch.arange(1, 8, dtype=torch.float64))
    expected = torch.zeros(7, dtype=torch.float64)
    expected[2] = 2.0  # sqrt(n / 2)
    torch.testing.assert_close(sine_transform(wave, -1), expected)


def test_a_random_field_is_the_same_function_on_every_grid():
    coarse, fine = (cosine_field(np.random.default_rng(3), (n, n), 40, 2.0, 3.0) for n in (9, 33))
    torch.testing.assert_close(fine[::4, ::4], coarse, rtol=0, atol=1e-13)


@pytest.mark.parametrize("path", sorted([*CONFIGS.glob("**/*darcy*.yaml"), *CONFIGS.glob("**/*poisson*.yaml")]))
def test_the_configurations_open(path):
    settings = load(DatasetConfig, path)
    if settings.generate is not None:
        opened = SolverSource(settings.name, settings.generate)
        assert opened.info.frames == 1
        assert opened.splits["train"] >= 64


@pytest.mark.parametrize("inverse_length", [1e-3, 3.0, 8.0])
def test_the_smoothest_field_is_finite(inverse_length):
    parameters = {"modes": 64, "permeability": "lognormal", "smoothness": 50.0, "inverse_length": inverse_length}
    state, _ = source("darcy_2d", parameters=parameters).draw("train", 0)
    assert torch.isfinite(state).all()
    assert (state > 0).all()
