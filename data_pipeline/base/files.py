"""Writing so that everything is committed or invisible: temporary name, fsync, rename, fsync of the folder."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from data_pipeline.base.errors import DataError, PdepotError


def fsync_directory(path: Path) -> None:
    """Make the names in a folder durable (a rename is not on disk until its folder is)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_tree(path: Path) -> None:
    """Make every file and folder below `path` durable."""
    for folder, _, names in os.walk(path):
        for name in names:
            with (Path(folder) / name).open("rb") as file:
                os.fsync(file.fileno())
        fsync_directory(Path(folder))


@contextmanager
def replace_file(path: Path, *, unseen: bool = False) -> Iterator[BinaryIO]:
    """A file to write, which becomes the file at `path` in one step; nothing is left of it when writing fails.

    Args:
        path: the file.
        unseen: it lies in a folder that is still to be published, which makes the names in it durable.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
        publish_file(temporary, path, unseen=unseen)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk is reported without a name
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace the file at `path` in one step; a reader sees the old bytes or the new ones, never a part."""
    with replace_file(path) as file:
        file.write(content)


def write_json(path: Path, content: Any) -> None:
    """Replace the JSON file at `path` in one step; keys sorted, so that equal content is equal bytes."""
    write_bytes(path, (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises PdepotError that names the file when it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise PdepotError("file not found", file=path) from None
    except (ValueError, OSError) as error:
        raise PdepotError("not a readable JSON file", file=path, found=error) from None


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turn what the operating system reports in the block into a message for the user (DataError)."""
    try:
        yield
    except OSError as error:
        raise disk_error(error) from error


def disk_error(error: OSError) -> DataError:
    """A full, failing, read-only or vanished disk, for the user."""
    return DataError(
        "a file could not be read or written",
        file=error.filename,
        found=error.strerror or error,
        remedy="mend this and run the same command again: what is finished is kept",
    )


def publish_file(temporary: Path, final: Path, *, unseen: bool = False) -> None:
    """Give a finished file its final name in one step, durably (see `replace_file`); both on one file system."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(final)
    if not unseen:
        fsync_directory(final.parent)


def publish_directory(temporary: Path, final: Path) -> None:
    """Make a finished folder visible under its final name, durably. `final` must not exist."""
    fsync_tree(temporary)
    temporary.rename(final)
    fsync_directory(final.parent)


def remove_tree(path: Path) -> None:
    """Delete a folder so that a crash half-way never leaves it under its old name."""
    if not path.exists():
        return
    doomed = path.with_name(f".{path.name}.{os.getpid()}.removed")
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(content: Any) -> str:
    """Hex SHA-256 of a JSON-able value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@contextmanager
def exclusive(path: Path, *, wait: bool, what: str) -> Iterator[None]:
    """Hold the lock file at `path`; the kernel frees it when the holder dies.

    Args:
        path: the lock file; it stays behind, empty.
        wait: wait for another holder to finish, instead of refusing.
        what: the work, for the messages.

    Raises:
        PdepotError: another process holds the lock and `wait` is false.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise PdepotError(
                f"another process is busy with {what}",
                file=path,
                remedy="wait until it has finished, or choose another output folder",
            ) from None
        print(f"waiting: another process is busy with {what}", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
