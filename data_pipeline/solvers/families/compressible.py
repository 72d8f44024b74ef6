"""The compressible Navier-Stokes equations of an ideal gas without heat conduction, on 1, 2 or 3 axes.

d_t + div(d v) = 0
(d v)_t + div(d v v) + grad p = div S,      S = eta (grad v + (grad v)^T - 2/3 div v) + zeta div v
E_t + div((E + p) v) = div(S v),            E = p / (gamma - 1) + d |v|^2 / 2
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from data_pipeline.base.errors import ConfigError
from data_pipeline.solvers.base import NonNegativeRange, Parameters, PositiveRange, Range, Solver
from data_pipeline.solvers.numerics.gas import (
    Gas,
    Padding,
    euler_step,
    is_sound,
    to_conserved,
    to_primitive,
    wave_rate,
)
from data_pipeline.trajectory import FloatArray

LARGEST_STEPS = 100_000
"""Steps for one frame above which a configuration is refused, and a solution has blown up."""

_ROUNDS = 6
"""Times that a stage is taken again with more first-order cells: a cell whose flux changes alters its neighbours."""

_HALVINGS = 30
"""A step that even a thousand-millionth of the bound does not make sound never will be."""

_PEAK_SPEED = 4.0
"""Largest speed over the mean one, of fifty random starts in each number of axes (`validation/`)."""


def _above_one(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] <= 1:
        raise ValueError("expected values > 1")
    return value


def _below_one(value: tuple[float, float]) -> tuple[float, float]:
    if value[1] >= 1:
        raise ValueError("expected values < 1, which keep density and pressure positive")
    return value


class CompressibleParameters(Parameters):
    """Parameters of the compressible families; defaults are those of PDEBench's sets."""

    courant: Annotated[float, Field(gt=0, le=0.5)] = 0.4
    """dt max(sum over axes of (|u| + c) / h + nu / h^2); above 1/2 neither positivity nor stability holds."""
    boundary: Literal["periodic", "open"] = "periodic"
    """On all sides. `open` copies the outermost cells outwards, and lets waves leave."""
    gamma: Annotated[Range, AfterValidator(_above_one)] = (5 / 3, 5 / 3)
    """Ratio of heat capacities."""
    shear_viscosity: NonNegativeRange = (1e-8, 1e-8)
    """Shear viscosity."""
    bulk_viscosity: NonNegativeRange = (1e-8, 1e-8)
    """Bulk viscosity."""
    mach_number: NonNegativeRange = (1.0, 1.0)
    """Mean speed of the start over the speed of sound sqrt(gamma temperature)."""
    density: PositiveRange = (0.1, 10.0)
    """Mean density of the start."""
    temperature: PositiveRange = (0.1, 10.0)
    """Mean pressure of the start over its mean density."""
    contrast: Annotated[PositiveRange, AfterValidator(_below_one)] = (0.01, 0.2)
    """Largest relative deviation of density, and of pressure, of a random start from the mean."""


ParametersT = TypeVar("ParametersT", bound=CompressibleParameters)


class CompressibleSolver(Solver[ParametersT]):
    """What the compressible families share; a family adds its axes, its box and its initial states.

    Second order: limited linear reconstruction of primitive variables, HLLC fluxes, central viscous fluxes, all in
    each of the two stages of SSP-RK2. Where a stage would leave a cell without positive density and pressure, the
    faces of that cell get the first-order flux; where that is not enough, the sample halves its step.
    """

    scheme: ClassVar[str] = "finite volume, MUSCL (MC limiter), HLLC, explicit viscosity, SSP-RK2"
    placement = "cells"
    parameter_names: ClassVar[tuple[str, ...]] = (
        "gamma",
        "shear_viscosity",
        "bulk_viscosity",
        "mach_number",
        "density",
        "temperature",
    )

    def __init__(self, resolution: tuple[int, ...], parameters: ParametersT) -> None:
        self.boundaries = (parameters.boundary,) * len(self.axes)
        self.channels = ("density", *(f"velocity_{axis}" for axis in self.axes), "pressure")
        super().__init__(resolution, parameters)

    def smallest_grid(self) -> tuple[int, str]:
        """Fewest cells along an axis that hold the initial states, and why."""
        raise NotImplementedError

    def check(self, start: float, dt: float, frames: int) -> None:
        """Refuse a grid that cannot hold the initial states, and settings that need too many steps.

        The step follows the solution. The estimate of its number takes the fastest and the thinnest gas that the
        parameters allow: speeds four times the mean, density and pressure at the limits of the contrast.
        """
        fewest, reason = self.smallest_grid()
        if min(self.grid) < fewest:
            raise ConfigError(
                "the grid is too coarse for the initial states",
                key="generate.resolution",
                found=min(self.grid),
                expected=f"at least {fewest} cells along each axis ({reason}), times parameters.refine",
            )
        steps = self.most_steps(max(start, dt))
        if steps > LARGEST_STEPS:
            raise ConfigError(
                "the explicit step is too short for these parameters",
                key="generate.parameters.shear_viscosity, bulk_viscosity, mach_number, temperature or density",
                found=f"about {steps:.2g} steps for one frame",
                expected=f"at most {LARGEST_STEPS}",
                remedy="more frames (a shorter dt), a coarser grid, less viscosity or a denser gas",
            )

    def most_steps(self, duration: float) -> float:
        """Estimate of the steps of the most expensive sample over a time."""
        p = self.parameters
        thin = 1 - p.contrast[1]
        sound = math.sqrt(p.gamma[1] * p.temperature[1] * (1 + p.contrast[1]) / thin)
        diffusivity = (4 / 3 * p.shear_viscosity[1] + p.bulk_viscosity[1]) / (p.density[0] * thin)
        rate = sum((1 + _PEAK_SPEED * p.mach_number[1]) * sound / h + diffusivity / h**2 for h in self.spacing)
        return duration * rate / p.courant

    def begin(self, initial: Tensor, parameters: Mapping[str, Tensor]) -> "_Evolution":
        """Start a batch; `initial` holds density, velocities and pressure, (B, 2 + axes, *grid)."""
        ones = (1,) * len(self.axes)
        names = ("gamma", "shear_viscosity", "bulk_viscosity")
        gamma, eta, zeta = (parameters[name].reshape(-1, 1, *ones).to(initial.dtype) for name in names)
        viscous = self.parameters.shear_viscosity[1] + self.parameters.bulk_viscosity[1] > 0
        return _Evolution(self, initial, Gas(gamma, eta, zeta, viscous))

    def restrict(self, fields: Tensor) -> Tensor:
        """The same: `_Evolution.fields` are those of the stored grid, because a mean needs conserved variables."""
        return fields

    def cell_means(self, conserved: Tensor) -> Tensor:
        """Mean mass, momenta and energy of each stored cell, (B, 2 + axes, *resolution)."""
        return super().restrict(conserved)

    def fault(self, fields: FloatArray) -> tuple[int, str] | None:
        """The first frame without positive density and pressure."""
        smallest = fields[..., [0, -1]].reshape(len(fields), -1).min(axis=1)
        if (smallest > 0).all():
            return None
        frame = int((smallest <= 0).argmax())
        return frame, f"density or pressure {smallest[frame]:g}"


class _Evolution:
    """A batch on its way. Each sample has its own time step, so that it does not depend on the rest of the batch."""

    def __init__(self, solver: CompressibleSolver[Any], initial: Tensor, gas: Gas) -> None:
        self.solver = solver
        self.gas = gas
        self.state = to_conserved(initial, gas.gamma)
        self.padding: Padding = "circular" if solver.parameters.boundary == "periodic" else "replicate"
        self.euler = solver.kernel(euler_step)
        self.wave_rate = solver.kernel(wave_rate)

    def advance(self, duration: float) -> None:
        """SSP-RK2 steps, each within the bound, the last of them ending on `duration` exactly."""
        left = torch.full_like(self.gas.gamma, duration)
        share = torch.ones_like(left)
        for _ in range(LARGEST_STEPS):
            bound = share * self.solver.parameters.courant / self.wave_rate(self.state, self.gas, self.solver.spacing)
            h = torch.where(bound < left, bound, left)
            first, sound_first = self._stage(self.state, h)
            second, sound_second = self._stage(first, h)
            sound = sound_first & sound_second
            self.state = torch.where(sound, (self.state + second) / 2, self.state)
            left = torch.where(sound, left - h, left)
            share = torch.where(sound, (2 * share).clamp(max=1), share / 2)
            if not left.any():
                return
            lost = share < 2.0**-_HALVINGS
            self.state = torch.where(lost, torch.nan, self.state)
            left = torch.where(lost, 0.0, left)
        self.state = torch.where(left > 0, torch.nan, self.state)

    def fields(self) -> Tensor:
        """Density, velocities and pressure of the mean mass, momenta and energy of each stored cell."""
        return to_primitive(self.solver.cell_means(self.state), self.gas.gamma)

    def _stage(self, state: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """A forward-Euler step, and which samples (B, 1, *ones) have positive density and pressure after it."""
        after = self.euler(state, h, self.gas, self.solver.spacing, self.padding)
        cells = smooth = is_sound(after)
        every = tuple(range(1, cells.ndim))
        for _ in range(_ROUNDS):
            if cells.all():
                break
            smooth = smooth & cells
            marks = smooth.to(state.dtype)
            careful = euler_step(state, h, self.gas, self.solver.spacing, self.padding, marks)
            after = torch.where(smooth.all(every, keepdim=True), after, careful)
            cells = is_sound(after)
        return after, cells.all(every, keepdim=True)
