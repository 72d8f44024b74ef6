"""Forced incompressible flow on the unit torus, in vorticity: the data of the Fourier neural operator's paper."""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from numpy.random import Generator
from torch import Tensor

from data_pipeline.solvers.base import PositiveRange, Range
from data_pipeline.solvers.families.vorticity import VorticitySolver
from data_pipeline.solvers.numerics.random_field import gaussian_field, vorticity_amplitude
from data_pipeline.solvers.semilinear import SemilinearParameters, SemilinearProblem, Step

_INITIAL_SPEED = 0.15
"""Largest |u| + |v| of a hundred initial fields; the standard deviation of u is 0.024."""

_INITIAL_VORTICITY = 0.26
"""Its root mean square there."""

_CYCLES = 2
"""Periods of the random force's shortest waves."""

_SCALES = {
    "fno": (8 * math.pi**2, math.sqrt(2) / (2 * math.pi), 1.0),
    "symmetric": (16 * math.pi**2, 1 / (2 * math.pi), 1.0),
    "random": (4 * math.pi**2, 3.4 / (2 * math.pi), math.sqrt(2)),
}
"""Of the flow that the force (amplitude 1) would drive alone, without advection: its slowest decay over the viscosity,
and its largest |u| + |v| and root mean square vorticity as it sets in, both per unit of time."""


class NavierStokes2DParameters(SemilinearParameters):
    """Parameters of `navier_stokes_2d`."""

    step: Step = 0.02
    viscosity: PositiveRange = (1e-3, 1e-3)
    """Kinematic viscosity nu."""
    forcing: Range = (0.1, 0.1)
    """Amplitude A of the force."""
    force: Literal["fno", "symmetric", "random"] = "fno"
    """`fno`: A (sin 2 pi (x + y) + cos 2 pi (x + y)). `symmetric`: A (cos 4 pi x + cos 4 pi y), as in NS-Sym of the
    group-equivariant FNO. `random`: waves of one and two periods, drawn for each trajectory, after TorusVis of the
    factorised FNO."""


class NavierStokes2D(VorticitySolver[NavierStokes2DParameters]):
    """Vorticity w on [0, 1)^2: w_t + u w_x + v w_y = nu Lap w + f, (u, v) = (psi_y, -psi_x), -Lap psi = w.

    Initial field, force and dealiasing of products are those of Li et al. (2021). They step with Crank-Nicolson and
    forward Euler at 1e-4; ETDRK4 is as accurate at a step hundreds of times longer
    (`validation/test_navier_stokes_2d.py`).
    """

    family: ClassVar[str] = "navier_stokes_2d"
    equation: ClassVar[str] = "w_t + u.grad w = nu Lap w + f, u = (psi_y, -psi_x), -Lap psi = w"
    parameter_names: ClassVar[tuple[str, ...]] = ("viscosity", "forcing")
    parameters_class = NavierStokes2DParameters

    def __init__(self, resolution: tuple[int, ...], parameters: NavierStokes2DParameters) -> None:
        self.static_channels = ("force",) if parameters.force == "random" else ()
        super().__init__(resolution, parameters)

    @property
    def translation_invariant(self) -> bool:
        """The force is fixed in space."""
        return self.parameters.forcing == (0.0, 0.0)

    def least_viscosity(self) -> float:
        """The lower end of the range."""
        return self.parameters.viscosity[0]

    def scales(self, duration: float) -> tuple[float, float]:
        """Those of the initial field and of the flow that the force would drive alone."""
        decay, speed, vorticity = _SCALES[self.parameters.force]
        decay *= self.parameters.viscosity[0]
        driven = max(abs(bound) for bound in self.parameters.forcing) * -math.expm1(-decay * duration) / decay
        return _INITIAL_SPEED + driven * speed, math.hypot(_INITIAL_VORTICITY, driven * vorticity)

    def draw_state(self, rng: Generator, parameters: Mapping[str, float]) -> Tensor:
        """Initial vorticity of one sample, (1, *grid): Gaussian, alpha = 2.5, tau = 7, standard deviation 0.262.

        A random force follows it as a second field.
        """
        forces = [parameters["forcing"] * self._random_waves(rng)] if self.static_channels else []
        grid = (self.grid[0], self.grid[1])
        return torch.stack([gaussian_field(rng, grid, vorticity_amplitude, (max(grid) - 1) // 2), *forces])

    def static_fields(self, initial: Tensor, parameters: Mapping[str, Tensor]) -> Tensor | None:
        """The random force, which nothing else tells; (B, 1, *resolution)."""
        return self.restrict(initial[:, 1:]) if self.static_channels else None

    def problem(self, parameters: Mapping[str, Tensor], initial: Tensor) -> SemilinearProblem:
        """Diffusion is linear; advection and the force are not stepped exactly."""
        force = (
            initial[:, 1:] if self.static_channels else parameters["forcing"] * self._fixed_waves().to(initial.device)
        )
        return self.flow(parameters["viscosity"], initial, force)

    def _fixed_waves(self) -> Tensor:
        """The force at A = 1, (*grid)."""
        x, y = (2 * math.pi * axis for axis in self.coordinates())
        if self.parameters.force == "symmetric":
            return torch.cos(2 * x) + torch.cos(2 * y)
        return torch.sin(x + y) + torch.cos(x + y)

    def _random_waves(self, rng: Generator) -> Tensor:
        """Sum over p = 1, 2 and (i, j) = (0, 1), (1, 0), (1, 1) of a sin(2 pi p (i x + j y) + b) + c cos(... + d).

        a, b, c, d are uniform in 0 .. 1. (Tran et al., Factorized Fourier neural operators, 2023, from memory; their
        constant term, i = j = 0, is left out: vorticity on a torus has mean zero.)
        """
        x, y = self.coordinates()
        waves = torch.zeros_like(x)
        for p in range(1, _CYCLES + 1):
            for i, j in ((0, 1), (1, 0), (1, 1)):
                a, b, c, d = rng.random(4)
                phase = 2 * math.pi * p * (i * x + j * y)
                waves += a * torch.sin(phase + b) + c * torch.cos(phase + d)
        return waves
