"""Gray-Scott reaction and diffusion on a torus in any number of dimensions (Pearson, Science 261, 1993)."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, TypeVar

import torch
from numpy.random import Generator
from pydantic import AfterValidator, Field
from torch import Tensor

from data_pipeline.solvers.base import PositiveRange, draw_uniform
from data_pipeline.solvers.families import gray_scott_states as states
from data_pipeline.solvers.numerics.basis import FourierBasis
from data_pipeline.solvers.numerics.counts import Counts
from data_pipeline.solvers.numerics.etd import REAL_STABILITY
from data_pipeline.solvers.numerics.fronts import check_front
from data_pipeline.solvers.semilinear import SemilinearParameters, SemilinearProblem, SemilinearSolver, Step

Regime = Literal["gliders", "bubbles", "maze", "worms", "spirals", "spots", "stripes"]

FEED_AND_KILL: dict[Regime, tuple[float, float]] = {
    "gliders": (0.014, 0.054),
    "bubbles": (0.098, 0.057),
    "maze": (0.029, 0.057),
    "worms": (0.058, 0.065),
    "spirals": (0.018, 0.051),
    "spots": (0.03, 0.062),
    "stripes": (0.04, 0.06),
}
"""(f, k) of each regime: six of The Well (Ohana et al., 2024), and that of APEBench (Koehler et al., 2024)."""

Initial = Literal["blobs", "clusters", "fourier"]

_POINTS_A_FRONT = 0.5
"""Least number of grid points for each length sqrt(D_b / (f + k))."""
_RATIO = 8.0
"""D_a / D_b up to which b stays near 1."""
_MOST_BLOBS = 1000
"""That many cover the torus many times over; each is summed over the whole grid."""

ChoiceT = TypeVar("ChoiceT")


def _few(value: tuple[int, int]) -> tuple[int, int]:
    if value[1] > _MOST_BLOBS:
        raise ValueError(f"expected at most {_MOST_BLOBS}")
    return value


class GrayScottParameters(SemilinearParameters):
    """Parameters of `gray_scott_2d` and `gray_scott_3d`."""

    step: Step = 1.0
    regimes: Annotated[tuple[Regime, ...], Field(min_length=1)] = ("gliders",)
    """Each trajectory draws its (f, k) from one of these."""
    diffusivity_a: PositiveRange = (2e-5, 2e-5)
    """Diffusivity D_a of a."""
    diffusivity_b: PositiveRange = (1e-5, 1e-5)
    """Diffusivity D_b of b."""
    initial: Annotated[tuple[Initial, ...], Field(min_length=1)] = ("blobs",)
    """Each trajectory draws the kind of its initial state from these. `blobs`: patches of b in a = 1 - b. `clusters`
    and `fourier`: the two kinds of The Well, random clusters of Gaussians and random Fourier series."""
    blobs: Annotated[Counts, AfterValidator(_few)] = (10, 40)
    """Least and largest number of Gaussians in a field that consists of them (The Well: 10 to 100); at most 1000."""


class GrayScott(SemilinearSolver[GrayScottParameters]):
    """a_t = D_a Lap a - a b^2 + f (1 - a), b_t = D_b Lap b + a b^2 - (f + k) b on [-1, 1)^d, periodic.

    The equation and the initial states are the same in every dimension; a family of each dimension names its axes.
    """

    equation: ClassVar[str] = "a_t = D_a Lap a - a b^2 + f (1 - a), b_t = D_b Lap b + a b^2 - (f + k) b"
    scheme: ClassVar[str] = "Fourier pseudo-spectral, ETDRK4"
    channels = ("concentration_a", "concentration_b")
    placement = "nodes"
    parameter_names: ClassVar[tuple[str, ...]] = ("feed", "kill", "diffusivity_a", "diffusivity_b")
    parameters_class = GrayScottParameters

    def check(self, start: float, dt: float, frames: int) -> None:
        """Refuse an unstable step, and a grid that cannot hold the fronts.

        Ahead of a front b falls over the length sqrt(D_b / (f + k)), the balance of its diffusion and decay. 128
        points, as in The Well, are 0.51 to 0.78 for each in the regimes, and b is wrong by 1 % to 4 % at t = 200; 64
        points are 0.26 to 0.39, and b is wrong by 28 % to 70 %.
        """
        super().check(start, dt, frames)
        steepest = max(self.parameters.regimes, key=lambda regime: sum(FEED_AND_KILL[regime]))
        front = math.sqrt(self.parameters.diffusivity_b[0] / sum(FEED_AND_KILL[steepest]))
        check_front(self, front, f"sqrt(diffusivity_b / (f + k)), regime {steepest}", _POINTS_A_FRONT)

    def draw_parameters(self, rng: Generator) -> dict[str, float]:
        """Feed and kill rate of one of the regimes, and the diffusivities."""
        feed, kill = FEED_AND_KILL[_choose(rng, self.parameters.regimes)]
        diffusivities = {name: draw_uniform(rng, getattr(self.parameters, name)) for name in self.parameter_names[2:]}
        return {"feed": feed, "kill": kill} | diffusivities

    def draw_state(self, rng: Generator, parameters: Mapping[str, float]) -> Tensor:
        """Both concentrations of one sample at t = 0, (2, *grid)."""
        kind = _choose(rng, self.parameters.initial)
        if kind == "fourier":
            return states.fourier_series(rng, parameters["feed"], parameters["kill"], self.grid)
        draw = states.blobs if kind == "blobs" else states.clusters
        return draw(rng, self.parameters.blobs, self.grid)

    def largest_step(self, duration: float) -> float:
        """Reaction bound h b^2 <= 2.78. Spots that a fast a feeds from far grow above 1: b <= 0.35 sqrt(D_a / D_b)
        (4.2 at a ratio of 200 was the largest of all regimes)."""
        ratio = self.parameters.diffusivity_a[1] / self.parameters.diffusivity_b[0]
        return REAL_STABILITY / max(1.0, ratio / _RATIO)

    def problem(self, parameters: Mapping[str, Tensor], initial: Tensor) -> SemilinearProblem:
        """Diffusion and decay are linear; the reaction a b^2 and the feed are evaluated on the grid."""
        basis = FourierBasis(self.grid, self.lengths, initial)
        diffusivity = torch.cat([parameters["diffusivity_a"], parameters["diffusivity_b"]], dim=1)
        decay = torch.cat([parameters["feed"], parameters["feed"] + parameters["kill"]], dim=1)
        # The feed of a is the same everywhere: it enters the coefficient of the constant alone.
        feed = (parameters["feed"].flatten() * math.prod(self.grid)).to(initial.dtype)
        constant: tuple[slice | int, ...] = (slice(None), 0, *[0] * len(self.grid))
        sign = torch.tensor([-1.0, 1.0]).to(initial).reshape(2, *[1] * len(self.grid))

        def nonlinear(coefficients: Tensor) -> Tensor:
            a, b = basis.inverse(coefficients).chunk(2, dim=1)
            rate = sign * basis.forward(a * b**2)
            rate[constant] += feed
            return rate

        return SemilinearProblem(basis, diffusivity * basis.laplacian - decay, nonlinear)


def _choose(rng: Generator, choices: Sequence[ChoiceT]) -> ChoiceT:
    """One of the choices; one draw, also where there is only one."""
    return choices[int(rng.random() * len(choices))]
