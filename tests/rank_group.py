"""A function on several real ranks: processes with a gloo group between them, as torchrun would start them.

    def mean(value):  # importable by name; the group is up
        total = torch.tensor(value + dist.get_rank())
        dist.all_reduce(total)
        return float(total)

    assert run_in_ranks(mean, 2, 0.5) == [2.0, 2.0]

Every call has new processes, forked from a server that has imported torch and DeepSpeed once, so that a test pays for
its ranks and not for their imports.
"""

import faulthandler
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from pretrain.run import die_with_parent

T = TypeVar("T")

_CONTEXT = multiprocessing.get_context("forkserver")
_PRELOADED = ["torch", "torch.distributed", "deepspeed", "numpy", "pydantic", "pytest"]  # nothing that starts threads
_GRACE = 5.0  # seconds that ranks have to report, too, after one has failed


class RankDiedError(Exception):
    """A rank ended without a word: killed, or gone by `os._exit`."""


def run_in_ranks(function: Callable[..., T], world_size: int, *args: Any, seconds: float = 300.0) -> list[T]:
    """Call `function(*args)` on every rank of a gloo group; returns what each rank returned, in order of ranks.

    Args:
        function: importable by name; its arguments and its result can be pickled.
        world_size: number of ranks.
        args: the same for all ranks, which tell themselves apart by `dist.get_rank()`.
        seconds: until all are killed; and for how long a collective waits.

    Raises:
        RankDiedError: a rank was killed.
        TimeoutError: not all were done in time. Their stacks are printed.
        Exception: the one of the rank that died, or failed first, with its traceback and other ranks' errors as notes.
            All others are killed then.
    """
    call = pickle.dumps((function, args))
    # As torchrun does it: the store is the launcher's and the kernel chooses its port, so nobody else can have it.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory(prefix="ranks-") as name, _processes() as processes:
        folder, connections = Path(name), []
        for rank in range(world_size):
            ours, theirs = _CONTEXT.Pipe()
            environment = os.environ | _environment(rank, world_size, store.port)
            process = _CONTEXT.Process(
                target=_rank, args=(theirs, environment, folder / f"{rank}.log", seconds, call), daemon=True
            )
            process.start()
            theirs.close()  # the rank has it, so its death is our end of file
            processes.append(process)
            connections.append(ours)
        try:
            return _results(connections, processes, time.monotonic() + seconds)
        finally:
            for rank in range(world_size):
                _show(rank, folder / f"{rank}.log")


def _environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What torchrun tells a rank of one host."""
    return {
        "RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world_size),
        "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
        "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip


@contextmanager
def _processes() -> Iterator[list[BaseProcess]]:
    """A list of processes, none of which outlives the block; the server that they are forked from is up."""
    forkserver.set_forkserver_preload(_PRELOADED)
    told = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}  # read while the server imports
    before = {key: os.environ.get(key) for key in told}
    os.environ.update(told)
    try:
        forkserver.ensure_running()
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
    processes: list[BaseProcess] = []
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def _results(connections: list[Connection], processes: list[BaseProcess], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    errors: dict[int, Exception] = {}  # the first one first
    while len(results) + len(errors) < len(connections):
        pending = [c for rank, c in enumerate(connections) if rank not in results and rank not in errors]
        ready = wait(pending, max(0.0, deadline - time.monotonic()))
        if not ready:
            if errors:
                break
            raise TimeoutError(f"ranks {[connections.index(c) for c in pending]} were not done in time")
        for connection in ready:
            rank = connections.index(connection)
            result, error = _received(connection, processes[rank], rank)
            if error is None:
                results[rank] = result
                continue
            if not errors:
                deadline = min(deadline, time.monotonic() + _GRACE)
            errors[rank] = error
    if errors:
        raise _blamed(errors)
    for connection in connections:
        connection.send(None)  # only now may they go: a rank that leaves early would break a slower one's collective
    return [results[rank] for rank in range(len(connections))]


def _blamed(errors: dict[int, Exception]) -> Exception:
    """The error to raise: of a rank that died, since its peers' complaints may be heard first, or else the first."""
    guilty = next((rank for rank, error in errors.items() if isinstance(error, RankDiedError)), next(iter(errors)))
    for rank, error in errors.items():
        if rank != guilty:
            errors[guilty].add_note(f"rank {rank} as well: {type(error).__name__}: {error}")
    return errors[guilty]


def _received(connection: Connection, process: BaseProcess, rank: int) -> tuple[Any, Exception | None]:
    """A rank's result, or its error."""
    try:
        result, error, trace = connection.recv()
    except (EOFError, ConnectionError):
        process.join()
        code = process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return None, RankDiedError(f"rank {rank} died: {how}")
    if trace is None:
        return result, None
    if error is None:
        error = RuntimeError(trace.strip().splitlines()[-1])
    error.add_note(f"on rank {rank}:\n{trace}")
    return None, error


def _show(rank: int, log: Path) -> None:
    """Pass what a rank printed on to where the test prints."""
    text = log.read_text(errors="replace") if log.exists() else ""
    if text:
        print(f"--- rank {rank} printed ---\n{text}", flush=True)


def _rank(connection: Connection, environment: dict[str, str], log: Path, seconds: float, call: bytes) -> None:
    """A rank's life, in its own process."""
    die_with_parent()  # the server, which ends with the test process
    os.environ.clear()
    os.environ.update(environment)
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    faulthandler.enable(sys.stderr)
    faulthandler.dump_traceback_later(0.9 * seconds, file=sys.stderr)
    torch.set_num_threads(1)
    code = 0
    try:
        dist.init_process_group("gloo", timeout=timedelta(seconds=seconds))
        function, args = pickle.loads(call)
        connection.send((function(*args), None, None))
        connection.recv()  # until all are done
    except BaseException as error:
        connection.send((None, _portable(error), traceback.format_exc()))
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # without the interpreter's tidying up, which may wait for threads and peers


def _portable(error: BaseException) -> Exception | None:
    """The exception if it survives the way to another process, else None."""
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:
        return None
    return copy if isinstance(copy, Exception) else None
