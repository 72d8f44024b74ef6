"""What a task of a build is, and the receipt that it gives for the shard that it wrote."""

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.base.config import Config
from data_pipeline.stores.manifest import FileRecord


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


Prepare = Callable[[Path], None]
Work = Callable[[Path, ShardTask], tuple[dict[str, FileRecord], list[dict[str, Any]]]]


def shard_tasks(splits: Mapping[str, int], per_shard: int) -> tuple[ShardTask, ...]:
    """Cut each split into shards of `per_shard` trajectories; the last one may be shorter."""
    return tuple(
        ShardTask(split, shard, start, min(start + per_shard, count))
        for split, count in splits.items()
        for shard, start in enumerate(range(0, count, per_shard))
    )


def write_shard(work: Work, folder: Path, task: ShardTask) -> Receipt:
    """In a worker: write a shard into `folder`, and see that what is there is what was written."""
    files, result = work(folder, task)
    for name, record in files.items():
        if (size := (folder / name).stat().st_size) != record.size:
            raise OSError(errno.EIO, f"{size} bytes are there, {record.size} were written", str(folder / name))
    return Receipt(task=task.name, files=files, result=result)


def readable_receipt(content: bytes, tasks: set[str], sizes: Mapping[str, int]) -> Receipt | None:
    """The receipt that a killed run left, if it is whole, belongs to one of `tasks`, and its files are as recorded.

    Args:
        content: JSON of the receipt.
        tasks: names of the tasks.
        sizes: bytes of each file that is there.
    """
    try:
        receipt = Receipt.model_validate_json(content)
    except ValueError:  # cut short by a crash: that shard is written again
        return None
    whole = all(sizes.get(name) == record.size for name, record in receipt.files.items())
    return receipt if receipt.task in tasks and whole else None
