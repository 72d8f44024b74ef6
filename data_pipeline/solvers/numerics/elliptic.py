"""-div(a grad p) = f with p = 0 on the boundary of a box: five-point differences, multigrid, conjugate gradients."""

import torch
from torch import Tensor

_COARSEST = 8
"""Intervals along each axis at which the hierarchy ends, in a dense solve."""
_WEIGHTS = (0.5625, 1.3913)
"""Steps of a Chebyshev polynomial of second degree on [1/2, 2]: one smoothing. D^-1 A has its eigenvalues in (0, 2);
what a coarser grid cannot hold lies above 1/2 (constant a, every axis coarsened)."""
_ITERATIONS = 200
"""More than enough: 11 at 421 points a side and a contrast of 4, 57 at a contrast of 1000."""
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-6}
"""Size of the residual beside that of the right-hand side at which a sample is done. In float32 the rounding of p
alone leaves a true residual of 3e-3 at 421 points (p is then right to 1e-5); it is the iteration's own residual,
free of that rounding, that falls to 1e-6."""


class FivePoint:
    """The sum over the four neighbours q of a point of K (p - p_q), at the inner points; p = 0 on the boundary.

    Args:
        along_x: conductances K of the edges along x, (..., nx, ny - 1), for nx by ny intervals.
        along_y: the same along y, (..., nx - 1, ny).
    """

    def __init__(self, along_x: Tensor, along_y: Tensor) -> None:
        self.along_x, self.along_y = along_x, along_y
        diagonal = along_x[..., 1:, :] + along_x[..., :-1, :] + along_y[..., 1:] + along_y[..., :-1]
        self.inverse_diagonal = 1 / diagonal
        self._coefficients = diagonal, along_x[..., 1:-1, :].contiguous(), along_y[..., 1:-1].contiguous()

    def residual(self, right: Tensor, p: Tensor) -> Tensor:
        """`right` less the operator at `p`, both (..., nx - 1, ny - 1)."""
        diagonal, along_x, along_y = self._coefficients
        # In place, by parts of the grid: on a CPU a compiled loop over all of it is no faster.
        out = torch.addcmul(right, diagonal, p, value=-1)
        out[..., 1:, :].addcmul_(along_x, p[..., :-1, :])
        out[..., :-1, :].addcmul_(along_x, p[..., 1:, :])
        out[..., 1:].addcmul_(along_y, p[..., :-1])
        out[..., :-1].addcmul_(along_y, p[..., 1:])
        return out

    def to(self, dtype: torch.dtype) -> "FivePoint":
        """In another precision."""
        return FivePoint(self.along_x.to(dtype), self.along_y.to(dtype))

    def coarser(self) -> "FivePoint | None":
        """The operator on every second point along each axis that is long; None where none is.

        Conductances add up like resistors: two in a row across a coarse interval, all that are side by side. Of an odd
        number of intervals the last one stays as it is, half as long as the others (so 421 points need no padding).
        """
        x, y = self.along_x, self.along_y
        long_x, long_y = x.shape[-2] > _COARSEST, y.shape[-1] > _COARSEST
        if long_x:
            x, y = _in_series(x, -2), _gather(y, -2)
        if long_y:
            x, y = _gather(x, -1), _in_series(y, -1)
        return FivePoint(x, y) if long_x or long_y else None


def five_point(coefficient: Tensor, spacing: tuple[float, ...]) -> FivePoint:
    """-hx hy div(a grad p), with the arithmetic mean of a between two points.

    Args:
        coefficient: a at all points, the boundary's too, (..., nx + 1, ny + 1).
        spacing: (hx, hy).
    """
    hx, hy = spacing
    along_x = (coefficient[..., 1:, 1:-1] + coefficient[..., :-1, 1:-1]) * (hy / hx / 2)
    along_y = (coefficient[..., 1:-1, 1:] + coefficient[..., 1:-1, :-1]) * (hx / hy / 2)
    return FivePoint(along_x, along_y)


class Multigrid:
    """One symmetric V-cycle, from zero: an approximate inverse of a five-point operator, in float32.

    Half the bytes are half the time, and a preconditioner needs no more digits.
    """

    def __init__(self, operator: FivePoint) -> None:
        self.levels = [operator.to(torch.float32)]
        while (coarser := self.levels[-1].coarser()) is not None:
            self.levels.append(coarser)
        self.coarsest = _dense_inverse(self.levels[-1])

    def __call__(self, right: Tensor) -> Tensor:
        """About the solution for `right`, (B, nx - 1, ny - 1), in the precision of `right`."""
        return self._cycle(right.float(), 0).to(right.dtype)

    def _cycle(self, right: Tensor, level: int) -> Tensor:
        operator = self.levels[level]
        if level == len(self.levels) - 1:
            return (self.coarsest * right.flatten(-2).unsqueeze(-2)).sum(-1).reshape(right.shape)
        p = _WEIGHTS[0] * operator.inverse_diagonal * right
        p.addcmul_(operator.inverse_diagonal, operator.residual(right, p), value=_WEIGHTS[1])
        coarse = self.levels[level + 1].inverse_diagonal.shape
        rest = operator.residual(right, p)
        for axis in (-2, -1):
            rest = _gather(rest, axis) if rest.shape[axis] != coarse[axis] else rest
        correction = self._cycle(rest, level + 1)
        for axis in (-1, -2):
            short = correction.shape[axis] != p.shape[axis]
            correction = _interpolate(correction, p.shape[axis], axis) if short else correction
        p += correction
        for weight in reversed(_WEIGHTS):
            p.addcmul_(operator.inverse_diagonal, operator.residual(right, p), value=weight)
        return p


def solve(operator: FivePoint, right: Tensor) -> Tensor:
    """Solve operator(p) = right by conjugate gradients with a multigrid cycle as preconditioner.

    A sample stops where its own residual is small enough, whatever the rest of its batch needs.

    Args:
        operator: in the precision of `right`.
        right: (B, nx - 1, ny - 1); its precision decides `TOLERANCE`.

    Returns:
        p of the shape of `right`; NaN in a sample that does not converge.
    """
    precondition = Multigrid(operator)
    bound = TOLERANCE[right.dtype] ** 2 * _dot(right, right)
    p, rest = torch.zeros_like(right), right.clone()
    direction, before = torch.zeros_like(right), torch.ones_like(bound)
    for _ in range(_ITERATIONS):
        going = _dot(rest, rest) > bound  # false where it is NaN
        if not going.any():
            break
        preconditioned = precondition(rest)
        now = _dot(rest, preconditioned)
        direction = torch.addcmul(preconditioned, torch.where(going, now / before, 0.0), direction)
        before = now
        image = operator.residual(torch.zeros_like(p), direction).neg_()
        step = torch.where(going, now / _dot(direction, image), 0.0)
        p.addcmul_(step, direction)
        rest.addcmul_(step, image, value=-1)
    return torch.where(_dot(rest, rest) <= bound, p, torch.nan)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each sample, (B, 1, 1). Axis by axis, since the sum of a whole batch of one is split among
    threads, and would then round otherwise than in a larger batch."""
    return (a * b).sum(-1, keepdim=True).sum(-2, keepdim=True)


def _dense_inverse(operator: FivePoint) -> Tensor:
    """Inverse matrix of a small operator, (..., N, N) for its N inner points."""
    grid = operator.inverse_diagonal.shape[-2:]
    points = grid.numel()
    units = torch.eye(points, dtype=torch.float64, device=operator.along_x.device).reshape(points, *grid)
    wide = FivePoint(operator.along_x.double().unsqueeze(-3), operator.along_y.double().unsqueeze(-3))
    batch = operator.along_x.shape[:-2]
    columns = -wide.residual(units.new_zeros(*batch, points, *grid), units)
    inverse: Tensor = torch.linalg.inv(columns.flatten(-2))
    return inverse.to(operator.along_x.dtype)


def _in_series(edges: Tensor, axis: int) -> Tensor:
    """Conductance of each two edges in a row along an axis; a last one without a partner stays."""
    pairs = edges.shape[axis] // 2 * 2
    first, second = _every(edges, axis, 0, pairs), _every(edges, axis, 1, pairs)
    return torch.cat([first * second / (first + second), _every(edges, axis, pairs)], dim=axis)


def _gather(values: Tensor, axis: int) -> Tensor:
    """Every second inner point along an axis with half of each neighbour: the transpose of `_interpolate`."""
    count = values.shape[axis]
    out = torch.add(_every(values, axis, 1), _every(values, axis, 0, count // 2 * 2), alpha=0.5)
    above = _every(values, axis, 2)
    out.narrow(axis, 0, above.shape[axis]).add_(above, alpha=0.5)
    return out


def _interpolate(coarse: Tensor, count: int, axis: int) -> Tensor:
    """Linear interpolation along an axis to `count` inner points; 0 at both ends."""
    shape = list(coarse.shape)
    shape[axis] = count
    out = coarse.new_zeros(shape)
    _every(out, axis, 1).copy_(coarse)
    _every(out, axis, 0, 2 * coarse.shape[axis]).add_(coarse, alpha=0.5)
    above = _every(out, axis, 2)
    above.add_(coarse.narrow(axis, 0, above.shape[axis]), alpha=0.5)
    return out


def _every(values: Tensor, axis: int, start: int, stop: int | None = None) -> Tensor:
    """Every second entry along axis -1 or -2."""
    return values[..., start:stop:2] if axis == -1 else values[..., start:stop:2, :]
