"""The one record that everything speaks: a trajectory of named fields on a grid, and what its dataset is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.config import Config

Boundary = Literal["periodic", "wall", "open"]
FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]


class DatasetInfo(Config):
    """What all trajectories of a dataset have in common.

    `space`, `axes`, `extent` and `boundaries` have one entry a spatial axis, in the order of the fields' axes.
    """

    name: str
    channels: tuple[str, ...]
    """Names of the fields, in the order of the last axis."""
    space: tuple[int, ...]
    """Grid points along each axis."""
    frames: int
    """Frames in each trajectory; 1 for a steady problem, whose solution is the one frame."""
    dt: float
    """Time between two frames, in the units of the equation; 0 for a steady problem."""
    axes: tuple[str, ...]
    extent: tuple[tuple[float, float], ...]
    """Lower and upper end of the domain along each axis."""
    coordinates: tuple[tuple[float, ...], ...] = ()
    """Position of every grid point along each axis; empty where the points are evenly spaced in the usual way, which
    `grid` gives."""
    boundaries: tuple[Boundary, ...]
    translation_invariant: bool = False
    """The equation is the same everywhere (no forcing or coefficients that depend on place), so that along periodic
    axes a shifted solution is a solution."""
    parameters: tuple[str, ...] = ()
    """Names of the PDE parameters that each trajectory carries."""
    static_channels: tuple[str, ...] = ()
    """Names of the fields that do not change in time: coefficients, forcing, the input of a steady problem."""
    masked: bool = False
    """Each trajectory says which points belong to the domain; obstacles and the like do not."""
    equation: str = ""
    source: str = ""
    """Where the data come from: a solver with its scheme, or the files and their publisher."""
    licence: str = ""


@dataclass(frozen=True)
class Trajectory:
    """One solution of one PDE.

    Attributes:
        fields: float32 (T, *space, C), channels last.
        times: float64 (T,), strictly increasing.
        parameters: value of each PDE parameter of this trajectory.
        static: float32 (*space, S), fields that do not change in time, or None.
        mask: bool (*space), true at the points that belong to the domain, or None where all do.
        provenance: where it came from (file and index, or solver and sample number).
    """

    fields: FloatArray
    times: NDArray[np.float64]
    parameters: Mapping[str, float] = field(default_factory=dict)
    static: FloatArray | None = None
    mask: BoolArray | None = None
    provenance: Mapping[str, str | int | float] = field(default_factory=dict)


def grid(info: DatasetInfo) -> tuple[NDArray[np.float64], ...]:
    """Position of the grid points along each axis, (n,) each.

    Where a dataset does not say, points are evenly spaced: from the lower end on along periodic axes, whose upper end
    is the lower one again; in the middle of cells along others.
    """
    if info.coordinates:
        return tuple(np.asarray(axis, np.float64) for axis in info.coordinates)
    shift = [0.0 if boundary == "periodic" else 0.5 for boundary in info.boundaries]
    return tuple(
        low + (up - low) * (np.arange(n) + s) / n
        for (low, up), n, s in zip(info.extent, info.space, shift, strict=True)
    )


def parameter_row(parameters: Mapping[str, float], names: Sequence[str]) -> list[float]:
    """The values of PDE parameters in the order of `names`, NaN where there is none."""
    return [parameters.get(name, float("nan")) for name in names]
