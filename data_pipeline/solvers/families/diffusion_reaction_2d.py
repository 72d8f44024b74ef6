"""FitzHugh-Nagumo reaction and diffusion between no-flux walls: PDEBench's two-dimensional diffusion-reaction set."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from numpy.random import Generator
from torch import Tensor

from data_pipeline.solvers.base import PositiveRange, Range
from data_pipeline.solvers.numerics.basis import CosineBasis
from data_pipeline.solvers.numerics.etd import REAL_STABILITY
from data_pipeline.solvers.numerics.fronts import check_front
from data_pipeline.solvers.semilinear import SemilinearParameters, SemilinearProblem, SemilinearSolver, Step

_LARGEST_INITIAL = 5.0
"""White noise of some 10^4 cells stays below five standard deviations."""

_CELLS_A_FRONT = 0.5
"""Least number of cells for the length l of a front tanh(x / l)."""


class DiffusionReaction2DParameters(SemilinearParameters):
    """Parameters of `diffusion_reaction_2d`."""

    step: Step = 0.02
    diffusivity_activator: PositiveRange = (1e-3, 1e-3)
    """D_u of the activator."""
    diffusivity_inhibitor: PositiveRange = (5e-3, 5e-3)
    """D_v of the inhibitor."""
    threshold: Range = (5e-3, 5e-3)
    """The constant k of the activator's equation."""


class DiffusionReaction2D(SemilinearSolver[DiffusionReaction2DParameters]):
    """u_t = D_u Lap u + u - u^3 - k - v, v_t = D_v Lap v + u - v on [-1, 1]^2, no flux through the walls.

    Starts from N(0, 1) at every stored cell centre, as PDEBench (Takamoto et al., 2022), and is the cosine interpolant
    of these values between them, on every grid of the solver. The frame at t = 0 is therefore white noise, and what
    grows from it depends on the size of the stored cells. PDEBench uses second-order finite volumes and an adaptive
    Runge-Kutta method; cosines and ETDRK4 solve the same equation with a smaller error.
    """

    family: ClassVar[str] = "diffusion_reaction_2d"
    equation: ClassVar[str] = "u_t = D_u Lap u + u - u^3 - k - v, v_t = D_v Lap v + u - v"
    version: ClassVar[int] = 2
    scheme: ClassVar[str] = "cosine pseudo-spectral, ETDRK4"
    channels = ("activator", "inhibitor")
    axes = ("x", "y")
    extent = ((-1.0, 1.0), (-1.0, 1.0))
    boundaries = ("wall", "wall")
    placement = "cells"
    parameter_names: ClassVar[tuple[str, ...]] = ("diffusivity_activator", "diffusivity_inhibitor", "threshold")
    parameters_class = DiffusionReaction2DParameters

    def check(self, start: float, dt: float, frames: int) -> None:
        """Refuse an unstable step, and a grid that cannot hold the fronts.

        The activator's fronts are about tanh(x / l), l = sqrt(2 D_u). PDEBench's 128 cells are 2.9 for each l. What
        the interpolated noise loses by a grid of its own cells (refine 1) is 1.5 % of the solution there, 5 % with 64
        cells, 17 % with 32 (0.7 for each l), 30 % and growing with 16 (0.36). `refine: 2` makes 0.01 %, 0.07 %, 0.7 %
        and 4 % of it.
        """
        super().check(start, dt, frames)
        length = math.sqrt(2 * self.parameters.diffusivity_activator[0])
        check_front(self, length, "sqrt(2 diffusivity_activator)", _CELLS_A_FRONT)

    def draw_state(self, rng: Generator, parameters: Mapping[str, float]) -> Tensor:
        """The cosine interpolant of white noise in the stored cells, of one sample, (2, *grid)."""
        return self._change_cells(torch.from_numpy(rng.standard_normal((2, *self.resolution))), self.grid)

    def restrict(self, fields: Tensor) -> Tensor:
        """The stored cells hold the values of their own cosines; shorter waves are cut off. (B, 2, *resolution)."""
        return self._change_cells(fields, self.resolution)

    def _change_cells(self, values: Tensor, cells: tuple[int, ...]) -> Tensor:
        """The cosine interpolant of cell values (..., *grid) at the centres of other cells, (..., *cells)."""
        grid = values.shape[-2:]
        if grid == cells:
            return values
        coefficients = CosineBasis(tuple(grid), self.lengths, values).forward(values)
        kept = [min(n, m) for n, m in zip(grid, cells, strict=True)]
        changed = values.new_zeros(*values.shape[:-2], *cells)
        changed[..., : kept[0], : kept[1]] = coefficients[..., : kept[0], : kept[1]]
        # The basis is orthonormal: the coefficients grow with the root of the number of cells.
        scale = math.sqrt(math.prod(cells) / math.prod(grid))
        return CosineBasis(cells, self.lengths, values).inverse(scale * changed)

    def largest_step(self, duration: float) -> float:
        """Reaction bound h 3 u^2 <= 2.78, with the largest u of the white noise, or twice that at which -u^3 balances
        the threshold: u goes there and stays (measured to thresholds of 1e5)."""
        strongest = max(abs(bound) for bound in self.parameters.threshold)
        largest = max(_LARGEST_INITIAL, 2 * math.pow(strongest, 1 / 3))
        return REAL_STABILITY / (3 * largest**2)

    def problem(self, parameters: Mapping[str, Tensor], initial: Tensor) -> SemilinearProblem:
        """Diffusion is linear; the reaction is evaluated in the cells."""
        basis = CosineBasis(self.grid, self.lengths, initial)
        diffusivity = torch.cat([parameters["diffusivity_activator"], parameters["diffusivity_inhibitor"]], dim=1)
        threshold = parameters["threshold"].to(initial.dtype)

        def nonlinear(coefficients: Tensor) -> Tensor:
            u, v = basis.inverse(coefficients).chunk(2, dim=1)
            return basis.forward(torch.cat([u - u**3 - threshold - v, u - v], dim=1))

        return SemilinearProblem(basis, diffusivity * basis.laplacian, nonlinear)
