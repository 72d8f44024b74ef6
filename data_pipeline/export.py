"""Export a Zarr store to WebDataset shards for training, with Ray."""

from dataclasses import replace
from functools import partial
from math import fsum, prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline import jobs
from data_pipeline.base.errors import DataError
from data_pipeline.base.files import digest
from data_pipeline.build import trajectory_bytes
from data_pipeline.config import ExportConfig
from data_pipeline.jobs import Job, Receipt, ShardTask
from data_pipeline.stores import shards
from data_pipeline.stores.manifest import FORMAT_VERSION, Manifest, check_split, read_manifest
from data_pipeline.stores.zarr_store import ZarrStore
from data_pipeline.trajectory import FloatArray

TAR_OVERHEAD = 4096  # headers and padding of one trajectory's members
_COPIES_IN_MEMORY = 4  # trajectory as read, converted, as .npy bytes, in the tar writer's buffer


def export_shards(
    store: Path,
    output: Path,
    config: ExportConfig,
    *,
    ray_address: str | None = None,
    max_in_flight: int | None = None,
) -> Path:
    """Export a Zarr store to `<output>/<name>.shards`; a second run does nothing, an interrupted one continues.

    Args:
        store: folder of a committed Zarr store.
        output: folder in which the folder of shards is made.
        config: how the shards are cut, and their dtype.
        ray_address: a running Ray cluster that shares both folders; by default a local session.
        max_in_flight: shards at work at once; by default two for each CPU.

    Returns:
        The folder of the shards.

    Raises:
        DataError: the store is missing, damaged or of another kind; a value does not fit into float16; other shards
            are there already; the disk is too small.
    """
    store, output = store.resolve(), output.resolve()
    source = read_manifest(store)
    if source.kind != "zarr":
        raise DataError("not a Zarr store", file=store, found=source.kind, remedy="give the folder <name>.zarr")
    for split in source.splits:
        check_split(store, source, split)
    plan = {"format": FORMAT_VERSION, "canonical": source.digest, "config": config.model_dump(mode="json")}
    counts = {str(split): record.trajectories for split, record in source.splits.items()}
    itemsize = np.dtype(config.dtype).itemsize
    job = Job(
        final=output / f"{source.info.name}.shards",
        plan=plan,
        tasks=jobs.shard_tasks(counts, config.trajectories_per_shard),
        prepare=_prepare,
        work=partial(_write_shard, store, source, config.dtype),
        finish=partial(_finish, source, config.dtype),
        bytes_needed=sum(counts.values()) * (trajectory_bytes(source.info, itemsize) + TAR_OVERHEAD),
        bytes_per_task=_COPIES_IN_MEMORY * trajectory_bytes(source.info),
    )
    return jobs.run(job, ray_address=ray_address, max_in_flight=max_in_flight)


def _prepare(folder: Path) -> None:
    folder.mkdir()


def _write_shard(
    store: Path, source: Manifest, dtype: str, folder: Path, task: ShardTask
) -> tuple[list[str], list[dict[str, Any]]]:
    """In a worker: read the trajectories of one shard, convert them, and write them to a tar."""
    reader = ZarrStore(store, source, task.split)
    errors = []

    def converted() -> Any:
        for number in range(task.start, task.stop):
            trajectory = reader.trajectory(number)
            fields = convert(trajectory.fields, dtype, f"{source.info.name}, split {task.split}, trajectory {number}")
            errors.append(_squared_error(trajectory.fields, fields))
            yield replace(trajectory, fields=fields)

    name = shards.shard_name(task.split, task.shard)
    entries = shards.write_shard(folder / name, f"{source.info.name}-{task.split}", task.start, converted())
    return [name], [{**entry, "squared_error": error} for entry, error in zip(entries, errors, strict=True)]


def convert(fields: FloatArray, dtype: str, key: str) -> FloatArray:
    """`fields` in `dtype`. Raises DataError when a value is beyond the range of float16."""
    with np.errstate(over="ignore"):
        converted = fields.astype(np.dtype(dtype).newbyteorder("<"))
    if not np.isfinite(converted).all():
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
    error = original.astype(np.float64) - converted
    squares: list[float] = np.square(error).reshape(-1, error.shape[-1]).sum(axis=0).tolist()
    return squares


def _finish(source: Manifest, dtype: str, folder: Path, receipts: list[Receipt]) -> tuple[dict[str, Any], list[str]]:
    """Write the indices; the measured error goes into the manifest."""
    by_split: dict[str, list[tuple[int, list[dict[str, Any]]]]] = {}
    for receipt in receipts:
        split, _, shard = receipt.task.partition("-")
        by_split.setdefault(split, []).append((int(shard), receipt.result))
    for split, entries in by_split.items():
        shards.write_index(folder / shards.index_name(split), source.info, entries)
    contents = {
        "kind": "shards",
        "info": source.info,
        # Float32 shards hold the very same numbers as the store, so they are the same data.
        "digest": source.digest if dtype == "float32" else digest([source.digest, dtype]),
        "canonical": source.digest,
        "statistics": source.statistics,
        "statistics_split": source.statistics_split,
        "dtype": dtype,
        "rounding_error": _rounding_error(source, receipts),
    }
    return contents, [shards.index_name(split) for split in by_split]


def _rounding_error(source: Manifest, receipts: list[Receipt]) -> tuple[float, ...]:
    """RMS error of each channel over all trajectories, relative to the channel's standard deviation."""
    squares = [entry["squared_error"] for receipt in receipts for entry in receipt.result]
    count = len(squares) * source.info.frames * prod(source.info.space)
    scale = [std or rms or 1.0 for std, rms in zip(source.statistics.std, source.statistics.rms, strict=True)]
    return tuple(sqrt(fsum(row[c] for row in squares) / count) / scale[c] for c in range(len(scale)))
