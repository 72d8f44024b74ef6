"""Viscous Burgers equation on a periodic line: the sets of the Fourier neural operator's paper and of PDEBench."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from data_pipeline.solvers.base import PositiveRange
from data_pipeline.solvers.families.transport_1d import Transport1D, Transport1DParameters
from data_pipeline.solvers.numerics.waves import AnyInitial, Gaussian
from data_pipeline.solvers.semilinear import Step


class Burgers1DParameters(Transport1DParameters):
    """Parameters of `burgers_1d`."""

    step: Step = 0.005
    viscosity: PositiveRange = (0.1, 0.1)
    """Kinematic viscosity nu."""
    length: PositiveRange = (1.0, 1.0)
    initial: AnyInitial = Gaussian()


class Burgers1D(Transport1D[Burgers1DParameters]):
    """u_t + u u_x = nu u_xx, periodic. PDEBench writes nu / pi for this nu.

    Smooth but steep: fronts are 2 nu / max |u| wide. `burgers_shocks_1d` takes small and zero viscosities.
    """

    family: ClassVar[str] = "burgers_1d"
    equation: ClassVar[str] = "u_t + u u_x = nu u_xx"
    parameter_names: ClassVar[tuple[str, ...]] = ("viscosity", "length")
    parameters_class = Burgers1DParameters

    def linear(self, k: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """Diffusion: -nu k^2."""
        return -parameters["viscosity"] * k**2

    def largest_speed(self, parameters: Mapping[str, float]) -> float:
        """That of the initial state (maximum principle)."""
        return self.parameters.initial.largest_value

    def shortest_length(self, parameters: Mapping[str, float]) -> float:
        """A steady front between u and -u is -u tanh(u x / (2 nu)): w = 2 nu / u.

        A front between the two largest values is rare and lasts for a moment; half the largest value is taken for u.
        """
        return 4 * parameters["viscosity"] / self.largest_speed(parameters)
