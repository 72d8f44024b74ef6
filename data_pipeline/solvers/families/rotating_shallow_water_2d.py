"""Rotating shallow water in a periodic box: eddies and jets in geostrophic balance, with inertia-gravity waves."""

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar

import numpy as np
import torch
from numpy.random import Generator
from pydantic import AfterValidator, Field
from torch import Tensor

from data_pipeline.base.errors import ConfigError
from data_pipeline.solvers.base import PositiveRange, Range
from data_pipeline.solvers.numerics.basis import FourierBasis
from data_pipeline.solvers.numerics.etd import IMAGINARY_STABILITY
from data_pipeline.solvers.numerics.random_field import gaussian_field
from data_pipeline.solvers.numerics.rotating_basis import RotatingBasis
from data_pipeline.solvers.semilinear import SemilinearParameters, SemilinearProblem, SemilinearSolver, Step
from data_pipeline.trajectory import FloatArray

_JETS = (2, 3, 4)
"""Waves of the zonal flow across the box, of which each sample draws one."""

_PEAK = 4.0
"""Largest value of a random field in its standard deviations, about."""


def _share(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= value[0] <= value[1] <= 1:
        raise ValueError("expected shares in 0 .. 1")
    return value


Share = Annotated[Range, AfterValidator(_share)]


class RotatingShallowWater2DParameters(SemilinearParameters):
    """Parameters of `rotating_shallow_water_2d`. Lengths are in units of the box; with gravity and depth 1 the time
    unit is that in which a long gravity wave crosses it."""

    step: Step = 0.01
    coriolis: Range = (6.0, 12.0)
    """f; the radius of deformation is sqrt(gravity depth) / f."""
    gravity: PositiveRange = (1.0, 1.0)
    """Acceleration g."""
    depth: PositiveRange = (1.0, 1.0)
    """Mean depth."""
    speed: PositiveRange = (0.05, 0.15)
    """Root mean square of the initial balanced velocity."""
    jet: Share = (0.0, 0.8)
    """Share of the zonal jet in the energy of that velocity; the rest are eddies."""
    waves: Share = (0.0, 0.02)
    """Standard deviation of the initial height that no flow balances, as a share of the depth: it becomes waves."""
    hyperviscosity: PositiveRange = (4e-8, 4e-8)
    """nu of -nu Lap^2, which damps all three fields alike."""
    eddies: Annotated[float, Field(ge=1)] = 4.0
    """Wavelengths of a typical eddy across the box."""
    vorticity: bool = False
    """Store the vorticity too; it follows from the velocities."""


class RotatingShallowWater2D(SemilinearSolver[RotatingShallowWater2DParameters]):
    """Shallow water on an f-plane, [0, 1)^2 periodic, h = depth + eta.

    u_t + u.grad u - f v = -g h_x - nu Lap^2 u, v_t + u.grad v + f u = -g h_y - nu Lap^2 v,
    h_t + div(h u) = -nu Lap^2 h.

    A stand-in for PDEArena's shallow water, which is on the sphere: same physics, but no poles, no change of f with
    latitude, no relief. Waves and balance are stepped exactly: the linear part is diagonal in the modes of the
    f-plane (`RotatingBasis`); ETDRK4 takes the rest in steps that the flow sets, not the much faster waves.
    """

    family: ClassVar[str] = "rotating_shallow_water_2d"
    equation: ClassVar[str] = (
        "u_t + u.grad u + f k x u = -g grad h - nu Lap^2 u, h_t + div(h u) = -nu Lap^2 h (f-plane, not the sphere)"
    )
    scheme: ClassVar[str] = "Fourier pseudo-spectral, 2/3 rule, inertia-gravity modes, ETDRK4"
    channels: tuple[str, ...] = ("height", "velocity_x", "velocity_y")
    axes = ("x", "y")
    extent = ((0.0, 1.0), (0.0, 1.0))
    boundaries = ("periodic", "periodic")
    placement = "nodes"
    parameter_names: ClassVar[tuple[str, ...]] = (
        "coriolis", "gravity", "depth", "speed", "jet", "waves", "hyperviscosity",
    )  # fmt: skip
    parameters_class = RotatingShallowWater2DParameters

    def __init__(self, resolution: tuple[int, ...], parameters: RotatingShallowWater2DParameters) -> None:
        if parameters.vorticity:
            self.channels = (*self.channels, "vorticity")
        super().__init__(resolution, parameters)

    def check(self, start: float, dt: float, frames: int) -> None:
        """Refuse a flow that balance would dry out, a grid that damps too late, and an unstable step.

        The damping must be as fast at the grid's largest wavenumber as the eddies turn, speed times wavenumber:
        else vorticity piles up there.
        """
        p = self.parameters
        reach = max(_PEAK / math.sqrt(2) / p.eddies, 1 / min(_JETS)) * math.sqrt(2) / (2 * math.pi)
        balanced = reach * max(abs(f) for f in p.coriolis) * p.speed[1] / p.gravity[0]
        highest = balanced + _PEAK * p.waves[1] * p.depth[1]
        if highest >= p.depth[0]:
            raise ConfigError(
                "the flow is too fast for the depth: its balance needs a height below the bottom",
                key="generate.parameters.speed, coriolis, waves",
                found=f"a height that varies by {highest:.3g}",
                expected=f"below the depth, {p.depth[0]:.3g}",
            )
        if 2 * (p.eddies + 3) >= min(self.grid):
            raise ConfigError(
                f"the grid of {self.grid} is too coarse for the eddies",
                key="generate.parameters.eddies",
                found=p.eddies,
                expected=f"below {min(self.grid) / 2 - 3:g}",
            )
        largest = 2 * math.pi / 3 * min(self.grid)
        least = 2 * math.pi * p.eddies * p.speed[1] / largest**4
        if p.hyperviscosity[0] < least:
            raise ConfigError(
                f"the grid of {self.grid} is too coarse for so little hyperviscosity",
                key="generate.parameters.hyperviscosity",
                found=p.hyperviscosity[0],
                expected=f"at least {least:.3g}; or a finer grid (resolution, parameters.refine)",
            )
        super().check(start, dt, frames)

    def largest_step(self, duration: float) -> float:
        """Advection bound h k_max speed <= 2 sqrt 2, with the largest initial velocity and the change of the speed of
        waves with the height, both of which are stepped explicitly."""
        p = self.parameters
        waves = math.sqrt(p.gravity[1] * p.depth[1]) * _PEAK * p.waves[1] / 2
        speed = _PEAK * p.speed[1] + waves
        return IMAGINARY_STABILITY / (2 * math.pi * max(self.grid) / 3 * math.sqrt(2) * speed)

    def draw_state(self, rng: Generator, parameters: Mapping[str, float]) -> Tensor:
        """Height and velocities, (3, *grid): f psi / g + depth + unbalanced height, and (-psi_y, psi_x).

        The stream function psi is a sine in y of random phase, the jet, and a Gaussian field whose modes lie within
        about 2 of `eddies`, scaled to their shares of the energy.
        """
        grid = (self.grid[0], self.grid[1])
        ring = self.parameters.eddies
        jets, phase = int(rng.choice(_JETS)), 2 * math.pi * rng.random()
        largest = math.ceil(ring) + 3

        def amplitude(squared: Tensor) -> Tensor:
            return torch.where(squared > 0, torch.exp(-0.5 * (squared.sqrt() - ring) ** 2), 0.0)

        eddies, ripples = (gaussian_field(rng, grid, amplitude, largest) for _ in range(2))
        jet = torch.sin(2 * math.pi * jets * self.coordinates()[1] + phase)
        basis = FourierBasis(grid, self.lengths, eddies)
        share = parameters["jet"]
        psi = torch.zeros_like(eddies)
        for part, energy in ((jet, share), (eddies, 1 - share)):
            u, v = _rotated_gradient(part, basis)
            psi += part * parameters["speed"] * math.sqrt(energy) / float((u**2 + v**2).mean().sqrt())
        ripples *= parameters["waves"] * parameters["depth"] / float(ripples.square().mean().sqrt())
        height = parameters["depth"] + parameters["coriolis"] / parameters["gravity"] * psi + ripples
        return torch.stack([height, *_rotated_gradient(psi, basis)])

    def problem(self, parameters: Mapping[str, Tensor], initial: Tensor) -> SemilinearProblem:
        """Coriolis force, pressure, mean divergence and damping are linear; the rest is, in vector-invariant form,
        zeta v - B_x, -zeta u - B_y with B = (u^2 + v^2) / 2, and -div(eta u)."""
        basis = RotatingBasis(self.grid, self.lengths, initial, parameters, vorticity=self.parameters.vorticity)
        dx, dy = basis.derivatives
        damping = parameters["hyperviscosity"] * basis.laplacian**2

        def nonlinear(modes: Tensor) -> Tensor:
            eta, u, v = basis.to_fourier(modes).unbind(1)
            values = FourierBasis.inverse(basis, torch.stack([eta, u, v, dx * v - dy * u], dim=1))
            eta, u, v, zeta = values.unbind(1)
            products = torch.stack([zeta * v, zeta * u, (u * u + v * v) / 2, eta * u, eta * v], dim=1)
            zeta_v, zeta_u, bernoulli, eta_u, eta_v = FourierBasis.forward(basis, products).unbind(1)
            rate = [-dx * eta_u - dy * eta_v, zeta_v - dx * bernoulli, -zeta_u - dy * bernoulli]
            return basis.to_modes(basis.dealias * torch.stack(rate, dim=1))

        return SemilinearProblem(basis, basis.frequencies - damping, nonlinear)

    def fault(self, fields: FloatArray) -> tuple[int, str] | None:
        """A height that is not positive."""
        low = fields[..., 0].reshape(len(fields), -1).min(axis=1)
        return (int(np.argmax(low <= 0)), f"a height of {low.min():g}") if low.min() <= 0 else None


def _rotated_gradient(psi: Tensor, basis: FourierBasis) -> tuple[Tensor, Tensor]:
    """Velocities (-psi_y, psi_x) of a stream function."""
    dx, dy = basis.derivatives
    coefficients = basis.forward(psi)
    return basis.inverse(-dy * coefficients), basis.inverse(dx * coefficients)
