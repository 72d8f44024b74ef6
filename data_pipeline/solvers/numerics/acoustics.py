"""Waves in a medium of varying speed: a staggered fourth-order scheme, with absorbing layers around an open box."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

LARGEST_COURANT = 2 * math.sqrt(2) * 3 / 7
"""Stability bound of h c sqrt(1/dx^2 + 1/dy^2), 1.21: RK4's limit on the imaginary axis, 2 sqrt 2, over 7/3, which is
dx times the largest factor by which the staggered difference multiplies a mode."""

LAYER = 12
"""Cells of the absorbing layer on each open side."""

_REFLECTION = 1e-4
"""What the continuous layer would reflect of a wave at normal incidence; the grid adds its own."""


def longest_step(spacing: tuple[float, ...], fastest: float, courant: float) -> float:
    """The step with that Courant number for the speed `fastest`."""
    return courant / (fastest * math.sqrt(sum(1 / h**2 for h in spacing)))


def add_rates(
    start: tuple[Tensor, ...],
    state: tuple[Tensor, ...],
    stiffness: Tensor,
    damping: tuple[Tensor, ...],
    spacing: tuple[float, float],
    h: Tensor,
) -> tuple[Tensor, ...]:
    """`start` plus h times the rates of change of `state`, both as (u_x, u_y, w_x, w_y)."""
    ux, uy, wx, wy = state
    in_cells_x, on_faces_x, in_cells_y, on_faces_y = damping
    u = ux + uy
    return (
        start[0] + h * (stiffness * _divergence(wx, 1, spacing[0]) - in_cells_x * ux),
        start[1] + h * (stiffness * _divergence(wy, 2, spacing[1]) - in_cells_y * uy),
        start[2] + h * (_gradient(u, 1, spacing[0]) - on_faces_x * wx),
        start[3] + h * (_gradient(u, 2, spacing[1]) - on_faces_y * wy),
    )


def _difference(values: Tensor, axis: int, spacing: float) -> Tensor:
    """Fourth-order derivative halfway between the values; three values shorter along the axis."""
    n = values.shape[axis]
    a, b, c, d = (values.narrow(axis, first, n - 3) for first in range(4))
    return (27 * (c - b) - (d - a)) * (1 / (24 * spacing))


def _gradient(u: Tensor, axis: int, spacing: float) -> Tensor:
    """At the n - 1 inner faces along the axis. Beyond a wall u goes on as its mirror image."""
    n = u.shape[axis]
    return _difference(torch.cat([u.narrow(axis, 0, 1), u, u.narrow(axis, n - 1, 1)], dim=axis), axis, spacing)


def _divergence(w: Tensor, axis: int, spacing: float) -> Tensor:
    """In the cells, of values at the inner faces. Beyond a wall w goes on as its mirror image of the other sign."""
    n = w.shape[axis]
    first, last = w.narrow(axis, 0, 1), w.narrow(axis, n - 1, 1)
    wall = torch.zeros_like(first)
    return _difference(torch.cat([-first, wall, w, wall, -last], dim=axis), axis, spacing)


def _damping(cells: int, axis: int, spacing: float, layer: int, fastest: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Damping rate along one axis in the cells and on the inner faces: it rises as the square of the depth into the
    layer, to the value that leaves `_REFLECTION` of a wave which crosses the layer twice."""
    most = 1.5 * fastest * math.log(1 / _REFLECTION) / (max(layer, 1) * spacing)

    def profile(position: Tensor) -> Tensor:
        depth = torch.maximum(layer - position, position - (cells - layer)).clamp(min=0) / max(layer, 1)
        shape = (-1, 1) if axis == 0 else (1, -1)
        return (most * depth**2).to(like).reshape(shape)

    index = torch.arange(cells, dtype=torch.float64)
    return profile(index + 0.5), profile(index[1:])


class AcousticEvolution:
    """A batch of waves u_tt = c^2 Lap u on its way, as u_t = c^2 div w, w_t = grad u, from w = 0 (a start at rest).

    u lives in the cells, w on the faces between them; nothing crosses the outermost faces, which makes walls
    (u_n = 0). An open box lies within perfectly matched layers (Berenger, J. Comput. Phys. 114, 1994): u is split into
    the parts that the divergence along x and along y feed, and each field is damped along its own axis.

    Args:
        displacement: u at the start, cell means (B, nx, ny).
        speed: c in the cells, (B, nx, ny): the mean of 1 / c^2 over a cell, to the power -1/2, keeps second order
            where a jump of c cuts it.
        spacing: size of a cell.
        fastest: the largest speed in any sample of the dataset; it decides the step.
        courant: h c sqrt(1/dx^2 + 1/dy^2) for that speed.
        open_box: absorb what leaves, rather than reflect it.
        stage: `add_rates`, perhaps compiled.
    """

    def __init__(
        self,
        displacement: Tensor,
        speed: Tensor,
        *,
        spacing: tuple[float, float],
        fastest: float,
        courant: float,
        open_box: bool,
        stage: Callable[..., Any] = add_rates,
    ) -> None:
        layer = LAYER if open_box else 0
        around = (layer,) * 4
        u = pad(displacement, around)
        c = pad(speed.unsqueeze(1), around, mode="replicate").squeeze(1) if layer else speed
        self.inside = (slice(None), slice(layer, layer + speed.shape[1]), slice(layer, layer + speed.shape[2]))
        self.step = longest_step(spacing, fastest, courant)
        self.spacing = spacing
        self.stage = stage
        self.stiffness = c**2
        self.damping = tuple(
            part
            for axis, size in enumerate(spacing)
            for part in _damping(u.shape[1 + axis], axis, size, layer, fastest, u)
        )
        self.state: tuple[Tensor, ...] = (
            u,
            torch.zeros_like(u),
            torch.zeros_like(u[:, 1:]),
            torch.zeros_like(u[:, :, 1:]),
        )

    def advance(self, duration: float) -> None:
        """Move every solution of the batch forward by `duration`, in equal steps."""
        count = math.ceil(duration / self.step * (1 - 1e-12))
        # As tensors: a compiled stage would be compiled anew for every number.
        parts = [torch.full_like(self.stiffness[0, 0, 0], duration / max(count, 1) / order) for order in (4, 3, 2, 1)]
        for _ in range(count):
            # Classical Runge-Kutta: for linear equations it is exp(h L) up to h^4, here by Horner's rule.
            state = self.state
            for h in parts:
                state = self.stage(self.state, state, self.stiffness, self.damping, self.spacing, h)
            self.state = state

    def displacement(self) -> Tensor:
        """u now, (B, nx, ny)."""
        return (self.state[0] + self.state[1])[self.inside]

    def rate(self) -> Tensor:
        """u_t now, (B, nx, ny)."""
        _, _, wx, wy = self.state
        rate = self.stiffness * (_divergence(wx, 1, self.spacing[0]) + _divergence(wy, 2, self.spacing[1]))
        return rate[self.inside]
