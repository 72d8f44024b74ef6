"""The compressible families: bad input, positivity, steps that fail, starts that are the same on every grid."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.base.config import build, load
from data_pipeline.base.errors import ConfigError, DataError
from data_pipeline.config import DatasetConfig, GenerateConfig
from data_pipeline.solvers.families import compressible
from data_pipeline.solvers.numerics.gas import Gas, euler_step, is_sound, to_conserved, to_primitive, wave_rate
from data_pipeline.solvers.numerics.sine_modes import at_cells, draw_modes, oblique_modes, solenoidal
from data_pipeline.solvers.registry import find_family
from data_pipeline.solvers.source import SolverSource

CONFIGS = Path(__file__).parents[2] / "configs" / "data"
DRAWN = {
    "density": 1.5,
    "temperature": 0.8,
    "mach_number": 1.0,
    "gamma": 5 / 3,
    "shear_viscosity": 0.0,
    "bulk_viscosity": 0.0,
}


def solver(family, grid, **parameters):
    kind = find_family(family)
    return kind(grid, build(kind.parameters_class, parameters))


def columns(batch, **values):
    return {key: torch.full((batch,), float(value), dtype=torch.float64) for key, value in (DRAWN | values).items()}


def source(axes, resolution, **parameters):
    content = {"family": f"compressible_{axes}d", "resolution": resolution, "frames": 3, "dt": 0.05, "seed": 1}
    return SolverSource(
        "gas", GenerateConfig.model_validate(content | {"splits": {"train": 4}, "parameters": parameters})
    )


@pytest.mark.parametrize(
    ("axes", "resolution", "parameters", "words"),
    [
        (2, (64, 64), {"shear_viscosity": -1e-3}, ["shear_viscosity", ">= 0", "-0.001"]),
        (2, (64, 64), {"bulk_viscosity": [-1.0, 1.0]}, ["bulk_viscosity", ">= 0"]),
        (2, (64, 64), {"mach_number": -0.1}, ["mach_number", ">= 0"]),
        (2, (64, 64), {"density": 0.0}, ["density", "> 0"]),
        (2, (64, 64), {"temperature": [-1, 1]}, ["temperature", "> 0"]),
        (2, (64, 64), {"gamma": 1.0}, ["gamma", "> 1"]),
        (2, (64, 64), {"contrast": [0.1, 1.0]}, ["contrast", "< 1", "positive"]),
        (2, (64, 64), {"courant": 0.6}, ["courant", "less than or equal to 0.5"]),
        (2, (64, 64), {"boundary": "wall"}, ["boundary", "periodic", "open"]),
        (2, (64, 64), {"initial": "shock"}, ["initial", "turbulence"]),
        (2, (64, 64), {"modes": 0}, ["modes", "greater than or equal to 1"]),
        (2, (64, 64), {"windowed": 1.5}, ["windowed", "less than or equal to 1"]),
        (2, (64, 24), {}, ["resolution", "found: 24", "at least 32 cells", "8 for each of 4 waves"]),
        (3, (32, 32, 32), {"modes": 5}, ["resolution", "found: 32", "at least 40 cells"]),
        (2, (32, 16), {"refine": 1}, ["at least 32 cells"]),
        (3, (32, 32), {}, ["resolution", "3 numbers", "x, y, z"]),
        (1, (32,), {}, ["resolution", "found: 32", "at least 64 cells", "8 for each of 8 waves"]),
        (1, (32,), {"initial": "shock"}, ["resolution", "at least 64 cells", "shock tube"]),
        (
            2,
            (512, 512),
            {"shear_viscosity": 10.0},
            ["parameters.shear_viscosity", "steps for one frame", "at most 100000", "shorter dt"],
        ),
        (2, (512, 512), {"mach_number": 1e4}, ["mach_number", "steps for one frame", "at most 100000"]),
        (1, (1024,), {"density": 1e-9, "bulk_viscosity": 1e-3}, ["density", "steps for one frame"]),
    ],
)
def test_bad_input_is_refused_before_any_work(axes, resolution, parameters, words):
    with pytest.raises(ConfigError) as refused:
        source(axes, resolution, **parameters)
    for word in words:
        assert word in str(refused.value)


def test_every_configuration_opens():
    paths = sorted(CONFIGS.rglob("*compressible*.yaml"))
    assert len(paths) == 18
    for path in paths:
        settings = load(DatasetConfig, path)
        assert settings.name == path.stem
        made = SolverSource(settings.name, settings.generate)
        assert made.info.frames >= 11
        assert "periodic" in path.stem or "open" not in path.stem or made.info.boundaries == ("open",)


def test_refining_lifts_a_grid_that_is_too_coarse():
    assert source(2, (16, 16), refine=2).solver.grid == (32, 32)


@pytest.mark.parametrize(
    ("axes", "settings"),
    [
        (1, {"resolution": (1024,), "dt": 0.01, "shear_viscosity": 0.1}),
        (2, {"resolution": (128, 128), "dt": 0.05, "shear_viscosity": 0.1}),
        (2, {"resolution": (512, 512), "dt": 0.05, "shear_viscosity": 1e-8}),
        (3, {"resolution": (128, 128, 128), "dt": 0.05, "shear_viscosity": 1e-8}),
    ],
)
def test_the_published_settings_are_not_refused(axes, settings):
    checked = solver(
        f"compressible_{axes}d",
        settings["resolution"],
        shear_viscosity=settings["shear_viscosity"],
        bulk_viscosity=settings["shear_viscosity"],
    )
    checked.check(0.0, settings["dt"], 21)


def test_the_estimate_of_the_steps_is_above_what_a_sample_needs(monkeypatch):
    made = solver("compressible_2d", (32, 32), shear_viscosity=0.05, bulk_viscosity=0.05, density=1.0, temperature=1.0)
    taken = []
    monkeypatch.setattr(compressible, "wave_rate", lambda *args: taken.append(1) or wave_rate(*args))
    state = made.draw_state(np.random.default_rng(0), DRAWN)
    evolution = made.begin(state[None], columns(1, shear_viscosity=0.05, bulk_viscosity=0.05))
    evolution.advance(0.05)
    assert 0.1 * made.most_steps(0.05) < len(taken) < made.most_steps(0.05)


def rough(axes, n, dtype, seed):
    """Near-vacuum and dense cells side by side, each with a velocity up to ten times its speed of sound."""
    rng = np.random.default_rng(seed)
    grid = (2, 1, *(n,) * axes)
    density, pressure = (torch.from_numpy(10 ** rng.uniform(-5, 1, grid)) for _ in range(2))
    speed = 10 * (5 / 3 * pressure / density).sqrt()
    velocity = torch.from_numpy(rng.uniform(-1, 1, (2, axes, *(n,) * axes))) * speed / axes**0.5
    return torch.cat([density, velocity, pressure], dim=1).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("axes", "n"), [(1, 48), (2, 10), (3, 5)])
@pytest.mark.parametrize("viscosity", [0.0, 1e-3])
def test_density_and_pressure_stay_positive_from_hard_starts(axes, n, dtype, viscosity):
    made = solver(f"compressible_{axes}d", (n,) * axes, courant=0.5)
    for seed in range(2):
        state = rough(axes, n, dtype, seed)
        evolution = made.begin(state, columns(2, shear_viscosity=viscosity, bulk_viscosity=viscosity))
        mass = evolution.state[:, 0].double().flatten(1).sum(1)
        for _ in range(5):
            step = made.parameters.courant / wave_rate(evolution.state, evolution.gas, made.spacing)
            evolution.advance(float(step.min()))
        found = evolution.fields()
        assert found.dtype == dtype
        assert bool(is_sound(evolution.state).all())
        assert float(found[:, [0, -1]].min()) > 0
        close = 1e-12 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(evolution.state[:, 0].double().flatten(1).sum(1), mass, rtol=close, atol=0)


def test_a_jet_at_mach_ten_stays_positive():
    made = solver("compressible_2d", (32, 16), boundary="open", shear_viscosity=0.0, bulk_viscosity=0.0)
    x, y = made.coordinates()
    beam = ((y - 0.5).abs() < 0.15) & (x < 0.3)
    state = torch.stack([torch.where(beam, 0.1, 1.0), torch.where(beam, 40.0, 0.0), 0 * x, torch.ones_like(x)])
    evolution = made.begin(state[None], columns(1))
    evolution.advance(0.02)
    found = evolution.fields()
    assert float(found[:, [0, -1]].min()) > 0
    assert float(found[:, 0].max()) > 2  # the bow shock


def test_faces_of_marked_cells_get_the_first_order_flux():
    gas = Gas(*(torch.full((1, 1, 1), value, dtype=torch.float64) for value in (1.4, 0.0, 0.0)))
    x = torch.arange(16).double()
    state = to_conserved(torch.stack([2 + torch.sin(x), 0.3 * torch.cos(x), 2 + torch.cos(2 * x)])[None], gas.gamma)
    step = torch.full((1, 1, 1), 0.01, dtype=torch.float64)
    plain, marks = euler_step(state, step, gas, (1.0,), "circular"), torch.ones(1, 1, 16).double()
    torch.testing.assert_close(euler_step(state, step, gas, (1.0,), "circular", marks), plain, rtol=0, atol=0)
    marks[0, 0, 5] = 0
    other = euler_step(state, step, gas, (1.0,), "circular", marks)
    assert (other != plain).any(1)[0].nonzero().flatten().tolist() == [4, 5, 6]
    torch.testing.assert_close(other.sum(2), plain.sum(2), rtol=1e-13, atol=1e-13)
    first = euler_step(state, step, gas, (1.0,), "circular", 0 * marks)
    torch.testing.assert_close(other[..., 5], first[..., 5], rtol=0, atol=0)


def test_a_sample_that_is_lost_ends_as_nan_and_leaves_the_other_alone(monkeypatch):
    made = solver("compressible_1d", (64,))
    good = made.draw_state(np.random.default_rng(0), DRAWN)
    bad = good.clone()
    bad[2, 10] = -1.0
    both = made.solve(torch.stack([good, bad]), columns(2), start=0.0, dt=0.01, frames=2)
    alone = made.solve(good[None], columns(1), start=0.0, dt=0.01, frames=2)
    assert torch.equal(both[0], alone[0])
    assert both[1, 1].isnan().all()
    monkeypatch.setattr(compressible, "LARGEST_STEPS", 3)
    assert made.solve(good[None], columns(1), start=0.0, dt=0.1, frames=2)[0, 1].isnan().all()


def test_a_negative_density_or_pressure_is_a_fault():
    made = solver("compressible_1d", (64,))
    fields = np.ones((3, 8, 3), dtype=np.float32)
    fields[..., 1] = -1
    assert made.fault(fields) is None
    fields[2, 4, 2] = -0.5
    assert made.fault(fields) == (2, "density or pressure -0.5")


def test_a_lost_trajectory_is_named(monkeypatch):
    monkeypatch.setattr(compressible, "LARGEST_STEPS", 100_000)
    made = source(1, (64,), shear_viscosity=0.0)
    monkeypatch.setattr(compressible, "LARGEST_STEPS", 2)
    with pytest.raises(DataError, match="compressible_1d"):
        list(made.read("train", 0, 1))


@pytest.mark.parametrize(
    ("family", "grid", "parameters"),
    [
        ("compressible_1d", (128,), {}),
        ("compressible_1d", (128,), {"windowed": 1.0, "rectified": 1.0}),
        ("compressible_2d", (32, 40), {}),
        ("compressible_2d", (32, 40), {"initial": "turbulence"}),
        ("compressible_3d", (16, 24, 16), {"modes": 2}),
    ],
)
def test_a_start_is_the_same_function_on_every_grid(family, grid, parameters):
    """A grid three times as fine has the centres of the coarse cells among its own."""
    coarse = solver(family, grid, **parameters).draw_state(np.random.default_rng(7), DRAWN)
    fine = solver(family, grid, **parameters, refine=3).draw_state(np.random.default_rng(7), DRAWN)
    middle = (slice(None), *[slice(1, None, 3)] * len(grid))
    torch.testing.assert_close(coarse, fine[middle], rtol=1e-9, atol=1e-9)


def test_stored_values_are_those_of_the_mean_mass_momentum_and_energy():
    made = solver("compressible_2d", (16, 16), refine=2, modes=2, windowed=0.0)
    state = made.draw_state(np.random.default_rng(1), DRAWN)
    gamma = torch.tensor(5 / 3, dtype=torch.float64)
    stored = made.begin(state[None], columns(1)).fields()
    assert stored.shape == (1, 4, 16, 16)
    means = to_conserved(state[None], gamma).reshape(4, 16, 2, 16, 2).mean((2, 4))
    torch.testing.assert_close(to_conserved(stored, gamma)[0], means, rtol=1e-13, atol=1e-13)


def test_conversions_are_inverse():
    state = rough(3, 4, torch.float64, 0)
    torch.testing.assert_close(
        to_primitive(to_conserved(state, DRAWN["gamma"]), DRAWN["gamma"]), state, rtol=1e-9, atol=0
    )


def test_modes_become_the_sines_they_stand_for():
    modes = oblique_modes(2, 2)
    assert len(modes) == 16
    amplitudes = draw_modes(np.random.default_rng(0), modes, 1, power=0.5)
    x, y = (np.arange(12) + 0.5) / 12, (np.arange(10) + 0.5) / 10
    waves = 2 * np.pi * (modes[:, 0, None, None] * x[:, None] + modes[:, 1, None, None] * y)
    phases, sizes = amplitudes[0].angle().numpy(), np.linalg.norm(modes, axis=1) ** -0.5
    expected = (sizes[:, None, None] * np.sin(waves + phases[:, None, None])).sum(0)
    np.testing.assert_allclose(at_cells(amplitudes, modes, (12, 10))[0], expected, atol=1e-12)


def test_the_solenoidal_part_has_no_component_along_its_wavevector():
    modes = oblique_modes(3, 2)
    part = solenoidal(draw_modes(np.random.default_rng(0), modes, 3, power=2.0), modes)
    k = torch.from_numpy(modes).T.double()
    assert float((k * part).sum(0).abs().max()) < 1e-12
    torch.testing.assert_close(solenoidal(part, modes), part)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_compiled_steps_give_the_same_numbers(dtype):
    with torch.inference_mode():
        found = []
        for compiled in (False, True):
            made = solver("compressible_2d", (32, 32), shear_viscosity=1e-3)
            made.compile = compiled
            state = made.draw_state(np.random.default_rng(0), DRAWN)[None].to(dtype)
            found.append(made.solve(state, columns(1, shear_viscosity=1e-3), start=0.0, dt=0.05, frames=2))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)
