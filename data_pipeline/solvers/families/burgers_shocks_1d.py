"""Burgers equation with shocks, any viscosity, and a force of moving waves: E1, E2 of Brandstetter et al. (2022)."""

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from numpy.random import Generator
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from data_pipeline.base.errors import ConfigError
from data_pipeline.solvers.base import NonNegativeRange, Parameters, PositiveRange, Range, Solver
from data_pipeline.solvers.numerics.finite_volume import face_states
from data_pipeline.solvers.numerics.waves import AnyInitial, Sines, draw_turning_waves

_STEPS_A_FRAME = 100_000
"""Steps for one frame above which a configuration is refused, and a solution has blown up."""

_CELLS_A_WAVE = 16


class BurgersShocks1DParameters(Parameters):
    """Parameters of `burgers_shocks_1d`."""

    courant: Annotated[float, Field(gt=0, le=0.5)] = 0.4
    """Courant number, of advection and diffusion together; up to 1/2 the scheme makes no new extremes."""
    advection: PositiveRange = (1.0, 1.0)
    """Coefficient a of u u_x."""
    viscosity: NonNegativeRange = (0.0, 0.0)
    """Kinematic viscosity nu."""
    length: PositiveRange = (16.0, 16.0)
    """Length L of the line."""
    initial: AnyInitial = Sines(waves=5)
    """How initial states are drawn."""
    forced: bool = True
    """Whether the waves of the initial state (which then must be `sines`) also force the equation, each turning at a
    rate omega drawn from `rates`."""
    rates: Range = (-0.4, 0.4)
    """Lowest and highest angular frequency of the force."""


class BurgersShocks1D(Solver[BurgersShocks1DParameters]):
    """u_t + a (u^2 / 2)_x = nu u_xx + sum_j A_j sin(omega_j t + 2 pi l_j x / L + phi_j), periodic, nu >= 0.

    Where `length` is a range, the dataset's extent is its middle, and each trajectory's parameter the true one.
    """

    family: ClassVar[str] = "burgers_shocks_1d"
    equation: ClassVar[str] = "u_t + a (u^2/2)_x = nu u_xx + sum_j A_j sin(w_j t + 2 pi l_j x/L + p_j)"
    scheme: ClassVar[str] = "finite volume, MUSCL (MC limiter), Godunov flux, central diffusion, SSP-RK2"
    channels = ("velocity_x",)
    axes = ("x",)
    boundaries = ("periodic",)
    placement = "cells"
    parameter_names: ClassVar[tuple[str, ...]] = ("advection", "viscosity", "length")
    parameters_class = BurgersShocks1DParameters

    def __init__(self, resolution: tuple[int, ...], parameters: BurgersShocks1DParameters) -> None:
        self.extent = ((0.0, sum(parameters.length) / 2),)
        super().__init__(resolution, parameters)

    @property
    def translation_invariant(self) -> bool:
        """A force is bound to places."""
        return not self.parameters.forced

    def check(self, start: float, dt: float, frames: int) -> None:
        """Refuse a force without waves, fewer than 16 cells for the shortest initial wave (a limited second-order
        scheme flattens each extreme by a few per cent a turn below that), and settings that need too many steps.

        The step follows the solution. The estimate of its number takes the largest initial speed and, with a force,
        what this adds along the whole line.
        """
        initial = self.parameters.initial
        if self.parameters.forced and not isinstance(initial, Sines):
            raise ConfigError(
                "the force is made of the waves of the initial state",
                key="generate.parameters.initial.kind",
                found=initial.kind,
                expected="sines, or parameters.forced = false",
            )
        cells = _CELLS_A_WAVE * initial.largest_mode
        if self.grid[0] < cells:
            raise ConfigError(
                f"the grid is too coarse for the initial waves of {self.family}",
                key="generate.resolution x generate.parameters.refine",
                found=self.grid[0],
                expected=f"at least {cells} cells, {_CELLS_A_WAVE} for the shortest wave",
            )
        p, speed = self.parameters, initial.largest_value
        if p.forced:
            speed += math.sqrt(2 * initial.largest_value * p.length[1] / p.advection[0])
        rate, diffusion = p.advection[1] * speed * self.grid[0] / p.length[0], p.viscosity[1] / p.length[0] ** 2
        steps = max(start, dt) * (rate + 2 * diffusion * self.grid[0] ** 2) / p.courant
        self.check_steps(steps, _STEPS_A_FRAME, "parameters.viscosity, parameters.advection, parameters.initial")

    def draw_state(self, rng: Generator, parameters: Mapping[str, float]) -> Tensor:
        """The flow; with a force also its waves, a quarter of a turn later, and their rates, (1 [+ 3 J], n)."""
        position = (torch.arange(self.grid[0], dtype=torch.float64) + 0.5) / self.grid[0]
        initial = self.parameters.initial
        if not self.parameters.forced:
            return initial.draw(rng, position)[None]
        assert isinstance(initial, Sines)
        waves = draw_turning_waves(rng, initial, self.parameters.rates, position)
        return torch.cat([waves[: initial.waves].sum(0, keepdim=True), waves])

    def begin(self, initial: Tensor, parameters: Mapping[str, Tensor]) -> "_BurgersEvolution":
        """Start a batch; the first row of `initial` is the flow."""
        return _BurgersEvolution(self, initial, {key: value[:, None] for key, value in parameters.items()})


class _BurgersEvolution:
    """A batch on its way. Each sample has its own time step, so that it does not depend on the rest of the batch."""

    def __init__(self, solver: BurgersShocks1D, initial: Tensor, parameters: Mapping[str, Tensor]) -> None:
        self.state = initial[:, 0].contiguous()
        spacing = parameters["length"] / self.state.shape[-1]
        self.spacing = spacing.to(initial.dtype)
        self.advection = parameters["advection"].to(initial.dtype)
        self.diffusion = (parameters["viscosity"] / spacing**2).to(initial.dtype)
        self.courant = solver.parameters.courant
        self.rate = solver.kernel(_rate)
        self.force = (
            tuple(part.contiguous() for part in initial[:, 1:].chunk(3, dim=1)) if solver.parameters.forced else ()
        )
        self.time = torch.zeros_like(spacing)

    def advance(self, duration: float) -> None:
        """SSP-RK2 steps, each within the Courant bound, the last of them ending on `duration` exactly."""
        end = self.time + duration
        left = torch.full_like(self.time, duration)
        for _ in range(_STEPS_A_FRAME):
            # A sample that blew up has a NaN bound: it takes the rest in one step, and stays NaN.
            bound = self._largest_step()
            h = torch.where(bound < left, bound, left)
            left = left - h
            step, now, then = h.to(self.state.dtype), end - left - h, end - left
            euler = self.state + step * self._rate_of(self.state, now)
            self.state = (self.state + euler + step * self._rate_of(euler, then)) / 2
            if not left.any():
                break
        else:
            self.state = torch.where(left > 0, torch.nan, self.state)
        self.time = end

    def fields(self) -> Tensor:
        """The flow now, (B, 1, n)."""
        return self.state[:, None]

    def _largest_step(self) -> Tensor:
        """Bound of each sample, float64 (B, 1)."""
        speed = self.advection * self.state.abs().amax(1, keepdim=True) / self.spacing
        return (self.courant / (speed + 2 * self.diffusion)).double()

    def _rate_of(self, state: Tensor, time: Tensor) -> Tensor:
        rate: Tensor = self.rate(state, self.advection / self.spacing, self.diffusion)
        if not self.force:
            return rate
        sines, cosines, rates = self.force
        angle = rates[:, :, :1].double() * time[:, :, None]
        return rate + (torch.cos(angle).to(state.dtype) * sines + torch.sin(angle).to(state.dtype) * cosines).sum(1)


def _rate(state: Tensor, advection: Tensor, diffusion: Tensor) -> Tensor:
    """Time derivative of the cell averages (B, n) by advection, a / dx, and diffusion, nu / dx^2, both (B, 1)."""
    padded = pad(state[:, None], (2, 2), mode="circular")[:, 0]
    left, right = face_states(padded)
    # Godunov's flux of a convex law: the larger of the fluxes of the right-going left state and left-going right one.
    flux = advection / 2 * torch.maximum(left.clamp(min=0).square(), right.clamp(max=0).square())
    flux = flux - diffusion * padded[:, 1:-1].diff(dim=1)
    return -flux.diff(dim=1)
