"""Random initial fields, drawn mode by mode, so that a sample is the same field on every grid that can hold it."""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor


def gaussian_field(
    rng: Generator, grid: tuple[int, ...], amplitude: Callable[[Tensor], Tensor], largest: int
) -> Tensor:
    """A periodic Gaussian random field, Re sum_k amplitude(|k|^2) xi_k exp(2 pi i k.x), float64 (*grid).

    xi_k has independent N(0, 1) real and imaginary parts for every k, without Hermitian symmetry, as in the code of
    Li et al. (Fourier neural operator, 2021). The pointwise variance is therefore sum_k amplitude(|k|^2)^2.

    Args:
        rng: the sample's stream; two draws a mode, by rising largest component of |k|.
        grid: points along each axis; it holds the modes below its Nyquist frequencies, and drops the others.
        amplitude: standard deviation of the real and imaginary part, as a function of |k|^2 in whole cycles.
        largest: largest component of |k| to draw.
    """
    modes = modes_by_shell(len(grid), largest)
    xi = rng.standard_normal((len(modes), 2))
    held = np.all(2 * np.abs(modes) < np.array(grid), axis=1)
    index = torch.from_numpy(modes[held])
    coefficients = torch.view_as_complex(torch.from_numpy(xi[held])) * amplitude((index**2).sum(1).double())
    spectrum = torch.zeros(grid, dtype=torch.complex128)
    spectrum[tuple(index.T)] = coefficients  # negative wavenumbers count from the end, as in the FFT
    field: Tensor = torch.fft.ifftn(spectrum, norm="forward").real
    return field


@lru_cache(maxsize=4)
def modes_by_shell(axes: int, radius: int) -> NDArray[np.int64]:
    """All wavevectors (n, axes) with components up to `radius`, by rising largest one: a smaller radius gives a
    prefix."""
    line = np.arange(-radius, radius + 1)
    k = [axis.ravel() for axis in np.meshgrid(*[line] * axes, indexing="ij")]
    order = np.lexsort((*reversed(k), np.max(np.abs(k), axis=0)))
    return np.stack(k, axis=1)[order]


def vorticity_amplitude(squared: Tensor, alpha: float = 2.5, tau: float = 7.0, length: float = 1.0) -> Tensor:
    """Amplitude of the initial vorticity of Li et al.: sqrt 2 sigma (kappa^2 + tau^2)^(-alpha/2), 0 at k = 0.

    kappa = 2 pi |k| / length, and sigma = tau^(alpha - 1). This is what their code draws on the unit torus (standard
    deviation 0.262); the covariance printed in the paper is smaller by a factor of two.
    """
    sigma = tau ** (alpha - 1)
    amplitude = math.sqrt(2) * sigma * (4 * math.pi**2 / length**2 * squared + tau**2) ** (-alpha / 2)
    return torch.where(squared > 0, amplitude, 0.0)
