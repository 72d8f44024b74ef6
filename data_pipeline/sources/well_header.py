"""The header of one HDF5 file in The Well's layout: everything but the values of the fields, checked whole.

Layout: R. Ohana et al., "The Well: a Large-Scale Collection of Diverse Physics Simulations for Machine Learning"
(2024), section "data format". Choices where the layout leaves room:

- A tensor field always gives all its D x D components, in The Well's order, also when it is marked symmetric or
  antisymmetric, so that channels agree with The Well's own reader. Both (D, D) and (D*D,) are read.
- An axis along which a field does not vary may be absent, as documented, or present with size 1.
- A scalar that does not vary in time is a PDE parameter. One that does is left out and named in `left_out`: a
  trajectory has no place for it, and in The Well such scalars are diagnostics, which the fields determine.
- An axis that no boundary condition names is open, as in The Well's own reader. Of several on one axis, wall wins over
  open, and open over periodic. A condition on several axes at once marks a region, such as an obstacle, so it decides
  only for axes that have no condition of their own. All of them are kept in the provenance of each trajectory.
- The grid of a periodic axis leaves out its last point, which is the first again, so the domain is one spacing longer.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.errors import DataError
from data_pipeline.sources.grids import time_step
from data_pipeline.sources.hdf5 import DAMAGE, Hdf5Reader, open_hdf5
from data_pipeline.trajectory import Boundary

SUFFIXES = (".hdf5", ".h5")
_GRID_TYPES = ("cartesian", "spherical")
_BOUNDARIES: tuple[Boundary, ...] = ("wall", "open", "periodic")
"""In the order in which one wins over the next."""


@dataclass(frozen=True)
class Field:
    """Where a field is and how it is stored."""

    key: str
    channels: tuple[str, ...]
    sample_varying: bool
    time_varying: bool
    stored_shape: tuple[int, ...]
    """Shape for one trajectory: ([T,] n or 1 for each axis, components)."""
    zero_channels: tuple[str, ...]
    """The diagonal of an antisymmetric tensor: zero by definition."""


@dataclass(frozen=True)
class WellHeader:
    """What a file says about itself. Spatial entries are in the order of the fields' axes."""

    path: Path
    dataset_name: str
    trajectories: int
    axes: tuple[str, ...]
    space: tuple[int, ...]
    extent: tuple[tuple[float, float], ...]
    """The smallest box that holds the grids of all trajectories."""
    times: NDArray[np.float64]
    """(B, T), or (1, T) when all trajectories share their times."""
    dt: float
    boundaries: tuple[Boundary, ...]
    conditions: str
    """All boundary conditions of the file, in words."""
    fields: tuple[Field, ...]
    parameters: Mapping[str, NDArray[np.float64]]
    """Values (B,) of each parameter."""
    left_out: tuple[str, ...]

    @property
    def frames(self) -> int:
        """Frames in each trajectory."""
        return int(self.times.shape[1])

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the fields that vary in time."""
        return tuple(name for field in self.fields if field.time_varying for name in field.channels)

    @property
    def static_channels(self) -> tuple[str, ...]:
        """Names of the fields that do not vary in time."""
        return tuple(name for field in self.fields if not field.time_varying for name in field.channels)


class Problems(list[DataError]):
    """Collects errors, so that one look at a file finds all of them."""

    @contextmanager
    def collect(self, reader: Hdf5Reader) -> Iterator[None]:
        """Keep a DataError of the block and go on after it."""
        try:
            yield
        except DataError as error:
            self.append(error)
        except DAMAGE as error:
            self.append(reader.damaged(None, error))


def read_header(path: Path, problems: Problems) -> WellHeader | None:
    """Check all of a file but the values of its fields.

    Args:
        path: the HDF5 file.
        problems: gets every fault that is found.

    Returns:
        The header without the faulty fields and scalars; None when a fault leaves nothing to work with.
    """
    try:
        with open_hdf5(path) as reader:
            return _read_header(reader, problems)
    except DataError as error:
        problems.append(error)
        return None


def _read_header(reader: Hdf5Reader, problems: Problems) -> WellHeader | None:
    _check_layout(reader)
    before = len(problems)
    with problems.collect(reader):
        _check_grid_type(reader)
    trajectories, axes = reader.count("/", "n_trajectories"), _axes(reader)
    times, dt = np.zeros((1, 0)), 0.0
    boundaries: tuple[Boundary, ...] = ()
    conditions = ""
    with problems.collect(reader):
        times = _times(reader, trajectories)
        dt = _time_step(reader, times)
    with problems.collect(reader):
        boundaries, conditions = _boundaries(reader, axes)
    space, extent = _grid(reader, trajectories, axes, boundaries)
    if times.shape[1] == 0:
        return None
    fields = tuple(_fields(reader, problems, trajectories, times.shape[1], dict(zip(axes, space, strict=True))))
    with problems.collect(reader):
        _check_channels(reader, fields, complete=len(problems) == before)
    parameters, left_out = _parameters(reader, problems, trajectories, times.shape[1])
    if not fields or not boundaries or dt <= 0:
        return None
    return WellHeader(
        path=reader.path,
        dataset_name=reader.text("/", "dataset_name", default=reader.path.stem),
        trajectories=trajectories,
        axes=axes,
        space=space,
        extent=extent,
        times=times,
        dt=dt,
        boundaries=boundaries,
        conditions=conditions,
        fields=fields,
        parameters=parameters,
        left_out=left_out,
    )


def _check_layout(reader: Hdf5Reader) -> None:
    """Raise DataError when the file is of another layout altogether."""
    found = sorted(reader.root)
    if "dimensions" not in found and not any(f"t{order}_fields" in found for order in range(3)):
        raise reader.error(
            "not a file in The Well's layout",
            "/",
            found=f"keys {found}, attributes {sorted(reader.root.attrs)}",
            expected="groups boundary_conditions, dimensions, scalars, t0_fields, t1_fields, t2_fields",
            remedy="convert the file to The Well's layout first",
        )


def _check_grid_type(reader: Hdf5Reader) -> None:
    grid_type = reader.text("/", "grid_type")
    if grid_type.lower() not in _GRID_TYPES:
        raise reader.error("unknown grid type", "/@grid_type", found=grid_type, expected=f"one of {_GRID_TYPES}")


def _axes(reader: Hdf5Reader) -> tuple[str, ...]:
    axes, number = reader.names("dimensions", "spatial_dims"), reader.count("/", "n_spatial_dims")
    if len(axes) != number or not 1 <= number <= 3 or len(set(axes)) != number:
        raise reader.error(
            "the spatial axes do not fit n_spatial_dims",
            "dimensions@spatial_dims",
            found=f"{list(axes)}, n_spatial_dims {number}",
            expected="one, two or three different names, as many as n_spatial_dims",
        )
    return axes


def _times(reader: Hdf5Reader, trajectories: int) -> NDArray[np.float64]:
    """Times (B, T) or (1, T), strictly increasing."""
    key = "dimensions/time"
    values = reader.numbers(key)
    sample_varying = reader.flag(key, "sample_varying", default=values.ndim == 2)
    leading = (trajectories,) if sample_varying else ()
    if values.ndim != len(leading) + 1 or values.shape[:-1] != leading or values.shape[-1] < 2:
        expected = f"({trajectories}, T)" if sample_varying else "(T,)"
        raise reader.error(
            "wrong shape of time", key, found=values.shape, expected=f"{expected} with T of 2 or more frames"
        )
    return np.atleast_2d(values.astype(np.float64))


def _time_step(reader: Hdf5Reader, times: NDArray[np.float64]) -> float:
    """The time between two frames, the same in all trajectories."""
    key = "dimensions/time"
    dtype = reader.dataset(key).dtype
    step = time_step(reader, key, times, dtype)
    return _decimal(np.asarray(step, dtype if dtype.kind == "f" else np.float64))


def _grid(
    reader: Hdf5Reader, trajectories: int, axes: tuple[str, ...], boundaries: tuple[Boundary, ...]
) -> tuple[tuple[int, ...], tuple[tuple[float, float], ...]]:
    """Grid points and domain along each axis."""
    space, extent = [], []
    for number, axis in enumerate(axes):
        points = _coordinates(reader, trajectories, f"dimensions/{axis}")
        size = points.shape[1]
        lower, upper = float(points.min()), float(points.max())
        if boundaries and boundaries[number] == "periodic" and size > 1:
            upper += (upper - lower) / (size - 1)
        space.append(size)
        # Coarser than float64 on disk means rounded: 1.0 was meant, not 1.00000003.
        precision = np.float64 if reader.dataset(f"dimensions/{axis}").dtype.itemsize == 8 else np.float32
        extent.append((_decimal(precision(lower)), _decimal(precision(upper))))
    return tuple(space), tuple(extent)


def _coordinates(reader: Hdf5Reader, trajectories: int, key: str) -> NDArray[np.float64]:
    """Coordinates (B, n) or (1, n) along an axis."""
    values = reader.numbers(key)
    if reader.flag(key, "time_varying", default=False):
        raise reader.error("the grid moves in time", key, expected="@time_varying false: a grid that stays")
    sample_varying = reader.flag(key, "sample_varying", default=values.ndim == 2)
    leading = (trajectories,) if sample_varying else ()
    if values.ndim != len(leading) + 1 or values.shape[:-1] != leading or values.size == 0:
        expected = f"({trajectories}, n)" if sample_varying else "(n,)"
        raise reader.error("wrong shape of a coordinate", key, found=values.shape, expected=f"{expected}, not empty")
    points = np.atleast_2d(values.astype(np.float64))
    steps = np.diff(points, axis=1)
    if not ((steps > 0).all() or (steps < 0).all()):
        raise reader.error("the coordinate is not in order", key, expected="strictly increasing or decreasing values")
    return points


def _boundaries(reader: Hdf5Reader, axes: tuple[str, ...]) -> tuple[tuple[Boundary, ...], str]:
    """The condition at the ends of each axis, and all conditions of the file in words."""
    own: dict[str, set[Boundary]] = {axis: set() for axis in axes}
    shared: dict[str, set[Boundary]] = {axis: set() for axis in axes}
    words = []
    for name in sorted(reader.group("boundary_conditions")):
        key = f"boundary_conditions/{name}"
        kind, dims = reader.text(key, "bc_type").lower(), reader.names(key, "associated_dims")
        match = next((boundary for boundary in _BOUNDARIES if boundary == kind), None)
        if match is None:
            raise reader.error(
                "unknown boundary condition", f"{key}@bc_type", found=kind, expected=f"one of {_BOUNDARIES}, any case"
            )
        if not set(dims) <= set(axes):
            raise reader.error(
                "a boundary condition on an unknown axis",
                f"{key}@associated_dims",
                found=list(dims),
                expected=f"some of {list(axes)}",
            )
        for axis in dims:
            (own if len(dims) == 1 else shared)[axis].add(match)
        words.append(f"{name}: {match} on {', '.join(dims)}")
    return tuple(_strongest(own[axis] or shared[axis]) for axis in axes), "; ".join(words)


def _strongest(conditions: set[Boundary]) -> Boundary:
    return next((boundary for boundary in _BOUNDARIES if boundary in conditions), "open")


def _fields(
    reader: Hdf5Reader, problems: Problems, trajectories: int, frames: int, space: dict[str, int]
) -> Iterator[Field]:
    """Fields in The Well's order: scalars, then vectors, then tensors, each group in the order of its field_names."""
    for order in range(3):
        group = f"t{order}_fields"
        if group not in reader.root:
            continue
        with problems.collect(reader):
            for name in reader.names(group, "field_names"):
                with problems.collect(reader):
                    yield _field(reader, f"{group}/{name}", order, trajectories, frames, space)


def _field(reader: Hdf5Reader, key: str, order: int, trajectories: int, frames: int, space: dict[str, int]) -> Field:
    dataset, axes = reader.dataset(key), tuple(space)
    sample_varying, time_varying = reader.flag(key, "sample_varying"), reader.flag(key, "time_varying")
    dim_varying = reader.flags(key, "dim_varying", len(axes))
    lead = ((trajectories,) if sample_varying else ()) + ((frames,) if time_varying else ())
    sizes = tuple(size if varies else 1 for size, varies in zip(space.values(), dim_varying, strict=True))
    varying = tuple(size for size, varies in zip(space.values(), dim_varying, strict=True) if varies)
    components = [(len(axes),) * order] + ([(len(axes) ** 2,)] if order == 2 else [])
    allowed = [lead + grid + part for grid in (varying, sizes) for part in components]
    if dataset.shape not in allowed:
        raise _shape_error(reader, key, dataset.shape, allowed[0], sample_varying, trajectories)
    reader.check_written(dataset, key)
    name, suffixes = key.rpartition("/")[2], ["".join(parts) for parts in product(axes, repeat=order)]
    antisymmetric = order == 2 and reader.flag(key, "antisymmetric", default=False)
    return Field(
        key=key,
        channels=tuple(f"{name}_{suffix}" if suffix else name for suffix in suffixes),
        sample_varying=sample_varying,
        time_varying=time_varying,
        stored_shape=((frames,) if time_varying else ()) + sizes + (len(suffixes),),
        zero_channels=tuple(f"{name}_{axis}{axis}" for axis in axes) if antisymmetric else (),
    )


def _shape_error(
    reader: Hdf5Reader, key: str, shape: tuple[int, ...], expected: tuple[int, ...], sample_varying: bool, count: int
) -> DataError:
    if len(shape) != len(expected):
        problem = "wrong rank"
    elif sample_varying and shape[0] != count and shape[1:] == expected[1:]:
        problem = "n_trajectories disagrees with the array"
    else:
        problem = "the array does not fit the time, the grid or the number of axes"
    return reader.error(
        problem,
        key,
        found=f"shape {shape}",
        expected=f"shape {expected} ([trajectory][time] then the axes that @dim_varying marks, then components)",
    )


def _check_channels(reader: Hdf5Reader, fields: tuple[Field, ...], *, complete: bool) -> None:
    names = [name for field in fields for name in field.channels]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise reader.error("two fields give channels of the same name", found=twice, expected="different names")
    if complete and not any(field.time_varying for field in fields):
        raise reader.error(
            "no field varies in time", "t0_fields, t1_fields, t2_fields", found=names, expected="@time_varying true"
        )


def _parameters(
    reader: Hdf5Reader, problems: Problems, trajectories: int, frames: int
) -> tuple[dict[str, NDArray[np.float64]], tuple[str, ...]]:
    """Parameters of each trajectory, from the scalars and then the attributes of the root; and what is left out."""
    parameters: dict[str, NDArray[np.float64]] = {}
    left_out = []
    if "scalars" in reader.root:
        with problems.collect(reader):
            for name in reader.names("scalars", "field_names"):
                with problems.collect(reader):
                    values = _scalar(reader, f"scalars/{name}", trajectories, frames)
                    if values is None:
                        left_out.append(f"scalar {name!r}, which varies in time")
                    else:
                        parameters[name] = values
    if "simulation_parameters" in reader.root.attrs:
        with problems.collect(reader):
            for name in reader.names("/", "simulation_parameters"):
                with problems.collect(reader):
                    if name in parameters or f"scalars/{name}" in reader.root:
                        continue
                    value = np.asarray(reader.attribute("/", name))
                    if value.size == 1 and value.dtype.kind in "fiub" and np.isfinite(value).all():
                        parameters[name] = np.full(trajectories, _decimal(value))
                    else:
                        left_out.append(f"parameter {name!r}, which is not a finite number")
    return parameters, tuple(left_out)


def _scalar(reader: Hdf5Reader, key: str, trajectories: int, frames: int) -> NDArray[np.float64] | None:
    """Values (B,) of a scalar, or None for one that varies in time."""
    values = reader.numbers(key)
    sample_varying, time_varying = reader.flag(key, "sample_varying"), reader.flag(key, "time_varying")
    shape = ((trajectories,) if sample_varying else ()) + ((frames,) if time_varying else ())
    # The layout's description writes a constant as float32(1), its checker wants no axis: both are about.
    if values.shape not in (shape, (*shape, 1)):
        raise reader.error("wrong shape of a scalar", key, found=values.shape, expected=shape)
    if time_varying:
        return None
    flat = np.array([_decimal(value) for value in values.reshape(-1)], np.float64)
    return flat if sample_varying else np.full(trajectories, flat[0])


def _decimal(value: Any) -> float:
    """The shortest decimal that is stored as `value`: 0.1 for the float32 0.100000001490116."""
    return float(str(np.asarray(value).reshape(-1)[0]))
