"""One-dimensional families: what they refuse, what they draw, their numerical pieces."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.base.config import load
from data_pipeline.base.errors import ConfigError, DataError
from data_pipeline.config import DatasetConfig, GenerateConfig
from data_pipeline.solvers.numerics.etd import ETDRK4
from data_pipeline.solvers.numerics.tridiagonal import solve_tridiagonal
from data_pipeline.solvers.numerics.waves import Gaussian, Modes, Sines, WindowedSines, draw_turning_waves
from data_pipeline.solvers.source import SolverSource
from tests.solver_cases import CASES

CONFIGS = Path(__file__).parents[2] / "configs" / "data"
PERIODIC = (
    "advection_1d", "burgers_1d", "burgers_shocks_1d", "kdv_1d", "kdv_burgers_1d", "kuramoto_sivashinsky_1d",
)  # fmt: skip
OURS = (*PERIODIC, "diffusion_sorption_1d")


def source(family, **changes):
    content = {"family": family, "seed": 5, "splits": {"train": 4}} | CASES[family] | changes
    return SolverSource("name", GenerateConfig.model_validate(content))


def position(n, offset=0.0):
    return (torch.arange(n, dtype=torch.float64) + offset) / n


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("advection_1d", {"resolution": (16,)}, ["resolution", "found: 16", "at least 32"]),
        ("advection_1d", {"parameters": {"length": 0.0}}, ["length", "> 0"]),
        ("advection_1d", {"parameters": {"initial": {"absolute": 1.5}}}, ["absolute", "less than or equal to 1"]),
        ("burgers_1d", {"parameters": {"viscosity": -0.1}}, ["viscosity", "> 0"]),
        ("burgers_1d", {"parameters": {"viscosity": 1e-4}}, ["too coarse", "found: 32", "at least"]),
        ("burgers_1d", {"parameters": {"length": -1.0}}, ["length", "> 0"]),
        (
            "burgers_1d",
            {"parameters": {"step": 0.1, "viscosity": 0.02}},
            ["parameters.step", "found: 0.1", "at most 0.0"],
        ),
        ("burgers_1d", {"parameters": {"initial": {"kind": "sine"}}}, ["initial", "sines", "gaussian"]),
        ("burgers_1d", {"parameters": {"initial": {"kind": "gaussian", "gamma": 0.4}}}, ["gamma", "greater than 0.5"]),
        (
            "burgers_1d",
            {"parameters": {"initial": {"kind": "sines", "wavenumbers": 30}}},
            ["found: 32", "at least 90"],
        ),
        ("burgers_1d", {"resolution": (32, 32)}, ["resolution", "1 numbers"]),
        ("burgers_shocks_1d", {"parameters": {"courant": 0.6}}, ["courant", "less than or equal to 0.5"]),
        ("burgers_shocks_1d", {"parameters": {"viscosity": -1.0}}, ["viscosity", ">= 0"]),
        ("burgers_shocks_1d", {"parameters": {"advection": 0.0}}, ["advection", "> 0"]),
        ("burgers_shocks_1d", {"resolution": (16,)}, ["found: 16", "at least 32 cells"]),
        (
            "burgers_shocks_1d",
            {"parameters": {"initial": {"kind": "modes"}}},
            ["initial.kind", "modes", "forced = false"],
        ),
        ("kdv_1d", {"parameters": {"dispersion": 0.0}}, ["dispersion", "> 0"]),
        ("kdv_1d", {"parameters": {"hyperviscosity": -1.0}}, ["hyperviscosity", ">= 0"]),
        ("kdv_1d", {"parameters": {"step": 4.0}}, ["parameters.step", "found: 4", "at most 0."]),
        ("kdv_1d", {"parameters": {"dispersion": 0.01}}, ["too coarse", "found: 96", "at least"]),
        ("kdv_burgers_1d", {"parameters": {"viscosity": [0.0, 0.4]}}, ["viscosity", "> 0"]),
        ("kdv_burgers_1d", {"parameters": {}}, ["too coarse", "found: 64", "at least 210"]),
        ("kdv_burgers_1d", {"resolution": (256,), "parameters": {"step": 0.1}}, ["parameters.step", "at most 0.0"]),
        ("kdv_burgers_1d", {"parameters": {"initial": {"kind": "modes"}}}, ["initial", "sines"]),
        ("kuramoto_sivashinsky_1d", {"resolution": (32,)}, ["too coarse", "found: 32", "at least 62"]),
        ("kuramoto_sivashinsky_1d", {"parameters": {"step": 1.0}}, ["parameters.step", "found: 1", "at most 0.6"]),
        ("kuramoto_sivashinsky_1d", {"parameters": {"viscosity": 0.0}}, ["viscosity", "> 0"]),
        ("diffusion_sorption_1d", {"parameters": {"porosity": 1.2}}, ["porosity", "<= 1"]),
        ("diffusion_sorption_1d", {"parameters": {"freundlich_n": 1.1}}, ["freundlich_n", "<= 1"]),
        ("diffusion_sorption_1d", {"parameters": {"diffusivity": -1.0}}, ["diffusivity", "> 0"]),
        ("diffusion_sorption_1d", {"parameters": {"initial": [-0.1, 0.2]}}, ["initial", ">= 0"]),
        ("diffusion_sorption_1d", {"dt": 1.0}, ["too coarse", "found: 48", "four for the depth"]),
        ("diffusion_sorption_1d", {"parameters": {"step": 60.0}}, ["parameters.step", "found: 50", "at most 25"]),
    ],
)
def test_bad_input_is_refused_before_any_work(family, changes, words):
    with pytest.raises(ConfigError) as refused:
        source(family, **changes)
    for word in words:
        assert word in str(refused.value)


def test_no_front_needs_no_grid():
    source("diffusion_sorption_1d", resolution=(4,), parameters={"inlet": 0.0, "initial": 0.0, "step": 5.0})


@pytest.mark.parametrize("law", [Sines(), Modes(), WindowedSines(window=1.0, absolute=1.0), Gaussian()])
def test_a_stream_gives_the_same_state_on_every_grid(law):
    coarse = law.draw(np.random.default_rng(1), position(512))
    fine = law.draw(np.random.default_rng(1), position(1024))
    torch.testing.assert_close(fine[::2], coarse, rtol=0, atol=0.02 if isinstance(law, Gaussian) else 1e-12)


def test_modes_have_the_given_amplitude_and_no_mean():
    for seed in range(20):
        state = Modes(amplitude=0.7).draw(np.random.default_rng(seed), position(1024))
        assert float(state.abs().max()) == pytest.approx(0.7, abs=1e-12)
        assert abs(float(state.mean())) < 1e-12
        assert float(torch.fft.rfft(state)[6:].abs().max()) < 1e-9


@pytest.mark.parametrize("law", [Sines(), Sines(waves=5), Sines(waves=1), Modes(), Gaussian(), WindowedSines()])
def test_largest_values_are_hardly_ever_exceeded(law):
    states = torch.stack([law.draw(np.random.default_rng(seed), position(64)) for seed in range(500)])
    assert float((states.abs().amax(1) > law.largest_value).double().mean()) < 0.005


def test_a_wider_share_of_windows_changes_no_other_state():
    few, many = WindowedSines(window=0.1), WindowedSines(window=0.5)
    shapes = [(few.draw_shape(np.random.default_rng(s)), many.draw_shape(np.random.default_rng(s))) for s in range(50)]
    assert all(torch.equal(a[:7], b[:7]) for a, b in shapes)
    assert any(not torch.equal(a, b) for a, b in shapes)


def test_turning_waves_start_as_the_initial_state():
    rows = draw_turning_waves(np.random.default_rng(2), Sines(waves=3), (0.1, 0.2), position(32))
    assert rows.shape == (9, 32)
    torch.testing.assert_close(rows[:3].sum(0), Sines(waves=3).draw(np.random.default_rng(2), position(32)))
    assert bool(((rows[6:] >= 0.1) & (rows[6:] <= 0.2)).all())
    assert bool((rows[6:] == rows[6:, :1]).all())


@pytest.mark.parametrize("family", PERIODIC)
def test_each_trajectory_may_have_its_own_length(family):
    middle = source(family).solver.lengths[0]
    bounds = [0.95 * middle, 1.05 * middle]
    made = source(family, parameters=CASES[family].get("parameters", {}) | {"length": bounds}, resolution=(128,))
    assert made.info.extent[0] == pytest.approx((0.0, middle))
    lengths = [t.parameters["length"] for t in made.read("train", 0, 4)]
    assert len(set(lengths)) == 4
    assert all(bounds[0] <= length <= bounds[1] for length in lengths)


@pytest.mark.parametrize("n", [1, 2, 5, 64, 100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_tridiagonal_systems_are_solved(n, dtype):
    rng = torch.Generator().manual_seed(n)
    lower, upper, right = torch.rand(3, 4, n, generator=rng, dtype=dtype) - 0.5
    diagonal = 1.5 + torch.rand(4, n, generator=rng, dtype=dtype)
    matrix = torch.diag_embed(diagonal) + torch.diag_embed(lower[:, 1:], -1) + torch.diag_embed(upper[:, :-1], 1)
    found = solve_tridiagonal(lower, diagonal, upper, right)
    torch.testing.assert_close((matrix @ found[..., None])[..., 0], right)


def test_the_stability_analysis_finds_where_etdrk4_grows():
    """At the step it allows nothing grows; at twice that step something does, in a model problem marched for long."""
    for family in ("burgers_1d", "kdv_1d", "kuramoto_sivashinsky_1d"):
        solver = source(family).solver
        corner = {name: getattr(solver.parameters, name)[0] for name in solver.parameter_names}
        values = {name: torch.tensor(value).double() for name, value in corner.items()}
        k = 2 * math.pi / corner["length"] * torch.arange(1, solver.grid[0] // 3 + 1).double()
        symbol = solver.linear(k, values)
        growth = []
        for factor in (1.0, 2.0):
            h = factor * solver.largest_step(1.0)
            rate = 1j * k * solver.largest_speed(corner)
            step = ETDRK4(symbol.to(torch.complex128), lambda u, rate=rate: rate * u, h).step
            after = step(torch.ones_like(rate)).abs() / torch.exp(h * symbol.real.clamp(min=0))
            growth.append(float(after.max()))
        assert growth[0] < 1.002
        assert growth[1] > 1.002


def test_a_negative_concentration_is_a_fault():
    solver = source("diffusion_sorption_1d").solver
    fields = np.full((3, 8, 1), 0.1, np.float32)
    assert solver.fault(fields) is None
    fields[1, 2] = -0.1
    assert solver.fault(fields) == (1, "a concentration of -0.1")


@pytest.mark.parametrize("family", ["burgers_shocks_1d", "diffusion_sorption_1d"])
def test_a_solution_that_cannot_go_on_ends_and_is_nan(family):
    made = source(family)
    state, drawn = made.draw("train", 0)
    states = torch.stack([state, state])
    states[1, 0, 3] = math.nan
    columns = {name: torch.full((2,), value, dtype=torch.float64) for name, value in drawn.items()}
    fields = made.solver.solve(states, columns, start=0.0, dt=made.config.dt, frames=3)
    assert torch.isfinite(fields[0]).all()
    assert not torch.isfinite(fields[1, -1]).all()
    alone = made.solver.solve(
        states[:1], {k: v[:1] for k, v in columns.items()}, start=0.0, dt=made.config.dt, frames=3
    )
    assert torch.equal(alone[0], fields[0])


def test_an_unstable_run_is_named(monkeypatch):
    made = source("kdv_1d", parameters={"step": 0.05})
    monkeypatch.setattr(
        made.solver, "parameters", made.solver.parameters.model_copy(update={"step": 4.0, "advection": (60.0, 60.0)})
    )
    with pytest.raises(DataError, match="kdv_1d"):
        list(made.read("train", 0, 1))


def one_dimensional():
    return sorted(
        path for path in CONFIGS.rglob("*.yaml") if any(f"family: {name}\n" in path.read_text() for name in OURS)
    )


@pytest.mark.parametrize("path", one_dimensional(), ids=lambda path: path.stem)
def test_the_configurations_of_the_project_open(path):
    settings = load(DatasetConfig, path)
    assert settings.name == path.stem
    assert settings.generate is not None
    opened = SolverSource(settings.name, settings.generate)
    if path.parent == CONFIGS:  # on a laptop
        assert opened.info.space in {(64,), (128,)}
        assert opened.splits == {"train": 64, "valid": 4, "test": 8}


def test_every_family_has_a_configuration():
    texts = [path.read_text() for path in one_dimensional()]
    assert all(any(f"family: {name}\n" in text for text in texts) for name in OURS)
