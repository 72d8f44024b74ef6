"""Allen-Cahn equation on the unit torus: two phases part, and their borders shrink. Poseidon's set ACE."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from numpy.random import Generator
from torch import Tensor

from data_pipeline.base.errors import ConfigError
from data_pipeline.solvers.base import PositiveRange, Range, draw_uniform
from data_pipeline.solvers.numerics.basis import FourierBasis
from data_pipeline.solvers.numerics.counts import Counts, draw_count
from data_pipeline.solvers.numerics.etd import REAL_STABILITY
from data_pipeline.solvers.numerics.fronts import check_front
from data_pipeline.solvers.semilinear import SemilinearParameters, SemilinearProblem, SemilinearSolver, Step

_POINTS_A_FRONT = 0.8
"""Least number of grid points for the length l of a front tanh(x / l)."""


class AllenCahn2DParameters(SemilinearParameters):
    """Parameters of `allen_cahn_2d`."""

    step: Step = 5e-6
    diffusivity: PositiveRange = (1.0, 1.0)
    """D, with which the phases spread."""
    reaction: PositiveRange = (48400.0, 48400.0)
    """Rate r of the reaction; Poseidon's epsilon is its root, 220."""
    modes: Counts = (16, 32)
    """Least and largest number K of sines along each axis of the initial state."""
    decay: Range = (0.7, 1.0)
    """The exponent p by which the amplitudes of the initial state fall, (i^2 + j^2)^-p."""


class AllenCahn2D(SemilinearSolver[AllenCahn2DParameters]):
    """u_t = D Lap u + r (u - u^3) on [0, 1)^2, periodic.

    Defaults and initial states are those of the set ACE of Poseidon (Herde et al., 2024), whose epsilon^2 is r. It was
    made by finite differences on 128 points, which are few for its fronts: see `check`.
    """

    family: ClassVar[str] = "allen_cahn_2d"
    equation: ClassVar[str] = "u_t = D Lap u + r (u - u^3)"
    scheme: ClassVar[str] = "Fourier pseudo-spectral, ETDRK4"
    channels = ("phase",)
    axes = ("x", "y")
    extent = ((0.0, 1.0), (0.0, 1.0))
    boundaries = ("periodic", "periodic")
    placement = "nodes"
    parameter_names: ClassVar[tuple[str, ...]] = ("diffusivity", "reaction")
    parameters_class = AllenCahn2DParameters

    def check(self, start: float, dt: float, frames: int) -> None:
        """Refuse an unstable step, and a grid that cannot hold the fronts or the sines.

        A front at rest is tanh(x / l), l = sqrt(2 D / r). Its Fourier modes fall as exp(-pi k l / 2): with 0.8 points
        for l the last one is down to 2 %. The 128 points of Poseidon's set are 0.82 for l.
        """
        super().check(start, dt, frames)
        length = math.sqrt(2 * self.parameters.diffusivity[0] / self.parameters.reaction[1])
        check_front(self, length, "sqrt(2 diffusivity / reaction)", _POINTS_A_FRONT)
        if self.parameters.modes[1] >= min(self.grid):
            raise ConfigError(
                f"the grid {self.grid} is too coarse for the initial states of {self.family}",
                key="generate.parameters.modes",
                found=self.parameters.modes[1],
                expected=f"below {min(self.grid)}: two points for each wave of sin(pi i x)",
            )

    def draw_state(self, rng: Generator, parameters: Mapping[str, float]) -> Tensor:
        """One sample at t = 0, (1, *grid): K^-2 sum_ij a_ij (i^2 + j^2)^-p sin(pi i x) sin(pi j y), i and j from 1 to
        K, a_ij uniform in -1 .. 1. It is continuous and vanishes along the axes; odd i or j leave a kink there."""
        count = draw_count(rng, self.parameters.modes)
        decay = draw_uniform(rng, self.parameters.decay)
        amplitude = torch.from_numpy(rng.uniform(-1, 1, size=(count, count)))
        mode = torch.arange(1, count + 1, dtype=torch.float64)
        amplitude = amplitude * (mode[:, None] ** 2 + mode**2) ** -decay / count**2
        sine_x, sine_y = (
            torch.sin(math.pi * mode[:, None] * torch.arange(n, dtype=torch.float64) / n) for n in self.grid
        )
        return (sine_x.T @ amplitude @ sine_y)[None]

    def largest_step(self, duration: float) -> float:
        """Reaction bound h 2 r <= 2.78: both phases, u = 1 and -1, draw their surroundings in at the rate 2 r."""
        return REAL_STABILITY / (2 * self.parameters.reaction[1])

    def problem(self, parameters: Mapping[str, Tensor], initial: Tensor) -> SemilinearProblem:
        """Diffusion is linear; the reaction is evaluated on the grid.

        Its growth r u is not part of the linear operator: a real transform holds imaginary parts that are no grid
        values (of the constant, for one). The reaction never sees these, and their rounding errors would grow as
        exp(r t) for ever.
        """
        basis = FourierBasis(self.grid, self.lengths, initial)
        reaction = parameters["reaction"].to(initial.dtype)

        def nonlinear(coefficients: Tensor) -> Tensor:
            u = basis.inverse(coefficients)
            return basis.forward(reaction * (u - u**3))

        return SemilinearProblem(basis, parameters["diffusivity"] * basis.laplacian, nonlinear)
