"""Linear advection on a periodic line: PDEBench's set, solved exactly."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from numpy.random import Generator
from torch import Tensor

from data_pipeline.base.errors import ConfigError
from data_pipeline.solvers.base import Parameters, PositiveRange, Range, Solver
from data_pipeline.solvers.numerics.waves import WindowedSines


class Advection1DParameters(Parameters):
    """Parameters of `advection_1d`."""

    advection_speed: Range = (0.1, 0.1)
    """c, to the right where positive."""
    length: PositiveRange = (1.0, 1.0)
    """Length L of the line."""
    initial: WindowedSines = WindowedSines()
    """How initial states are drawn."""


class Advection1D(Solver[Advection1DParameters]):
    """u_t + c u_x = 0, periodic: u(t, x) = u0(x - c t), evaluated from the numbers that define u0, so that kinks of
    |u| and edges of windows stay as sharp as they were. A stored value is the mean of `refine` points of its cell.

    Where `length` is a range, the dataset's extent is its middle, and each trajectory's parameter the true one.
    """

    family: ClassVar[str] = "advection_1d"
    equation: ClassVar[str] = "u_t + c u_x = 0"
    scheme: ClassVar[str] = "exact shift of a function in closed form"
    channels = ("u",)
    axes = ("x",)
    boundaries = ("periodic",)
    placement = "cells"
    parameter_names: ClassVar[tuple[str, ...]] = ("advection_speed", "length")
    parameters_class = Advection1DParameters

    def __init__(self, resolution: tuple[int, ...], parameters: Advection1DParameters) -> None:
        self.extent = ((0.0, sum(parameters.length) / 2),)
        super().__init__(resolution, parameters)

    def check(self, start: float, dt: float, frames: int) -> None:
        """Refuse a grid with fewer than four points for the shortest initial wave; any dt is exact."""
        cells = 4 * self.parameters.initial.wavenumbers
        if self.resolution[0] < cells:
            raise ConfigError(
                f"the grid is too coarse for the initial waves of {self.family}",
                key="generate.resolution",
                found=self.resolution[0],
                expected=f"at least {cells} points, four for the shortest wave",
            )

    def draw_state(self, rng: Generator, parameters: Mapping[str, float]) -> Tensor:
        """The field, then the numbers that define it, each constant along x, (1 + 3 waves + 3, n)."""
        shape = self.parameters.initial.draw_shape(rng)[:, None]
        field = self.parameters.initial.evaluate(shape[None], self._positions())
        return torch.cat([field, shape.expand(-1, self.grid[0])])

    def begin(self, initial: Tensor, parameters: Mapping[str, Tensor]) -> "_Shift":
        """Start a batch."""
        cycles = (parameters["advection_speed"] / parameters["length"])[:, None]
        shape = initial[:, 1:, :1].double()
        return _Shift(self.parameters.initial, shape, self._positions().to(initial.device), cycles, initial.dtype)

    def _positions(self) -> Tensor:
        return (torch.arange(self.grid[0], dtype=torch.float64) + 0.5) / self.grid[0]


class _Shift:
    """A batch on its way; the work is float64 in every precision."""

    def __init__(
        self, initial: WindowedSines, shape: Tensor, positions: Tensor, cycles: Tensor, dtype: torch.dtype
    ) -> None:
        self.initial, self.shape, self.positions, self.cycles, self.dtype = initial, shape, positions, cycles, dtype
        self.time = 0.0

    def advance(self, duration: float) -> None:
        """Move on the clock."""
        self.time += duration

    def fields(self) -> Tensor:
        """The shifted field, (B, 1, n)."""
        origin = torch.remainder(self.positions - self.cycles * self.time, 1.0)
        return self.initial.evaluate(self.shape, origin)[:, None].to(self.dtype)
