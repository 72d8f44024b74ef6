"""Steady flow through a porous square (Darcy's law): the steady problem of the Fourier neural operator's paper."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from numpy.random import Generator
from pydantic import Field
from torch import Tensor

from data_pipeline.base.errors import ConfigError
from data_pipeline.solvers.base import Parameters, Range, Solver
from data_pipeline.solvers.families.steady import Steady, check_correlation
from data_pipeline.solvers.numerics import elliptic
from data_pipeline.solvers.numerics.cosine_field import cosine_field

Positive = Annotated[float, Field(gt=0)]
_LARGEST_CONTRAST = 1000.0


class Darcy2DParameters(Parameters):
    """Parameters of `darcy_2d`."""

    permeability: Literal["two_phase", "lognormal"] = "two_phase"
    """What is made of the Gaussian field g: two values, by its sign, or exp(g)."""
    low: Positive = 3.0
    """Permeability where g < 0, in two phases."""
    high: Positive = 12.0
    """Permeability where g >= 0, in two phases."""
    smoothness: Annotated[float, Field(gt=1, le=50)] = 2.0
    """alpha of the Gaussian field; its variance is finite above 1, and its factors tau^alpha are up to 50."""
    inverse_length: Positive = 3.0
    """tau of the Gaussian field."""
    modes: Annotated[int, Field(ge=2, le=4096)] = 421
    """Cosine modes of the Gaussian field along each axis; in the paper's code as many as grid points. 4096 already are
    17 million numbers to draw for each trajectory."""
    source: Range = (1.0, 1.0)
    """The right-hand side, the same at every point."""


class Darcy2D(Solver[Darcy2DParameters]):
    """Pressure p with -div(a grad p) = f on [0, 1]^2, p = 0 on the boundary, from a permeability a.

    Permeability, right-hand side and differences are those of Li et al. (2021). They solve at 421 points a side and
    store every fifth (third, second) one: `resolution: [85, 85]`, `refine: 5`. The interface between the phases is
    rough, and a grid of 85 points of its own is off by 0.7 %.
    """

    family: ClassVar[str] = "darcy_2d"
    equation: ClassVar[str] = "-div(a grad p) = f"
    scheme: ClassVar[str] = "five-point differences, mean of a between points, multigrid-preconditioned CG"
    steady: ClassVar[bool] = True
    channels = ("u",)
    static_channels = ("permeability",)
    axes = ("x", "y")
    extent = ((0.0, 1.0), (0.0, 1.0))
    boundaries = ("wall", "wall")
    placement = "ends"
    parameter_names: ClassVar[tuple[str, ...]] = ("source",)
    parameters_class = Darcy2DParameters

    @property
    def translation_invariant(self) -> bool:
        """The permeability depends on the place."""
        return False

    def check(self, start: float, dt: float, frames: int) -> None:
        """Refuse a grid too coarse for the Gaussian field, and phases so far apart that the solver may fail.

        Within a contrast of 1000 the iteration needs less than half of the steps that it may take, which is tested
        (`validation/test_darcy_2d.py`); beyond it nothing is.
        """
        check_correlation(self.family, self.spacing, self.parameters.inverse_length)
        low, high = sorted((self.parameters.low, self.parameters.high))
        if high / low > _LARGEST_CONTRAST:
            raise ConfigError(
                "the two phases of the permeability are too far apart",
                key="generate.parameters.low, generate.parameters.high",
                found=f"{self.parameters.low:g}, {self.parameters.high:g}",
                expected=f"a ratio of at most {_LARGEST_CONTRAST:g}",
            )

    def draw_state(self, rng: Generator, parameters: Mapping[str, float]) -> Tensor:
        """The permeability of one sample, (1, *grid)."""
        given = self.parameters
        field = cosine_field(rng, self.grid, given.modes, given.smoothness, given.inverse_length)
        if given.permeability == "lognormal":
            return field.exp()[None]
        return torch.where(field >= 0, field.new_tensor(given.high), field.new_tensor(given.low))[None]

    def begin(self, initial: Tensor, parameters: Mapping[str, Tensor]) -> Steady:
        """Solve a batch; `initial` holds the permeability, (B, 1, *grid)."""
        operator = elliptic.five_point(initial[:, 0], self.spacing)
        cell = self.spacing[0] * self.spacing[1]
        force = (cell * parameters["source"]).to(initial.dtype).reshape(-1, 1, 1)
        inner = elliptic.solve(operator, force.expand_as(operator.inverse_diagonal).contiguous())
        return Steady(inner)

    def static_fields(self, initial: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """The permeability at the stored points, (B, 1, *resolution)."""
        return self.restrict(initial)
