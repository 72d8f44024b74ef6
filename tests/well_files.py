"""Small files in The Well's layout for tests, in all the variants that the layout allows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from data_pipeline.config import ConvertConfig, DatasetConfig, StoreConfig

Array = NDArray[np.float64]
AXES = ("x", "y", "z")


@dataclass(frozen=True)
class WellOptions:
    """What to write. Field groups: names of the fields of tensor order 0, 1 and 2."""

    trajectories: int = 3
    frames: int = 5
    space: tuple[int, ...] = (8, 6)
    dt: float = 0.25
    dtype: str = "f4"
    fields: tuple[tuple[str, ...], ...] = (("density",), ("velocity",), ())
    static: tuple[tuple[str, ...], ...] = ((), (), ())
    shared_static: bool = False
    """Static fields are the same for all trajectories (@sample_varying false)."""
    flat: tuple[str, ...] = ()
    """Fields that do not vary along the first axis."""
    keep_flat_axis: bool = False
    flatten_tensors: bool = False
    boundaries: tuple[str, ...] = ("PERIODIC", "PERIODIC", "PERIODIC")
    plain_dims: bool = False
    """@associated_dims is a string, not a list."""
    sample_varying_time: bool = False
    sample_varying_grid: bool = False
    scalars: Mapping[str, float] = field(default_factory=lambda: {"viscosity": 0.01})
    sample_scalars: tuple[str, ...] = ()
    time_scalars: tuple[str, ...] = ()
    scalar_axis: bool = False
    """A constant scalar has shape (1,) instead of ()."""
    chunks: bool = False
    seed: int = 0


@dataclass
class Written:
    """What a reader has to find, in float64: channels (B, T, *space), static (B, *space), parameters (B,)."""

    channels: dict[str, Array]
    static: dict[str, Array]
    parameters: dict[str, Array]
    times: Array


def write_well(path: Path, options: WellOptions | None = None, **changes: Any) -> Written:
    """Write one file; keyword arguments are fields of WellOptions."""
    o = options or WellOptions(**changes)
    rng = np.random.default_rng(o.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as root:
        root.attrs.update(dataset_name="made", grid_type="cartesian", n_spatial_dims=len(o.space))
        root.attrs.update(n_trajectories=o.trajectories, simulation_parameters=list(o.scalars), **o.scalars)
        written = Written({}, {}, {}, _write_dimensions(root, o))
        _write_boundaries(root, o)
        _write_scalars(root, o, rng, written)
        _write_fields(root, o, rng, written)
    return written


def write_dataset(folder: Path, counts: Mapping[str, int] | None = None, **changes: Any) -> dict[str, Written]:
    """A dataset folder with one file in each split, each with another seed."""
    counts = counts or {"train": 3, "valid": 2, "test": 2}
    return {
        split: write_well(folder / "data" / split / f"{split}.hdf5", trajectories=count, seed=seed, **changes)
        for seed, (split, count) in enumerate(counts.items())
    }


def converted(raw: Path) -> DatasetConfig:
    """The configuration of a dataset folder's store, one trajectory a shard."""
    return DatasetConfig(
        name="flow",
        convert=ConvertConfig(layout="the_well", path=str(raw)),
        store=StoreConfig(trajectories_per_shard=1),
    )


def _write_dimensions(root: Any, o: WellOptions) -> Array:
    group = root.create_group("dimensions")
    group.attrs["spatial_dims"] = list(AXES[: len(o.space)])
    times = np.arange(o.frames) * o.dt
    rows: Array = np.tile(times, (o.trajectories, 1))
    if o.sample_varying_time:
        rows = rows + np.arange(o.trajectories)[:, None]
    time = group.create_dataset("time", data=(rows if o.sample_varying_time else times).astype("f4"))
    time.attrs["sample_varying"] = o.sample_varying_time
    for axis, size in zip(AXES, o.space, strict=False):
        points = np.arange(size) / size
        if o.sample_varying_grid:
            points = np.tile(points, (o.trajectories, 1))
        coordinate = group.create_dataset(axis, data=points.astype("f4"))
        coordinate.attrs.update(sample_varying=o.sample_varying_grid, time_varying=False)
    return rows


def _write_boundaries(root: Any, o: WellOptions) -> None:
    group = root.create_group("boundary_conditions")
    for axis, size, kind in zip(AXES, o.space, o.boundaries, strict=False):
        one = group.create_group(f"{axis}_{kind.lower()}")
        one.attrs["associated_dims"] = axis if o.plain_dims else [axis]
        one.attrs.update(associated_fields=[], bc_type=kind, sample_varying=False, time_varying=False)
        one.create_dataset("mask", data=np.arange(size) == 0)


def _write_scalars(root: Any, o: WellOptions, rng: np.random.Generator, written: Written) -> None:
    group = root.create_group("scalars")
    group.attrs["field_names"] = [*o.scalars, *o.sample_scalars, *o.time_scalars]
    for name, value in o.scalars.items():
        one = group.create_dataset(name, data=np.array([value] if o.scalar_axis else value, "f4"))
        one.attrs.update(sample_varying=False, time_varying=False)
        written.parameters[name] = np.full(o.trajectories, value)
    for name in o.sample_scalars:
        values = rng.random(o.trajectories).astype("f4")
        group.create_dataset(name, data=values).attrs.update(sample_varying=True, time_varying=False)
        written.parameters[name] = values.astype(float)
    for name in o.time_scalars:
        data = rng.random((o.trajectories, o.frames))
        group.create_dataset(name, data=data).attrs.update(sample_varying=True, time_varying=True)


def _write_fields(root: Any, o: WellOptions, rng: np.random.Generator, written: Written) -> None:
    for order in range(3):
        group = root.create_group(f"t{order}_fields")
        group.attrs["field_names"] = [*o.fields[order], *o.static[order]]
        for name in o.fields[order]:
            values = _write_field(group, name, order, o, rng, varies=True)
            written.channels.update(_components(name, order, len(o.space), values))
        for name in o.static[order]:
            values = _write_field(group, name, order, o, rng, varies=False)
            written.static.update(_components(name, order, len(o.space), values))


def _write_field(
    group: Any, name: str, order: int, o: WellOptions, rng: np.random.Generator, *, varies: bool
) -> Array:
    """Write one field; its full values (B, [T,] *space, *components) as float64."""
    dims, shared = len(o.space), o.shared_static and not varies
    lead: tuple[int, ...] = () if shared else (o.trajectories,)
    lead += (o.frames,) if varies else ()
    size = tuple(1 if name in o.flat and axis == 0 else n for axis, n in enumerate(o.space))
    values = rng.standard_normal((*lead, *size, *(dims,) * order)).astype(o.dtype)
    stored = values.reshape(*lead, *size, dims**2) if order == 2 and o.flatten_tensors else values
    if name in o.flat and not o.keep_flat_axis:
        stored = np.squeeze(stored, len(lead))
    one = group.create_dataset(name, data=stored, chunks=stored.shape if o.chunks else None)
    one.attrs["dim_varying"] = [not (name in o.flat and axis == 0) for axis in range(dims)]
    one.attrs.update(sample_varying=not shared, time_varying=varies)
    if order == 2:
        one.attrs.update(symmetric=False, antisymmetric=False)
    full = values[None] if shared else values
    lead = (o.trajectories, o.frames) if varies else (o.trajectories,)
    return np.broadcast_to(full.astype(float), (*lead, *o.space, *(dims,) * order))


def _components(name: str, order: int, dims: int, values: Array) -> dict[str, Array]:
    if order == 0:
        return {name: values}
    one_each = values.reshape(*values.shape[:-order], dims**order)
    names = ["".join(axes) for axes in product(AXES[:dims], repeat=order)]
    return {f"{name}_{suffix}": one_each[..., number] for number, suffix in enumerate(names)}
