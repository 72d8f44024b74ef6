"""Build the canonical Zarr store of a dataset from its source, with Ray."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline import jobs
from data_pipeline.base.errors import DataError
from data_pipeline.base.files import digest
from data_pipeline.base.remote import is_url
from data_pipeline.config import SPLITS, DatasetConfig
from data_pipeline.jobs import Job, Receipt, ShardTask
from data_pipeline.sources.protocol import SolvingSource, Source, open_source
from data_pipeline.stores import zarr_writer
from data_pipeline.stores.generation import record, refined_in_shard, relative_errors
from data_pipeline.stores.manifest import FORMAT_VERSION, FileRecord
from data_pipeline.stores.statistics import measure, statistics
from data_pipeline.trajectory import DatasetInfo, Trajectory

_NO_MATTER: dict[str, Any] = {"export": True, "score": True, "convert": {"path"}, "generate": {"device", "compile"}}
"""Of a configuration, for the data: where raw files lie (the fingerprint tells which they are), what solves."""
_COPIES_IN_MEMORY = 4  # a trajectory as read, perhaps in float64, as assembled, and parts of it on the way to the file


def build_store(
    config: DatasetConfig, root: Path | str, *, ray_address: str | None = None, max_in_flight: int | None = None
) -> Path | str:
    """Write a dataset's store `<root>/<name>.zarr`; a second run does nothing, an interrupted one continues.

    Args:
        config: the dataset.
        root: folder of the store, or its URL.
        ray_address: a running Ray cluster that shares `root`; by default a local session.
        max_in_flight: shards at work at once; by default two for each CPU.

    Returns:
        The store's folder, or its URL.

    Raises:
        ConfigError, DataError: the source cannot be used, or a trajectory is not what the source says; a store made
            from something else is there already; the disk is too small.
    """
    config = _anywhere(config)
    root = str(root).rstrip("/") if is_url(root) else Path(root).resolve()
    source = open_source(config)
    splits: dict[str, int] = {split: source.splits[split] for split in SPLITS if source.splits.get(split)}
    if not splits:
        raise DataError("the source has no trajectories", key=config.name, remedy="give each split a number above 0")
    plan = {
        "format": FORMAT_VERSION,
        "config": config.model_dump(mode="json", exclude=_NO_MATTER),
        "source": source.fingerprint(),
    }
    per_shard = config.store.trajectories_per_shard
    # Files are read one trajectory at a time; a solver solves all of a shard together.
    at_once = min(per_shard, max(splits.values())) if config.generate is not None else 1
    job = Job(
        final=f"{root}/{config.name}.zarr",
        plan=plan,
        tasks=jobs.shard_tasks(splits, per_shard),
        prepare=partial(_prepare, source.info, splits, per_shard, plan),
        work=partial(_write_shard, config, digest(plan), _refined(config, splits)),
        finish=partial(_finish, source),
        bytes_needed=sum(splits.values()) * trajectory_bytes(source.info),
        bytes_per_task=_COPIES_IN_MEMORY * at_once * trajectory_bytes(source.info) + _working_bytes(source, at_once),
        gpus_per_task=int(config.generate is not None and config.generate.device == "cuda"),
    )
    return jobs.run(job, ray_address=ray_address, max_in_flight=max_in_flight)


def _anywhere(config: DatasetConfig) -> DatasetConfig:
    """The configuration with an absolute path: workers may run in another folder."""
    if config.convert is None:
        return config
    path = str(Path(config.convert.path).expanduser().resolve())
    return config.model_copy(update={"convert": config.convert.model_copy(update={"path": path})})


def trajectory_bytes(info: DatasetInfo, itemsize: int = 4) -> int:
    """Bytes of one stored trajectory, its static fields, mask and checksums included."""
    points = prod(info.space)
    values = info.frames * points * len(info.channels) + points * len(info.static_channels)
    return values * itemsize + points * info.masked + 32 * info.frames + 8 * len(info.parameters)


def _prepare(info: DatasetInfo, splits: dict[str, int], per_shard: int, plan: dict[str, Any], folder: Path) -> None:
    zarr_writer.create(folder, info, splits, per_shard, {"plan_digest": digest(plan), "source": info.source})


_opened: dict[tuple[str, str], Source] = {}


def _open(config: DatasetConfig, plan_digest: str) -> Source:
    """The source, opened once in each worker process: the headers of many files take their time."""
    key = (plan_digest, config.convert.path if config.convert else "")
    if key not in _opened:
        _opened.clear()
        _opened[key] = open_source(config)
    return _opened[key]


def _refined(config: DatasetConfig, splits: dict[str, int]) -> dict[str, int]:
    """How many trajectories of each shard, by the task's name, are solved a second time to estimate the error."""
    if config.generate is None:
        return {}
    tasks = jobs.shard_tasks(splits, config.store.trajectories_per_shard)
    first = [task for task in tasks if task.split == tasks[0].split]
    samples = config.generate.error_samples
    return {task.name: refined_in_shard(task.shard, len(first), samples, task.stop - task.start) for task in first}


def _working_bytes(source: Source, at_once: int) -> int:
    """What a solver holds beside the stored frames."""
    return source.working_bytes(at_once) if isinstance(source, SolvingSource) else 0


def _write_shard(
    config: DatasetConfig, plan_digest: str, refined: dict[str, int], folder: Path, task: ShardTask
) -> tuple[dict[str, FileRecord], list[dict[str, Any]]]:
    """In a worker: read, check, measure and write the trajectories of one shard, one at a time."""
    if config.generate is not None:  # only solvers use torch; importing it takes seconds
        import torch

        torch.set_num_threads(1)  # one task has one CPU
        torch.set_float32_matmul_precision("highest")  # some containers' environment allows TF32
    source = _open(config, plan_digest)
    described: list[dict[str, Any]] = []

    def wrong_count(found: object) -> DataError:
        where = f"{config.name}, split {task.split}, trajectories {task.start}..{task.stop}"
        return DataError(f"the source gave {found} trajectories", key=where, expected=task.stop - task.start)

    def checked() -> Iterator[Trajectory]:
        for trajectory in source.read(task.split, task.start, task.stop):
            if len(described) == task.stop - task.start:
                raise wrong_count(f"more than {len(described)}")
            key = f"{config.name}, split {task.split}, trajectory {task.start + len(described)}"
            check_trajectory(trajectory, source.info, key)
            described.append(_describe(trajectory, source.info))
            if isinstance(source, SolvingSource) and len(described) <= refined.get(task.name, 0):
                finer = source.refined(task.split, task.start + len(described) - 1)
                described[-1]["error"] = relative_errors(trajectory.fields, finer, trajectory.mask)
            yield trajectory
            del trajectory  # or it would be held while the next one is made
        if len(described) < task.stop - task.start:
            raise wrong_count(len(described))

    per_shard = config.store.trajectories_per_shard
    files = zarr_writer.write_shard(folder, source.info, task.split, task.shard, per_shard, checked())
    return files, described


def check_trajectory(trajectory: Trajectory, info: DatasetInfo, key: str) -> None:
    """Raise DataError when a trajectory is not what its dataset says, or holds NaN or Inf."""
    frame = (*info.space, len(info.channels))
    expected: dict[str, tuple[Any, tuple[int, ...]]] = {
        "fields": (trajectory.fields, (info.frames, *frame)),
        "times": (trajectory.times, (info.frames,)),
        "parameters": (np.array([*trajectory.parameters.values()], np.float64), (len(info.parameters),)),
    }
    if info.static_channels or trajectory.static is not None:
        expected["static"] = (trajectory.static, (*info.space, len(info.static_channels)))
    place: dict[str, Any] = {"file": trajectory.provenance.get("file")}
    for name, (values, shape) in expected.items():
        where = f"{key}, {name}"
        if values is None or values.shape != shape:
            raise DataError("wrong shape", key=where, found=getattr(values, "shape", None), expected=shape, **place)
        if values.size and not np.isfinite([values.min(), values.max()]).all():
            raise DataError("NaN or Inf in the data", key=where, expected="finite numbers", **place)
    if trajectory.fields.dtype != np.float32:
        raise DataError("wrong type", key=f"{key}, fields", found=trajectory.fields.dtype, expected="float32", **place)
    if not (np.diff(trajectory.times) > 0).all():
        raise DataError("times do not increase", key=f"{key}, times", found=trajectory.times, **place)
    if set(trajectory.parameters) != set(info.parameters):
        found = ", ".join(trajectory.parameters)
        raise DataError("wrong parameters", key=key, found=found, expected=", ".join(info.parameters), **place)
    _check_mask(trajectory, info, key, place)


def _check_mask(trajectory: Trajectory, info: DatasetInfo, key: str, place: dict[str, Any]) -> None:
    mask, where = trajectory.mask, f"{key}, mask"
    if (mask is not None) != info.masked:
        here, said = ("no mask" if mask is None else "a mask"), ("a mask" if info.masked else "no mask")
        raise DataError("the mask is not as the dataset says", key=where, found=here, expected=said, **place)
    if mask is None:
        return
    if mask.shape != info.space or mask.dtype != np.bool_:
        found = f"{mask.dtype} {mask.shape}"
        raise DataError("wrong mask", key=where, found=found, expected=f"bool {info.space}", **place)
    if not mask.any():
        raise DataError("no point belongs to the domain", key=where, found="a mask that is false everywhere", **place)


def _describe(trajectory: Trajectory, info: DatasetInfo) -> dict[str, Any]:
    content, whole = _data_digests(trajectory, info)
    return {
        "content": content,
        "digest": whole,
        "moments": measure(trajectory.fields, trajectory.mask).model_dump(mode="json"),
        "provenance": {k: v.item() if isinstance(v, np.generic) else v for k, v in trajectory.provenance.items()},
    }


def _data_digests(trajectory: Trajectory, info: DatasetInfo) -> tuple[str, str]:
    """Hex SHA-256 of a trajectory's fields and static fields, and of all its numbers, whatever files they lie in."""
    running = hashlib.sha256(np.ascontiguousarray(trajectory.fields, "<f4").data)
    if trajectory.static is not None:
        running.update(np.ascontiguousarray(trajectory.static, "<f4").data)
    content = running.hexdigest()
    running.update(np.ascontiguousarray(trajectory.times, "<f8").data)
    running.update(np.array([trajectory.parameters[name] for name in info.parameters], "<f8").data)
    if trajectory.mask is not None:
        running.update(np.ascontiguousarray(trajectory.mask).data)
    return content, running.hexdigest()


def _finish(source: Source, folder: Path, receipts: list[Receipt]) -> tuple[dict[str, Any], list[str]]:
    """Statistics, digest and the solver's record into the manifest."""
    info = source.info
    by_split: dict[str, list[dict[str, Any]]] = {}
    for receipt in receipts:
        by_split.setdefault(receipt.task.partition("-")[0], []).extend(receipt.result)
    _refuse_duplicates(info, by_split)
    described = next(split for split in SPLITS if split in by_split)
    figures = statistics([entry["moments"] for entry in by_split[described]])
    _note_constant_channels(info, figures.std)
    contents = {
        "kind": "zarr",
        "info": info,
        "digest": digest(
            {
                "info": info.model_dump(mode="json"),
                "data": {split: [e["digest"] for e in entries] for split, entries in by_split.items()},
            }
        ),
        "statistics": figures,
        "statistics_split": described,
        "generation": record(source.numerics(), described, by_split[described])
        if isinstance(source, SolvingSource)
        else None,
    }
    return contents, zarr_writer.own_files(info, by_split)


def _refuse_duplicates(info: DatasetInfo, by_split: dict[str, list[dict[str, Any]]]) -> None:
    """A trajectory that is there twice falsifies every score when one of the two is in the test split.

    Equal fields with equal static fields are one solution, whatever times and parameters are said to belong to it.
    """
    seen: dict[str, str] = {}
    for split, entries in by_split.items():
        for number, entry in enumerate(entries):
            here = f"{split} {number} {entry['provenance']}"
            if entry["content"] in seen:
                raise DataError(
                    "a trajectory is there twice, equal to the last bit",
                    key=info.name,
                    found=f"{seen[entry['content']]} and {here}",
                    remedy="remove one of the two from the raw data, and build again",
                )
            seen[entry["content"]] = here


def _note_constant_channels(info: DatasetInfo, std: Sequence[float]) -> None:
    constant = [name for name, value in zip(info.channels, std, strict=True) if value == 0]
    if constant:
        print(f"note: {info.name}: constant over all frames and points: {', '.join(constant)}", flush=True)
