"""Writes the canonical store: its groups and arrays, and then its shards, one trajectory in memory at a time.

zarr-python writes the metadata and the coordinates, a few small files. The data are written by `zarr_shard`: several
times as fast, and with no more than one trajectory in memory.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from data_pipeline.base.files import replace_file
from data_pipeline.stores.manifest import FileRecord, record_file
from data_pipeline.stores.zarr_layout import array_file, arrays, origin_text, provenance_file
from data_pipeline.stores.zarr_shard import ShardWriter, new_shard, write_chunk
from data_pipeline.trajectory import DatasetInfo, Trajectory, grid


def create(
    folder: Path, info: DatasetInfo, splits: Mapping[str, int], per_shard: int, provenance: Mapping[str, Any]
) -> None:
    """Make the groups, the arrays without data, and the coordinates; `per_shard` trajectories share a file."""
    zarr.create_group(folder, attributes={"dataset": info.model_dump(mode="json"), "provenance": dict(provenance)})
    for split, count in splits.items():
        zarr.create_group(folder, path=split, attributes={**_physics(info), "provenance": dict(provenance)})
        for name, spec in arrays(info).items():
            whole = (per_shard, *spec.shape)
            inner = (1, *spec.shape[1:]) if name == "fields" else spec.shape
            zarr.create_array(
                folder,
                name=f"{split}/{name}",
                shape=(count, *spec.shape),
                dtype=spec.dtype,
                chunks=(1, *inner) if spec.chunks else whole,
                shards=whole if spec.chunks else None,
                compressors=[Crc32cCodec()],
                fill_value=False if spec.dtype == "bool" else float("nan"),
                dimension_names=("trajectory", *spec.names),
                attributes=spec.attributes,
            )
        for axis, points in zip(info.axes, grid(info), strict=True):
            coordinate = zarr.create_array(
                folder,
                name=f"{split}/{axis}",
                shape=points.shape,
                dtype="float64",
                chunks=points.shape,
                compressors=[Crc32cCodec()],
                fill_value=float("nan"),
                dimension_names=(axis,),
            )
            coordinate[...] = points


def _physics(info: DatasetInfo) -> dict[str, Any]:
    """What a reader of one split wants to know; xarray shows it as the attributes of the data."""
    known = info.model_dump(
        mode="json",
        include={"name", "equation", "channels", "static_channels", "parameters", "axes", "extent", "boundaries",
                 "dt", "source", "licence"},
    )  # fmt: skip
    return {key: value for key, value in known.items() if value not in ("", [])}


def own_files(info: DatasetInfo, splits: Iterable[str]) -> list[str]:
    """Names of the files that `create` writes."""
    names = ["zarr.json"]
    for split in splits:
        names += [f"{split}/zarr.json", *(f"{split}/{name}/zarr.json" for name in [*arrays(info), *info.axes])]
        names += [f"{split}/{axis}/c/0" for axis in info.axes]
    return names


def write_shard(
    folder: Path, info: DatasetInfo, split: str, shard: int, per_shard: int, trajectories: Iterable[Trajectory]
) -> dict[str, FileRecord]:
    """Write one shard of each array, durably.

    Args:
        folder: the store.
        info: its dataset.
        split: name of the split.
        shard: number of the shard.
        per_shard: trajectories for which each file has room.
        trajectories: those of the shard, in order; one is held at a time.

    Returns:
        The files' records by their paths relative to the store.
    """
    specs, records = arrays(info), dict[str, FileRecord]()
    names = {name: array_file(split, name, shard, len(spec.shape)) for name, spec in specs.items()}
    rows: dict[str, list[Any]] = {name: [] for name, spec in specs.items() if not spec.chunks}
    origins = []
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(new_shard(folder / names[name], per_shard * spec.chunks, records, names[name]))
            for name, spec in specs.items()
            if spec.chunks
        }
        for trajectory in trajectories:
            for name, writer in writers.items():
                _append(writer, trajectory, name, specs[name].dtype)
            for name, values in rows.items():
                values.append(_row(trajectory, name, info))
            origins.append(_origin_line(trajectory))
            del trajectory  # or it would be held while the next one is made
    for name, values in rows.items():
        chunk = np.full((per_shard, *specs[name].shape), np.nan, "<f8")
        chunk[: len(values)] = values
        records[names[name]] = write_chunk(folder / names[name], chunk)
    name = provenance_file(split, shard)
    with replace_file(folder / name, unseen=True) as file:
        file.write("".join(origins).encode())
    records[name] = record_file(folder / name)
    return records


def _append(writer: ShardWriter, trajectory: Trajectory, name: str, dtype: str) -> None:
    values = np.asarray(getattr(trajectory, name), np.dtype(dtype).newbyteorder("<"))
    writer.append(values if name == "fields" else values[None])


def _row(trajectory: Trajectory, name: str, info: DatasetInfo) -> list[float]:
    if name == "time":
        times: list[float] = trajectory.times.tolist()
        return times
    return [trajectory.parameters[parameter] for parameter in info.parameters]


def _origin_line(trajectory: Trajectory) -> str:
    """Where a trajectory came from, as a line of JSON with a checksum: it is read without the rest of its file."""
    origin = {k: v.item() if isinstance(v, np.generic) else v for k, v in trajectory.provenance.items()}
    content = origin_text(origin)
    return json.dumps({"crc32c": google_crc32c.value(content), "provenance": origin}) + "\n"
