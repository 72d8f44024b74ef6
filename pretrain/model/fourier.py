"""Truncated Fourier transforms in real numbers: matrix products where few modes are kept, the FFT where many are.

A spectrum is a real tensor (2, *modes, columns): real part, imaginary part. Fields are (*grid, columns): the transform
runs over the leading axes, so that each axis is one matrix product with everything behind it as columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi, prod, sqrt
from typing import cast

import torch
from torch import Tensor

# With up to this many modes along every axis products are faster than the FFT, which pays for its layout and for modes
# that are then dropped (measured: `python -m benchmarks.transforms`, docs/performance.md).
MATRIX_LIMIT = 256


@dataclass(frozen=True)
class Transform:
    """Orthonormal transform of real fields on one grid, and its inverse, over the kept modes only.

    Attributes:
        grid: points along each axis.
        kept: for each axis, how many frequencies are kept from zero upwards, and how many below zero.
        matrices: for each axis the real matrices of its transform, (2 modes, 2 points), and of its inverse, (2 points,
            2 modes); (2 modes, points) and (points, 2 modes) for the last axis, where fields are real. None where the
            FFT is faster.
    """

    grid: tuple[int, ...]
    kept: tuple[tuple[int, int], ...]
    matrices: tuple[tuple[Tensor, Tensor], ...] | None

    def forward(self, field: Tensor) -> Tensor:
        """(*grid, columns) -> (2, *modes, columns)."""
        if self.matrices is None:
            return self._fft(field)
        rows = field
        # Backwards through the axes. A product turns (axes before, points, 2 | columns) into (axes before, 2, modes |
        # columns): the 2 ends up beside the next axis to be transformed, so that no product needs a permutation.
        for axis in reversed(range(len(self.grid))):
            rows = _product(self.matrices[axis][0], rows, batch=prod(self.grid[:axis]))
        return rows.reshape(2, *map(sum, self.kept), field.shape[-1])

    def inverse(self, spectrum: Tensor) -> Tensor:
        """(2, *modes, columns) -> (*grid, columns); modes that are not kept count as zero."""
        if self.matrices is None:
            return self._inverse_fft(spectrum)
        rows = spectrum
        for axis in range(len(self.grid)):
            rows = _product(self.matrices[axis][1], rows, batch=prod(self.grid[:axis]))
        return rows.reshape(*self.grid, spectrum.shape[-1])

    def _fft(self, field: Tensor) -> Tensor:
        axes = tuple(range(len(self.grid)))
        spectrum = torch.view_as_real(torch.fft.rfftn(field, dim=axes, norm="ortho"))
        for axis, index in enumerate(self._places(field.device)):
            spectrum = spectrum.index_select(axis, index)
        return spectrum.movedim(-1, 0)

    def _inverse_fft(self, spectrum: Tensor) -> Tensor:
        axes = tuple(range(len(self.grid)))
        full = spectrum.movedim(0, -1)
        half = (*self.grid[:-1], self.grid[-1] // 2 + 1)
        for axis, index in enumerate(self._places(spectrum.device)):
            shape = (*full.shape[:axis], half[axis], *full.shape[axis + 1 :])
            full = full.new_zeros(shape).index_copy(axis, index, full)
        whole = torch.view_as_complex(full.contiguous())
        return cast(Tensor, torch.fft.irfftn(whole, s=self.grid, dim=axes, norm="ortho"))

    def _places(self, device: torch.device) -> list[Tensor]:
        """Where the kept modes stand in the FFT's spectrum."""
        return [_frequencies(k, device) % n for k, n in zip(self.kept, self.grid, strict=True)]


def transform(
    grid: Sequence[int], modes: Sequence[int], *, symmetric: bool, like: Tensor, matrix_limit: int = MATRIX_LIMIT
) -> Transform:
    """The transform that keeps `modes` of each axis of `grid`.

    Args:
        grid: points along each axis.
        modes: for each axis, how many frequencies are kept, counted from zero upwards. An axis that is not the last
            loses its negative frequencies first, since they stand at the end of a spectrum, unless `symmetric`.
        symmetric: keep all frequencies below `modes` in magnitude.
        like: gives data type and device.
        matrix_limit: most modes along an axis for which matrices are used.
    """
    kept = tuple(
        _kept(n, m, half=axis == len(grid) - 1, symmetric=symmetric)
        for axis, (n, m) in enumerate(zip(grid, modes, strict=True))
    )
    matrices = None
    if max(map(sum, kept)) <= matrix_limit:
        matrices = tuple(
            _matrices(k, n, half=axis == len(grid) - 1, like=like)
            for axis, (k, n) in enumerate(zip(kept, grid, strict=True))
        )
    return Transform(tuple(grid), kept, matrices)


def _kept(n: int, modes: int, *, half: bool, symmetric: bool) -> tuple[int, int]:
    if half:
        return min(modes, n // 2 + 1), 0
    if not symmetric:
        return min(modes, n), 0
    return (n, 0) if 2 * modes > n else (modes, modes - 1)


def _frequencies(kept: tuple[int, int], device: torch.device) -> Tensor:
    """In the order of the FFT: 0, 1, ... and then the negative ones."""
    up, down = kept
    positive = torch.arange(up, device=device)
    return torch.cat([positive, torch.arange(-down, 0, device=device)]) if down else positive


def _matrices(kept: tuple[int, int], n: int, *, half: bool, like: Tensor) -> tuple[Tensor, Tensor]:
    """exp(-2 pi i k x / n) / sqrt(n) in real numbers, (2, modes) x (points, 2) or x (points), and its inverse."""
    # Angles are reduced in whole numbers and in double precision: their error is what bounds the transform's.
    k = _frequencies(kept, like.device)[:, None]
    angle = (k * torch.arange(n, device=like.device) % n).double() * (2 * pi / n)
    cos, sin = angle.cos() / sqrt(n), angle.sin() / sqrt(n)
    if not half:
        rows = [torch.stack([cos, sin], dim=-1), torch.stack([-sin, cos], dim=-1)]
        matrix = torch.cat(rows).flatten(1).to(like.dtype)
        return matrix, matrix.T
    matrix = torch.cat([cos, -sin])
    # Half a spectrum: each mode stands for its conjugate, too, unless it is its own.
    counts = torch.where(2 * k % n == 0, 1.0, 2.0).double()
    return matrix.to(like.dtype), (matrix * torch.cat([counts, counts])).T.to(like.dtype)


def _product(matrix: Tensor, rows: Tensor, batch: int) -> Tensor:
    if batch == 1:
        return matrix @ rows.reshape(matrix.shape[1], -1)
    return torch.bmm(matrix.expand(batch, *matrix.shape), rows.reshape(batch, matrix.shape[1], -1))
