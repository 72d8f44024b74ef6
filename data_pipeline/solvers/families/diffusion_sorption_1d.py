"""Diffusion with Freundlich sorption through a column of soil: PDEBench's diffusion-sorption set."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.random import Generator
from pydantic import AfterValidator, Field
from torch import Tensor
from torch.nn.functional import pad

from data_pipeline.base.errors import ConfigError
from data_pipeline.solvers.base import NonNegativeRange, Parameters, PositiveRange, Solver
from data_pipeline.solvers.families.transport_1d import corners
from data_pipeline.solvers.numerics.tridiagonal import solve_tridiagonal
from data_pipeline.solvers.semilinear import MAX_STEPS, Step, substeps
from data_pipeline.trajectory import FloatArray

_GAMMA = 1 - 1 / math.sqrt(2)
"""Diagonal coefficient of the two-stage, second-order, L-stable Runge-Kutta method (Alexander, SIAM J. Numer. Anal.
14, 1977)."""

_NEWTON_ROUNDS = 50
_UNDERSHOOT = 1e-3
_SMALLEST = 1e-12
"""|v| at which the slope of u = v^(1/n) is taken for v = 0."""


def _at_most_one(value: tuple[float, float]) -> tuple[float, float]:
    if value[1] > 1:
        raise ValueError("expected values <= 1")
    return value


Fraction = Annotated[PositiveRange, AfterValidator(_at_most_one)]


class DiffusionSorption1DParameters(Parameters):
    """Parameters of `diffusion_sorption_1d`; defaults are those of PDEBench."""

    step: Step = 0.25
    """Internal time step at the start."""
    growth: Annotated[float, Field(ge=0)] = 0.05
    """Later steps are up to this part of the time that has passed: a front that deepens as sqrt t slows down."""
    diffusivity: PositiveRange = (5e-4, 5e-4)
    """Diffusivity D in the pores."""
    porosity: Fraction = (0.29, 0.29)
    """Share of the pores in the volume."""
    bulk_density: PositiveRange = (2880.0, 2880.0)
    """Mass of the grains in a volume."""
    freundlich_k: NonNegativeRange = (3.5e-4, 3.5e-4)
    """Freundlich's coefficient k_f."""
    freundlich_n: Fraction = (0.874, 0.874)
    """Freundlich's exponent n_f."""
    inlet: NonNegativeRange = (1.0, 1.0)
    """Concentration at x = 0."""
    initial: NonNegativeRange = (0.0, 0.2)
    """Concentration at t = 0, the same everywhere."""

    def finer(self) -> dict[str, Any]:
        """Half the internal steps, on a grid twice as fine."""
        return super().finer() | {"step": self.step / 2, "growth": self.growth / 2}


class DiffusionSorption1D(Solver[DiffusionSorption1DParameters]):
    """C(u)_t = D u_xx on [0, 1], C(u) = u + (1 - phi) / phi rho k u^n; u = inlet at x = 0, D u_x + u = 0 at x = 1.

    The same as u_t = D / R(u) u_xx with the retardation factor R = dC/du, which is infinite at u = 0 for n < 1; solved
    for v = u^n, in which everything is smooth: C = v^(1/n) + kappa v. Trap: with the defaults one drawn number, the
    initial concentration, fixes a trajectory.
    """

    family: ClassVar[str] = "diffusion_sorption_1d"
    equation: ClassVar[str] = "u_t = D / R(u) u_xx, R = 1 + (1-phi)/phi rho k n u^(n-1)"
    scheme: ClassVar[str] = "finite volume, central, conservative; L-stable SDIRK2 with Newton's method"
    channels = ("concentration",)
    axes = ("x",)
    extent = ((0.0, 1.0),)
    boundaries = ("open",)
    placement = "cells"
    parameter_names: ClassVar[tuple[str, ...]] = (
        "diffusivity", "porosity", "bulk_density", "freundlich_k", "freundlich_n", "inlet", "initial",
    )  # fmt: skip
    parameters_class = DiffusionSorption1DParameters

    def check(self, start: float, dt: float, frames: int) -> None:
        """Refuse a grid with fewer than four cells in the front at the first frame after 0, and a step above dt / 2.

        The front at time t is about sqrt(D t / R(inlet)) deep: the retardation is lowest where u is highest. The
        scheme is stable at any step, but only two steps or more damp the jump at the inlet.
        """
        time = start or dt
        cells = max(self._cells(corner, time) for corner in corners(self))
        if self.grid[0] < cells:
            raise ConfigError(
                f"the grid is too coarse for the front of {self.family} at t = {time:g}",
                key="generate.resolution x generate.parameters.refine",
                found=self.grid[0],
                expected=f"at least {cells} cells, four for the depth of the front",
            )
        self.check_steps(max(start, dt) / self.parameters.step, MAX_STEPS, "parameters.step")
        used = max(substeps(span, self.parameters.step)[1] for span in (start, dt))
        if used > dt / 2:
            raise ConfigError(
                f"the internal time step of {self.family} leaves the jump at the inlet undamped",
                key="generate.parameters.step",
                found=f"{used:.4g}",
                expected=f"at most {dt / 2:.4g}, half of dt",
            )

    def _cells(self, corner: Mapping[str, float], time: float) -> int:
        """Four cells for the depth of the front; none are needed where there is no jump at all."""
        top = max(corner["inlet"], corner["initial"])
        if top == 0:
            return 1
        storage = (1 - corner["porosity"]) / corner["porosity"] * corner["bulk_density"] * corner["freundlich_k"]
        retardation = 1 + storage * corner["freundlich_n"] * top ** (corner["freundlich_n"] - 1)
        return math.ceil(4 * self.lengths[0] / math.sqrt(corner["diffusivity"] * time / retardation))

    def internal_step(self, dt: float) -> float:
        """The first and shortest steps."""
        return substeps(dt, self.parameters.step)[1]

    def draw_state(self, rng: Generator, parameters: Mapping[str, float]) -> Tensor:
        """The initial concentration, (1, n)."""
        return torch.full((1, *self.grid), parameters["initial"], dtype=torch.float64)

    def begin(self, initial: Tensor, parameters: Mapping[str, Tensor]) -> "_SorptionEvolution":
        """Start a batch."""
        return _SorptionEvolution(self, initial, {key: value[:, None] for key, value in parameters.items()})

    def fault(self, fields: FloatArray) -> tuple[int, str] | None:
        """A concentration below zero by more than rounding and the method's damped overshoots."""
        lowest = fields.min(axis=tuple(range(1, fields.ndim)))
        if lowest.min() >= -_UNDERSHOOT:
            return None
        frame = int(np.argmax(lowest < -_UNDERSHOOT))
        return frame, f"a concentration of {lowest[frame]:.3g}"


class _SorptionEvolution:
    """A batch on its way, held as v = u^n, (B, n)."""

    def __init__(self, solver: DiffusionSorption1D, initial: Tensor, parameters: Mapping[str, Tensor]) -> None:
        dtype, dx = initial.dtype, solver.spacing[0]
        porosity, diffusivity = parameters["porosity"], parameters["diffusivity"]
        self.step, self.growth, self.time = solver.parameters.step, solver.parameters.growth, 0.0
        self.power = (1 / parameters["freundlich_n"]).to(dtype)
        self.kappa = ((1 - porosity) / porosity * parameters["bulk_density"] * parameters["freundlich_k"]).to(dtype)
        conductance = diffusivity / dx**2
        self.coupling = conductance.to(dtype)
        self.inflow = (2 * conductance * parameters["inlet"]).to(dtype)
        # What leaves the last cell: both its own diffusion to the face and D u_x + u = 0 there.
        outlet = 1 / (1 + dx / (2 * diffusivity)) / dx
        self.loss = (2 * conductance).repeat(1, solver.grid[0])
        self.loss[:, :1] = 3 * conductance
        self.loss[:, -1:] = conductance + outlet
        self.loss = self.loss.to(dtype)
        self.v = initial[:, 0] ** parameters["freundlich_n"].to(dtype)

    def advance(self, duration: float) -> None:
        """Steps of SDIRK2 for C: two implicit stages, the second of which is the new state."""
        count = 0 if duration == 0 else 2
        while count > 1:
            count, h = substeps(duration, max(self.step, self.growth * self.time))
            self.time, duration = self.time + h, duration - h
            before = self._content(self.v)
            stage = self._solve(self.v, before, _GAMMA * h)
            known = before + (1 - _GAMMA) * h * self._rate(self._concentration(stage))
            self.v = self._solve(stage, known, _GAMMA * h)

    def fields(self) -> Tensor:
        """The concentration now, (B, 1, n)."""
        return self._concentration(self.v)[:, None]

    def _concentration(self, v: Tensor) -> Tensor:
        return v.sign() * v.abs() ** self.power

    def _content(self, v: Tensor) -> Tensor:
        """C, dissolved and sorbed."""
        return self._concentration(v) + self.kappa * v

    def _rate(self, u: Tensor) -> Tensor:
        """Time derivative of C in each cell."""
        return _exchange(u, self.coupling, self.loss, self.inflow)

    def _solve(self, guess: Tensor, known: Tensor, h: float) -> Tensor:
        """v of C(v) - h rate(v) = known, by Newton's method; a sample that has converged rests."""
        v, moving = guess, torch.ones_like(self.kappa, dtype=torch.bool)
        tolerance = math.sqrt(torch.finfo(v.dtype).eps)  # the error falls quadratically: the next one is rounding
        for _ in range(_NEWTON_ROUNDS):
            change = _newton_update(v, known, h, self.power, self.kappa, self.coupling, self.loss, self.inflow)
            v = torch.where(moving, v + change, v)
            # Not (change <= ...), which would take NaN for unfinished for ever: a NaN sample rests, and stays NaN.
            moving = moving & (change.abs().amax(1, keepdim=True) > tolerance * v.abs().amax(1, keepdim=True))
            if not moving.any():
                return v
        return torch.where(moving, torch.nan, v)


def _exchange(u: Tensor, coupling: Tensor, loss: Tensor, inflow: Tensor) -> Tensor:
    """What each cell gains from its neighbours and the inlet, less what it loses to them, (B, n)."""
    neighbours = pad(u[:, :-1], (1, 0)) + pad(u[:, 1:], (0, 1))
    gain = coupling * neighbours - loss * u
    return torch.cat([gain[:, :1] + inflow, gain[:, 1:]], dim=1)


def _newton_update(
    v: Tensor, known: Tensor, h: float, power: Tensor, kappa: Tensor, coupling: Tensor, loss: Tensor, inflow: Tensor
) -> Tensor:
    """Newton's change of v (B, n), from the linear system for that of u = v^power: symmetric, dominated by its
    diagonal, and fine where u = 0 (no change there, du/dv being 0)."""
    size = v.abs()
    u = v.sign() * size**power
    slope = power * size.clamp(min=_SMALLEST) ** (power - 1)
    residual = u + kappa * v - h * _exchange(u, coupling, loss, inflow) - known
    off_diagonal = (-h * coupling).expand_as(v)
    return solve_tridiagonal(off_diagonal, 1 + h * loss + kappa / slope, off_diagonal, -residual) / slope
