"""Flow around a cylinder in a channel: CFDBench's cylinder problem."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from data_pipeline.base.errors import ConfigError
from data_pipeline.solvers.base import Evolution, PositiveRange, Range
from data_pipeline.solvers.families.wall_flow import WallFlow, WallFlowParameters, extent_of, inlet
from data_pipeline.solvers.numerics.immersed import ImmersedProjection, Markers, most_markers
from data_pipeline.solvers.numerics.staggered import Box, Projection, StaggeredFlow

_CELLS = 8.0
"""Cells across the cylinder: below, its markers are too few to be round."""
_CLEARANCE = 4.0
"""Cells between cylinder and boundary: the forces reach one and a half, the stress needs the rest."""


class Cylinder2DParameters(WallFlowParameters):
    """Parameters of `cylinder_2d`. The cylinder stands at the origin; the box is given by its ends."""

    perturbation: Annotated[float, Field(ge=0, le=1)] = 0.05
    """As for all flows between walls; without one, a symmetric flow takes long to shed vortices."""
    radius: PositiveRange = (0.5, 0.5)
    """Radius of the cylinder."""
    x_min: Range = (-3.0, -3.0)
    """Left end of the box, where the fluid enters."""
    x_max: Range = (8.0, 8.0)
    """Right end of the box, where it leaves."""
    y_min: Range = (-3.0, -3.0)
    """Lower wall."""
    y_max: Range = (3.0, 3.0)
    """Upper wall."""
    profile: Literal["uniform", "parabolic"] = "uniform"
    """Of the inflow; `velocity` is its mean."""


class Cylinder2D(WallFlow[Cylinder2DParameters]):
    """Incompressible flow in [x_min, x_max] x [y_min, y_max] around a cylinder at the origin, between resting walls.

    The fluid enters through x = x_min; at x_max the pressure is 0 and the velocity has no gradient. It starts as the
    flow without vorticity around the cylinder, and a random perturbation that sets off the vortex street. Parameters
    and their names are those of CFDBench (Luo et al. 2023). Fields are 0 in the cylinder, where the mask is false.
    """

    family: ClassVar[str] = "cylinder_2d"
    equation: ClassVar[str] = "u_t + div(u u) = -grad p / rho + (mu / rho) Lap u, div u = 0, u = 0 at the cylinder"
    scheme: ClassVar[str] = (
        "staggered grid, central differences, SSP-RK3, exact projection (cosine transform, immersed boundary)"
    )
    boundaries = ("open", "wall")
    masked = True
    parameter_names: ClassVar[tuple[str, ...]] = (
        "velocity", "density", "viscosity", "radius", "x_min", "x_max", "y_min", "y_max"
    )  # fmt: skip
    parameters_class = Cylinder2DParameters

    def __init__(self, resolution: tuple[int, ...], parameters: Cylinder2DParameters) -> None:
        self.extent = extent_of((parameters.x_min, parameters.x_max), (parameters.y_min, parameters.y_max))
        super().__init__(resolution, parameters)

    def check(self, start: float, dt: float, frames: int) -> None:
        """Refuse a cylinder that does not stand free in the box, or that too few cells cut across."""
        given = self.parameters
        ends = {"x_min": -given.x_min[1], "x_max": given.x_max[0], "y_min": -given.y_min[1], "y_max": given.y_max[0]}
        for axis, (name, distance) in zip((0, 0, 1, 1), ends.items(), strict=True):
            cell = self.sizes()[axis][1] / self.grid[axis]
            if 2 * given.radius[0] < _CELLS * cell:
                raise ConfigError(
                    "too few cells across the cylinder",
                    key=f"generate.resolution along {self.axes[axis]} times generate.parameters.refine",
                    found=self.grid[axis],
                    expected=f"cells of at most {2 * given.radius[0] / _CELLS:.4g}, {_CELLS:g} of them across",
                )
            needed = given.radius[1] + _CLEARANCE * cell
            if distance < needed:
                raise ConfigError(
                    "the cylinder at the origin is too near the boundary, or outside",
                    key=f"generate.parameters.{name}",
                    found=getattr(given, name),
                    expected=f"at least {needed:.4g} from 0: the radius and {_CLEARANCE:g} cells",
                )
        super().check(start, dt, frames)

    def sizes(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """See `WallFlow.sizes`."""
        given = self.parameters
        return (
            (given.x_max[0] - given.x_min[1], given.x_max[1] - given.x_min[0]),
            (given.y_max[0] - given.y_min[1], given.y_max[1] - given.y_min[0]),
        )

    def layers(self) -> tuple[float | None, float | None]:
        """See `WallFlow.layers`: that around the cylinder."""
        return 2 * self.parameters.radius[0], 2 * self.parameters.radius[0]

    def size(self, parameters: Mapping[str, float]) -> tuple[float, float]:
        """See `WallFlow.size`."""
        return parameters["x_max"] - parameters["x_min"], parameters["y_max"] - parameters["y_min"]

    def box(self, parameters: Mapping[str, Tensor], like: Tensor) -> Box:
        """See `WallFlow.box`."""
        velocity = parameters["velocity"]
        return Box(
            dx=((parameters["x_max"] - parameters["x_min"]) / self.grid[0]).to(like.dtype),
            dy=((parameters["y_max"] - parameters["y_min"]) / self.grid[1]).to(like.dtype),
            speed=velocity.to(like.dtype),
            density=parameters["density"].to(like.dtype),
            viscosity=(parameters["viscosity"] / parameters["density"]).to(like.dtype),
            lid=torch.zeros_like(velocity, dtype=like.dtype),
            inflow=inlet(self.parameters.profile, velocity, self.grid[1]).to(like.dtype),
        )

    def projection(self, parameters: Mapping[str, Tensor], box: Box) -> Projection:
        """See `WallFlow.projection`: with no slip at the cylinder."""
        grid, (width, height) = (self.grid[0], self.grid[1]), self.sizes()
        most = most_markers(self.parameters.radius[1], min(width[0] / grid[0], height[0] / grid[1]))
        centre = -parameters["x_min"], -parameters["y_min"]
        return ImmersedProjection(box, grid, Markers(centre, parameters["radius"], box, grid, most))

    def begin(self, initial: Tensor, parameters: Mapping[str, Tensor]) -> Evolution:
        """Start a batch; `initial` holds the perturbation, (B, 2, *grid)."""
        return _CylinderFlow(self.flow(initial, parameters), self.outside(parameters).to(initial.dtype))

    def outside(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Cells of the solver's grid whose middle is not in the cylinder, bool (B, 1, *grid)."""
        columns = {key: value.reshape(-1, 1, 1) for key, value in parameters.items()}
        index = [torch.arange(n, dtype=torch.float64, device=columns["radius"].device) + 0.5 for n in self.grid]
        x = columns["x_min"] + (columns["x_max"] - columns["x_min"]) / self.grid[0] * index[0][:, None]
        y = columns["y_min"] + (columns["y_max"] - columns["y_min"]) / self.grid[1] * index[1]
        return (x**2 + y**2 > columns["radius"] ** 2).unsqueeze(1)

    def mask(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Stored cells that are fluid by half or more, bool (B, *resolution)."""
        return super().restrict(self.outside(parameters).double())[:, 0] >= 0.5

    def restrict(self, fields: Tensor) -> Tensor:
        """Means over the fluid in each stored cell. The last channel is 1 in the fluid and 0 in the cylinder, where
        all others are 0."""
        means = super().restrict(fields)
        fluid = means[:, -1:]
        return torch.where(fluid >= 0.5, means[:, :-1] / fluid, 0.0)


class _CylinderFlow:
    """A batch on its way, blank in the cylinder."""

    def __init__(self, flow: StaggeredFlow, outside: Tensor) -> None:
        self.flow = flow
        self.outside = outside

    def advance(self, duration: float) -> None:
        """See `Evolution.advance`."""
        self.flow.advance(duration)

    def fields(self) -> Tensor:
        """Channels and, last, 1 in the fluid and 0 in the cylinder, (B, C + 1, nx, ny)."""
        return torch.cat([self.outside * self.flow.fields(), self.outside], dim=1)
