"""Random initial states of the Gray-Scott equations on the torus [-1, 1)^d, the same functions on every grid."""

import math

import torch
from numpy.random import Generator
from torch import Tensor

from data_pipeline.solvers.numerics.counts import draw_count

_NODES = 32
"""Nodes of a random Fourier series along each axis."""

_REFERENCE = {2: (512, 512), 3: (64, 64, 64)}
"""Grid, by the number of axes, on which the extremes of a cluster are read: that of the solver must not matter."""


def blobs(rng: Generator, counts: tuple[int, int], grid: tuple[int, ...]) -> Tensor:
    """Patches of b where a is missing, (2, *grid): b is the capped sum of Gaussians, a = 1 - b.

    Heights are uniform in 0.3 .. 1, standard deviations in 0.04 .. 0.1.
    """
    drawn = _draw(rng, counts, len(grid))
    width, height = 0.04 + 0.06 * drawn[:, -2], 0.3 + 0.7 * drawn[:, -1]
    b = 1 - torch.exp(-_gaussians(drawn, height, 1 / (2 * width**2), grid))
    return torch.stack([1 - b, b])


def clusters(rng: Generator, counts: tuple[int, int], grid: tuple[int, ...]) -> Tensor:
    """Two independent clusters of Gaussians, each brought to the range 0 .. 1, (2, *grid): 1 - a is one, b the other.

    The Well's: height exp(-sharpness r^2), heights uniform in 1 .. 3, sharpness in 150 .. 300.
    """
    fields = []
    for _ in range(2):
        drawn = _draw(rng, counts, len(grid))
        sharpness, height = 150 + 150 * drawn[:, -2], 1 + 2 * drawn[:, -1]
        reference = _gaussians(drawn, height, sharpness, _REFERENCE[len(grid)])
        low, high = reference.min(), reference.max()
        fields.append((_gaussians(drawn, height, sharpness, grid) - low) / (high - low))
    return torch.stack([1 - fields[0], fields[1]])


def fourier_series(rng: Generator, feed: float, kill: float, grid: tuple[int, ...]) -> Tensor:
    """Random Fourier series around a uniform steady state, (2, *grid).

    The Well's: the trigonometric interpolant of 32^d independent values, uniform within a half-width around a steady
    state. That is (1, 0), half-width 1/4; where `steady_state` exists, it is that one, and the half-widths are 0.225
    of its distances from 0 and 1.
    """
    middle, room = (1.0, 0.0), (1.0, 1.0)
    if feed > 4 * (feed + kill) ** 2:
        middle = steady_state(feed, kill)
        room = (0.9 * min(middle[0], 1 - middle[0]), 0.9 * min(middle[1], 1 - middle[1]))
    noise = torch.from_numpy(rng.random((2, *[_NODES] * len(grid)))) - 0.5
    for axis, n in enumerate(grid, start=1):
        noise = (noise.movedim(axis, -1) @ _interpolation(n).T).movedim(-1, axis)
    return torch.stack([m + 0.5 * r * field for m, r, field in zip(middle, room, noise, strict=True)])


def steady_state(feed: float, kill: float) -> tuple[float, float]:
    """(a, b) of the uniform steady state with the most b, for f > 4 (f + k)^2: the roots of a b = f + k and
    f (1 - a) = (f + k) b."""
    root = math.sqrt(1 - 4 * (feed + kill) ** 2 / feed)
    return (1 - root) / 2, feed * (1 + root) / (2 * (feed + kill))


def _draw(rng: Generator, counts: tuple[int, int], axes: int) -> Tensor:
    """Uniform numbers in 0 .. 1 of a random number of Gaussians: centre, and two for the shape, (n, axes + 2)."""
    return torch.from_numpy(rng.random((draw_count(rng, counts), axes + 2)))


def _gaussians(drawn: Tensor, height: Tensor, sharpness: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Sum of height exp(-sharpness r^2), with r the distance to the nearest periodic image of the centre, (*grid)."""
    factors = []
    for axis, n in enumerate(grid):
        offset = (2 * torch.arange(n, dtype=torch.float64) / n - 2 * drawn[:, axis, None] + 1) % 2 - 1
        factors.append(torch.exp(-sharpness[:, None] * offset**2))
    axes = "xyz"[: len(grid)]
    product = ",".join("m" + axis for axis in axes) + "->" + axes
    total: Tensor = torch.einsum(product, height[:, None] * factors[0], *factors[1:])
    return total


def _interpolation(n: int) -> Tensor:
    """Values at n points of the trigonometric interpolant of values at `_NODES` nodes, as a matrix (n, _NODES)."""
    distance = torch.arange(n, dtype=torch.float64)[:, None] / n - torch.arange(_NODES, dtype=torch.float64) / _NODES
    modes = torch.arange(1, _NODES // 2, dtype=torch.float64)
    waves = torch.cos(2 * math.pi * distance[..., None] * modes).sum(-1)
    return (1 + 2 * waves + torch.cos(math.pi * _NODES * distance)) / _NODES
