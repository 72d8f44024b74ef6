"""What a solver promises as a source of trajectories."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.base.config import load
from data_pipeline.base.errors import ConfigError, DataError, PdepotError
from data_pipeline.config import DatasetConfig, GenerateConfig
from data_pipeline.solvers.registry import FAMILIES
from data_pipeline.solvers.source import SolverSource
from tests.solver_cases import CASES

CONFIGS = Path(__file__).parents[2] / "configs" / "data"


def config(family: str, **changes: object) -> GenerateConfig:
    content = {"family": family, "seed": 5, "splits": {"train": 4, "test": 4}}
    return GenerateConfig.model_validate(content | CASES.get(family, {"resolution": (16, 12)}) | changes)


def source(family: str, **changes: object) -> SolverSource:
    return SolverSource("name", config(family, **changes))


families = pytest.mark.parametrize("family", sorted(FAMILIES))


def test_every_family_is_tried_here():
    assert set(CASES) == set(FAMILIES)


@families
def test_trajectories_are_what_the_info_says(family):
    made = source(family)
    info = made.info
    trajectories = list(made.read("train", 1, 3))
    assert len(trajectories) == 2
    for number, trajectory in enumerate(trajectories, start=1):
        assert trajectory.fields.dtype == np.float32
        assert trajectory.fields.shape == (info.frames, *info.space, len(info.channels))
        assert np.isfinite(trajectory.fields).all()
        if not made.solver.steady:
            assert not np.array_equal(trajectory.fields[0], trajectory.fields[-1])
        start = CASES[family].get("start", 0.0)
        np.testing.assert_allclose(trajectory.times, start + info.dt * np.arange(info.frames))
        assert tuple(trajectory.parameters) == info.parameters
        assert (trajectory.static is None) == (not info.static_channels)
        if trajectory.static is not None:
            assert trajectory.static.shape == (*info.space, len(info.static_channels))
            assert trajectory.static.dtype == np.float32
        assert (trajectory.mask is not None) == info.masked
        if trajectory.mask is not None:
            assert trajectory.mask.shape == info.space
        provenance = trajectory.provenance
        assert (provenance["solver"], provenance["seed"]) == (family, 5)
        assert (provenance["split"], provenance["sample"]) == ("train", number)
        assert provenance["scheme"]
    assert len(info.space) == len(info.axes) == len(info.extent) == len(info.boundaries)
    assert info.equation
    assert info.licence


@families
def test_a_sample_does_not_depend_on_its_batch(family):
    made = source(family)
    together = [t.fields for t in made.read("train", 0, 4)]
    alone = [t.fields for n in range(4) for t in made.read("train", n, n + 1)]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a, b)


@families
def test_samples_differ_by_number_split_and_seed(family):
    made = source(family)
    fields = [t.fields for split in ("train", "test") for t in made.read(split, 0, 4)]
    fields += [t.fields for t in source(family, seed=6).read("train", 0, 4)]
    assert len({f.tobytes() for f in fields}) == 12


@pytest.mark.parametrize("family", [name for name, case in CASES.items() if case.get("start")])
def test_the_first_frame_is_at_start(family):
    late = next(source(family).read("train", 0, 1))
    early = source(family, start=0.0)
    first = next(early.read("train", 0, 1)).fields[0]
    assert not np.array_equal(first, late.fields[0])
    state, _ = early.draw("train", 0)
    stored = state[: len(early.info.channels)].movedim(0, -1)
    np.testing.assert_allclose(first, stored, atol=1e-6)


@families
def test_single_precision_gives_the_same_sample_to_rounding(family):
    double, single = (source(family, precision=precision) for precision in ("float64", "float32"))
    for a, b in zip(double.read("train", 0, 2), single.read("train", 0, 2), strict=True):
        assert a.parameters == b.parameters
        assert np.linalg.norm(a.fields - b.fields) <= 1e-3 * np.linalg.norm(a.fields)


@families
def test_a_refined_run_is_the_same_sample(family):
    made = source(family)
    stored = next(made.read("train", 0, 1)).fields
    refined = made.refined("train", 0)
    assert refined.shape == stored.shape
    assert 0 < np.linalg.norm(refined - stored) < 0.3 * np.linalg.norm(stored)
    numerics = made.numerics()
    json.dumps(numerics)
    assert all(fine > coarse for fine, coarse in zip(numerics["refined_grid"], numerics["grid"], strict=True))
    assert (numerics["internal_step"] is None) == (numerics["refined_step"] is None)
    if numerics["internal_step"]:
        assert numerics["refined_step"] < numerics["internal_step"]


@pytest.mark.parametrize("family", ["navier_stokes_2d", "shallow_water_2d", "diffusion_reaction_2d"])
def test_frames_do_not_depend_on_how_many_are_stored(family):
    every = next(source(family, frames=5).read("train", 0, 1)).fields
    step = CASES[family]["dt"]
    other = next(source(family, frames=3, dt=2 * step).read("train", 0, 1)).fields
    np.testing.assert_allclose(every[::2], other, atol=2e-3 if family == "shallow_water_2d" else 1e-6)


def test_refining_the_solver_grid_keeps_the_stored_grid_and_the_sample():
    coarse = next(source("navier_stokes_2d", resolution=(32, 32)).read("train", 0, 1)).fields
    fine = next(source("navier_stokes_2d", resolution=(32, 32), parameters={"refine": 2}).read("train", 0, 1)).fields
    assert fine.shape == coarse.shape
    np.testing.assert_allclose(fine, coarse, atol=2e-3 * np.abs(coarse).max())


def test_cells_of_a_refined_grid_are_averaged():
    coarse = next(source("shallow_water_2d", resolution=(32, 32)).read("train", 0, 1)).fields
    fine = next(source("shallow_water_2d", resolution=(32, 32), parameters={"refine": 2}).read("train", 0, 1)).fields
    cell = (5 / 32) ** 2
    assert fine[0].sum() * cell == pytest.approx(coarse[0].sum() * cell, rel=2e-3)
    np.testing.assert_allclose(fine[0], coarse[0], atol=0.3)


def test_each_trajectory_draws_its_own_parameters_from_a_range():
    made = source("navier_stokes_2d", parameters={"viscosity": [1e-3, 1e-2]})
    drawn = [t.parameters["viscosity"] for t in made.read("train", 0, 4)]
    assert len(set(drawn)) == 4
    assert all(1e-3 <= value <= 1e-2 for value in drawn)


def test_a_wider_range_of_one_parameter_leaves_the_rest_of_a_sample_alone():
    fixed = source("navier_stokes_2d", start=0.0)
    varied = source("navier_stokes_2d", start=0.0, parameters={"viscosity": [1e-3, 1e-2]})
    a, b = next(fixed.read("train", 0, 1)), next(varied.read("train", 0, 1))
    assert a.parameters["forcing"] == b.parameters["forcing"]
    np.testing.assert_array_equal(a.fields[0], b.fields[0])


def test_gray_scott_draws_among_its_regimes():
    parameters = CASES["gray_scott_2d"]["parameters"] | {"regimes": ["maze", "spots"]}
    made = source("gray_scott_2d", splits={"train": 16}, parameters=parameters)
    drawn = {(t.parameters["feed"], t.parameters["kill"]) for t in made.read("train", 0, 16)}
    assert drawn == {(0.029, 0.057), (0.03, 0.062)}


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("navier_stoke_2d", {}, ["navier_stoke_2d", "did you mean 'navier_stokes_2d'"]),
        ("navier_stokes_2d", {"parameters": {"viscocity": 1e-3}}, ["viscocity", "did you mean 'viscosity'"]),
        ("navier_stokes_2d", {"parameters": {"viscosity": -1e-3}}, ["viscosity", "> 0", "-0.001"]),
        ("navier_stokes_2d", {"parameters": {"viscosity": [2e-3, 1e-3]}}, ["viscosity", "low <= high"]),
        ("navier_stokes_2d", {"parameters": {"viscosity": "thick"}}, ["viscosity", "a number, or [low, high]"]),
        ("navier_stokes_2d", {"parameters": {"step": 0.0}}, ["step", "greater than 0"]),
        (
            "navier_stokes_2d",
            {"resolution": (64, 64), "parameters": {"step": 0.4}},
            ["parameters.step", "found: 0.3333", "at most 0."],
        ),
        ("navier_stokes_2d", {"resolution": (16,)}, ["resolution", "[16]", "2 numbers", "x, y"]),
        ("navier_stokes_2d", {"resolution": (16, 16, 16)}, ["resolution", "2 numbers"]),
        ("navier_stokes_2d", {"parameters": {"refine": 0}}, ["refine", "greater than or equal to 1"]),
        ("diffusion_reaction_2d", {"parameters": {"step": 0.1}}, ["parameters.step", "found: 0.1", "at most 0.03707"]),
        ("gray_scott_2d", {"parameters": {"step": 5.0}}, ["parameters.step", "found: 5", "at most 2.78"]),
        ("gray_scott_2d", {"parameters": {"regimes": ["mazes"]}}, ["regimes", "maze"]),
        ("gray_scott_2d", {"parameters": {"regimes": []}}, ["regimes", "at least 1"]),
        ("gray_scott_2d", {"parameters": {"blobs": [5, 2]}}, ["blobs", "low <= high"]),
        ("shallow_water_2d", {"parameters": {"courant": 0.8}}, ["courant", "less than or equal to 0.5"]),
        ("shallow_water_2d", {"parameters": {"radius": 3.0}}, ["parameters.radius", "found: 3.0", "below 2.5"]),
        ("burgers_2d", {"parameters": {"modes": 6}}, ["parameters.modes", "found: 6", "at most 4"]),
        ("burgers_2d", {"parameters": {"step": 0.5}}, ["parameters.step", "at most"]),
        # Keys as they stand in the file.
        ("burgers_2d", {"parameters": {"step": 0.5}}, ["key: generate.parameters.step"]),
        ("burgers_2d", {"parameters": {"stp": 0.5}}, ["key: generate.parameters.stp: unknown key"]),
        ("burgers_2d", {"resolution": (16,)}, ["key: generate.resolution"]),
        # Steps without end, which the families that follow the solution would later call a blow-up.
        ("burgers_2d", {"parameters": {"step": 1e-12}}, ["generate.parameters.step", "at most 1000000"]),
        ("burgers_2d", {"dt": 1e308, "frames": 2}, ["generate.dt", "generate.parameters.step", "at most 1000000"]),
        ("smoke_2d", {"parameters": {"step": 1e-12}}, ["generate.parameters.step", "at most 1000000"]),
        ("diffusion_sorption_1d", {"parameters": {"step": 1e-12}}, ["generate.parameters.step", "at most 1000000"]),
        ("wave_2d", {"dt": 1e9}, ["generate.dt", "at most 1000000"]),
        ("shallow_water_2d", {"dt": 1000.0}, ["generate.dt", "generate.parameters.gravity", "at most 10000"]),
        (
            "burgers_shocks_1d",
            {"resolution": (256,), "parameters": {"viscosity": 1000.0}, "dt": 0.1},
            ["generate.dt", "generate.parameters.viscosity", "at most 100000"],
        ),
        # Times that a float cannot tell, grids that no memory holds, trajectories that no list holds.
        ("burgers_2d", {"start": 1.0, "dt": 1e-17}, ["generate.dt", "1e-17", "float64"]),
        ("burgers_2d", {"dt": 1e308, "frames": 9}, ["generate.dt", "1.8e308"]),
        (
            "burgers_2d",
            {"resolution": (2**16, 2**16)},
            ["generate.resolution, generate.parameters.refine", "65536 x 65536", "at most 2147483648"],
        ),
        ("burgers_2d", {"parameters": {"refine": 10**6}}, ["generate.parameters.refine", "at most 2147483648"]),
        ("burgers_2d", {"splits": {"train": 10**9}}, ["generate.splits.train", "1000000000", "at most 100000000"]),
    ],
)
def test_bad_input_is_refused_before_any_work(family, changes, words):
    with pytest.raises(ConfigError) as refused:
        source(family, **changes)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    ("split", "start", "stop", "word"),
    [("valid", 0, 1, "valid"), ("train", 0, 5, "0 .. 4"), ("train", -1, 2, "0 .. 4")],
)
def test_a_range_that_does_not_exist_is_refused(split, start, stop, word):
    with pytest.raises(ConfigError, match=word):
        list(source("burgers_2d").read(split, start, stop))


def test_an_empty_range_yields_nothing():
    assert list(source("burgers_2d").read("train", 2, 2)) == []


def test_a_solution_that_blows_up_is_named(monkeypatch):
    monkeypatch.setattr(FAMILIES["burgers_2d"], "check", lambda *arguments: None)
    made = source("burgers_2d", dt=1.0, parameters={"viscosity": 1e-6})
    with pytest.raises(DataError) as failed:
        list(made.read("test", 2, 4))
    for word in ("burgers_2d", "split test", "trajectory 2", "viscosity = 1e-06", "parameters.step"):
        assert word in str(failed.value)


def test_a_shallow_water_solution_that_blows_up_ends_and_is_nan():
    made = source("shallow_water_2d")
    states = torch.ones(2, 3, 8, 8, dtype=torch.float64)
    states[1, 0, 4, 4] = -1.0
    parameters = {name: torch.ones(2, dtype=torch.float64) for name in made.info.parameters}
    solver = FAMILIES["shallow_water_2d"]((8, 8), made.solver.parameters)
    fields = solver.solve(states, parameters, start=0.0, dt=0.1, frames=3)
    assert torch.isfinite(fields[0]).all()
    assert not torch.isfinite(fields[1, -1]).all()


def test_the_fingerprint_follows_what_decides_the_numbers(monkeypatch):
    plain = source("burgers_2d").fingerprint()
    json.dumps(plain)
    assert plain == source("burgers_2d", parameters={"viscosity": 1e-2}).fingerprint()  # the default, spelled out
    others = [source("burgers_2d", **c).fingerprint() for c in ({"seed": 1}, {"parameters": {"viscosity": 2e-2}})]
    monkeypatch.setattr(FAMILIES["burgers_2d"], "version", 2)
    others.append(source("burgers_2d").fingerprint())
    assert all(other != plain for other in others)


@pytest.mark.parametrize(
    "name", ["navier_stokes_2d", "diffusion_reaction_2d", "shallow_water_2d", "gray_scott_2d", "burgers_2d"]
)
def test_the_configurations_of_the_project_open(name):
    settings = load(DatasetConfig, CONFIGS / f"{name}.yaml")
    assert settings.generate is not None
    opened = SolverSource(settings.name, settings.generate)
    assert opened.info.space == (64, 64)
    assert opened.info.frames >= 20
    assert opened.splits["valid"] == 4


@pytest.mark.parametrize("family", ["navier_stokes_2d", "burgers_2d"])
def test_advection_feeds_no_mode_above_two_thirds(family):
    solver = source(family, resolution=(16, 16)).solver
    parameters = {name: torch.full((1, 1, 1, 1), 0.0, dtype=torch.float64) for name in solver.parameter_names}
    problem = solver.problem(parameters, torch.zeros((), dtype=torch.float64))
    rough = torch.randn(1, len(solver.channels), 16, 16, dtype=torch.float64)
    rate = problem.nonlinear(problem.basis.forward(rough)).abs()
    assert rate[..., :6, 1:6].min() > 0
    assert rate[..., 6:11, :].max() == 0
    assert rate[..., 6:].max() == 0


def test_white_noise_is_drawn_in_the_stored_cells():
    plain = next(source("diffusion_reaction_2d", start=0.0).read("train", 0, 1)).fields[0]
    fine = next(source("diffusion_reaction_2d", start=0.0, parameters={"refine": 2}).read("train", 0, 1)).fields[0]
    np.testing.assert_allclose(fine, plain, atol=1e-6)


def test_a_gpu_that_is_full_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 GiB.")

    made = source("burgers_1d")
    monkeypatch.setattr(made.solver, "solve", full)
    with pytest.raises(PdepotError, match=r"(?s)2 solutions of burgers_1d.*64.00 GiB.*trajectories_per_shard"):
        list(made.read("train", 0, 2))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_torch_without_gpu_is_told_in_words() -> None:
    with pytest.raises(PdepotError, match=r"(?s)no GPU.*generate.device"):
        list(source("burgers_1d", device="cuda").read("train", 0, 1))


@pytest.mark.parametrize("family", ["shallow_water_2d", "burgers_shocks_1d"])
def test_what_follows_the_solution_takes_about_the_estimated_steps(family, monkeypatch):
    """The estimate refuses no sound settings, and lets none through that the solver would call a blow-up."""
    made = source(family)
    estimates, steps = [], []
    monkeypatch.setattr(made.solver, "check_steps", lambda number, *_: estimates.append(number))
    made.solver.check(made.config.start, made.config.dt, made.config.frames)
    states, drawn = zip(*(made.draw("train", number) for number in range(4)), strict=True)
    columns = {key: torch.tensor([one[key] for one in drawn]).double() for key in made.solver.parameter_names}
    evolution = made.solver.begin(torch.stack(states), columns)
    bound = evolution._largest_step
    monkeypatch.setattr(evolution, "_largest_step", lambda: steps.append(1) or bound())
    evolution.advance(made.config.dt)
    assert len(steps) - 1 <= estimates[0] < 20 * len(steps)


def test_the_memory_of_the_refined_run_is_counted():
    """One trajectory on a grid twice as fine is as large as eight, in three dimensions."""
    without, estimated = (source("gray_scott_3d", error_samples=n) for n in (0, 1))
    assert estimated.working_bytes(1) == without.working_bytes(8) == 8 * without.working_bytes(1)
    assert estimated.working_bytes(9) == without.working_bytes(9)
