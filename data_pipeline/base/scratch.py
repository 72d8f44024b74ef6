"""Folders for files on their way elsewhere, of which nothing is left, whatever kills the process that uses them."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from data_pipeline.base.errors import PdepotError


def own_temporary_folder() -> Path:
    """This user's folder below this machine's temporary folder (`TMPDIR`).

    Raises:
        PdepotError: it belongs to somebody else.
    """
    base = Path(tempfile.gettempdir()) / f"pdepot-{os.getuid()}"
    base.mkdir(mode=0o700, exist_ok=True)
    if base.is_symlink() or base.stat().st_uid != os.getuid():
        raise PdepotError(
            "the folder for temporary files belongs to somebody else", file=base, remedy="set TMPDIR to another folder"
        )
    return base


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new, empty folder for the time of the block; those of dead processes are removed first."""
    base = own_temporary_folder()
    with FileLock(base / "scratch.lock"):
        _sweep(base)
        folder = Path(tempfile.mkdtemp(dir=base))
        mine = FileLock(_lock_of(folder))  # the kernel frees it when this process dies
        mine.acquire()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _lock_of(folder).unlink(missing_ok=True)
        mine.release()


def _sweep(base: Path) -> None:
    for folder in (path for path in base.iterdir() if path.is_dir()):
        try:
            with FileLock(_lock_of(folder), timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
                _lock_of(folder).unlink(missing_ok=True)
        except Timeout:
            continue


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")
