"""One step of buoyant flow in a closed box: as PDEArena's generator does it, and of second order."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from data_pipeline.solvers.numerics.characteristics import Wall, carried_cubic, extended
from data_pipeline.solvers.numerics.closed_box import Projection, carried, centred, diffused, onto_faces

State = tuple[Tensor, Tensor, Tensor]
"""Smoke, u and v on the lattices of `closed_box.py`."""

_WALLS_CENTRE: tuple[Wall, Wall] = ("half_cell", "half_cell")
_WALLS_U: tuple[Wall, Wall] = ("on_face", "half_cell")
_WALLS_V: tuple[Wall, Wall] = ("half_cell", "on_face")


class SmokeSteps:
    """Steps of s_t + u.grad s = 0, u_t + u.grad u = -grad p + nu Lap u + b s e_y, div u = 0.

    Args:
        spacing: size of a cell along x and y.
        diffusion_step: longest explicit step of diffusion; the same for every batch.
        viscosity: nu of each sample, (B, 1, 1); `buoyancy` likewise b.
        project: takes the gradient of the pressure.
        kernel: compiles a function, or hands it back as it is. The step of second order as a whole takes minutes to
            compile; its interpolation takes most of its time.
    """

    def __init__(
        self,
        spacing: tuple[float, ...],
        diffusion_step: float,
        viscosity: Tensor,
        buoyancy: Tensor,
        project: Projection,
        kernel: Callable[[Callable[..., Any]], Callable[..., Any]],
    ) -> None:
        self.spacing = spacing
        self.diffusion_step = diffusion_step
        self.viscosity = viscosity
        self.buoyancy = buoyancy
        self.project = project
        self.first_order = kernel(self._first_order)
        self._carried_cubic = kernel(carried_cubic)

    def _first_order(self, state: State, h: float) -> State:
        """In the publisher's order: smoke, velocity with buoyancy, viscosity in explicit steps, pressure."""
        smoke, u, v = state
        dx, dy = self.spacing
        cell_u, cell_v = centred(u, v)
        smoke = carried(smoke, h / dx * cell_u, h / dy * cell_v, "border")
        v_on_u, u_on_v = onto_faces(cell_v)[0], onto_faces(cell_u)[1]
        carried_u = carried(u, h / dx * u, h / dy * v_on_u, "zeros")
        carried_v = carried(v, h / dx * u_on_v, h / dy * v, "zeros")
        pushed_v = carried_v + h * self.buoyancy * onto_faces(smoke)[1]
        parts = max(1, math.ceil(h / self.diffusion_step * (1 - 1e-12)))
        rates = h * self.viscosity / dx**2, h * self.viscosity / dy**2
        u, v, _ = self.project(diffused(carried_u, *rates, parts), diffused(pushed_v, *rates, parts))
        return smoke, u, v

    def second_order(self, state: State, h: float) -> State:
        """Trapezoidal rule along the paths of the fluid, after a first-order step that predicts velocity and pressure.

        (u - h/2 F)(end) = (u + h/2 F)(start), F = nu Lap u + b s e_y - grad p, with the predicted velocity in the
        viscous term at the end and the predicted pressure at both; a last projection takes the rest of the pressure.
        """
        smoke, u, v = state
        dx, dy = self.spacing
        force_u, force_v = self._force(smoke, u, v)
        paths = self._paths(u, v, h)
        predicted_u, predicted_v, pressure = self.project(*self._moved(u + h * force_u, v + h * force_v, paths))
        half_x, half_y = pressure.diff(dim=1) / (2 * dx), pressure.diff(dim=2) / (2 * dy)

        paths = self._paths((u + predicted_u) / 2, (v + predicted_v) / 2, h)
        smoke = self._carried_cubic(extended(smoke, ("free", "free")), *paths, limited=True)
        u, v = self._moved(u + h / 2 * force_u - half_x, v + h / 2 * force_v - half_y, paths)
        force_u, force_v = self._force(smoke, predicted_u, predicted_v)
        u, v, _ = self.project(u + h / 2 * force_u - half_x, v + h / 2 * force_v - half_y)
        return smoke, u, v

    def _force(self, smoke: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Viscosity and buoyancy on the inner faces; the velocity is 0 on the walls."""
        dx, dy = self.spacing
        force = []
        for field, walls in ((u, _WALLS_U), (v, _WALLS_V)):
            wide = extended(field, walls)[:, 1:-1, 1:-1]
            laplacian = wide[:, :, 1:-1].diff(n=2, dim=1) / dx**2 + wide[:, 1:-1].diff(n=2, dim=2) / dy**2
            force.append(self.viscosity * laplacian)
        return force[0], force[1] + self.buoyancy * onto_faces(smoke)[1]

    def _paths(self, u: Tensor, v: Tensor, h: float) -> tuple[Tensor, Tensor]:
        """How far the fluid at each centre has come in a time h, in cells along x and y, (B, nx, ny) each.

        The midpoint rule in a velocity that does not change meanwhile and is 0 on the walls.
        """
        cell_u, cell_v = centred(u, v)
        x, y = h / self.spacing[0] * cell_u, h / self.spacing[1] * cell_v
        halfway = [self._carried_cubic(extended(shift, _WALLS_CENTRE), x / 2, y / 2) for shift in (x, y)]
        return halfway[0], halfway[1]

    def _moved(self, u: Tensor, v: Tensor, paths: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Both velocities from where the fluid at their faces came; its path is the mean of those at the centres."""
        x, y = (onto_faces(path) for path in paths)
        moved_u = self._carried_cubic(extended(u, _WALLS_U), x[0], y[0])
        return moved_u, self._carried_cubic(extended(v, _WALLS_V), x[1], y[1])
