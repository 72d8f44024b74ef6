"""The watchdog's own process: ends a rank whose heart has stopped. Started by `pretrain.watchdog`, a file by itself.

It imports next to nothing (10 MB), so that one can stand beside every rank, and it shares nothing with the rank that
a held interpreter lock, a stopped process or a dead file server could block.

Time is counted in the watchdog's own rounds: while the whole machine, or the job, is suspended, nothing is counted.
"""

import json
import os
import re
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress

BEAT = struct.Struct("=qq")  # a count of beats, and the number of steps done
_STATES = {"T": "stopped by a signal", "t": "stopped by a debugger", "D": "waiting for a disk or file server"}
_DUMP_SECONDS = 5.0  # for the rank's stacks
_RECORD_SECONDS = 10.0  # for what is written into the run's folder, which may lie on a server that does not answer


def main(arguments: list[str]) -> None:
    """Watch the parent process until it ends or makes no progress.

    Args:
        arguments: file numbers of the heartbeat, of the rank's stacks and of a pipe that ends with the rank; the
            rank's process id, its rank, the time in seconds, and the run's folder.
    """
    beats, stacks, alive, rank_process, rank = map(int, arguments[:5])
    seconds, folder = float(arguments[5]), arguments[6]
    step = wait_for_standstill(beats, alive, rank_process, seconds)
    if step is None:
        return
    state = process_state(rank_process)
    text = dump_stacks(stacks, rank_process)
    within(_RECORD_SECONDS, lambda: leave_record(folder, rank, step, seconds, state, text))
    if os.getppid() == rank_process:  # not somebody else's by now
        os.kill(rank_process, signal.SIGKILL)


def wait_for_standstill(beats: int, alive: int, rank_process: int, seconds: float) -> int | None:
    """Steps done at the last beat, once none has come for so long; None when the rank ends. Counts from the first."""
    interval = min(1.0, seconds / 20)
    last, waited, before = (0, 0), 0.0, time.monotonic()
    while not select.select([alive], [], [], interval)[0] and os.getppid() == rank_process:
        now = time.monotonic()
        beat = BEAT.unpack(os.pread(beats, BEAT.size, 0))
        if beat != last or beat[0] == 0:
            last, waited = beat, 0.0
        else:
            waited += min(now - before, 2 * interval)  # a longer round: the watchdog did not run either
        before = now
        if waited >= seconds:
            return int(beat[1])
    return None


def process_state(process: int) -> str:
    """What keeps a process from running, as far as the kernel knows; empty for nothing in particular."""
    try:
        with open(f"/proc/{process}/stat") as file:  # noqa: PTH123
            return _STATES.get(file.read().rpartition(")")[2].split()[0], "")
    except OSError:
        return ""


def dump_stacks(stacks: int, process: int) -> str:
    """Let the rank write its threads' stacks (`faulthandler` does so without Python's help), and read them."""
    with suppress(ProcessLookupError):  # ended at this moment, but the standstill is still to be told
        os.kill(process, signal.SIGUSR2)
        os.kill(process, signal.SIGCONT)  # a stopped process gets no other signal
    sizes, deadline = [0], time.monotonic() + _DUMP_SECONDS
    while time.monotonic() < deadline and (sizes[-1] == 0 or len(set(sizes[-3:])) > 1):  # until it grows no more
        time.sleep(0.1)
        sizes.append(os.fstat(stacks).st_size)
    return os.pread(stacks, sizes[-1], 0).decode(errors="replace")


def leave_record(folder: str, rank: int, step: int, seconds: float, state: str, stacks: str) -> None:
    """Write the stacks into a file of their own, and a line for the launcher into `hangs.jsonl`."""
    where = innermost(stacks)
    message = f"rank {rank} on {socket.gethostname()} made no progress for {seconds:g} s after step {step}"
    message += f" ({state})" if state else ""
    message += f", in {where}; stacks in {write_stacks(folder, rank, stacks)}" if stacks else "; it wrote no stacks"
    record = {"rank": rank, "step": step, "seconds": seconds, "state": state, "where": where, "message": message}
    write_durably(f"{folder}/hangs.jsonl", os.O_APPEND, json.dumps(record) + "\n")


def innermost(stacks: str) -> str:
    """Where the main thread is: the first frame of the last thread in the dump."""
    frame = re.match(r'[^\n]*\n  File "(.*)", line (\d+) in (.*)', stacks[stacks.lower().rfind("thread 0x") :])
    return f"{frame[3]} ({os.path.basename(frame[1])}:{frame[2]})" if frame else "an unknown place"  # noqa: PTH119


def write_stacks(folder: str, rank: int, stacks: str) -> str:
    """Write the stacks under the first name that is free."""
    with suppress(FileExistsError):
        os.mkdir(f"{folder}/stacks")  # noqa: PTH102  not a folder that has vanished
    number = 0
    while True:
        path = f"{folder}/stacks/rank-{rank:05d}-{number}.txt"
        try:
            write_durably(path, os.O_EXCL, stacks)
            return path
        except FileExistsError:
            number += 1


def write_durably(path: str, flags: int, text: str) -> None:
    """Write a file, or append to it, in one call to the kernel."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o644)
    os.write(handle, text.encode())
    os.fsync(handle)
    os.close(handle)


def within(seconds: float, work: Callable[[], None]) -> None:
    """Do `work` in a process of its own and go on when it is done, fails or takes too long."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    deadline = time.monotonic() + seconds
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            return
        time.sleep(0.02)


if __name__ == "__main__":
    main(sys.argv[1:])
