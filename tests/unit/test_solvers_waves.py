"""Shallow water and waves: what is refused and in which words, samplers, media, compiled steps."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.base.config import build, load
from data_pipeline.base.errors import ConfigError, DataError
from data_pipeline.config import DatasetConfig, GenerateConfig
from data_pipeline.solvers.registry import find_family
from data_pipeline.solvers.source import SolverSource
from tests.solver_cases import CASES

CONFIGS = Path(__file__).parents[2] / "configs" / "data"


def source(family, *, parameters=None, **changes):
    case = CASES[family]
    merged = {"parameters": case.get("parameters", {}) | (parameters or {})}
    content = {"family": family, "seed": 5, "splits": {"train": 6}} | case | changes | merged
    return SolverSource("name", GenerateConfig.model_validate(content))


@pytest.mark.parametrize(
    ("family", "parameters", "words"),
    [
        ("shallow_water_2d", {"outer_height": -0.1}, ["outer_height", "values >= 0", "-0.1"]),
        ("shallow_water_2d", {"inner_height": 0.0}, ["inner_height", "> 0"]),
        ("shallow_water_2d", {"radius": 0.1}, ["parameters.radius", "found: 0.1", "at least 0.2083, half a cell"]),
        ("rotating_shallow_water_2d", {"speed": 3.0}, ["height that varies by", "below the depth, 1"]),
        ("rotating_shallow_water_2d", {"waves": 0.3}, ["height that varies by", "below the depth, 1"]),
        ("rotating_shallow_water_2d", {"waves": 1.5}, ["waves", "shares in 0 .. 1"]),
        ("rotating_shallow_water_2d", {"jet": [-0.5, 0.5]}, ["jet", "shares in 0 .. 1"]),
        (
            "rotating_shallow_water_2d",
            {"hyperviscosity": 1e-9},
            ["hyperviscosity", "found: 1e-09", "at least 1.49e-06"],
        ),
        ("rotating_shallow_water_2d", {"hyperviscosity": -1e-9}, ["hyperviscosity", "> 0"]),
        ("rotating_shallow_water_2d", {"eddies": 7}, ["parameters.eddies", "found: 7", "below 5"]),
        ("rotating_shallow_water_2d", {"step": 0.2}, ["parameters.step", "found: 0.1", "at most 0.09298"]),
        ("wave_2d", {"courant": 1.3}, ["courant", "less than or equal to 1.212"]),
        ("wave_2d", {"speed": -1.0}, ["speed", "> 0"]),
        ("wave_2d", {"layers": [4, 2]}, ["layers", "low <= high"]),
        ("wave_2d", {"bumps": [0, 2]}, ["bumps", "1 <= low <= high"]),
        ("wave_2d", {"medium": "layer"}, ["medium", "layers"]),
        ("wave_2d", {"pulse_width": 0.2}, ["parameters.pulse_width", "found: 0.2", "below 0.125"]),
        ("wave_2d", {"speed": [0.5, 1.5]}, ["too coarse", "a width of 0.0267", "at least a cell, 0.0625"]),
    ],
)
def test_bad_input_is_refused_with_its_bound(family, parameters, words):
    with pytest.raises(ConfigError) as refused:
        source(family, parameters=parameters)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    "name",
    [
        "rotating_shallow_water_2d",
        "wave_2d",
        "published/pdebench_shallow_water_2d",
        "published/poseidon_wave_gauss",
        "published/poseidon_wave_layer",
        "published/rotating_shallow_water_2d_stand_in_for_pdearena",
    ],
)
def test_the_configurations_open(name):
    settings = load(DatasetConfig, CONFIGS / f"{name}.yaml")
    assert settings.name == Path(name).name
    assert settings.generate is not None
    opened = SolverSource(settings.name, settings.generate)
    assert min(opened.info.space) >= (128 if "published" in name else 64)
    if settings.name.startswith("poseidon"):
        assert settings.generate.dt * (settings.generate.frames - 1) == pytest.approx(1)
        assert (opened.info.channels, opened.info.static_channels) == (("displacement",), ("wave_speed",))


@pytest.mark.parametrize("family", ["shallow_water_2d", "wave_2d"])
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_the_compiled_function_is_the_one_that_is_stepped(family, precision, monkeypatch):
    # `kernel` is handed the function that does the work; compiling itself takes too long for this suite.
    made = source(family)
    calls = []

    def kernel(function):
        def counted(*arguments, **named):
            calls.append(function.__name__)
            result = function(*arguments, **named)
            assert all(part.dtype == precision for part in (result if isinstance(result, tuple) else (result,)))
            return result

        return counted

    monkeypatch.setattr(made.solver, "kernel", kernel)
    state, drawn = made.draw("train", 0)
    columns = {name: torch.tensor([value], dtype=torch.float64) for name, value in drawn.items()}
    made.solver.begin(state[None].to(precision), columns).advance(0.05)
    assert len(calls) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("family", ["shallow_water_2d", "wave_2d"])
def test_a_compiled_solver_gives_the_same_numbers_to_rounding(family):
    plain, compiled = (list(source(family, compile=flag).read("train", 0, 2)) for flag in (False, True))
    for a, b in zip(plain, compiled, strict=True):
        np.testing.assert_allclose(a.fields, b.fields, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "option", "names"),
    [
        ("shallow_water_2d", "velocity", ("height", "velocity_x", "velocity_y")),
        ("rotating_shallow_water_2d", "vorticity", ("height", "velocity_x", "velocity_y", "vorticity")),
        ("wave_2d", "rate", ("displacement", "displacement_rate")),
    ],
)
def test_more_channels_on_request_leave_the_others_alone(family, option, names):
    plain, more = source(family), source(family, parameters={option: True})
    assert more.info.channels == names
    a, b = (next(made.read("train", 0, 1)).fields for made in (plain, more))
    assert b.shape[-1] == len(names)
    np.testing.assert_array_equal(a, b[..., : a.shape[-1]])
    assert np.abs(b[1:, ..., a.shape[-1] :]).max() > 0


def test_stored_vorticity_is_the_curl_of_the_stored_velocity():
    fields = next(source("rotating_shallow_water_2d", parameters={"vorticity": True}).read("train", 0, 1)).fields
    u, v, zeta = (fields[-1, ..., channel].astype(np.float64) for channel in (1, 2, 3))
    k = 2j * np.pi * np.fft.fftfreq(16, 1 / 16)
    curl = np.fft.ifft2(k[:, None] * np.fft.fft2(v) - k * np.fft.fft2(u)).real
    np.testing.assert_allclose(zeta, curl, atol=1e-4)


@pytest.mark.parametrize("parameters", [{"outer_height": 0.0}, {"outer_height": [0.0, 0.5], "velocity": True}])
def test_a_dry_bed_does_not_depend_on_the_batch(parameters):
    made = source("shallow_water_2d", parameters=parameters)
    together = [t.fields for t in made.read("train", 0, 3)]
    for number, fields in enumerate(together):
        np.testing.assert_array_equal(next(made.read("train", number, number + 1)).fields, fields)
        assert fields[..., 0].min() >= 0


def test_an_impossible_height_is_not_committed(monkeypatch):
    made = source("rotating_shallow_water_2d")
    assert made.solver.fault(np.ones((3, 4, 4, 3), np.float32)) is None
    fields = np.ones((3, 4, 4, 3), np.float32)
    fields[2, 1, 1, 0] = -0.5
    assert made.solver.fault(fields) == (2, "a height of -0.5")
    assert source("shallow_water_2d").solver.fault(fields) == (2, "a height of -0.5")
    monkeypatch.setattr(made.solver, "fault", lambda fields: (1, "a height of -0.5"))
    with pytest.raises(DataError, match=r"frame 1[\s\S]*a height of -0\.5"):
        next(made.read("train", 0, 1))


def test_a_rotating_flow_uses_what_was_drawn():
    made = source("rotating_shallow_water_2d", parameters={"speed": [0.05, 0.15], "coriolis": [6.0, 12.0]})
    drawn = [made.draw("train", number)[1] for number in range(6)]
    assert len({one["speed"] for one in drawn}) == 6
    assert all(6 <= one["coriolis"] <= 12 and 0.05 <= one["speed"] <= 0.15 for one in drawn)


def test_layers_are_the_same_medium_on_every_grid():
    kind = find_family("wave_2d")
    means = []
    for n in (32, 64, 256):
        solver = kind((n, n), build(kind.parameters_class, {}))
        speed = solver.draw_state(np.random.default_rng(7), {})[1]
        means.append((speed**-2).reshape(32, n // 32, 32, n // 32).mean((1, 3)))
    torch.testing.assert_close(means[0], means[2], rtol=1e-12, atol=0)
    torch.testing.assert_close(means[1], means[2], rtol=1e-12, atol=0)


@pytest.mark.parametrize("medium", ["layers", "bumps"])
def test_the_stored_speed_is_that_of_the_finer_grid(medium):
    changes = {"resolution": (64, 64), "frames": 2, "dt": 1e-3}
    parameters = {"speed": [0.5, 0.9], "medium": medium}
    speeds = [
        next(source("wave_2d", **changes, parameters=parameters | {"refine": refine}).read("train", 0, 1)).static
        for refine in (1, 2)
    ]
    assert speeds[0].std() > 0.01
    np.testing.assert_allclose(speeds[0], speeds[1], rtol=1e-6 if medium == "layers" else 2e-3)


def test_pulses_do_not_depend_on_the_medium():
    a, b = (source("wave_2d", parameters={"medium": medium}).draw("train", 1)[0] for medium in ("layers", "bumps"))
    torch.testing.assert_close(a[0], b[0], rtol=0, atol=0)
    assert not torch.equal(a[1], b[1])
