"""Incompressible flow in two dimensions, in vorticity, on a periodic box: what its families share."""

import math
from abc import abstractmethod
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from data_pipeline.base.errors import ConfigError
from data_pipeline.solvers.numerics.basis import FourierBasis
from data_pipeline.solvers.numerics.etd import IMAGINARY_STABILITY
from data_pipeline.solvers.semilinear import SemilinearParameters, SemilinearProblem, SemilinearSolver

_CUTOFF = 0.5
"""Least k_max times the viscous length: below it, what viscosity should end is cut off by the grid instead."""


VorticityT = TypeVar("VorticityT", bound=SemilinearParameters)


class VorticitySolver(SemilinearSolver[VorticityT]):
    """w_t + u w_x + v w_y = nu Lap w - mu w + f on a periodic box, (u, v) = (psi_y, -psi_x), -Lap psi = w.

    The state holds w, and a family may let a force follow that was drawn for the sample. A family gives the viscosity,
    the drag, the force, and the scales of its flow; this class steps it and refuses what cannot be resolved.
    """

    scheme: ClassVar[str] = "Fourier pseudo-spectral, 2/3 rule, ETDRK4"
    channels = ("vorticity",)
    axes = ("x", "y")
    extent = ((0.0, 1.0), (0.0, 1.0))
    boundaries = ("periodic", "periodic")
    placement = "nodes"

    @abstractmethod
    def scales(self, duration: float) -> tuple[float, float]:
        """Estimates of the largest |u| + |v| and of the root mean square vorticity up to time `duration`."""

    @abstractmethod
    def least_viscosity(self) -> float:
        """The smallest viscosity of any trajectory."""

    def check(self, start: float, dt: float, frames: int) -> None:
        """Refuse a grid that is too coarse for the viscosity, and an unstable step.

        In two dimensions viscosity ends the cascade of enstrophy at about the length (nu^3 / chi)^(1/6), chi the rate
        of its dissipation (Kraichnan, Phys. Fluids 10, 1967; Batchelor, Phys. Fluids Suppl. II, 1969). With chi of the
        order of the vorticity cubed this is (nu / w)^(1/2). The largest wavenumber that the 2/3 rule keeps, times this
        length, must be at least 1/2.
        """
        _, vorticity = self.scales(start + (frames - 1) * dt)
        largest = min(2 * math.pi / length * n / 3 for n, length in zip(self.grid, self.lengths, strict=True))
        found = largest * math.sqrt(self.least_viscosity() / vorticity) if vorticity else math.inf
        if found < _CUTOFF:
            needed = math.ceil(min(self.grid) * _CUTOFF / found)
            raise ConfigError(
                f"the grid of {self.family}, {self.grid}, is too coarse for a viscosity of {self.least_viscosity():g}",
                key="generate.resolution, generate.parameters.refine",
                found=f"k_max sqrt(nu / w) = {found:.2g} at a vorticity of {vorticity:.3g}",
                expected=f"at least {_CUTOFF}: {needed} points along each axis, stored ones times parameters.refine",
            )
        super().check(start, dt, frames)

    def largest_step(self, duration: float) -> float:
        """Advection bound h k_max (|u| + |v|) <= 2 sqrt 2."""
        speed, _ = self.scales(duration)
        spacing = min(length / n for n, length in zip(self.grid, self.lengths, strict=True))
        return IMAGINARY_STABILITY * 3 * spacing / (2 * math.pi * speed) if speed else math.inf

    def flow(
        self, viscosity: Tensor, initial: Tensor, force: Tensor | None = None, drag: Tensor | None = None
    ) -> SemilinearProblem:
        """The equation for a batch: diffusion and drag are linear, advection is evaluated on the grid.

        Args:
            viscosity, drag: float64, broadcast against the state.
            initial: decides device and precision.
            force: f on the grid, broadcasts against the state (B, 1, *grid).
        """
        basis = FourierBasis(self.grid, self.lengths, initial)
        linear = viscosity * basis.laplacian
        if drag is not None:
            linear = linear - drag
        coefficients = None if force is None else basis.forward(force.to(initial.dtype))
        return SemilinearProblem(basis, linear, Advection(basis, coefficients))


class Advection:
    """f - u.grad w in Fourier coefficients, by Basdevant's form (J. Comput. Phys. 50, 1983).

    On the grid u.grad w = (d_xx - d_yy)(u v) + d_xy (v^2 - u^2): four transforms, two each way, where u w_x + v w_y
    takes five. The velocity is that of the modes within the 2/3 rule, so the products have no aliasing errors, and
    advection conserves the energy and the enstrophy of these modes exactly.

    Args:
        basis: of (nx, ny) points.
        force: coefficients of f, or None.
    """

    def __init__(self, basis: FourierBasis, force: Tensor | None) -> None:
        self.basis = basis
        dx, dy = (derivative.to(torch.complex128) for derivative in basis.derivatives)
        kept = basis.dealias.double()
        inverse = torch.where(basis.laplacian == 0, 0.0, -kept / basis.laplacian)
        precision = basis.dealias.dtype
        # u and v from w; then minus both derivatives, each real number twice, for real and imaginary part.
        self.velocity = torch.stack([dy * inverse, -dx * inverse]).to(precision.to_complex())
        second = torch.stack([dy**2 - dx**2 + 0 * dy, -dx * dy]).real * kept
        self.products = torch.stack([second, second], dim=-1).to(precision)
        self.force = None if force is None else torch.view_as_real(force)

    def __call__(self, vorticity: Tensor) -> Tensor:
        """(B, 1, nx, ny/2 + 1) from and to coefficients."""
        both = self.basis.inverse(vorticity * self.velocity)
        u, v = both[:, 0], both[:, 1]
        products = torch.empty_like(both)
        torch.mul(u, v, out=products[:, 0])
        torch.mul(v - u, u.add_(v), out=products[:, 1])
        transformed = torch.view_as_real(self.basis.forward(products))
        first, second = transformed[:, :1], transformed[:, 1:]
        rate = self.products[0] * first if self.force is None else torch.addcmul(self.force, self.products[0], first)
        return torch.view_as_complex(rate.addcmul_(self.products[1], second))
