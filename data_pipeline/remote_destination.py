"""An object store as the place where a build writes.

    <url>/.partial/lock, plan.json, receipts/<task>.json     while the dataset is unfinished
    <url>/...                                                its files, uploaded by the workers
    <url>/manifest.json                                      last: no reader takes a folder without one for a dataset

Workers write each shard into a folder of their own machine first, then upload it.
"""

from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from data_pipeline.base.errors import DataError
from data_pipeline.base.lock import remote_lock
from data_pipeline.base.remote import RemoteFolder
from data_pipeline.base.scratch import scratch_folder
from data_pipeline.destination import check_sizes, check_space, not_a_dataset
from data_pipeline.receipts import Prepare, Receipt, ShardTask, Work, readable_receipt, write_shard
from data_pipeline.stores.manifest import MANIFEST, FileRecord, Manifest, all_files, write_manifest
from data_pipeline.stores.remote import remote_manifest

_PARTIAL = ".partial/"
_PLAN = f"{_PARTIAL}plan.json"
_LOCK = f"{_PARTIAL}lock"
_RECEIPTS = f"{_PARTIAL}receipts/"


class RemoteDestination:
    """A folder behind a URL, with no file system in common. See `Destination`."""

    folder: Path

    def __init__(self, remote: RemoteFolder) -> None:
        self._remote = remote

    def idle(self) -> bool:
        """See `Destination.idle`."""
        return not (self._remote / _PARTIAL).sizes()

    def committed(self) -> Manifest | None:
        """See `Destination.committed`."""
        if self._remote.size(MANIFEST) is not None:
            return remote_manifest(self._remote)
        found = self._remote.sizes()
        if _PLAN not in found and any(not name.startswith(_PARTIAL) for name in found):
            raise not_a_dataset(self._remote.url)
        return None

    def check(self, manifest: Manifest) -> None:
        """See `Destination.check`."""
        found = self._remote.sizes()
        for name, record in all_files(manifest).items():
            if found.get(name) != record.size:
                raise DataError(
                    "a file of the finished dataset is not as its manifest says",
                    file=self._remote.url_of(name),
                    found="no file" if name not in found else f"{found[name]} bytes",
                    expected=f"{record.size} bytes",
                    remedy="upload the file again, or delete the dataset there and run the same command again",
                )

    @contextmanager
    def held(self) -> Iterator[None]:
        """See `Destination.held`. Refuses where another process holds it, as nothing tells when that has finished."""
        with remote_lock(self._remote, _LOCK, what=self._remote.url) as check, scratch_folder() as scratch:
            self._check_lock, self.folder = check, scratch / "data"
            yield

    def resume(self, plan: str, prepare: Prepare, tasks: Set[str]) -> dict[str, Receipt]:
        """See `Destination.resume`."""
        prepare(self.folder)
        found = self._remote.sizes()
        if _PLAN in found:
            if self._remote.read_bytes(_PLAN) == plan.encode():
                contents = self._remote.read_many([name for name in found if name.startswith(_RECEIPTS)])
                receipts = (readable_receipt(content, set(tasks), found) for content in contents.values())
                return {receipt.task: receipt for receipt in receipts if receipt is not None}
            print(f"{self._remote}: removing what an interrupted run of another plan left behind", flush=True)
        # The plan goes last: without it, what a killed removal leaves would be somebody else's.
        self._remote.remove([name for name in found if name not in (_PLAN, _LOCK)])
        self._remote.write_bytes(_PLAN, plan.encode())
        return {}

    def check_space(self, needed: int, largest_task: int) -> None:
        """See `Destination.check_space`; nobody asks an object store how much it takes."""
        _check_scratch(self.folder, largest_task)

    def task(self, prepare: Prepare, work: Work, largest_task: int) -> Callable[[ShardTask], Receipt]:
        """See `Destination.task`."""
        return partial(_write_and_upload, self._remote, prepare, work, largest_task)

    def record(self, receipt: Receipt) -> None:
        """See `Destination.record`."""
        self._remote.write_bytes(f"{_RECEIPTS}{receipt.task}.json", receipt.model_dump_json().encode())

    def settle(self, files: Mapping[str, FileRecord], own: Set[str]) -> None:
        """See `Destination.settle`."""
        for name in sorted(own):
            self._remote.upload(self.folder / name, name)
        found = {name: size for name, size in self._remote.sizes().items() if not name.startswith(_PARTIAL)}
        self._remote.remove(sorted(found.keys() - files.keys()))
        check_sizes(found, files, self._remote.url_of)

    def publish(self, manifest: Manifest) -> None:
        """See `Destination.publish`."""
        write_manifest(self.folder, manifest)
        self._check_lock()
        self._remote.upload(self.folder / MANIFEST, MANIFEST)

    def clean(self) -> None:
        """See `Destination.clean`; the lock goes when it is released."""
        found = [_PARTIAL + name for name in (self._remote / _PARTIAL).sizes()]
        self._remote.remove([name for name in found if name != _LOCK])


def _write_and_upload(
    remote: RemoteFolder, prepare: Prepare, work: Work, largest_task: int, task: ShardTask
) -> Receipt:
    """In a worker: write a shard on this machine, and upload it."""
    with scratch_folder() as scratch:
        _check_scratch(scratch, largest_task)
        prepare(scratch / "data")
        receipt = write_shard(work, scratch / "data", task)
        for name in receipt.files:
            remote.upload(scratch / "data" / name, name)
    return receipt


def _check_scratch(folder: Path, needed: int) -> None:
    check_space(folder, needed, "set TMPDIR to a folder of a larger disk, or make the shards smaller")
