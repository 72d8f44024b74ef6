"""What a PDE family is: its names, its domain, its parameters, how a sample is drawn and how a batch is solved."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Generic, Literal, Protocol, TypeVar

import torch
from numpy.random import Generator
from pydantic import AfterValidator, BeforeValidator, Field
from torch import Tensor

from data_pipeline.base.config import Config
from data_pipeline.base.errors import ConfigError
from data_pipeline.trajectory import Boundary


def _as_pair(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value, value
    if isinstance(value, list | tuple) and len(value) == 2:
        return tuple(value)
    raise ValueError("expected a number, or [low, high] to draw from uniformly")


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError("expected low <= high in [low, high]")
    return value


def _positive(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] <= 0:
        raise ValueError("expected values > 0")
    return value


Range = Annotated[tuple[float, float], BeforeValidator(_as_pair), AfterValidator(_ordered)]
"""A physical parameter: one number, or [low, high], from which each trajectory draws its own value uniformly."""

PositiveRange = Annotated[Range, AfterValidator(_positive)]


def draw_uniform(rng: Generator, bounds: tuple[float, float]) -> float:
    """A value of a `Range`; a fixed parameter also uses up one draw."""
    low, high = bounds
    return low + (high - low) * float(rng.random())


class Parameters(Config):
    """Base of every family's parameter set."""

    refine: Annotated[int, Field(ge=1)] = 1
    """Grid points of the solver for each stored grid point, along each axis."""


ParametersT = TypeVar("ParametersT", bound=Parameters)


class Evolution(Protocol):
    """A batch of solutions on its way through time."""

    def advance(self, duration: float) -> None:
        """Move every solution of the batch forward by `duration`; 0 changes nothing."""
        ...

    def fields(self) -> Tensor:
        """The stored channels now, (B, C, *grid)."""
        ...


class Solver(ABC, Generic[ParametersT]):
    """One PDE family on a given grid.

    Args:
        resolution: grid points of the stored fields along each axis.
        parameters: the family's own parameters.

    Raises:
        ConfigError: the rank of the resolution is not that of the family.
    """

    family: ClassVar[str]
    equation: ClassVar[str]
    """The equation in one line."""
    scheme: ClassVar[str]
    """The discretisation in one line, for the record of each trajectory."""
    version: ClassVar[int] = 1
    """Raise it with every change that alters the numbers: data of another version are built anew."""
    channels: ClassVar[tuple[str, ...]]
    axes: ClassVar[tuple[str, ...]]
    extent: ClassVar[tuple[tuple[float, float], ...]]
    boundaries: ClassVar[tuple[Boundary, ...]]
    placement: ClassVar[Literal["nodes", "cells"]]
    """`nodes`: point i lies at low + i h. `cells`: value i belongs to the cell centred at low + (i + 1/2) h."""
    parameter_names: ClassVar[tuple[str, ...]]
    """Physical parameters that each trajectory carries."""
    parameters_class: ClassVar[type[Parameters]]

    def __init__(self, resolution: tuple[int, ...], parameters: ParametersT) -> None:
        if len(resolution) != len(self.axes):
            raise ConfigError(
                f"the family {self.family} has {len(self.axes)} spatial axes",
                key="resolution",
                found=list(resolution),
                expected=f"{len(self.axes)} numbers of grid points, along {', '.join(self.axes)}",
            )
        self.resolution = resolution
        self.parameters = parameters
        self.grid = tuple(n * parameters.refine for n in resolution)
        self.lengths = tuple(high - low for low, high in self.extent)
        self.spacing = tuple(length / n for length, n in zip(self.lengths, self.grid, strict=True))

    @property
    def translation_invariant(self) -> bool:
        """Whether the equation is the same everywhere: no force or coefficient that depends on place."""
        return True

    @abstractmethod
    def check(self, start: float, dt: float, frames: int) -> None:
        """Refuse, before any work, what cannot be stable; the arguments are those of `solve`.

        Raises:
            ConfigError: the internal step is above the scheme's bound; names both.
        """

    def draw_parameters(self, rng: Generator) -> dict[str, float]:
        """The physical parameters of one sample. One draw each, so that widening a range leaves the others alone."""
        return {name: draw_uniform(rng, getattr(self.parameters, name)) for name in self.parameter_names}

    @abstractmethod
    def draw_state(self, rng: Generator, parameters: Mapping[str, float]) -> Tensor:
        """The state of one sample at t = 0 on the solver's grid, float64 (S, *grid)."""

    @abstractmethod
    def begin(self, initial: Tensor, parameters: Mapping[str, Tensor]) -> Evolution:
        """Start a batch: `initial` is float64 (B, S, *grid), each parameter float64 (B,)."""

    def solve(
        self, initial: Tensor, parameters: Mapping[str, Tensor], *, start: float, dt: float, frames: int
    ) -> Tensor:
        """Solve a batch of samples together.

        Args:
            initial: states at t = 0, float64 (B, S, *grid).
            parameters: the value of each physical parameter for each sample, float64 (B,).
            start: time of the first stored frame.
            dt: time between two stored frames.
            frames: number of stored frames, T.

        Returns:
            float32 (B, T, *resolution, C). A sample that blew up holds NaN or Inf from then on.
        """
        evolution = self.begin(initial, parameters)
        stored = []
        for frame in range(frames):
            evolution.advance(dt if frame else start)
            stored.append(self._restrict(evolution.fields()).movedim(1, -1).float())
        return torch.stack(stored, dim=1)

    def coordinates(self) -> list[Tensor]:
        """The solver's grid: for each axis its coordinate at every point, float64 (*grid)."""
        offset = 0.5 if self.placement == "cells" else 0.0
        lines = [
            low + (torch.arange(n, dtype=torch.float64) + offset) * h
            for (low, _), n, h in zip(self.extent, self.grid, self.spacing, strict=True)
        ]
        return list(torch.meshgrid(*lines, indexing="ij"))

    def _restrict(self, fields: Tensor) -> Tensor:
        """From the solver's grid to the stored one: every refine-th node, or the mean over each stored cell."""
        refine = self.parameters.refine
        for axis in range(2, fields.ndim):
            blocks = fields.reshape(*fields.shape[:axis], -1, refine, *fields.shape[axis + 1 :])
            fields = blocks.select(axis + 1, 0) if self.placement == "nodes" else blocks.mean(axis + 1)
        return fields
