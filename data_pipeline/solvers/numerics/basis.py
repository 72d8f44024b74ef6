"""Bases in which the Laplacian is diagonal: Fourier modes for periodic axes, cosines for no-flux walls."""

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Basis(Protocol):
    """A transform of the last axes of a tensor, and the Laplacian's eigenvalues in it."""

    laplacian: Tensor
    """Float64 in every precision, broadcasts against (*modes)."""

    def forward(self, values: Tensor) -> Tensor:
        """Coefficients (..., *modes) of grid values (..., *grid)."""
        ...

    def inverse(self, coefficients: Tensor) -> Tensor:
        """Grid values (..., *grid) of coefficients (..., *modes)."""
        ...


class FourierBasis:
    """Real Fourier transform over a periodic box.

    Args:
        grid: points along each axis.
        lengths: period along each axis.
        like: a tensor on the device and of the precision of the grid values.

    Attributes:
        derivatives: i k for each axis, complex, broadcasts against (*modes).
        dealias: 1 where |k| < (2/3)(n/2) along every axis, else 0 (Orszag's rule for quadratic terms: the product of
            two kept modes never appears as a third).
    """

    def __init__(self, grid: tuple[int, ...], lengths: tuple[float, ...], like: Tensor) -> None:
        self.grid = grid
        self.dims = tuple(range(-len(grid), 0))
        device = like.device
        self.laplacian = torch.zeros((), dtype=torch.float64, device=device)
        self.dealias = torch.ones((), dtype=like.dtype, device=device)
        self.derivatives: list[Tensor] = []
        for axis, (n, length) in enumerate(zip(grid, lengths, strict=True)):
            index = torch.fft.rfftfreq(n, 1 / n) if axis == len(grid) - 1 else torch.fft.fftfreq(n, 1 / n)
            shape = [-1 if other == axis else 1 for other in range(len(grid))]
            index = index.to(device, torch.float64).reshape(shape)
            wavenumber = 2 * math.pi / length * index
            self.laplacian = self.laplacian - wavenumber**2
            self.dealias = self.dealias * (3 * index.abs() < n)
            # The derivative of the Nyquist mode of an even grid is not a grid function: it is zero at every point.
            self.derivatives.append((1j * wavenumber * (index.abs() * 2 != n)).to(like.dtype.to_complex()))

    def forward(self, values: Tensor) -> Tensor:
        """Coefficients (..., *modes), complex, of real grid values (..., *grid)."""
        return self._transform(lambda several: torch.fft.rfftn(several, dim=self.dims), values)

    def inverse(self, coefficients: Tensor) -> Tensor:
        """Real grid values (..., *grid) of coefficients (..., *modes)."""
        return self._transform(lambda several: torch.fft.irfftn(several, s=self.grid, dim=self.dims), coefficients)

    def _transform(self, function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        # MKL rounds a single transform in another way than one of several: a sample must not tell whether it is alone.
        if inputs.numel() == math.prod(inputs.shape[self.dims[0] :]):
            return function(torch.stack([inputs, inputs]))[0]
        return function(inputs)


class CosineBasis:
    """Orthonormal cosine transform (DCT-II) of cell values between no-flux walls, as real matrix products.

    Args:
        grid: cells along each axis.
        lengths: distance of the walls along each axis.
        like: a tensor on the device and of the precision of the grid values.
    """

    def __init__(self, grid: tuple[int, ...], lengths: tuple[float, ...], like: Tensor) -> None:
        device = like.device
        self.matrices = [_dct_matrix(n).to(like) for n in grid]
        self.laplacian = torch.zeros((), dtype=torch.float64, device=device)
        for axis, (n, length) in enumerate(zip(grid, lengths, strict=True)):
            shape = [-1 if other == axis else 1 for other in range(len(grid))]
            wavenumber = math.pi / length * torch.arange(n, dtype=torch.float64, device=device)
            self.laplacian = self.laplacian - wavenumber.reshape(shape) ** 2

    def forward(self, values: Tensor) -> Tensor:
        """Coefficients (..., *grid) of cell values (..., *grid), both real."""
        return self._apply(values, self.matrices)

    def inverse(self, coefficients: Tensor) -> Tensor:
        """Cell values (..., *grid) of coefficients (..., *grid), both real."""
        return self._apply(coefficients, [matrix.T for matrix in self.matrices])

    def _apply(self, values: Tensor, matrices: list[Tensor]) -> Tensor:
        for axis, matrix in zip(range(-len(matrices), 0), matrices, strict=True):
            values = (values.movedim(axis, -1) @ matrix.T).movedim(-1, axis)
        return values


def _dct_matrix(n: int) -> Tensor:
    """Row k holds the orthonormal cosine cos(pi k (i + 1/2) / n) over the cells i, float64 (n, n)."""
    modes = torch.arange(n, dtype=torch.float64)
    matrix = torch.cos(math.pi / n * modes[:, None] * (modes[None, :] + 0.5)) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix
