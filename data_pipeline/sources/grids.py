"""Times and positions of grid points as files give them, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.errors import DataError
from data_pipeline.config import ConvertConfig
from data_pipeline.trajectory import Boundary

Floats = NDArray[np.float64]
_STEP_TOLERANCE = 1e-2
"""A frame may be off the uniform time grid by this part of a step; solvers that stop at their own step do so."""


class Reader(Protocol):
    """Arrays of an open file by key; every surprise is a DataError that names file and key."""

    @property
    def path(self) -> Path:
        """The file."""
        ...

    def error(self, problem: str, key: str | None = None, **details: Any) -> DataError:
        """A DataError that names this file."""
        ...

    def dataset(self, key: str) -> Any:
        """The array at `key`, unread, with `shape` and `dtype`. Raises DataError when it is missing or no numbers."""
        ...

    def slab(self, dataset: Any, key: str, index: tuple[Any, ...]) -> NDArray[Any]:
        """A part of an array. Raises DataError when its bytes cannot be read."""
        ...

    def numbers(self, key: str) -> NDArray[Any]:
        """A whole small array. Raises DataError when it holds NaN or Inf."""
        ...


def shortest(value: float, scale: float, dtype: Any) -> float:
    """A number that was computed from stored ones, without their rounding: 0.1 for 0.10000000149."""
    digits = 6 if np.dtype(dtype).itemsize <= 4 else 12
    return float(f"{round(value / scale, digits) * scale:.{digits + 1}g}") if scale else value


def decimals(stored: NDArray[Any]) -> Floats:
    """Stored numbers as the shortest decimals that are stored so: 0.4 for the float32 0.400000006."""
    if stored.dtype.kind != "f" or stored.dtype.itemsize > 4:
        return stored.astype(np.float64)
    return np.array([float(str(value)) for value in stored.reshape(-1)], np.float64).reshape(stored.shape)


def uniform_times(
    reader: Reader, key: str, frames: int, config: ConvertConfig, values: NDArray[Any] | None = None
) -> tuple[Floats, float]:
    """Times (B, frames) or (1, frames), and the step between them.

    Args:
        reader: the open file.
        key: where the times stand: (T,) or (B, T). T may be more than `frames`: some publishers write the edges of
            time steps, of which the first ones are the times of the frames.
        frames: how many times are needed.
        config: its time step, where it gives one, replaces the file's times, which are then not looked at.
        values: the times, where they have been read already.

    Raises:
        DataError: there are too few, they do not increase, or their steps differ.
    """
    if config.dt is not None:
        return config.dt * np.arange(frames, dtype=np.float64)[None], config.dt
    stored = reader.numbers(key) if values is None else values
    if stored.ndim not in (1, 2) or stored.shape[-1] < frames:
        raise reader.error(
            "wrong shape of time", key, found=stored.shape, expected=f"{frames} times or more along the last axis"
        )
    times = np.atleast_2d(decimals(stored))[:, :frames]
    if frames == 1:
        return times, 0.0
    known = "if the time step is known all the same, give it as convert.dt"
    step = time_step(reader, key, times, stored.dtype, known)
    return times, shortest(step, step, stored.dtype)


def time_step(reader: Reader, key: str, times: Floats, dtype: np.dtype[Any], remedy: str | None = None) -> float:
    """The time between two frames, the same in all trajectories.

    Args:
        reader: the open file.
        key: where the times stand.
        times: (B, T) or (1, T), two frames or more.
        dtype: that of the stored times; its rounding is let pass.
        remedy: what to do about times that do not increase.

    Raises:
        DataError: times do not increase, or steps differ.
    """
    steps = np.diff(times, axis=1)
    if (steps <= 0).any():
        row, frame = (int(i) for i in np.argwhere(steps <= 0)[0])
        raise reader.error(
            "time is not increasing",
            key,
            found=f"t = {times[row, frame]:g} then {times[row, frame + 1]:g} at frame {frame + 1} of trajectory {row}",
            expected="strictly increasing times",
            remedy=remedy,
        )
    step: float = float(times[0, -1] - times[0, 0]) / (times.shape[1] - 1)
    rounding = 4 * np.finfo(dtype).eps * np.abs(times).max() if dtype.kind == "f" else 0.0
    off = np.abs(steps - step)
    if (off > _STEP_TOLERANCE * step + rounding).any():
        row, frame = (int(i) for i in np.unravel_index(off.argmax(), off.shape))
        raise reader.error(
            "time is not uniform",
            key,
            found=f"a step of {steps[row, frame]:g} at frame {frame + 1} of trajectory {row}, others of {step:g}",
            expected="equal steps, the same in all trajectories",
            remedy="interpolate the trajectories to equal steps, or split the data by step",
        )
    return step


@dataclass(frozen=True)
class Grid:
    """The grid of a file: `extent` and `coordinates` as in `Header`."""

    extent: tuple[tuple[float, float], ...]
    coordinates: tuple[tuple[float, ...], ...]


def grid_of(reader: Reader, keys: Mapping[str, int], boundaries: Sequence[Boundary]) -> Grid:
    """The grid whose points stand in the file.

    Points that lie half a spacing off the multiples of their spacing are the middles of cells, whose edges are the
    ends of the domain. Others are nodes: the first and last are the ends, but a periodic axis leaves out its last
    point, which is the first again, so its domain is one spacing longer.

    Args:
        reader: the open file.
        keys: where the positions along each axis stand, (n,) or the same for every trajectory (B, n); and the n.
        boundaries: of each axis.

    Raises:
        DataError: a number of points is wrong, or they are not in order.
    """
    axes = [_points(reader, key, size) for key, size in keys.items()]
    extent = tuple(_ends(points, kind, dtype) for (points, dtype), kind in zip(axes, boundaries, strict=True))
    if all(_usual(points, ends, kind) for (points, _), ends, kind in zip(axes, extent, boundaries, strict=True)):
        return Grid(extent, ())
    return Grid(extent, tuple(tuple(map(float, points)) for points, _ in axes))


def _points(reader: Reader, key: str, size: int) -> tuple[Floats, Any]:
    stored = reader.numbers(key)
    if stored.ndim not in (1, 2) or stored.shape[-1] != size or stored.size == 0:
        raise reader.error("wrong shape of a coordinate", key, found=stored.shape, expected=(size,))
    if stored.ndim == 2:
        if (stored != stored[0]).any():
            raise reader.error("the grid differs between trajectories", key, expected="the same positions for all")
        stored = stored[0]
    points = decimals(stored)
    steps = np.diff(points)
    if not ((steps > 0).all() or (steps < 0).all()):
        raise reader.error("the coordinate is not in order", key, expected="strictly increasing or decreasing values")
    return points, stored.dtype


def _ends(points: Floats, boundary: Boundary, dtype: Any) -> tuple[float, float]:
    low, up = float(points.min()), float(points.max())
    if len(points) == 1:
        return low, up
    spacing = (up - low) / (len(points) - 1)
    halves = abs(low / spacing % 1 - 0.5) < 0.05
    # On a domain that is symmetric about zero, nodes lie half a spacing off too: the rounder ends are meant.
    if halves and _decimal_places(low - spacing / 2, up - low) <= _decimal_places(low, up - low):
        low, up = low - spacing / 2, up + spacing / 2
    elif boundary == "periodic":
        up += spacing
    return shortest(low, up - low, dtype), shortest(up, up - low, dtype)


def _decimal_places(value: float, scale: float) -> int:
    return next((places for places in range(7) if abs(value - round(value, places)) < 1e-6 * scale), 7)


def _usual(points: Floats, ends: tuple[float, float], boundary: Boundary) -> bool:
    """Whether `trajectory.grid` gives these points."""
    (low, up), n = ends, len(points)
    derived = low + (up - low) * (np.arange(n) + (0.0 if boundary == "periodic" else 0.5)) / n
    return bool(np.abs(points - derived).max() <= 1e-5 * (up - low))


def unit_grid(axes: int) -> Grid:
    """The unit interval, square or cube."""
    return Grid(((0.0, 1.0),) * axes, ())


def counted_grid(space: Sequence[int]) -> Grid:
    """A grid whose spacing is not known, or one: positions are counted in cells."""
    return Grid(tuple((0.0, float(size)) for size in space), ())
