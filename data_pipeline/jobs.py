"""The discipline of every long job that writes a dataset: plan -> tasks -> verify -> commit.

Work goes on in `.<name>.partial/` under a lock. Each task writes files of its own and gives a receipt, which joins an
append-only journal; a later run of the same plan continues from there. The manifest comes last, then one rename makes
the whole dataset visible. A finished dataset is left alone.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data_pipeline.base.config import Config
from data_pipeline.base.errors import DataError
from data_pipeline.base.files import (
    digest,
    exclusive,
    fsync_directory,
    publish_directory,
    read_json,
    remove_tree,
    write_bytes,
    write_json,
)
from data_pipeline.base.progress import Progress
from data_pipeline.stores.manifest import (
    MANIFEST,
    FileRecord,
    Manifest,
    SplitName,
    SplitRecord,
    check_split,
    code_version,
    read_manifest,
    record_file,
    write_manifest,
)
from data_pipeline.workers import ray_session, run_tasks


@dataclass(frozen=True)
class ShardTask:
    """One shard to write: trajectories start .. stop of a split."""

    split: str
    shard: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Name of the task in the journal."""
        return f"{self.split}-{self.shard:06d}"


class Receipt(Config):
    """What a finished task hands back: its files, and figures for the manifest."""

    task: str
    files: dict[str, FileRecord]
    result: list[dict[str, Any]]
    """One entry a trajectory; JSON."""


Work = Callable[[Path, ShardTask], tuple[list[str], list[dict[str, Any]]]]


@dataclass(frozen=True)
class Job:
    """A dataset to write.

    Attributes:
        final: the dataset's folder.
        plan: JSON-able; whatever the data depend on. Equal plans give equal data.
        tasks: the shards, in order.
        prepare: makes the empty dataset in a folder.
        work: writes one shard; runs in a worker; returns its files and one entry a trajectory for `finish`.
        finish: writes what needs all receipts (given in the order of the tasks); returns the manifest's contents
            and the files that no task wrote.
        bytes_needed: size of the whole dataset.
        bytes_per_task: memory that a task holds at its peak.
    """

    final: Path
    plan: dict[str, Any]
    tasks: tuple[ShardTask, ...]
    prepare: Callable[[Path], None]
    work: Work
    finish: Callable[[Path, list[Receipt]], tuple[dict[str, Any], list[str]]]
    bytes_needed: int
    bytes_per_task: int


def shard_tasks(splits: Mapping[str, int], per_shard: int) -> tuple[ShardTask, ...]:
    """Cut each split into shards of `per_shard` trajectories; the last one may be shorter."""
    return tuple(
        ShardTask(split, shard, start, min(start + per_shard, count))
        for split, count in splits.items()
        for shard, start in enumerate(range(0, count, per_shard))
    )


def run(job: Job, *, ray_address: str | None = None, max_in_flight: int | None = None) -> Path:
    """Write the dataset, continue an interrupted run, or find it finished; returns its folder.

    Raises:
        DataError: a dataset of another plan is there; a task failed for good; the disk is too small.
    """
    work_folder = _sibling(job.final, "partial")
    if not work_folder.exists() and _is_committed(job):
        return job.final
    with exclusive(_sibling(job.final, "lock"), wait=True, what=str(job.final)):
        # Another process may have finished it while this one waited.
        if not _is_committed(job):
            _write(job, work_folder, ray_address, max_in_flight)
        remove_tree(work_folder)
    return job.final


def _sibling(final: Path, suffix: str) -> Path:
    return final.with_name(f".{final.name}.{suffix}")


def _is_committed(job: Job) -> bool:
    if not job.final.exists():
        return False
    if not (job.final / MANIFEST).exists():
        raise DataError(
            "the output folder is there already, but it is not a finished dataset",
            file=job.final,
            remedy="delete that folder, or choose another output folder",
        )
    found = read_manifest(job.final)
    if found.plan_digest != digest(job.plan):
        raise DataError(
            "a dataset that was made from something else is there already",
            file=job.final,
            found="\n       ".join(_differences(found.plan, json.loads(json.dumps(job.plan)))),
            remedy="delete that folder, or choose another output folder",
        )
    for split in found.splits:
        check_split(job.final, found, split)
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


def _write(job: Job, work_folder: Path, ray_address: str | None, max_in_flight: int | None) -> None:
    receipts = _open_work_folder(job, work_folder)
    folder = work_folder / "data"
    _check_free_space(job, sum(file.size for receipt in receipts.values() for file in receipt.files.values()))
    remaining = [task for task in job.tasks if task.name not in receipts]
    if remaining:
        if receipts:
            print(f"{job.final}: continuing, {len(receipts)} of {len(job.tasks)} shards are done", flush=True)
        with (
            ray_session(ray_address),
            (work_folder / "journal.jsonl").open("ab") as journal,
            Progress(job.final.name, len(job.tasks), initial=len(receipts), unit="shards") as progress,
        ):
            task = partial(_run_task, job.work, folder)
            results = run_tasks(task, remaining, memory=job.bytes_per_task, max_in_flight=max_in_flight)
            with closing(results):
                for receipt in results:
                    journal.write(receipt.model_dump_json().encode() + b"\n")
                    journal.flush()
                    os.fsync(journal.fileno())
                    receipts[receipt.task] = receipt
                    progress.advance()
    manifest = _finish(job, folder, [receipts[task.name] for task in job.tasks])
    write_manifest(folder, manifest)
    publish_directory(folder, job.final)


def _open_work_folder(job: Job, work_folder: Path) -> dict[str, Receipt]:
    """Receipts of an interrupted run of the same plan; otherwise a fresh folder and none."""
    plan_file = work_folder / "plan.json"
    same = plan_file.exists() and read_json(plan_file) == digest(job.plan)
    if same and (work_folder / "data").exists():
        receipts = _read_journal(job, work_folder)
        # A line that a crash cut short would spoil the line appended after it.
        lines = [receipt.model_dump_json() + "\n" for receipt in receipts.values()]
        write_bytes(work_folder / "journal.jsonl", "".join(lines).encode())
        return receipts
    if plan_file.exists() and not same:
        print(f"{job.final}: removing what an interrupted run of another plan left behind", flush=True)
    remove_tree(work_folder)
    work_folder.mkdir(parents=True)
    job.prepare(work_folder / "data")
    write_json(plan_file, digest(job.plan))
    return {}


def _read_journal(job: Job, work_folder: Path) -> dict[str, Receipt]:
    """The receipts whose files are still as recorded."""
    journal = work_folder / "journal.jsonl"
    names = {task.name for task in job.tasks}
    receipts = {}
    for line in journal.read_bytes().splitlines() if journal.exists() else []:
        try:
            receipt = Receipt.model_validate_json(line)
        except ValueError:
            continue  # cut short by a crash: that shard is written again
        files = {work_folder / "data" / name: record for name, record in receipt.files.items()}
        if receipt.task in names and all(f.is_file() and f.stat().st_size == r.size for f, r in files.items()):
            receipts[receipt.task] = receipt
    return receipts


def _check_free_space(job: Job, done: int) -> None:
    free = shutil.disk_usage(job.final.parent).free
    needed = job.bytes_needed - done
    if needed > free:
        raise DataError(
            "the disk is too small for the dataset",
            file=job.final,
            found=f"{free / 2**30:.2f} GiB free",
            expected=f"{needed / 2**30:.2f} GiB",
            remedy="free some space, choose another output folder, or make the dataset smaller",
        )


def _run_task(work: Work, folder: Path, task: ShardTask) -> Receipt:
    """In a worker: write a shard, make it durable, describe it."""
    names, result = work(folder, task)
    for name in names:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
        fsync_directory((folder / name).parent)
    files = {name: record_file(folder / name) for name in names}
    return Receipt(task=task.name, files=files, result=result)


def _finish(job: Job, folder: Path, receipts: list[Receipt]) -> Manifest:
    """Check that every recorded file is there, sweep away what killed attempts left, and describe the dataset."""
    contents, own_files = job.finish(folder, receipts)
    files = {name: record for receipt in receipts for name, record in receipt.files.items()}
    files |= {name: record_file(folder / name) for name in own_files}
    for file in [path for path in folder.rglob("*") if path.is_file()]:
        if file.relative_to(folder).as_posix() not in files:
            file.unlink()
    for name, record in files.items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != record.size:
            raise DataError("a finished shard has changed", file=folder / name, remedy="run the same command again")
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
