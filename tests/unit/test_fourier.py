"""Transforms as real matrix products are the Fourier transform, truncated."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.model.fourier import transform


def both(grid: list[int], modes: list[int], symmetric: bool):
    like = torch.zeros((), dtype=torch.float64)
    return (
        transform(grid, modes, symmetric=symmetric, like=like),
        transform(grid, modes, symmetric=symmetric, like=like, matrix_limit=0),
    )


@given(axes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4), symmetric=st.booleans())
@settings(max_examples=60, deadline=None)
def test_matrices_and_fft_agree(axes: list[tuple[int, int]], symmetric: bool) -> None:
    grid, modes = [n for n, _ in axes], [m for _, m in axes]
    matrices, fft = both(grid, modes, symmetric)
    assert matrices.matrices is not None
    assert fft.matrices is None
    field = torch.randn(*grid, 3, dtype=torch.float64)
    spectrum = matrices.forward(field)
    assert torch.allclose(spectrum, fft.forward(field), atol=1e-12)
    other = torch.randn_like(spectrum)
    assert torch.allclose(matrices.inverse(other), fft.inverse(other), atol=1e-12)


def test_all_modes_and_back_is_the_field() -> None:
    for part in both([6, 5], [6, 5], symmetric=False):
        field = torch.randn(6, 5, 2, dtype=torch.float64)
        assert torch.allclose(part.inverse(part.forward(field)), field, atol=1e-12)


def test_one_sided_truncation_is_the_published_slice() -> None:
    field = torch.randn(8, 8, 2, dtype=torch.float64)
    spectrum = torch.fft.rfftn(field, dim=(0, 1), norm="ortho")[:3, :3]
    found = both([8, 8], [3, 3], symmetric=False)[0].forward(field)
    assert torch.allclose(torch.complex(*found), spectrum, atol=1e-12)


@pytest.mark.parametrize(("n", "modes", "expected"), [(8, 2, [0, 1, -1]), (8, 4, [0, 1, 2, 3, -3, -2, -1])])
def test_symmetric_truncation_keeps_magnitudes_below_modes(n: int, modes: int, expected: list[int]) -> None:
    up, down = both([n, 1], [modes, 1], symmetric=True)[0].kept[0]
    assert [*range(up), *range(-down, 0)] == expected
