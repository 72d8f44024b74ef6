"""Copies of remote files on this machine's disk, up to a size, for all its processes at once.

    <folder>/
      files/<sha256>      whole and checked; its time of modification, in seconds, is the number of its last use
      partial/<sha256>    being fetched by the holder of its lock; without a holder, left by a process that died
      locks/              `<first digits of a sha256>` for fetching; `uses`, which holds the number of the last use

A file is known by its content, so equal files of several datasets are one copy, and a dataset that has changed is
other files. What was used longest ago makes room. A reader that has a file open keeps it when it is dropped from the
folder: the kernel frees the space when the file is closed. (Stores keep few files open for this reason.)
"""

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from data_pipeline.base.config import Config
from data_pipeline.base.errors import ConfigError, DataError
from data_pipeline.base.files import fsync_directory, sha256_file
from data_pipeline.base.remote import RemoteFolder
from data_pipeline.stores.manifest import FileRecord

_GIB = 2**30
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CacheConfig(Config):
    """Where files of remote datasets are kept on this machine, and how much room they may take."""

    folder: str | None = None
    """By default $PDEPOT_CACHE, or `pdepot/data` in the user's cache folder ($XDG_CACHE_HOME)."""
    limit_gib: Annotated[float, Field(gt=0)] = 100.0
    """Room for whole files. Beside them there is what is being fetched, and what readers hold of dropped ones."""

    def path(self) -> Path:
        """The folder, wherever it was set."""
        if self.folder or os.environ.get("PDEPOT_CACHE"):
            return Path(self.folder or os.environ["PDEPOT_CACHE"]).expanduser().absolute()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pdepot" / "data"


class FileCache:
    """The cache in a folder. All state is on disk: any number of objects, threads and processes can share it.

    Raises:
        ConfigError: the folder cannot be made or written.
    """

    def __init__(self, config: CacheConfig) -> None:
        self.folder = folder = config.path()
        self._limit = int(config.limit_gib * _GIB)
        self._files, self._partial, self._locks = folder / "files", folder / "partial", folder / "locks"
        self._make_folders()

    def _make_folders(self) -> None:
        try:
            for part in (self._files, self._partial, self._locks):
                part.mkdir(parents=True, exist_ok=True)
            with _locked(self._locks / "uses"):
                pass
        except OSError as error:
            raise self._unusable(error) from error

    def file(self, source: RemoteFolder, name: str, record: FileRecord, *, full: bool = False) -> Path:
        """The local copy of a remote file, fetched if it is not there.

        Another process may drop the copy before the caller opens it: then ask again.

        Args:
            source: the remote dataset.
            name: the file's name in it.
            record: what the file must be.
            full: compare the content of a copy that is there already, too, not only its size.

        Raises:
            ConfigError: the cache is smaller than the file, its disk is full, or it cannot be written.
            DataError: the file cannot be fetched, or is not what the record says.
        """
        if not re.fullmatch("[0-9a-f]{64}", record.sha256):
            raise DataError("not a SHA-256", file=source.url_of(name), found=record.sha256)
        path = self._files / record.sha256
        if not self._use(path, record, full):
            self._make_folders()  # a user may delete them at any time
            with _locked(self._locks / record.sha256[:3]):
                # Another process may have been first.
                if not self._use(path, record, full):
                    self._fetch(source, name, record)
        return path

    def _use(self, path: Path, record: FileRecord, full: bool) -> bool:
        """Note that a file is used. False when it is not there, or damaged."""
        try:
            with _locked(self._locks / "uses") as counter:
                if path.stat().st_size != record.size:
                    return False
                self._stamp(path, counter)
            return not full or sha256_file(path) == record.sha256
        except FileNotFoundError:
            return False

    def _stamp(self, path: Path, counter: int) -> None:
        """Give a file the next number, under the lock of the open file `counter`."""
        text = os.pread(counter, 20, 0)
        # Lost with the machine's power: the files tell it.
        last = int(text) if text.isdigit() else max((int(use) for use, _, _ in self._entries()), default=0)
        os.pwrite(counter, f"{last + 1:020}".encode(), 0)
        os.utime(path, (last + 1, last + 1))

    def _fetch(self, source: RemoteFolder, name: str, record: FileRecord) -> None:
        """Download, check and publish a file, under its lock."""
        partial = self._partial / record.sha256
        try:
            partial.unlink(missing_ok=True)
            self._sweep()
            self._check_room(record, source.url_of(name))
            self._download(source, name, record, partial)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            with _locked(self._locks / "uses") as counter:
                self._make_room(record.size)
                self._stamp(partial, counter)  # before it has its name: a file is never without a number
                partial.replace(self._files / record.sha256)
                fsync_directory(self._files)
        except OSError as error:
            raise self._unusable(error) from error
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def _download(self, source: RemoteFolder, name: str, record: FileRecord, partial: Path) -> None:
        """Twice if need be: a transfer can go wrong, too."""
        for _ in range(2):
            try:
                source.download(name, partial)
            except DataError as error:
                if isinstance(error.__cause__, OSError) and error.__cause__.errno in _NO_ROOM:
                    raise self._unusable(error.__cause__) from error
                raise
            size, content = partial.stat().st_size, sha256_file(partial)
            if (size, content) == (record.size, record.sha256):
                return
        raise DataError(
            "the remote file is damaged: it is not the one that the manifest describes",
            file=source.url_of(name),
            found=f"{size} bytes, SHA-256 {content}",
            expected=f"{record.size} bytes, SHA-256 {record.sha256}",
            remedy="upload the file again, or delete the dataset there and build it again",
        )

    def _unusable(self, error: OSError) -> ConfigError:
        return ConfigError(
            "the cache of remote data cannot be used", file=self.folder, key="cache", found=error.strerror,
            remedy="free some space, lower cache.limit_gib, or name another folder: cache.folder or $PDEPOT_CACHE",
        )  # fmt: skip

    def _check_room(self, record: FileRecord, url: str) -> None:
        if record.size > self._limit:
            raise ConfigError(
                "the cache is smaller than a file", file=url, key="cache.limit_gib", found=self._limit / _GIB,
                expected=f"{record.size / _GIB:.3g} or more; some files for each process are sensible",
            )  # fmt: skip
        with _locked(self._locks / "uses"):
            self._make_room(record.size)
        if shutil.disk_usage(self._partial).free < record.size:
            raise OSError(errno.ENOSPC, f"no space left for the {record.size / _GIB:.3g} GiB of {url}")

    def _make_room(self, size: int) -> None:
        """Drop what was used longest ago until `size` bytes fit, under the lock `uses`."""
        entries = sorted(self._entries())
        total = sum(bytes_ for _, bytes_, _ in entries)
        for _, bytes_, path in entries:
            if total + size <= self._limit:
                break
            path.unlink(missing_ok=True)
            total -= bytes_

    def _entries(self) -> list[tuple[float, int, Path]]:
        """Last use, size and path of every whole file."""
        found = []
        for path in self._files.iterdir():
            with suppress(FileNotFoundError):  # as above
                stat = path.stat()
                found.append((stat.st_mtime, stat.st_size, path))
        return found

    def _sweep(self) -> None:
        """Delete what processes that died have left half fetched."""
        for partial in self._partial.iterdir():
            try:
                with _locked(self._locks / partial.name[:3], wait=False):
                    partial.unlink(missing_ok=True)
            except BlockingIOError:  # its fetching goes on
                continue


@dataclass(frozen=True)
class CachedFiles:
    """Gives the local copies of a remote dataset's files by their names in its manifest. See `FileCache.file`."""

    cache: FileCache
    source: RemoteFolder
    records: Mapping[str, FileRecord]

    def __call__(self, name: str) -> Path:
        """The local copy; fetched if it is not there."""
        return self.cache.file(self.source, name, self.records[name])


@contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[int]:
    """Hold the lock file at `path`, alone among all threads and processes; the kernel frees it when the holder dies.

    Not `filelock`, which asks again every 50 ms: this lock is taken whenever a file is opened.

    Raises:
        BlockingIOError: another one holds the lock, and `wait` is false.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        try:
            yield handle
        finally:
            # Closing is not enough: a child that was forked meanwhile has the file open, too.
            fcntl.flock(handle, fcntl.LOCK_UN)
    finally:
        os.close(handle)
