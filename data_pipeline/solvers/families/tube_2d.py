"""Flow through a plane channel from an inlet to an open end: CFDBench's tube problem."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from data_pipeline.solvers.base import PositiveRange
from data_pipeline.solvers.families.wall_flow import WallFlow, WallFlowParameters, extent_of, inlet
from data_pipeline.solvers.numerics.staggered import Box


class Tube2DParameters(WallFlowParameters):
    """Parameters of `tube_2d`."""

    height: PositiveRange = (1.0, 1.0)
    """Height of the box, along y."""
    width: PositiveRange = (4.0, 4.0)
    """Length of the tube, along x."""
    profile: Literal["uniform", "parabolic"] = "uniform"
    """Of the inflow; `velocity` is its mean."""


class Tube2D(WallFlow[Tube2DParameters]):
    """Incompressible flow in [0, width] x [0, height] between resting walls; the fluid enters through x = 0.

    At the open end the pressure is 0 and the velocity has no gradient. At t = 0 the fluid moves as the inflow does
    everywhere (an incompressible fluid at rest that is pushed in at one end does so at once), or with a random
    perturbation in addition. Parameters and their names are those of CFDBench (Luo et al. 2023).
    """

    family: ClassVar[str] = "tube_2d"
    equation: ClassVar[str] = "u_t + div(u u) = -grad p / rho + (mu / rho) Lap u, div u = 0, inflow at x = 0"
    scheme: ClassVar[str] = "staggered grid, central differences, SSP-RK3, exact projection (cosine transform)"
    boundaries = ("open", "wall")
    parameter_names: ClassVar[tuple[str, ...]] = ("velocity", "density", "viscosity", "height", "width")
    parameters_class = Tube2DParameters

    def __init__(self, resolution: tuple[int, ...], parameters: Tube2DParameters) -> None:
        self.extent = extent_of(((0.0, 0.0), parameters.width), ((0.0, 0.0), parameters.height))
        super().__init__(resolution, parameters)

    def sizes(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """See `WallFlow.sizes`."""
        return self.parameters.width, self.parameters.height

    def layers(self) -> tuple[float | None, float | None]:
        """See `WallFlow.layers`: those along the tube, after one height; along x the flow is smooth."""
        return None, self.parameters.height[0]

    def size(self, parameters: Mapping[str, float]) -> tuple[float, float]:
        """See `WallFlow.size`."""
        return parameters["width"], parameters["height"]

    def box(self, parameters: Mapping[str, Tensor], like: Tensor) -> Box:
        """See `WallFlow.box`."""
        velocity = parameters["velocity"]
        return Box(
            dx=(parameters["width"] / self.grid[0]).to(like.dtype),
            dy=(parameters["height"] / self.grid[1]).to(like.dtype),
            speed=velocity.to(like.dtype),
            density=parameters["density"].to(like.dtype),
            viscosity=(parameters["viscosity"] / parameters["density"]).to(like.dtype),
            lid=torch.zeros_like(velocity, dtype=like.dtype),
            inflow=inlet(self.parameters.profile, velocity, self.grid[1]).to(like.dtype),
        )
