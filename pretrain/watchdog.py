"""A watchdog outside the training process: it notices that a rank makes no progress, and ends it with its stacks.

A rank that is stopped, waits for a lock that nobody gives back, or hangs in C code that holds the interpreter's lock
cannot notice this itself, and its peers wait for it. Its death makes torchrun start the group anew.
"""

import faulthandler
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from data_pipeline.base.files import disk_errors
from pretrain import heartbeat

# Sent to all processes of a job, and meant for the ranks.
_NOT_ITS_BUSINESS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}


class Watchdog:
    """A process beside this one, which kills it when `beat` is not called for `seconds` after the last time.

    Nothing is counted before the first beat: start-up and compilation have the process group's timeout. What may take
    longer than `seconds` between two beats must beat itself. Time while the machine is suspended does not count.

    The rank's stacks are in `FOLDER/stacks`, and the reason is a line of `FOLDER/hangs.jsonl`. Without its watchdog a
    rank goes on; a watchdog never outlives its rank. SIGUSR2 is taken while it stands.

    Args:
        folder: the run's.
        rank: this process's, for the messages.
        seconds: the time without a beat.
    """

    def __init__(self, folder: Path, rank: int, seconds: float) -> None:
        self._folder, self._rank, self._seconds = folder.resolve(), rank, seconds
        self._beats = 0

    def __enter__(self) -> Self:
        """Start the watchdog."""
        # Files without names: nothing is left of them, and the run's folder may lie on a server that does not answer.
        with disk_errors():
            self._file, self._stacks = tempfile.TemporaryFile(), tempfile.TemporaryFile()
            self._file.write(bytes(heartbeat.BEAT.size))
            self._file.flush()
        self._memory = mmap.mmap(self._file.fileno(), heartbeat.BEAT.size)
        faulthandler.register(signal.SIGUSR2, file=self._stacks, all_threads=True)
        ends_with_us, self._alive = os.pipe()
        files = (self._file.fileno(), self._stacks.fileno(), ends_with_us)
        arguments = [*files, os.getpid(), self._rank, self._seconds, self._folder]
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _NOT_ITS_BUSINESS)  # inherited, so there is no gap
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", heartbeat.__file__, *map(str, arguments)],
                pass_fds=files, cwd="/",
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            os.close(ends_with_us)
        return self

    def beat(self, step: int) -> None:
        """Tell that there is progress, after so many steps. Takes about a microsecond and never waits."""
        self._beats += 1
        heartbeat.BEAT.pack_into(self._memory, 0, self._beats, step)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the watchdog."""
        os.close(self._alive)
        self._process.kill()
        self._process.wait()
        faulthandler.unregister(signal.SIGUSR2)
        self._memory.close()
        self._file.close()
        self._stacks.close()


def hangs(folder: Path) -> list[str]:
    """What watchdogs have reported of a run, oldest first: a sentence for each rank that they ended."""
    file = folder / "hangs.jsonl"
    messages = []
    for line in file.read_text(errors="replace").splitlines() if file.exists() else []:
        try:
            messages.append(str(json.loads(line)["message"]))
        except (ValueError, KeyError, TypeError):
            continue  # cut short by a full disk
    return messages
