"""The families of two-dimensional incompressible flow, and two-dimensional Burgers: what they draw and refuse."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.base.config import load
from data_pipeline.base.errors import ConfigError
from data_pipeline.config import DatasetConfig, GenerateConfig
from data_pipeline.solvers.families.vorticity import Advection
from data_pipeline.solvers.numerics.basis import FourierBasis
from data_pipeline.solvers.numerics.etd import ETDRK4
from data_pipeline.solvers.source import SolverSource
from tests.solver_cases import CASES

CONFIGS = Path(__file__).parents[2] / "configs" / "data"


def source(family: str, **changes: object) -> SolverSource:
    content = {"family": family, "seed": 5, "splits": {"train": 4}} | CASES[family] | changes
    return SolverSource("name", GenerateConfig.model_validate(content))


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        (
            "navier_stokes_2d",
            {"resolution": (64, 64), "frames": 20, "dt": 1.0, "parameters": {"viscosity": 1e-5}},
            ["too coarse for a viscosity of 1e-05", "k_max sqrt(nu / w) = 0.3", "at least 0.5", "parameters.refine"],
        ),
        ("navier_stokes_2d", {"parameters": {"force": "fnoo"}}, ["force", "fnoo", "symmetric"]),
        ("navier_stokes_2d", {"parameters": {"step": 10.0}, "dt": 10.0}, ["parameters.step", "at most"]),
        ("kolmogorov_2d", {"parameters": {"wavenumber": 4}}, ["parameters.wavenumber", "found: 4", "at most 3"]),
        ("kolmogorov_2d", {"parameters": {"wavenumber": 0}}, ["wavenumber", "greater than or equal to 1"]),
        ("kolmogorov_2d", {"parameters": {"drag": -0.1}}, ["drag", ">= 0"]),
        ("kolmogorov_2d", {"parameters": {"reynolds": [0, 10]}}, ["reynolds", "> 0"]),
        (
            "kolmogorov_2d",
            {"parameters": {"wavenumber": 2, "reynolds": 1000}},
            ["too coarse for a viscosity of 0.001", "at least 0.5"],
        ),
        (
            "kolmogorov_2d",
            {"parameters": {"wavenumber": 2, "reynolds": 10, "step": 1.0}, "dt": 1.0},
            ["parameters.step", "found: 1", "at most"],
        ),
        ("decaying_turbulence_2d", {"parameters": {"viscosity": 0.0}}, ["viscosity", "> 0"]),
        ("decaying_turbulence_2d", {"parameters": {"viscosity": 1e-6}}, ["too coarse", "at least 0.5"]),
        ("decaying_turbulence_2d", {"parameters": {"length": 0.0}}, ["length", "greater than 0"]),
        ("decaying_turbulence_2d", {"parameters": {"spectrum": "white"}}, ["spectrum", "mcwilliams"]),
        (
            "decaying_turbulence_2d",
            {"parameters": {"spectrum": "mcwilliams"}},
            ["parameters.peak", "found: 6", "at most 1.5, a sixth"],
        ),
        (
            "decaying_turbulence_2d",
            {"parameters": {"speed": 20.0, "viscosity": 1.0, "step": 0.1}},
            ["parameters.step", "found: 0.1", "at most"],
        ),
        (
            "burgers_2d",
            {"parameters": {"viscosity": 1e-3}},
            ["too coarse for the fronts", "speed h / nu = 35.7", "at most 4: 125 points"],
        ),
    ],
)
def test_bad_input_is_refused_before_any_work(family, changes, words):
    start = 0.0 if changes.get("resolution") else CASES[family].get("start", 0.0)
    with pytest.raises(ConfigError) as refused:
        source(family, **{"start": start} | changes)
    for word in words:
        assert word in str(refused.value)


def band_limited(n: int, largest: int) -> torch.Tensor:
    """A random field (1, 1, n, n) of modes up to `largest` along each axis."""
    hat = torch.zeros(n, n // 2 + 1, dtype=torch.complex128)
    k = np.r_[0 : largest + 1, -largest:0]
    hat[k[:, None], np.arange(largest + 1)] = torch.randn(len(k), largest + 1, dtype=torch.complex128)
    hat[0, 0] = 0
    return torch.fft.irfft2(hat, s=(n, n))[None, None]


def test_basdevants_form_is_the_advection_of_what_the_rule_keeps():
    n = 24
    vorticity = band_limited(n, (n - 1) // 3)
    basis = FourierBasis((n, n), (1.0, 2.0), vorticity)
    dx, dy = basis.derivatives
    hat = basis.forward(vorticity)
    psi = torch.where(basis.laplacian == 0, 0.0, -1 / basis.laplacian) * hat
    u, v, w_x, w_y = (basis.inverse(part) for part in (dy * psi, -dx * psi, dx * hat, dy * hat))
    expected = -basis.dealias * basis.forward(u * w_x + v * w_y)
    found = Advection(basis, None)(hat)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))
    force = torch.full_like(hat, 2.0 - 1.0j)
    torch.testing.assert_close(Advection(basis, force)(hat), found + force)


def test_modes_above_the_rule_neither_move_nor_are_moved():
    n = 24
    low = band_limited(n, (n - 1) // 3)
    x = torch.arange(n, dtype=torch.float64) / n
    high = torch.cos(2 * math.pi * 10 * x)[:, None] * torch.ones(n, dtype=torch.float64)
    basis = FourierBasis((n, n), (1.0, 1.0), low)
    advection = Advection(basis, None)
    torch.testing.assert_close(advection(basis.forward(low + high)), advection(basis.forward(low)))


def test_a_real_operator_on_complex_coefficients_is_stepped_as_a_complex_one():
    linear = -torch.rand(3, 1, 5, 4, dtype=torch.float64)
    state = torch.randn(3, 1, 5, 4, dtype=torch.complex128)
    before = state.clone()
    pairs = ETDRK4(linear, lambda u: u**2, 0.1).step(state)
    whole = ETDRK4(linear.to(torch.complex128), lambda u: u**2, 0.1).step(state)
    torch.testing.assert_close(pairs, whole)
    assert torch.equal(state, before)
    real = ETDRK4(linear, lambda u: u**2, 0.1).step(state.real)
    torch.testing.assert_close(real, ETDRK4(linear, lambda u: u**2, 0.1).step(state.real + 0j).real)


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("grid", [(16, 16), (15, 13), (18, 14)])
def test_a_sample_is_the_same_beside_equal_and_other_viscosities(grid, precision):
    made = source("navier_stokes_2d", resolution=grid, precision=precision)
    states = torch.stack([made.draw("train", number)[0] for number in range(4)]).to(getattr(torch, precision))

    def solve(rows: list[int], viscosities: list[float]) -> torch.Tensor:
        columns = {"viscosity": torch.tensor(viscosities).double(), "forcing": torch.full((len(rows),), 0.1).double()}
        with torch.inference_mode():
            return made.solver.solve(states[rows], columns, start=0.0, dt=0.5, frames=3)

    alone = solve([1], [1e-3])[0]
    rounding = 100 * torch.finfo(torch.float32).eps * float(alone.abs().max())  # stored in float32
    for fields in (solve([0, 1, 2], [1e-3] * 3)[1], solve([3, 0, 1], [2e-3, 5e-3, 1e-3])[2]):
        torch.testing.assert_close(fields, alone, rtol=0, atol=rounding)


def test_the_random_force_is_stored_and_is_the_same_on_a_finer_grid():
    made = source("navier_stokes_2d", parameters={"force": "random", "forcing": [0.1, 0.2]})
    assert made.info.static_channels == ("force",)
    first, second = made.read("train", 0, 2)
    assert first.static is not None
    assert second.static is not None
    assert first.static.shape == (16, 12, 1)
    assert not np.array_equal(first.static, second.static)
    fine = source("navier_stokes_2d", parameters={"force": "random", "forcing": [0.1, 0.2], "refine": 3})
    again = next(fine.read("train", 0, 1))
    assert again.static is not None
    np.testing.assert_allclose(again.static, first.static, atol=1e-6)
    state, parameters = made.draw("train", 0)
    np.testing.assert_allclose(first.static[..., 0], state[1], atol=1e-6)
    assert state[1].abs().max() < 12 * parameters["forcing"] * math.sqrt(2)
    assert abs(float(state[1].mean())) < 1e-12


def test_forces_that_are_formulas_are_not_stored():
    for force in ("fno", "symmetric"):
        assert source("navier_stokes_2d", parameters={"force": force}).info.static_channels == ()


@pytest.mark.parametrize("spectrum", ["gaussian", "mcwilliams"])
def test_decaying_turbulence_starts_from_the_same_field_on_every_grid(spectrum):
    parameters = {"spectrum": spectrum, "peak": 1.5, "viscosity": 1e-2, "speed": [0.1, 0.3]}
    coarse, fine = (
        source("decaying_turbulence_2d", parameters=parameters | {"refine": refine}).draw("train", 2)
        for refine in (1, 3)
    )
    assert coarse[1] == fine[1]
    torch.testing.assert_close(fine[0][:, ::3, ::3], coarse[0])


def test_only_flows_without_a_fixed_force_are_translation_invariant():
    assert source("decaying_turbulence_2d").info.translation_invariant
    assert not source("kolmogorov_2d").info.translation_invariant
    assert not source("navier_stokes_2d").info.translation_invariant
    assert source("navier_stokes_2d", parameters={"forcing": 0.0}).info.translation_invariant


def test_the_box_of_decaying_turbulence_is_its_length():
    made = source("decaying_turbulence_2d", parameters={"length": 2.5, "viscosity": 1e-2})
    assert made.info.extent == ((0.0, 2.5), (0.0, 2.5))


@pytest.mark.parametrize(
    "name",
    [
        "kolmogorov_2d",
        "decaying_vortices_2d",
        "published/fno_navier_stokes_1e-3",
        "published/fno_navier_stokes_1e-4",
        "published/fno_navier_stokes_1e-5",
        "published/gfno_navier_stokes_symmetric",
        "published/ffno_torus_vis",
        "published/factformer_kolmogorov",
        "published/pino_kolmogorov",
        "published/spectral_refiner_mcwilliams",
        "published/apebench_decaying_turbulence",
    ],
)
def test_the_configurations_open(name):
    settings = load(DatasetConfig, CONFIGS / f"{name}.yaml")
    assert settings.generate is not None
    assert settings.name == Path(name).name
    assert SolverSource(settings.name, settings.generate).splits["train"] > 0
