"""Turbulence in three dimensions: what is refused, and how it is drawn."""

import numpy as np
import pytest
import torch

from data_pipeline.base.config import load
from data_pipeline.base.errors import ConfigError
from data_pipeline.config import DatasetConfig
from data_pipeline.solvers.families.navier_stokes_3d import NavierStokes3D, NavierStokes3DParameters
from data_pipeline.solvers.numerics.basis import FourierBasis
from data_pipeline.solvers.source import SolverSource
from tests.unit.test_solvers_source import CONFIGS, source

FAMILY = "navier_stokes_3d"


def solver(n=18, **parameters):
    return NavierStokes3D((n, n, n), NavierStokes3DParameters.model_validate(parameters))


def divergence(velocity):
    basis = FourierBasis(tuple(velocity.shape[1:]), (1.0,) * 3, velocity)
    parts = zip(basis.derivatives, basis.forward(velocity), strict=True)
    return basis.inverse(sum(derivative * component for derivative, component in parts))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parameters": {"viscosity": -0.1}}, ["viscosity", "> 0"]),
        ({"parameters": {"speed": 0.0}}, ["speed", "> 0"]),
        ({"parameters": {"peak": 0.5}}, ["peak", "greater than or equal to 1"]),
        ({"parameters": {"initial": "abc"}}, ["initial", "taylor_green"]),
        ({"resolution": (16, 16)}, ["resolution", "3 numbers", "x, y, z"]),
        ({"parameters": {"viscosity": 0.1, "step": 0.1}}, ["parameters.step", "found: 0.1", "at most 0.088"]),
        ({"parameters": {"viscosity": 0.1, "step": 0.05, "speed": 2}}, ["parameters.step", "at most 0.044"]),
        (
            {"parameters": {"viscosity": [0.02, 0.1], "step": 0.05}},
            ["resolution", "smallest eddies", "up to 5", "at least 37 points", "viscosity 0.02 and speed 1"],
        ),
        (
            {"parameters": {"viscosity": 0.5, "peak": 3, "step": 0.05}},
            ["resolution", "initial field", "at least 25 points"],
        ),
        ({"resolution": (32, 32, 12), "parameters": {"viscosity": 0.1, "step": 0.02}}, ["resolution", "up to 3"]),
    ],
)
def test_bad_input_is_refused_with_its_bound(changes, words):
    with pytest.raises(ConfigError) as refused:
        source(FAMILY, **changes)
    for word in words:
        assert word in str(refused.value)


def test_a_random_start_is_solenoidal_with_the_speed_asked_for_on_every_grid():
    states = [solver(n).draw_state(np.random.default_rng(7), {"speed": 1.7}) for n in (18, 36)]
    torch.testing.assert_close(states[1][:, ::2, ::2, ::2], states[0], rtol=0, atol=1e-12)
    for state in states:
        assert float(state.square().sum(0).mean().sqrt()) == pytest.approx(1.7, rel=1e-12)
        assert float(divergence(state).abs().max()) < 1e-11
        assert float(state.mean((1, 2, 3)).abs().max()) < 1e-12


def test_the_components_of_random_starts_are_alike():
    shares = []
    for number in range(40):
        state = solver(peak=1.2).draw_state(np.random.default_rng(number), {"speed": 1.0})
        shares.append(state.square().mean((1, 2, 3)))
    torch.testing.assert_close(torch.stack(shares).mean(0), torch.full((3,), 1 / 3).double(), rtol=0, atol=0.05)


def test_vortices_of_taylor_and_green_have_the_speed_asked_for_and_a_random_origin():
    family = solver(initial="taylor_green")
    first, second = (family.draw_state(np.random.default_rng(n), {"speed": 0.5}) for n in (0, 1))
    for state in (first, second):
        assert float(state.square().sum(0).mean()) == pytest.approx(0.25, rel=1e-12)
        assert float(divergence(state).abs().max()) < 1e-12
        assert float(state[2].abs().max()) == 0
    assert not torch.allclose(first, second)


def test_a_wider_range_of_viscosity_leaves_the_start_alone():
    changes = {"step": 0.05, "viscosity": [0.1, 0.2]}
    fixed, varied = source(FAMILY), source(FAMILY, parameters=changes)
    torch.testing.assert_close(varied.draw("train", 2)[0], fixed.draw("train", 2)[0], rtol=0, atol=0)
    drawn = [varied.draw("train", number)[1]["viscosity"] for number in range(4)]
    assert len(set(drawn)) == 4
    assert all(0.1 <= value <= 0.2 for value in drawn)


def test_the_solver_leaves_its_initial_state_alone():
    family = solver(viscosity=0.1)
    initial = family.draw_state(np.random.default_rng(0), {"speed": 1.0})[None]
    kept = initial.clone()
    parameters = {name: torch.full((1,), 0.1, dtype=torch.float64) for name in family.parameter_names}
    family.solve(initial, parameters, start=0.0, dt=0.05, frames=2)
    torch.testing.assert_close(initial, kept, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["navier_stokes_3d", "published/taylor_green_3d"])
def test_the_configurations_open(name):
    settings = load(DatasetConfig, CONFIGS / f"{name}.yaml")
    assert settings.generate is not None
    opened = SolverSource(settings.name, settings.generate)
    assert opened.info.channels == ("velocity_x", "velocity_y", "velocity_z")
