"""Decaying turbulence in three dimensions, in a periodic box."""

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from numpy.random import Generator
from pydantic import Field
from torch import Tensor

from data_pipeline.base.errors import ConfigError
from data_pipeline.solvers.base import PositiveRange
from data_pipeline.solvers.numerics.basis import FourierBasis
from data_pipeline.solvers.numerics.etd import IMAGINARY_STABILITY
from data_pipeline.solvers.numerics.random_field import gaussian_field
from data_pipeline.solvers.semilinear import SemilinearParameters, SemilinearProblem, SemilinearSolver, Step

_LARGEST = 6.0
"""Largest |u| + |v| + |w| over the rms speed: 5.2 in 60 random fields with peak 2, 5.7 with peak 4."""
_CUTOFF = 2.5
"""Largest wavenumber of the random field over that of its peak; a thousandth of the peak's energy is left there."""
_DISSIPATION = {"random": 0.06, "taylor_green": 0.1}
"""Largest dissipation of the decay over speed^3 peak (peak 1 for the vortices of Taylor and Green), on 48^3 points."""


class NavierStokes3DParameters(SemilinearParameters):
    """Parameters of `navier_stokes_3d`."""

    step: Step = 0.02
    initial: Literal["random", "taylor_green"] = "random"
    """A random solenoidal field, or the vortices of Taylor and Green; these about a random origin."""
    peak: Annotated[float, Field(ge=1, le=16)] = 2.0
    """Wavenumber of the largest energy of the random field."""
    viscosity: PositiveRange = (0.03, 0.03)
    """Kinematic viscosity nu."""
    speed: PositiveRange = (1.0, 1.0)
    """Root of the mean of |u|^2 at the start."""


class NavierStokes3D(SemilinearSolver[NavierStokes3DParameters]):
    """u_t = u x curl u - grad (p + |u|^2 / 2) + nu Lap u, div u = 0 on [0, 2 pi)^3, without a force.

    The rotational form with the 2/3 rule keeps energy and helicity where there is no viscosity. The random start is
    Gaussian with the spectrum E(k) ~ k^4 exp(-2 (k / peak)^2), brought to the speed asked for.
    """

    family: ClassVar[str] = "navier_stokes_3d"
    equation: ClassVar[str] = "u_t + u.grad u = -grad p + nu Lap u, div u = 0"
    scheme: ClassVar[str] = "Fourier pseudo-spectral, rotational form, 2/3 rule, ETDRK4"
    channels = ("velocity_x", "velocity_y", "velocity_z")
    axes = ("x", "y", "z")
    extent = ((0.0, 2 * math.pi),) * 3
    boundaries = ("periodic", "periodic", "periodic")
    placement = "nodes"
    parameter_names: ClassVar[tuple[str, ...]] = ("viscosity", "speed")
    parameters_class = NavierStokes3DParameters

    def check(self, start: float, dt: float, frames: int) -> None:
        """Refuse an unstable step, and a grid that holds neither the initial field nor the smallest eddies.

        The largest wavenumber kept, k_max < n / 3, has to reach the initial field's largest, and 1 / eta, where
        eta = (nu^3 / epsilon)^(1/4) is Kolmogorov's length at the largest dissipation of the decay: the least that the
        usual rule for resolved turbulence allows, k_max eta from 1 to 1.5.
        """
        super().check(start, dt, frames)
        parameters, largest = self.parameters, (min(self.grid) - 1) // 3
        slowest, fastest = parameters.viscosity[0], parameters.speed[1]
        peak = parameters.peak if parameters.initial == "random" else 1.0
        finest = (_DISSIPATION[parameters.initial] * fastest**3 * peak / slowest**3) ** 0.25
        needed = max(finest, self._largest_mode())
        if largest < needed:
            raise ConfigError(
                "the grid is too coarse for " + ("the smallest eddies" if needed == finest else "the initial field"),
                key="generate.resolution",
                found=f"{list(self.grid)}, wavenumbers up to {largest}",
                expected=f"at least {3 * math.ceil(needed) + 1} points an axis, wavenumbers up to {needed:.3g}, "
                f"at viscosity {slowest:g} and speed {fastest:g}",
            )

    def largest_step(self, duration: float) -> float:
        """Advection bound h k_max (|u| + |v| + |w|) <= 2 sqrt 2, with the speed at the start: it decays."""
        speed = _LARGEST * self.parameters.speed[1]
        return IMAGINARY_STABILITY / (speed * max(self.grid) / 3)

    def draw_state(self, rng: Generator, parameters: Mapping[str, float]) -> Tensor:
        """The velocity of one sample, (3, *grid), without divergence and with the mean of |u|^2 at speed^2."""
        if self.parameters.initial == "taylor_green":
            origin = rng.random(3) * 2 * math.pi
            x, y, z = (line - shift for line, shift in zip(self.coordinates(), origin, strict=True))
            velocity = torch.stack([torch.sin(x) * torch.cos(y), -torch.cos(x) * torch.sin(y), torch.zeros_like(x)])
            # The mean square of the vortices is 1/4.
            return 2 * parameters["speed"] * velocity * torch.cos(z)
        largest, peak = self._largest_mode(), self.parameters.peak

        def amplitude(squared: Tensor) -> Tensor:
            # E(k) is shared by the 4 pi k^2 modes of its sphere.
            return torch.where(squared <= largest**2, squared.sqrt() * torch.exp(-squared / peak**2), 0.0)

        grid = (self.grid[0], self.grid[1], self.grid[2])
        velocity = torch.stack([gaussian_field(rng, grid, amplitude, largest) for _ in range(3)])
        basis = FourierBasis(self.grid, self.lengths, velocity)
        velocity = basis.inverse(_Solenoidal(basis)(basis.forward(velocity)))
        rms = velocity.square().sum(0).mean().sqrt()
        return velocity * (parameters["speed"] / rms)

    def problem(self, parameters: Mapping[str, Tensor], initial: Tensor) -> SemilinearProblem:
        """Diffusion is linear; the pressure takes the divergence of u x curl u."""
        basis = FourierBasis(self.grid, self.lengths, initial)
        solenoidal = _Solenoidal(basis)

        def nonlinear(velocity: Tensor) -> Tensor:
            u = basis.inverse(velocity)
            vorticity = basis.inverse(_curl(velocity, basis))
            return solenoidal(basis.forward(torch.linalg.cross(u, vorticity, dim=1)).mul_(basis.dealias))

        return SemilinearProblem(basis, parameters["viscosity"] * basis.laplacian, nonlinear)

    def _largest_mode(self) -> int:
        return math.ceil(_CUTOFF * self.parameters.peak) if self.parameters.initial == "random" else 1


class _Solenoidal:
    """The part without divergence of velocity coefficients (..., 3, *modes): u - k (k.u) / k^2."""

    def __init__(self, basis: FourierBasis) -> None:
        self.gradient = basis.derivatives
        squared = sum((d * d for d in basis.derivatives), start=torch.zeros_like(basis.derivatives[0]))
        self.inverse = torch.where(squared == 0, 0.0, 1 / squared)

    def __call__(self, velocity: Tensor) -> Tensor:
        """`velocity` less its divergence, in place."""
        x, y, z = velocity.unbind(-4)
        dx, dy, dz = self.gradient
        potential = (dx * x + dy * y + dz * z).mul_(self.inverse)
        for component, derivative in zip((x, y, z), self.gradient, strict=True):
            component.addcmul_(derivative, potential, value=-1)
        return velocity


def _curl(velocity: Tensor, basis: FourierBasis) -> Tensor:
    """Coefficients of the curl of (..., 3, *modes)."""
    x, y, z = velocity.unbind(-4)
    dx, dy, dz = basis.derivatives
    return torch.stack([dy * z - dz * y, dz * x - dx * z, dx * y - dy * x], dim=-4)
