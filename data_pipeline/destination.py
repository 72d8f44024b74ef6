"""Where a build writes: one protocol for folders and object stores, and the folder.

A dataset becomes visible in one step, and a run that was killed is continued by the next one.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

from data_pipeline.base.errors import DataError, PdepotError
from data_pipeline.base.files import exclusive, publish_directory, read_json, remove_tree, write_bytes, write_json
from data_pipeline.receipts import Prepare, Receipt, ShardTask, Work, readable_receipt, write_shard
from data_pipeline.stores.manifest import MANIFEST, FileRecord, Manifest, check_split, read_manifest, write_manifest


class Destination(Protocol):
    """A place for one dataset. All methods but `idle` and `committed` need `held`."""

    folder: Path
    """Local folder in which the empty dataset was made, and the files lie that no task writes."""

    def idle(self) -> bool:
        """Whether no unfinished run left anything."""
        ...

    def committed(self) -> Manifest | None:
        """The manifest of the dataset that is there; None where there is nothing.

        Raises:
            DataError: there is something else.
        """
        ...

    def check(self, manifest: Manifest) -> None:
        """Raise DataError where a file of the committed dataset is not as the manifest says."""
        ...

    def held(self) -> AbstractContextManager[None]:
        """Be the only one that writes here; a killed holder loses that right."""
        ...

    def resume(self, plan: str, prepare: Prepare, tasks: Set[str]) -> dict[str, Receipt]:
        """Receipts of an interrupted run of the same plan, whose files are still as recorded; else a fresh start."""
        ...

    def check_space(self, needed: int, largest_task: int) -> None:
        """Raise DataError where there is no room for `needed` bytes, or for `largest_task` at a worker."""
        ...

    def task(self, prepare: Prepare, work: Work, largest_task: int) -> Callable[[ShardTask], Receipt]:
        """What a worker runs: writes a shard, durably, where `settle` finds it."""
        ...

    def record(self, receipt: Receipt) -> None:
        """Note that a task is done; if the machine goes down and the note with it, that shard is written again."""
        ...

    def settle(self, files: Mapping[str, FileRecord], own: Set[str]) -> None:
        """Verify that exactly `files` are there, as recorded, without what killed attempts left.

        Args:
            files: everything but the manifest.
            own: those of them that lie in `folder`, written by no task.

        Raises:
            DataError: a file is missing, or has another size.
        """
        ...

    def publish(self, manifest: Manifest) -> None:
        """Make the dataset visible, in one step."""
        ...

    def clean(self) -> None:
        """Remove what is needed only while a dataset is unfinished."""
        ...


class FolderDestination:
    """A folder of a file system that all workers share. See `Destination`.

    Work goes on in `.<name>.partial/data`, beside it the digest of the plan and the journal of receipts; one rename
    makes it visible.
    """

    def __init__(self, final: Path) -> None:
        self._final = final
        self._partial = final.with_name(f".{final.name}.partial")
        self.folder = self._partial / "data"

    def idle(self) -> bool:
        """See `Destination.idle`."""
        return not self._partial.exists() and not self._doomed()

    def committed(self) -> Manifest | None:
        """See `Destination.committed`."""
        if not self._final.exists():
            return None
        if not (self._final / MANIFEST).exists():
            raise not_a_dataset(self._final)
        return read_manifest(self._final)

    def check(self, manifest: Manifest) -> None:
        """See `Destination.check`."""
        for split in manifest.splits:
            check_split(self._final, manifest, split)

    @contextmanager
    def held(self) -> Iterator[None]:
        """See `Destination.held`. Waits for another holder: it most likely makes what is wanted here."""
        with exclusive(self._final.with_name(f".{self._final.name}.lock"), wait=True, what=str(self._final)):
            yield

    def resume(self, plan: str, prepare: Prepare, tasks: Set[str]) -> dict[str, Receipt]:
        """See `Destination.resume`."""
        plan_file = self._partial / "plan.json"
        same = _says(plan_file, plan)
        if same and self.folder.exists():
            receipts = self._read_journal(set(tasks))
            # A line that a crash cut short would spoil the line appended after it.
            lines = [receipt.model_dump_json() + "\n" for receipt in receipts.values()]
            write_bytes(self._journal, "".join(lines).encode())
            return receipts
        if plan_file.exists() and not same:
            print(f"{self._final}: removing what an interrupted run of another plan left behind", flush=True)
        remove_tree(self._partial)
        self._partial.mkdir(parents=True)
        prepare(self.folder)
        write_json(plan_file, plan)
        return {}

    @property
    def _journal(self) -> Path:
        return self._partial / "journal.jsonl"

    def _read_journal(self, tasks: set[str]) -> dict[str, Receipt]:
        sizes = {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in _files(self.folder)}
        lines = self._journal.read_bytes().splitlines() if self._journal.exists() else []
        found = (readable_receipt(line, tasks, sizes) for line in lines)
        return {receipt.task: receipt for receipt in found if receipt is not None}

    def check_space(self, needed: int, largest_task: int) -> None:
        """See `Destination.check_space`; a task writes nowhere else."""
        check_space(self._final.parent, needed, "choose another output folder, or make the dataset smaller")

    def task(self, prepare: Prepare, work: Work, largest_task: int) -> Callable[[ShardTask], Receipt]:
        """See `Destination.task`."""
        return partial(write_shard, work, self.folder)

    def record(self, receipt: Receipt) -> None:
        """See `Destination.record`. Not forced to the disk, which would hold up all workers at each shard."""
        with self._journal.open("ab") as journal:
            journal.write(receipt.model_dump_json().encode() + b"\n")

    def settle(self, files: Mapping[str, FileRecord], own: Set[str]) -> None:
        """See `Destination.settle`."""
        found = {path.relative_to(self.folder).as_posix(): path for path in _files(self.folder)}
        for name in found.keys() - files.keys():
            found[name].unlink()
        check_sizes(
            {name: found[name].stat().st_size for name in found.keys() & files.keys()},
            files,
            lambda name: str(self.folder / name),
        )

    def publish(self, manifest: Manifest) -> None:
        """See `Destination.publish`."""
        write_manifest(self.folder, manifest)
        publish_directory(self.folder, self._final)

    def clean(self) -> None:
        """See `Destination.clean`."""
        remove_tree(self._partial)
        for folder in self._doomed():
            shutil.rmtree(folder, ignore_errors=True)

    def _doomed(self) -> list[Path]:
        """What runs left that were killed while they removed something."""
        return list(self._final.parent.glob(f".{self._partial.name}.*.removed"))


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _says(file: Path, content: str) -> bool:
    try:
        return bool(read_json(file) == content)
    except PdepotError:
        return False


def check_sizes(found: Mapping[str, int], files: Mapping[str, FileRecord], place: Callable[[str], str]) -> None:
    """Raise DataError where a file that a task gave a receipt for is gone, or has another size."""
    for name, record in files.items():
        if found.get(name) != record.size:
            raise DataError(
                "a finished shard has changed",
                file=place(name),
                found="no file" if name not in found else f"{found[name]} bytes",
                expected=f"{record.size} bytes",
                remedy="run the same command again: that shard is written anew",
            )


def check_space(folder: Path, needed: int, otherwise: str) -> None:
    """Raise DataError where the disk of `folder` has less than `needed` bytes to give."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            "the disk is too small for the dataset",
            file=folder,
            found=f"{free / 2**30:.2f} GiB free",
            expected=f"{needed / 2**30:.2f} GiB",
            remedy=f"free some space, {otherwise}",
        )


def not_a_dataset(final: Path | str) -> DataError:
    """The error for an output place that holds something else."""
    return DataError(
        "the output folder is there already, but it is not a finished dataset",
        file=final,
        remedy="delete that folder, or choose another output folder",
    )
