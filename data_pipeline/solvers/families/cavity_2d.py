"""Flow in a rectangular cavity that its lid drives: CFDBench's cavity problem."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from data_pipeline.solvers.base import PositiveRange
from data_pipeline.solvers.families.wall_flow import WallFlow, WallFlowParameters, extent_of
from data_pipeline.solvers.numerics.staggered import Box


class Cavity2DParameters(WallFlowParameters):
    """Parameters of `cavity_2d`."""

    height: PositiveRange = (1.0, 1.0)
    """Height of the box, along y."""
    width: PositiveRange = (1.0, 1.0)
    """Width of the box, along x."""


class Cavity2D(WallFlow[Cavity2DParameters]):
    """Incompressible flow in [0, width] x [0, height]; the lid moves along x with `velocity`, all other walls rest.

    It starts at rest, or with a random perturbation. Parameters and their names are those of CFDBench (Luo et al.
    2023). Trap: the pressure grows as 1/r towards both ends of the lid, and without bound as t -> 0; near the corners
    it depends on the grid.
    """

    family: ClassVar[str] = "cavity_2d"
    equation: ClassVar[str] = "u_t + div(u u) = -grad p / rho + (mu / rho) Lap u, div u = 0, u = U at the lid, else 0"
    scheme: ClassVar[str] = "staggered grid, central differences, SSP-RK3, exact projection (cosine transform)"
    boundaries = ("wall", "wall")
    parameter_names: ClassVar[tuple[str, ...]] = ("velocity", "density", "viscosity", "height", "width")
    parameters_class = Cavity2DParameters

    def __init__(self, resolution: tuple[int, ...], parameters: Cavity2DParameters) -> None:
        self.extent = extent_of(((0.0, 0.0), parameters.width), ((0.0, 0.0), parameters.height))
        super().__init__(resolution, parameters)

    def sizes(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """See `WallFlow.sizes`."""
        return self.parameters.width, self.parameters.height

    def layers(self) -> tuple[float | None, float | None]:
        """See `WallFlow.layers`: one along each wall."""
        return self.parameters.height[0], self.parameters.width[0]

    def size(self, parameters: Mapping[str, float]) -> tuple[float, float]:
        """See `WallFlow.size`."""
        return parameters["width"], parameters["height"]

    def box(self, parameters: Mapping[str, Tensor], like: Tensor) -> Box:
        """See `WallFlow.box`."""
        lid = parameters["velocity"].to(like.dtype)
        return Box(
            dx=(parameters["width"] / self.grid[0]).to(like.dtype),
            dy=(parameters["height"] / self.grid[1]).to(like.dtype),
            speed=lid,
            density=parameters["density"].to(like.dtype),
            viscosity=(parameters["viscosity"] / parameters["density"]).to(like.dtype),
            lid=lid,
            inflow=None,
        )
