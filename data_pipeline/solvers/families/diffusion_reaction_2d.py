"""FitzHugh-Nagumo reaction and diffusion between no-flux walls: PDEBench's two-dimensional diffusion-reaction set."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from numpy.random import Generator
from torch import Tensor

from data_pipeline.solvers.base import PositiveRange, Range
from data_pipeline.solvers.basis import CosineBasis
from data_pipeline.solvers.etd import REAL_STABILITY
from data_pipeline.solvers.semilinear import SemilinearParameters, SemilinearProblem, SemilinearSolver, Step
from data_pipeline.trajectory import Boundary

_LARGEST_INITIAL = 5.0
"""White noise of some 10^4 cells stays below five standard deviations."""


class DiffusionReaction2DParameters(SemilinearParameters):
    """Parameters of `diffusion_reaction_2d`."""

    step: Step = 0.02
    diffusivity_activator: PositiveRange = (1e-3, 1e-3)
    diffusivity_inhibitor: PositiveRange = (5e-3, 5e-3)
    threshold: Range = (5e-3, 5e-3)
    """The constant k of the activator's equation."""


class DiffusionReaction2D(SemilinearSolver[DiffusionReaction2DParameters]):
    """u_t = D_u Lap u + u - u^3 - k - v, v_t = D_v Lap v + u - v on [-1, 1]^2, no flux through the walls.

    Starts from N(0, 1) in every stored cell, as PDEBench (Takamoto et al., 2022). The frame at t = 0 is therefore
    white noise, and what grows from it depends on the size of the stored cells. PDEBench uses second-order finite
    volumes and an adaptive Runge-Kutta method; cosines and ETDRK4 solve the same equation with a smaller error.
    Between the cell centres the noise is the cosine interpolant; with `refine` above 1 it is constant over each stored
    cell instead, and the solution differs by some per cent.
    """

    family: ClassVar[str] = "diffusion_reaction_2d"
    equation: ClassVar[str] = "u_t = D_u Lap u + u - u^3 - k - v, v_t = D_v Lap v + u - v"
    scheme: ClassVar[str] = "cosine pseudo-spectral, ETDRK4"
    channels: ClassVar[tuple[str, ...]] = ("activator", "inhibitor")
    axes: ClassVar[tuple[str, ...]] = ("x", "y")
    extent: ClassVar[tuple[tuple[float, float], ...]] = ((-1.0, 1.0), (-1.0, 1.0))
    boundaries: ClassVar[tuple[Boundary, ...]] = ("wall", "wall")
    placement = "cells"
    parameter_names: ClassVar[tuple[str, ...]] = ("diffusivity_activator", "diffusivity_inhibitor", "threshold")
    parameters_class = DiffusionReaction2DParameters

    def draw_state(self, rng: Generator, parameters: Mapping[str, float]) -> Tensor:
        """White noise of one sample, constant over each stored cell, (2, *grid)."""
        noise = torch.from_numpy(rng.standard_normal((2, *self.resolution)))
        for axis in (1, 2):
            noise = noise.repeat_interleave(self.parameters.refine, dim=axis)
        return noise

    def largest_step(self, duration: float) -> float:
        """Reaction bound h 3 u^2 <= 2.78, with the largest u of the white noise."""
        return REAL_STABILITY / (3 * _LARGEST_INITIAL**2)

    def problem(self, parameters: Mapping[str, Tensor], device: torch.device) -> SemilinearProblem:
        """Diffusion is linear; the reaction is evaluated in the cells."""
        basis = CosineBasis(self.grid, self.lengths, device)
        diffusivity = torch.cat([parameters["diffusivity_activator"], parameters["diffusivity_inhibitor"]], dim=1)
        threshold = parameters["threshold"]

        def nonlinear(coefficients: Tensor) -> Tensor:
            u, v = basis.inverse(coefficients).chunk(2, dim=1)
            return basis.forward(torch.cat([u - u**3 - threshold - v, u - v], dim=1))

        return SemilinearProblem(basis, diffusivity * basis.laplacian, nonlinear)
