"""Errors of predictions, one definition each, always in physical units.

Every function takes `prediction` and `target` of shape (B, T, *space, C): trajectories, predicted frames, grid,
the channels that the dataset has. Context frames and padding channels are the caller's to leave out. The batch
axis is never implied: without it, a three-dimensional trajectory looks like a batch of two-dimensional ones.
`mask`, bool (B, *space), is true at the points that belong to the domain, and only they count; None where all do.
All results are float64, and are not finite exactly where the prediction is not, or differs by more than float32 holds.
"""

from typing import cast

import torch
from torch import Tensor

_THE_WELL_EPSILON = 1e-7


def relative_l2(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Relative L2 of the whole predicted block, averaged over channels, then over trajectories: a scalar.

    The test metric of DPOT (Hao et al., ICML 2024, arXiv 2403.03542). See `relative_l2_per_channel` for a block.
    """
    return relative_l2_per_channel(prediction, target, mask).mean(dim=1).mean()


def relative_l2_per_channel(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """||prediction - target|| / ||target|| over all frames and points of a channel: (B, C).

    One quotient for the block, not a mean over frames: a frame counts by its energy. Where the target block is
    zero everywhere, the quotient is defined as 0 for a prediction of zero and as 1 for any other: all of it is
    error. (The published code adds 1e-8 to the denominator there, and one such channel outweighs all others.)
    """
    return _relative_norm(prediction, target, tuple(range(1, target.ndim - 1)), mask)


def relative_l2_per_frame(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """||prediction - target|| / ||target|| over the points of one frame and channel: (B, T, C).

    The error over time. Frames whose target is zero: as in `relative_l2_per_channel`.
    """
    return _relative_norm(prediction, target, tuple(range(2, target.ndim - 1)), mask)


def vrmse(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Root of (mean squared error / (variance of the target + 1e-7)) over the points of a frame: (B, T, C).

    Variance-scaled RMSE of The Well (Ohana et al., NeurIPS 2024, arXiv 2412.00568), with its unbiased variance and
    its epsilon: predicting the mean of every frame gives 1.
    """
    points = tuple(range(2, target.ndim - 1))
    everywhere = torch.ones_like(target[:, 0, ..., 0], dtype=torch.bool) if mask is None else mask
    number = everywhere.flatten(1).sum(dim=1)[:, None, None]
    mean = _inside(target, mask).sum(dim=points) / number
    # Not `Tensor.var`: in float32, it overflows for fields beyond 1e19.
    deviation = target - mean.reshape(*mean.shape[:2], *(1,) * len(points), -1)
    variance = _norm(_inside(deviation, mask), points) ** 2 / (number - 1)
    return _error_norm(prediction, target, points, mask) / (number * (variance + _THE_WELL_EPSILON)).sqrt()


def _relative_norm(prediction: Tensor, target: Tensor, axes: tuple[int, ...], mask: Tensor | None) -> Tensor:
    error, scale = _error_norm(prediction, target, axes, mask), _norm(_inside(target, mask), axes)
    # A NaN error fails `error > 0` and is divided by one, so that it stays NaN.
    instead = torch.where(error > 0, error, 1.0)
    return error / torch.where(scale > 0, scale, instead)


def _error_norm(prediction: Tensor, target: Tensor, axes: tuple[int, ...], mask: Tensor | None) -> Tensor:
    if prediction.shape != target.shape or target.ndim < 4:
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} must both be (B, T, *space, C)"
        )
    return _norm(_inside(prediction - target, mask), axes)


def _inside(x: Tensor, mask: Tensor | None) -> Tensor:
    """(B, T, *space, C) with zeros outside the domain, whatever is there."""
    return x if mask is None else torch.where(mask[:, None, ..., None], x, 0.0)


def _norm(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return cast(Tensor, torch.linalg.vector_norm(x, dim=axes, dtype=torch.float64))
