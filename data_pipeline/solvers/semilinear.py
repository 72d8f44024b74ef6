"""Families of the form u_t = L u + N(u), L diagonal in a basis: all of them march with ETDRK4."""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import Field
from torch import Tensor

from data_pipeline.base.errors import ConfigError
from data_pipeline.solvers.base import Parameters, Solver
from data_pipeline.solvers.numerics.basis import Basis
from data_pipeline.solvers.numerics.etd import ETDRK4

MAX_STEPS = 1_000_000
"""Steps for one frame above which a configuration is refused: minutes of a line, hours of a plane."""

Step = Annotated[float, Field(gt=0)]
"""Largest internal time step; the step used divides the time between two frames."""


class SemilinearParameters(Parameters):
    """Parameters of every family that marches with ETDRK4; each family gives `step` its default."""

    step: Step
    """Largest internal time step; the step used divides the time between two frames."""

    def finer(self) -> dict[str, Any]:
        """Half the internal step, on a grid twice as fine."""
        return super().finer() | {"step": self.step / 2}


SemilinearT = TypeVar("SemilinearT", bound=SemilinearParameters)


@dataclass(frozen=True)
class SemilinearProblem:
    """u_t = L u + N(u) in the coefficients of a basis.

    Attributes:
        basis: the transform.
        linear: diagonal of L, float64 or complex128, broadcasts against (B, C, *modes).
        nonlinear: N, from and to coefficients (B, C, *modes).
    """

    basis: Basis
    linear: Tensor
    nonlinear: Callable[[Tensor], Tensor]


class SemilinearSolver(Solver[SemilinearT]):
    """A family whose stored channels are marched in the coefficients of a basis.

    They come first in the state; what follows them there (coefficients, a force) does not change in time.
    """

    @abstractmethod
    def problem(self, parameters: Mapping[str, Tensor], initial: Tensor) -> SemilinearProblem:
        """The equation for a batch.

        Args:
            parameters: float64 (B, 1, ..., 1), to broadcast against the state; what multiplies grid values is to be
                brought to their precision.
            initial: (B, S, *grid), on the device and in the precision of the work.
        """

    @abstractmethod
    def largest_step(self, duration: float) -> float:
        """Estimate of the largest stable internal step up to time `duration`, from bounds on the solution."""

    def check(self, start: float, dt: float, frames: int) -> None:
        """Refuse an internal step above the stability bound of the explicit terms, and one that takes for ever."""
        self.check_steps(max(start, dt) / self.parameters.step, MAX_STEPS, "parameters.step")
        used = max(substeps(span, self.parameters.step)[1] for span in (start, dt))
        bound = self.largest_step(start + (frames - 1) * dt)
        if used > bound:
            raise ConfigError(
                f"the internal time step of {self.family} is unstable on a grid of {self.grid}",
                key="generate.parameters.step",
                found=f"{used:.4g}",
                expected=f"at most {bound:.4g}",
            )

    def internal_step(self, dt: float) -> float:
        """The equal steps, none above `parameters.step`, that make up dt."""
        return substeps(dt, self.parameters.step)[1]

    def begin(self, initial: Tensor, parameters: Mapping[str, Tensor]) -> "_SemilinearEvolution":
        """Start a batch of solutions."""
        shape = (-1,) + (1,) * (initial.ndim - 1)
        columns = {name: value.reshape(shape) for name, value in parameters.items()}
        marched = initial[:, : len(self.channels)]
        return _SemilinearEvolution(self.problem(columns, initial), marched, self.parameters.step)


class _SemilinearEvolution:
    """A batch on its way, held as coefficients."""

    def __init__(self, problem: SemilinearProblem, initial: Tensor, step: float) -> None:
        self.problem = problem
        self.step = step
        self.precision = initial.dtype
        self.coefficients = problem.basis.forward(initial)
        self._integrators: dict[float, ETDRK4] = {}

    def advance(self, duration: float) -> None:
        """Move forward by `duration` in equal steps."""
        count, h = substeps(duration, self.step)
        if h not in self._integrators:
            self._integrators[h] = ETDRK4(self.problem.linear, self.problem.nonlinear, h, self.precision)
        for _ in range(count):
            self.coefficients = self._integrators[h].step(self.coefficients)

    def fields(self) -> Tensor:
        """Grid values now, (B, C, *grid)."""
        return self.problem.basis.inverse(self.coefficients)


def substeps(duration: float, step: float) -> tuple[int, float]:
    """Number and length of the equal steps, none above `step`, that make up `duration`."""
    # The tolerance keeps 0.3 / 0.1 at three steps in spite of rounding.
    count = math.ceil(duration / step * (1 - 1e-12))
    return count, duration / count if count else 0.0
