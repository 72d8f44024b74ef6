"""A small dataset for tests of builds: real tasks and files, no solver. What goes wrong is up to the test."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from data_pipeline import jobs
from data_pipeline.base.files import replace_file, sha256_file, write_json
from data_pipeline.base.remote import RemoteFolder
from data_pipeline.jobs import Job, Receipt, ShardTask, shard_tasks
from data_pipeline.stores.manifest import FileRecord
from data_pipeline.stores.protocol import Statistics
from data_pipeline.trajectory import DatasetInfo

SHARD_BYTES = 4096
Trouble = Callable[[Path, ShardTask], None]

INFO = DatasetInfo(
    name="small",
    channels=("u",),
    space=(4,),
    frames=2,
    dt=0.1,
    axes=("x",),
    extent=((0, 1),),
    boundaries=("periodic",),
)
STATISTICS = Statistics(mean=(0,), std=(1,), rms=(1,), min=(0,), max=(1,), change_rms=(1,))


def no_trouble(file: Path, task: ShardTask) -> None:
    """What happens in the middle of writing a shard: nothing."""


def small_job(final: Path | str, trouble: Trouble = no_trouble, *, shards: int = 6, plan: str = "this") -> Job:
    return Job(
        final=final,
        plan={"content": plan},
        tasks=shard_tasks({"train": 2 * shards - 2, "test": 1}, 2),
        prepare=prepare,
        work=partial(write, trouble, plan),
        finish=finish,
        bytes_needed=(shards + 1) * SHARD_BYTES,
        bytes_per_task=2**20,
    )


def prepare(folder: Path) -> None:
    (folder / "train").mkdir(parents=True)
    write_json(folder / "about.json", {"name": "small"})


def write(
    trouble: Trouble, plan: str, folder: Path, task: ShardTask
) -> tuple[dict[str, FileRecord], list[dict[str, Any]]]:
    """Two files a shard, one of them in a folder of its own."""
    files = {}
    for part in ("a", "b"):
        name = f"{task.split}/{part}/{task.shard}"
        block = hashlib.sha256(f"{plan} {task.name} {part}".encode()).digest()
        content = block * (SHARD_BYTES // 2 // len(block))
        with replace_file(folder / name) as file:
            file.write(content[:1000])
            file.flush()
            if part == "b":
                trouble(folder / name, task)
            file.write(content[1000:])
        files[name] = FileRecord(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    return files, [{"shard": task.shard}]


def finish(folder: Path, receipts: list[Receipt]) -> tuple[dict[str, Any], list[str]]:
    write_json(folder / "index.json", [receipt.result for receipt in receipts])
    contents = {
        "kind": "shards", "info": INFO, "digest": "0" * 64, "statistics": STATISTICS, "statistics_split": "train",
    }  # fmt: skip
    return contents, ["about.json", "index.json"]


def tree(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, hidden ones too."""
    return {p.relative_to(folder).as_posix(): sha256_file(p) for p in folder.rglob("*") if p.is_file()}


def remote_tree(url: str) -> dict[str, str]:
    """SHA-256 of every object below a URL."""
    folder = RemoteFolder(url)
    return {name: hashlib.sha256(folder.read_bytes(name)).hexdigest() for name in folder.sizes()}


@contextmanager
def tasks_in_this_process() -> Iterator[None]:
    """Without Ray, for what happens to the driver: each task is run where its result is wanted."""

    @contextmanager
    def no_session(_: str | None) -> Iterator[None]:
        yield

    def run_tasks(
        function: Callable[[ShardTask], Receipt], tasks: list[ShardTask], _: object, **__: Any
    ) -> Iterator[Receipt]:
        yield from map(function, tasks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "ray_session", no_session)
        patch.setattr(jobs, "run_tasks", run_tasks)
        yield


def in_a_child(function: Callable[[], None]) -> int:
    """Run `function` in a forked process; returns its exit code, or minus the signal that killed it."""
    child = os.fork()
    if child == 0:
        try:
            function()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
