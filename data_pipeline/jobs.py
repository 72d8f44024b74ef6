"""The discipline of every long job that writes a dataset: plan -> tasks -> verify -> commit.

Plan: what the data depend on, as JSON. A finished dataset of the same plan is left alone, one of another plan refused.
Tasks: each writes files of its own and gives a receipt with their sizes and SHA-256, taken as the bytes were written;
    receipts are kept durably, and a later run of the same plan continues from there.
Verify: every file that a receipt names is there with its size, and nothing else is. The bytes are compared when they
    are read: each frame has a checksum, and `pdepot data validate` compares all with the SHA-256 in the manifest.
Commit: the manifest comes last, and makes the whole dataset visible in one step.
"""

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.base.errors import DataError
from data_pipeline.base.files import digest, disk_errors
from data_pipeline.base.progress import Progress
from data_pipeline.base.remote import RemoteFolder, as_location
from data_pipeline.destination import Destination, FolderDestination
from data_pipeline.receipts import Prepare, Receipt, ShardTask, Work, shard_tasks
from data_pipeline.remote_destination import RemoteDestination
from data_pipeline.stores.manifest import FileRecord, Manifest, SplitName, SplitRecord, code_version, record_file
from data_pipeline.workers import Needs, ray_session, run_tasks

__all__ = ["Job", "Receipt", "ShardTask", "run", "shard_tasks"]


@dataclass(frozen=True)
class Job:
    """A dataset to write.

    Attributes:
        final: the dataset's folder, or its URL.
        plan: JSON-able; whatever the data depend on. Equal plans give equal data.
        tasks: the shards, in order.
        prepare: makes the empty dataset in a folder; may run in a worker.
        work: writes one shard, durably, into a folder that `prepare` made; runs in a worker; returns what it wrote
            and one entry a trajectory for `finish`.
        finish: writes what needs all receipts (given in the order of the tasks) into a folder that `prepare` made and
            that need not hold the shards; returns the manifest's contents and the files that no task wrote.
        bytes_needed: size of the whole dataset.
        bytes_per_task: memory that a task holds at its peak.
        gpus_per_task: GPUs that a task has to itself.
    """

    final: Path | str | RemoteFolder
    plan: dict[str, Any]
    tasks: tuple[ShardTask, ...]
    prepare: Prepare
    work: Work
    finish: Callable[[Path, list[Receipt]], tuple[dict[str, Any], list[str]]]
    bytes_needed: int
    bytes_per_task: int
    gpus_per_task: int = 0


def run(job: Job, *, ray_address: str | None = None, max_in_flight: int | None = None) -> Path | str:
    """Write the dataset, continue an interrupted run, or find it finished; returns its folder, or its URL.

    Raises:
        DataError: a dataset of another plan is there; a task failed for good; the disk is too small, or failed; an
            object store failed, or another process writes this very dataset there.
    """
    final = as_location(str(job.final))
    destination: Destination
    destination = FolderDestination(final) if isinstance(final, Path) else RemoteDestination(RemoteFolder(final))
    with disk_errors():
        if destination.idle() and _is_committed(job, destination):
            return final
        with destination.held():
            # Another process may have finished it while this one waited.
            if not _is_committed(job, destination):
                _write(job, destination, ray_address, max_in_flight)
            destination.clean()
    return final


def _is_committed(job: Job, destination: Destination) -> bool:
    found = destination.committed()
    if found is None:
        return False
    if found.plan_digest != digest(job.plan):
        raise DataError(
            "a dataset that was made from something else is there already",
            file=str(job.final),
            found="\n       ".join(_differences(found.plan, json.loads(json.dumps(job.plan)))),
            remedy="delete that folder, or choose another output folder",
        )
    destination.check(found)
    print(f"{job.final}: up to date, nothing to do", flush=True)
    return True


def _differences(old: Any, new: Any, key: str = "") -> list[str]:
    """The leaves in which two JSON values differ, as readable lines."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [line for k in keys for line in _differences(old.get(k), new.get(k), f"{key}.{k}" if key else k)]
    return [] if old == new else [f"{key}: {_short(old)} there, {_short(new)} asked for"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _write(job: Job, destination: Destination, ray_address: str | None, max_in_flight: int | None) -> None:
    receipts = destination.resume(digest(job.plan), job.prepare, {task.name for task in job.tasks})
    largest_task = _largest_task(job)
    done = sum(file.size for receipt in receipts.values() for file in receipt.files.values())
    destination.check_space(job.bytes_needed - done, largest_task)
    remaining = [task for task in job.tasks if task.name not in receipts]
    if remaining:
        if receipts:
            print(f"{job.final}: continuing, {len(receipts)} of {len(job.tasks)} shards are done", flush=True)
        name = str(job.final).rpartition("/")[2]
        with (
            ray_session(ray_address),
            Progress(name, len(job.tasks), initial=len(receipts), unit="shards") as progress,
        ):
            task = destination.task(job.prepare, job.work, largest_task)
            needs = Needs(memory=job.bytes_per_task, gpus=job.gpus_per_task)
            results = run_tasks(task, remaining, needs, max_in_flight=max_in_flight)
            with closing(results):
                for receipt in results:
                    destination.record(receipt)
                    receipts[receipt.task] = receipt
                    progress.advance()
    _commit(job, destination, [receipts[task.name] for task in job.tasks])


def _largest_task(job: Job) -> int:
    """Bytes of the largest shard."""
    trajectories = sum(task.stop - task.start for task in job.tasks)
    return max((task.stop - task.start for task in job.tasks), default=0) * job.bytes_needed // max(trajectories, 1)


def _commit(job: Job, destination: Destination, receipts: list[Receipt]) -> None:
    """Verify what the tasks wrote, describe it, and make it visible."""
    contents, own = job.finish(destination.folder, receipts)
    files = {name: record for receipt in receipts for name, record in receipt.files.items()}
    files |= {name: record_file(destination.folder / name) for name in own}
    destination.settle(files, set(own))
    destination.publish(_manifest(job, files, contents))


def _manifest(job: Job, files: dict[str, FileRecord], contents: dict[str, Any]) -> Manifest:
    counts: dict[SplitName, int] = {}
    for task in job.tasks:
        counts[task.split] = counts.get(task.split, 0) + task.stop - task.start  # type: ignore[index, call-overload]
    by_split = {
        split: SplitRecord(
            trajectories=count,
            files={n: r for n, r in files.items() if n.startswith((f"{split}/", f"{split}-", f"{split}."))},
        )
        for split, count in counts.items()
    }
    shared = {n: r for n, r in files.items() if not any(n in split.files for split in by_split.values())}
    return Manifest(
        splits=by_split,
        files=shared,
        plan=job.plan,
        plan_digest=digest(job.plan),
        code_version=code_version(),
        **contents,
    )
