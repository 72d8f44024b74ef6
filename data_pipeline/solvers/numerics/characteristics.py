"""Values between the points of a grid with walls, by cubic interpolation: for advection along characteristics.

Lattices and shapes are those of `closed_box.py`.
"""

from typing import Literal

import torch
from torch import Tensor

Wall = Literal["on_face", "half_cell", "free"]
"""What a field does at the walls of an axis: it is 0 there, and the wall lies one cell (`on_face`) or half a cell
(`half_cell`) from the outermost points; or it goes on as a straight line, within its range (`free`)."""


def extended(field: Tensor, walls: tuple[Wall, Wall]) -> Tensor:
    """A field (B, mx, my) with two more points on every side, (B, mx + 4, my + 4)."""
    for axis, wall in zip((1, 2), walls, strict=True):
        near, next_near = field.narrow(axis, 0, 1), field.narrow(axis, 1, 1)
        far, next_far = field.narrow(axis, -1, 1), field.narrow(axis, -2, 1)
        if wall == "on_face":
            before, after = [-near, torch.zeros_like(near)], [torch.zeros_like(far), -far]
        elif wall == "half_cell":
            before, after = [-next_near, -near], [-far, -next_far]
        else:
            low, high = field.amin((1, 2), keepdim=True), field.amax((1, 2), keepdim=True)
            before = [(near + step * (near - next_near)).clamp(low, high) for step in (2, 1)]
            after = [(far + step * (far - next_far)).clamp(low, high) for step in (1, 2)]
        field = torch.cat([*before, field, *after], dim=axis)
    return field


def carried_cubic(field: Tensor, shift_x: Tensor, shift_y: Tensor, *, limited: bool = False) -> Tensor:
    """A field after semi-Lagrangian advection: at each of its points, the value found upstream (cubic).

    Args:
        field: (B, mx + 4, my + 4), `extended`.
        shift_x: displacement along x in cells at the points of the field, (B, mx, my); `shift_y` likewise.
        limited: keep each value between those of the four points around it (Bermejo and Staniforth, Mon. Weather Rev.
            120, 1992): no new extremes.
    """
    (below_x, weights_x), (below_y, weights_y) = _stencil(shift_x, 1), _stencil(shift_y, 2)
    width = field.shape[2]
    first, values = (below_x + 1) * width + below_y + 1, field.flatten(1)
    total, corners = torch.zeros_like(shift_x), []
    # One look-up for each point of the stencil: compiled, that is twice as fast as one for all of them.
    for i, weight_x in enumerate(weights_x):
        row = torch.zeros_like(shift_x)
        for j, weight_y in enumerate(weights_y):
            value = values.gather(1, (first + i * width + j).flatten(1)).view_as(shift_x)
            row = torch.addcmul(row, weight_y, value)
            if limited and i in (1, 2) and j in (1, 2):
                corners.append(value)
        total = torch.addcmul(total, weight_x, row)
    if limited:
        around = torch.stack(corners)
        total = total.clamp(around.amin(0), around.amax(0))
    return total


def _stencil(shift: Tensor, axis: int) -> tuple[Tensor, list[Tensor]]:
    """Index of the point below each source along an axis, and Lagrange's weights of the four points around it."""
    count = shift.shape[axis]
    index = torch.arange(count, dtype=shift.dtype, device=shift.device)
    source = (index.unsqueeze(1) if axis == 1 else index) - shift
    # A solution that blew up has no place to look: any point will do, its weights are NaN.
    below = source.floor().nan_to_num(0.0).clamp(-1, count - 1)
    t = source.clamp(-1, count) - below
    weights = [
        -t * (t - 1) * (t - 2) / 6,
        (t + 1) * (t - 1) * (t - 2) / 2,
        -(t + 1) * t * (t - 2) / 2,
        (t + 1) * t * (t - 1) / 6,
    ]
    return below.long(), weights
