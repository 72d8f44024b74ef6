"""Pieces of second-order finite-volume schemes: limited slopes, and the two states at each face."""

import torch
from torch import Tensor


def monotonized_central(left: Tensor, right: Tensor) -> Tensor:
    """Slope of a cell from its one-sided differences: van Leer's monotonized central limiter.

    The smallest in size of 2 left, 2 right and (left + right) / 2, or 0 where the signs differ (van Leer, J. Comput.
    Phys. 23, 1977).
    """
    size = torch.minimum(2 * torch.minimum(left.abs(), right.abs()), (left + right).abs() / 2)
    return torch.where(left * right > 0, torch.sign(left) * size, 0.0)


def face_states(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Values on both sides of the inner faces, by limited linear reconstruction along the last axis (MUSCL).

    Args:
        cells: cell averages (..., n + 4), two ghost cells at each end.

    Returns:
        Left and right states at the n + 1 faces of the n inner cells, (..., n + 1) each.
    """
    difference = cells.diff(dim=-1)
    half_slope = monotonized_central(difference[..., :-1], difference[..., 1:]) / 2
    inner = cells[..., 1:-1]
    return (inner + half_slope)[..., :-1], (inner - half_slope)[..., 1:]
