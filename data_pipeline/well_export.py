"""Export a Zarr store to The Well's layout, which that project's own `WellDataset` reads.

    <name>/
      data/{train,valid,test}/<name>.hdf5
      stats.yaml                            mean, std, rms and those of the changes (`mean_delta`, ...), by field

Fields whose names end in every axis (`velocity_x`, `velocity_y`) become one vector, in all pairs of axes
(`stress_xx`, ...) one tensor, as reading the layout does in the other direction. A mask becomes a static field.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml

from data_pipeline.base.errors import DataError
from data_pipeline.base.files import exclusive, fsync_tree, publish_directory, remove_tree
from data_pipeline.base.progress import Progress
from data_pipeline.stores import open_store, read_manifest
from data_pipeline.stores.protocol import Statistics
from data_pipeline.stores.statistics import Moments, measure, statistics
from data_pipeline.stores.zarr_store import ZarrStore
from data_pipeline.trajectory import DatasetInfo, FloatArray, Trajectory, grid

MASK = "mask"
_STATISTICS = {
    "mean": "mean", "std": "std", "rms": "rms",
    "mean_delta": "change_mean", "std_delta": "change_std", "rms_delta": "change_rms",
}  # fmt: skip


@dataclass(frozen=True)
class Group:
    """One field of The Well: a scalar (order 0), vector (1) or tensor (2), and the channels that it is made of."""

    name: str
    order: int
    channels: tuple[int, ...]


def groups(names: Sequence[str], axes: Sequence[str]) -> list[Group]:
    """Channels joined to vectors and tensors where each component follows the one before; the others are scalars."""
    found, start = [], 0
    while start < len(names):
        for order in (2, 1, 0):
            suffixes = ["_" + "".join(parts) for parts in product(axes, repeat=order)] if order else [""]
            run = tuple(names[start : start + len(suffixes)])
            stem = run[0].removesuffix(suffixes[0])
            if stem and run == tuple(stem + suffix for suffix in suffixes):
                found.append(Group(stem, order, tuple(range(start, start + len(suffixes)))))
                start += len(suffixes)
                break
    return found


def export_well(store: Path, output: Path) -> Path:
    """Write `<output>/<name>`; one trajectory is in memory at a time.

    Args:
        store: folder of a committed Zarr store.
        output: folder in which the dataset's folder is made.

    Returns:
        The dataset's folder.

    Raises:
        DataError: the store is damaged or steady, or the folder is there already.
    """
    manifest = read_manifest(store)
    info, final = manifest.info, output.resolve() / manifest.info.name
    _check(info, manifest.kind, store, final)
    counts = {str(split): record.trajectories for split, record in manifest.splits.items() if record.trajectories}
    temporary = final.with_name(f".{final.name}.partial")
    with exclusive(final.with_name(f".{final.name}.lock"), wait=False, what=str(final)):
        remove_tree(temporary)
        fixed: list[Moments] = []
        with Progress(final.name, sum(counts.values()), unit="trajectories") as progress:
            for split in counts:
                folder = temporary / "data" / split
                folder.mkdir(parents=True)
                reader = open_store(store, split)
                assert isinstance(reader, ZarrStore)
                with h5py.File(folder / f"{info.name}.hdf5", "w") as file:
                    moments = _write_split(file, reader, progress)
                fixed = moments if split == manifest.statistics_split else fixed
                reader.close()
        (temporary / "stats.yaml").write_text(yaml.safe_dump(_statistics(info, manifest.statistics, fixed)))
        fsync_tree(temporary)
        publish_directory(temporary, final)
    return final


def _check(info: DatasetInfo, kind: str, store: Path, final: Path) -> None:
    if kind != "zarr":
        raise DataError("not a Zarr store", file=store, found=kind, remedy="give the folder <name>.zarr")
    if info.frames < 2:
        raise DataError("The Well's layout has no steady problems", file=store, found=f"{info.frames} frame")
    if final.exists():
        raise DataError("the output folder is there already", file=final, remedy="delete it, or choose another --root")


def _write_split(file: Any, store: ZarrStore, progress: Progress) -> list[Moments]:
    """Write all trajectories; returns the moments of each one's static fields."""
    info, count = store.info, len(store)
    file.attrs.update(
        dataset_name=info.name, grid_type="cartesian", n_spatial_dims=len(info.axes), n_trajectories=count
    )
    # Parameters are scalars of each trajectory; those attributes would be one value for the whole file.
    file.attrs["simulation_parameters"] = h5py.Empty("S1")
    file.attrs.update(equation=info.equation, source=info.source, licence=info.licence)
    _write_boundaries(file, info)
    arrays = dict(_create_fields(file, info, count))
    scalars = file.create_group("scalars")
    scalars.attrs["field_names"] = list(info.parameters) or h5py.Empty("S1")
    for name in info.parameters:
        scalars.create_dataset(name, (count,), "f8").attrs.update(sample_varying=True, time_varying=False)
    times, fixed = [], []
    for number in range(count):
        one = store.trajectory(number)
        times.append(one.times)
        static = _static(one)
        fixed += [] if static is None else [measure(static[None])]
        for group, array in arrays.items():
            array[number] = _components(group, one, info)
        for name in info.parameters:
            scalars[name][number] = one.parameters[name]
        progress.advance()
    _write_dimensions(file, info, np.array(times))
    return fixed


def _create_fields(file: Any, info: DatasetInfo, count: int) -> Iterator[tuple[tuple[Group, bool], Any]]:
    """The empty arrays of all fields, by group and whether it changes in time."""
    members = [(group, True) for group in groups(info.channels, info.axes)]
    members += [(group, False) for group in groups(_static_names(info), info.axes)]
    for order in range(3):
        folder = file.create_group(f"t{order}_fields")
        mine = [(group, varies) for group, varies in members if group.order == order]
        folder.attrs["field_names"] = [group.name for group, _ in mine] or h5py.Empty("S1")
        for group, varies in mine:
            frame = (*info.space, *(len(info.axes),) * order)
            shape, chunk = ((info.frames, *frame), (1, 1, *frame)) if varies else (frame, (1, *frame))
            array = folder.create_dataset(group.name, (count, *shape), "f4", chunks=chunk)
            array.attrs.update(dim_varying=[True] * len(info.axes), sample_varying=True, time_varying=varies)
            if order == 2:
                array.attrs.update(symmetric=False, antisymmetric=False)
            yield (group, varies), array


def _components(member: tuple[Group, bool], one: Trajectory, info: DatasetInfo) -> Any:
    """The values of a field of one trajectory, components last, as The Well stores them."""
    group, varies = member
    values: Any = one.fields if varies else _static(one)
    picked = values[..., list(group.channels)]
    return picked.reshape(*picked.shape[:-1], *(len(info.axes),) * group.order)


def _static_names(info: DatasetInfo) -> tuple[str, ...]:
    return (*info.static_channels, MASK) if info.masked else info.static_channels


def _static(one: Trajectory) -> FloatArray | None:
    """The static fields (*space, S), the mask as the last of them; None where there is neither."""
    parts = [] if one.static is None else [one.static]
    parts += [] if one.mask is None else [one.mask[..., None].astype(np.float32)]
    return np.concatenate(parts, axis=-1) if parts else None


def _write_boundaries(file: Any, info: DatasetInfo) -> None:
    folder = file.create_group("boundary_conditions")
    for axis, size, kind in zip(info.axes, info.space, info.boundaries, strict=True):
        one = folder.create_group(f"{axis}_{kind}")
        one.attrs["associated_dims"] = [axis]
        one.attrs["associated_fields"] = h5py.Empty("S1")
        one.attrs.update(bc_type=kind.upper(), sample_varying=False, time_varying=False)
        one["mask"] = np.isin(np.arange(size), (0, size - 1))


def _write_dimensions(file: Any, info: DatasetInfo, times: Any) -> None:
    folder = file.create_group("dimensions")
    folder.attrs["spatial_dims"] = list(info.axes)
    shared = bool((times == times[0]).all())
    time = folder.create_dataset("time", data=times[0] if shared else times)
    time.attrs["sample_varying"] = not shared
    for axis, points in zip(info.axes, grid(info), strict=True):
        folder.create_dataset(axis, data=points).attrs.update(sample_varying=False, time_varying=False)


def _statistics(info: DatasetInfo, figures: Statistics, fixed: list[Moments]) -> dict[str, dict[str, Any]]:
    """Figures by field, a number for a scalar, (nested) lists for vectors and tensors; static fields do not change."""
    content: dict[str, dict[str, Any]] = {}
    static = statistics([moments.model_dump(mode="json") for moments in fixed]) if fixed else None
    for title, attribute in _STATISTICS.items():
        values = getattr(figures, attribute)
        content[title] = _by_field(values, info.channels, info) if values else {}  # stores of format 1 lack some
        if static is not None:
            content[title] |= _by_field(getattr(static, attribute), _static_names(info), info)
    return content


def _by_field(values: Sequence[float], names: Sequence[str], info: DatasetInfo) -> dict[str, Any]:
    return {
        group.name: np.array(values)[list(group.channels)].reshape((len(info.axes),) * group.order).tolist()
        for group in groups(names, info.axes)
    }
