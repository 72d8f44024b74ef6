"""A round body at rest in a flow on a staggered grid: forces at markers on its surface stop the fluid there.

Immersed boundary projection (Taira and Colonius, J. Comput. Phys. 225, 2007): velocities are taken onto those without
divergence and without slip at the markers, at once. The forces follow from a small dense matrix, that of the slip that
each of them takes away; it depends on the geometry alone, and is made once.
"""

import math

import torch
from torch import Tensor

from data_pipeline.solvers.numerics.staggered import Box, Projection

SPACING = 1.5
"""Distance of two markers in cells."""
_RETRACTION = 0.3
"""The markers lie so many cells below the surface: the forces are spread over a cell and a half, and this makes up for
it, so that the body is as large as it should be (Breugem, J. Comput. Phys. 231, 2012)."""
_RANK = 1e-6
"""Directions of forces that hardly change the slip are left out, below this share of the largest change."""
_ARC = 4096
"""Pieces of the circle whose lengths are added up to place the markers."""

Weights = tuple[Tensor, Tensor]
"""Of the grid's columns and of its rows at each marker, (B, M, columns) and (B, M, rows)."""


class Markers:
    """Points at equal distances, counted in cells, along a circle for each sample of a batch.

    Args:
        centre: the circle's centre, from the lower left corner of the box, two of (B, 1, 1).
        radius: (B, 1, 1).
        box: has the sizes of the cells.
        grid: cells along x and y.
        most: places for markers, M. It must not depend on the batch; the places left over have no weight.
    """

    def __init__(
        self, centre: tuple[Tensor, Tensor], radius: Tensor, box: Box, grid: tuple[int, int], most: int
    ) -> None:
        dx, dy = box.dx.double()[:, 0], box.dy.double()[:, 0]
        cosine, sine, active = _around(radius[:, 0] / dx, radius[:, 0] / dy, most)
        inner = radius[:, 0] - _RETRACTION / torch.hypot(cosine / dx, sine / dy)
        x, y = ((centre[0][:, 0] + inner * cosine) / dx, (centre[1][:, 0] + inner * sine) / dy)
        faces = [torch.arange(n + 1, dtype=torch.float64, device=dx.device) for n in grid]
        middles = [one[:-1] + 0.5 for one in faces]

        def weights(columns: Tensor, rows: Tensor) -> Weights:
            across = active.unsqueeze(2) * _kernel(x.unsqueeze(2) - columns)
            return across.to(box.dx.dtype), _kernel(y.unsqueeze(2) - rows).to(box.dx.dtype)

        self.weights = weights(faces[0], middles[1]), weights(middles[0], faces[1])

    def velocity(self, u: Tensor, v: Tensor) -> Tensor:
        """Velocities at the markers, u before v, (B, 2 M)."""
        both = zip(self.weights, (u, v), strict=True)
        return torch.cat([(torch.bmm(columns, one) * rows).sum(2) for (columns, rows), one in both], dim=1)

    def spread(self, forces: Tensor) -> tuple[Tensor, Tensor]:
        """The forces (B, 2 M) on the faces: the transpose of `velocity`."""
        along_x, along_y = forces.unsqueeze(2).chunk(2, dim=1)
        (u_columns, u_rows), (v_columns, v_rows) = self.weights
        return torch.bmm(u_columns.mT, along_x * u_rows), torch.bmm(v_columns.mT, along_y * v_rows)


class ImmersedProjection(Projection):
    """The nearest velocities without divergence, with the same values on walls and inlet, and none at the markers.

    Args:
        box: what bounds the flows.
        grid: cells along x and y.
        markers: of the body.
    """

    def __init__(self, box: Box, grid: tuple[int, int], markers: Markers) -> None:
        super().__init__(box, grid)
        self.markers = markers
        units = torch.eye(2 * markers.weights[0][0].shape[1], dtype=box.dx.dtype, device=box.dx.device)
        slip = torch.stack([self._response(unit.expand(len(box.dx), -1)) for unit in units], dim=2).double()
        values, vectors = torch.linalg.eigh((slip + slip.mT) / 2)
        inverse = torch.where(values > _RANK * values[:, -1:], 1 / values, 0.0)
        self.influence = torch.bmm(vectors * inverse.unsqueeze(1), vectors.mT).to(box.dx.dtype)

    def __call__(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Projection`."""
        u, v, potential = super().__call__(u, v)
        forced_u, forced_v, forced_potential = super().__call__(*self.markers.spread(self.forces(u, v)))
        return u - forced_u, v - forced_v, potential - forced_potential

    def forces(self, u: Tensor, v: Tensor) -> Tensor:
        """Forces that stop velocities without divergence at the markers, (B, 2 M)."""
        return torch.bmm(self.influence, self.markers.velocity(u, v).unsqueeze(2)).squeeze(2)

    def _response(self, forces: Tensor) -> Tensor:
        u, v, _ = super().__call__(*self.markers.spread(forces))
        return self.markers.velocity(u, v)


def most_markers(radius: float, spacing: float) -> int:
    """Places enough for the markers of a circle in cells of at least the given size."""
    return int(2 * math.pi * radius / (SPACING * spacing)) + 1


def _around(radius_x: Tensor, radius_y: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cosine and sine of the angles that part an ellipse (B, 1) into arcs of equal length, and which of them stand for
    a marker, (B, M) each. They lie in mirror symmetry about the axis y = 0."""
    angles = torch.linspace(0, 2 * math.pi, _ARC + 1, dtype=torch.float64, device=radius_x.device)
    pieces = torch.hypot(radius_x * torch.cos(angles).diff(), radius_y * torch.sin(angles).diff())
    along = torch.cat([torch.zeros_like(radius_x), pieces.cumsum(1)], dim=1)
    whole = along[:, -1:]
    count = (whole / SPACING).floor()
    index = torch.arange(most, dtype=torch.float64, device=radius_x.device)
    place = ((index + 0.5) * whole / count).clamp(max=whole)
    above = torch.searchsorted(along, place).clamp(1, _ARC)
    low, high = along.gather(1, above - 1), along.gather(1, above)
    angle = (above - 1 + (place - low) / (high - low)) * (2 * math.pi / _ARC)
    return torch.cos(angle), torch.sin(angle), index < count


def _kernel(distance: Tensor) -> Tensor:
    """Smoothed delta function over three cells (Roma, Peskin and Berger, J. Comput. Phys. 153, 1999)."""
    r = distance.abs()
    inner = (1 + (1 - 3 * r**2).clamp(min=0).sqrt()) / 3
    outer = (5 - 3 * r - (1 - 3 * (1 - r) ** 2).clamp(min=0).sqrt()) / 6
    return torch.where(r <= 0.5, inner, torch.where(r <= 1.5, outer, 0.0))
