"""Gray-Scott reaction and diffusion on a torus: patterns that split, glide and wind (Pearson, Science 261, 1993)."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from numpy.random import Generator
from pydantic import AfterValidator, Field
from torch import Tensor

from data_pipeline.solvers.base import PositiveRange, draw_uniform
from data_pipeline.solvers.basis import FourierBasis
from data_pipeline.solvers.etd import REAL_STABILITY
from data_pipeline.solvers.semilinear import SemilinearParameters, SemilinearProblem, SemilinearSolver, Step
from data_pipeline.trajectory import Boundary

Regime = Literal["gliders", "bubbles", "maze", "worms", "spirals", "spots"]

FEED_AND_KILL: dict[Regime, tuple[float, float]] = {
    "gliders": (0.014, 0.054),
    "bubbles": (0.098, 0.057),
    "maze": (0.029, 0.057),
    "worms": (0.058, 0.065),
    "spirals": (0.018, 0.051),
    "spots": (0.03, 0.062),
}
"""(f, k) of each regime, as in The Well (Ohana et al., 2024)."""


def _counts(value: tuple[int, int]) -> tuple[int, int]:
    if not 1 <= value[0] <= value[1]:
        raise ValueError("expected 1 <= low <= high in [low, high]")
    return value


class GrayScott2DParameters(SemilinearParameters):
    """Parameters of `gray_scott_2d`."""

    step: Step = 2.0
    regimes: Annotated[tuple[Regime, ...], Field(min_length=1)] = ("gliders",)
    """Each trajectory draws its (f, k) from one of these."""
    diffusivity_a: PositiveRange = (2e-5, 2e-5)
    diffusivity_b: PositiveRange = (1e-5, 1e-5)
    blobs: Annotated[tuple[int, int], AfterValidator(_counts)] = (10, 40)
    """Least and largest number of Gaussian blobs of b in the initial state."""


class GrayScott2D(SemilinearSolver[GrayScott2DParameters]):
    """a_t = D_a Lap a - a b^2 + f (1 - a), b_t = D_b Lap b + a b^2 - (f + k) b on [-1, 1)^2, periodic.

    The fronts are about 0.013 wide, so a grid of 64 points cannot hold them: set `refine` to 2 or more there.
    """

    family: ClassVar[str] = "gray_scott_2d"
    equation: ClassVar[str] = "a_t = D_a Lap a - a b^2 + f (1 - a), b_t = D_b Lap b + a b^2 - (f + k) b"
    scheme: ClassVar[str] = "Fourier pseudo-spectral, ETDRK4"
    channels: ClassVar[tuple[str, ...]] = ("concentration_a", "concentration_b")
    axes: ClassVar[tuple[str, ...]] = ("x", "y")
    extent: ClassVar[tuple[tuple[float, float], ...]] = ((-1.0, 1.0), (-1.0, 1.0))
    boundaries: ClassVar[tuple[Boundary, ...]] = ("periodic", "periodic")
    placement = "nodes"
    parameter_names: ClassVar[tuple[str, ...]] = ("feed", "kill", "diffusivity_a", "diffusivity_b")
    parameters_class = GrayScott2DParameters

    def draw_parameters(self, rng: Generator) -> dict[str, float]:
        """Feed and kill rate of one of the regimes, and the diffusivities."""
        regime = self.parameters.regimes[int(rng.random() * len(self.parameters.regimes))]
        feed, kill = FEED_AND_KILL[regime]
        diffusivities = {name: draw_uniform(rng, getattr(self.parameters, name)) for name in self.parameter_names[2:]}
        return {"feed": feed, "kill": kill} | diffusivities

    def draw_state(self, rng: Generator, parameters: Mapping[str, float]) -> Tensor:
        """Periodic Gaussian blobs of one sample, (2, *grid): b is their capped sum, a = 1 - b."""
        x, y = self.coordinates()
        low, high = self.parameters.blobs
        total = torch.zeros_like(x)
        for _ in range(int(rng.integers(low, high + 1))):
            centre_x, centre_y = rng.uniform(-1, 1, size=2)
            width, height = rng.uniform(0.04, 0.1), rng.uniform(0.3, 1.0)
            # The distance to the nearest of the periodic images.
            distance = ((x - centre_x + 1) % 2 - 1) ** 2 + ((y - centre_y + 1) % 2 - 1) ** 2
            total += height * torch.exp(-distance / (2 * width**2))
        b = 1 - torch.exp(-total)
        return torch.stack([1 - b, b])

    def largest_step(self, duration: float) -> float:
        """Reaction bound h b^2 <= 2.78, with b <= 1."""
        return REAL_STABILITY

    def problem(self, parameters: Mapping[str, Tensor], device: torch.device) -> SemilinearProblem:
        """Diffusion and decay are linear; the reaction a b^2 and the feed are evaluated on the grid."""
        basis = FourierBasis(self.grid, self.lengths, device)
        feed, kill = parameters["feed"], parameters["kill"]
        diffusivity = torch.cat([parameters["diffusivity_a"], parameters["diffusivity_b"]], dim=1)
        decay = torch.cat([feed, feed + kill], dim=1)

        def nonlinear(coefficients: Tensor) -> Tensor:
            a, b = basis.inverse(coefficients).chunk(2, dim=1)
            reaction = a * b**2
            return basis.forward(torch.cat([feed - reaction, reaction], dim=1))

        return SemilinearProblem(basis, diffusivity * basis.laplacian - decay, nonlinear)
