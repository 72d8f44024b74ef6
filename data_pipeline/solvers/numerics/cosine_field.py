"""Gaussian random fields on a square whose normal derivative is zero on the boundary."""

import math
from functools import lru_cache

import torch
from numpy.random import Generator
from torch import Tensor


def cosine_field(
    rng: Generator, grid: tuple[int, ...], modes: int, smoothness: float, inverse_length: float
) -> Tensor:
    """A Gaussian random field on the unit square, at points that include the boundary, float64 (*grid).

    g(x, y) = sum over k of c_k lambda_k xi_k cos(pi k1 x) cos(pi k2 y) with independent xi_k ~ N(0, 1), c_k = sqrt 2
    for each component of k that is not 0, lambda_k = tau^(alpha - 1) (pi^2 |k|^2 + tau^2)^(-alpha/2), and none for
    k = 0. It is what the code of Li et al. (Fourier neural operator, 2021) draws for the permeability of Darcy's
    problem, there with as many modes as points.

    Args:
        rng: the sample's stream; one draw a mode, so that `modes` decides the function, and the grid only where it is
            looked at.
        grid: points along both axes, both ends included.
        modes: number of modes along each axis, the constant included.
        smoothness: alpha.
        inverse_length: tau; the field changes over lengths of about 1 / tau.
    """
    k = torch.arange(modes, dtype=torch.float64)
    squared = math.pi**2 * (k[:, None] ** 2 + k**2) + inverse_length**2
    coefficients = torch.from_numpy(rng.standard_normal((modes, modes))) * squared ** (-smoothness / 2)
    coefficients *= inverse_length ** (smoothness - 1)
    coefficients[0, 0] = 0
    x, y = (_cosines(points, modes) for points in grid)
    return x @ coefficients @ y.T


@lru_cache(maxsize=8)
def _cosines(points: int, modes: int) -> Tensor:
    """c_k cos(pi k x) at equal points from 0 to 1, float64 (points, modes)."""
    x = torch.linspace(0, 1, points, dtype=torch.float64)
    values = torch.cos(math.pi * x[:, None] * torch.arange(modes, dtype=torch.float64))
    values[:, 1:] *= math.sqrt(2)
    return values
