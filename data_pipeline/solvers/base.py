"""What a PDE family is: its names, its domain, its parameters, how a sample is drawn and how a batch is solved."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Generic, Literal, Protocol, TypeVar

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from torch import Tensor

from data_pipeline.base.config import Config
from data_pipeline.base.errors import ConfigError
from data_pipeline.trajectory import Boundary, FloatArray


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


def _not_negative(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] < 0:
        raise ValueError("expected values >= 0")
    return value


Range = Annotated[tuple[float, float], BeforeValidator(_as_pair), AfterValidator(_ordered)]
"""A physical parameter: one number, or [low, high], from which each trajectory draws its own value uniformly."""

PositiveRange = Annotated[Range, AfterValidator(_positive)]
NonNegativeRange = Annotated[Range, AfterValidator(_not_negative)]


def draw_uniform(rng: Generator, bounds: tuple[float, float]) -> float:
    """A value of a `Range`; a fixed parameter also uses up one draw."""
    low, high = bounds
    return low + (high - low) * float(rng.random())


class Parameters(Config):
    """Base of every family's parameter set."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    refine: Annotated[int, Field(ge=1)] = 1
    """Grid points of the solver for each stored grid point, along each axis."""

    def finer(self) -> dict[str, Any]:
        """Settings of a run that is about twice as fine in space and time, from which the error is estimated.

        A time step that a Courant number decides shrinks with the grid; families with one of their own halve it here.
        """
        return self.model_dump() | {"refine": 2 * self.refine}


ParametersT = TypeVar("ParametersT", bound=Parameters)


class Evolution(Protocol):
    """A batch of solutions on its way through time."""

    def advance(self, duration: float) -> None:
        """Move every solution of the batch forward by `duration`; 0 changes nothing."""
        ...

    def fields(self) -> Tensor:
        """The stored channels now, (B, C, *grid)."""
        ...


Placement = Literal["nodes", "cells", "ends"]
"""Where the values of a grid lie along an axis from low to high. `nodes`: point i at low + i h, high is low again
(periodic). `cells`: value i belongs to the cell centred at low + (i + 1/2) h. `ends`: point i at low + i h, and the
last one at high."""


class Solver(ABC, Generic[ParametersT]):
    """One PDE family on a given grid.

    What a family is stands in class attributes; a family whose channels, extent or boundaries depend on its parameters
    sets them in its `__init__`, before that of this class.

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
    parameter_names: ClassVar[tuple[str, ...]]
    """Physical parameters that each trajectory carries."""
    parameters_class: ClassVar[type[Parameters]]
    steady: ClassVar[bool] = False
    """The solution is one frame, that of the state's only problem; times mean nothing."""

    channels: tuple[str, ...]
    static_channels: tuple[str, ...] = ()
    """Fields of each trajectory that do not change in time: coefficients, forcing, the input of a steady problem."""
    masked: bool = False
    """Each trajectory has a mask of the points that belong to the domain."""
    axes: tuple[str, ...]
    extent: tuple[tuple[float, float], ...]
    boundaries: tuple[Boundary, ...]
    placement: Placement
    compile: bool = False
    """Whether `kernel` compiles. Set from outside, before `begin`."""

    def __init__(self, resolution: tuple[int, ...], parameters: ParametersT) -> None:
        if len(resolution) != len(self.axes):
            raise ConfigError(
                f"the family {self.family} has {len(self.axes)} spatial axes",
                key="generate.resolution",
                found=list(resolution),
                expected=f"{len(self.axes)} numbers of grid points, along {', '.join(self.axes)}",
            )
        self.resolution = resolution
        self.parameters = parameters
        last = 1 if self.placement == "ends" else 0
        self.grid = tuple((n - last) * parameters.refine + last for n in resolution)
        self.lengths = tuple(high - low for low, high in self.extent)
        self.spacing = tuple(length / (n - last) for length, n in zip(self.lengths, self.grid, strict=True))

    @property
    def translation_invariant(self) -> bool:
        """Whether the equation is the same everywhere: no force or coefficient that depends on place."""
        return True

    @abstractmethod
    def check(self, start: float, dt: float, frames: int) -> None:
        """Refuse, before any work, what cannot be right; the arguments are those of `solve`.

        Raises:
            ConfigError: the internal step is above the scheme's bound, the grid too coarse for the parameters, or the
                domain impossible; names what was found and the bound.
        """

    def check_steps(self, steps: float, most: int, key: str) -> None:
        """Refuse settings that need more than `most` internal steps between two frames, or up to the first one.

        Raises:
            ConfigError: names `key`, relative to `generate`, and the number.
        """
        if steps > most:
            raise ConfigError(
                f"too many internal steps of {self.family} for one frame",
                key=", ".join(f"generate.{name}" for name in ("start", "dt", *key.split(", "))),
                found=f"about {steps:.2g} steps",
                expected=f"at most {most}",
                remedy="more frames (a shorter dt), a longer step, a coarser grid or milder parameters",
            )

    def internal_step(self, dt: float) -> float | None:
        """Length of the solver's own steps between two frames dt apart; None where it follows the solution."""
        return None

    def draw_parameters(self, rng: Generator) -> dict[str, float]:
        """The physical parameters of one sample. One draw each, so that widening a range leaves the others alone."""
        return {name: draw_uniform(rng, getattr(self.parameters, name)) for name in self.parameter_names}

    @abstractmethod
    def draw_state(self, rng: Generator, parameters: Mapping[str, float]) -> Tensor:
        """The state of one sample at t = 0 on the solver's grid, float64 (S, *grid).

        It holds all that is drawn for a sample: also coefficients and forces that do not change in time. The same
        stream gives the same functions of space on every grid that can hold them.
        """

    @abstractmethod
    def begin(self, initial: Tensor, parameters: Mapping[str, Tensor]) -> Evolution:
        """Start a batch: `initial` is (B, S, *grid) in the precision and on the device of the work, each parameter
        float64 (B,) on that device. No sample may depend on the others of its batch."""

    def static_fields(self, initial: Tensor, parameters: Mapping[str, Tensor]) -> Tensor | None:
        """The static channels of a batch on the stored grid, (B, K, *resolution); arguments as those of `begin`."""
        return None

    def mask(self, parameters: Mapping[str, Tensor]) -> Tensor | None:
        """Points of the stored grid that belong to the domain, bool (B, *resolution)."""
        return None

    def fault(self, fields: FloatArray) -> tuple[int, str] | None:
        """The first frame of a finite solution (T, *resolution, C) that is impossible, and why (a density that is not
        positive, say); None for a sound one."""
        return None

    def solve(
        self, initial: Tensor, parameters: Mapping[str, Tensor], *, start: float, dt: float, frames: int
    ) -> Tensor:
        """Solve a batch of samples together.

        Args:
            initial: states at t = 0, float32 or float64 (B, S, *grid); its device and precision are those of the work.
            parameters: the value of each physical parameter for each sample, float64 (B,).
            start: time of the first stored frame.
            dt: time between two stored frames.
            frames: number of stored frames, T.

        Returns:
            float32 (B, T, *resolution, C) on the CPU: a GPU holds one frame at a time. A sample that blew up holds NaN
            or Inf from then on.
        """
        evolution = self.begin(initial, parameters)
        stored = torch.empty(len(initial), frames, *self.resolution, len(self.channels))
        for frame in range(frames):
            evolution.advance(dt if frame else start)
            stored[:, frame] = self.restrict(evolution.fields()).movedim(1, -1)
        return stored

    def points(self) -> tuple[NDArray[np.float64], ...]:
        """Positions of the stored grid points along each axis, (n,) each."""
        last = 1 if self.placement == "ends" else 0
        offset = 0.5 if self.placement == "cells" else 0.0
        return tuple(
            low + length * (np.arange(n) + offset) / (n - last)
            for (low, _), length, n in zip(self.extent, self.lengths, self.resolution, strict=True)
        )

    def coordinates(self) -> list[Tensor]:
        """The solver's grid: for each axis its coordinate at every point, float64 (*grid)."""
        offset = 0.5 if self.placement == "cells" else 0.0
        lines = [
            low + (torch.arange(n, dtype=torch.float64) + offset) * h
            for (low, _), n, h in zip(self.extent, self.grid, self.spacing, strict=True)
        ]
        return list(torch.meshgrid(*lines, indexing="ij"))

    def restrict(self, fields: Tensor) -> Tensor:
        """From the solver's grid (B, C, *grid) to the stored one: every refine-th point, or the mean over each stored
        cell."""
        refine = self.parameters.refine
        if refine == 1:
            return fields
        for axis in range(2, fields.ndim):
            if self.placement == "cells":
                fields = fields.reshape(*fields.shape[:axis], -1, refine, *fields.shape[axis + 1 :]).mean(axis + 1)
            else:
                fields = fields[(slice(None),) * axis + (slice(None, None, refine),)]
        return fields

    def kernel(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, compiled where the solver is asked to compile: for steps that are bound by memory traffic."""
        return torch.compile(function, dynamic=False) if self.compile else function
