"""Radial dam break of the shallow-water equations, on a wet or dry bed: PDEBench's two-dimensional set."""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

import torch
from numpy.random import Generator
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from data_pipeline.base.errors import ConfigError
from data_pipeline.solvers.base import NonNegativeRange, Parameters, PositiveRange, Solver
from data_pipeline.solvers.numerics.finite_volume import face_states
from data_pipeline.trajectory import FloatArray

_STEPS_A_FRAME = 10_000
"""Steps for one frame above which a configuration is refused, and a solution has blown up."""

_DRY = 1e-6
"""A cell with less than this part of the deepest water is dry: it has no velocity."""


_SMALLEST_RADIUS = 0.5
"""In cells: a dam that is smaller falls through the grid."""


class ShallowWater2DParameters(Parameters):
    """Parameters of `shallow_water_2d`."""

    courant: Annotated[float, Field(gt=0, le=0.5)] = 0.4
    """Courant number; above 1/2 the reconstruction no longer keeps the height positive."""
    gravity: PositiveRange = (1.0, 1.0)
    """Acceleration g."""
    radius: PositiveRange = (0.3, 0.7)
    """Radius of the dam."""
    inner_height: PositiveRange = (2.0, 2.0)
    """Height of the water within the dam."""
    outer_height: NonNegativeRange = (1.0, 1.0)
    """0 is a dry bed."""
    velocity: bool = False
    """Store both velocities too: with them a frame is the whole state."""


class ShallowWater2D(Solver[ShallowWater2DParameters]):
    """h_t + div(h u) = 0, (h u)_t + div(h u u) + grad(g h^2 / 2) = 0 on [-2.5, 2.5]^2, open on all sides.

    Starts at rest with `inner_height` within `radius` of the centre and `outer_height` outside (PDEBench: 2 and 1,
    radius uniform in 0.3 .. 0.7). Only the height is stored, as there, unless `velocity` asks for more. Trap: one
    drawn number fixes a trajectory, so a small test error here says little about a model.
    """

    family: ClassVar[str] = "shallow_water_2d"
    equation: ClassVar[str] = "h_t + div(h u) = 0, (h u)_t + div(h u u + g h^2 / 2) = 0"
    scheme: ClassVar[str] = "finite volume, MUSCL (MC limiter), HLL, SSP-RK2"
    channels: tuple[str, ...] = ("height",)
    axes = ("x", "y")
    extent = ((-2.5, 2.5), (-2.5, 2.5))
    boundaries = ("open", "open")
    placement = "cells"
    parameter_names: ClassVar[tuple[str, ...]] = ("gravity", "radius", "inner_height", "outer_height")
    parameters_class = ShallowWater2DParameters

    def __init__(self, resolution: tuple[int, ...], parameters: ShallowWater2DParameters) -> None:
        if parameters.velocity:
            self.channels = ("height", "velocity_x", "velocity_y")
        super().__init__(resolution, parameters)

    def check(self, start: float, dt: float, frames: int) -> None:
        """Refuse a dam outside the domain or smaller than a cell, and settings that need too many steps.

        The step follows the solution. The estimate of its number takes waves of the deepest water on water that runs
        as fast as they do.
        """
        low, high = self.parameters.radius
        largest = min(self.lengths) / 2
        if high >= largest:
            raise ConfigError(
                "the dam does not fit into the domain",
                key="generate.parameters.radius",
                found=high,
                expected=f"below {largest}",
            )
        smallest = _SMALLEST_RADIUS * max(self.spacing)
        if low < smallest:
            raise ConfigError(
                f"the grid of {self.grid} is too coarse for the dam",
                key="generate.parameters.radius",
                found=low,
                expected=f"at least {smallest:.4g}, half a cell; or a finer grid (resolution, parameters.refine)",
            )
        p = self.parameters
        wave = math.sqrt(p.gravity[1] * max(p.inner_height[1], p.outer_height[1]))
        steps = max(start, dt) * 2 * wave * sum(1 / h for h in self.spacing) / p.courant
        self.check_steps(steps, _STEPS_A_FRAME, "parameters.gravity, parameters.inner_height, parameters.outer_height")

    def draw_state(self, rng: Generator, parameters: Mapping[str, float]) -> Tensor:
        """Height and momenta at rest, (3, *grid); a cell that the dam cuts holds about its part of both heights."""
        x, y = self.coordinates()
        inside = (0.5 + (parameters["radius"] - torch.hypot(x, y)) / max(self.spacing)).clamp(0, 1)
        height = parameters["outer_height"] + (parameters["inner_height"] - parameters["outer_height"]) * inside
        return torch.stack([height, torch.zeros_like(height), torch.zeros_like(height)])

    def begin(self, initial: Tensor, parameters: Mapping[str, Tensor]) -> "_ShallowWaterEvolution":
        """Start a batch; `initial` holds height and both momenta, (B, 3, *grid)."""
        gravity = parameters["gravity"].reshape(-1, 1, 1).to(initial.dtype)
        return _ShallowWaterEvolution(
            initial, gravity, self.spacing, self.parameters.courant, self.kernel(_hll_flux), len(self.channels)
        )

    def fault(self, fields: FloatArray) -> tuple[int, str] | None:
        """A negative height, beyond rounding."""
        low = fields[..., 0].reshape(len(fields), -1).min(axis=1)
        bad = low < -_DRY * fields[0, ..., 0].max()
        return (int(bad.argmax()), f"a height of {low.min():g}") if bad.any() else None


class _ShallowWaterEvolution:
    """A batch on its way. Each sample has its own time step, so that it does not depend on the rest of the batch."""

    def __init__(
        self,
        state: Tensor,
        gravity: Tensor,
        spacing: tuple[float, ...],
        courant: float,
        flux: Callable[..., Any],
        channels: int,
    ) -> None:
        self.state = state
        self.gravity = gravity
        self.dry = _DRY * state[:, 0].amax((1, 2), keepdim=True)
        self.spacing = spacing
        self.courant = courant
        self.flux = flux
        self.channels = channels

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
        """Height now, and the velocities where they are wanted, (B, C, *grid)."""
        return _primitive(self.state, self.dry)[:, : self.channels]

    def _largest_step(self) -> Tensor:
        """Courant bound of each sample, (B, 1, 1). Water runs onto a dry bed at twice the speed of a wave."""
        height, velocity_x, velocity_y = _primitive(self.state, self.dry).unbind(1)
        dx, dy = self.spacing
        wave = (self.gravity * height.clamp(min=0)).sqrt()
        wave = torch.where(height.amin((1, 2), keepdim=True) > self.dry, wave, 2 * wave)
        rate = (velocity_x.abs() + wave) / dx + (velocity_y.abs() + wave) / dy
        return self.courant / rate.amax((1, 2), keepdim=True)

    def _rate(self, state: Tensor) -> Tensor:
        """Time derivative of the cell averages, (B, 3, nx, ny). A cell beyond an open side is like the last one
        within."""
        cells = _primitive(state, self.dry)
        padded_x = pad(cells, (0, 0, 2, 2), mode="replicate").transpose(2, 3)
        padded_y = pad(cells, (2, 2, 0, 0), mode="replicate")
        # Compiled one by one: in one piece with the padding they would be slower than uncompiled.
        flux_x = self.flux(padded_x, self.gravity, self.dry, normal=1).transpose(2, 3)
        flux_y = self.flux(padded_y, self.gravity, self.dry, normal=2)
        dx, dy = self.spacing
        rate: Tensor = -flux_x.diff(dim=2) / dx - flux_y.diff(dim=3) / dy
        return rate


def _primitive(state: Tensor, dry: Tensor) -> Tensor:
    """Height and velocities (B, 3, ...) of height and momenta; a dry cell is at rest, one of negative height NaN."""
    height, dry = state[:, :1], dry.unsqueeze(1)
    at_rest = torch.where(height < -dry, torch.nan, 0.0)
    wet = height > dry
    return torch.cat([height, torch.where(wet, state[:, 1:] / torch.where(wet, height, 1.0), at_rest)], dim=1)


def _hll_flux(cells: Tensor, gravity: Tensor, dry: Tensor, *, normal: int) -> Tensor:
    """Flux through the faces along the last axis, (B, 3, m, n + 1), from cells (B, 3, m, n + 4).

    Harten, Lax and van Leer (SIAM Review 25, 1983) with Davis' wave speeds: the extremes of u -+ c on both sides.
    Beside a dry side the edge of the water moves at u + 2 c of the wet one, as in Ritter's dam break. Height and
    velocities are reconstructed, so that a lake at rest stays at rest.

    Args:
        cells: height and velocities, two ghost cells at each end of the last axis.
        gravity: (B, 1, 1).
        dry: height up to which a face counts as dry, (B, 1, 1).
        normal: which variable, 1 or 2, is the velocity along the last axis.
    """
    (state_l, flux_l, u_l, c_l), (state_r, flux_r, u_r, c_r) = (
        _physical_flux(side, gravity, normal) for side in face_states(cells)
    )
    dry_l, dry_r = state_l[:, 0] <= dry, state_r[:, 0] <= dry
    slow = torch.where(dry_l, u_r - 2 * c_r, torch.where(dry_r, u_l - c_l, torch.minimum(u_l - c_l, u_r - c_r)))
    fast = torch.where(dry_r, u_l + 2 * c_l, torch.where(dry_l, u_r + c_r, torch.maximum(u_l + c_l, u_r + c_r)))
    slow, fast = slow.clamp(max=0).unsqueeze(1), fast.clamp(min=0).unsqueeze(1)
    width = torch.where(fast > slow, fast - slow, 1.0)  # nothing moves between two cells without water
    through: Tensor = (fast * flux_l - slow * flux_r + slow * fast * (state_r - state_l)) / width
    return through


def _physical_flux(primitive: Tensor, gravity: Tensor, normal: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Conserved state, flux along axis `normal`, velocity along it and speed of waves, of (h, u, v), (B, 3, ...)."""
    height, velocity = primitive[:, 0], primitive[:, normal]
    state = torch.cat([primitive[:, :1], primitive[:, :1] * primitive[:, 1:]], dim=1)
    flux = velocity.unsqueeze(1) * state
    flux[:, normal] += gravity * height**2 / 2
    return state, flux, velocity, (gravity * height.clamp(min=0)).sqrt()
