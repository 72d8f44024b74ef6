"""Incompressible flow between walls on a staggered (MAC) grid, a batch of boxes of different sizes at a time.

u lies on the faces across x, (B, nx + 1, ny), v on those across y, (B, nx, ny + 1), pressure in the cells, (B, nx, ny)
(Harlow and Welch, Phys. Fluids 8, 1965). Boundary values do not change in time.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

MAX_STEPS = 100_000
"""A solution that needs more steps between two frames has blown up."""
REAL_STABILITY = 2.51
"""The third-order Runge-Kutta method is stable for h lambda down to -2.51 on the real axis,"""
IMAGINARY_STABILITY = math.sqrt(3)
"""and up to this on the imaginary one; and in the triangle between these points."""


@dataclass(frozen=True)
class Box:
    """What bounds a batch of flows, in the device and precision of the work; (B, 1, 1) unless said otherwise.

    Attributes:
        dx: width of the cells.
        dy: height of the cells.
        speed: the largest speed on the boundary.
        density: of the fluid.
        viscosity: kinematic.
        lid: velocity of the upper wall along x; the other walls rest.
        inflow: velocity through the left side, (B, 1, ny), and the right side is open; None for walls on both.
    """

    dx: Tensor
    dy: Tensor
    speed: Tensor
    density: Tensor
    viscosity: Tensor
    lid: Tensor
    inflow: Tensor | None


@dataclass(frozen=True)
class Numerics:
    """How a flow is solved and stored.

    Attributes:
        courant: time step over the bound of linear stability.
        pressure: store the pressure, too.
        kernel: compiles a function, or not.
    """

    courant: float
    pressure: bool
    kernel: Callable[[Callable[..., Any]], Callable[..., Any]]


class StaggeredFlow:
    """A batch on its way: central differences, SSP-RK3, an exact projection in every stage.

    The projection in every stage keeps the order of the method (Sanderse and Koren, J. Comput. Phys. 231, 2012), and
    there is no splitting error at the walls. Each sample has its own time step.

    Args:
        u: velocity on the faces across x, (B, nx + 1, ny); boundary faces are overwritten.
        v: velocity on the faces across y, (B, nx, ny + 1).
        projection: onto the flows without divergence.
        numerics: see there.
    """

    def __init__(self, u: Tensor, v: Tensor, projection: "Projection", numerics: Numerics) -> None:
        self.projection = projection
        self.box = projection.box
        self.numerics = numerics
        self._rate = numerics.kernel(momentum_rate)
        self.u, self.v, _ = projection(*self._with_boundary(u, v))

    def advance(self, duration: float) -> None:
        """Steps within the stability bound, of about equal length, to `duration` exactly."""
        left = torch.full_like(self.box.dx, duration, dtype=torch.float64)
        for _ in range(MAX_STEPS):
            if not left.any():
                return
            steps = (left / self._largest_step()).ceil().clamp(min=1)
            # A sample that blew up has a NaN bound: it takes the rest in one step, and stays NaN.
            h = torch.where(steps.isfinite(), left / steps, left)
            left = left - h
            self._step(h.to(self.u.dtype))
        self.u = torch.where(left > 0, torch.nan, self.u)

    def fields(self) -> Tensor:
        """Velocities (and pressure, where it is stored) in the cells now, (B, C, nx, ny)."""
        cells = [(self.u[:, 1:] + self.u[:, :-1]) / 2, (self.v[:, :, 1:] + self.v[:, :, :-1]) / 2]
        return torch.stack([*cells, self.pressure()] if self.numerics.pressure else cells, dim=1)

    def rate(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Rate of change of the velocities without pressure; 0 on boundary faces."""
        rates: tuple[Tensor, Tensor] = self._rate(
            u, v, self.box.lid, self.box.viscosity, self.box.dx, self.box.dy, self.box.inflow is not None
        )
        return rates

    def pressure(self) -> Tensor:
        """The pressure that keeps the flow free of divergence, (B, nx, ny): of mean 0, or 0 at the outlet."""
        return self.box.density * self.projection(*self.rate(self.u, self.v))[2]

    def _with_boundary(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        wall = torch.zeros_like(u[:, :1])
        sides = (wall, wall) if self.box.inflow is None else (self.box.inflow.expand_as(wall), u[:, -1:])
        return torch.cat([sides[0], u[:, 1:-1], sides[1]], dim=1), pad(v[:, :, 1:-1], (1, 1))

    def _largest_step(self) -> Tensor:
        """Stability bound of each sample, float64 (B, 1, 1), for advection and viscosity together."""
        box = self.box
        u, v = self.u.abs().amax((1, 2), keepdim=True), self.v.abs().amax((1, 2), keepdim=True)
        advection = torch.maximum(u, box.speed) / box.dx + v / box.dy
        viscosity = 4 * box.viscosity * (box.dx**-2 + box.dy**-2)
        return self.numerics.courant / (advection / IMAGINARY_STABILITY + viscosity / REAL_STABILITY).double()

    def _step(self, h: Tensor) -> None:
        """One step of h, (B, 1, 1), of the third-order method of Shu and Osher (J. Comput. Phys. 77, 1988)."""
        u, v = self.u, self.v
        for keep in (0.0, 3 / 4, 1 / 3):
            rate_u, rate_v = self.rate(u, v)
            u, v = torch.addcmul(u, h, rate_u), torch.addcmul(v, h, rate_v)
            u, v, _ = self.projection(torch.lerp(u, self.u, keep), torch.lerp(v, self.v, keep))
        # A sample that has arrived stays as it is, to the last bit.
        self.u, self.v = torch.where(h == 0, self.u, u), torch.where(h == 0, self.v, v)


class Projection:
    """The nearest velocities without divergence and with the same values on walls and inlet.

    It takes the five-point Laplacian with zero normal derivative at walls and inlet, and value 0 at an outlet. That is
    diagonal in cosines: those of the DCT-II between walls, of the DCT-IV from inlet to outlet.

    Args:
        box: what bounds the flows.
        grid: cells along x and y.
    """

    def __init__(self, box: Box, grid: tuple[int, int]) -> None:
        self.box = box
        columns, line_x = _cosines(grid[0], 0.0 if box.inflow is None else 0.5)
        rows, line_y = _cosines(grid[1], 0.0)
        self.columns, self.rows = (matrix.to(box.dx).expand(len(box.dx), -1, -1) for matrix in (columns, rows))
        line_x, line_y = line_x.to(box.dx.device)[:, None], line_y.to(box.dx.device)
        eigenvalues = line_x / box.dx.double() ** 2 + line_y / box.dy.double() ** 2
        # The mean of a closed box is left out.
        self.inverse = torch.where(eigenvalues == 0, 0.0, 1 / eigenvalues).to(box.dx.dtype)

    def __call__(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The projected velocities, and the potential in the cells whose gradient was taken away."""
        modes = torch.bmm(torch.bmm(self.columns, self.divergence(u, v)), self.rows.mT) * self.inverse
        potential = torch.bmm(torch.bmm(self.columns.mT, modes), self.rows)
        along_x, along_y = potential.diff(dim=1) / self.box.dx, potential.diff(dim=2) / self.box.dy
        # The potential is 0 at the outlet, half a cell from its last values.
        outlet = potential[:, -1:] * (0 if self.box.inflow is None else -2) / self.box.dx
        u = u - pad(torch.cat([along_x, outlet], dim=1), (0, 0, 1, 0))
        return u, v - pad(along_y, (1, 1)), potential

    def divergence(self, u: Tensor, v: Tensor) -> Tensor:
        """Outflow of each cell over its volume, (B, nx, ny)."""
        return u.diff(dim=1) / self.box.dx + v.diff(dim=2) / self.box.dy


def _cosines(n: int, shift: float) -> tuple[Tensor, Tensor]:
    """Orthonormal cosines cos(pi (k + shift) (i + 1/2) / n), rows k, and the eigenvalues of the second difference."""
    index = torch.arange(n, dtype=torch.float64)
    matrix = torch.cos(math.pi / n * (index[:, None] + shift) * (index + 0.5)) * math.sqrt(2 / n)
    if shift == 0:
        matrix[0] /= math.sqrt(2)
    return matrix, -4 * torch.sin(math.pi / (2 * n) * (index + shift)) ** 2


def momentum_rate(
    u: Tensor, v: Tensor, lid: Tensor, viscosity: Tensor, dx: Tensor, dy: Tensor, is_open: bool
) -> tuple[Tensor, Tensor]:
    """Minus the divergence of the momentum flux u u - nu grad u on the faces; 0 on walls and inlet.

    Shapes as in the module's head. Means of two neighbours make the fluxes: the scheme conserves momentum, and the
    energy of a flow without divergence and viscosity.
    """
    # Values beyond a wall reflect those inside, so that their mean is the wall's velocity.
    above_below = torch.cat([-u[:, :, :1], u, 2 * lid - u[:, :, -1:]], dim=2)
    beside = torch.cat([-v[:, :1], v, v[:, -1:] if is_open else -v[:, -1:]], dim=1)
    corner = (above_below[:, :, 1:] + above_below[:, :, :-1]) * (beside[:, 1:] + beside[:, :-1]) / 4
    flux_xx = (u[:, 1:] + u[:, :-1]).square() / 4 - viscosity / dx * u.diff(dim=1)
    flux_yy = (v[:, :, 1:] + v[:, :, :-1]).square() / 4 - viscosity / dy * v.diff(dim=2)
    flux_xy = corner - viscosity / dy * above_below.diff(dim=2)
    flux_yx = corner - viscosity / dx * beside.diff(dim=1)
    rate_u = -flux_xx.diff(dim=1) / dx - flux_xy[:, 1:-1].diff(dim=2) / dy
    rate_v = -flux_yx[:, :, 1:-1].diff(dim=1) / dx - flux_yy.diff(dim=2) / dy
    last = _outlet_rate(u, v, above_below, viscosity, dx, dy) if is_open else torch.zeros_like(u[:, :1])
    return pad(torch.cat([rate_u, last], dim=1), (0, 0, 1, 0)), pad(rate_v, (1, 1))


def _outlet_rate(u: Tensor, v: Tensor, above_below: Tensor, viscosity: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Rate of u on the outlet, (B, 1, ny), with zero gradient beyond it. Where the flow comes back in, it brings
    nothing along: else vortices that leave could grow there without bound."""
    slope_x = (u[:, -1:] - u[:, -2:-1]) / dx
    slope_y = (above_below[:, -1:, 2:] - above_below[:, -1:, :-2]) / (2 * dy)
    across = (v[:, -1:, 1:] + v[:, -1:, :-1]) / 2
    diffusion = above_below[:, -1:].diff(n=2, dim=2) / dy**2 - slope_x / dx
    return viscosity * diffusion - u[:, -1:].clamp(min=0) * slope_x - across * slope_y
