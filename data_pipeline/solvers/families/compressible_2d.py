"""Compressible Navier-Stokes on two axes: PDEBench's two-dimensional sets, from random and from turbulent starts."""

from typing import ClassVar

from data_pipeline.solvers.families.compressible_box import CompressibleBoxParameters, CompressibleBoxSolver


class Compressible2DParameters(CompressibleBoxParameters):
    """Parameters of `compressible_2d`."""


class Compressible2D(CompressibleBoxSolver[Compressible2DParameters]):
    """A viscous ideal gas in the unit square: d density, v velocity, p pressure, E = p / (gamma - 1) + d |v|^2 / 2.

    S = eta (grad v + (grad v)^T - 2/3 div v) + zeta div v; no heat conduction. Starts from random fields of density,
    velocity and pressure, or from a solenoidal velocity in a uniform gas (Takamoto et al., NeurIPS 2022).
    """

    family: ClassVar[str] = "compressible_2d"
    equation: ClassVar[str] = "d_t + div(d v) = 0, (d v)_t + div(d v v + p - S) = 0, E_t + div((E + p - S) v) = 0"
    axes = ("x", "y")
    extent = ((0.0, 1.0), (0.0, 1.0))
    parameters_class = Compressible2DParameters
