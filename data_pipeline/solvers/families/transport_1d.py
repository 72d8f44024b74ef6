"""Families u_t + a (u^2 / 2)_x = L u + force on a periodic line: Fourier modes in space, ETDRK4 in time."""

import itertools
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from numpy.random import Generator
from torch import Tensor

from data_pipeline.base.errors import ConfigError
from data_pipeline.solvers.base import PositiveRange, Solver
from data_pipeline.solvers.numerics.basis import FourierBasis
from data_pipeline.solvers.numerics.etd import ETDRK4, IMAGINARY_STABILITY
from data_pipeline.solvers.numerics.waves import AnyInitial
from data_pipeline.solvers.semilinear import SemilinearParameters, SemilinearProblem, SemilinearSolver

_GROWTH = 1e-3
"""What an amplitude may grow by in one step beyond the equation's own growth. Where L is imaginary, ETDRK4 grows a
little at any step in a band of wavenumbers; this much does no harm (`validation/test_kdv_1d.py`, long runs)."""

_MODES_TRIED = 48


class Transport1DParameters(SemilinearParameters):
    """Parameters of every family here."""

    length: PositiveRange
    """Length L of the periodic line. Where each trajectory draws its own, the dataset's extent is the middle of the
    range and each trajectory's parameter is the true one: dx and all scales follow it."""
    initial: AnyInitial
    """How initial states are drawn."""


ParametersT = TypeVar("ParametersT", bound=Transport1DParameters)


class Transport1D(SemilinearSolver[ParametersT]):
    """u_t + a (u^2 / 2)_x = L u. A family gives a, L, and bounds on its solutions."""

    scheme: ClassVar[str] = "Fourier pseudo-spectral, 2/3 rule, ETDRK4"
    channels = ("velocity_x",)
    axes = ("x",)
    boundaries = ("periodic",)
    placement = "nodes"

    def __init__(self, resolution: tuple[int, ...], parameters: ParametersT) -> None:
        self.extent = ((0.0, sum(parameters.length) / 2),)
        super().__init__(resolution, parameters)

    @abstractmethod
    def linear(self, k: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """Symbol of L at the wavenumbers k, float64 or complex128; k and the parameters broadcast."""

    @abstractmethod
    def largest_speed(self, parameters: Mapping[str, float]) -> float:
        """Estimate of the largest |u| of a solution."""

    @abstractmethod
    def shortest_length(self, parameters: Mapping[str, float]) -> float:
        """Length w over which a solution varies at its steepest, as in tanh(x / w)."""

    def advection(self, parameters: Mapping[str, Tensor]) -> Tensor | float:
        """The coefficient a."""
        return parameters.get("advection", 1.0)

    def check(self, start: float, dt: float, frames: int) -> None:
        """Refuse a grid that cannot hold the initial modes or the steepest parts of the solution, an unstable step.

        The largest wavenumber kept must reach k w >= 1, w the shortest length: the spectrum of tanh(x / w) has fallen
        there by exp(-pi / 2), and goes on falling at that rate.
        """
        cells = max(3 * self.parameters.initial.largest_mode, *(self._cells(corner) for corner in corners(self)))
        if self.grid[0] < cells:
            raise ConfigError(
                f"the grid is too coarse for the parameters of {self.family}",
                key="generate.resolution x generate.parameters.refine",
                found=self.grid[0],
                expected=f"at least {cells} points",
            )
        super().check(start, dt, frames)

    def _cells(self, corner: Mapping[str, float]) -> int:
        return math.ceil(3 * corner["length"] / (2 * math.pi * self.shortest_length(corner)))

    def largest_step(self, duration: float) -> float:
        """The largest step up to which ETDRK4 keeps every wave from growing, at the largest speed throughout."""
        fastest = max(corner.get("advection", 1.0) for corner in corners(self))
        return min(self._stable_step(each) for each in corners(self) if each.get("advection", 1.0) == fastest)

    def _stable_step(self, corner: Mapping[str, float]) -> float:
        """Von Neumann analysis of ETDRK4 for u_t = L u + i a u k u with u = -+ speed, at the steps of a geometric
        sequence."""
        values = {name: torch.tensor(value, dtype=torch.float64) for name, value in corner.items()}
        speed = float(self.advection(values)) * self.largest_speed(corner)
        if speed == 0:
            return math.inf
        cycles = torch.logspace(0, math.log2(self.grid[0] // 3), _MODES_TRIED, base=2, dtype=torch.float64)
        k = 2 * math.pi / corner["length"] * cycles
        first, last = (IMAGINARY_STABILITY / (speed * float(edge)) for edge in (16 * k[-1], k[0]))
        h = torch.logspace(math.log2(first), math.log2(last), 48, base=2, dtype=torch.float64)[:, None]
        linear, advective = h * self.linear(k, values), 1j * h * speed * k
        if linear.is_complex():  # dispersion goes with one direction, against the other
            linear, advective = torch.cat([linear, linear], dim=1), torch.cat([advective, -advective], dim=1)
        grown = ETDRK4(linear, lambda u: advective * u, 1.0).step(torch.ones_like(advective)).abs()
        stable = (grown <= torch.exp(linear.real.clamp(min=0)) * (1 + _GROWTH)).all(1).long()
        return float(h[max(int(stable.cumprod(0).sum()) - 1, 0)])

    def draw_state(self, rng: Generator, parameters: Mapping[str, float]) -> Tensor:
        """Initial velocity, (1, n)."""
        return self.parameters.initial.draw(rng, self.positions())[None]

    def positions(self) -> Tensor:
        """x / L of the solver's grid, float64 (n,)."""
        return torch.arange(self.grid[0], dtype=torch.float64) / self.grid[0]

    def problem(self, parameters: Mapping[str, Tensor], initial: Tensor) -> SemilinearProblem:
        """L is stepped exactly; advection is evaluated on the grid, in the form that keeps the mean of u."""
        basis = FourierBasis(self.grid, (1.0,), initial)
        cycles = torch.arange(self.grid[0] // 2 + 1, dtype=torch.float64, device=initial.device)
        k = 2 * math.pi / parameters["length"] * cycles
        # i k a / 2, for the one complex product of a step.
        half = (0.5j * self.advection(parameters) * k * basis.dealias).to(initial.dtype.to_complex())

        def nonlinear(coefficients: Tensor) -> Tensor:
            return -half * basis.forward(basis.inverse(coefficients).square())

        return SemilinearProblem(basis, self.linear(k, parameters), nonlinear)


def corners(solver: Solver[Any]) -> Iterator[dict[str, float]]:
    """All combinations of the lowest and highest values of a family's physical parameters."""
    ranges = [sorted(set(getattr(solver.parameters, name))) for name in solver.parameter_names]
    for values in itertools.product(*ranges):
        yield dict(zip(solver.parameter_names, values, strict=True))
