"""Kuramoto-Sivashinsky equation on a periodic line: the sets of Brandstetter et al., PDE-Refiner and APEBench."""

import math
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from data_pipeline.solvers.base import PositiveRange
from data_pipeline.solvers.families.transport_1d import Transport1D, Transport1DParameters
from data_pipeline.solvers.numerics.waves import AnyInitial, Sines
from data_pipeline.solvers.semilinear import Step

_ATTRACTOR = 3.5
"""Largest |u| on the attractor at viscosity 1 (`validation/test_kuramoto_sivashinsky_1d.py`)."""


class KuramotoSivashinsky1DParameters(Transport1DParameters):
    """Parameters of `kuramoto_sivashinsky_1d`."""

    step: Step = 0.05
    viscosity: PositiveRange = (1.0, 1.0)
    """The coefficient of u_xxxx."""
    length: PositiveRange = (64.0, 64.0)
    initial: AnyInitial = Sines()


class KuramotoSivashinsky1D(Transport1D[KuramotoSivashinsky1DParameters]):
    """u_t + u u_x + u_xx + nu u_xxxx = 0, periodic. Chaotic on long lines: at viscosity 1 errors grow by a factor e in
    eleven time units, so two precisions or grids give different late frames of a sample, with the same statistics.
    """

    family: ClassVar[str] = "kuramoto_sivashinsky_1d"
    equation: ClassVar[str] = "u_t + u u_x + u_xx + nu u_xxxx = 0"
    channels = ("u",)
    parameter_names: ClassVar[tuple[str, ...]] = ("viscosity", "length")
    parameters_class = KuramotoSivashinsky1DParameters

    def linear(self, k: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """Growth of long waves, decay of short ones: k^2 - nu k^4."""
        return k**2 - parameters["viscosity"] * k**4

    def largest_speed(self, parameters: Mapping[str, float]) -> float:
        """That of the attractor, which scales as nu^(-1/2), or of the initial state."""
        return max(_ATTRACTOR / math.sqrt(parameters["viscosity"]), self.parameters.initial.largest_value)

    def shortest_length(self, parameters: Mapping[str, float]) -> float:
        """The grid must hold wavenumbers up to 2 / sqrt nu: amplitudes have fallen there to 0.07 of those at
        1 / sqrt nu, and to 1e-4 at 4 / sqrt nu (measured on the attractor)."""
        return math.sqrt(parameters["viscosity"]) / 2
