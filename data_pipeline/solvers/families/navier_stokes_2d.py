"""Forced incompressible flow on the unit torus, in vorticity: the data of the Fourier neural operator's paper."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from numpy.random import Generator
from torch import Tensor

from data_pipeline.solvers.base import PositiveRange, Range
from data_pipeline.solvers.basis import FourierBasis
from data_pipeline.solvers.etd import IMAGINARY_STABILITY
from data_pipeline.solvers.random_field import gaussian_field, vorticity_amplitude
from data_pipeline.solvers.semilinear import SemilinearParameters, SemilinearProblem, SemilinearSolver, Step
from data_pipeline.trajectory import Boundary

_INITIAL_SPEED = 0.15
"""Largest |u| + |v| of a hundred initial fields; the standard deviation of u is 0.024."""


class NavierStokes2DParameters(SemilinearParameters):
    """Parameters of `navier_stokes_2d`."""

    step: Step = 0.02
    viscosity: PositiveRange = (1e-3, 1e-3)
    forcing: Range = (0.1, 0.1)
    """Amplitude A of the force A (sin 2 pi (x + y) + cos 2 pi (x + y))."""


class NavierStokes2D(SemilinearSolver[NavierStokes2DParameters]):
    """Vorticity w on [0, 1)^2: w_t + u w_x + v w_y = nu Lap w + f, (u, v) = (psi_y, -psi_x), -Lap psi = w.

    Initial field, force and dealiasing are those of Li et al. (2021). They step with Crank-Nicolson and forward Euler
    at 1e-4; ETDRK4 is as accurate at a step hundreds of times longer (`validation/test_navier_stokes_2d.py`).
    """

    family: ClassVar[str] = "navier_stokes_2d"
    equation: ClassVar[str] = "w_t + u.grad w = nu Lap w + f, u = (psi_y, -psi_x), -Lap psi = w"
    scheme: ClassVar[str] = "Fourier pseudo-spectral, 2/3 rule, ETDRK4"
    channels: ClassVar[tuple[str, ...]] = ("vorticity",)
    axes: ClassVar[tuple[str, ...]] = ("x", "y")
    extent: ClassVar[tuple[tuple[float, float], ...]] = ((0.0, 1.0), (0.0, 1.0))
    boundaries: ClassVar[tuple[Boundary, ...]] = ("periodic", "periodic")
    placement = "nodes"
    parameter_names: ClassVar[tuple[str, ...]] = ("viscosity", "forcing")
    parameters_class = NavierStokes2DParameters

    @property
    def translation_invariant(self) -> bool:
        """The force is fixed in space."""
        return self.parameters.forcing == (0.0, 0.0)

    def draw_state(self, rng: Generator, parameters: Mapping[str, float]) -> Tensor:
        """Initial vorticity of one sample, (1, *grid): Gaussian, alpha = 2.5, tau = 7, standard deviation 0.262."""
        return gaussian_field(rng, (self.grid[0], self.grid[1]), vorticity_amplitude, (max(self.grid) - 1) // 2)[None]

    def largest_step(self, duration: float) -> float:
        """Advection bound h k_max (|u| + |v|) <= 2 sqrt 2, with the speed of the initial field and of the force.

        The force alone drives a parallel flow of vorticity A sqrt 2 (1 - exp(-8 pi^2 nu t)) / (8 pi^2 nu).
        """
        decay = 8 * math.pi**2 * self.parameters.viscosity[0]
        forcing = max(abs(bound) for bound in self.parameters.forcing)
        forced_vorticity = math.sqrt(2) * forcing * (1 - math.exp(-decay * duration)) / decay
        # psi = w / (8 pi^2), and both velocities are 2 pi psi.
        speed = _INITIAL_SPEED + 2 * forced_vorticity / (4 * math.pi)
        largest_wavenumber = 2 * math.pi * max(self.grid) / 3
        return IMAGINARY_STABILITY / (largest_wavenumber * speed)

    def problem(self, parameters: Mapping[str, Tensor], device: torch.device) -> SemilinearProblem:
        """Diffusion is linear; advection and the force are not stepped exactly."""
        basis = FourierBasis(self.grid, self.lengths, device)
        dx, dy = basis.derivatives
        inverse_laplacian = torch.where(basis.laplacian == 0, 0.0, -1 / basis.laplacian)
        # One transform for all four: u, v, w_x, w_y.
        multipliers = torch.stack([dy * inverse_laplacian, -dx * inverse_laplacian, dx + 0 * dy, dy + 0 * dx])
        x, y = self.coordinates()
        phase = 2 * math.pi * (x + y).to(device)
        force = basis.forward(parameters["forcing"] * (torch.sin(phase) + torch.cos(phase)))

        def nonlinear(vorticity: Tensor) -> Tensor:
            u, v, w_x, w_y = basis.inverse(vorticity * multipliers).unbind(1)
            return force - basis.dealias * basis.forward(u * w_x + v * w_y).unsqueeze(1)

        return SemilinearProblem(basis, parameters["viscosity"] * basis.laplacian, nonlinear)
