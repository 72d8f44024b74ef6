"""Radial dam break of the shallow-water equations: PDEBench's two-dimensional shallow-water set."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from numpy.random import Generator
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from data_pipeline.base.errors import ConfigError
from data_pipeline.solvers.base import Parameters, PositiveRange, Solver
from data_pipeline.solvers.finite_volume import face_states
from data_pipeline.trajectory import Boundary

_STEPS_A_FRAME = 10_000
"""A solution that needs more steps for one frame has blown up."""


class ShallowWater2DParameters(Parameters):
    """Parameters of `shallow_water_2d`."""

    courant: Annotated[float, Field(gt=0, le=0.5)] = 0.4
    """Courant number; above 1/2 the reconstruction no longer keeps the height positive."""
    gravity: PositiveRange = (1.0, 1.0)
    radius: PositiveRange = (0.3, 0.7)
    inner_height: PositiveRange = (2.0, 2.0)
    outer_height: PositiveRange = (1.0, 1.0)


class ShallowWater2D(Solver[ShallowWater2DParameters]):
    """h_t + div(h u) = 0, (h u)_t + div(h u u) + grad(g h^2 / 2) = 0 on [-2.5, 2.5]^2, open on all sides.

    Starts at rest with `inner_height` within `radius` of the centre and `outer_height` outside (PDEBench: 2 and 1,
    radius uniform in 0.3 .. 0.7). Only the height is stored, as there. Trap: one drawn number fixes a trajectory, so a
    small test error here says little about a model.
    """

    family: ClassVar[str] = "shallow_water_2d"
    equation: ClassVar[str] = "h_t + div(h u) = 0, (h u)_t + div(h u u + g h^2 / 2) = 0"
    scheme: ClassVar[str] = "finite volume, MUSCL (MC limiter), HLL, SSP-RK2"
    channels: ClassVar[tuple[str, ...]] = ("height",)
    axes: ClassVar[tuple[str, ...]] = ("x", "y")
    extent: ClassVar[tuple[tuple[float, float], ...]] = ((-2.5, 2.5), (-2.5, 2.5))
    boundaries: ClassVar[tuple[Boundary, ...]] = ("open", "open")
    placement = "cells"
    parameter_names: ClassVar[tuple[str, ...]] = ("gravity", "radius", "inner_height", "outer_height")
    parameters_class = ShallowWater2DParameters

    def check(self, start: float, dt: float, frames: int) -> None:
        """Refuse a dam outside the domain; the time step adapts itself and needs no check."""
        largest = min(self.lengths) / 2
        if self.parameters.radius[1] >= largest:
            raise ConfigError(
                "the dam does not fit into the domain",
                key="parameters.radius",
                found=self.parameters.radius[1],
                expected=f"below {largest}",
            )

    def draw_state(self, rng: Generator, parameters: Mapping[str, float]) -> Tensor:
        """Height and momenta at rest, (3, *grid); a cell that the dam cuts holds about its part of both heights."""
        x, y = self.coordinates()
        inside = (0.5 + (parameters["radius"] - torch.hypot(x, y)) / max(self.spacing)).clamp(0, 1)
        height = parameters["outer_height"] + (parameters["inner_height"] - parameters["outer_height"]) * inside
        return torch.stack([height, torch.zeros_like(height), torch.zeros_like(height)])

    def begin(self, initial: Tensor, parameters: Mapping[str, Tensor]) -> "_ShallowWaterEvolution":
        """Start a batch; `initial` holds height and both momenta, (B, 3, *grid)."""
        gravity = parameters["gravity"].reshape(-1, 1, 1)
        return _ShallowWaterEvolution(initial, gravity, self.spacing, self.parameters.courant)


class _ShallowWaterEvolution:
    """A batch on its way. Each sample has its own time step, so that it does not depend on the rest of the batch."""

    def __init__(self, state: Tensor, gravity: Tensor, spacing: tuple[float, ...], courant: float) -> None:
        self.state = state
        self.gravity = gravity
        self.spacing = spacing
        self.courant = courant

    def advance(self, duration: float) -> None:
        """SSP-RK2 steps, each within the Courant bound, the last of them ending on `duration` exactly."""
        left = torch.full_like(self.gravity, duration)
        for _ in range(_STEPS_A_FRAME):
            # A sample that blew up has a NaN bound: it takes the rest in one step, and stays NaN.
            bound = self._largest_step()
            h = torch.where(bound < left, bound, left)
            left = left - h
            h = h.unsqueeze(1)
            euler = self.state + h * self._rate(self.state)
            self.state = (self.state + euler + h * self._rate(euler)) / 2
            if not left.any():
                return
        self.state = torch.where(left.unsqueeze(1) > 0, torch.nan, self.state)

    def fields(self) -> Tensor:
        """Height now, (B, 1, *grid)."""
        return self.state[:, :1]

    def _largest_step(self) -> Tensor:
        """Courant bound of each sample, (B, 1, 1)."""
        height, momentum_x, momentum_y = self.state.unbind(1)
        dx, dy = self.spacing
        wave = (self.gravity * height).sqrt()
        rate = ((momentum_x / height).abs() + wave) / dx + ((momentum_y / height).abs() + wave) / dy
        return self.courant / rate.amax((1, 2), keepdim=True)

    def _rate(self, state: Tensor) -> Tensor:
        """Time derivative of the cell averages, (B, 3, nx, ny)."""
        padded_x = pad(state, (0, 0, 2, 2), mode="replicate").transpose(2, 3)
        padded_y = pad(state, (2, 2, 0, 0), mode="replicate")
        flux_x = _hll_flux(padded_x, self.gravity, normal=1).transpose(2, 3)
        flux_y = _hll_flux(padded_y, self.gravity, normal=2)
        dx, dy = self.spacing
        return -flux_x.diff(dim=2) / dx - flux_y.diff(dim=3) / dy


def _hll_flux(cells: Tensor, gravity: Tensor, *, normal: int) -> Tensor:
    """Flux through the faces along the last axis, (B, 3, m, n + 1), from cells (B, 3, m, n + 4).

    Harten, Lax and van Leer (SIAM Review 25, 1983) with Davis' wave speeds: the extremes of u -+ c on both sides.
    Height and velocities are reconstructed, so that a lake at rest stays at rest.

    Args:
        cells: height and momenta, two ghost cells at each end of the last axis.
        gravity: (B, 1, 1).
        normal: which variable, 1 or 2, is the momentum along the last axis.
    """
    height = cells[:, :1]
    sides = face_states(torch.cat([height, cells[:, 1:] / height], dim=1))
    state, flux, slow, fast = zip(*(_physical_flux(side, gravity, normal) for side in sides), strict=True)
    lowest = torch.minimum(slow[0], slow[1]).clamp(max=0).unsqueeze(1)
    highest = torch.maximum(fast[0], fast[1]).clamp(min=0).unsqueeze(1)
    jump = state[1] - state[0]
    through: Tensor = (highest * flux[0] - lowest * flux[1] + lowest * highest * jump) / (highest - lowest)
    return through


def _physical_flux(primitive: Tensor, gravity: Tensor, normal: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Conserved state, its flux along axis `normal`, slowest and fastest wave, of (h, u, v), (B, 3, ...)."""
    height, velocity = primitive[:, 0], primitive[:, normal]
    state = torch.cat([primitive[:, :1], primitive[:, :1] * primitive[:, 1:]], dim=1)
    flux = velocity.unsqueeze(1) * state
    flux[:, normal] += gravity * height**2 / 2
    wave = (gravity * height).sqrt()
    return state, flux, velocity - wave, velocity + wave
