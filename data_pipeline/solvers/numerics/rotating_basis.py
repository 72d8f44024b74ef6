"""The modes of linear rotating shallow water: geostrophic flow, and inertia-gravity waves in both directions."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from data_pipeline.solvers.numerics.basis import FourierBasis


class RotatingBasis(FourierBasis):
    """Amplitudes of the three modes of each wavevector k, of height and velocities in a periodic box.

    With c = sqrt(g depth) and eta scaled by sqrt(g / depth) to a velocity, the linear equations

        eta_t = -c div u, u_t = f v - c eta_x, v_t = -f u - c eta_y

    turn the three Fourier coefficients of each k by a skew-Hermitian matrix, with the eigenvalues 0 (geostrophic
    balance) and +-i omega, omega^2 = f^2 + c^2 |k|^2; its eigenvectors are orthonormal. For waves they are, with the
    velocity along k and across it, (eta, along, across) = (-+c |k|, omega, +-i f) / (sqrt 2 omega).

    Args:
        grid: points along each axis.
        lengths: period along each axis.
        like: a tensor on the device and of the precision of the grid values.
        parameters: coriolis, gravity and depth, float64 (B, 1, 1, 1).
        vorticity: whether `inverse` gives the vorticity after the velocities.

    Attributes:
        frequencies: eigenvalue of each mode, complex128 (B, 3, *modes).
    """

    def __init__(
        self,
        grid: tuple[int, ...],
        lengths: tuple[float, ...],
        like: Tensor,
        parameters: Mapping[str, Tensor],
        *,
        vorticity: bool = False,
    ) -> None:
        super().__init__(grid, lengths, like)
        self.vorticity = vorticity
        f, gravity, self.depth = (parameters[name].double() for name in ("coriolis", "gravity", "depth"))
        self.depth = self.depth.to(like.dtype)
        self.scale = (gravity / parameters["depth"]).sqrt().to(like.dtype)
        kx, ky = (d.imag.double() + 0 * self.laplacian for d in self.derivatives)
        k = torch.hypot(kx, ky)
        # At k = 0 any direction will do: the mean flow turns with frequency f, the mean height stays.
        along_x, along_y = torch.where(k > 0, kx / k, 1.0), torch.where(k > 0, ky / k, 0.0)
        omega = torch.sqrt(f**2 + gravity * parameters["depth"] * k**2)
        turning = torch.where(omega > 0, f / omega, 1.0)
        waving = torch.where(omega > 0, (gravity * parameters["depth"]).sqrt() * k / omega, 0.0)
        self.frequencies = 1j * torch.cat([torch.zeros_like(omega), omega, -omega], dim=1)
        geostrophic = torch.cat([turning, -1j * waving * along_y, 1j * waving * along_x], dim=1)
        waves = [
            torch.cat(
                [
                    -sign * waving + 0j,
                    along_x - 1j * sign * turning * along_y,
                    along_y + 1j * sign * turning * along_x,
                ],
                dim=1,
            )
            / math.sqrt(2)
            for sign in (1, -1)
        ]
        self.vectors = torch.stack([geostrophic, *waves], dim=2).to(like.dtype.to_complex())
        """Column j holds mode j as (eta, u, v), (B, 3, 3, *modes)."""
        self.adjoint = self.vectors.conj().transpose(1, 2).resolve_conj().contiguous()

    def to_modes(self, coefficients: Tensor) -> Tensor:
        """Amplitudes (B, 3, *modes) of Fourier coefficients (B, 3, *modes) of scaled eta, u, v."""
        return (self.adjoint * coefficients.unsqueeze(1)).sum(2)

    def to_fourier(self, amplitudes: Tensor) -> Tensor:
        """The inverse of `to_modes`."""
        return (self.vectors * amplitudes.unsqueeze(1)).sum(2)

    def forward(self, values: Tensor) -> Tensor:
        """Amplitudes (B, 3, *modes) of height and velocities (B, 3, *grid)."""
        eta = (values[:, :1] - self.depth) * self.scale
        return self.to_modes(super().forward(torch.cat([eta, values[:, 1:]], dim=1)))

    def inverse(self, coefficients: Tensor) -> Tensor:
        """Height, velocities and perhaps vorticity (B, 3 or 4, *grid) of amplitudes (B, 3, *modes)."""
        fourier = self.to_fourier(coefficients)
        if self.vorticity:
            dx, dy = self.derivatives
            fourier = torch.cat([fourier, dx * fourier[:, 2:] - dy * fourier[:, 1:2]], dim=1)
        values = super().inverse(fourier)
        return torch.cat([self.depth + values[:, :1] / self.scale, values[:, 1:]], dim=1)
