"""Burgers, heat and KdV in one, with a force of moving waves: experiments E2 and E3 of Brandstetter et al. (2022)."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from numpy.random import Generator
from torch import Tensor

from data_pipeline.solvers.base import NonNegativeRange, PositiveRange, Range
from data_pipeline.solvers.families.transport_1d import Transport1D, Transport1DParameters
from data_pipeline.solvers.numerics.basis import FourierBasis
from data_pipeline.solvers.numerics.waves import Sines, draw_turning_waves
from data_pipeline.solvers.semilinear import SemilinearProblem, Step


class KdVBurgers1DParameters(Transport1DParameters):
    """Parameters of `kdv_burgers_1d`."""

    step: Step = 0.002
    advection: NonNegativeRange = (0.0, 6.0)
    """Coefficient a of u u_x."""
    viscosity: PositiveRange = (0.1, 0.4)
    """Coefficient b of u_xx."""
    dispersion: NonNegativeRange = (0.0, 1.0)
    """Coefficient of u_xxx."""
    length: PositiveRange = (16.0, 16.0)
    initial: Sines = Sines(waves=5)
    """Law of the force's waves; the initial state is the force at t = 0."""
    rates: Range = (-0.4, 0.4)
    """Each wave of the force turns at a rate omega drawn from this range."""


class _ForcedBasis(FourierBasis):
    """Fourier modes of the flow, followed by those modes 1 .. W in which the J waves of the force live.

    Args:
        grid: points.
        state: flow, waves and rates (B, 1 + 2 J, n).
        waves: J.
        wavenumbers: W.
    """

    def __init__(self, grid: tuple[int, ...], state: Tensor, waves: int, wavenumbers: int) -> None:
        super().__init__(grid, (1.0,), state)
        self.modes = grid[0] // 2 + 1
        self.shape = (-1, 1, waves, wavenumbers)
        shapes = super().forward(state[:, 1 : 1 + waves].contiguous())
        self.waves = shapes[..., 1 : 1 + wavenumbers].reshape(-1, 1, waves * wavenumbers)

    def forward(self, values: Tensor) -> Tensor:
        """Coefficients (B, 1, modes + J W) of a flow (B, 1, n), with the waves at t = 0."""
        return torch.cat([super().forward(values), self.waves], dim=2)

    def inverse(self, coefficients: Tensor) -> Tensor:
        """Grid values (B, 1, n) of the flow."""
        return super().inverse(coefficients[..., : self.modes])

    def force(self, coefficients: Tensor) -> Tensor:
        """Modes 1 .. W of the sum of all waves, (B, 1, W)."""
        return coefficients[..., self.modes :].reshape(self.shape).sum(2)


class KdVBurgers1D(Transport1D[KdVBurgers1DParameters]):
    """u_t + a u u_x = b u_xx - g u_xxx + sum_j A_j sin(omega_j t + 2 pi l_j x / L + phi_j), periodic.

    Each wave of the force marches as part of the state, with L = i omega_j: it turns exactly, and ETDRK4 keeps its
    order.
    """

    family: ClassVar[str] = "kdv_burgers_1d"
    equation: ClassVar[str] = "u_t + a u u_x = b u_xx - g u_xxx + sum_j A_j sin(w_j t + 2 pi l_j x/L + p_j)"
    parameter_names: ClassVar[tuple[str, ...]] = ("advection", "viscosity", "dispersion", "length")
    parameters_class = KdVBurgers1DParameters

    @property
    def translation_invariant(self) -> bool:
        """The force is bound to places."""
        return False

    def linear(self, k: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """Diffusion and dispersion: -b k^2 + i g k^3."""
        return -parameters["viscosity"] * k**2 + 1j * parameters["dispersion"] * k**3

    def largest_speed(self, parameters: Mapping[str, float]) -> float:
        """Dispersion doubles a wave's height (see `kdv_1d`), and a force as large as the initial state acts for some
        time units: three times the initial state."""
        return 3 * self.parameters.initial.largest_value

    def shortest_length(self, parameters: Mapping[str, float]) -> float:
        """A front's width, or a soliton's where that is longer (see `burgers_1d`, `kdv_1d`)."""
        speed = parameters["advection"] * self.parameters.initial.largest_value
        if speed == 0:
            return math.inf
        return max(4 * parameters["viscosity"] / speed, math.sqrt(12 * parameters["dispersion"] / speed))

    def draw_state(self, rng: Generator, parameters: Mapping[str, float]) -> Tensor:
        """The flow, then the waves of the force and their rates, (1 + 2 J, n)."""
        settings = self.parameters
        sines, _, rates = draw_turning_waves(rng, settings.initial, settings.rates, self.positions()).chunk(3)
        return torch.cat([sines.sum(0, keepdim=True), sines, rates])

    def problem(self, parameters: Mapping[str, Tensor], initial: Tensor) -> SemilinearProblem:
        """Flow and waves as one state."""
        waves, wavenumbers = self.parameters.initial.waves, self.parameters.initial.wavenumbers
        flow, basis = super().problem(parameters, initial), _ForcedBasis(self.grid, initial, waves, wavenumbers)
        rates = initial[:, 1 + waves :, :1].double().expand(-1, -1, wavenumbers).reshape(-1, 1, waves * wavenumbers)

        def nonlinear(state: Tensor) -> Tensor:
            rate = torch.zeros_like(state)
            rate[..., : basis.modes] = flow.nonlinear(state[..., : basis.modes])
            rate[..., 1 : 1 + wavenumbers] += basis.force(state)
            return rate

        return SemilinearProblem(basis, torch.cat([flow.linear, 1j * rates], dim=2), nonlinear)
