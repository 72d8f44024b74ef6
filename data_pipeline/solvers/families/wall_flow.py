"""What the incompressible flows between walls share: parameters, bounds, perturbed initial states."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

import torch
from numpy.random import Generator
from pydantic import Field
from torch import Tensor

from data_pipeline.base.errors import ConfigError
from data_pipeline.solvers.base import Evolution, Parameters, PositiveRange, Solver
from data_pipeline.solvers.numerics.staggered import (
    IMAGINARY_STABILITY,
    MAX_STEPS,
    REAL_STABILITY,
    Box,
    Numerics,
    Projection,
    StaggeredFlow,
)

_LAYER_CELLS = 2.0
"""Cells within a boundary layer of thickness L / sqrt(Re). The grids of Ghia, Ghia and Shin (1982) have 2.3 .. 13."""
_MODES = 4
"""Sine modes of a perturbation along each axis."""


class WallFlowParameters(Parameters):
    """Parameters of all flows between walls, in any consistent units (CFDBench: SI)."""

    courant: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Time step over its bound for linear stability."""
    velocity: PositiveRange = (1.0, 1.0)
    """Of the lid or the inflow."""
    density: PositiveRange = (1.0, 1.0)
    """Density of the fluid."""
    viscosity: PositiveRange = (1e-2, 1e-2)
    """Dynamic viscosity."""
    perturbation: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Root mean square of a random solenoidal velocity at the start, over `velocity`."""
    pressure: bool = False
    """Store the pressure, too (CFDBench does not)."""


ParametersT = TypeVar("ParametersT", bound=WallFlowParameters)


class WallFlow(Solver[ParametersT]):
    """u_t + div(u u) = -grad p / rho + (mu / rho) Lap u, div u = 0 in a rectangle.

    Width and height may differ from sample to sample: each has its own cell size, and the extent of the dataset then
    is the unit square (coordinates over width and height). The state holds u on the right and v on the upper face of
    each cell.
    """

    axes = ("x", "y")
    placement = "cells"

    def __init__(self, resolution: tuple[int, ...], parameters: ParametersT) -> None:
        self.channels = ("velocity_x", "velocity_y", "pressure")[: 3 if parameters.pressure else 2]
        super().__init__(resolution, parameters)

    @abstractmethod
    def sizes(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Smallest and largest width, smallest and largest height."""

    @abstractmethod
    def layers(self) -> tuple[float | None, float | None]:
        """Along each axis the shortest length over which a boundary layer grows that the cells cut across; None for an
        axis without one."""

    @abstractmethod
    def box(self, parameters: Mapping[str, Tensor], like: Tensor) -> Box:
        """Boundary values of a batch; parameters (B, 1, 1), `like` is on the device and of the precision wanted."""

    def check(self, start: float, dt: float, frames: int) -> None:
        """Refuse a grid too coarse for the boundary layers, and frames that need too many steps.

        A boundary layer has the thickness sqrt(nu L / U), L the length of the wall. The grids of Ghia, Ghia and Shin
        (1982) have at least two cells in it.
        """
        given = self.parameters
        kinematic = given.viscosity[0] / given.density[1], given.viscosity[1] / given.density[0]
        sizes = self.sizes()
        for axis, length in enumerate(self.layers()):
            if length is None:
                continue
            thinnest = math.sqrt(kinematic[0] * length / given.velocity[1])
            needed = math.ceil(_LAYER_CELLS * sizes[axis][1] / thinnest)
            if self.grid[axis] < needed:
                raise ConfigError(
                    f"the grid is too coarse for a boundary layer of thickness {thinnest:.3g} (Reynolds number "
                    f"{given.velocity[1] * length / kinematic[0]:.4g})",
                    key=f"generate.resolution along {self.axes[axis]} times generate.parameters.refine",
                    found=self.grid[axis],
                    expected=f"at least {needed}: {_LAYER_CELLS:g} cells in the layer",
                )
        h = [sizes[axis][0] / self.grid[axis] for axis in (0, 1)]
        advection = given.velocity[1] / h[0] / IMAGINARY_STABILITY
        viscosity = 4 * kinematic[1] * (h[0] ** -2 + h[1] ** -2) / REAL_STABILITY
        longest = MAX_STEPS * given.courant / (advection + viscosity)
        if max(start, dt) > longest:
            raise ConfigError(
                "too many steps between two frames for this grid, velocity and viscosity",
                key="generate.start, generate.dt",
                found=max(start, dt),
                expected=f"at most {longest:.4g} ({MAX_STEPS} steps)",
            )

    def draw_state(self, rng: Generator, parameters: Mapping[str, float]) -> Tensor:
        """The perturbation on the solver's faces, (2, *grid): the curl of a stream function of sine modes, so that its
        divergence is 0 to rounding. It is 0 without one; `begin` adds what the boundary demands."""
        amplitudes = torch.from_numpy(rng.standard_normal((_MODES, _MODES)))
        modes = torch.arange(1, _MODES + 1, dtype=torch.float64)
        (nx, ny), (width, height) = self.grid, self.size(parameters)
        sines = [torch.sin(math.pi / n * modes[:, None] * torch.arange(n + 1)) for n in (nx, ny)]
        stream = sines[0].T @ amplitudes @ sines[1]
        u, v = stream.diff(dim=1) * ny / height, -stream.diff(dim=0) * nx / width
        squares = (modes / width)[:, None] ** 2 + (modes / height) ** 2
        # Mean of u^2 + v^2 of the modes: each stream mode has the mean square a^2 / 4.
        mean_square = float((amplitudes**2 * squares).sum()) * math.pi**2 / 4
        scale = self.parameters.perturbation * parameters["velocity"] / math.sqrt(mean_square)
        return scale * torch.stack([u[1:], v[:, 1:]])

    @abstractmethod
    def size(self, parameters: Mapping[str, float]) -> tuple[float, float]:
        """Width and height of one sample."""

    def begin(self, initial: Tensor, parameters: Mapping[str, Tensor]) -> Evolution:
        """Start a batch; `initial` holds the perturbation, (B, 2, *grid)."""
        return self.flow(initial, parameters)

    def flow(self, initial: Tensor, parameters: Mapping[str, Tensor]) -> StaggeredFlow:
        """The velocities of a batch on its way; arguments as those of `begin`."""
        columns = {key: value.reshape(-1, 1, 1) for key, value in parameters.items()}
        projection = self.projection(columns, self.box(columns, initial))
        box = projection.box
        u = torch.cat([torch.zeros_like(initial[:, 0, :1]), initial[:, 0]], dim=1)
        v = torch.cat([torch.zeros_like(initial[:, 1, :, :1]), initial[:, 1]], dim=2)
        numerics = Numerics(self.parameters.courant, self.parameters.pressure, self.kernel)
        return StaggeredFlow(u if box.inflow is None else u + box.inflow, v, projection, numerics)

    def projection(self, parameters: Mapping[str, Tensor], box: Box) -> Projection:
        """What keeps the flow free of divergence; parameters (B, 1, 1)."""
        return Projection(box, (self.grid[0], self.grid[1]))


def extent_of(
    x: tuple[tuple[float, float], tuple[float, float]], y: tuple[tuple[float, float], tuple[float, float]]
) -> tuple[tuple[float, float], ...]:
    """The extent of the dataset, from the range of the lower and of the upper end of each axis: the real one where all
    samples share it, else the unit square."""
    if all(low == high for ends in (x, y) for low, high in ends):
        return (x[0][0], x[1][0]), (y[0][0], y[1][0])
    return (0.0, 1.0), (0.0, 1.0)


def inlet(profile: Literal["uniform", "parabolic"], velocity: Tensor, cells: int) -> Tensor:
    """Mean inflow through each face, (B, 1, cells), of a profile with the mean `velocity`, (B, 1, 1)."""
    if profile == "uniform":
        return velocity.expand(-1, 1, cells)
    # The flow below height s of Poiseuille's profile 6 s (1 - s) is s^2 (3 - 2 s).
    s = torch.linspace(0, 1, cells + 1, dtype=torch.float64, device=velocity.device)
    return velocity * cells * (s**2 * (3 - 2 * s)).diff()
