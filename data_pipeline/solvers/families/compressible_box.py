"""Compressible flow in the unit square or cube, and the initial states of PDEBench's sets."""

import math
from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

import torch
from numpy.random import Generator
from pydantic import Field
from torch import Tensor

from data_pipeline.solvers.base import draw_uniform
from data_pipeline.solvers.families.compressible import CompressibleParameters, CompressibleSolver
from data_pipeline.solvers.numerics.sine_modes import at_cells, draw_modes, oblique_modes, solenoidal

_CELLS_A_WAVE = 8
"""Cells for the shortest wave of the start: its slope is then right to a tenth. PDEBench has 32 (128 / 4)."""

_WINDOW_WIDTH = 0.01


class CompressibleBoxParameters(CompressibleParameters):
    """Parameters of the families on two and three axes."""

    initial: Literal["random", "turbulence"] = "random"
    """`random`: density, pressure and velocity all vary. `turbulence`: the velocity alone, without divergence."""
    modes: Annotated[int, Field(ge=1, le=16)] = 4
    """Largest wavenumber of the start along each axis, in waves across the box."""
    windowed: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Part of the random starts that are undisturbed gas at rest outside a box with smooth sides."""


ParametersT = TypeVar("ParametersT", bound=CompressibleBoxParameters)


class CompressibleBoxSolver(CompressibleSolver[ParametersT]):
    """A viscous ideal gas in the unit square or cube."""

    def smallest_grid(self) -> tuple[int, str]:
        """Eight cells for the shortest wave."""
        return _CELLS_A_WAVE * self.parameters.modes, f"{_CELLS_A_WAVE} for each of {self.parameters.modes} waves"

    def draw_state(self, rng: Generator, parameters: Mapping[str, float]) -> Tensor:
        """Density, velocities and pressure, (2 + axes, *grid), from sines of random phase.

        The waves have no component of the wavevector 0. Means and maxima that scale them are those on a fixed lattice,
        and so the same for every grid.
        """
        axes = len(self.axes)
        speed = parameters["mach_number"] * math.sqrt(parameters["gamma"] * parameters["temperature"])
        modes = oblique_modes(axes, self.parameters.modes)
        if self.parameters.initial == "turbulence":
            velocity = solenoidal(draw_modes(rng, modes, axes, power=axes - 1), modes)
            deviations = torch.zeros(2, len(modes), dtype=velocity.dtype)
        else:
            velocity = draw_modes(rng, modes, axes, power=0.5)
            deviations = draw_modes(rng, modes, 2, power=0.5)
        lattice = (_CELLS_A_WAVE * self.parameters.modes,) * axes
        velocity *= speed / at_cells(velocity, modes, lattice).norm(dim=0).mean()
        contrast = [draw_uniform(rng, self.parameters.contrast) for _ in range(2)]
        for row, size in zip(deviations, contrast, strict=True):
            row *= size / at_cells(row[None], modes, lattice).abs().max().clamp(min=1e-30)
        fields = at_cells(torch.cat([deviations, velocity]), modes, self.grid) * self._window(rng)
        density = parameters["density"] * (1 + fields[:1])
        pressure = parameters["density"] * parameters["temperature"] * (1 + fields[1:2])
        return torch.cat([density, fields[2:], pressure])

    def _window(self, rng: Generator) -> Tensor:
        """1 within a box and 0 outside, smooth in between, float64 (*grid); 1 everywhere for the other starts."""
        window = torch.ones(self.grid, dtype=torch.float64)
        chosen = rng.random() < self.parameters.windowed and self.parameters.initial == "random"
        for x in self.coordinates():
            low, high = rng.uniform(0.1, 0.45), rng.uniform(0.55, 0.9)
            if chosen:
                window *= (torch.tanh((x - low) / _WINDOW_WIDTH) - torch.tanh((x - high) / _WINDOW_WIDTH)) / 2
        return window
