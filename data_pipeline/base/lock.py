"""A lock in an object store, which no kernel frees: it says who holds it, and a dead holder's is taken over."""

import json
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from data_pipeline.base.errors import DataError
from data_pipeline.base.remote import RemoteFolder
from data_pipeline.base.scratch import own_temporary_folder


@contextmanager
def remote_lock(folder: RemoteFolder, name: str, *, what: str) -> Iterator[Callable[[], None]]:
    """Hold the lock object `name` in `folder`; gives a function that raises when another took the lock meanwhile.

    A store that cannot create an object only where there is none lets two processes hold the lock that start at the
    very same time; that function then stops the first of them.

    Raises:
        DataError: another process holds the lock; names it. That of a process of this machine that is dead is taken
            over.
    """
    content = json.dumps({**_this_process(), "token": secrets.token_hex(8)}).encode()
    # Two processes of this machine must not both find the same dead holder, and delete each other's lock.
    with FileLock(own_temporary_folder() / "remote.lock"):
        _acquire(folder, name, content, what)

    def check() -> None:
        if folder.size(name) is None or folder.read_bytes(name) != content:
            raise DataError(f"another process has taken over {what}", file=folder.url_of(name), remedy="let it finish")

    try:
        yield check
    finally:
        if folder.size(name) is not None and folder.read_bytes(name) == content:
            folder.remove([name])


def _acquire(folder: RemoteFolder, name: str, content: bytes, what: str) -> None:
    for _ in range(2):
        if folder.create(name, content):
            return
        holder = _holder(folder.read_bytes(name))
        if not _is_dead(holder):
            break
        folder.remove([name])
    raise DataError(
        f"another process is busy with {what}",
        file=folder.url_of(name),
        found=f"process {holder.get('process', '?')} on {holder.get('host', 'an unknown machine')}",
        remedy="wait until it has finished; if you know that it is dead, delete that object, and run again",
    )


def _holder(content: bytes) -> dict[str, Any]:
    try:
        holder = json.loads(content)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "machine": _machine(), "process": pid, "started": _started(pid)}


def _machine() -> str:
    """This start of this machine, and the space in which its process numbers count; empty where it cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process was started, in ticks since the machine's start; empty where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _is_dead(holder: dict[str, Any]) -> bool:
    here = _machine()
    if not here or holder.get("machine") != here:
        return False
    process = holder.get("process")
    return isinstance(process, int) and _started(process) != holder.get("started")
