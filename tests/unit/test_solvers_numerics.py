"""The numerical pieces that the solvers share."""

import math

import numpy as np
import pytest
import torch

from data_pipeline.solvers.numerics.basis import CosineBasis, FourierBasis
from data_pipeline.solvers.numerics.etd import ETDRK4
from data_pipeline.solvers.numerics.finite_volume import face_states, monotonized_central
from data_pipeline.solvers.numerics.random_field import gaussian_field, vorticity_amplitude
from data_pipeline.solvers.randomness import generator
from data_pipeline.solvers.semilinear import substeps

LIKE = torch.zeros((), dtype=torch.float64)


def plane(*grid: int, lengths: tuple[float, ...], offset: float) -> list[torch.Tensor]:
    lines = [
        (torch.arange(n, dtype=torch.float64) + offset) * length / n for n, length in zip(grid, lengths, strict=True)
    ]
    return list(torch.meshgrid(*lines, indexing="ij"))


@pytest.mark.parametrize("grid", [(16,), (12, 15), (8, 6, 10)])
@pytest.mark.parametrize("kind", [FourierBasis, CosineBasis])
def test_inverse_undoes_forward(kind, grid):
    values = torch.randn(2, 3, *grid, dtype=torch.float64)
    basis = kind(grid, (1.0,) * len(grid), LIKE)
    torch.testing.assert_close(basis.inverse(basis.forward(values)), values)


@pytest.mark.parametrize("precision", [torch.float64, torch.float32])
@pytest.mark.parametrize("grid", [(16, 16), (15, 13), (48, 48), (8192,), (12, 8, 10)])
def test_a_transform_is_the_same_alone_and_among_others(grid, precision):
    values = torch.randn(3, 1, *grid, dtype=precision)
    basis = FourierBasis(grid, (1.0,) * len(grid), values)
    coefficients = basis.forward(values)
    back = basis.inverse(coefficients)
    # Equal to the bit with the FFTs and on the processors tried; others may round an odd one out differently.
    few = 8 * torch.finfo(precision).eps
    for row in range(3):
        alone, among = basis.forward(values[row : row + 1])[0], coefficients[row]
        torch.testing.assert_close(alone, among, rtol=0, atol=few * float(among.abs().max()))
        alone, among = basis.inverse(coefficients[row : row + 1])[0], back[row]
        torch.testing.assert_close(alone, among, rtol=0, atol=few * float(among.abs().max()))


def test_fourier_derivatives_and_laplacian_are_exact_for_a_mode():
    lengths = (1.0, 3.0)
    x, y = plane(16, 20, lengths=lengths, offset=0.0)
    basis = FourierBasis((16, 20), lengths, LIKE)
    kx, ky = 2 * math.pi * 3, 2 * math.pi * 2 / 3
    mode = basis.forward(torch.sin(kx * x + ky * y))
    dx, dy = basis.derivatives
    torch.testing.assert_close(basis.inverse(dx * mode), kx * torch.cos(kx * x + ky * y))
    torch.testing.assert_close(basis.inverse(dy * mode), ky * torch.cos(kx * x + ky * y))
    torch.testing.assert_close(basis.inverse(basis.laplacian * mode), -(kx**2 + ky**2) * torch.sin(kx * x + ky * y))


def test_dealiasing_keeps_two_thirds_of_the_modes():
    basis = FourierBasis((16, 16), (1.0, 1.0), LIKE)
    kept = basis.dealias.expand(16, 9)
    assert kept[0].tolist() == [1, 1, 1, 1, 1, 1, 0, 0, 0]  # |k| < 16 / 3
    assert kept[:, 0].sum() == 11
    # Of 12 points the product of modes 4 and 4 would appear as mode -4.
    assert FourierBasis((12,), (1.0,), LIKE).dealias.tolist() == [1, 1, 1, 1, 0, 0, 0]


def test_cosine_laplacian_is_exact_for_a_no_flux_mode():
    lengths = (2.0, 1.0)
    x, y = plane(16, 12, lengths=lengths, offset=0.5)
    basis = CosineBasis((16, 12), lengths, LIKE)
    kx, ky = math.pi * 5 / 2, math.pi * 3
    mode = torch.cos(kx * x) * torch.cos(ky * y)
    torch.testing.assert_close(basis.inverse(basis.laplacian * basis.forward(mode)), -(kx**2 + ky**2) * mode)


@pytest.mark.parametrize("rate", [0.0, -1e-9, -1.0, -1e4])
def test_etdrk4_is_exact_for_linear_decay_with_a_constant_source(rate):
    linear = torch.tensor([rate], dtype=torch.float64)
    source = torch.tensor([0.7], dtype=torch.float64)
    u = ETDRK4(linear, lambda _: source, 0.5).step(torch.tensor([2.0], dtype=torch.float64))
    grown = 0.5 if rate == 0 else math.expm1(rate * 0.5) / rate
    torch.testing.assert_close(u, torch.tensor([2.0 * math.exp(rate * 0.5) + 0.7 * grown], dtype=torch.float64))


def test_etdrk4_is_of_fourth_order():
    # u' = -2 u + u^2 has the solution u = 2 / (1 + (2 / u0 - 1) exp(2 t)).
    linear = torch.tensor([-2.0], dtype=torch.float64)
    exact = 2 / (1 + (2 / 1.5 - 1) * math.exp(2.0))
    errors = []
    for count in (8, 16, 32):
        u = torch.tensor([1.5], dtype=torch.float64)
        scheme = ETDRK4(linear, lambda u: u**2, 1 / count)
        for _ in range(count):
            u = scheme.step(u)
        errors.append(abs(u.item() - exact))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.3)
    assert math.log2(errors[1] / errors[2]) == pytest.approx(4, abs=0.2)


@pytest.mark.parametrize(
    ("duration", "step", "count"), [(0.3, 0.1, 3), (0.31, 0.1, 4), (0.05, 0.1, 1), (0.0, 0.1, 0), (1.0, 0.02, 50)]
)
def test_substeps_fill_the_interval_and_stay_below_the_step(duration, step, count):
    number, h = substeps(duration, step)
    assert number == count
    assert number * h == pytest.approx(duration)
    assert h <= step * (1 + 1e-9)


def test_limiter_takes_the_smallest_slope_and_none_at_an_extremum():
    left = torch.tensor([1.0, 1.0, 1.0, -1.0, -3.0, 0.0])
    right = torch.tensor([1.0, 4.0, -1.0, 1.0, -1.0, 2.0])
    assert monotonized_central(left, right).tolist() == [1.0, 2.0, 0.0, 0.0, -2.0, 0.0]


def test_reconstruction_is_exact_for_a_line_and_makes_no_new_extrema():
    line = torch.arange(9, dtype=torch.float64)
    left, right = face_states(line)
    torch.testing.assert_close(left, torch.arange(1.5, 7.5, dtype=torch.float64))
    torch.testing.assert_close(right, left)
    jump = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    for side in face_states(jump):
        assert side.min() >= 0
        assert side.max() <= 1


def test_a_random_field_is_the_same_sample_on_every_grid():
    def spectrum(n: int) -> torch.Tensor:
        rng = generator("family", 0, "train", 3, "state")
        field = gaussian_field(rng, (n, n), vorticity_amplitude, (n - 1) // 2)
        return torch.fft.fft2(field, norm="forward")

    coarse, fine = spectrum(16), spectrum(40)
    held = np.r_[0:8, -7:0]
    torch.testing.assert_close(coarse[np.ix_(held, held)], fine[np.ix_(held, held)], rtol=1e-9, atol=1e-12)


def test_streams_of_random_numbers_differ_by_every_part_of_the_name():
    names = [
        ("a", 0, "train", 0, "state"),
        ("b", 0, "train", 0, "state"),
        ("a", 1, "train", 0, "state"),
        ("a", 0, "test", 0, "state"),
        ("a", 0, "train", 1, "state"),
        ("a", 0, "train", 0, "parameters"),
    ]
    first = {float(generator(*name).random()) for name in names}
    assert len(first) == len(names)
    assert generator(*names[0]).random() == generator(*names[0]).random()
