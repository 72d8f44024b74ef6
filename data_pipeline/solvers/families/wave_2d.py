"""Acoustic waves in layered or smoothly varying media: the equation of Poseidon's Wave-Layer and Wave-Gauss."""

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from numpy.random import Generator
from pydantic import Field
from torch import Tensor

from data_pipeline.base.errors import ConfigError
from data_pipeline.solvers.base import Parameters, PositiveRange, Solver
from data_pipeline.solvers.numerics.acoustics import LARGEST_COURANT, AcousticEvolution, add_rates, longest_step
from data_pipeline.solvers.numerics.counts import Counts, draw_count
from data_pipeline.solvers.semilinear import MAX_STEPS

_MARGIN = 4.0
"""Distance of a pulse's centre from the sides, in its widths: a pulse is 0.03 % of its height there."""


class Wave2DParameters(Parameters):
    """Parameters of `wave_2d`."""

    courant: Annotated[float, Field(gt=0, le=LARGEST_COURANT)] = 0.8
    """h c sqrt(1/dx^2 + 1/dy^2) for the largest speed; the bound is that of RK4 with this difference."""
    medium: Literal["layers", "bumps"] = "layers"
    """Horizontal layers, each of one speed, or a slow ground with smooth bumps of higher speed."""
    speed: PositiveRange = (0.5, 1.5)
    """Speeds of the medium: each layer draws its own; bumps rise from the lowest towards the highest."""
    layers: Counts = (2, 6)
    """Least and largest number of layers, each equally likely."""
    bumps: Counts = (2, 6)
    """Least and largest number of Gaussian bumps, each equally likely."""
    bump_width: PositiveRange = (0.08, 0.16)
    """Standard deviation of a bump."""
    pulses: Counts = (1, 4)
    """Gaussian pulses at the start."""
    pulse_width: PositiveRange = (0.04, 0.08)
    """Their standard deviation."""
    boundary: Literal["open", "wall"] = "open"
    """Waves leave the box, or are reflected by walls with u_n = 0."""
    rate: bool = False
    """Store u_t too: with it a frame is the whole state."""


class Wave2D(Solver[Wave2DParameters]):
    """u_tt = c(x, y)^2 Lap u on the unit square, from a sum of Gaussian pulses at rest (u_t = 0).

    c^2 stands before the Laplacian, as in Poseidon's equation: u and u_n are continuous where c jumps (pressure in a
    medium of one density), so that a wave which comes from c1 onto c2 is reflected with (c2 - c1) / (c2 + c1). With
    div(c^2 grad u) the sign would be the opposite. u alone is not the state: a model needs two frames, or `rate`.
    """

    family: ClassVar[str] = "wave_2d"
    equation: ClassVar[str] = "u_tt = c(x, y)^2 Lap u"
    scheme: ClassVar[str] = "staggered fourth-order differences, RK4, perfectly matched layers on open sides"
    channels: tuple[str, ...] = ("displacement",)
    static_channels = ("wave_speed",)
    axes = ("x", "y")
    extent = ((0.0, 1.0), (0.0, 1.0))
    placement = "cells"
    parameter_names: ClassVar[tuple[str, ...]] = ()
    parameters_class = Wave2DParameters

    def __init__(self, resolution: tuple[int, ...], parameters: Wave2DParameters) -> None:
        if parameters.rate:
            self.channels = ("displacement", "displacement_rate")
        self.boundaries = (parameters.boundary, parameters.boundary)
        super().__init__(resolution, parameters)

    @property
    def translation_invariant(self) -> bool:
        """The medium varies."""
        return False

    def check(self, start: float, dt: float, frames: int) -> None:
        """Refuse pulses that do not fit into the box, a grid too coarse for them, and frames of too many steps.

        A pulse that enters a slower medium shortens with the speed. One whose width is a cell still keeps nearly all
        of its spectrum below half of the grid's largest wavenumber.
        """
        p = self.parameters
        widest = 0.5 / _MARGIN
        if p.pulse_width[1] >= widest:
            raise ConfigError(
                "the pulses do not fit into the box",
                key="generate.parameters.pulse_width",
                found=p.pulse_width[1],
                expected=f"below {widest:g}: they stay {_MARGIN:g} widths away from the sides",
            )
        shortest = p.pulse_width[0] * p.speed[0] / p.speed[1]
        if shortest < max(self.spacing):
            raise ConfigError(
                f"the grid of {self.grid} is too coarse for a pulse in the slowest medium",
                key="generate.parameters.pulse_width, speed",
                found=f"a width of {shortest:.3g}",
                expected=f"at least a cell, {max(self.spacing):.3g}: a finer grid (resolution, parameters.refine), "
                "wider pulses or more even speeds",
            )
        longest = longest_step(self.spacing, p.speed[1], p.courant)
        self.check_steps(max(start, dt) / longest, MAX_STEPS, "parameters.speed")

    def internal_step(self, dt: float) -> float:
        """The equal steps within the Courant bound that make up dt."""
        longest = longest_step(self.spacing, self.parameters.speed[1], self.parameters.courant)
        return dt / math.ceil(dt / longest * (1 - 1e-12))

    def draw_state(self, rng: Generator, parameters: Mapping[str, float]) -> Tensor:
        """Displacement and speed of waves, (2, *grid): means over each cell, of u and of 1 / c^2."""
        p = self.parameters
        pulses = torch.zeros(self.grid, dtype=torch.float64)
        for _ in range(draw_count(rng, p.pulses)):
            width = rng.uniform(*p.pulse_width)
            centre = rng.uniform(_MARGIN * width, 1 - _MARGIN * width, 2)
            pulses += rng.uniform(0.5, 1.0) * self._gaussian_means(centre[0], centre[1], width)
        return torch.stack([pulses, self._layers(rng) if p.medium == "layers" else self._bumps(rng)])

    def begin(self, initial: Tensor, parameters: Mapping[str, Tensor]) -> "_WaveEvolution":
        """Start a batch of displacements and speeds, (B, 2, *grid)."""
        p = self.parameters
        evolution = AcousticEvolution(
            initial[:, 0],
            initial[:, 1],
            spacing=(self.spacing[0], self.spacing[1]),
            fastest=p.speed[1],
            courant=p.courant,
            open_box=p.boundary == "open",
            stage=self.kernel(add_rates),
        )
        return _WaveEvolution(evolution, p.rate)

    def static_fields(self, initial: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """Speed of waves, (B, 1, *resolution)."""
        return self.restrict(initial[:, 1:] ** -2) ** -0.5

    def _layers(self, rng: Generator) -> Tensor:
        """Speed in a stack of layers along y; their thicknesses differ by a factor of three at most."""
        count = draw_count(rng, self.parameters.layers)
        thickness = rng.uniform(0.5, 1.5, count)
        top = torch.from_numpy(thickness.cumsum() / thickness.sum())
        speeds = torch.from_numpy(rng.uniform(*self.parameters.speed, count))
        # The part of each cell below each interface, and from it the part within each layer.
        n = self.grid[1]
        below = (top[:, None] * n - torch.arange(n, dtype=torch.float64)).clamp(0, 1)
        share = torch.cat([below[:1], below.diff(dim=0)])
        slowness = (share / speeds[:, None] ** 2).sum(0)
        return (slowness**-0.5).expand(self.grid)

    def _bumps(self, rng: Generator) -> Tensor:
        """Speed low + (high - low) (1 - prod_i (1 - a_i G_i)) with Gaussians G_i: their sum where bumps are far apart,
        and never above the highest speed where they meet."""
        p = self.parameters
        x, y = self.coordinates()
        rest = torch.ones(self.grid, dtype=torch.float64)
        for _ in range(draw_count(rng, p.bumps)):
            (x0, y0), width, height = rng.uniform(0, 1, 2), rng.uniform(*p.bump_width), rng.uniform(0.3, 1.0)
            rest *= 1 - height * torch.exp(-((x - x0) ** 2 + (y - y0) ** 2) / (2 * width**2))
        return p.speed[0] + (p.speed[1] - p.speed[0]) * (1 - rest)

    def _gaussian_means(self, x0: float, y0: float, width: float) -> Tensor:
        """Means of exp(-r^2 / (2 width^2)) over the cells, (*grid)."""
        lines = []
        for n, h, centre in zip(self.grid, self.spacing, (x0, y0), strict=True):
            edges = (torch.arange(n + 1, dtype=torch.float64) * h - centre) / (math.sqrt(2) * width)
            lines.append(torch.erf(edges).diff() * width * math.sqrt(math.pi / 2) / h)
        return lines[0][:, None] * lines[1]


class _WaveEvolution:
    """A batch on its way, and which of its fields are stored."""

    def __init__(self, waves: AcousticEvolution, rate: bool) -> None:
        self.waves = waves
        self.rate = rate

    def advance(self, duration: float) -> None:
        """Move every solution of the batch forward by `duration`."""
        self.waves.advance(duration)

    def fields(self) -> Tensor:
        """Displacement now, and its rate where it is wanted, (B, C, *grid)."""
        fields = [self.waves.displacement()] + ([self.waves.rate()] if self.rate else [])
        return torch.stack(fields, dim=1)
