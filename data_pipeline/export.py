"""Export a Zarr store to WebDataset shards for training, with Ray."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import fsum, prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline import jobs
from data_pipeline.base.errors import DataError
from data_pipeline.base.files import digest
from data_pipeline.base.remote import is_url
from data_pipeline.build import trajectory_bytes
from data_pipeline.config import ExportConfig
from data_pipeline.jobs import Job, Receipt, ShardTask
from data_pipeline.resample import resample_trajectory, resampled_info
from data_pipeline.stores import open_store, read_manifest
from data_pipeline.stores.manifest import FORMAT_VERSION, FileRecord, Manifest
from data_pipeline.stores.protocol import Statistics
from data_pipeline.stores.shard_index import index_name, write_index
from data_pipeline.stores.shard_writer import write_shard
from data_pipeline.stores.shards import shard_name
from data_pipeline.stores.statistics import measure, statistics
from data_pipeline.stores.zarr_store import ZarrStore
from data_pipeline.trajectory import DatasetInfo, FloatArray, Trajectory

_TAR_MEMBER = 1024  # header of a member, and what fills it up
_COPIES_IN_MEMORY = 4  # trajectory as read, resampled, converted, and one of them in float64


def export_shards(
    store: Path | str,
    output: Path | str,
    config: ExportConfig,
    *,
    ray_address: str | None = None,
    max_in_flight: int | None = None,
) -> Path | str:
    """Export a Zarr store to `<output>/<name>.shards`; a second run does nothing, an interrupted one continues.

    Args:
        store: folder or URL of a committed Zarr store.
        output: folder or URL of a folder in which the folder of shards is made.
        config: how the shards are cut, their grid and their dtype.
        ray_address: a running Ray cluster that shares both folders; by default a local session.
        max_in_flight: shards at work at once; by default two for each CPU.

    Returns:
        The folder of the shards, or its URL.

    Raises:
        ConfigError: the fields cannot be resampled in this way.
        DataError: the store is missing, damaged or of another kind; a value does not fit into float16; other shards
            are there already; the disk is too small.
    """
    store, output = _absolute(store), _absolute(output)
    source = read_manifest(store)
    if source.kind != "zarr":
        raise DataError("not a Zarr store", file=store, found=source.kind, remedy="give the folder <name>.zarr")
    info = source.info
    if config.resolution is not None:
        info = resampled_info(info, config.resolution, config.resampling)
    counts = {str(split): record.trajectories for split, record in source.splits.items()}
    for split in counts:
        open_store(store, split).close()  # a damaged store is named before any work
    job = Job(
        final=f"{output}/{source.info.name}.shards",
        plan={"format": FORMAT_VERSION, "canonical": source.digest, "config": config.model_dump(mode="json")},
        tasks=jobs.shard_tasks(counts, config.trajectories_per_shard),
        prepare=_prepare,
        work=partial(_write_shard, _Source(store, source.digest, source.plan_digest), config),
        finish=partial(_finish, source, info, config),
        bytes_needed=sum(counts.values()) * exported_bytes(info, config.dtype),
        bytes_per_task=_COPIES_IN_MEMORY * max(trajectory_bytes(source.info), trajectory_bytes(info)),
    )
    return jobs.run(job, ray_address=ray_address, max_in_flight=max_in_flight)


def _absolute(location: Path | str) -> Path | str:
    return str(location).rstrip("/") if is_url(location) else Path(location).resolve()


def exported_bytes(info: DatasetInfo, dtype: str) -> int:
    """Bytes of one trajectory in its shard and in the index, nearly."""
    members = 2 + bool(info.static_channels) + info.masked
    described = 32 * info.frames  # its times as text, and its record
    return trajectory_bytes(info, np.dtype(dtype).itemsize) + members * _TAR_MEMBER + described


def _prepare(folder: Path) -> None:
    folder.mkdir()


@dataclass(frozen=True)
class _Source:
    """The store to export, small enough to travel: its manifest, which may name a hundred thousand files, does not."""

    location: Path | str
    digest: str
    plan_digest: str
    """Equal data may be cut differently after a new build."""


@lru_cache(maxsize=4)
def _open(source: _Source, split: str) -> ZarrStore:
    """Opened once in each worker process."""
    reader = open_store(source.location, split)
    if reader.digest != source.digest or not isinstance(reader, ZarrStore):
        raise DataError("the store was changed while it was exported", file=source.location, remedy="export it again")
    return reader


def _write_shard(
    source: _Source, config: ExportConfig, folder: Path, task: ShardTask
) -> tuple[dict[str, FileRecord], list[dict[str, Any]]]:
    """In a worker: read the trajectories of one shard, resample and convert them, and write them to a tar."""
    reader = _open(source, task.split)
    figures: list[dict[str, Any]] = []

    def converted() -> Iterator[Trajectory]:
        for number in range(task.start, task.stop):
            trajectory = reader.trajectory(number)
            moments = None
            if config.resolution is not None:
                trajectory = resample_trajectory(trajectory, config.resolution, config.resampling)
                moments = measure(trajectory.fields, trajectory.mask).model_dump(mode="json")
            key = f"{reader.info.name}, split {task.split}, trajectory {number}"
            fields = convert(trajectory.fields, config.dtype, key)
            figures.append({"squared_error": _squared_error(trajectory.fields, fields), "moments": moments})
            yield replace(trajectory, fields=fields)

    name = shard_name(task.split, task.shard)
    record, entries = write_shard(folder / name, f"{reader.info.name}-{task.split}", task.start, converted())
    return {name: record}, [entry | figure for entry, figure in zip(entries, figures, strict=True)]


def convert(fields: FloatArray, dtype: str, key: str) -> FloatArray:
    """`fields` in `dtype`. Raises DataError when a value is beyond the range of float16."""
    with np.errstate(over="ignore"):
        converted = fields.astype(np.dtype(dtype).newbyteorder("<"), copy=False)
    if converted.dtype != fields.dtype and not np.isfinite(converted).all():
        raise DataError(
            "a value does not fit into float16",
            key=key,
            found=float(np.abs(fields).max()),
            expected=f"at most {np.finfo(np.float16).max}",
            remedy="export with dtype float32",
        )
    return converted


def _squared_error(original: FloatArray, converted: FloatArray) -> list[float]:
    """Sum of the squared error of each channel."""
    if converted.dtype == original.dtype:
        return [0.0] * original.shape[-1]
    error = original.astype(np.float64) - converted
    squares: list[float] = np.square(error).reshape(-1, error.shape[-1]).sum(axis=0).tolist()
    return squares


def _finish(
    source: Manifest, info: DatasetInfo, config: ExportConfig, folder: Path, receipts: list[Receipt]
) -> tuple[dict[str, Any], list[str]]:
    """Write the indices; the measured error and the statistics on the new grid go into the manifest."""
    by_split: dict[str, list[tuple[int, list[dict[str, Any]]]]] = {}
    for receipt in receipts:
        split, _, shard = receipt.task.partition("-")
        by_split.setdefault(split, []).append((int(shard), receipt.result))
    for split, of_split in by_split.items():
        count = sum(len(entries) for _, entries in of_split)
        numbered = ((shard, entry) for shard, entries in of_split for entry in entries)
        write_index(folder / index_name(split), info, count, numbered)
    described = [entry for _, entries in by_split[source.statistics_split] for entry in entries]
    figures = source.statistics if config.resolution is None else statistics([e["moments"] for e in described])
    contents = {
        "kind": "shards",
        "info": info,
        "digest": _digest(source, config),
        "canonical": source.digest,
        "statistics": figures,
        "statistics_split": source.statistics_split,
        "generation": source.generation,
        "dtype": config.dtype,
        "rounding_error": _rounding_error(info, figures, receipts),
        "resampling": config.resampling,
        "canonical_space": () if config.resolution is None else source.info.space,
    }
    return contents, [index_name(split) for split in by_split]


def _digest(source: Manifest, config: ExportConfig) -> str:
    """Float32 shards on the store's grid hold the very same numbers as the store, so they are the same data."""
    changes: list[Any] = [] if config.dtype == "float32" else [config.dtype]
    if config.resolution is not None:
        changes += [config.resampling, *config.resolution]
    return digest([source.digest, *changes]) if changes else source.digest


def _rounding_error(info: DatasetInfo, figures: Statistics, receipts: list[Receipt]) -> tuple[float, ...]:
    """RMS error of each channel over all trajectories, relative to the channel's standard deviation."""
    squares = [entry["squared_error"] for receipt in receipts for entry in receipt.result]
    count = len(squares) * info.frames * prod(info.space)
    scale = [std or rms or 1.0 for std, rms in zip(figures.std, figures.rms, strict=True)]
    return tuple(sqrt(fsum(row[c] for row in squares) / count) / scale[c] for c in range(len(scale)))
