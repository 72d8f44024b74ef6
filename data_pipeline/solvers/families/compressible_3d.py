"""Compressible Navier-Stokes on three axes: PDEBench's three-dimensional sets, from random and turbulent starts."""

from typing import ClassVar

from data_pipeline.solvers.families.compressible_box import CompressibleBoxParameters, CompressibleBoxSolver


class Compressible3DParameters(CompressibleBoxParameters):
    """Parameters of `compressible_3d`."""


class Compressible3D(CompressibleBoxSolver[Compressible3DParameters]):
    """A viscous ideal gas in the unit cube: the equations, scheme and starts of `compressible_2d`."""

    family: ClassVar[str] = "compressible_3d"
    equation: ClassVar[str] = "d_t + div(d v) = 0, (d v)_t + div(d v v + p - S) = 0, E_t + div((E + p - S) v) = 0"
    axes = ("x", "y", "z")
    extent = ((0.0, 1.0), (0.0, 1.0), (0.0, 1.0))
    parameters_class = Compressible3DParameters
