"""Decaying turbulence in two dimensions: vortices merge, and nothing drives them."""

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from numpy.random import Generator
from pydantic import Field
from torch import Tensor

from data_pipeline.base.errors import ConfigError
from data_pipeline.solvers.base import PositiveRange
from data_pipeline.solvers.families.vorticity import VorticitySolver
from data_pipeline.solvers.numerics.basis import FourierBasis
from data_pipeline.solvers.numerics.random_field import gaussian_field, modes_by_shell, vorticity_amplitude
from data_pipeline.solvers.semilinear import SemilinearParameters, SemilinearProblem, Step

_LARGEST_OVER_RMS = 4.6
"""Largest |u| + |v| of an initial field over the root mean square of |u|: up to 3.2 (`gaussian`) and 4.5
(`mcwilliams`) in a hundred fields."""


class DecayingTurbulence2DParameters(SemilinearParameters):
    """Parameters of `decaying_turbulence_2d`."""

    step: Step = 0.01
    viscosity: PositiveRange = (3e-4, 3e-4)
    """Kinematic viscosity nu."""
    speed: PositiveRange = (0.1, 0.1)
    """Root mean square of the initial |u|."""
    length: Annotated[float, Field(gt=0)] = 1.0
    """Side of the box."""
    spectrum: Literal["gaussian", "mcwilliams"] = "gaussian"
    """Amplitude of the vorticity's mode of k cycles in the box. `gaussian`: (4 pi^2 k^2 + 49)^(-5/4), as for
    `navier_stokes_2d`. `mcwilliams`: k (1 + (k / peak)^4)^(-1/2), so that energy peaks near `peak`."""
    peak: Annotated[float, Field(gt=0)] = 6.0
    """Cycles in the box at the peak of `mcwilliams`."""


class DecayingTurbulence2D(VorticitySolver[DecayingTurbulence2DParameters]):
    """w_t + u.grad w = nu Lap w on [0, length)^2, (u, v) = (psi_y, -psi_x), -Lap psi = w.

    The initial field holds the modes that the stored grid keeps after dealiasing, with random phases, and is scaled to
    the given speed. The spectrum `mcwilliams` is that of McWilliams (J. Fluid Mech. 146, 1984): |psi|^2 proportional
    to k^-2 (1 + (k / 6)^4)^-1, from memory.
    """

    family: ClassVar[str] = "decaying_turbulence_2d"
    equation: ClassVar[str] = "w_t + u.grad w = nu Lap w, u = (psi_y, -psi_x), -Lap psi = w"
    parameter_names: ClassVar[tuple[str, ...]] = ("viscosity", "speed")
    parameters_class = DecayingTurbulence2DParameters

    def __init__(self, resolution: tuple[int, ...], parameters: DecayingTurbulence2DParameters) -> None:
        self.extent = ((0.0, parameters.length), (0.0, parameters.length))
        super().__init__(resolution, parameters)

    @property
    def _largest_mode(self) -> int:
        return (min(self.resolution) - 1) // 3

    def least_viscosity(self) -> float:
        """The lower end of the range."""
        return self.parameters.viscosity[0]

    def check(self, start: float, dt: float, frames: int) -> None:
        """Refuse a peak that the grid cannot hold, besides what every flow is checked for."""
        largest = self._largest_mode / 2
        if self.parameters.spectrum == "mcwilliams" and self.parameters.peak > largest:
            raise ConfigError(
                f"a grid of {self.resolution} cannot hold the spectrum of {self.family}",
                key="generate.parameters.peak",
                found=self.parameters.peak,
                expected=f"at most {largest:g}, a sixth of the points",
            )
        super().check(start, dt, frames)

    def scales(self, duration: float) -> tuple[float, float]:
        """Those of the initial field: energy and enstrophy never grow."""
        speed = self.parameters.speed[1]
        squared = torch.from_numpy((modes_by_shell(2, self._largest_mode) ** 2).sum(1)).double()
        enstrophy = self._amplitude(squared) ** 2
        energy = (enstrophy[1:] / squared[1:]).sum() * (self.parameters.length / (2 * math.pi)) ** 2
        return _LARGEST_OVER_RMS * speed, speed * math.sqrt(enstrophy.sum() / energy)

    def draw_state(self, rng: Generator, parameters: Mapping[str, float]) -> Tensor:
        """Initial vorticity of one sample, (1, *grid)."""
        vorticity = gaussian_field(rng, (self.grid[0], self.grid[1]), self._amplitude, self._largest_mode)
        basis = FourierBasis(self.grid, self.lengths, vorticity)
        inverse = torch.where(basis.laplacian == 0, 0.0, -1 / basis.laplacian)
        # The mean of |u|^2 = |grad psi|^2 is that of w psi.
        energy = (vorticity * basis.inverse(inverse * basis.forward(vorticity))).mean()
        return (vorticity * parameters["speed"] / energy.sqrt())[None]

    def problem(self, parameters: Mapping[str, Tensor], initial: Tensor) -> SemilinearProblem:
        """Diffusion is linear; advection is evaluated on the grid."""
        return self.flow(parameters["viscosity"], initial)

    def _amplitude(self, squared: Tensor) -> Tensor:
        if self.parameters.spectrum == "gaussian":
            return vorticity_amplitude(squared)
        return (squared / (1 + (squared / self.parameters.peak**2) ** 2)).sqrt()
