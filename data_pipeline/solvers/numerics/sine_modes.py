"""Random initial fields made of a few sine modes with random phases."""

import itertools
import math

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor


def oblique_modes(axes: int, largest: int) -> NDArray[np.int64]:
    """Wavevectors (n, axes) with components -largest .. largest, none of them 0."""
    line = [k for k in range(-largest, largest + 1) if k]
    return np.array(list(itertools.product(line, repeat=axes)))


def draw_modes(rng: Generator, modes: NDArray[np.int64], fields: int, power: float) -> Tensor:
    """Complex amplitudes |k|^-power exp(i phase) with uniform phases, (fields, n)."""
    phases = torch.from_numpy(rng.uniform(0, 2 * math.pi, (fields, len(modes))))
    size = torch.from_numpy(np.linalg.norm(modes, axis=1)) ** -power
    return torch.polar(size.expand_as(phases).contiguous(), phases)


def at_cells(amplitudes: Tensor, modes: NDArray[np.int64], grid: tuple[int, ...]) -> Tensor:
    """The imaginary part of sum_k a_k exp(2 pi i k.x), a sum of sines, at the cell centres of the unit box.

    Args:
        amplitudes: complex (fields, n).
        modes: wavevectors (n, axes), components below half the cells along their axis.
        grid: cells along each axis.

    Returns:
        float64 (fields, *grid).
    """
    index = torch.from_numpy(modes)
    half_cell = (index.double() / torch.tensor(grid)).sum(1) * math.pi
    spectrum = torch.zeros((len(amplitudes), *grid), dtype=torch.complex128)
    spectrum[(slice(None), *index.T)] = amplitudes * torch.polar(torch.ones_like(half_cell), half_cell).to(amplitudes)
    fields: Tensor = torch.fft.ifftn(spectrum, dim=tuple(range(1, 1 + len(grid))), norm="forward").imag
    return fields


def solenoidal(amplitudes: Tensor, modes: NDArray[np.int64]) -> Tensor:
    """The divergence-free part of a vector field's amplitudes, (axes, n)."""
    k = torch.from_numpy(modes).T.to(amplitudes.real.dtype)
    return amplitudes - k * ((k * amplitudes).sum(0) / (k * k).sum(0))
