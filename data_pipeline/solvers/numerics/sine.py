"""The sine transform between points where a function is zero."""

import math

import torch
from torch import Tensor


def sine_transform(values: Tensor, axis: int) -> Tensor:
    """Orthonormal sine transform (DST-I) along an axis, its own inverse: sqrt(2/n) sum_j v_j sin(pi j k / n).

    Args:
        values: at the n - 1 inner points, the function is 0 at both ends; the result is of the same shape and holds
            k = 1 .. n - 1.
        axis: negative.
    """
    zero = torch.zeros_like(values.narrow(axis, 0, 1))
    odd = torch.cat([zero, values, zero, -values.flip(axis)], dim=axis)
    points = values.shape[axis]
    coefficients: Tensor = torch.fft.rfft(odd, dim=axis).imag.narrow(axis, 1, points)
    return coefficients * (-1 / math.sqrt(2 * (points + 1)))


def second_difference_values(intervals: int, spacing: float, like: Tensor) -> Tensor:
    """Eigenvalues of minus the second difference for the modes k = 1 .. n - 1 of `sine_transform`, float64."""
    modes = torch.arange(1, intervals, dtype=torch.float64, device=like.device)
    return (2 / spacing * torch.sin(math.pi / 2 * modes / intervals)) ** 2
