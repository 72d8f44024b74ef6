"""Flow in a closed rectangle on a staggered grid: advection along characteristics, diffusion, projection.

Smoke and pressure lie at the centres of the cells, (B, nx, ny); u on the inner faces across x, (B, nx - 1, ny), face i
between the cells i and i + 1; v on those across y, (B, nx, ny - 1). The faces in the walls carry nothing and are not
held.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from data_pipeline.solvers.numerics.basis import CosineBasis


def centred(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Both velocities at the centres of the cells, (B, nx, ny) each: means of the two faces."""
    full_u, full_v = with_walls(u, v)
    return (full_u[:, 1:] + full_u[:, :-1]) / 2, (full_v[..., 1:] + full_v[..., :-1]) / 2


def with_walls(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Both velocities on all faces, (B, nx + 1, ny) and (B, nx, ny + 1): 0 in the walls."""
    return pad(u, (0, 0, 1, 1)), pad(v, (1, 1))


def onto_faces(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Cell values (B, nx, ny) on the inner faces across x and y: means of the two cells."""
    return (cells[:, 1:] + cells[:, :-1]) / 2, (cells[..., 1:] + cells[..., :-1]) / 2


def divergence(u: Tensor, v: Tensor, spacing: tuple[float, ...]) -> Tensor:
    """What leaves each cell through its faces, a unit of area and time, (B, nx, ny)."""
    full_u, full_v = with_walls(u, v)
    return full_u.diff(dim=1) / spacing[0] + full_v.diff(dim=2) / spacing[1]


def carried(field: Tensor, shift_x: Tensor, shift_y: Tensor, outside: Literal["border", "zeros"]) -> Tensor:
    """A field after semi-Lagrangian advection: at each of its points, the value found upstream (bilinear).

    Args:
        field: (B, mx, my), on any of the three lattices.
        shift_x: displacement along x in cells at the points of the field, (B, mx, my); `shift_y` likewise.
        outside: what lies beyond the outermost points: their own value (`border`), or, from one cell on, 0 (`zeros`):
            for a velocity across its faces that is the wall, for one along a wall a point half a cell behind it.
    """
    nx, ny = field.shape[-2:]
    i = torch.arange(nx, dtype=field.dtype, device=field.device).unsqueeze(1)
    j = torch.arange(ny, dtype=field.dtype, device=field.device)
    # grid_sample counts from -1 at the first point less half a cell, and takes the last axis first.
    source = torch.stack([(2 * (j - shift_y) + 1) / ny - 1, (2 * (i - shift_x) + 1) / nx - 1], dim=-1)
    upstream = grid_sample(field.unsqueeze(1), source, mode="bilinear", padding_mode=outside, align_corners=False)
    return upstream.squeeze(1)


def diffused(field: Tensor, rate_x: Tensor, rate_y: Tensor, substeps: int) -> Tensor:
    """A velocity (B, mx, my) after explicit diffusion, 0 one cell beyond its outermost points.

    Args:
        rate_x: viscosity times step over the square of the spacing along x, of the whole step; `rate_y` likewise.
        substeps: equal parts of the step, each stable where (rate_x + rate_y) / substeps <= 1/2.
    """
    for _ in range(substeps):
        bordered = pad(field, (1, 1, 1, 1))
        along_x = bordered[:, :, 1:-1].diff(n=2, dim=1)
        along_y = bordered[:, 1:-1].diff(n=2, dim=2)
        field = field + rate_x / substeps * along_x + rate_y / substeps * along_y
    return field


class Projection:
    """Takes the gradient of the pressure from a velocity, so that no cell gains or loses: exact but for rounding.

    Args:
        grid: cells along each axis.
        spacing: size of a cell along each axis.
        like: a tensor on the device and of the precision of the velocity.
    """

    def __init__(self, grid: tuple[int, ...], spacing: tuple[float, ...], like: Tensor) -> None:
        self.spacing = spacing
        self.basis = CosineBasis(grid, tuple(n * h for n, h in zip(grid, spacing, strict=True)), like)
        eigenvalue = torch.zeros(grid, dtype=torch.float64, device=like.device)
        for axis, (n, h) in enumerate(zip(grid, spacing, strict=True)):
            modes = torch.arange(n, dtype=torch.float64, device=like.device)
            # Of the second difference, not of the second derivative: the divergence then vanishes in every cell.
            second = -((2 / h * torch.sin(math.pi / (2 * n) * modes)) ** 2)
            eigenvalue += second.reshape([-1 if axis == other else 1 for other in range(len(grid))])
        self.inverse = torch.where(eigenvalue == 0, 0.0, 1 / eigenvalue).to(like.dtype)

    def __call__(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The velocities without divergence, and the pressure taken from them (times the step), (B, nx, ny)."""
        pressure = self.basis.inverse(self.basis.forward(divergence(u, v, self.spacing)) * self.inverse)
        return u - pressure.diff(dim=1) / self.spacing[0], v - pressure.diff(dim=2) / self.spacing[1], pressure
