"""Korteweg-de Vries equation on a periodic line: the set of Brandstetter et al. (Lie point symmetries), APEBench's."""

import math
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from data_pipeline.solvers.base import NonNegativeRange, PositiveRange
from data_pipeline.solvers.families.transport_1d import Transport1D, Transport1DParameters
from data_pipeline.solvers.numerics.waves import AnyInitial, Sines
from data_pipeline.solvers.semilinear import Step


class KdV1DParameters(Transport1DParameters):
    """Parameters of `kdv_1d`."""

    step: Step = 0.02
    advection: PositiveRange = (1.0, 1.0)
    """The coefficient a; solitons in the usual form of textbooks have 6."""
    dispersion: PositiveRange = (1.0, 1.0)
    """Coefficient of u_xxx."""
    hyperviscosity: NonNegativeRange = (0.0, 0.0)
    """The coefficient of -u_xxxx, which APEBench adds."""
    length: PositiveRange = (128.0, 128.0)
    initial: AnyInitial = Sines()


class KdV1D(Transport1D[KdV1DParameters]):
    """u_t + a u u_x + d u_xxx = -h u_xxxx, periodic."""

    family: ClassVar[str] = "kdv_1d"
    equation: ClassVar[str] = "u_t + a u u_x + d u_xxx = -h u_xxxx"
    channels = ("u",)
    parameter_names: ClassVar[tuple[str, ...]] = ("advection", "dispersion", "hyperviscosity", "length")
    parameters_class = KdV1DParameters

    def linear(self, k: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """Dispersion and damping: i d k^3 - h k^4."""
        return 1j * parameters["dispersion"] * k**3 - parameters["hyperviscosity"] * k**4

    def largest_speed(self, parameters: Mapping[str, float]) -> float:
        """Solitons that rise out of a long wave reach about twice its height (Zabusky and Kruskal, 1965)."""
        return 2 * self.parameters.initial.largest_value

    def shortest_length(self, parameters: Mapping[str, float]) -> float:
        """A soliton of height u is u sech^2(x / w), w = sqrt(12 d / (a u))."""
        height = self.largest_speed(parameters)
        return math.sqrt(12 * parameters["dispersion"] / (parameters["advection"] * height))
