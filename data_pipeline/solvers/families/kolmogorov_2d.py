"""Kolmogorov flow: a sinusoidal shear force keeps two-dimensional turbulence going."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Annotated, ClassVar

import torch
from numpy.random import Generator
from pydantic import Field
from torch import Tensor

from data_pipeline.base.errors import ConfigError
from data_pipeline.solvers.base import NonNegativeRange, PositiveRange, Range
from data_pipeline.solvers.families.vorticity import VorticitySolver
from data_pipeline.solvers.numerics.random_field import gaussian_field, vorticity_amplitude
from data_pipeline.solvers.semilinear import SemilinearParameters, SemilinearProblem, Step

_LENGTH = 2 * math.pi

_INITIAL_SPEED = 3.0
"""Largest |u| + |v| of the initial fields; 2.9 in a hundred of them."""

_INITIAL_VORTICITY = 2.0
"""Its root mean square there."""

_TURBULENT_VORTICITY = 3.0
"""Root mean square vorticity over sqrt(k A), at most; 2 to 2.9 in runs at Re 100 .. 1000, k = 4 and 8."""


class Kolmogorov2DParameters(SemilinearParameters):
    """Parameters of `kolmogorov_2d`."""

    step: Step = 2e-3
    reynolds: PositiveRange = (1000.0, 1000.0)
    """Re; the viscosity is 1 / Re."""
    amplitude: Range = (1.0, 1.0)
    """A of the force A sin(k y) on the velocity along x; that on the vorticity is -A k cos(k y)."""
    drag: NonNegativeRange = (0.1, 0.1)
    """Rate mu of the linear friction -mu w."""
    wavenumber: Annotated[int, Field(ge=1)] = 8
    """k of the force."""


class Kolmogorov2D(VorticitySolver[Kolmogorov2DParameters]):
    """w_t + u.grad w = Lap w / Re - mu w - A k cos(k y) on [0, 2 pi)^2, (u, v) = (psi_y, -psi_x), -Lap psi = w.

    Initial vorticity: the Gaussian field of `navier_stokes_2d` with alpha = 2.5, tau = 7 in this box. Begin to store
    (`start`) when the flow has forgotten it.
    """

    family: ClassVar[str] = "kolmogorov_2d"
    equation: ClassVar[str] = "w_t + u.grad w = Lap w / Re - mu w - A k cos(k y), u = (psi_y, -psi_x), -Lap psi = w"
    extent = ((0.0, _LENGTH), (0.0, _LENGTH))
    parameter_names: ClassVar[tuple[str, ...]] = ("reynolds", "amplitude", "drag")
    parameters_class = Kolmogorov2DParameters

    @property
    def translation_invariant(self) -> bool:
        """The force is fixed in space."""
        return self.parameters.amplitude == (0.0, 0.0)

    def least_viscosity(self) -> float:
        """That of the largest Reynolds number."""
        return 1 / self.parameters.reynolds[1]

    def check(self, start: float, dt: float, frames: int) -> None:
        """Refuse a force that the grid cannot hold, besides what every flow is checked for."""
        largest = (self.resolution[1] - 1) // 3
        if self.parameters.wavenumber > largest:
            raise ConfigError(
                f"{self.resolution[1]} points along y cannot hold the force of {self.family}",
                key="generate.parameters.wavenumber",
                found=self.parameters.wavenumber,
                expected=f"at most {largest}, a third of the points",
            )
        super().check(start, dt, frames)

    def scales(self, duration: float) -> tuple[float, float]:
        """Those of the initial field and of the laminar flow that the force would drive; the vorticity of turbulence
        where that is less."""
        k = self.parameters.wavenumber
        amplitude = max(abs(bound) for bound in self.parameters.amplitude)
        decay = self.parameters.drag[0] + k**2 * self.least_viscosity()
        driven = amplitude * -math.expm1(-decay * duration) / decay
        vorticity = min(k * driven / math.sqrt(2), _TURBULENT_VORTICITY * math.sqrt(k * amplitude))
        return _INITIAL_SPEED + driven, math.hypot(_INITIAL_VORTICITY, vorticity)

    def draw_state(self, rng: Generator, parameters: Mapping[str, float]) -> Tensor:
        """Initial vorticity of one sample, (1, *grid)."""
        grid = (self.grid[0], self.grid[1])
        amplitude = partial(vorticity_amplitude, length=_LENGTH)
        return gaussian_field(rng, grid, amplitude, (max(grid) - 1) // 2)[None]

    def problem(self, parameters: Mapping[str, Tensor], initial: Tensor) -> SemilinearProblem:
        """Diffusion and friction are linear; advection and the force are not stepped exactly."""
        k = self.parameters.wavenumber
        wave = -k * torch.cos(k * self.coordinates()[1]).to(initial.device)
        return self.flow(1 / parameters["reynolds"], initial, parameters["amplitude"] * wave, parameters["drag"])
